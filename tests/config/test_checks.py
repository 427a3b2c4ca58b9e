from __future__ import annotations

from pathlib import Path

import pytest

from wsrouter.config.reader import parse
from wsrouter.errors import ConfigError

MAIN = "[listener main]\nendpoint = tcp:8080\n"
APP = "[pool app]\nbackends = a:1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "www").mkdir()
    for name in ("a.pem", "b.pem"):
        (tmp_path / name).write_text("")
    return tmp_path


def faults(text: str, folder: Path) -> list[str]:
    """The faults of ``text``, without the file's name."""
    try:
        parse(text, folder / "r.ini")
    except ConfigError as error:
        return [fault.removeprefix(f"{folder}/r.ini:").strip() for fault in error.faults]
    return []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["no listener: nothing would be accepted (expected a section [listener NAME] with an endpoint)"]),
        ("[listner main]\nendpoint = tcp:1", ["1: [listner main]: unknown section (did you mean [listener main]?)"]),
    ],
)
def test_a_file_needs_a_listener(folder: Path, text: str, expected: list[str]) -> None:
    assert faults(text, folder) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[route a]\npool = ap", "4: [route a] pool: no pool is named 'ap' (did you mean 'app'?)"),
        ("[route a]\npool = zzzz", "4: [route a] pool: no pool is named 'zzzz' (known: app)"),
        ("[route a]\npool = app\nlistener = man", "5: [route a] listener: no listener is named 'man' (did you mean"),
        ("[tunnel a]\nmatch = any\npool = ap", "5: [tunnel a] pool: no pool is named 'ap' (did you mean 'app'?)"),
        (
            "[tunnel a]\nmatch = any\npool = app\nlistener = main, zz",
            "6: [tunnel a] listener: no listener is named 'zz'",
        ),
    ],
)
def test_a_reference_names_a_section_that_is_there(folder: Path, text: str, expected: str) -> None:
    (fault,) = faults(f"{MAIN}{text}\n{APP}", folder)
    assert fault.startswith(expected)


def test_a_missing_pool_among_none_has_no_hint(folder: Path) -> None:
    assert faults(f"{MAIN}[route a]\npool = app", folder) == ["4: [route a] pool: no pool is named 'app'"]


