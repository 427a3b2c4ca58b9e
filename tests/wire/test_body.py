"""Body readers, checked with httptools (llhttp)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsrouter.errors import HttpError
from wsrouter.wire.body import SIZE_LINE_LIMIT, TRAILER_LIMIT, Body, ChunkedBody, LengthBody


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    marks = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(marks) if a < b]


def read(body: Body, parts: Iterable[bytes]) -> tuple[bytes, bytes]:
    """All content, and all that lies behind the body."""
    content = rest = b""
    for part in parts:
        piece, behind = body.feed(part)
        assert not behind or body.done
        content += piece
        rest += behind
    return content, rest


class Oracle:
    """What httptools makes of a chunked body: its content, whether it ended, whether it was refused."""

    def __init__(self, data: bytes) -> None:
        self.content = b""
        self.done = False
        self.refused = False
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            parser.feed_data(data)
        except httptools.HttpParserError:
            self.refused = True

    def on_body(self, data: bytes) -> None:
        self.content += data

    def on_message_complete(self) -> None:
        self.done = True


# A body of known length.


@given(st.binary(max_size=50), st.binary(max_size=20), st.lists(st.integers(0, 100), max_size=6))
def test_a_length_ends_a_body_wherever_it_is_cut(content: bytes, behind: bytes, cuts: list[int]) -> None:
    body = LengthBody(len(content))
    assert read(body, split(content + behind, cuts)) == (content, behind)
    assert body.done


def test_a_body_of_length_nought_is_done_at_once() -> None:
    body = LengthBody(0)
    assert body.done
    assert body.feed(b"GET") == (b"", b"GET")


def test_a_body_is_not_done_before_its_last_byte() -> None:
    body = LengthBody(3)
    assert body.feed(b"") == (b"", b"")
    assert body.feed(b"ab") == (b"ab", b"")
    assert not body.done
    assert body.feed(b"cd") == (b"c", b"d")
    assert body.done


# A chunked body.

extensions = st.sampled_from([b"", b"", b"", b";a", b";a=b", b';a="b,c;\\"d";e', b";chunk-signature=" + b"0" * 64])
trailers = st.lists(st.sampled_from([b"X-Sum: 1\r\n", b"a:\r\n", b"b: \tobs \xe9\r\n"]), max_size=3).map(b"".join)


@st.composite
def chunked(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A chunked body, and its content."""
    pieces = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=5))
    coded = b""
    for piece in pieces:
        size = draw(st.sampled_from([b"%x", b"%X", b"%04x", b"%016x"])) % len(piece)
        coded += size + draw(extensions) + b"\r\n" + piece + b"\r\n"
    return coded + draw(st.sampled_from([b"0", b"000"])) + draw(extensions) + b"\r\n" + draw(trailers) + b"\r\n", (
        b"".join(pieces)
    )


@given(chunked(), st.binary(max_size=20), st.lists(st.integers(0, 500), max_size=8))
@settings(max_examples=300, deadline=None)
def test_a_chunked_body_is_read_as_httptools_reads_it(
    body: tuple[bytes, bytes], behind: bytes, cuts: list[int]
) -> None:
    coded, content = body
    reader = ChunkedBody()
    assert read(reader, split(coded + behind, cuts)) == (content, behind)
    assert reader.done
    oracle = Oracle(coded)
    assert (oracle.content, oracle.done, oracle.refused) == (content, True, False)


@given(chunked(), st.data())
@settings(max_examples=600, deadline=None)
def test_a_damaged_body_is_never_read_otherwise_than_httptools_reads_it(
    body: tuple[bytes, bytes], data: st.DataObject
) -> None:
    coded = bytearray(body[0])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(coded) - 1))
        new = data.draw(st.sampled_from([b"", b"\r", b"\n", b"\r\n", b"0", b"f", b";", b"\x00", b":", b"\x0b"]))
        coded[at : at + data.draw(st.integers(0, 2))] = new
    reader = ChunkedBody()
    try:
        content, rest = read(reader, split(bytes(coded), data.draw(st.lists(st.integers(0, 500), max_size=4))))
    except HttpError:
        return
    oracle = Oracle(bytes(coded[: len(coded) - len(rest)]))
    assert (oracle.content, oracle.done) == (content, reader.done)
    # A line is judged when it is whole, so httptools may refuse sooner.
    assert not (oracle.refused and reader.done)


def test_a_body_is_read_the_same_for_each_single_cut_and_byte_by_byte() -> None:
    coded = b'5;x="y"\r\nhello\r\n00A\r\n0123456789\r\n0\r\nX: y\r\n\r\nGET'
    for cuts in [*([cut] for cut in range(len(coded))), list(range(len(coded)))]:
        body = ChunkedBody()
        assert read(body, split(coded, cuts)) == (b"hello0123456789", b"GET")
        assert body.done


def test_a_body_is_not_done_before_its_last_empty_line() -> None:
    body = ChunkedBody()
    for byte in b"3\r\nabc\r\n0\r\nX: y\r\n\r":
        body.feed(bytes((byte,)))
        assert not body.done
    assert body.feed(b"\n") == (b"", b"")
    assert body.done
    assert body.feed(b"next") == (b"", b"next")


