from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wsrouter.config.values import (
    Accept,
    Balance,
    BalanceKey,
    KeySource,
    PathKind,
    PathRule,
    Pool,
    Redirect,
    Route,
)
from wsrouter.errors import HttpError
from wsrouter.layer7.affinity import Affinity
from wsrouter.layer7.plain import maker_for
from wsrouter.layer7.site import HeaderRules, Request
from wsrouter.live.connection import Connection
from wsrouter.wire.head import parse_request
from wsrouter.wire.target import parse_target

pytestmark = pytest.mark.interpreted


def route(kind: PathKind = PathKind.PREFIX, path: str = "/app", **more: Any) -> Route:
    return Route("plain", PathRule(kind, path), accept=Accept.HTTP, **more)


def request(of: Route, target: str = "/app/a?q=1", method: str = "GET", **connection: Any) -> Request:
    known: dict[str, Any] = {"number": 3, "ip": "192.0.2.1", "port": 4711, "listener": "main"}
    head = parse_request(f"{method} {target} HTTP/1.1\r\nHost: example.com\r\nX-Own: 1\r\n\r\n".encode())
    return Request(Connection(**known | connection), head, parse_target(head.target, head.method), of)


class Plain:
    """Stands in for the request that a handler answers."""

    def __init__(self, head: Any) -> None:
        self.head = head
        self.answers: list[tuple[int, list[tuple[bytes, bytes]]]] = []

    def answer(self, status: int, headers: Any = (), text: str | None = None) -> None:
        self.answers.append((status, list(headers)))


class Proxy:
    """Notes what it is asked to send."""

    def __init__(self) -> None:
        self.handled: list[tuple[object, bytes, list[tuple[bytes, bytes]], float | None]] = []
        self.affinities: list[Affinity] = []

    def handle(self, plain: object, target: bytes, fields: Any, idle_timeout: float | None, affinity: Affinity) -> str:
        self.handled.append((plain, target, list(fields), idle_timeout))
        self.affinities.append(affinity)
        return "under way"


def handle(of: Route, asked: Request, proxies: Any = None, **config: Any) -> tuple[Plain, Any]:
    plain = Plain(asked.head)
    pool: Any = SimpleNamespace(config=Pool("app", (), **config), sticky=None)
    handler = maker_for(of, HeaderRules.of(of), {"app": pool}, proxies or {})(asked)
    return plain, handler(plain)  # type: ignore[arg-type]


# Redirects.


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_answers_with_its_status_and_the_filled_in_location(status):
    of = route(redirect=Redirect(status, "https://new.example{uri}"))
    plain, _ = handle(of, request(of))
    assert plain.answers == [(status, [(b"Location", b"https://new.example/app/a?q=1")])]


def test_a_redirect_may_name_what_the_client_asked_for():
    of = route(redirect=Redirect(308, "https://{host}{path}"))
    plain, _ = handle(of, request(of))
    assert plain.answers == [(308, [(b"Location", b"https://example.com/app/a")])]


# Files.


@pytest.mark.parametrize(
    ("of", "target", "path"),
    [
        (route(path="/", static=Path("/www")), "/a/b.css", "/a/b.css"),
        (route(path="/app", static=Path("/www")), "/app/a/b.css", "/a/b.css"),
        (route(path="/app", static=Path("/www")), "/app", ""),
        (route(path="/app/", static=Path("/www")), "/app/a", "/a"),
        (route(PathKind.EXACT, "/robots.txt", static=Path("/www")), "/robots.txt", "/robots.txt"),
        (route(PathKind.REGEX, "^/v[0-9]+/", static=Path("/www")), "/v1/a", "/v1/a"),
    ],
    ids=["root", "prefix", "prefix itself", "prefix with slash", "exact", "regex"],
)
def test_files_are_looked_up_behind_the_prefix_of_the_route(monkeypatch, of, target, path):
    served: list[str] = []
    monkeypatch.setattr("wsrouter.layer7.plain.Files.serve", lambda self, plain, path: served.append(path))
    handle(of, request(of, target))
    assert served == [path]


# Pools.


def test_a_pools_proxy_gets_the_target_the_fields_and_the_time():
    of = route(pool="app", idle_timeout=7.0, set_header=(("X-Id", "{client_ip}"),))
    proxy = Proxy()
    plain, result = handle(of, request(of), {"app": proxy})
    [(asked, target, fields, idle)] = proxy.handled
    assert (asked, target, idle, result) == (plain, b"/app/a?q=1", 7.0, "under way")
    assert (b"X-Own", b"1") in fields
    assert (b"X-Id", b"192.0.2.1") in fields
    assert (b"X-Forwarded-For", b"192.0.2.1") in fields
    assert proxy.affinities == [Affinity()]


def test_a_pools_proxy_is_told_what_binds_the_request_to_a_backend():
    of = route(pool="app")
    proxy = Proxy()
    handle(of, request(of), {"app": proxy}, balance=Balance.HASH, key=BalanceKey(KeySource.QUERY, "q"), send_proxy=None)
    assert [affinity.key for affinity in proxy.affinities] == [b"1"]


@pytest.mark.parametrize(
    ("strip", "target", "seen"),
    [
        (True, "/app/a?q=1", b"/a?q=1"),
        (True, "/app", b"/"),
        (True, "/app?q", b"/?q"),
        (False, "/app/a?q=1", b"/app/a?q=1"),
    ],
)
def test_a_prefix_is_stripped_only_where_the_route_says_so(strip, target, seen):
    of = route(pool="app", strip_prefix=strip)
    proxy = Proxy()
    handle(of, request(of, target), {"app": proxy})
    assert proxy.handled[0][1] == seen


def test_options_of_the_whole_server_has_no_prefix_to_strip():
    of = route(path="/", pool="app", strip_prefix=True)
    with pytest.raises(HttpError) as caught:
        handle(of, request(of, "*", "OPTIONS"), {"app": Proxy()})
    assert caught.value.status == 404


def test_options_of_the_whole_server_reaches_a_backend_as_it_is():
    of = route(path="/", pool="app")
    proxy = Proxy()
    handle(of, request(of, "*", "OPTIONS"), {"app": proxy})
    assert proxy.handled[0][1] == b"*"
