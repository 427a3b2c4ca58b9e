"""Which route takes a request."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_network

import pytest

from wsrouter.config.values import PathKind, PathRule, Route
from wsrouter.policy.routing import RouteTable, host_name, strip


def route(
    path: str,
    host: str | None = None,
    name: str = "",
    subprotocol: str | None = None,
    listeners: tuple[str, ...] = (),
    strip_prefix: bool = False,
) -> Route:
    """A route from its path as the configuration writes it; its name is host and path unless given."""
    kind = {"=": PathKind.EXACT, "~": PathKind.REGEX}.get(path[0], PathKind.PREFIX)
    text = path if kind is PathKind.PREFIX else path[1:].strip()
    rule = PathRule(kind, text, re.compile(text) if kind is PathKind.REGEX else None)
    return Route(
        name=name or (host or "") + path,
        path=rule,
        pool="p",
        host=host,
        subprotocol=subprotocol,
        listeners=listeners,
        strip_prefix=strip_prefix,
    )


def chosen(table: RouteTable, host: str, path: str, *subprotocols: str, listener: str = "main") -> str | None:
    found = table.choose(listener, host, path, subprotocols)
    return found and found.name


PATHS = RouteTable(
    [
        route("/"),
        route("/wsapp"),
        route("/wsapp/deep"),
        route("/folder/"),
        route("/both"),
        route("/both/"),
        route("~ ^/v\\d+/"),
        route("~ ^/v1/"),
        route("~ \\.map$"),
        route("= /wsapp"),
        route("= /v1/exact"),
    ]
)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/", "/"),
        ("/other", "/"),
        ("//", "/"),
        ("/wsapp", "= /wsapp"),
        ("/wsapp/", "/wsapp"),
        ("/wsapp/x", "/wsapp"),
        ("/wsappx", "/"),
        ("/wsapp/deep", "/wsapp/deep"),
        ("/wsapp/deeper", "/wsapp"),
        ("/wsapp/deep/x", "/wsapp/deep"),
        ("/folder", "/"),
        ("/folder/", "/folder/"),
        ("/folder/x", "/folder/"),
        ("/both", "/both"),
        ("/both/", "/both/"),
        ("/both/x", "/both/"),
        ("/v1/x", "~ ^/v\\d+/"),
        ("/x/v1/x", "/"),
        ("/wsapp/deep/a.map", "~ \\.map$"),
        ("/v1/exact", "= /v1/exact"),
        ("/WSAPP", "/"),
        ("*", None),
        ("", None),
    ],
)
def test_exact_comes_before_regex_before_the_longest_prefix(path: str, name: str | None) -> None:
    assert chosen(PATHS, "any.example", path) == name


HOSTS = RouteTable(
    [
        route("/", name="any"),
        route("/", "*.example.com", "wildcard"),
        route("/", "*.deep.example.com", "deeper"),
        route("/", "a.example.com", "exact"),
        route("/only", "b.example.com", "only"),
        route("/", "example.com", "apex"),
        route("= /all", name="all"),
    ]
)


@pytest.mark.parametrize(
    ("host", "path", "name"),
    [
        ("a.example.com", "/", "exact"),
        ("example.com", "/", "apex"),
        ("c.example.com", "/", "wildcard"),
        ("c.d.example.com", "/", "wildcard"),
        ("c.deep.example.com", "/", "deeper"),
        ("deep.example.com", "/", "wildcard"),
        ("notexample.com", "/", "any"),
        (".example.com", "/", "any"),
        ("", "/", "any"),
        ("b.example.com", "/only/x", "only"),
        ("a.example.com", "/all", "exact"),
        ("x.example.org", "/all", "all"),
    ],
)
def test_an_exact_host_comes_before_the_longest_wildcard_before_any(host: str, path: str, name: str) -> None:
    assert chosen(HOSTS, host, path) == name


def test_a_host_without_a_matching_path_leaves_it_to_less_particular_hosts() -> None:
    assert chosen(HOSTS, "b.example.com", "/else") == "wildcard"
    table = RouteTable([route("/x", "a.example"), route("/y")])
    assert chosen(table, "a.example", "/y") == "/y"
    assert chosen(table, "a.example", "/z") is None


@pytest.mark.parametrize("path", ["/chat", "= /chat", "~ ^/chat"])
def test_a_route_with_an_offered_subprotocol_comes_before_its_equal_without(path: str) -> None:
    table = RouteTable(
        [
            route(path, name="plain"),
            route(path, name="v1", subprotocol="v1"),
            route(path, name="v2", subprotocol="v2"),
        ]
    )
    assert chosen(table, "h", "/chat") == "plain"
    assert chosen(table, "h", "/chat", "v3") == "plain"
    assert chosen(table, "h", "/chat", "V1") == "plain"
    assert chosen(table, "h", "/chat", "v2") == "v2"
    assert chosen(table, "h", "/chat", "v2", "v1") == "v1"


@pytest.mark.parametrize("path", ["/chat", "= /chat", "~ ^/chat"])
def test_a_subprotocol_that_is_not_offered_leaves_the_request_to_other_routes(path: str) -> None:
    table = RouteTable([route(path, name="v1", subprotocol="v1"), route("/", name="root")])
    assert chosen(table, "h", "/chat") == "root"
    assert chosen(table, "h", "/chat", "v1") == "v1"


def test_a_longer_prefix_comes_before_a_subprotocol() -> None:
    table = RouteTable([route("/a", subprotocol="v1"), route("/a/b")])
    assert chosen(table, "h", "/a/b", "v1") == "/a/b"


def test_regexes_are_tried_in_file_order() -> None:
    table = RouteTable([route("~ b", name="first"), route("~ a", name="second"), route("~ b", name="third")])
    assert chosen(table, "h", "/ab") == "first"


def test_a_route_holds_for_its_listeners_only() -> None:
    table = RouteTable([route("/inner", listeners=("inner",)), route("/")])
    assert chosen(table, "h", "/inner", listener="inner") == "/inner"
    assert chosen(table, "h", "/inner", listener="main") == "/"
    assert chosen(table, "h", "/x", listener="inner") == "/"
    assert chosen(RouteTable([]), "h", "/") is None


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("Example.COM", "example.com"),
        ("example.com.:8080", "example.com"),
        ("example.com.", "example.com"),
        ("example.com:", "example.com"),
        ("192.0.2.1:80", "192.0.2.1"),
        ("[2001:DB8::1]:443", "2001:db8::1"),
        ("[::1]", "::1"),
        ("", ""),
    ],
)
def test_the_host_of_an_authority_is_compared_without_case_port_and_final_dot(authority: str, host: str) -> None:
    assert host_name(authority) == host


@pytest.mark.parametrize(
    ("prefix", "path", "rest"),
    [
        ("/app", "/app", "/"),
        ("/app", "/app/", "/"),
        ("/app", "/app/x/y", "/x/y"),
        ("/app", "/app//x", "//x"),
        ("/app/", "/app/x", "/x"),
        ("/app/", "/app/", "/"),
        ("/", "/x", "/x"),
        ("/", "/", "/"),
        ("= /app", "/app", "/app"),
        ("~ ^/app", "/app/x", "/app/x"),
    ],
)
def test_strip_takes_a_prefix_away_and_leaves_a_path(prefix: str, path: str, rest: str) -> None:
    stripping = route(prefix, strip_prefix=True)
    assert chosen(RouteTable([stripping]), "h", path) == stripping.name
    assert strip(stripping, path) == rest
    assert strip(route(prefix), path) == path


def test_a_route_serves_whom_its_lists_admit() -> None:
    everybody, inner = route("/"), replace(route("/inner"), allow=(ip_network("10.0.0.0/8"),))
    table = RouteTable([everybody, inner])
    assert [table.admits(everybody, ip) for ip in ("10.0.0.1", "192.0.2.1")] == [True, True]
    assert [table.admits(inner, ip) for ip in ("10.0.0.1", "192.0.2.1")] == [True, False]
