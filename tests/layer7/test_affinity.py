from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, UNIXAddress

from wsrouter.config.values import (
    Backend,
    Balance,
    BalanceKey,
    KeySource,
    PathKind,
    PathRule,
    Pool,
    Route,
    SendProxy,
    Sticky,
)
from wsrouter.layer7.affinity import Affinity, affinity_of
from wsrouter.layer7.site import Request
from wsrouter.live.connection import Connection
from wsrouter.policy.members import Member
from wsrouter.policy.stickiness import StickyCookie
from wsrouter.sniff.proxy_protocol import Header, read_header
from wsrouter.wire.head import parse_request
from wsrouter.wire.target import parse_target

pytestmark = pytest.mark.interpreted

MEMBERS = [Member(Backend("10.0.0.1", 80)), Member(Backend("10.0.0.2", 80))]
STICKY = StickyCookie(Sticky("wsr"), "app", MEMBERS)
ROUTE = Route("r", PathRule(PathKind.PREFIX, "/"))


def request(target: str = "/", *fields: str, **connection: Any) -> Request:
    known: dict[str, Any] = {"number": 1, "ip": "192.0.2.1", "port": 4711, "listener": "main"}
    lines = "".join(f"{field}\r\n" for field in fields)
    head = parse_request(f"GET {target} HTTP/1.1\r\nHost: example.com\r\n{lines}\r\n".encode())
    return Request(Connection(**known | connection), head, parse_target(head.target, head.method), ROUTE)


def affinity(asked: Request, sticky: StickyCookie | None = None, near: Any = None, **config: Any) -> Affinity:
    pool: Any = SimpleNamespace(config=Pool("app", (), **config), sticky=sticky)
    client: Any = SimpleNamespace(getHost=lambda: near or IPv4Address("TCP", "198.51.100.2", 443))
    return affinity_of(pool, asked, client)


def cookie_of(member: Member) -> str:
    return STICKY.set_cookie(member, secure=False).partition(b";")[0].decode()


def test_a_pool_that_binds_nobody_costs_nothing():
    assert affinity(request("/?a=b", "Cookie: wsr=x")) is affinity(request())


@pytest.mark.parametrize(
    ("source", "name", "asked", "key"),
    [
        (KeySource.JSON, "/room", request("/room"), None),
        (KeySource.CLIENT_IP, "", request(), b"192.0.2.1"),
        (KeySource.PATH, "", request("/a/%62?c=d"), b"/a/b"),
        (KeySource.HEADER, "x-room", request("/", "X-Room: one", "X-Room: two"), b"one"),
        (KeySource.HEADER, "x-room", request(), None),
        (KeySource.COOKIE, "room", request("/", "Cookie: a=b", 'Cookie: room="7"; room=8'), b"7"),
        (KeySource.COOKIE, "room", request("/", "Cookie: Room=7"), None),
        (KeySource.QUERY, "room", request("/?aroom=1&room=%32&room=3"), b"%32"),
        (KeySource.QUERY, "room", request("/?room"), b""),
        (KeySource.QUERY, "room", request("/?"), None),
        (KeySource.QUERY, "room", request("/"), None),
        (KeySource.SNI, "", request(sni="app.example"), b"app.example"),
        (KeySource.SNI, "", request(), b""),
    ],
)
def test_the_key_is_what_the_pool_hashes(source, name, asked, key):
    assert affinity(asked, balance=Balance.HASH, key=BalanceKey(source, name)) == Affinity(key)


def test_a_cookie_names_the_preferred_member_wherever_it_stands():
    asked = request("/", "Cookie: a=b", f"Cookie: c=d; {cookie_of(MEMBERS[1])}")
    assert affinity(asked, STICKY).preferred is MEMBERS[1]
    assert affinity(request("/", "Cookie: wsr=unknown"), STICKY).preferred is None


@pytest.mark.parametrize(("secure", "ends"), [(False, b"; SameSite=Lax"), (True, b"; SameSite=Lax; Secure")])
def test_who_is_sent_elsewhere_gets_the_cookie_of_the_new_place(secure, ends):
    asked = request("/", f"Cookie: {cookie_of(MEMBERS[0])}", secure=secure)
    found = affinity(asked, STICKY)
    assert found.cookie(MEMBERS[0]) is None
    name, value = found.cookie(MEMBERS[1]) or (b"", b"")
    assert name == b"Set-Cookie"
    assert value.startswith(cookie_of(MEMBERS[1]).encode())
    assert value.endswith(ends)


def test_a_cookie_with_an_age_is_set_anew_while_it_is_used():
    aging = StickyCookie(Sticky("wsr", max_age=60), "app", MEMBERS)
    asked = request("/", f"Cookie: {cookie_of(MEMBERS[0])}")
    assert affinity(asked, aging).preferred is MEMBERS[0]
    assert affinity(asked, aging).cookie(MEMBERS[0]) is not None


def test_a_pool_without_cookies_sets_none():
    assert Affinity(b"key").cookie(MEMBERS[0]) is None


@pytest.mark.parametrize("form", SendProxy)
def test_the_preface_tells_of_the_client_and_of_where_it_connected_to(form):
    preface = affinity(request(), send_proxy=form).preface
    assert read_header(preface) == (Header(("192.0.2.1", 4711), ("198.51.100.2", 443)), len(preface))


@pytest.mark.parametrize(
    ("asked", "near"),
    [(request(ip="unix", port=0), None), (request(), UNIXAddress(b"/run/router.sock"))],
    ids=["client", "router"],
)
def test_a_unix_socket_has_nothing_to_tell(asked, near):
    preface = affinity(asked, near=near, send_proxy=SendProxy.V2).preface
    assert read_header(preface) == (Header(), len(preface))
