"""A listening socket: bound as an endpoint string says, closed without leaving anything behind.

Twisted's endpoints bind TCP ports and adopt what systemd passes. What they bound is taken from them at once: the relay
serves it, and Twisted's port would remove the file of a unix socket when it is closed, also one that is systemd's.

Unix sockets are bound here. The file of one outlives a process that was killed, and the next one must be able to start:
a file that nobody listens on is replaced. Twisted's way to know, a lock file with the number of a process, fails where
numbers come again soon, as in a container; asking the socket cannot. Whoever binds holds a lock on the folder
meanwhile, so that of two routers that start together neither takes the other's new socket for a stale one.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IReactorFDSet, IReadDescriptor
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from wsrouter.config.endpoint import Address, UnixSocket, unix_socket
from wsrouter.errors import ListenError

#: Connections that the kernel keeps until they are accepted; it cuts this to net.core.somaxconn.
BACKLOG = 4096
#: How often the lock on a folder is asked for, and the pause after each, in seconds: binding takes less than one.
LOCK_TRIES = 20
LOCK_PAUSE = 0.01

#: Socket options of Linux that the standard library has no names for (asm-generic/socket.h).
SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27
#: A socket filter (classic BPF) that drops whatever begins a connection: what has SYN, the second bit of the fourteenth
#: byte of a TCP header (RFC 9293 3.1), and passes all else.
_NO_SYN = array.array(
    "B",
    b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (0x30, 0, 0, 13),  # load byte 13
            (0x45, 0, 1, 0x02),  # none of these bits: skip one
            (0x06, 0, 0, 0),  # return 0: drop it
            (0x06, 0, 0, 0xFFFFFFFF),  # return: pass all of it
        )
    ),
)


class Port:
    """A bound socket. ``file`` is the path of a unix socket that was bound here; ``lent``: it is systemd's as well."""

    __slots__ = ("_file", "_identity", "_lent", "socket")

    def __init__(self, sock: socket.socket, file: str | None = None, *, lent: bool = False) -> None:
        self.socket = sock
        self._lent = lent
        self._file = file
        self._identity = None if file is None else _identity(file)

    @property
    def address(self) -> str:
        """The address that was bound, as in a URL: ``127.0.0.1:8080``, ``[::1]:8080``, ``unix:/run/x.sock``."""
        name: Any = self.socket.getsockname()
        if self.socket.family == socket.AF_UNIX:
            return f"unix:{os.fsdecode(name)}"
        host, port = name[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def number(self) -> int:
        """The number of the port; 0 for a unix socket."""
        return 0 if self.socket.family == socket.AF_UNIX else int(self.socket.getsockname()[1])

    def share(self, shared: bool) -> None:
        """Let another socket of this user have the port as well, or not."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)

    def turn_away(self) -> None:
        """Begin to close: who is on the way in still gets in, nobody else does.

        Closing a socket resets whoever waits to be accepted, or is about to. So first nobody new may come, then those
        are accepted, then it is closed. A unix socket loses its file. On TCP the segment that begins a connection is
        dropped, and sent again a second later (RFC 6298 2.1): by then somebody else may listen here. A socket of
        systemd's goes on.
        """
        if self._lent:
            return
        if self.socket.family == socket.AF_UNIX:
            self._remove_file()
            return
        address, length = _NO_SYN.buffer_info()
        program = struct.pack("HP", length // struct.calcsize("HBBI"), address)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        except OSError:
            pass  # some kernels keep filters from ordinary users: then an instant is left in which a client is reset

    def _remove_file(self) -> None:
        """Remove the file of a unix socket unless it is another's by now."""
        file, self._file = self._file, None
        if file is None:
            return
        # While it listens: nobody takes the file for a stale one then and puts a new one in its place, and no other
        # file can have its number.
        try:
            if _identity(file) == self._identity:
                os.unlink(file)
        except OSError:
            pass  # it is gone, or not ours to remove since privileges were dropped: the next start replaces it

    def suspend(self) -> None:
        """Leave the address to another socket, but stay bound, so that ``resume`` cannot fail.

        Linux takes a listening socket that is shut down out of listening.
        """
        self.socket.shutdown(socket.SHUT_RDWR)

    def resume(self) -> None:
        """Listen again, behind ``suspend`` or ``turn_away``."""
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        except OSError:
            pass  # nobody was turned away
        self.socket.listen(BACKLOG)

    def close(self) -> None:
        """Close it; the file of a unix socket goes with it."""
        self._remove_file()
        if not self._lent:
            # The relay has a duplicate, which is closed a little later: who came until then would wait, to be reset.
            try:
                self.suspend()
            except OSError:
                pass  # it does not listen
        self.socket.close()


def bind(reactor: IReactorFDSet, endpoint: str) -> Port:
    """Bind ``endpoint``, an endpoint string of the configuration, and queue connections.

    Raises ListenError with the reason in few words.
    """
    unix = unix_socket(endpoint)
    if unix is not None:
        return _bind_unix(unix)
    sock = _bound_by_twisted(reactor, endpoint)
    lent = endpoint.startswith("systemd:")
    if not lent and "backlog=" not in endpoint:
        # Linux lets a listening socket listen again, with another backlog; Twisted's default is 50.
        sock.listen(BACKLOG)
    return Port(sock, lent=lent)


def bind_over(address: Address, old: Sequence[Port], suspend: Callable[[], None]) -> Port:
    """Bind a TCP address of which the ``old`` ports have a part; they are to be closed, or to ``resume``.

    Both listen for a while where they belong to the same user (SO_REUSEPORT). Else ``suspend`` is called, just before
    the new one listens, to suspend the old ones. Raises ListenError.
    """
    try:
        for port in old:
            port.share(True)
        try:
            return _listening(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            suspend()
            return _listening(address)
    except OSError as error:
        raise ListenError(_why(error), error.errno) from None
    finally:
        for port in old:
            port.share(False)


def _listening(address: Address) -> Port:
    """A port that listens at a TCP address, together with others of this user that allow it at this moment."""
    sock = socket.socket(socket.AF_INET6 if address.kind == "tcp6" else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((address.host, address.port))
        sock.listen(BACKLOG)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
    except OSError:
        sock.close()
        raise
    return Port(sock)


def _bound_by_twisted(reactor: IReactorFDSet, endpoint: str) -> socket.socket:
    results: list[IListeningPort | Failure] = []
    factory = Factory()
    factory.noisy = False
    try:
        listening: Deferred[IListeningPort] = serverFromString(  # type: ignore[no-untyped-call]
            reactor, endpoint
        ).listen(factory)
    except LookupError:
        raise ListenError("systemd has passed no such socket") from None
    except (ValueError, OSError) as error:
        raise _error(error) from None
    listening.addBoth(results.append)
    if not results:
        raise ListenError("it cannot be bound at once")
    port = results[0]
    if isinstance(port, Failure):
        raise _error(port.value) from None
    reactor.removeReader(cast(IReadDescriptor, port))
    bound = cast(Any, port).socket
    try:
        return socket.socket(fileno=os.dup(bound.fileno()))
    except OSError as error:
        raise _error(error) from None
    finally:
        bound.close()


def _bind_unix(unix: UnixSocket) -> Port:
    try:
        folder = os.open(os.path.dirname(unix.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _error(error) from None
    sock = None
    try:
        sock = socket.socket(socket.AF_UNIX)
        _lock(folder)
        _remove_stale(unix.path)
        sock.bind(unix.path)
        # Nobody can connect before it listens, so nobody comes in by the mode that the umask gave.
        os.chmod(unix.path, unix.mode)
        sock.listen(unix.backlog or BACKLOG)
        return Port(sock, unix.path)
    except (OSError, ListenError) as error:
        if sock is not None:
            sock.close()
        raise error if isinstance(error, ListenError) else _error(error) from None
    finally:
        os.close(folder)


def _lock(folder: int) -> None:
    """Lock a folder, or raise ListenError soon: a reload waits on the loop, and whoever may read it may lock it."""
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_PAUSE)
        else:
            return
    raise ListenError("its folder is locked by another process")


def _remove_stale(path: str) -> None:
    """Remove the file of a unix socket that nobody listens on; what is anything else is a ListenError."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ListenError("there is a file that is no socket; it is left alone")
    with socket.socket(socket.AF_UNIX) as probe:
        # A full queue must not hold up the start; it has somebody behind it.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass
    raise ListenError("address already in use", errno.EADDRINUSE)


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _error(error: BaseException | None) -> ListenError:
    cause = error.socketError if isinstance(error, CannotListenError) else error
    return ListenError(_why(cause), cause.errno if isinstance(cause, OSError) else None)


def _why(cause: BaseException | None) -> str:
    """Why it cannot be bound, in few words."""
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return str(cause)