def test_a_misspelt_section_is_no_second_fault_where_it_is_used(folder: Path) -> None:
    found = faults(f"{MAIN}[route a]\npool = app\n[pol app]\nbackends = a:1", folder)
    assert found == ["5: [pol app]: unknown section (did you mean [pool app]?)"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("pool =", ["3: [route a]: one of pool, static and redirect is needed"]),
        ("host = a.example", ["3: [route a]: one of pool, static and redirect is needed"]),
        (
            "pool = app\nredirect = /x\nstatic = www",
            [
                "5: [route a] redirect: given beside 'pool' (expected exactly one of pool, static and redirect)",
                "6: [route a] static: given beside 'pool' (expected exactly one of pool, static and redirect)",
            ],
        ),
        (
            "redirect = /x\norigins = same",
            ["5: [route a] origins: means nothing for a route with 'redirect' (it needs"],
        ),
        ("redirect = /x\nstrip_prefix = yes", ["5: [route a] strip_prefix: means nothing for a route with 'redirect'"]),
        ("static = www\nping_timeout = 5s", ["5: [route a] ping_timeout: means nothing for a route with 'static'"]),
        ("redirect = /x\nmax_message = off", ["5: [route a] max_message: means nothing for a route with 'redirect'"]),
        (
            "pool = app\nidle_timeout = off\nidle_counts = data",
            ["6: [route a] idle_counts: means nothing without 'idle_t"],
        ),
        ("pool = app\nmax_fragments = 5", ["5: [route a] max_fragments: means nothing without 'max_message'"]),
        (
            "pool = app\nmax_message = off\nmax_fragments = 5",
            ["6: [route a] max_fragments: means nothing without 'max_"],
        ),
        (
            "pool = app\non_rate = slow",
            ["5: [route a] on_rate: means nothing without 'message_rate' or 'byte_rate'"],
        ),
        (
            "pool = app\nping_timeout = 5s",
            ["5: [route a] ping_timeout: means nothing without 'ping' or 'backend_ping'"],
        ),
        ("pool = app\nbackend_ping = 5s\nping_timeout = 5s\nbyte_rate = 1k/s\non_rate = close", []),
        # One slip is one fault.
        ("pool = app\nping = 5\nping_timeout = 5s", ["5: [route a] ping: '5' is not a duration"]),
        ("static = www\nsession = auto", ["5: [route a] session: means nothing for a route with 'static'"]),
        ("static = www\naccept = both", ["5: [route a] accept: means nothing for a route with 'static'"]),
        ("static = nope\nidle_timeout = 1s", ["4: [route a] static: 'nope' is no", "5: [route a] idle_timeout: means"]),
        (
            "path = ~ ^/x\npool = app\nstrip_prefix = yes",
            ["6: [route a] strip_prefix: only a prefix can be stripped"],
        ),
        ("path = = /x\npool = app\nstrip_prefix = yes", ["6: [route a] strip_prefix: only a prefix can be stripped"]),
        ("static = www\nstrip_prefix = yes", ["5: [route a] strip_prefix: means nothing for a route with 'static'"]),
        ("path = ~ ^/x\npool = app", []),
    ],
)
def test_a_route_has_one_target_and_options_that_fit(folder: Path, options: str, expected: list[str]) -> None:
    found = faults(f"{MAIN}[route a]\n{options}\n{APP}", folder)
    assert [f[: len(e)] for f, e in zip(found, expected, strict=True)] == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            "proxy_protocol = require",
            ["3: [listener main] proxy_protocol: require without 'trusted' would refuse everyb"],
        ),
        ("proxy_protocol = require\ntrusted =", ["3: [listener main] proxy_protocol: require without 'trusted' would"]),
        ("proxy_protocol = require\ntrusted = ::1", []),
        ("proxy_protocol = require\ntrusted = x", ["4: [listener main] trusted: 'x' is not a network"]),
        ("trusted = 10.0.0.0/8", []),
    ],
)
def test_a_proxy_header_is_required_of_somebody_who_is_trusted(folder: Path, options: str, expected: list[str]) -> None:
    found = faults(f"{MAIN}{options}", folder)
    assert [f[: len(e)] for f, e in zip(found, expected, strict=True)] == expected


@pytest.mark.parametrize("target", ["pool = app", "static = www", "redirect = /x"])
def test_every_route_may_have_networks(folder: Path, target: str) -> None:
    assert faults(f"{MAIN}{APP}[route a]\n{target}\nallow = 10.0.0.0/8\ndeny = 10.1.0.0/16", folder) == []


def test_a_pool_needs_backends(folder: Path) -> None:
    assert faults(f"{MAIN}[pool a]", folder) == ["3: [pool a] backends: missing, and there is no default"]
    assert faults(f"{MAIN}[pool a]\nbackends =", folder) == ["4: [pool a] backends: a value is missing"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("client_ca = b.pem", ["5: [certificate a] client_ca: means nothing without 'client_auth'"]),
        ("client_auth = optional", ["5: [certificate a] client_auth: means nothing without 'client_ca'"]),
        ("client_ca = b.pem\nclient_auth = required", []),
        ("client_ca = c.pem\nclient_auth = required", ["5: [certificate a] client_ca: 'c.pem' is no file that exists"]),
        ("[certificate b]\nfile = a.pem", ["6: [certificate b] file: the same file as [certificate a] (line 3)"]),
        ("[certificate b]\nfile = b.pem", []),
        (
            "[certificate b]\nfile = x\n[certificate c]\nfile = x",
            ["6: [certificate b] file: 'x'", "8: [certificate c]"],
        ),
    ],
)
def test_a_certificate_section_is_whole(folder: Path, options: str, expected: list[str]) -> None:
    found = faults(f"{MAIN}[certificate a]\nfile = a.pem\n{options}", folder)
    assert [f[: len(e)] for f, e in zip(found, expected, strict=True)] == expected


