"""The ClientHello's server name and protocol names, read without taking part in the handshake.

A ClientHello is one handshake message, carried by one or more TLS records that may cut it anywhere (RFC 8446
section 5.1), inside the server name too. So reading has two steps. The first walks the record headers, which
costs a few operations for each record, and ends with "need more" until the records that the message announces are
all here. Only then does the second step put the message together and parse it, once. A hello that comes byte by
byte thus costs a walk, not a parse, at every byte.

What is read decides where the connection goes, and the backend will read the same bytes again. Anything
that two readers might read differently (lengths that do not add up, repeated names, odd characters) is
refused here, so that nobody is routed by one reading and served by another.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import Final

from wsrouter.errors import SniffError
from wsrouter.sniff.verdict import Tls

#: The longest ClientHello taken, in bytes with its 4-byte header. With post-quantum key shares they are about 2 KiB.
MAX_CLIENT_HELLO: Final = 16 * 1024
#: The most records that a ClientHello may come in; honest ones come in one to five.
MAX_RECORDS: Final = 128

# Alert descriptions (RFC 8446 section 6).
UNEXPECTED_MESSAGE: Final = 10
RECORD_OVERFLOW: Final = 22
ILLEGAL_PARAMETER: Final = 47
DECODE_ERROR: Final = 50
PROTOCOL_VERSION: Final = 70

_HANDSHAKE_RECORD: Final = 22
_CLIENT_HELLO: Final = 1
_MAX_FRAGMENT: Final = 1 << 14
_RECORD_HEADER: Final = 5
_MESSAGE_HEADER: Final = 4
# Version, random, and the shortest session id, cipher suites and compression methods.
_SHORTEST_BODY: Final = 2 + 32 + 1 + 4 + 2

_SERVER_NAME: Final = 0
_ALPN: Final = 16
_HOST_NAME: Final = 0

_HOST: Final = re.compile(rb"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?")
_IPV4: Final = re.compile(rb"\d+(?:\.\d+){3}\.?")


def read_client_hello(data: bytes | bytearray) -> Tls | None:
    """Read the ClientHello that ``data``, the connection's bytes from the first on, begins with.

    Returns None while more bytes are needed; bytes behind the ClientHello's last record are not looked at. Raises
    SniffError with the alert to send for what cannot be a ClientHello (RFC 8446 section 6.2): for faults of the
    headers of records and message as soon as the header is here, for faults inside once the message is whole.
    """
    size = len(data)
    at = 0
    have = 0
    need = 0
    header = b""
    fragments: list[tuple[int, int]] = []
    while True:
        start = at + _RECORD_HEADER
        if start > size:
            _check_cut_header(data, at)
            return None
        length = data[at + 3] << 8 | data[at + 4]
        if data[at] != _HANDSHAKE_RECORD or data[at + 1] != 3 or not 0 < length <= _MAX_FRAGMENT:
            _refuse_record(data[at], data[at + 1], length)
        at = start + length
        if not need:
            header += data[start : min(at, start + _MESSAGE_HEADER - len(header))]
            need = _message_length(header)
        have += length
        if need and have > need:
            # A ClientHello ends with its record: the keys may change behind it (RFC 8446 section 5.1).
            raise SniffError(f"{have - need} bytes behind the ClientHello in its record", UNEXPECTED_MESSAGE)
        if at > size:
            return None
        fragments.append((start, at))
        if have == need:
            break
        if len(fragments) >= MAX_RECORDS:
            # Each piece that arrives is a walk over all records: a trickle of tiny ones would be a cheap way to cost.
            raise SniffError(f"a ClientHello in more than {MAX_RECORDS} records", ILLEGAL_PARAMETER)
    if len(fragments) == 1:
        return _parse(bytes(data[start + _MESSAGE_HEADER : at]))
    return _parse(b"".join([data[first:last] for first, last in fragments])[_MESSAGE_HEADER:])


def _check_cut_header(data: bytes | bytearray, at: int) -> None:
    """Judge what is here of a record header that is not whole yet."""
    kind = data[at] if len(data) > at else _HANDSHAKE_RECORD
    major = data[at + 1] if len(data) > at + 1 else 3
    if kind != _HANDSHAKE_RECORD or major != 3:
        _refuse_record(kind, major, 1)


def _refuse_record(kind: int, major: int, length: int) -> None:
    if kind != _HANDSHAKE_RECORD:
        raise SniffError(f"a record of type {kind} where a ClientHello's (22) was expected", UNEXPECTED_MESSAGE)
    if major != 3:
        raise SniffError(f"record version {major}.x, expected 3.x", PROTOCOL_VERSION)
    if not length:
        raise SniffError("an empty handshake record", UNEXPECTED_MESSAGE)
    raise SniffError(f"a record of {length} bytes, at most {_MAX_FRAGMENT} are allowed", RECORD_OVERFLOW)


def _message_length(header: bytes) -> int:
    """Return the message's length with its header, or 0 while the header is not whole."""
    if header and header[0] != _CLIENT_HELLO:
        raise SniffError(f"handshake message {header[0]} where ClientHello (1) was expected", UNEXPECTED_MESSAGE)
    if len(header) < _MESSAGE_HEADER:
        return 0
    need = _MESSAGE_HEADER + int.from_bytes(header[1:], "big")
    if need > MAX_CLIENT_HELLO:
        raise SniffError(f"a ClientHello of {need} bytes, at most {MAX_CLIENT_HELLO} are taken", ILLEGAL_PARAMETER)
    if need < _MESSAGE_HEADER + _SHORTEST_BODY:
        raise SniffError(f"a ClientHello of {need} bytes is too short", DECODE_ERROR)
    return need


