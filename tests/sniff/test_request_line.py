"""Request lines, beginnings of request lines, and other things."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrouter.sniff.request_line import MAX_REQUEST_LINE, is_request_line

METHODS = [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT"]
UNKNOWN = b"PROPFIND /a?b=\xff HTTP/1.1\r\n"


@pytest.mark.parametrize("method", METHODS)
def test_a_known_method_and_its_space_are_enough(method: bytes) -> None:
    for cut in range(len(method) + 1):
        assert is_request_line(method[:cut]) is None
    assert is_request_line(method + b" ") is True
    assert is_request_line(bytearray(b"\r\n" + method + b" /")) is True


@pytest.mark.parametrize("line", [UNKNOWN, b"\r\n" + UNKNOWN, b"get / HTTP/1.0\r\n", b"GETX * HTTP/1.1\r\n"])
def test_an_unknown_method_needs_the_whole_line(line: bytes) -> None:
    for cut in range(len(line)):
        assert is_request_line(line[:cut]) is None
    assert is_request_line(line) is True
    assert is_request_line(line + b"Host: a\r\n\0") is True


@pytest.mark.parametrize(
    "data",
    [
        b"PRI * HTTP/2",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n\r",
        b"\rG",
        b"\n",
        b" ",
        b"GET\t",
        b"GET\r",
        b"SSH-2.0-OpenSSH_9.2\r",
        b"EHLO mail.example\r",
        b"*1\r",
        b"QUIT\n",
        b"FETCH  ",
        b"FETCH / X",
        b"FETCH / HTTP/1.x",
        b"FETCH / HTTP/1.11",
        b"FETCH / HTTP/1.1\n",
        b"FETCH / HTTP/1.1\r\r",
        b"FETCH /\0",
        b"\x00",
        b"\x16\x03\x01",
        b"\x80\x2e\x01\x03\x01",
        b"G(",
    ],
)
def test_other_bytes_are_no_request_line_as_soon_as_they_show_it(data: bytes) -> None:
    assert is_request_line(data) is False


@pytest.mark.parametrize("data", [b"PRI * HTTP/2", b"GET\t", b"EHLO mail.example\r", b"\r\n\r", b"FETCH / HTTP/1.x"])
def test_until_its_last_byte_it_could_still_become_one(data: bytes) -> None:
    assert is_request_line(data[:-1]) is None


@pytest.mark.parametrize("front", [b"", b"\r\n"])
def test_an_unknown_methods_line_is_bounded(front: bytes) -> None:
    rest = b" HTTP/1.1\r\n"
    longest = b"FETCH /".ljust(MAX_REQUEST_LINE - len(rest), b"a") + rest
    assert is_request_line(front + longest[:-1]) is None
    assert is_request_line(front + longest) is True
    assert is_request_line(front + longest.replace(b"/", b"/a")) is False
    assert is_request_line(front + b"a" * MAX_REQUEST_LINE) is False


@given(st.binary(max_size=60), st.integers(0, 60), st.sampled_from([b"", b"FETCH ", b"\r\n", b"A / HTTP/1."]))
def test_a_verdict_stands_when_more_bytes_come(data: bytes, cut: int, front: bytes) -> None:
    early = is_request_line((front + data)[:cut])
    if early is not None:
        assert is_request_line(front + data) is early
