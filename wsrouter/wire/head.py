"""HTTP/1 heads: cut from a stream, parsed strictly, offered as values (RFC 9112).

llhttp judges the field lines: it refuses bare CR and LF, folded lines, blanks before a colon, control
characters and contradicting lengths. Asking it costs a call for each line, so it is spared those that are beyond
doubt by their shape, or that were judged before. The start line is judged here, because llhttp lets two spaces,
HTTP/0.9, HTTP/2.0, ICE and RTSP pass, skips any number of empty lines, and refuses the raw UTF-8 that
clients do send in targets. So llhttp is fed the field lines behind a start line of our own. That also
keeps it from reading a 101 as the end of HTTP, or the bytes behind one head as another.

Host, repeated fields and sizes are checked here too; llhttp has no opinion on them. It leaves blanks
behind a value in place: they are taken off here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias, TypeVar

import httptools

from wsrouter.errors import BackendError, HttpError
from wsrouter.wire.target import AUTHORITY, authority_of

#: The longest head in bytes, its blank line included.
HEAD_LIMIT: Final = 16 * 1024
#: The most field lines in one head.
FIELD_LIMIT: Final = 100
#: The longest line in bytes, without its CRLF.
LINE_LIMIT: Final = 8 * 1024
#: Values up to this many bytes are remembered where clients are expected to send the same ones again.
SHORT: Final = 64
#: And so many of one kind.
REMEMBERED: Final = 256

_K = TypeVar("_K")
_T = TypeVar("_T")

#: Makes a named tuple of a tuple of all its values, in a third of the time that calling its class takes.
new = tuple.__new__

#: One field line: the name in lower case, the name as written, the value without the blanks around it.
Field: TypeAlias = tuple[bytes, bytes, bytes]
#: ``Head.fields``, ``Head.lines``, ``Head.values``.
_Fields: TypeAlias = tuple[tuple[Field, ...], tuple[bytes, ...], dict[bytes, list[bytes]]]
#: ``Head.content_length``, ``Head.chunked``.
_Framing: TypeAlias = tuple[int | None, bool]
_NO_BODY: Final[_Framing] = (None, False)

_REQUEST_LINE: Final = re.compile(rb"(?:\r\n)?([A-Z][A-Z_-]{0,31}) ([^\x00-\x20\x7f]+) HTTP/1\.([01])\r\n")
_OTHER_VERSION: Final = re.compile(
    rb"(?:\r\n)?[A-Z][A-Z_-]{0,31} [^\x00-\x20\x7f]+ HTTP/(?!1\.[01])[0-9](?:\.[0-9])?\r\n"
)
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?\r\n")
_LONE_CR_OR_LF: Final = re.compile(rb"(?<!\r)\n|\r[^\n]")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")


class Head:
    """What requests and responses offer alike; names are asked for in lower case. Not to be changed."""

    __slots__ = ("chunked", "connection", "content_length", "fields", "lines", "minor", "values")

    # Each subclass sets them itself: CPython makes a store fast where it meets one class only.
    #: HTTP/1.minor: 0 or 1.
    minor: int
    #: Every field line in the order it came.
    fields: tuple[Field, ...]
    #: The same lines as they may be sent on: ``Name: value``.
    lines: tuple[bytes, ...]
    #: The values of each name in the order they came.
    values: dict[bytes, list[bytes]]
    #: The tokens of Connection in lower case.
    connection: tuple[bytes, ...]
    content_length: int | None
    #: The body comes in the chunked coding.
    chunked: bool

    def all(self, name: bytes) -> list[bytes]:
        """Every value of a field; empty where it is absent."""
        return self.values.get(name) or []

    def first(self, name: bytes) -> bytes | None:
        """The first value of a field; None where it is absent."""
        values = self.values.get(name)
        return values[0] if values else None

    @property
    def keep_alive(self) -> bool:
        """Whether the sender wants the connection to last (RFC 9112 9.3)."""
        if b"close" in self.connection:
            return False
        return self.minor == 1 or b"keep-alive" in self.connection


class RequestHead(Head):
    """One request's head."""

    __slots__ = ("host", "method", "target", "upgrades")

    def __init__(
        self,
        method: str,
        target: bytes,
        minor: int,
        host: str,
        parsed: _Fields,
        connection: tuple[bytes, ...],
        framing: _Framing,
    ) -> None:
        self.minor = minor
        self.fields, self.lines, self.values = parsed
        self.connection = connection
        self.content_length, self.chunked = framing
        self.method = method
        #: The request target as it came; ``parse_target`` reads it.
        self.target = target
        #: The authority of an absolute-form target, else the Host field, as it came; empty only on HTTP/1.0.
        self.host = host
        values = self.values
        #: The tokens of Upgrade in lower case; empty unless Connection names upgrade on HTTP/1.1 (RFC 9110 7.8).
        self.upgrades: tuple[bytes, ...] = (
            tokens(values[b"upgrade"]) if minor and b"upgrade" in connection and b"upgrade" in values else ()
        )

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for ``100 Continue`` before its body (RFC 9110 10.1.1)."""
        return self.minor == 1 and any(value.lower() == b"100-continue" for value in self.all(b"expect"))


class ResponseHead(Head):
    """One response's head."""

    __slots__ = ("reason", "status")

    def __init__(
        self,
        status: int,
        reason: bytes,
        minor: int,
        parsed: _Fields,
        connection: tuple[bytes, ...],
        framing: _Framing,
    ) -> None:
        self.minor = minor
        self.fields, self.lines, self.values = parsed
        self.connection = connection
        self.content_length, self.chunked = framing
        self.status = status
        #: The reason phrase as it came, perhaps empty.
        self.reason = reason


