"""Readers of HTTP/1.1 request bodies: where a body ends, and what it holds (RFC 9112 6 and 7.1).

A reader is fed what comes behind a request head, cut anywhere. What lies behind the end of the body is handed back
untouched: it is the next request. Two readers of one stream that disagree about that end are how requests get
smuggled, so the chunked reader takes the grammar at its word and nothing more.
"""

from __future__ import annotations

import enum
import re
from typing import Final, Protocol

from wsrouter.errors import HttpError

#: Longest chunk-size line in bytes, extensions and CRLF included.
SIZE_LINE_LIMIT: Final = 1024
#: Longest trailer section in bytes, its closing empty line included.
TRAILER_LIMIT: Final = 8 * 1024

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED: Final = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_SPACE: Final = rb"[ \t]*"
_EXTENSION: Final = rb"%b;%b%b(?:%b=%b(?:%b|%b))?" % (_SPACE, _SPACE, _TOKEN, _SPACE, _SPACE, _TOKEN, _QUOTED)
# No control character matches inside a line, and no two ways lead through one, so a long line costs no more. Possessive
# quantifiers stand behind single characters only: around a group, CPython before 3.11.5 matches too much (gh-106052).
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:%b)*\r\n" % _EXTENSION)
_TRAILER_LINE: Final = re.compile(rb"%b:[\t\x20-\x7e\x80-\xff]*+\r\n" % _TOKEN)


class Body(Protocol):
    """What both readers offer."""

    @property
    def done(self) -> bool:
        """Whether the body has ended; an end of the connection before that makes the request incomplete."""
        ...

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take the next bytes; return what they hold of the body's content, and what lies behind the body's end.

        Either may be empty. Raises HttpError (400) for a malformed body; nothing may be fed after that.
        """
        ...


class LengthBody:
    """A body of ``length`` bytes, as Content-Length told (RFC 9112 6.2)."""

    __slots__ = ("_left",)

    def __init__(self, length: int) -> None:
        self._left = length

    @property
    def done(self) -> bool:
        """Whether the body has ended; a body without length has ended from the start."""
        return not self._left

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take the next bytes; return the content and what lies behind it. Never raises."""
        content, rest = data[: self._left], data[self._left :]
        self._left -= len(content)
        return content, rest


class _Expected(enum.Enum):
    """Which line comes next, outside a chunk's data."""

    SIZE = enum.auto()
    DATA_END = enum.auto()
    TRAILER = enum.auto()
    NOTHING = enum.auto()


class ChunkedBody:
    """A body in the chunked transfer coding (RFC 9112 7.1); extensions and trailer fields are checked and dropped.

    Stricter than a lenient recipient may be: lines end with CRLF only (section 2.2 would allow a bare LF), a size has
    16 digits at most, and what is dropped is well formed and bounded. At most ``TRAILER_LIMIT`` bytes
    are kept between two calls.
    """

    __slots__ = ("_expected", "_left", "_partial", "_trailer_room")

    def __init__(self) -> None:
        self._expected = _Expected.SIZE
        self._left = 0
        self._partial = b""
        self._trailer_room = TRAILER_LIMIT

    @property
    def done(self) -> bool:
        """Whether the body has ended, its trailer section included."""
        return self._expected is _Expected.NOTHING

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take the next bytes; return the content, without its coding, and what lies behind the body.

        Raises HttpError (400) for what is not the chunked coding; nothing may be fed after that.
        """
        if self._partial:
            data = self._partial + data
            self._partial = b""
        pieces = []
        pos = 0
        while pos < len(data) and not self.done:
            if self._left:
                piece = data[pos : pos + self._left]
                pieces.append(piece)
                pos += len(piece)
                self._left -= len(piece)
                continue
            end = self._line_end(data, pos)
            if not end:
                self._partial = data[pos:]
                return b"".join(pieces), b""
            self._take_line(data[pos:end])
            pos = end
        return b"".join(pieces), data[pos:]

    def _line_end(self, data: bytes, pos: int) -> int:
        """Where the line that begins at ``pos`` ends, or 0 if its end is not here yet."""
        if self._expected is _Expected.SIZE:
            limit, fault = SIZE_LINE_LIMIT, "a chunk-size line is too long"
        elif self._expected is _Expected.DATA_END:
            limit, fault = 2, "a chunk is longer than its size"
        else:
            limit, fault = self._trailer_room, "the trailer section is too long"
        end = data.find(b"\n", pos, pos + limit) + 1
        if not end and len(data) - pos >= limit:
            raise HttpError(400, fault)
        return end

    def _take_line(self, line: bytes) -> None:
        if self._expected is _Expected.SIZE:
            match = _SIZE_LINE.fullmatch(line)
            if match is None:
                raise HttpError(400, "a chunk-size line is malformed")
            self._left = int(match[1], 16)
            self._expected = _Expected.DATA_END if self._left else _Expected.TRAILER
        elif self._expected is _Expected.DATA_END:
            if line != b"\r\n":
                raise HttpError(400, "a chunk does not end with CRLF")
            self._expected = _Expected.SIZE
        elif line == b"\r\n":
            self._expected = _Expected.NOTHING
        else:
            if _TRAILER_LINE.fullmatch(line) is None:
                raise HttpError(400, "a trailer field is malformed")
            self._trailer_room -= len(line)
