"""Bytes that go from socket to socket without coming into this process: splice(2), by way of a pipe.

It pays for long reads: the kernel hands pages on, where a read and a write copy each byte twice. One pipe serves the
whole process; it is empty between two events, for what a sink does not take is read out of it, and kept as after any
other read.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Final

#: From here on splicing costs less than copying, in bytes.
WORTH: Final = 32 * 1024
#: The size of the pipe in bytes. Each piece of a packet takes a page's place, however small it is, so a pipe of no more
#: than is taken at once would be full too early; and one user's pipes have a limit together (pipe(7)).
PIPE_SIZE: Final = 256 * 1024
#: With less than this there is nothing to gain.
LEAST_SIZE: Final = 64 * 1024

#: How the kernel says that it does not splice these sockets, or may not.
UNABLE: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES})

_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Conduit:
    """A pipe through which bytes are spliced. Raises OSError when there can be none."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:
            pass  # more than this user may have
        if fcntl.fcntl(self._in, fcntl.F_GETPIPE_SZ) < LEAST_SIZE:
            self.close()
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    def take(self, source: int, most: int) -> int:
        """Splice up to ``most`` bytes out of a socket; 0 may be its end. Raises what ``recv`` does, and UNABLE."""
        return os.splice(source, self._in, most, flags=_FLAGS)

    def give(self, sink: int, count: int) -> int:
        """Splice the ``count`` bytes that were taken into a socket; returns how many it took. Raises OSError.

        After an error, or where it took less, the rest has to be fetched.
        """
        given = 0
        try:
            while given < count:
                given += os.splice(self._out, sink, count - given, flags=_FLAGS)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in UNABLE:
                raise
        return given

    def rest(self, count: int) -> bytes:
        """Read what lies in the pipe, which is ``count`` bytes, or fewer after an error."""
        return os.read(self._out, count)

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._out)
        os.close(self._in)
