"""What no option can tell alone: references between sections, and options that need or exclude each other.

Every check looks only at what could be read, so that one slip is one fault and not a chain of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from wsrouter.config.endpoint import Address, bound_address, is_unix
from wsrouter.config.faults import Faults, nearest, quoted
from wsrouter.config.options import Section
from wsrouter.config.pool_checks import check_pool
from wsrouter.config.session_rules import check_session, settle
from wsrouter.config.values import Match, PathKind, Plain

_TARGETS = ("pool", "static", "redirect")
#: Options that speak of a backend or of a session, and mean nothing where there is none.
_POOL_ONLY = (
    *("subprotocol", "accept", "origins", "set_header", "strip_prefix", "idle_timeout", "close_timeout"),
    *("session", "filter", "compression", "dispatch", "fan_out", "idle_counts", "max_message", "max_fragments"),
    *("message_rate", "byte_rate", "on_rate", "ping", "backend_ping", "ping_timeout"),
)
#: Options of a session that mean nothing while all of these are off.
_GO_WITH = {
    "idle_counts": ("idle_timeout",),
    "max_fragments": ("max_message",),
    "on_rate": ("message_rate", "byte_rate"),
    "ping_timeout": ("ping", "backend_ping"),
}


@dataclass(frozen=True, slots=True)
class Document:
    """The sections of a file by kind, each kind in file order.

    ``misspelt`` holds the names of sections whose kind is a fault, by the kind that was likely meant: what
    refers to them is no second fault.
    """

    sections: dict[str, list[Section]] = field(default_factory=dict)
    misspelt: dict[str, list[str]] = field(default_factory=dict)

    def of(self, kind: str) -> list[Section]:
        return self.sections.get(kind, [])

    def names(self, kind: str) -> list[str]:
        return [section.name for section in self.of(kind)] + self.misspelt.get(kind, [])


def check(document: Document, faults: Faults) -> None:
    """Note every fault between the options and sections of a file."""
    if not document.names("listener"):
        faults.add(0, "no listener: nothing would be accepted (expected a section [listener NAME] with an endpoint)")
    for kind in ("tunnel", "route"):
        for section in document.of(kind):
            _check_references(section, document, faults)
    for section in document.of("route"):
        _check_route(section, faults)
        _check_frames(section, faults)
    for section in document.of("pool"):
        users = {kind: _users(section, kind, document) for kind in ("tunnel", "route")}
        check_pool(section, users["tunnel"], users["route"], _routed(section, document), faults)
    for section in document.of("listener"):
        _check_trusted(section, faults)
    for section in document.of("certificate"):
        _check_certificate(section, faults)
    _check_plain(document, faults)
    _check_addresses(document, faults)
    _check_same_routes(document, faults)
    _check_same_certificates(document, faults)


def _refuse_unknown(section: Section, option: str, name: str, known: Iterable[str], faults: Faults) -> None:
    known = list(known)
    if name not in known:
        near = nearest(name, known)
        hint = f" (did you mean '{near}'?)" if near else f" (known: {', '.join(known)})" if known else ""
        section.fault(faults, option, f"no {option} is named {quoted(name)}{hint}")


def _check_references(section: Section, document: Document, faults: Faults) -> None:
    if "pool" in section.values:
        _refuse_unknown(section, "pool", section.values["pool"], document.names("pool"), faults)
    for name in section.values.get("listener", ()):
        _refuse_unknown(section, "listener", name, document.names("listener"), faults)


def _check_route(section: Section, faults: Faults) -> None:
    given = [target for target in _TARGETS if section.given(target)]
    if not given:
        faults.add(section.raw.line, f"{section.raw.title}: one of pool, static and redirect is needed")
    for target in given[1:]:
        section.fault(faults, target, f"given beside '{given[0]}' (expected exactly one of pool, static and redirect)")
    if given in (["static"], ["redirect"]):
        for option in _POOL_ONLY:
            if section.given(option):
                section.fault(faults, option, f"means nothing for a route with '{given[0]}' (it needs a pool)")
    if section.given("pool"):
        check_session(section, faults)
    path = section.values.get("path")
    if path is not None and path.kind is not PathKind.PREFIX and section.values.get("strip_prefix"):
        section.fault(faults, "strip_prefix", "only a prefix can be stripped, and this path is none")


def _check_frames(section: Section, faults: Faults) -> None:
    """Options that go with another one that is off."""
    if section.given("static") or section.given("redirect"):
        return  # told already
    values = settle(section.values)
    for option, others in _GO_WITH.items():
        # What was given and could not be read may have been meant to be on.
        on = any(values[other] is not None if other in values else section.given(other) for other in others)
        if section.given(option) and not on:
            names = " or ".join(f"'{other}'" for other in others)
            section.fault(faults, option, f"means nothing without {names}")


def _users(pool: Section, kind: str, document: Document) -> list[Section]:
    """The tunnels or routes that use the pool."""
    return [section for section in document.of(kind) if section.values.get("pool") == pool.name]


def _routed(pool: Section, document: Document) -> bool:
    """Whether a route uses the pool, or may be meant to: one whose section or pool is misspelt counts."""
    others = [other.name for other in document.of("pool") if other is not pool]
    routes = [route for route in document.of("route") if route.given("pool")]
    return bool(document.misspelt.get("route")) or any(route.values.get("pool") not in others for route in routes)


def _check_trusted(listener: Section, faults: Faults) -> None:
    if not listener.values.get("proxy_protocol") or listener.given("trusted"):
        return
    # Peers on a unix socket have no address to be trusted by: the permissions of its file say who may connect.
    if "endpoint" in listener.values and not is_unix(listener.values["endpoint"]):
        listener.fault(faults, "proxy_protocol", "require without 'trusted' would refuse everybody")


def _check_certificate(section: Section, faults: Faults) -> None:
    for option, other in (("client_ca", "client_auth"), ("client_auth", "client_ca")):
        if section.given(option) and not section.given(other):
            section.fault(faults, option, f"means nothing without '{other}'")


def _has_certificates(listener: Section, document: Document) -> bool:
    material = ("certificates", "default_certificate", "demo_certificates")
    return bool(document.of("certificate")) or any(map(listener.given, material))


def _may_tunnel(listener: Section, document: Document, matches: tuple[Match, ...]) -> bool:
    """Whether a tunnel rule with one of ``matches`` holds for the listener; unreadable rules count as one."""
    for tunnel in document.of("tunnel"):
        names = tunnel.values.get("listener", ())
        rule = tunnel.values.get("match")
        if (not names or listener.name in names) and (rule is None or rule.match in matches):
            return True
    return False


def _check_plain(document: Document, faults: Faults) -> None:
    """``no`` needs something else to serve on that listener; ``redirect`` an https to send to, on any listener."""
    encrypted = any(
        _has_certificates(listener, document) or _may_tunnel(listener, document, (Match.TLS, Match.ANY))
        for listener in document.of("listener")
    )
    for listener in document.of("listener"):
        plain = listener.values.get("plain")
        if plain is Plain.REDIRECT and not encrypted:
            listener.fault(faults, "plain", "redirect has no target: no listener has certificates or a tunnel for TLS")
        served = _has_certificates(listener, document) or _may_tunnel(listener, document, tuple(Match))
        if plain is Plain.NO and not served:
            listener.fault(
                faults, "plain", "no leaves nothing to serve: the listener has neither certificates nor a tunnel"
            )


def _check_addresses(document: Document, faults: Faults) -> None:
    """No two sections may bind what the kernel gives out only once."""
    bound: list[tuple[Section, Address]] = []

    def bind(section: Section, option: str, address: Address, what: str) -> None:
        for other, taken in bound:
            if address.overlaps(taken):
                where = f"{other.raw.title} (line {other.raw.line})"
                section.fault(faults, option, f"{what} is bound by {where} already")
                break
        bound.append((section, address))

    for listener in document.of("listener"):
        if "endpoint" in listener.values:
            bind(listener, "endpoint", bound_address(listener.values["endpoint"]), "the same address")
    for echo in document.of("echo"):
        for number in echo.values.get("ports", ()):
            bind(echo, "ports", Address("tcp", "127.0.0.1", number), f"port {number}")


def _check_same_routes(document: Document, faults: Faults) -> None:
    """Of two routes for the same requests, the second would never be chosen."""
    every = frozenset(document.names("listener"))
    seen: dict[object, Section] = {}
    for section in document.of("route"):
        values = section.values
        unread = [o for o in ("host", "path", "subprotocol", "listener") if section.given(o) and o not in values]
        if unread:
            continue
        path = values.get("path")
        listeners = frozenset(values.get("listener", ())) or every
        # The compiled pattern is left out: one text may compile to two objects that are not equal.
        key = (listeners, values.get("host"), path and (path.kind, path.text), values.get("subprotocol"))
        first = seen.setdefault(key, section)
        if first is not section:
            where = f"{first.raw.title} (line {first.raw.line})"
            text = f"the same listeners, host, path and subprotocol as {where}"
            faults.add(section.raw.line, f"{section.raw.title}: {text}")


def _check_same_certificates(document: Document, faults: Faults) -> None:
    seen: dict[object, Section] = {}
    for section in document.of("certificate"):
        file = section.values.get("file")
        first = seen.setdefault(file, section)
        if file is not None and first is not section:
            section.fault(faults, "file", f"the same file as {first.raw.title} (line {first.raw.line})")
