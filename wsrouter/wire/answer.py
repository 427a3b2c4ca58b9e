"""Small answers that the router gives itself: refusals and redirects (RFC 9110 15)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

#: What a client is told when no backend can take it, or the router is draining: try again in a second.
RETRY_AFTER = (b"Retry-After", b"1")

_UNSAFE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
#: Statuses whose answers have no body, and so no length (RFC 9110 8.6, 15).
_BODILESS = (204, 304)


def answer(
    status: int,
    text: str = "",
    headers: Sequence[tuple[bytes, bytes]] = (),
    *,
    close: bool = True,
    head_only: bool = False,
) -> bytes:
    """One whole HTTP/1.1 response with a line of plain text: ``403 Forbidden: text``.

    ``text`` is the router's own words, never input. ``headers`` come behind the ones that every answer has.
    ``close`` announces that the connection ends with this answer; ``head_only`` leaves the body out, as HEAD
    wants it, but tells its length. Raises ValueError for a status that HTTP does not know or that is no
    final one, and for a header that would break out of its line.
    """
    phrase = HTTPStatus(status).phrase
    if status < 200:
        raise ValueError(f"{status} is no final status")
    lines = [f"HTTP/1.1 {status} {phrase}".encode("ascii")]
    body = b""
    if status not in _BODILESS:
        body = (f"{status} {phrase}: {text}\n" if text else f"{status} {phrase}\n").encode()
        lines += [b"Content-Type: text/plain; charset=utf-8", b"Content-Length: %d" % len(body)]
    lines.append(b"Cache-Control: no-store")
    # An answer to an upgrade may have its own Connection field: one list then holds both.
    connection = [value for name, value in headers if name.lower() == b"connection"]
    if close:
        connection.append(b"close")
    if connection:
        lines.append(b"Connection: " + b", ".join(connection))
    lines += [b"%b: %b" % pair for pair in headers if pair[0].lower() != b"connection"]
    for line in lines:
        if _UNSAFE.search(line):
            raise ValueError(f"a control character in the header {line!r}")
    return b"\r\n".join([*lines, b"", b"" if head_only else body])
