"""The first bytes of a connection -> the verdict on it."""

from __future__ import annotations

from typing import Final

from wsrouter.errors import SniffError
from wsrouter.sniff.client_hello import ILLEGAL_PARAMETER, MAX_CLIENT_HELLO, read_client_hello
from wsrouter.sniff.request_line import is_request_line
from wsrouter.sniff.verdict import Http, Opaque, Verdict

#: Without a verdict after so many bytes there will be none. The longest ClientHello fits, with the headers of all the
#: records that it may come in.
PREFETCH_LIMIT: Final = MAX_CLIENT_HELLO + 4 * 1024

_HTTP: Final = Http()
_OPAQUE: Final = Opaque()


def sniff(data: bytes | bytearray) -> Verdict | None:
    """Decide on ``data``, the connection's bytes from the first on; None: more bytes are needed.

    A verdict never changes when more bytes come. Raises SniffError for what begins as a ClientHello and is none, or
    does not end within ``PREFETCH_LIMIT`` bytes. A silent peer gets no verdict here: the caller makes
    ``Opaque(silent=True)`` at its deadline. The SSL 2 style of ClientHello is opaque.
    """
    if not data:
        return None
    if data[0] == 0x16:
        if len(data) == 1:
            return None
        if data[1] != 0x03:
            return _OPAQUE
        hello = read_client_hello(data)
        if hello is None and len(data) >= PREFETCH_LIMIT:
            raise SniffError(f"no whole ClientHello in {len(data)} bytes", ILLEGAL_PARAMETER)
        return hello
    http = is_request_line(data)
    if http is None:
        return None
    return _HTTP if http else _OPAQUE


def alert(description: int) -> bytes:
    """Return the record of a fatal TLS alert (RFC 8446 section 6), in plain text, with the version every peer takes."""
    return bytes((21, 3, 3, 0, 2, 2, description))
