from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrouter.errors import BackendError, HttpError
from wsrouter.wire.head import (
    FIELD_LIMIT,
    HEAD_LIMIT,
    LINE_LIMIT,
    cut_head,
    cut_response,
    final_response,
    parse_request,
    parse_response,
)

BROWSER = (
    b"GET /wsapp/chat?room=12 HTTP/1.1\r\n"
    b"Host: example.com:8080\r\n"
    b"Connection: keep-alive, Upgrade\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/140.0\r\n"
    b"Upgrade: websocket\r\n"
    b"Cookie: name=\xc3\x85\x85\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"\r\n"
)


def request(*lines: bytes, line: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: a") -> bytes:
    return b"\r\n".join([line, *([host] if host else []), *lines, b"", b""])


def status_of(head: bytes) -> int:
    with pytest.raises(HttpError) as refused:
        parse_request(head)
    return refused.value.status


# Cutting


def test_a_head_cut_at_every_offset_is_found_exactly_when_it_is_whole() -> None:
    stream = BROWSER + b"\x81\x85frames"
    seen = 0
    for size in range(len(stream) + 1):
        found = cut_head(bytearray(stream[:size]), seen)
        assert found == (len(BROWSER) if size >= len(BROWSER) else None)
        if found is None:
            seen = size


@given(st.lists(st.integers(0, len(BROWSER) - 1), max_size=10), st.booleans())
def test_pieces_of_any_size_give_the_same_cut(cuts: list[int], empty_line: bool) -> None:
    head = b"\r\n" + BROWSER if empty_line else BROWSER
    seen = 0
    for size in sorted(cuts):
        assert cut_head(head[:size], seen) is None
        seen = size
    assert cut_head(head + BROWSER, seen) == len(head)


def test_what_follows_a_head_is_left_for_the_next_reader() -> None:
    second = request(line=b"GET /second HTTP/1.1")
    end = cut_head(BROWSER + second)
    assert end == len(BROWSER)
    assert (BROWSER + second)[end:] == second


def test_one_empty_line_before_a_request_is_skipped_and_a_second_is_refused() -> None:
    once = b"\r\n" + BROWSER
    assert cut_head(once) == len(once)
    assert parse_request(once).target == b"/wsapp/chat?room=12"
    for early in (b"\r\n\r\n", b"\r\n\r\n\r"):
        with pytest.raises(HttpError, match="400"):
            cut_head(early)
    assert status_of(b"\r\n\r\n" + BROWSER) == 400


@pytest.mark.parametrize(
    ("data", "end"), [(b"GET / HTTP/1.1\nHost: a\n\n", 15), (b"GET / HTTP/1.1\r\nHost: a\rX", 25), (b"\n", 1)]
)
def test_a_lone_cr_or_lf_is_refused_as_soon_as_it_is_seen(data: bytes, end: int) -> None:
    refused_at = None
    for size in range(1, len(data) + 1):
        try:
            assert cut_head(data[:size], size - 1) is None
        except HttpError as error:
            refused_at = (size, error.status)
            break
    assert refused_at == (end, 400)


def test_a_head_of_exactly_the_limit_passes_and_one_byte_more_does_not() -> None:
    def head_of(size: int) -> bytes:
        line = b"X: " + b"a" * (LINE_LIMIT - 10)
        return request(line, b"Y: " + b"a" * (size - len(request(line, b"Y: "))))

    assert cut_head(head_of(HEAD_LIMIT)) == HEAD_LIMIT
    assert parse_request(head_of(HEAD_LIMIT)).first(b"y") is not None
    too_long = head_of(HEAD_LIMIT + 1)
    for data in (too_long, too_long[:HEAD_LIMIT]):
        with pytest.raises(HttpError, match="431"):
            cut_head(data)
    assert cut_head(too_long[: HEAD_LIMIT - 1]) is None
    assert status_of(too_long) == 431


def test_a_request_line_over_its_limit_gets_414_as_soon_as_that_is_certain() -> None:
    def line_of(size: int) -> bytes:
        return request(line=b"GET /" + b"a" * (size - len(b"GET / HTTP/1.1")) + b" HTTP/1.1")

    longest = line_of(LINE_LIMIT)
    assert cut_head(longest) == len(longest)
    assert cut_head(b"\r\n" + longest) == len(longest) + 2
    assert parse_request(longest).method == "GET"
    over = line_of(LINE_LIMIT + 1)
    for data in (over, over[: LINE_LIMIT + 2], b"G" * (2 * HEAD_LIMIT)):
        with pytest.raises(HttpError, match="414"):
            cut_head(data)
    assert cut_head(over[: LINE_LIMIT + 1]) is None
    assert status_of(over) == 414


def test_a_field_line_over_its_limit_gets_431() -> None:
    fits, over = (request(b"X: " + b"a" * (size - 3)) for size in (LINE_LIMIT, LINE_LIMIT + 1))
    assert cut_head(fits) == len(fits)
    assert parse_request(fits).first(b"x") == b"a" * (LINE_LIMIT - 3)
    with pytest.raises(HttpError, match="431"):
        cut_head(over)
    assert status_of(over) == 431


def test_a_hundred_fields_pass_and_one_more_gets_431() -> None:
    assert len(parse_request(request(*[b"X: 1"] * (FIELD_LIMIT - 1))).fields) == FIELD_LIMIT
    assert status_of(request(*[b"X: 1"] * FIELD_LIMIT)) == 431


# Requests


def test_a_browsers_request_is_read_whole() -> None:
    head = parse_request(BROWSER)
    assert (head.method, head.target, head.minor, head.host) == ("GET", b"/wsapp/chat?room=12", 1, "example.com:8080")
    assert head.connection == (b"keep-alive", b"upgrade")
    assert head.upgrades == (b"websocket",)
    assert head.fields[0] == (b"host", b"Host", b"example.com:8080")
    assert head.first(b"cookie") == b"name=\xc3\x85\x85"
    assert head.first(b"absent") is None
    assert head.all(b"absent") == []
    assert (head.content_length, head.chunked, head.keep_alive, head.expects_continue) == (None, False, True, False)


@pytest.mark.parametrize(
    "field",
    [
        b"X : a",
        b"X\t: a",
        b" X: a",
        b"X: a\r\n folded",
        b"X: a\r\n\tfolded",
        b"X: a\nY: b",
        b"X: a\rY: b",
        b"X: a\r\r\nY: b",
        b"X: a\x00b",
        b"X: a\x0bb",
        b"X: a\x1cb",
        b"X: a\x7fb",
        b"X\x00: a",
        b"X\x85: a",
        b"X(: a",
        b"X Y: a",
        b": a",
        b":",
        b"no colon",
        b"nocolon",
    ],
)
@pytest.mark.parametrize("last", [True, False])
def test_a_malformed_field_line_gets_400(field: bytes, last: bool) -> None:
    assert status_of(request(field) if last else request(field, b"Z: 1")) == 400


@pytest.mark.parametrize("code", [code for code in (*range(32), 127) if code != 9])
def test_a_control_character_gets_400_wherever_it_stands(code: int) -> None:
    character = bytes((code,))
    for head in (
        request(b"X: a" + character + b"b"),
        request(b"X" + character + b"Y: a"),
        request(line=b"GET /a" + character + b"b HTTP/1.1"),
        request(host=b"Host: a" + character),
    ):
        assert status_of(head) == 400


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET  / HTTP/1.1", 400),
        (b"GET /  HTTP/1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b" GET / HTTP/1.1", 400),
        (b"GET /", 400),
        (b"GET HTTP/1.1", 400),
        (b"GET / b HTTP/1.1", 400),
        (b"get / HTTP/1.1", 400),
        (b"G@T / HTTP/1.1", 400),
        (b"GET / ICE/1.0", 400),
        (b"GET / RTSP/1.0", 400),
        (b"GET / http/1.1", 400),
        (b"GET / HTTP/1.10", 400),
        (b"GET / HTTP/0.9", 505),
        (b"GET / HTTP/1.2", 505),
        (b"GET / HTTP/2.0", 505),
        (b"GET / HTTP/3", 505),
        (b"PRI * HTTP/2.0", 505),
    ],
)
def test_a_request_line_is_exactly_method_target_and_version(line: bytes, status: int) -> None:
    assert status_of(request(line=line)) == status


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [b"Host: a", b"Host: a"],
        [b"Host: a", b"host: b"],
        [b"Host:"],
        [b"Host: user@a"],
        [b"Host: a/b"],
        [b"Host: a, b"],
        [b"Host: a b"],
        [b"Host: a:port"],
        [b"Host: a:123456"],
        [b"Host: :80"],
        [b"Host: [::1"],
        [b"Host: h\xc3\xa9"],
    ],
)
def test_host_is_one_authority_or_400(hosts: list[bytes]) -> None:
    assert status_of(request(*hosts, host=b"")) == 400


