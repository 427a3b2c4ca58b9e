"""Sticky sessions: the cookie that names a backend."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrouter.config.values import Backend, SameSite, Sticky
from wsrouter.policy.members import Member
from wsrouter.policy.stickiness import StickyCookie

A, B = MEMBERS = [Member(Backend("127.0.0.1", 2222)), Member(Backend("", 0, unix="/run/app.sock"))]
COOKIE = StickyCookie(Sticky("wsr"), "app", MEMBERS)


def pair(member: Member, cookie: StickyCookie = COOKIE) -> bytes:
    """``name=id``, as a browser sends it back."""
    return cookie.set_cookie(member, secure=False).partition(b";")[0]


def test_what_was_set_is_found_again() -> None:
    assert COOKIE.member_of(pair(A)) is A
    assert COOKIE.member_of(pair(B)) is B


ID_A = pair(A).partition(b"=")[2]


@pytest.mark.parametrize(
    "text",
    [
        b"wsr=%s",
        b'wsr="%s"',
        b"a=1; wsr=%s; b=2",
        b"a=1;wsr=%s;b=2",
        b" \twsr = %s \t",
        b"wsr; wsr=%s",
        b"xwsr=1; wsrx=2; x=wsr=3; WSR=4; wsr=%s",
        b";;=;=wsr; wsr=%s;;",
        b'a="1; wsr=%s; 2"',  # quotes hold no semicolon (RFC 6265 4.1.1)
        b"\xff\x00=\x80; wsr=%s",
    ],
)
def test_the_cookie_is_found_among_others(text: bytes) -> None:
    assert COOKIE.member_of(text % ID_A) is A


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"wsr",
        b"wsr=",
        b'wsr="',
        b'wsr=""',
        b'wsr="%s',
        b"wsr=%sx",
        b"wsr=%s==",
        b"wsr==%s",
        b"WSR=%s",
        b"xwsr=%s",
        b"wsr=127.0.0.1:2222",
        b"wsr=gone; wsr=%s",
        b"wsr=%s, wsr=%s",
    ],
)
def test_anything_else_means_nobody(text: bytes) -> None:
    assert COOKIE.member_of(text.replace(b"%s", ID_A)) is None


def test_the_first_of_the_name_counts() -> None:
    assert COOKIE.member_of(b"%s; %s" % (pair(B), pair(A))) is B


@given(st.binary(max_size=200))
def test_no_bytes_upset_the_reader(text: bytes) -> None:
    assert COOKIE.member_of(text) is None


@given(
    st.lists(st.sampled_from([b"wsr", b"=", b";", b" ", b'"', b"\t", b",", b"a", ID_A, pair(B)]), max_size=30).map(
        b"".join
    )
)
def test_nobody_is_found_whose_id_is_not_there(text: bytes) -> None:
    found = COOKIE.member_of(text)
    assert found is None or pair(found).partition(b"=")[2] in text


@given(st.lists(st.from_regex(rb"[a-z]{1,3}=[!#-+\--:<-\[\]-~]{0,9}", fullmatch=True)), st.integers(0))
def test_well_formed_cookies_around_it_do_not_matter(others: list[bytes], at: int) -> None:
    others = [other for other in others if not other.startswith(b"wsr=")]
    others.insert(at % (len(others) + 1), pair(B))
    assert COOKIE.member_of(b"; ".join(others)) is B


@pytest.mark.parametrize(
    ("options", "tls", "attributes"),
    [
        ({}, False, b"; Path=/; HttpOnly; SameSite=Lax"),
        ({}, True, b"; Path=/; HttpOnly; SameSite=Lax; Secure"),
        ({"secure": True}, False, b"; Path=/; HttpOnly; SameSite=Lax; Secure"),
        ({"secure": False}, True, b"; Path=/; HttpOnly; SameSite=Lax"),
        ({"same_site": SameSite.STRICT}, False, b"; Path=/; HttpOnly; SameSite=Strict"),
        ({"same_site": SameSite.NONE, "secure": False}, False, b"; Path=/; HttpOnly; SameSite=None; Secure"),
        ({"path": "/ws", "max_age": 0}, False, b"; Path=/ws; HttpOnly; SameSite=Lax; Max-Age=0"),
    ],
)
def test_attributes_follow_the_options(options: dict[str, Any], tls: bool, attributes: bytes) -> None:
    cookie = StickyCookie(Sticky("wsr", **options), "app", MEMBERS)
    assert cookie.set_cookie(A, tls) == b"wsr=%s%s" % (ID_A, attributes)


def test_an_id_shows_no_address() -> None:
    assert re.fullmatch(rb"[A-Za-z0-9_-]{16}", ID_A)


def test_pools_and_secrets_have_ids_of_their_own() -> None:
    long = b"a secret of more than the sixty-four bytes that the hash would take as a key"
    cookies = [
        StickyCookie(Sticky("wsr", secret), pool, MEMBERS)
        for secret in (None, b"one", b"two", long, long[:-1])
        for pool in ("app", "other", "a name that is longer than sixteen", "a name that is longer than sixteen bytes")
    ]
    pairs = {pair(member, cookie) for cookie in cookies for member in MEMBERS}
    assert len(pairs) == len(cookies) * 2


@pytest.mark.parametrize(
    ("secret", "ids"),
    [(None, (b"SySRSrOPTcZRTWMg", b"kEHEJ8tPmgAGLBZd")), (b"s3cret", (b"7rJhIjcA2DTVkdc9", b"SEE6gIVuUfoCMchd"))],
)
def test_ids_are_the_same_in_every_version(secret: bytes | None, ids: tuple[bytes, bytes]) -> None:
    """A change here loses every client its backend, and routers of two versions disagree."""
    cookie = StickyCookie(Sticky("wsr", secret), "app", MEMBERS[::-1])
    assert (pair(A, cookie), pair(B, cookie)) == (b"wsr=" + ids[0], b"wsr=" + ids[1])


def test_members_that_take_nothing_new_are_known() -> None:
    resting = Member(Backend("a", 80, weight=0))
    resting.available = False
    cookie = StickyCookie(Sticky("wsr"), "app", [resting])
    assert cookie.member_of(pair(resting, cookie)) is resting