def cut_head(data: bytes | bytearray, start: int = 0) -> int | None:
    """Where the first head in ``data`` ends: the offset behind its blank line, or None while that is missing.

    ``start`` is how many bytes an earlier call has seen, so that a head that comes in small pieces is not
    searched from its beginning each time. One empty line before a request line belongs to the head (RFC
    9112 2.2). Raises HttpError: 414 for a request line over LINE_LIMIT, 431 for a head or another line
    over its limit, 400 for a lone CR or LF, which would never become a blank line.
    """
    if not start:
        # Nearly always: a short head that came at once. One with an empty line before it is found alike.
        found = data.find(b"\r\n\r\n", 0, LINE_LIMIT)
        if found > 0:
            return found + 4
    skip = 2 if data.startswith(b"\r\n") else 0
    found = data.find(b"\r\n\r\n", max(start - 3, skip))
    size = found + 4 if found >= 0 else len(data)
    if size > LINE_LIMIT:
        _check_lines(data, size, skip=skip, whole=found >= 0)
    if found >= 0:
        return size
    if skip and data.startswith(b"\r\n\r\n"):
        raise HttpError(400, "empty lines where a request was expected")
    if size >= HEAD_LIMIT:
        raise HttpError(431, "the head is too long")
    if _LONE_CR_OR_LF.search(data, max(start - 1, 0)):
        raise HttpError(400, "a line end that is not CRLF")
    return None


def cut_response(data: bytes | bytearray, start: int = 0) -> int | None:
    """``cut_head`` for what a backend sends: its faults become a BackendError with status 502."""
    try:
        return cut_head(data, start)
    except HttpError as error:
        raise BackendError(502, f"the backend's answer: {error.reason}") from None


def final_response(data: bytes, start: int = 0) -> tuple[ResponseHead | None, bytes]:
    """The final response at the beginning of ``data``, and what is behind its head; None, and the rest, before that.

    Interim responses (100, 103 and their like) before it are passed over; 101 is final (RFC 9110 15.2). ``start`` is
    how much of ``data`` was looked at already. Raises BackendError with status 502 for what is no head.
    """
    end = cut_response(data, start)
    while end is not None:
        response = parse_response(data[:end])
        data = data[end:]
        if response.status == 101 or response.status >= 200:
            return response, data
        end = cut_response(data)
    return None, data