@pytest.mark.parametrize(
    "host", ["example.com", "example.com:8080", "[::1]", "[2001:db8::1]:443", "app_1.internal", "a:"]
)
def test_host_is_kept_as_it_came(host: str) -> None:
    assert parse_request(request(host=b"Host: " + host.encode())).host == host


def test_http_1_0_may_lack_a_host_but_not_repeat_it() -> None:
    assert parse_request(request(line=b"GET / HTTP/1.0", host=b"")).host == ""
    assert status_of(request(b"Host: a", line=b"GET / HTTP/1.0")) == 400


def test_an_absolute_target_overrules_host() -> None:
    assert parse_request(request(line=b"GET http://b:81/x HTTP/1.1")).host == "b:81"
    assert parse_request(request(line=b"OPTIONS * HTTP/1.1")).host == "a"
    assert status_of(request(line=b"GET http://user@b/x HTTP/1.1")) == 400
    assert status_of(request(line=b"GET http://b/x HTTP/1.1", host=b"")) == 400


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([b"Content-Length: 5", b"Transfer-Encoding: chunked"], 400),
        ([b"Transfer-Encoding: chunked", b"Content-Length: 5"], 400),
        ([b"Content-Length: 5", b"Content-Length: 6"], 400),
        ([b"Content-Length: 5", b"Content-Length: 5"], 400),
        ([b"Content-Length: 5, 5"], 400),
        ([b"Content-Length: +5"], 400),
        ([b"Content-Length: -5"], 400),
        ([b"Content-Length: 5 5"], 400),
        ([b"Content-Length: 0x5"], 400),
        ([b"Content-Length: 5_0"], 400),
        ([b"Content-Length:"], 400),
        ([b"Content-Length: \t"], 400),
        ([b"Content-Length: five"], 400),
        ([b"Content-Length: 9999999999999999999"], 400),
        ([b"Content-Length: 99999999999999999999999999"], 400),
        ([b"Transfer-Encoding: gzip, chunked"], 501),
        ([b"Transfer-Encoding: gzip"], 400),
        ([b"Transfer-Encoding: chunked, chunked"], 400),
        ([b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"], 400),
        ([b"Transfer-Encoding: xchunked"], 400),
        ([b"Transfer-Encoding:"], 400),
    ],
)
@pytest.mark.parametrize("method", [b"POST", b"GET"])
def test_a_body_whose_end_is_in_doubt_is_refused(fields: list[bytes], status: int, method: bytes) -> None:
    refused = status_of(request(*fields, line=method + b" / HTTP/1.1"))
    assert refused in (status, 501)
    upgrading = request(*fields, b"Connection: Upgrade", b"Upgrade: websocket", line=method + b" / HTTP/1.1")
    assert status_of(upgrading) in (status, 501)


