from __future__ import annotations

from pathlib import Path

import pytest

from wsrouter.config.reader import parse
from wsrouter.config.values import Compression, Dispatch, FilterRule, IdleCounts, OnRate, Rate, Route, Session
from wsrouter.errors import ConfigError

#: The options of the route begin at line 5.
TEXT = "[listener main]\nendpoint = tcp:8080\n[route r]\npool = p\n{}\n[pool p]\nbackends = a:1\n"


def route(options: str) -> Route:
    (found,) = parse(TEXT.format(options), Path("/etc/r.ini")).routes
    return found


def faults(options: str) -> list[str]:
    try:
        route(options)
    except ConfigError as error:
        return [fault.removeprefix("/etc/r.ini:").replace(" [route r]", "") for fault in error.faults]
    return []


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ("", Session.RELAY),
        ("session = auto", Session.RELAY),
        ("session = relay\ncompression = off", Session.RELAY),
        ("session = message", Session.MESSAGE),
        ("filter = max-length 10", Session.MESSAGE),
        ("session = auto\nfilter =", Session.RELAY),
        ("compression = client", Session.MESSAGE),
        ("session = message\ncompression = both", Session.MESSAGE),
        ("dispatch = session", Session.RELAY),
        ("dispatch = message", Session.MESSAGE),
    ],
)
def test_a_route_has_message_sessions_where_it_says_so_or_an_option_needs_them(options: str, kind: Session) -> None:
    assert route(options).session is kind


def test_filters_are_read_with_their_words_in_order() -> None:
    found = route("filter =\n    deny-words 'my words.txt' action=mask\n    max-length 500\n    shout")
    assert found.filters == (
        FilterRule("deny-words", ("my words.txt", "action=mask")),
        FilterRule("max-length", ("500",)),
        FilterRule("shout"),
    )


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ("", None),
        ("max_message = off", None),
        ("session = message", 1 << 20),
        ("session = message\nmax_message = 64k", 65536),
        ("compression = both\nmax_message = 2m", 2 << 20),
    ],
)
def test_a_message_session_always_has_a_largest_message(options: str, limit: int | None) -> None:
    assert route(options).max_message == limit


def test_message_sessions_have_every_policy_of_relay_sessions() -> None:
    found = route(
        "session = message\nmax_fragments = 5\nidle_counts = data\nmessage_rate = 5/s\nbyte_rate = 1k/s\n"
        "on_rate = close\nping = 1s\nbackend_ping = 2s\nping_timeout = 3s"
    )
    assert (found.max_message, found.max_fragments, found.idle_counts) == (1 << 20, 5, IdleCounts.DATA)
    assert (found.message_rate, found.byte_rate, found.on_rate) == (Rate(5.0, 5), Rate(1024.0, 1024), OnRate.CLOSE)
    assert (found.ping, found.backend_ping, found.ping_timeout) == (1.0, 2.0, 3.0)


def test_compression_is_off_unless_asked_for() -> None:
    assert route("session = message").compression is Compression.OFF
    assert route("compression = client").compression is Compression.CLIENT


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("session = relay\nfilter = shout", ["5: session: relay cannot serve 'filter', which needs message sessions"]),
        (
            "compression = both\nsession = relay",
            ["6: session: relay cannot serve 'compression', which needs message sessions"],
        ),
        (
            "session = relay\ndispatch = message",
            ["5: session: relay cannot serve 'dispatch', which needs message sessions"],
        ),
        ("fan_out = 2", ["5: fan_out: means nothing without 'dispatch = message'"]),
        ("dispatch = session\nfan_out = 2", ["6: fan_out: means nothing without 'dispatch = message'"]),
        ("dispatch = all\nfan_out = 2", ["5: dispatch: unknown value 'all' (known: session, message)"]),
        ("dispatch = message\nfan_out = 0", ["6: fan_out: '0' is not a whole number from 1 to 1000"]),
        (
            "session = message\nmax_message = off",
            ["6: max_message: message sessions keep whole messages: a size is needed"],
        ),
        ("filter = a 'b", ["5: filter: 'a 'b' cannot be split into words (no closing quotation)"]),
        ("filter = ä", ["5: filter: 'ä' is not a name (expected letters, digits, '_', '.' and '-')"]),
        ("session = messages", ["5: session: unknown value 'messages' (known: auto, relay, message)"]),
        (
            "session = message\nmax_fragments = 5\nmax_message = off",
            [
                "6: max_fragments: means nothing without 'max_message'",
                "7: max_message: message sessions keep whole messages: a size is needed",
            ],
        ),
        ("max_message = many", ["5: max_message: 'many' is not a size (expected, for example, 512, 16k or 1m)"]),
    ],
)
def test_what_the_kind_of_session_cannot_have_is_a_fault(options: str, expected: list[str]) -> None:
    assert faults(options) == expected


def test_a_session_reaches_four_backends_unless_told_otherwise() -> None:
    found = route("dispatch = message")
    assert (found.dispatch, found.fan_out) == (Dispatch.MESSAGE, 4)
    assert route("dispatch = message\nfan_out = 12").fan_out == 12
    assert route("").dispatch is Dispatch.SESSION


def test_a_filter_of_nothing_but_empty_quotes_is_a_fault() -> None:
    assert faults("filter = ''")
