from __future__ import annotations

from pathlib import Path

import pytest

from wsrouter.config.reader import parse
from wsrouter.errors import ConfigError

#: Its options begin at line 5.
POOL = "[listener main]\nendpoint = tcp:8080\n[pool app]\nbackends = {}\n"
TUNNEL = "[tunnel t]\nmatch = tls\npool = app\n"
ROUTE = "[route r]\npool = app\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.pem", "b.pem", "secret"):
        (tmp_path / name).write_text("0123456789abcdef")
    return tmp_path


def faults(folder: Path, options: str, more: str = "", backends: str = "a:1") -> list[str]:
    """The faults of a pool with ``options``, without the file's name; what they begin with up to the pool's title."""
    try:
        parse(f"{POOL.format(backends)}{options}\n{more}", folder / "r.ini")
    except ConfigError as error:
        return [fault.removeprefix(f"{folder}/r.ini:").replace(" [pool app]", "", 1) for fault in error.faults]
    return []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("tls_verify = no", ["5: tls_verify: means nothing without 'tls = yes'"]),
        ("tls = no\ntls_name = a", ["6: tls_name: means nothing without 'tls = yes'"]),
        ("tls = yes\ntls_name = a\ntls_ca = a.pem\ntls_certificate = b.pem\ntls_verify = no", []),
        ("tls = maybe\ntls_name = a", ["5: tls: unknown value 'maybe' (known: yes, no)"]),
    ],
)
def test_tls_options_of_a_pool_need_tls(folder: Path, options: str, expected: list[str]) -> None:
    assert faults(folder, options) == expected


NO_CHECK = "means nothing without 'check'"
NO_TLS = "means nothing without 'check_tls = yes', or 'tls = yes' of the pool"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        *(
            (f"check_{option}", [f"5: check_{option.split()[0]}: {NO_CHECK}"])
            for option in ("status = 200", "interval = 1s", "timeout = 1s", "rise = 1", "fall = 1", "tls = no")
        ),
        ("check = off\ncheck_tls_ca = a.pem", [f"6: check_tls_ca: {NO_CHECK}"]),
        (
            "check_tls_name = a\ncheck_tls_verify = no",
            [f"5: check_tls_name: {NO_CHECK}", f"6: check_tls_verify: {NO_CHECK}"],
        ),
        ("check = http /\ncheck_status = 200\ncheck_interval = 1s\ncheck_timeout = 5s\ncheck_rise = 1", []),
        ("check = htpp /\ncheck_interval = 1s", ["5: check: unknown value 'htpp' (did you mean 'http'?)"]),
        ("check = tcp\ncheck_status = 200", ["6: check_status: means nothing without 'check = http'"]),
        ("check = websocket /\ncheck_status = 200", ["6: check_status: means nothing without 'check = http'"]),
    ],
)
def test_options_of_a_check_need_a_check_that_they_fit(folder: Path, options: str, expected: list[str]) -> None:
    assert faults(folder, options) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("check_tls_name = a", [f"6: check_tls_name: {NO_TLS}"]),
        ("check_tls = pool\ncheck_tls_verify = no", [f"7: check_tls_verify: {NO_TLS}"]),
        (
            "check_tls = no\ncheck_tls_ca = a.pem",
            ["7: check_tls_ca: means nothing without TLS, and this is 'check_tls = no'"],
        ),
        ("check_tls = yes\ncheck_tls_name = a", []),
        ("tls = yes\ncheck_tls_name = a", []),
        ("tls = maybe\ncheck_tls_name = a", ["6: tls: unknown value 'maybe' (known: yes, no)"]),
        ("check_tls = si\ncheck_tls_name = a", ["6: check_tls: unknown value 'si' (known: pool, yes, no)"]),
    ],
)
def test_tls_options_of_a_check_need_tls(folder: Path, options: str, expected: list[str]) -> None:
    assert faults(folder, f"check = tcp\n{options}") == expected


@pytest.mark.parametrize(
    ("backends", "expected"),
    [
        ("a:1", []),
        ("a:1, unix:/x.sock", ["5: check: 'port=9' means nothing for 'unix:/x.sock'"]),
        ("a", ["4: backends: 'a' is not a backend (expected HOST:PORT, [IPV6]:PORT or unix:PATH)"]),
    ],
)
def test_a_unix_socket_has_no_port_to_check(folder: Path, backends: str, expected: list[str]) -> None:
    assert faults(folder, "check = http / port=9", backends=backends) == expected
    if "unix" in backends:
        assert faults(folder, "check = http /", backends=backends) == []


NO_COOKIES = "5: sticky: only tunnels use this pool, such as [tunnel t] (line 6), and a tunnel has no cookies"


