from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrouter.config import hosts
from wsrouter.config.faults import BadValue
from wsrouter.config.values import Backend

FOLDER = Path("/etc/wsrouter")


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (hosts.host_name, "Example.COM.", "example.com"),
        (hosts.host_name, "bücher.example", "xn--bcher-kva.example"),
        (hosts.host_name, "STRASSE.example", "strasse.example"),
        (hosts.host_name, "straße.example", "xn--strae-oqa.example"),
        (hosts.host_name, "my_host", "my_host"),
        (hosts.server_name, "*.Apps.example.com", "*.apps.example.com"),
        (hosts.route_host, "127.0.0.1", "127.0.0.1"),
        (hosts.route_host, "[0:0::1]", "::1"),
        (hosts.route_host, "*.bücher.example", "*.xn--bcher-kva.example"),
        (hosts.address, "[::1]", "::1"),
        (hosts.address, "::1", "::1"),
        (hosts.address, "app.internal", "app.internal"),
        (hosts.certificate_name, "::1", "::1"),
        (hosts.certificate_name, "*.a.example", "*.a.example"),
        (hosts.authority, "App.internal.", "app.internal"),
        (hosts.authority, "app.internal:8443", "app.internal:8443"),
        (hosts.authority, "127.0.0.1:80", "127.0.0.1:80"),
        (hosts.authority, "[0::1]", "[::1]"),
        (hosts.authority, "[::1]:80", "[::1]:80"),
        (hosts.origin, "HTTPS://Example.com", "https://example.com"),
        (hosts.origin, "https://example.com:443", "https://example.com"),
        (hosts.origin, "http://[::1]:3000", "http://[::1]:3000"),
        (hosts.origin, "chrome-extension://abcdef", "chrome-extension://abcdef"),
        (hosts.origin, "null", "null"),
        (hosts.origin, "same", "same"),
    ],
)
def test_names_come_out_as_on_the_wire(parse: Callable[[str], str], text: str, expected: str) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (hosts.host_name, "", "is not a host name"),
        (hosts.host_name, "a..b", "is not a host name"),
        (hosts.host_name, "-a.b", "is not a host name"),
        (hosts.host_name, "a" * 64, "is not a host name"),
        (hosts.host_name, ".".join(["a" * 60] * 5), "is not a host name"),
        (hosts.host_name, "999.1.1.1", "is not a host name"),
        (hosts.host_name, "a b", "is not a host name"),
        (hosts.host_name, "☃\u200d.example", "is not a host name"),
        (hosts.server_name, "127.0.0.1", "SNI holds host names only"),
        (hosts.server_name, "[::1]", "SNI holds host names only"),
        (hosts.server_name, "a.*.b", "a wildcard is '*.' and a name"),
        (hosts.server_name, "*", "a wildcard is '*.' and a name"),
        (hosts.route_host, "example.com:80", "without its port"),
        (hosts.authority, "::1", "is not a host (expected NAME, NAME:PORT or [IPV6]:PORT)"),
        (hosts.authority, "[127.0.0.1]", "is not a host (expected NAME, NAME:PORT or [IPV6]:PORT)"),
        (hosts.authority, "app:", "is not a port"),
        (hosts.authority, ":80", "is not a host name"),
        (hosts.authority, "a/b", "is not a host name"),
        (hosts.origin, "example.com", "is not an origin"),
        (hosts.origin, "https://example.com/", "is not an origin"),
        (hosts.origin, "https://*.example.com", "wildcards are not known"),
        (hosts.origin, "https://example.com:0", "is not a port"),
        (hosts.origin, "https://example.com:", "is not a port"),
    ],
)
def test_what_is_no_name_is_refused(parse: Callable[[str], str], text: str, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        parse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:2222", Backend("127.0.0.1", 2222)),
        ("app.internal:3333 weight=2 max_sessions=1000", Backend("app.internal", 3333, weight=2, max_sessions=1000)),
        ("[::1]:80", Backend("::1", 80)),
        ("unix:/run/app.sock backup", Backend("", 0, unix="/run/app.sock", backup=True)),
        ("a:1 weight=0", Backend("a", 1, weight=0)),
        ("unix:app.sock", Backend("", 0, unix="/etc/wsrouter/app.sock")),
    ],
)
def test_a_backend_is_an_address_and_its_words(text: str, expected: Backend) -> None:
    assert hosts.backend(text, FOLDER) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("127.0.0.1", "'127.0.0.1' is not a backend"),
        (":80", "is not a backend"),
        ("::1:80", "is not a backend"),
        ("http://app:80", "is not a backend"),
        ("app:", "'' is not a port (expected 1 to 65535)"),
        ("app:0", "is not a port"),
        ("app:65536", "is not a port"),
        ("a..b:80", "is not a host name"),
        ("unix:", "path of the unix socket is missing"),
        ("unix:/" + "x" * 107, "too long for a unix socket"),
        ("app:80 weight=1001", "'1001' is not a whole number from 0 to 1000"),
        ("app:80 weight=1 weight=2", "'weight' is given twice"),
        ("app:80 wieght=1", "unknown word 'wieght=1' (did you mean 'weight'?)"),
        ("app:80 weight", "unknown word 'weight' (known: weight=N, max_sessions=N, backup)"),
        ("app:80 backup=yes", "unknown word 'backup=yes'"),
    ],
)
def test_what_is_no_backend_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        hosts.backend(text, FOLDER)
    assert message in str(caught.value)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_the_label_of_a_backend_reads_back_to_the_same_backend(address: object, port: int) -> None:
    written = f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"
    backend = hosts.backend(written, FOLDER)
    assert hosts.backend(backend.label, FOLDER) == backend


@given(st.text(min_size=1, alphabet=st.characters(exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp"))))
def test_any_word_is_a_value_or_a_bad_value(text: str) -> None:
    for parse in (
        hosts.authority,
        hosts.route_host,
        hosts.server_name,
        hosts.address,
        hosts.certificate_name,
        hosts.origin,
    ):
        try:
            result = parse(text)
        except BadValue:
            continue
        assert parse(result) == result
