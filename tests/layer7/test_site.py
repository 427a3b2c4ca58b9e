from __future__ import annotations

import re
from typing import Any

import pytest
from twisted.internet.task import Clock

from wsrouter.config.values import TEMPLATE_FIELDS, PathKind, PathRule, Route
from wsrouter.layer7.site import HeaderRules, Request, Site
from wsrouter.live.connection import Connection
from wsrouter.live.idle import IdleSweeper
from wsrouter.live.registry import Refusal, Registry
from wsrouter.policy.forwarded import Effective
from wsrouter.policy.routing import RouteTable
from wsrouter.wire.head import parse_request
from wsrouter.wire.target import parse_target

pytestmark = pytest.mark.interpreted

ROUTE = Route("chat", PathRule(PathKind.PREFIX, "/ws"), pool="app")


def request(
    target: str = "/ws/a?token=x",
    host: str = "Example.com:8080",
    route: Route = ROUTE,
    behind: Effective | None = None,
    **connection: Any,
) -> Request:
    known: dict[str, Any] = {"number": 3, "ip": "192.0.2.1", "port": 4711, "listener": "main"}
    head = parse_request(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    return Request(Connection(**known | connection), head, parse_target(head.target, head.method), route, behind)


def site(log_query: bool = False) -> Site:
    clock = Clock()
    relay: Any = object()
    return Site(relay, Registry(), IdleSweeper(clock), {}, RouteTable(()), {}, {}, log_query)


def rules(*lines: tuple[str, str]) -> HeaderRules:
    return HeaderRules.of(Route("chat", PathRule(PathKind.PREFIX, "/"), pool="app", set_header=lines))


def test_every_placeholder_of_the_configuration_has_a_value():
    assert set(request().fields()) == set(TEMPLATE_FIELDS)


def test_the_placeholders_stand_for_what_is_known_of_the_request():
    fields = request(sni="example.com", secure=True, client_subject="CN=alice").fields()
    assert re.fullmatch("[0-9a-f]{32}", fields.pop("request_id"))
    assert fields == {
        "client_ip": "192.0.2.1",
        "client_port": "4711",
        "client_cert_subject": "CN=alice",
        "sni": "example.com",
        "host": "Example.com:8080",
        "scheme": "https",
        "path": "/ws/a",
        "uri": "/ws/a?token=x",
        "listener": "main",
        "route": "chat",
    }


def test_without_tls_the_scheme_is_http_and_what_tls_tells_is_empty():
    fields = request().fields()
    assert (fields["scheme"], fields["sni"], fields["client_cert_subject"]) == ("http", "", "")


def test_each_request_has_an_id_of_its_own():
    assert request().fields()["request_id"] != request().fields()["request_id"]


@pytest.mark.parametrize(
    ("connection", "ip", "port", "scheme"),
    [
        ({}, "192.0.2.1", 4711, "http"),
        ({"secure": True}, "192.0.2.1", 4711, "https"),
        ({"ip": "unix", "port": 0}, "", 0, "http"),
    ],
    ids=["plain", "tls", "unix"],
)
def test_backends_are_told_of_the_client(connection, ip, port, scheme):
    facts = request(**connection).client()
    assert (facts.ip, facts.port, facts.scheme, facts.host) == (ip, port, scheme, "Example.com:8080")


BEHIND = Effective("2001:db8::7", "https", "public.example", ("2001:db8::7",))


def test_a_request_speaks_for_the_client_behind_a_trusted_proxy() -> None:
    one = request(behind=BEHIND)
    assert (one.client_ip, one.client_label, one.scheme, one.authority) == (
        *("2001:db8::7", "2001:db8::7"),
        *("https", "public.example"),
    )
    fields = one.fields()
    assert (fields["client_ip"], fields["client_port"], fields["scheme"], fields["host"]) == (
        *("2001:db8::7", ""),
        *("https", "public.example"),
    )
    # Backends are told of both.
    assert one.client() == ("192.0.2.1", 4711, "http", "Example.com:8080", BEHIND)


def test_a_trusted_proxy_that_says_nothing_is_the_client_itself() -> None:
    one, plain = request(behind=Effective("192.0.2.1")), request()
    assert (one.client_ip, one.client_label, one.scheme, one.authority) == (
        *("192.0.2.1", "192.0.2.1:4711"),
        *("http", "Example.com:8080"),
    )
    assert {**one.fields(), "request_id": ""} == {**plain.fields(), "request_id": ""}


def test_header_rules_are_filled_in_their_order_and_may_be_empty():
    filled = rules(("X-Who", "{client_ip}:{client_port}"), ("X-Gone", ""), ("X-Path", "{path}")).fill(request())
    assert filled == [(b"X-Who", b"192.0.2.1:4711"), (b"X-Gone", b""), (b"X-Path", b"/ws/a")]


def test_what_a_client_chose_cannot_begin_a_line_of_its_own():
    [(_, value)] = rules(("X-Subject", "{client_cert_subject}")).fill(request(client_subject="a\r\nEvil: 1\0"))
    assert value == b"aEvil: 1"


def test_without_rules_nothing_is_asked_of_the_request():
    nothing: Any = None
    assert rules().fill(nothing) == []


@pytest.mark.parametrize(("log_query", "path"), [(False, "/ws/a"), (True, "/ws/a?token=x")])
def test_a_query_is_logged_only_where_the_operator_wants_it(log_query, path):
    assert site(log_query).path_for_log(request().target) == path


def test_a_refusal_is_told_to_the_observers_with_all_that_is_known():
    told: list[Refusal] = []

    class Observer:
        def refused(self, refusal: Refusal) -> None:
            told.append(refusal)

    one = site()
    one.registry.observers.append(Observer())  # type: ignore[arg-type]
    one.refuse(request().connection, "http", "chat", 403, "use wss", host="example.com", path="/ws")
    one.refuse(request().connection, "sniff", "", None, "silence", client="192.0.2.9", repeated=True)
    assert told == [
        Refusal(3, "192.0.2.1:4711", "main", "http", "chat", "use wss", 403, "example.com", "/ws"),
        Refusal(3, "192.0.2.9", "main", "sniff", "", "silence", repeated=True),
    ]