def parse_request(raw: bytes) -> RequestHead:
    """One whole request head, its blank line included, as ``cut_head`` found it.

    Raises HttpError: 400 for what is malformed or ambiguous, 414 and 431 for what is over a limit, 501 for
    a transfer coding other than chunked, 505 for a version other than HTTP/1.0 and 1.1. Sources: RFC 9112
    2.2, 3, 3.2, 5, 6.1, 6.3.
    """
    line = _REQUEST_LINE.match(raw)
    if line is None:
        raise _request_line_error(raw)
    if len(raw) > LINE_LIMIT:
        _check_lines(raw, len(raw), whole=True)
    parsed = _parse_fields(raw, line.end() - 2, httptools.HttpRequestParser, b"GET / HTTP/1.1")
    values = parsed[2]
    method, target, digit = line.groups()
    minor = 1 if digit == b"1" else 0
    connection = tokens(values[b"connection"]) if b"connection" in values else ()
    framing = _framing(minor, values) if b"content-length" in values or b"transfer-encoding" in values else _NO_BODY
    host = _host(minor, target, values.get(b"host"))
    return RequestHead(method.decode("ascii"), target, minor, host, parsed, connection, framing)


def parse_response(raw: bytes) -> ResponseHead:
    """One whole response head, its blank line included, as ``cut_response`` found it.

    A 1xx is a head like any other. Raises BackendError with status 502 for what is malformed, ambiguous or
    over a limit. Sources: RFC 9112 4, 5, 6.
    """
    line = _STATUS_LINE.match(raw)
    if line is None:
        raise BackendError(502, "the backend's answer: malformed status line")
    digit, status, reason = line.groups()
    minor = 1 if digit == b"1" else 0
    try:
        if len(raw) > LINE_LIMIT:
            _check_lines(raw, len(raw), whole=True)
        parsed = _parse_fields(raw, line.end() - 2, httptools.HttpResponseParser, b"HTTP/1.1 200 OK")
        values = parsed[2]
        framing = _framing(minor, values) if b"content-length" in values or b"transfer-encoding" in values else _NO_BODY
    except HttpError as error:
        raise BackendError(502, f"the backend's answer: {error.reason}") from None
    connection = tokens(values[b"connection"]) if b"connection" in values else ()
    return ResponseHead(int(status), reason or b"", minor, parsed, connection, framing)


def tokens(values: Sequence[bytes]) -> tuple[bytes, ...]:
    """The members of a comma-separated field in lower case, empty ones left out (RFC 9110 5.6.1)."""
    return _tokens[values[0] if len(values) == 1 else b",".join(values)]


class _Tokens(dict[bytes, tuple[bytes, ...]]):
    """The tokens of lists; what clients send here is of a few kinds, and worth keeping while it is short."""

    def __missing__(self, joined: bytes) -> tuple[bytes, ...]:
        found = tuple([member for part in joined.lower().split(b",") if (member := part.strip(b" \t"))])
        keep(self, joined, found, len(joined))
        return found


def keep(known: dict[_K, _T], key: _K, value: _T, size: int, most: int = REMEMBERED) -> None:
    """Remember what was made of ``key`` if its ``size`` is SHORT, in a dictionary that begins anew when it is full."""
    if size <= SHORT:
        if len(known) >= most:
            known.clear()
        known[key] = value


_tokens = _Tokens()


class _Collector:
    """What llhttp tells: one method, looked up once for each parser."""

    __slots__ = ("on_header",)

    def __init__(self, on_header: Callable[[bytes, bytes], None]) -> None:
        self.on_header = on_header


