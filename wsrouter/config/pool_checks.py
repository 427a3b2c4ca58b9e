"""What the options of one pool need of each other, of its backends, and of those who use it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wsrouter.config.faults import Faults
from wsrouter.config.options import Section
from wsrouter.config.values import Balance, CheckKind, Dispatch, KeySource, OnDown

_TLS_ONLY = ("tls_ca", "tls_name", "tls_certificate", "tls_verify")
_CHECK_TLS_ONLY = ("check_tls_ca", "check_tls_name", "check_tls_verify")
_CHECK_ONLY = (
    *("check_status", "check_interval", "check_timeout", "check_rise", "check_fall", "check_tls"),
    *_CHECK_TLS_ONLY,
)
#: What a tunnel can be hashed by: layer 4 knows no more of a client.
_TUNNEL_KEYS = (KeySource.CLIENT_IP, KeySource.SNI)
#: These choose by no weight, so there is none that could grow.
_WEIGHTLESS = (Balance.HASH, Balance.FIRST)


def check_pool(
    section: Section, tunnels: Sequence[Section], routes: Sequence[Section], routed: bool, faults: Faults
) -> None:
    """Note every fault of a pool.

    ``tunnels`` and ``routes`` are those that use it; ``routed`` tells whether a route does, or may be meant to.
    """
    values = section.values
    if values.get("tls") is False:
        _needs(section, _TLS_ONLY, "'tls = yes'", faults)
    _check_probes(section, faults)
    _check_choice(section, tunnels, routed, faults)
    _check_message_key(section, routes, faults)
    if values.get("on_down") is OnDown.KEEP:
        _needs(section, ("down_spread",), "'on_down = close'", faults)
    _check_queue(section, faults)


def _needs(section: Section, options: Iterable[str], what: str, faults: Faults) -> None:
    """Note each of ``options`` that was written, since ``what`` is not there."""
    for option in options:
        if section.given(option):
            section.fault(faults, option, f"means nothing without {what}")


def _check_probes(section: Section, faults: Faults) -> None:
    values = section.values
    if "check" not in values:
        return
    check = values["check"]
    if check is None:
        _needs(section, _CHECK_ONLY, "'check'", faults)
        return
    if check.kind is not CheckKind.HTTP:
        _needs(section, ("check_status",), "'check = http'", faults)
    if values.get("check_tls") == "no":
        _needs(section, _CHECK_TLS_ONLY, "TLS, and this is 'check_tls = no'", faults)
    elif values.get("check_tls") == "pool" and values.get("tls") is False:
        _needs(section, _CHECK_TLS_ONLY, "'check_tls = yes', or 'tls = yes' of the pool", faults)
    unix = next((backend for backend in values.get("backends", ()) if backend.unix is not None), None)
    if check.port is not None and unix is not None:
        section.fault(faults, "check", f"'port={check.port}' means nothing for '{unix.label}'")


def _check_choice(section: Section, tunnels: Sequence[Section], routed: bool, faults: Faults) -> None:
    values = section.values
    rule = values.get("balance")
    if rule and rule.key and rule.key.source not in _TUNNEL_KEYS and tunnels:
        text = f"a tunnel has no {rule.key.source.value}, and {_place(tunnels[0])} uses this pool"
        section.fault(faults, "balance", f"{text} (a tunnel can be hashed by client-ip and sni)")
    if rule and rule.balance in _WEIGHTLESS and values.get("slow_start") is not None:
        section.fault(faults, "slow_start", f"means nothing with 'balance = {rule.balance.value}'")
    if "sticky" not in values:
        return
    if values["sticky"] is None:
        _needs(section, ("sticky_secret",), "'sticky'", faults)
    elif tunnels and not routed:
        text = f"only tunnels use this pool, such as {_place(tunnels[0])}, and a tunnel has no cookies"
        section.fault(faults, "sticky", text)


def _check_message_key(section: Section, routes: Sequence[Section], faults: Faults) -> None:
    """``hash json:`` looks at messages, and must find every backend that a message may belong to."""
    rule = section.values.get("balance")
    if not rule or not rule.key or rule.key.source is not KeySource.JSON:
        return
    needed = sum(backend.weight > 0 for backend in section.values.get("backends", ()))
    for route in routes:
        dispatch, reached = route.values.get("dispatch"), route.values.get("fan_out")
        if dispatch is Dispatch.SESSION:
            text = f"only messages have a json, and {_place(route)} chooses a backend for a session"
            section.fault(faults, "balance", f"{text} (it needs 'dispatch = message')")
        elif dispatch is not None and reached is not None and reached < needed:
            text = f"{_place(route)} reaches {reached} of {needed} backends, so equal messages would part"
            section.fault(faults, "balance", f"{text} (it needs 'fan_out = {needed}')")


def _check_queue(section: Section, faults: Faults) -> None:
    queue = section.values.get("queue")
    backends = section.values.get("backends")
    if queue == 0:
        _needs(section, ("queue_timeout",), "'queue'", faults)
    elif queue and backends and all(backend.max_sessions is None for backend in backends):
        section.fault(faults, "queue", "nothing would ever wait, since no backend has 'max_sessions'")


def _place(section: Section) -> str:
    return f"{section.raw.title} (line {section.raw.line})"
