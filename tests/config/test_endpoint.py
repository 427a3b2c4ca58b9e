from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.endpoints import serverFromString
from twisted.internet.testing import MemoryReactorClock

from wsrouter.config.endpoint import UnixSocket, bound_address, endpoint, is_unix, unix_socket
from wsrouter.config.faults import BadValue


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp:8080", "tcp:8080"),
        ("tcp:0", "tcp:0"),
        ("tcp:8080:127.0.0.1", "tcp:8080:127.0.0.1"),
        ("tcp:8080:interface=127.0.0.1", "tcp:8080:interface=127.0.0.1"),
        ("tcp:port=8080:interface=::1", r"tcp:port=8080:interface=\:\:1"),
        ("tcp:8080:interface=[::1]:backlog=9", r"tcp:8080:interface=\:\:1:backlog=9"),
        (r"tcp6:8080:interface=\:\:1", r"tcp6:8080:interface=\:\:1"),
        ("tcp6:8080", "tcp6:8080"),
        ("unix:/app.sock:mode=660:lockfile=0", "unix:/app.sock:mode=660:lockfile=0"),
        ("systemd:INET:index=0", "systemd:INET:index=0"),
        ("systemd:domain=INET6:name=web", "systemd:domain=INET6:name=web"),
    ],
)
def test_an_endpoint_comes_out_in_twisteds_spelling(text: str, expected: str) -> None:
    assert endpoint(text, Path("/")) == expected
    assert endpoint(expected, Path("/")) == expected


@pytest.mark.parametrize("text", ["tcp:8080", "tcp:port=8080:interface=::1", "tcp6:8080:interface=::1:backlog=5"])
def test_twisted_takes_what_comes_out(text: str) -> None:
    serverFromString(MemoryReactorClock(), endpoint(text, Path("/")))


def test_a_relative_unix_socket_becomes_absolute_and_is_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "a:b=c"
    folder.mkdir()
    assert endpoint("unix:app.sock", folder) == rf"unix:{tmp_path}/a\:b\=c/app.sock"
    assert bound_address(endpoint("unix:app.sock", folder)).host == f"{folder}/app.sock"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ssl:443", "unknown kind 'ssl' of endpoint (known: tcp, tcp6, unix, systemd)"),
        ("8080", "unknown kind '8080' of endpoint"),
        ("tcp", "the port is missing (expected tcp:PORT)"),
        ("tcp:", "the port is missing"),
        ("tcp:http", "'http' is not a port"),
        ("tcp:65536", "'65536' is not a port"),
        ("tcp:80:interfce=::1", "unknown field 'interfce' of a tcp endpoint (did you mean 'interface'?)"),
        ("tcp:80:zz=1", "unknown field 'zz' of a tcp endpoint (known: port, interface, backlog)"),
        ("tcp:80:port=81", "'port' is given twice"),
        ("tcp:80:interface=a..b", "is not a host name"),
        ("tcp:80:127.0.0.1:50:60", "'60' is one field too many"),
        ("tcp:80:backlog=5:6", "'6' is one field too many"),
        ("tcp:80:backlog=0", "'0' is not a whole number"),
        ("tcp6:80:interface=127.0.0.1", "is not an IPv6 address"),
        ("tcp:80\\", "lone backslash"),
        ("unix:", "path of the unix socket is missing"),
        ("unix:/nowhere/at/all", "the folder '/nowhere/at' of the unix socket does not exist"),
        ("unix:/a:mode=999", "'999' is not a mode"),
        ("unix:/a:lockfile=yes", "'yes' is not a whole number from 0 to 1"),
        ("systemd:IPX:index=0", "unknown value 'IPX' (known: INET, INET6, UNIX)"),
        ("systemd:INET", "either index=N or name=NAME"),
        ("systemd:INET:index=0:name=a", "either index=N or name=NAME"),
        ("systemd:INET:index=x", "'x' is not a whole number"),
    ],
)
def test_what_is_no_endpoint_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        endpoint(text, Path("/"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("tcp:80", "tcp:80", True),
        ("tcp:80", "tcp:81", False),
        ("tcp:80", "tcp:80:interface=127.0.0.1", True),
        ("tcp:80:interface=127.0.0.2", "tcp:80:interface=127.0.0.1", False),
        ("tcp:0", "tcp:0", False),
        ("tcp:80", "tcp6:80", False),
        ("tcp:80:interface=::1", "tcp6:80", True),
        ("unix:/a", "unix:/a:mode=600", True),
        ("unix:/a", "unix:/b", False),
        ("systemd:INET:index=0", "systemd:INET:index=00", True),
        ("systemd:INET:name=a", "systemd:INET:name=b", False),
    ],
)
def test_endpoints_overlap_where_the_kernel_would_refuse_the_second(one: str, other: str, same: bool) -> None:
    first, second = (bound_address(endpoint(text, Path("/"))) for text in (one, other))
    assert first.overlaps(second) is same
    assert second.overlaps(first) is same


@given(st.text(alphabet=st.sampled_from("tcp6unixsystemd:=\\[]0189.interface")))
def test_any_text_is_an_endpoint_that_reads_back_or_a_bad_value(text: str) -> None:
    for written in (text, f"tcp:{text}", f"unix:{text}", f"systemd:{text}"):
        try:
            result = endpoint(written, Path("/"))
        except BadValue:
            continue
        assert endpoint(result, Path("/")) == result
        bound_address(result)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unix:/app.sock", UnixSocket("/app.sock", 0o666, None)),
        ("unix:/app.sock:mode=660:backlog=9", UnixSocket("/app.sock", 0o660, 9)),
        (r"unix:/a\:b.sock:0600", UnixSocket("/a:b.sock", 0o600, None)),
        ("tcp:80", None),
        ("systemd:domain=UNIX:name=web", None),
    ],
)
def test_a_unix_socket_to_bind_is_known_by_its_parts(text: str, expected: UnixSocket | None) -> None:
    assert unix_socket(endpoint(text, Path("/"))) == expected


@pytest.mark.parametrize(
    ("text", "unix"),
    [
        ("unix:/app.sock", True),
        ("systemd:UNIX:index=0", True),
        ("systemd:index=0:domain=UNIX", True),
        ("systemd:INET:index=0", False),
        ("tcp:80", False),
    ],
)
def test_clients_of_systemds_unix_sockets_have_no_address_either(text: str, unix: bool) -> None:
    assert is_unix(endpoint(text, Path("/"))) is unix