def _parse_fields(
    head: bytes,
    start: int,
    parser: Callable[[_Collector], httptools.HttpParser],
    start_line: bytes,
) -> _Fields:
    """The field lines of ``head``, which begin with the CRLF at ``start``, judged behind a start line of our own."""
    if not head.endswith(b"\r\n\r\n"):
        raise HttpError(400, "not one whole head")
    lines = head[start + 2 : -4].split(b"\r\n") if len(head) - 4 > start else []
    if not lines:
        return (), (), {}
    if len(lines) > FIELD_LIMIT:
        raise HttpError(431, f"more than {FIELD_LIMIT} header fields")
    entries = [_remembered[line] for line in lines]
    fields, pairs, forms = zip(*entries)  # noqa: B905 (entries are of one size)
    values = dict(pairs)
    if b"" in values:
        if b"" in lines:
            raise HttpError(400, "not one whole head")
        unknown = [line for line, entry in zip(lines, entries, strict=True) if not entry[2]]
        judged = iter(_judge(unknown, parser, start_line))
        fields, pairs, forms = zip(*[entry if entry[2] else next(judged) for entry in entries], strict=True)
        values = dict(pairs)
    if len(values) != len(fields):
        values = {}
        for lower, _, value in fields:
            values.setdefault(lower, []).append(value)
    return fields, forms, values


#: A line's field, its name in lower case with the list of its one value (shared, and never changed), and the line in
#: the form that it is sent on in.
_Entry: TypeAlias = tuple[Field, tuple[bytes, list[bytes]], bytes]
#: Stands for a line that llhttp is to judge; no field has an empty name, and no line is empty.
_UNJUDGED: _Entry = ((b"", b"", b""), (b"", []), b"")


#: Field lines that were judged, and what they hold. Clients of one kind send the same lines again and again, and
#: judging each is most of what a head costs. A line is remembered only where its meaning does not depend
#: on other lines, where it is no secret, and while it is short.
class _Remembered(dict[bytes, _Entry]):
    def __missing__(self, line: bytes) -> _Entry:
        """The entry of a line that is beyond doubt by its shape, else _UNJUDGED."""
        name, _, value = line.partition(b": ")
        # Visible ASCII, with blanks between at most.
        if not (
            value and value[0] > 0x20 and value[-1] > 0x20 and value.isascii() and value.decode("ascii").isprintable()
        ):
            return _UNJUDGED
        lower = _spellings.get(name)
        if lower is not None:
            return (lower, name, value), (lower, [value]), line
        lower = name.lower()
        if _PLAIN_NAME.fullmatch(name) is None or lower in _FRAMING_NAMES:
            return _UNJUDGED  # what framing fields mean depends on each other
        entry = ((lower, name, value), (lower, [value]), line)
        if lower not in _NEVER_REMEMBERED:
            _remember(line, entry)
        elif len(_spellings) < _SPELLINGS:
            _spellings[name] = lower
        return entry


_remembered = _Remembered()
#: A token, a colon, one blank, visible ASCII: in exactly this shape there is nothing to judge about a line.
_PLAIN_NAME: Final = re.compile(rb"[A-Za-z0-9-]+")
#: How the names of lines that are never remembered were spelt, and the names in lower case.
_spellings: dict[bytes, bytes] = {}
_SPELLINGS: Final = 64
_FRAMING_NAMES: Final = frozenset((b"content-length", b"transfer-encoding"))
REMEMBERED_LINES: Final = 2048
_REMEMBERED_SIZE: Final = 256
_NEVER_REMEMBERED: Final = frozenset(
    (
        b"authorization",
        b"content-length",
        b"cookie",
        b"proxy-authorization",
        b"sec-websocket-accept",
        b"sec-websocket-key",
        b"set-cookie",
        b"transfer-encoding",
    )
)