def test_the_two_kinds_of_body_are_told_apart() -> None:
    sized = parse_request(request(b"Content-Length: 005 ", line=b"POST / HTTP/1.1"))
    assert (sized.content_length, sized.chunked) == (5, False)
    assert parse_request(request(b"Content-Length: 0")).content_length == 0
    chunked = parse_request(request(b"Transfer-Encoding: Chunked", line=b"POST / HTTP/1.1"))
    assert (chunked.content_length, chunked.chunked) == (None, True)
    assert status_of(request(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0")) == 400


@pytest.mark.parametrize(
    ("version", "connection", "lasts"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"close", False),
        (b"1.1", b"Upgrade, Close", False),
        (b"1.1", b"keep-alive", True),
        (b"1.0", b"", False),
        (b"1.0", b"Keep-Alive", True),
        (b"1.0", b"keep-alive, close", False),
    ],
)
def test_a_connection_lasts_as_version_and_connection_say(version: bytes, connection: bytes, lasts: bool) -> None:
    head = parse_request(request(b"Connection: " + connection, line=b"GET / HTTP/" + version))
    assert head.keep_alive is lasts


def test_tokens_are_joined_over_fields_and_empty_ones_left_out() -> None:
    head = parse_request(
        request(b"Connection: , Foo ,,\tUPGRADE", b"Connection: bar", b"Upgrade: h2c", b"Upgrade:  WebSocket , x")
    )
    assert head.connection == (b"foo", b"upgrade", b"bar")
    assert head.upgrades == (b"h2c", b"websocket", b"x")
    assert parse_request(request(b"Connection:")).connection == ()


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (b"GET / HTTP/1.0", [b"Connection: Upgrade", b"Upgrade: websocket"]),
        (b"GET / HTTP/1.1", [b"Upgrade: websocket"]),
        (b"GET / HTTP/1.1", [b"Connection: Upgrade"]),
        (b"GET / HTTP/1.1", [b"Connection: xupgrade", b"Upgrade: websocket"]),
    ],
)
def test_an_upgrade_counts_only_on_http_1_1_and_named_by_connection(line: bytes, fields: list[bytes]) -> None:
    assert parse_request(request(*fields, line=line)).upgrades == ()