def test_a_chunk_of_many_reads_is_handed_on_as_it_comes() -> None:
    body = ChunkedBody()
    assert body.feed(b"FFFFFFFFFFFFFFFF\r\nab") == (b"ab", b"")
    assert body.feed(b"\r\n0\r\n") == (b"\r\n0\r\n", b"")
    assert not body.done


@pytest.mark.parametrize("extension", [b" ;a", b"; a", b"\t; a = b ; c", b' ;a\t= "b ; \\" c\xe9"', b";a=b;a=b;c"])
def test_white_space_around_the_parts_of_an_extension_is_taken(extension: bytes) -> None:
    """RFC 9112 7.1.1 makes a recipient take it (BWS), httptools does not."""
    body = ChunkedBody()
    assert body.feed(b"2" + extension + b"\r\nab\r\n0\r\n\r\n") == (b"ab", b"")
    assert body.done


MALFORMED = {
    "no size": b"\r\n",
    "an extension without a size": b";a\r\n",
    "a size that is not hexadecimal": b"g\r\n",
    "a size with a prefix": b"0x5\r\n",
    "a sign": b"+5\r\n",
    "a negative size": b"-1\r\n",
    "a size with an underscore": b"1_0\r\n",
    "a space before the size": b" 5\r\n",
    "a space behind the size": b"5 \r\n",
    "two sizes": b"5 5\r\n",
    "an empty extension": b"5;\r\n",
    "an extension without a name": b"5;=a\r\n",
    "an extension without a value": b"5;a=\r\n",
    "an extension with a space behind it": b"5;a \r\n",
    "an extension with an open quotation": b'5;a="b\r\n',
    "a quotation whose end is quoted": b'5;a="b\\"\r\n',
    "a line end inside a quotation": b'5;a="b\r\nc"\r\n',
    "17 digits": b"00000000000000005\r\n",
    "a bare LF behind the size": b"5\nhello",
    "two CRs behind the size": b"5\r\r\n",
    "a bare CR in an extension": b"5;a\rb\r\n",
    "a bare LF behind an extension": b"5;a\n",
    "a NUL in an extension": b"5;\x00\r\n",
    "a DEL in an extension": b"5;\x7f\r\n",
    "a vertical tab behind the size": b"5\x0b\r\n",
    "data longer than its size": b"2\r\nabc\r\n",
    "data shorter than its size": b"4\r\nabc\r\n0\r\n\r\n",
    "data that ends with a bare LF": b"3\r\nabc\n0",
    "data that ends with a bare CR": b"3\r\nabc\r0",
    "data that ends with nothing": b"3\r\nabc0\r\n\r\n",
    "data that ends with an empty line too many": b"3\r\nabc\r\n\r\n",
    "a trailer without a colon": b"0\r\nabc\r\n",
    "a trailer without a name": b"0\r\n: x\r\n",
    "a trailer with a space before its colon": b"0\r\nX : y\r\n",
    "a folded trailer": b"0\r\nX: y\r\n z\r\n",
    "a trailer with a bare CR": b"0\r\nX: y\rz\r\n",
    "a trailer with a bare LF": b"0\r\nX: y\n",
    "a trailer with a NUL": b"0\r\nX: \x00\r\n",
    "a trailer section that ends with a bare LF": b"0\r\n\n",
    "a size line without an end": b"5;" + b"a" * SIZE_LINE_LIMIT,
    "a trailer line without an end": b"0\r\nX: " + b"y" * TRAILER_LIMIT,
    "trailers without an end": b"0\r\n" + b"X: yy\r\n" * (TRAILER_LIMIT // 7 + 1),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_body_is_refused_whole_and_byte_by_byte(name: str) -> None:
    coded = MALFORMED[name]
    for cuts in (range(0), range(len(coded))):
        with pytest.raises(HttpError) as caught:
            read(ChunkedBody(), split(coded, cuts))
        assert caught.value.status == 400


def test_a_size_line_may_be_just_as_long_as_its_limit() -> None:
    longest = b"1;" + b"a" * (SIZE_LINE_LIMIT - 4) + b"\r\n"
    assert ChunkedBody().feed(longest + b"x") == (b"x", b"")
    with pytest.raises(HttpError, match="too long"):
        ChunkedBody().feed(longest.replace(b";", b";a") + b"x")


def test_trailers_may_be_just_as_long_as_their_limit() -> None:
    fields = b"X: y\r\n" * ((TRAILER_LIMIT - 2) // 6 - 1)
    fields += b"Y:" + b"z" * (TRAILER_LIMIT - len(fields) - 6) + b"\r\n"
    body = ChunkedBody()
    assert body.feed(b"0\r\n" + fields + b"\r\nrest") == (b"", b"rest")
    assert body.done
    with pytest.raises(HttpError, match="too long"):
        ChunkedBody().feed(b"0\r\nz" + fields + b"\r\n")
