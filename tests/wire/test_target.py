from __future__ import annotations

import string
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrouter.errors import HttpError
from wsrouter.wire.target import Target, authority_of, parse_target


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/", "/", None),
        (b"/ws", "/ws", None),
        (b"/ws?", "/ws", b""),
        (b'/ws?a=%41&b=%zz?c=/../d\\"', "/ws", b'a=%41&b=%zz?c=/../d\\"'),
        (b"/ws?\xc3\xa9", "/ws", b"\xc3\xa9"),
        (b"//ws", "//ws", None),
        (b"//ws//x//", "//ws//x//", None),
        (b"/a//../b", "/a/b", None),
        (b"//../b", "/b", None),
        (b"/ws/../x", "/x", None),
        (b"/ws/..", "/", None),
        (b"/ws/.", "/ws/", None),
        (b"/./ws/./x", "/ws/x", None),
        (b"/ws/%2e%2e/x", "/x", None),
        (b"/ws/%2E./x", "/x", None),
        (b"/ws/%2e/x", "/ws/x", None),
        (b"/ws/...", "/ws/...", None),
        (b"/.well-known/..a", "/.well-known/..a", None),
        (b"/ws%2fx%2Fy", "/ws%2Fx%2Fy", None),
        (b"/%77%73/%7Euser%2d%5f", "/ws/~user-_", None),
        (b"/a%c3%a9%20b", "/a%C3%A9%20b", None),
        (b"/a\xc3\xa9", "/a%C3%A9", None),
        (b"/a%252e", "/a%252e", None),
        (b"/a%0d%0ab", "/a%0D%0Ab", None),
        (b"/a;b=c,d@e:f!$&'()*+=[x]|", "/a;b=c,d@e:f!$&'()*+=[x]|", None),
        (b"/ws?x=http://a/%00", "/ws", b"x=http://a/%00"),
    ],
)
def test_one_path_for_routing_and_forwarding(target: bytes, path: str, query: bytes | None) -> None:
    assert parse_target(target, "GET") == Target(path, query)


@pytest.mark.parametrize(
    ("target", "path", "query", "authority"),
    [
        (b"http://example.com/ws?x=1", "/ws", b"x=1", "example.com"),
        (b"HTTPS://example.com:8443", "/", None, "example.com:8443"),
        (b"ws://[::1]:80?x", "/", b"x", "[::1]:80"),
        (b"wss://a/b/../c", "/c", None, "a"),
        (b"http://a//b", "//b", None, "a"),
    ],
)
def test_an_absolute_form_gives_its_authority(target: bytes, path: str, query: bytes | None, authority: str) -> None:
    assert parse_target(target, "GET") == Target(path, query, authority)
    assert authority_of(target) == authority.encode()


@pytest.mark.parametrize(
    "target",
    [
        b"",
        b"ws",
        b"?x",
        b"*",
        b"*?x",
        b"/..",
        b"/../x",
        b"/a/../../x",
        b"/%2e%2e/x",
        b"/a/%2e%2E/.%2e",
        b"/a\x00b",
        b"/a%00b",
        b"/a\\b",
        b"/a%5cb",
        b"/a%5Cb",
        b"/..\\x",
        b"/ws#",
        b"/ws?x#y",
        b"/%",
        b"/%4",
        b"/%zz",
        b"/%%41",
        b"/a b",
        b"/a\tb",
        b"/a\x7f",
        b"/ws?a b",
        b"/ws?\x00",
        b"/ws\n",
        b"/ws?x\n",
        b"ftp://a/x",
        b"http:/a",
        b"http://",
        b"http:///x",
        b"http://user@a/x",
        b"http://user:pw@a/x",
        b"http://a:b/x",
        b"http://a/../x",
        b"http://a\\b/",
        b"http://a/#x",
        b"a:80",
        b"javascript:alert(1)",
    ],
)
def test_what_has_no_one_meaning_gets_400(target: bytes) -> None:
    with pytest.raises(HttpError) as refused:
        parse_target(target, "GET")
    assert refused.value.status == 400


def test_an_asterisk_is_for_options_only() -> None:
    assert parse_target(b"*", "OPTIONS") == Target("*", None)
    assert parse_target(b"/x", "OPTIONS").path == "/x"


@pytest.mark.parametrize("target", [b"a:80", b"/", b"http://a/"])
def test_connect_gets_405_with_allow(target: bytes) -> None:
    with pytest.raises(HttpError) as refused:
        parse_target(target, "CONNECT")
    assert refused.value.status == 405
    assert refused.value.headers[0][0] == b"Allow"


@pytest.mark.parametrize(
    ("target", "path", "forwarded"),
    [
        (b"/app/ws?x=%41", "/ws", b"/ws?x=%41"),
        (b"/app/ws", "/ws", b"/ws"),
        (b"/app/ws?", "/app/ws", b"/app/ws?"),
        (b"/app?\xff", "/app", b"/app?\xff"),
    ],
)
def test_forwarding_joins_a_path_with_the_query(target: bytes, path: str, forwarded: bytes) -> None:
    assert parse_target(target, "GET").forward(path) == forwarded


PIECES = st.sampled_from(
    ["/", "//", ".", "..", "%2e", "%2E", "%2f", "%41", "%e9", "a", "~", "|", "\xe9", "?", "%", "%5c", "\\", "#", " "]
)


@given(st.one_of(st.lists(PIECES, max_size=12).map(lambda p: "/" + "".join(p)), st.text(max_size=20)))
def test_a_path_that_passes_is_in_its_last_form_already(text: str) -> None:
    target = text.encode("utf-8", "replace")
    try:
        parsed = parse_target(target, "GET")
    except HttpError:
        return
    assert parsed.path.startswith("/")
    assert parsed.path.isascii()
    assert not {".", ".."} & set(parsed.path.split("/"))
    assert not set(parsed.path) & set("\\#?" + string.whitespace)
    again = parse_target(parsed.forward(parsed.path), "GET")
    assert (again.path, again.query) == (parsed.path, parsed.query)


@given(st.lists(st.sampled_from(["a", "b.c", "%2F", "%41", "%c3%a9", "~x"]), max_size=6))
def test_without_dot_segments_the_decoded_path_stays_the_same(segments: list[str]) -> None:
    target = ("/" + "/".join(segments)).encode()
    assert unquote_to_bytes(parse_target(target, "GET").path) == unquote_to_bytes(target)


@given(st.binary(max_size=60), st.sampled_from(["GET", "OPTIONS", "CONNECT", "POST"]))
def test_any_bytes_give_a_target_or_a_refusal(target: bytes, method: str) -> None:
    status = 400
    try:
        parse_target(target, method)
    except HttpError as error:
        status = error.status
    assert status == 400 or (status == 405 and method == "CONNECT")


def test_a_long_target_that_fails_late_takes_no_time() -> None:
    with pytest.raises(HttpError):
        parse_target(b"/" + b"a/" * 4000 + b"\\", "GET")
    with pytest.raises(HttpError):
        parse_target(b"/" + b"a." * 4000 + b"#", "GET")