def _remember(line: bytes, entry: _Entry) -> None:
    if len(line) <= _REMEMBERED_SIZE and entry[0][0] not in _NEVER_REMEMBERED:
        if len(_remembered) >= REMEMBERED_LINES:
            _remembered.clear()
        _remembered[line] = entry


def _judge(lines: list[bytes], parser: Callable[[_Collector], httptools.HttpParser], start_line: bytes) -> list[_Entry]:
    """Let llhttp read field lines; one entry for each."""
    found: list[tuple[bytes, bytes]] = []
    try:
        parser(_Collector(lambda name, value: found.append((name, value)))).feed_data(
            b"%b\r\n%b\r\n\r\n" % (start_line, b"\r\n".join(lines))
        )
    except httptools.HttpParserUpgrade:
        pass  # the head is whole, and what it asks for is for others to judge
    except httptools.HttpParserError as error:
        # llhttp's reasons are constants: no input comes with them.
        raise HttpError(400, f"malformed head: {error}") from None
    if len(found) != len(lines):
        raise HttpError(400, "malformed head: lines that are no fields")
    entries: list[_Entry] = []
    for line, (name, value) in zip(lines, found, strict=True):
        value = value.rstrip(b" \t")
        lower = name.lower()
        entry = ((lower, name, value), (lower, [value]), b"%b: %b" % (name, value))
        entries.append(entry)
        _remember(line, entry)
    return entries


def _framing(minor: int, values: dict[bytes, list[bytes]]) -> _Framing:
    """How a head with one of the framing fields says that; llhttp has already refused both together and repeats."""
    if b"transfer-encoding" in values:
        codings = values[b"transfer-encoding"]
        if minor == 0:
            raise HttpError(400, "Transfer-Encoding on HTTP/1.0")
        if len(codings) != 1 or codings[0].lower() != b"chunked":
            raise HttpError(501, "a transfer coding other than chunked")
        return None, True
    lengths = values[b"content-length"]
    if len(lengths) != 1 or _LENGTH.fullmatch(lengths[0]) is None:
        raise HttpError(400, "malformed Content-Length")
    return int(lengths[0]), False


def _host(minor: int, target: bytes, hosts: list[bytes] | None) -> str:
    """The authority that a request is for (RFC 9112 3.2, 3.2.2)."""
    if hosts is None:
        if minor == 1:
            raise HttpError(400, "no Host")
        host = ""
    elif len(hosts) > 1:
        raise HttpError(400, "more than one Host")
    else:
        host = _authorities[hosts[0]]
    if target[0] != 0x2F and (named := authority_of(target)):
        return named.decode("ascii")
    return host


class _Authorities(dict[bytes, str]):
    """Host fields that were found well formed; a router serves few hosts."""

    def __missing__(self, host: bytes) -> str:
        if AUTHORITY.fullmatch(host) is None:
            raise HttpError(400, "malformed Host")
        authority = host.decode("ascii")
        keep(self, host, authority, len(host))
        return authority


_authorities = _Authorities()


def _request_line_error(head: bytes) -> HttpError:
    """Why a request line is refused."""
    line = _OTHER_VERSION.match(head)
    if line is not None:
        return HttpError(505, "an HTTP version other than 1.0 and 1.1")
    return HttpError(400, "malformed request line")


def _check_lines(data: bytes | bytearray, size: int, *, skip: int = 0, whole: bool) -> None:
    """The limits that a head of up to LINE_LIMIT bytes cannot pass."""
    longest = skip + LINE_LIMIT + 2
    if size >= longest and data.find(b"\r\n", skip, longest) < 0:
        raise HttpError(414, "the request line is too long")
    if size > HEAD_LIMIT:
        raise HttpError(431, "the head is too long")
    # Lines of an unfinished head are judged once, with the whole: it is bounded anyway.
    if whole and any(len(line) > LINE_LIMIT for line in data[:size].split(b"\r\n")):
        raise HttpError(431, "a header field is too long")
