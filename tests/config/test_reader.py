from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsrouter.config.reader import parse, read
from wsrouter.config.schema import KINDS
from wsrouter.config.values import (
    Accept,
    Backend,
    BackendTls,
    Balance,
    BalanceKey,
    Certificate,
    Check,
    CheckKind,
    ClientAuth,
    Config,
    Echo,
    IdleCounts,
    KeySource,
    Listener,
    Log,
    Match,
    OnDown,
    OnRate,
    PathKind,
    PathRule,
    Plain,
    Pool,
    Rate,
    Redirect,
    Route,
    Router,
    SameSite,
    SendProxy,
    Sticky,
    Tunnel,
)
from wsrouter.errors import ConfigError

SHIPPED = Path(__file__).parents[2] / "etc" / "router.ini"
WHOLE = """\
[router]
drain = 10s
drain_delay = 3s
drain_spread = 0s
drain_path = /.wsrouter
drain_code = 1012
log = json
access_log = access.log     ; beside this file

[listener main]
endpoint = tcp:8443
plain = redirect
tcp_keepalive = off
certificates = tls/*.pem
default_certificate = tls/a.pem
tls_min = 1.3
demo_certificates = localhost, *.demo.example
max_connections = 500
proxy_protocol = require
trusted = 10.0.0.0/8, 2001:db8::/32
allow =
    192.0.2.0/24
    198.51.100.7
deny = 192.0.2.128/25
max_connections_per_ip = 20
connections_per_ip = 300/m
handshakes_per_ip = 50/s burst=100

[certificate app]
file = tls/b.pem
client_ca = tls/a.pem
client_auth = optional

[tunnel secure-app]
listener = main
match = tls sni=app.example.com alpn=h2
pool = slow
idle_timeout = off
allow = 10.0.0.0/8
deny = 10.1.0.0/16

[route app]
host = Example.COM
path = /wsapp
subprotocol = chat.v2
pool = app
accept = both
origins =
    same
    https://example.com
set_header =
    X-Real-IP: {client_ip}
    Cookie:
strip_prefix = yes
deny = 203.0.113.0/24

[route files]
static = www
allow = 10.0.0.0/8

[route old]
deny = ::/0
listener = main
path = = /old
redirect = 308 https://{host}/new

[pool app]
backends =
    127.0.0.1:2222
    app.internal:3333 weight=2 max_sessions=1000   ; resolved again and again
    10.0.0.1:80 backup
retries = 0
tls = yes
tls_name = app.internal
tls_verify = no
retry_time = 3s
balance = hash header:X-Tenant
sticky = cookie wsr samesite=strict secure=yes max_age=1h path=/ws
sticky_secret = secret
max_failures = 5
failure_time = 20s
check = http /health host=app.internal port=9000
check_status = 200, 204-299
check_interval = 1s
check_timeout = 500ms
check_rise = 1
check_fall = 2
check_tls_verify = yes
on_down = close
down_spread = 1s
queue = 10
queue_timeout = 2s
send_proxy = v2

[pool slow]
backends = unix:app.sock
balance = least-sessions
slow_start = 1m
check = tcp

[echo demo]
ports = 2222, 3333
demo_certificate = app.internal
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tls").mkdir()
    (tmp_path / "www").mkdir()
    for name in ("a.pem", "b.pem"):
        (tmp_path / "tls" / name).write_text("")
    (tmp_path / "secret").write_text("0123456789abcdef\n")
    return tmp_path


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, Path("etc/router.ini"))
    return caught.value.faults


def test_a_whole_file_becomes_values(folder: Path) -> None:
    file = folder / "router.ini"
    file.write_text(WHOLE)
    a, b = folder / "tls/a.pem", folder / "tls/b.pem"
    assert read(file) == Config(
        file=file,
        router=Router(
            drain=10.0,
            drain_delay=3.0,
            drain_spread=0.0,
            drain_path="/.wsrouter",
            drain_code=1012,
            log=Log.JSON,
            access_log=folder / "access.log",
        ),
        listeners=(
            Listener(
                "main",
                "tcp:8443",
                plain=Plain.REDIRECT,
                tcp_keepalive=None,
                certificates=(a, b),
                default_certificate=a,
                tls_min="1.3",
                demo_certificates=("localhost", "*.demo.example"),
                max_connections=500,
                proxy_protocol=True,
                trusted=(IPv4Network("10.0.0.0/8"), IPv6Network("2001:db8::/32")),
                allow=(IPv4Network("192.0.2.0/24"), IPv4Network("198.51.100.7/32")),
                deny=(IPv4Network("192.0.2.128/25"),),
                max_connections_per_ip=20,
                connections_per_ip=Rate(5.0, 300),
                handshakes_per_ip=Rate(50.0, 100),
                line=10,
            ),
        ),
        certificates=(Certificate("app", b, client_ca=a, client_auth=ClientAuth.OPTIONAL, line=29),),
        tunnels=(
            Tunnel(
                "secure-app",
                "slow",
                Match.TLS,
                sni=("app.example.com",),
                alpn=("h2",),
                listeners=("main",),
                idle_timeout=None,
                allow=(IPv4Network("10.0.0.0/8"),),
                deny=(IPv4Network("10.1.0.0/16"),),
                line=34,
            ),
        ),
        routes=(
            Route(
                "app",
                PathRule(PathKind.PREFIX, "/wsapp"),
                pool="app",
                host="example.com",
                subprotocol="chat.v2",
                accept=Accept.BOTH,
                origins=("same", "https://example.com"),
                set_header=(("X-Real-IP", "{client_ip}"), ("Cookie", "")),
                strip_prefix=True,
                deny=(IPv4Network("203.0.113.0/24"),),
                line=42,
            ),
            Route(
                "files",
                PathRule(PathKind.PREFIX, "/"),
                static=folder / "www",
                accept=Accept.HTTP,
                allow=(IPv4Network("10.0.0.0/8"),),
                line=57,
            ),
            Route(
                "old",
                PathRule(PathKind.EXACT, "/old"),
                redirect=Redirect(308, "https://{host}/new"),
                listeners=("main",),
                accept=Accept.HTTP,
                deny=(IPv6Network("::/0"),),
                line=61,
            ),
        ),
        pools=(
            Pool(
                "app",
                (
                    Backend("127.0.0.1", 2222),
                    Backend("app.internal", 3333, weight=2, max_sessions=1000),
                    Backend("10.0.0.1", 80, backup=True),
                ),
                retries=0,
                retry_time=3.0,
                tls=BackendTls(name="app.internal", verify=False),
                balance=Balance.HASH,
                key=BalanceKey(KeySource.HEADER, "x-tenant"),
                sticky=Sticky(
                    "wsr", b"0123456789abcdef", same_site=SameSite.STRICT, secure=True, max_age=3600, path="/ws"
                ),
                max_failures=5,
                failure_time=20.0,
                check=Check(
                    CheckKind.HTTP,
                    path="/health",
                    host="app.internal",
                    statuses=((200, 200), (204, 299)),
                    interval=1.0,
                    timeout=0.5,
                    rise=1,
                    fall=2,
                    port=9000,
                    tls=BackendTls(name="app.internal"),
                ),
                on_down=OnDown.CLOSE,
                down_spread=1.0,
                queue=10,
                queue_timeout=2.0,
                send_proxy=SendProxy.V2,
                line=67,
            ),
            Pool(
                "slow",
                (Backend("", 0, unix=f"{folder}/app.sock"),),
                balance=Balance.LEAST_SESSIONS,
                check=Check(CheckKind.TCP),
                slow_start=60.0,
                line=95,
            ),
        ),
        echoes=(Echo("demo", (2222, 3333), "app.internal", line=101),),
    )


def test_absent_sections_and_options_have_the_defaults_of_the_values() -> None:
    text = "[listener main]\nendpoint = tcp:8080\n[route a]\npool = p\n[pool p]\nbackends = a:1\n"
    config = parse(text, Path("/etc/router.ini"))
    assert config == Config(
        file=Path("/etc/router.ini"),
        listeners=(Listener("main", "tcp:8080", line=1),),
        routes=(Route("a", PathRule(PathKind.PREFIX, "/"), pool="p", line=3),),
        pools=(Pool("p", (Backend("a", 1),), line=5),),
    )


def test_what_frames_are_held_to_is_read() -> None:
    text = """\