NO_TARGET = "3: [listener main] plain: redirect has no target: no listener has certificates or a tunnel for TLS"
NOTHING = "3: [listener main] plain: no leaves nothing to serve: the listener has neither certificates nor a tunnel"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("plain = redirect", [NO_TARGET]),
        ("plain = redirect\ncertificates = *.pem", []),
        ("plain = redirect\ndefault_certificate = a.pem", []),
        ("plain = redirect\ndemo_certificates = localhost", []),
        ("plain = redirect\n[certificate a]\nfile = a.pem", []),
        ("plain = redirect\n[listener tls]\nendpoint = tcp:443\ncertificates = a.pem", []),
        (f"plain = redirect\n{APP}[tunnel a]\nmatch = tls\npool = app", []),
        (f"plain = redirect\n{APP}[tunnel a]\nmatch = any\npool = app", []),
        (f"plain = redirect\n{APP}[tunnel a]\nmatch = opaque\npool = app", [NO_TARGET]),
        ("plain = no", [NOTHING]),
        ("plain = no\ncertificates = a.pem", []),
        (f"plain = no\n{APP}[tunnel a]\nmatch = opaque\npool = app", []),
        (
            f"plain = no\n[listener b]\nendpoint = tcp:1\n{APP}[tunnel a]\nmatch = tls\npool = app\nlistener = b",
            [NOTHING],
        ),
        (f"plain = no\n{APP}[tunnel a]\nmatch = tsl\npool = app", ["7: [tunnel a] match: unknown value 'tsl'"]),
    ],
)
def test_plain_redirect_needs_an_https_and_plain_no_something_else(
    folder: Path, options: str, expected: list[str]
) -> None:
    found = faults(f"{MAIN}{options}", folder)
    assert [f[: len(e)] for f, e in zip(found, expected, strict=True)] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[listener b]\nendpoint = tcp:8080",
            "4: [listener b] endpoint: the same address is bound by [listener main] (line 1)",
        ),
        ("[listener b]\nendpoint = tcp:8080:interface=127.0.0.1", "4: [listener b] endpoint: the same address"),
        ("[echo e]\nports = 1, 8080", "4: [echo e] ports: port 8080 is bound by [listener main] (line 1) already"),
        (
            "[echo e]\nports = 1\n[echo f]\nports = 2, 1",
            "6: [echo f] ports: port 1 is bound by [echo e] (line 3) already",
        ),
    ],
)
def test_nothing_is_bound_twice(folder: Path, text: str, expected: str) -> None:
    (fault,) = faults(f"{MAIN}{text}", folder)
    assert fault.startswith(expected)


@pytest.mark.parametrize(
    ("second", "same"),
    [
        ("path = /x", True),
        ("path = /x\nhost =", True),
        ("path = /x\nlistener = main, b", True),
        ("path = /x\nlistener = main", False),
        ("path = = /x", False),
        ("path = /x\nhost = a.example", False),
        ("path = /x\nsubprotocol = chat", False),
        ("path = /y", False),
    ],
)
def test_two_routes_for_the_same_requests_are_a_fault(folder: Path, second: str, same: bool) -> None:
    text = (
        f"{MAIN}[listener b]\nendpoint = tcp:1\n{APP}[route a]\npath = /x\npool = app\n[route b]\npool = app\n{second}"
    )
    fault = "10: [route b]: the same listeners, host, path and subprotocol as [route a] (line 7)"
    assert faults(text, folder) == ([fault] if same else [])


def test_the_same_pattern_twice_is_a_fault_and_an_unreadable_route_is_not_compared(folder: Path) -> None:
    route = "[route {}]\npath = ~ ^/x\npool = app\n"
    assert len(faults(f"{MAIN}{APP}{route.format('a')}{route.format('b')}", folder)) == 1
    broken = "[route {}]\nhost = a..b\npool = app\n"
    found = faults(f"{MAIN}{APP}{broken.format('a')}{broken.format('b')}", folder)
    assert [fault.split(":")[0] for fault in found] == ["6", "9"]


def test_who_may_connect_to_a_unix_socket_may_send_proxy_headers(folder: Path) -> None:
    text = "[listener main]\nendpoint = {}\nproxy_protocol = require\n"
    assert faults(text.format("unix:x.sock"), folder) == []
    assert faults(text.format("systemd:domain=UNIX:name=web"), folder) == []
    assert len(faults(text.format("systemd:domain=INET:name=web"), folder)) == 1
    # What is no endpoint at all is one fault, not two.
    assert len(faults(text.format("nonsense"), folder)) == 1