def _parse(body: bytes) -> Tls:
    """Read the body of a whole ClientHello (RFC 8446 section 4.1.2); a length outside its field is a decode_error."""
    end = len(body)
    at = 34
    length = body[at]
    at += 1 + length
    if length > 32 or at + 2 > end:
        raise _decode_error("session id")
    length = body[at] << 8 | body[at + 1]
    at += 2 + length
    if not length or length & 1 or at >= end:
        raise _decode_error("cipher suites")
    length = body[at]
    at += 1 + length
    if not length or at > end:
        raise _decode_error("compression methods")
    if at == end:
        return Tls(None)  # TLS 1.2 and older may do without extensions
    if at + 2 > end or at + 2 + (body[at] << 8 | body[at + 1]) != end:
        raise _decode_error("extensions")
    return _parse_extensions(body, at + 2)


def _parse_extensions(body: bytes, at: int) -> Tls:
    """Walk the extensions from ``at`` to the end; others, GREASE (RFC 8701) and ECH's among them, are passed over."""
    end = len(body)
    server_name: bytes | None = None
    alpn: bytes | None = None
    while at < end:
        start = at + 4
        if start > end:
            raise _decode_error("extension")
        kind = body[at] << 8 | body[at + 1]
        at = start + (body[at + 2] << 8 | body[at + 3])
        if at > end:
            raise _decode_error("extension")
        if kind == _SERVER_NAME:
            if server_name is not None:
                raise SniffError("two server_name extensions", ILLEGAL_PARAMETER)
            server_name = body[start:at]
        elif kind == _ALPN:
            if alpn is not None:
                raise SniffError("two ALPN extensions", ILLEGAL_PARAMETER)
            alpn = body[start:at]
    return Tls(
        None if server_name is None else _host_name(server_name),
        () if alpn is None else _protocols(alpn),
    )


def _host_name(extension: bytes) -> str | None:
    """Return the one host name of a server_name extension (RFC 6066 section 3)."""
    end = len(extension)
    if end < 3 or 2 + (extension[0] << 8 | extension[1]) != end:
        raise _decode_error("server name list")
    at = 2
    name: bytes | None = None
    while at < end:
        start = at + 3
        if start > end:
            raise _decode_error("server name")
        kind = extension[at]
        at = start + (extension[at + 1] << 8 | extension[at + 2])
        if at > end or at == start:
            raise _decode_error("server name")
        if kind == _HOST_NAME:
            if name is not None:
                raise SniffError("two host names in one server_name extension", DECODE_ERROR)
            name = extension[start:at]
    # Other kinds of name have the same outer shape by rule, and none is in use.
    return None if name is None else _normal_name(name)


@functools.lru_cache(256)
def _shared(name: str) -> str:
    """``name``, as one object for all: most connections ask for one of few names, and each keeps its own."""
    return name


def _normal_name(name: bytes) -> str | None:
    if len(name) > 255:
        raise SniffError(f"a server name of {len(name)} bytes, at most 255 are allowed", DECODE_ERROR)
    if _HOST.fullmatch(name):
        return None if _IPV4.fullmatch(name) else _shared(name.decode("ascii").lower().removesuffix("."))
    if b":" in name and _is_ipv6(name):
        return None
    raise SniffError("a server name that is no host name", DECODE_ERROR)


def _is_ipv6(name: bytes) -> bool:
    text = name.decode("latin-1")
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _protocols(extension: bytes) -> tuple[str, ...]:
    """Return the protocol names of an ALPN extension (RFC 7301 section 3.1)."""
    end = len(extension)
    if end < 4 or 2 + (extension[0] << 8 | extension[1]) != end:
        raise _decode_error("protocol name list")
    names = []
    at = 2
    while at < end:
        start = at + 1
        at = start + extension[at]
        if at == start or at > end:
            raise _decode_error("protocol name")
        names.append(extension[start:at].decode("latin-1"))
    return tuple(names)


def _decode_error(what: str) -> SniffError:
    return SniffError(f"malformed ClientHello: {what}", DECODE_ERROR)
