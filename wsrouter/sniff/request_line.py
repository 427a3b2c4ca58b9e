"""Whether a connection opens with an HTTP/1 request line (RFC 9112 section 3)."""

from __future__ import annotations

import re
from typing import Final

#: An unknown method's request line ends within so many bytes, its CRLF included, or is none.
MAX_REQUEST_LINE: Final = 8 * 1024

_KNOWN = tuple(
    f"{method} ".encode() for method in ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT")
)

# Possessive: what is matched is never given back, so a long line is walked once.
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_TARGET: Final = rb"[\x21-\x7e\x80-\xff]++"
_LINE: Final = re.compile(_TOKEN + rb" " + _TARGET + rb" HTTP/1\.[0-9]\r\n")


#: What a request line may begin with: a token, or an empty line before it.
_FIRST: Final = frozenset(b"\r!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def _any_beginning(pieces: list[bytes]) -> re.Pattern[bytes]:
    """Compile what matches any non-empty beginning of ``pieces`` in a row."""
    pattern = b""
    for piece in reversed(pieces):
        pattern = b"(?:" + piece + pattern + b")?"
    return re.compile(pattern)


_BEGINNING: Final = _any_beginning(
    [_TOKEN, rb" ", _TARGET, rb" ", *(re.escape(b"HTTP/1."[at : at + 1]) for at in range(7)), rb"[0-9]", rb"\r"]
)


def is_request_line(data: bytes | bytearray) -> bool | None:
    """Tell whether ``data``, the connection's bytes from the first on, begins with a request line.

    None: more bytes are needed. A known method and its space are enough for True; any other token needs the whole
    line, ``HTTP/1.x`` and CRLF included, within ``MAX_REQUEST_LINE`` bytes. False comes with the first byte that no
    request line can hold; HTTP/2's preface ``PRI * HTTP/2.0`` (RFC 9113 section 3.4) is False too. One empty line in
    front is passed over (RFC 9112 section 2.2).
    """
    if data.startswith(_KNOWN):
        return True
    if data and data[0] not in _FIRST:
        return False
    start = 0
    if data.startswith(b"\r"):
        if len(data) == 1:
            return None
        if data[1] != 0x0A:
            return False
        start = 2
        if data.startswith(_KNOWN, start):
            return True
    stop = start + MAX_REQUEST_LINE
    if _LINE.match(data, start, stop):
        return True
    if len(data) < stop and _BEGINNING.fullmatch(data, start):
        return None
    return False