[listener main]
endpoint = tcp:8080
[route a]
pool = p
idle_counts = data
max_message = 1m
max_fragments = 100
message_rate = 50/s burst=100
byte_rate = 64k/s burst=1m
on_rate = close
ping = 25s
backend_ping = 500ms
ping_timeout = 10s
[pool p]
backends = a:1
"""
    (route,) = parse(text, Path("/etc/router.ini")).routes
    assert route == Route(
        "a",
        PathRule(PathKind.PREFIX, "/"),
        pool="p",
        idle_counts=IdleCounts.DATA,
        max_message=1 << 20,
        max_fragments=100,
        message_rate=Rate(50.0, 100),
        byte_rate=Rate(65536.0, 1 << 20),
        on_rate=OnRate.CLOSE,
        ping=25.0,
        backend_ping=0.5,
        ping_timeout=10.0,
        line=3,
    )


def test_a_relative_file_is_named_as_given_and_paths_come_out_absolute(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tls" / "router.ini").write_text("[listener a]\nendpoint = tcp:1\ncertificates = a.pem\n[route x]\n")
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError) as caught:
        read(Path("tls/router.ini"))
    assert caught.value.faults == ["tls/router.ini:4: [route x]: one of pool, static and redirect is needed"]
    config = parse("[listener a]\nendpoint = tcp:1\ncertificates = a.pem", Path("tls/router.ini"))
    assert config.file == folder / "tls" / "router.ini"
    assert config.listeners[0].certificates == (folder / "tls" / "a.pem",)


def test_every_fault_is_told_at_once_in_the_order_of_the_file() -> None:
    text = """\
