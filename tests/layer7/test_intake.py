from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrouter.errors import HttpError
from wsrouter.layer7.intake import BUFFER, RequestBody
from wsrouter.wire.head import parse_request


class Reader:
    """Reads, and pauses itself after each piece when ``slow``."""

    def __init__(self, body: RequestBody, slow: bool = False) -> None:
        self.body = body
        self.slow = slow
        self.data = b""
        self.ended = 0
        self.errors: list[Exception] = []

    def body_data(self, data: bytes) -> None:
        assert data
        assert not self.ended
        self.data += data
        if self.slow:
            self.body.pause()

    def body_end(self) -> None:
        self.ended += 1

    def body_failed(self, error: Exception) -> None:
        self.errors.append(error)


def body_of(framing: bytes, limit: int = 10**9) -> RequestBody:
    return RequestBody(parse_request(b"POST / HTTP/1.1\r\nHost: h\r\n%b\r\n" % framing), limit, lambda: None)


LENGTH_5 = b"Content-Length: 5\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@given(cuts=st.lists(st.integers(0, 8), max_size=6), slow=st.booleans(), late=st.booleans())
def test_the_content_arrives_whole_whatever_the_pieces_and_the_readers_pace(
    cuts: list[int], slow: bool, late: bool
) -> None:
    for framing, wire in ((LENGTH_5, b"hellonext"), (CHUNKED, b"2;a\r\nhe\r\n3\r\nllo\r\n0\r\n\r\nnext")):
        body = body_of(framing)
        reader = Reader(body, slow)
        if not late:
            body.start(reader)
        places = [0, *sorted(cuts), len(wire)]
        rest = b"".join(body.feed(wire[start:end]) for start, end in itertools.pairwise(places))
        if late:
            body.start(reader)
        while not reader.ended:
            body.resume()
        assert (reader.data, reader.ended, reader.errors, rest) == (b"hello", 1, [], b"next")
        assert body.complete
        assert not body.wanting


def test_a_request_without_body_ends_at_once() -> None:
    body = body_of(b"")
    reader = Reader(body)
    body.start(reader)
    assert (body.length, body.complete, reader.ended) == (0, True, 1)


def test_it_wants_no_more_than_it_may_keep() -> None:
    body = body_of(CHUNKED)
    assert body.wanting
    body.feed(b"%x\r\n%b\r\n" % (BUFFER, bytes(BUFFER)))
    assert not body.wanting
    body.discard()
    assert body.wanting
    body.feed(b"%x\r\n%b\r\n" % (BUFFER, bytes(BUFFER)))
    assert body.wanting


@pytest.mark.parametrize("framing", [LENGTH_5, CHUNKED])
def test_content_over_the_limit_is_refused(framing: bytes) -> None:
    body = body_of(framing, limit=4)
    with pytest.raises(HttpError) as refused:
        body.feed(b"hello" if framing is LENGTH_5 else b"5\r\nhello\r\n")
    assert refused.value.status == 413


def test_a_failure_is_told_once_and_nothing_more_is_wanted() -> None:
    body = body_of(LENGTH_5)
    reader = Reader(body)
    body.start(reader)
    body.fail(HttpError(408, "late"))
    body.fail(HttpError(400, "again"))
    assert [str(error) for error in reader.errors] == ["408: late"]
    assert body.failed
    assert not body.wanting


def test_a_complete_body_cannot_fail() -> None:
    body = body_of(b"")
    reader = Reader(body)
    body.start(reader)
    body.fail(HttpError(400, "late"))
    assert reader.errors == []
    assert not body.failed