def test_an_expectation_counts_on_http_1_1_only() -> None:
    assert parse_request(request(b"Expect: 100-Continue")).expects_continue
    assert not parse_request(request(b"Expect: 100-continue", line=b"GET / HTTP/1.0")).expects_continue
    assert not parse_request(request(b"Expect: something")).expects_continue


def test_blanks_around_values_are_taken_off_and_the_rest_is_kept() -> None:
    head = parse_request(request(b"A: \t a\tb \t ", b"B:", b"C: ", b"D:d", b"aB: \xff"))
    assert head.fields[1:] == (
        (b"a", b"A", b"a\tb"),
        (b"b", b"B", b""),
        (b"c", b"C", b""),
        (b"d", b"D", b"d"),
        (b"ab", b"aB", b"\xff"),
    )


@pytest.mark.parametrize("tail", [b"GET /2 HTTP/1.1\r\nHost: b\r\n\r\n", b"body", b"\r\n"])
def test_more_than_one_head_is_never_read_as_one(tail: bytes) -> None:
    assert status_of(request() + tail) == 400
    assert status_of(request(b"Connection: Upgrade", b"Upgrade: websocket") + tail) == 400
    assert status_of(request()[:-2]) == 400


def test_a_raw_utf_8_target_is_left_to_the_targets_own_rules() -> None:
    assert parse_request(request(line="GET /\xe9 HTTP/1.1".encode())).target == b"/\xc3\xa9"


# Responses


def test_a_101_is_read_like_any_other_head() -> None:
    stream = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x02hi"
    end = cut_response(stream)
    assert end is not None
    assert stream[end:] == b"\x81\x02hi"
    head = parse_response(stream[:end])
    assert (head.status, head.reason, head.minor) == (101, b"Switching Protocols", 1)
    assert head.connection == (b"upgrade",)


@given(st.lists(st.integers(0, 160), max_size=4), st.sampled_from([101, 200, 403]))
def test_behind_interim_responses_the_final_one_is_found_however_it_is_cut(cuts: list[int], status: int) -> None:
    final = b"HTTP/1.1 %d What\r\nX-A: b\r\n\r\n" % status
    stream = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + final + b"\x81\x02hi"
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    waiting = b""
    for begin, end in itertools.pairwise(places):
        response, waiting = final_response(waiting + stream[begin:end], len(waiting))
        if response is not None:
            assert (response.status, response.first(b"x-a")) == (status, b"b")
            assert waiting + stream[end:] == b"\x81\x02hi"
            return
    pytest.fail("no response was found")