@pytest.mark.parametrize(
    ("options", "more", "expected"),
    [
        ("sticky_secret = secret", "", ["5: sticky_secret: means nothing without 'sticky'"]),
        ("sticky = off\nsticky_secret = secret", "", ["6: sticky_secret: means nothing without 'sticky'"]),
        ("sticky = cokie x\nsticky_secret = secret", "", ["5: sticky: unknown value 'cokie' (did you mean 'cookie'?)"]),
        ("sticky = cookie x\nsticky_secret = secret", ROUTE, []),
        ("sticky = cookie x", "", []),
        ("sticky = cookie x", TUNNEL, [NO_COOKIES]),
        ("sticky = cookie x", TUNNEL + ROUTE, []),
        ("sticky = cookie x", TUNNEL + "[route r]\nredirect = /x", [NO_COOKIES]),
        ("sticky = cookie x", f"{TUNNEL}[pool b]\nbackends = b:1\n[route r]\npool = b", [NO_COOKIES]),
        ("sticky = cookie x", TUNNEL + "[route r]\npool = ap", ["10:"]),
        ("sticky = cookie x", TUNNEL + "[rout r]\npool = app", ["9:"]),
    ],
)
def test_a_sticky_cookie_needs_somebody_with_cookies(
    folder: Path, options: str, more: str, expected: list[str]
) -> None:
    found = faults(folder, options, more)
    assert [f[: len(e)] for f, e in zip(found, expected, strict=True)] == expected


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("header:X-A", "header"),
        ("cookie:a", "cookie"),
        ("query:a", "query"),
        ("path", "path"),
        ("json:/room", "json"),
        ("client-ip", None),
        ("sni", None),
    ],
)
def test_a_tunnel_is_hashed_by_what_layer_4_knows(folder: Path, key: str, what: str | None) -> None:
    known = "(a tunnel can be hashed by client-ip and sni)"
    expected = f"5: balance: a tunnel has no {what}, and [tunnel t] (line 6) uses this pool {known}"
    route = ROUTE + ("dispatch = message\n" if what == "json" else "")
    assert faults(folder, f"balance = hash {key}", TUNNEL + route) == ([expected] if what else [])
    assert faults(folder, f"balance = hash {key}", route) == []


def test_what_is_hashed_of_messages_needs_routes_that_choose_for_each_message(folder: Path) -> None:
    by_session = "[route s]\npool = app\npath = /s\n"
    expected = "only messages have a json, and {} chooses a backend for a session (it needs 'dispatch = message')"
    message = f"{ROUTE}dispatch = message\n"
    assert faults(folder, "balance = hash json:/a", message) == []
    assert faults(folder, "balance = hash json:/a", ROUTE) == ["5: balance: " + expected.format("[route r] (line 6)")]
    assert faults(folder, "balance = hash json:/a", message + by_session) == [
        "5: balance: " + expected.format("[route s] (line 9)")
    ]
    assert faults(folder, "balance = hash json:/a", f"{ROUTE}dispatch = messages\n") == [
        "8: [route r] dispatch: unknown value 'messages' (known: session, message)"
    ]


@pytest.mark.parametrize(
    ("backends", "options", "needed"),
    [
        ("a:1, b:1, c:1, d:1", "", None),
        ("a:1, b:1, c:1, d:1, e:1", "", 5),
        ("a:1, b:1, c:1, d:1, e:1", "fan_out = 5", None),
        ("a:1, b:1, c:1, d:1, e:1 weight=0", "", None),
        ("a:1, b:1 backup", "fan_out = 1", 2),
    ],
)
def test_equal_messages_meet_only_where_a_session_reaches_every_backend(
    folder: Path, backends: str, options: str, needed: int | None
) -> None:
    reached = options.rpartition(" ")[2] or "4"
    expected = (
        f"5: balance: [route r] (line 6) reaches {reached} of {needed} backends, so equal messages would part"
        f" (it needs 'fan_out = {needed}')"
    )
    route = f"{ROUTE}dispatch = message\n{options}\n"
    assert faults(folder, "balance = hash json:/a", route, backends) == ([expected] if needed else [])
    assert faults(folder, "balance = hash client-ip", route, backends) == []


@pytest.mark.parametrize(
    ("balance", "means_something"),
    [("round-robin", True), ("least-sessions", True), ("random-two", True), ("first", False), ("hash sni", False)],
)
def test_a_slow_start_needs_weights(folder: Path, balance: str, means_something: bool) -> None:
    fault = f"6: slow_start: means nothing with 'balance = {balance.split()[0]}'"
    assert faults(folder, f"balance = {balance}\nslow_start = 1m") == ([] if means_something else [fault])
    assert faults(folder, f"balance = {balance}\nslow_start = off") == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("down_spread = 5s", ["5: down_spread: means nothing without 'on_down = close'"]),
        ("on_down = keep\ndown_spread = 5s", ["6: down_spread: means nothing without 'on_down = close'"]),
        ("on_down = close\ndown_spread = 0s", []),
        ("on_down = clse\ndown_spread = 5s", ["5: on_down: unknown value 'clse' (known: keep, close)"]),
    ],
)
def test_closing_is_spread_where_sessions_are_closed(folder: Path, options: str, expected: list[str]) -> None:
    assert faults(folder, options) == expected


NOBODY_WAITS = "5: queue: nothing would ever wait, since no backend has 'max_sessions'"


@pytest.mark.parametrize(
    ("options", "backends", "expected"),
    [
        ("queue = 5", "a:1", [NOBODY_WAITS]),
        ("queue = 5\nqueue_timeout = 1s", "a:1, b:1 max_sessions=9", []),
        ("queue = 5", "a", ["4: backends: 'a' is not a backend (expected HOST:PORT, [IPV6]:PORT or unix:PATH)"]),
        ("queue = 0", "a:1", []),
        ("queue_timeout = 1s", "a:1 max_sessions=9", ["5: queue_timeout: means nothing without 'queue'"]),
        ("queue = x\nqueue_timeout = 1s", "a:1", ["5: queue: 'x' is not a whole number from 0 to 1000000"]),
    ],
)
def test_a_queue_forms_where_backends_can_be_full(
    folder: Path, options: str, backends: str, expected: list[str]
) -> None:
    assert faults(folder, options, backends=backends) == expected
