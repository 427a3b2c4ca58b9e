from __future__ import annotations

import pytest

from wsrouter.wire.answer import answer
from wsrouter.wire.head import cut_response, parse_response


def test_a_refusal_is_one_whole_response() -> None:
    assert answer(403, "the origin is not allowed") == (
        b"HTTP/1.1 403 Forbidden\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 41\r\n"
        b"Cache-Control: no-store\r\n"
        b"Connection: close\r\n"
        b"\r\n"
        b"403 Forbidden: the origin is not allowed\n"
    )


@pytest.mark.parametrize("status", [308, 400, 404, 405, 414, 421, 426, 429, 431, 501, 502, 503, 504, 505])
def test_the_length_fits_and_the_connection_ends(status: int) -> None:
    raw = answer(status)
    end = cut_response(raw)
    assert end is not None
    head = parse_response(raw[:end])
    assert head.status == status
    assert head.content_length == len(raw) - end
    assert raw[end:] == f"{status} {head.reason.decode()}\n".encode()
    assert not head.keep_alive


def test_headers_of_the_caller_are_added() -> None:
    raw = answer(503, headers=[(b"Retry-After", b"5")], close=False)
    head = parse_response(raw[: cut_response(raw)])
    assert head.first(b"retry-after") == b"5"
    assert head.connection == ()
    assert head.keep_alive


@pytest.mark.parametrize(("close", "connection"), [(True, (b"upgrade", b"close")), (False, (b"upgrade",))])
def test_a_connection_field_of_the_caller_is_joined_with_ours(close: bool, connection: tuple[bytes, ...]) -> None:
    raw = answer(426, headers=[(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")], close=close)
    head = parse_response(raw[: cut_response(raw)])
    assert head.connection == connection
    assert len(head.all(b"connection")) == 1


def test_the_answer_to_head_tells_the_length_and_sends_no_body() -> None:
    assert answer(404, "x", head_only=True) == answer(404, "x").removesuffix(b"404 Not Found: x\n")


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body_have_no_length(status: int) -> None:
    raw = answer(status, "unseen")
    assert raw.endswith(b"\r\n\r\n")
    assert parse_response(raw).content_length is None


@pytest.mark.parametrize("status", [101, 299, 0])
def test_only_final_statuses_that_http_knows_are_answered(status: int) -> None:
    with pytest.raises(ValueError, match=str(status)):
        answer(status)


@pytest.mark.parametrize("header", [(b"Location", b"/\r\nX: y"), (b"X\n", b"y"), (b"X", b"\x00")])
def test_a_header_cannot_break_out_of_its_line(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="control character"):
        answer(302, headers=[header])
