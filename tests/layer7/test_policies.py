from __future__ import annotations

from pathlib import Path

from wsrouter.config.reader import parse
from wsrouter.config.values import Route
from wsrouter.layer7.policies import backend_policies, client_policies

TEXT = "[listener main]\nendpoint = tcp:8080\n[route r]\npool = p\n{}\n[pool p]\nbackends = a:1\n"


def route(options: str) -> Route:
    (found,) = parse(TEXT.format(options), Path("/etc/r.ini")).routes
    return found


def test_a_route_without_options_has_no_policies() -> None:
    assert client_policies(route("")) == backend_policies(route("")) == (None, None, None, None)


def test_rates_hold_for_clients_alone_and_each_session_has_buckets_of_its_own() -> None:
    rated = route("message_rate = 2/s\nbyte_rate = 4k/s\non_rate = close")
    first, second = (client_policies(rated).meter for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.strict
    assert first.messages is not None
    assert first.messages is not second.messages
    assert first.bytes is not None
    assert (first.messages.rate.burst, first.bytes.rate.burst) == (2, 4096)
    assert backend_policies(rated).meter is None


def test_sizes_hold_for_both_and_fragments_are_counted_where_a_size_is_set() -> None:
    sized = route("max_message = 1k\nmax_fragments = 5")
    assert client_policies(sized)[:2] == backend_policies(sized)[:2] == (5, 1024)
    assert client_policies(route("max_message = 1k")).max_fragments == 16384


def test_each_leg_that_is_pinged_has_pings_that_nobody_can_guess() -> None:
    pinged = route("ping = 1s")
    first, second = (client_policies(pinged).pings for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.token != second.token
    assert backend_policies(pinged).pings is None
    assert backend_policies(route("backend_ping = 1s")).pings is not None