@pytest.mark.parametrize(
    ("line", "status", "reason", "lasts"),
    [
        (b"HTTP/1.1 101 ", 101, b"", True),
        (b"HTTP/1.1 204", 204, b"", True),
        (b"HTTP/1.1 304 Not Modified", 304, b"Not Modified", True),
        (b"HTTP/1.1 103 Early Hints", 103, b"Early Hints", True),
        (b"HTTP/1.0 200 \xe9t\xe9", 200, b"\xe9t\xe9", False),
        (b"HTTP/1.1 999 Odd", 999, b"Odd", True),
    ],
)
def test_status_lines_are_read(line: bytes, status: int, reason: bytes, lasts: bool) -> None:
    head = parse_response(line + b"\r\n\r\n")
    assert (head.status, head.reason, head.keep_alive) == (status, reason, lasts)


def test_the_framing_of_a_response_is_read() -> None:
    assert parse_response(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n").content_length == 7
    assert parse_response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").chunked


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 O\x00K\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\nY: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
        b"HTTP/1.1 101 OK\r\nX : a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: \x00\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 101 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * LINE_LIMIT + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    ],
)
def test_a_backends_nonsense_is_its_own_fault(head: bytes) -> None:
    with pytest.raises(BackendError) as refused:
        parse_response(head)
    assert refused.value.status == 502


@pytest.mark.parametrize("data", [b"HTTP/1.1 200 OK\nX: a", b"x" * HEAD_LIMIT])
def test_a_backends_endless_head_is_its_own_fault(data: bytes) -> None:
    with pytest.raises(BackendError) as refused:
        cut_response(data)
    assert refused.value.status == 502


# Anything at all

CHUNKS = st.sampled_from(
    b"GET|POST| |/|HTTP/1.1|HTTP/1.0|HTTP/1.1 101 X|\r\n|\r|\n|:|Host: a\r\n|Connection|Upgrade|Content-Length".split(
        b"|"
    )
    + b"Transfer-Encoding|chunked|5|,|\t|\x00|\x85|http://|\r\n\r\n|websocket".split(b"|")
)


@given(st.one_of(st.binary(max_size=200), st.lists(CHUNKS, max_size=40).map(b"".join)), st.booleans())
def test_whatever_comes_only_the_errors_of_the_contract_are_raised(data: bytes, finish: bool) -> None:
    if finish:
        data = b"GET / HTTP/1.1\r\nHost: a\r\n" + data + b"\r\n\r\n"
    for reader in (cut_head, parse_request):
        status = 400
        try:
            reader(data)
        except HttpError as error:
            status = error.status
        assert status in (400, 414, 431, 501, 505)
    for reader in (cut_response, parse_response):
        status = 502
        try:
            reader(data)
        except BackendError as error:
            status = error.status
        assert status == 502


NAMES = st.text("abcXYZ019!#$%&'*+-.^_`|~", min_size=1, max_size=12).map(str.encode)
VALUES = st.binary(max_size=30).map(lambda raw: bytes(c for c in raw if c == 9 or (c >= 32 and c != 127)))


@given(st.lists(st.tuples(NAMES, VALUES), max_size=20))
def test_every_well_formed_field_is_read_as_it_was_written(fields: list[tuple[bytes, bytes]]) -> None:
    head = request(*[name + b":" + value for name, value in fields])
    assert [(name, value) for _, name, value in parse_request(head).fields[1:]] == [
        (name, value.strip(b" \t")) for name, value in fields
    ]


@given(st.binary(max_size=60).filter(lambda raw: not {10, 13} & set(raw)))
def test_a_line_passes_only_if_the_grammar_of_rfc_9112_knows_it(line: bytes) -> None:
    name, colon, value = line.partition(b":")
    token = set(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    good = bool(colon and name) and set(name) <= token and not any((c < 32 and c != 9) or c == 127 for c in value)
    if good and name.lower() not in (b"host", b"content-length", b"transfer-encoding"):
        assert parse_request(request(line)).fields[1][1] == name
    elif not good and line:
        assert status_of(request(line)) == 400
