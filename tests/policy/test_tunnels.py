"""Which layer-4 rule takes a connection."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from wsrouter.config.values import Match, Tunnel
from wsrouter.policy.tunnels import TunnelTable

KINDS = [Match.TLS, Match.HTTP, Match.OPAQUE, Match.SILENCE]


def tunnel(name: str, match: Match = Match.TLS, **parts: tuple[str, ...]) -> Tunnel:
    return Tunnel(name=name, pool="p", match=match, **parts)  # type: ignore[arg-type]


TABLE = TunnelTable(
    [
        tunnel("app", sni=("app.example.com", "*.apps.example.com")),
        tunnel("h2", sni=("both.example.com",), alpn=("h2", "h3")),
        tunnel("mqtt", alpn=("mqtt",)),
        tunnel("late", sni=("app.example.com", "both.example.com")),
        tunnel("inner", Match.OPAQUE, listeners=("inner",)),
        tunnel("http", Match.HTTP, listeners=("inner", "other")),
    ]
)


def chosen(table: TunnelTable, listener: str, kind: Match, sni: str | None = None, *alpn: str) -> str | None:
    rule = table.choose(listener, kind, sni, alpn)
    return rule and rule.name


@pytest.mark.parametrize(
    ("sni", "alpn", "name"),
    [
        ("app.example.com", (), "app"),
        ("a.apps.example.com", (), "app"),
        ("a.b.apps.example.com", (), "app"),
        ("apps.example.com", (), None),
        ("xapps.example.com", (), None),
        ("app.example.org", (), None),
        (None, (), None),
        ("both.example.com", ("http/1.1", "h2"), "h2"),
        ("both.example.com", ("http/1.1",), "late"),
        ("other.example.com", ("h2",), None),
        (None, ("mqtt",), "mqtt"),
        ("app.example.com", ("mqtt",), "app"),
    ],
)
def test_the_first_rule_with_the_name_and_the_protocol_takes_tls(
    sni: str | None, alpn: tuple[str, ...], name: str | None
) -> None:
    assert chosen(TABLE, "main", Match.TLS, sni, *alpn) == name


@pytest.mark.parametrize(
    ("listener", "kind", "name"),
    [
        ("inner", Match.OPAQUE, "inner"),
        ("inner", Match.SILENCE, None),
        ("inner", Match.HTTP, "http"),
        ("other", Match.HTTP, "http"),
        ("other", Match.OPAQUE, None),
        ("main", Match.HTTP, None),
    ],
)
def test_a_rule_holds_for_its_listeners_and_its_kind_only(listener: str, kind: Match, name: str | None) -> None:
    assert chosen(TABLE, listener, kind) == name


def test_a_rule_for_all_listeners_holds_beside_one_for_this_listener() -> None:
    assert chosen(TABLE, "inner", Match.TLS, "app.example.com") == "app"


@pytest.mark.parametrize("kind", KINDS)
def test_any_takes_every_kind(kind: Match) -> None:
    assert chosen(TunnelTable([tunnel("all", Match.ANY)]), "main", kind) == "all"


@pytest.mark.parametrize("match", KINDS)
def test_a_rule_without_names_takes_its_own_kind_only(match: Match) -> None:
    table = TunnelTable([tunnel("one", match)])
    assert [kind for kind in KINDS if table.choose("main", kind)] == [match]


def test_rules_are_tried_in_file_order() -> None:
    rules = [tunnel("any", Match.ANY), tunnel("tls", Match.TLS)]
    assert chosen(TunnelTable(rules), "main", Match.TLS) == "any"
    assert chosen(TunnelTable(rules[::-1]), "main", Match.TLS) == "tls"


@pytest.mark.parametrize(
    ("match", "taken"),
    [(Match.SILENCE, True), (Match.ANY, True), (Match.OPAQUE, False), (Match.TLS, False)],
)
def test_silence_goes_where_a_rule_takes_it(match: Match, taken: bool) -> None:
    table = TunnelTable([tunnel("t", match, listeners=("main",))])
    assert (table.choose("main", Match.SILENCE) is not None) is taken
    assert table.choose("other", Match.SILENCE) is None


def test_a_tunnel_serves_whom_its_lists_admit() -> None:
    everybody, inner = tunnel("everybody"), tunnel("inner", allow=(ip_network("10.0.0.0/8"),))  # type: ignore[arg-type]
    table = TunnelTable([everybody, inner])
    assert [table.admits(everybody, ip) for ip in ("10.0.0.1", "192.0.2.1")] == [True, True]
    assert [table.admits(inner, ip) for ip in ("10.0.0.1", "192.0.2.1")] == [True, False]