stray
[router]
drain = 30
[listener main]
endpoint = tcp:8080
[pol app]
[pool app]
backends = 127.0.0.1:99999
balance = robin
balnce = x
sticky = cokie wsr
[route app]
pool = ap
"""
    assert faults(text) == [
        "etc/router.ini:1: 'stray' stands before the first section",
        "etc/router.ini:3: [router] drain: '30' is not a duration (expected, for example, 500ms, 5s, 2m or 1h)",
        "etc/router.ini:6: [pol app]: unknown section (did you mean [pool app]?)",
        "etc/router.ini:8: [pool app] backends: '99999' is not a port (expected 1 to 65535)",
        "etc/router.ini:9: [pool app] balance: unknown value 'robin' (did you mean 'round-robin'?)",
        "etc/router.ini:10: [pool app] balnce: unknown option (did you mean 'balance'?)",
        "etc/router.ini:11: [pool app] sticky: unknown value 'cokie' (did you mean 'cookie'?)",
        "etc/router.ini:13: [route app] pool: no pool is named 'ap' (did you mean 'app'?)",
    ]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("[]", "[]: unknown section (known: router, listener, certificate, tunnel, route, pool, echo)"),
        ("[pol]", "[pol]: unknown section (did you mean [pool NAME]?)"),
        ("[Router]", "[Router]: unknown section (did you mean [router]?)"),
        ("[qqqq x]", "[qqqq x]: unknown section (known: router, listener, "),
        ("[router x]", "[router x]: this section takes no name (expected [router])"),
        ("[route]\nredirect = /x", "[route]: the section's name is missing (expected [route NAME])"),
        ("[route a b]\nredirect = /x", "[route a b]: 'a b' is not a name (expected letters, digits, '_', '.' and '-')"),
        ("[listener main]\nendpoint = tcp:1", "[listener main]: given twice (first at line 1)"),
    ],
)
def test_a_section_has_a_known_kind_and_a_name_of_its_own(header: str, expected: str) -> None:
    (fault,) = faults(f"[listener main]\nendpoint = tcp:8080\n{header}")
    assert fault.startswith(f"etc/router.ini:3: {expected}")


def test_the_second_section_of_a_name_is_read_for_its_faults() -> None:
    found = faults("[listener a]\nendpoint = tcp:1\n[listener a]\nendpoint = ssl:1\n")
    assert [fault.split(":")[1] for fault in found] == ["3", "4"]


def test_workers_are_counted_or_as_many_as_there_are_processors() -> None:
    for text, expected in (("3", 3), ("auto", None)):
        section = f"[router]\nworkers = {text}\n[listener main]\nendpoint = tcp:8080"
        assert parse(section, Path("r.ini")).router.workers == expected
    (fault,) = faults("[router]\nworkers = 65\n[listener main]\nendpoint = tcp:8080")
    assert fault.endswith("[router] workers: '65' is not a whole number from 1 to 64")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", None),
        ("tls = yes\ntls_name = a\ntls_certificate = tls/a.pem", BackendTls(name="a", certificate=Path("tls/a.pem"))),
        ("tls = yes\ntls_name = a\ncheck_tls_name = b\ncheck_tls_verify = no", BackendTls(name="b", verify=False)),
        ("tls = yes\ntls_name = a\ncheck_tls = no", None),
        ("tls = yes\ntls_name = a\ncheck_tls = yes", BackendTls()),
        ("check_tls = yes\ncheck_tls_ca = tls/b.pem", BackendTls(ca=Path("tls/b.pem"))),
    ],
)
def test_a_probe_speaks_the_tls_of_its_pool_or_its_own(folder: Path, options: str, expected: BackendTls | None) -> None:
    text = f"[listener main]\nendpoint = tcp:8080\n[pool p]\nbackends = a:1\ncheck = tcp\n{options}"
    (pool,) = parse(text, folder / "router.ini").pools
    assert pool.check is not None
    found = pool.check.tls
    if expected is not None:
        files = {name: folder / path for name in ("ca", "certificate") if (path := getattr(expected, name))}
        expected = replace(expected, **files)
    assert found == expected


def test_every_option_that_the_shipped_file_has_commented_out_can_be_used() -> None:
    text = re.sub(r"^#(?=\w+ =|\[|   \w)", "", SHIPPED.read_text().partition("\n\n")[2], flags=re.MULTILINE)
    assert len(text) < len(SHIPPED.read_text())
    with pytest.raises(ConfigError) as caught:
        parse(text, SHIPPED)
    # Its examples of files are not there, and some options wait for others to be changed.
    harmless = ("no file that exists", "matches no file", "means nothing without", "nothing would ever wait")
    assert [fault for fault in caught.value.faults if not any(part in fault for part in harmless)] == []


def test_a_file_that_cannot_be_read_is_one_fault(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path / "nope.ini", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (Path("a\0b"), "embedded null byte"),
    ):
        with pytest.raises(ConfigError) as caught:
            read(path)
        (fault,) = caught.value.faults
        assert fault.endswith(f": cannot be read: {reason}")


def test_a_file_that_is_not_utf8_is_one_fault_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "r.ini"
    file.write_bytes(b"[router]\n# gr\xfc\xdfe\n")
    with pytest.raises(ConfigError) as caught:
        read(file)
    assert caught.value.faults == [f"{file}:2: not UTF-8 (byte 0xfc)"]


OPTIONS = sorted({row.name for kind in KINDS for row in kind.options})
VALUES = ["", "yes", "off", "1", "5s", "1m", "a", "a, b", "/x", "~ (", "= /", "a:1", "unix:x", "tcp:80", "*.pem", "*/*"]
VALUES += ["hash header:x", "hash", "cookie x secure=no", "http /x", "tcp port=1", "10.0.0.1/8", "5/s burst=1"]
VALUES += ["tls sni=a", "{client_ip}", "X-A: {host}", "302 /x", "https://a", "same", "null", "\u2003", "ü.example"]
LINES = st.one_of(
    st.builds("[{} {}]".format, st.sampled_from([kind.kind for kind in KINDS]), st.sampled_from(["", "a", "b"])),
    st.builds("{} = {}".format, st.sampled_from(OPTIONS), st.one_of(st.sampled_from(VALUES), st.text(max_size=20))),
    st.builds("  {}".format, st.one_of(st.sampled_from(VALUES), st.text(max_size=20))),
    st.text(max_size=20),
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.one_of(st.text(), st.lists(LINES, max_size=25).map("\n".join)))
def test_any_text_is_a_configuration_or_printable_faults_in_order(text: str) -> None:
    found: list[str] = []
    try:
        assert parse(text, Path("/nonexistent/router.ini")).listeners
    except ConfigError as error:
        found = error.faults or [""]
    assert all(fault.isprintable() for fault in found)
    numbers = [int(rest) for fault in found if (rest := fault.split(":")[1]).isdigit()]
    assert numbers == sorted(numbers)
