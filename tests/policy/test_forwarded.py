"""The client behind trusted proxies."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wsrouter.policy.forwarded import HOST, MAX_HOPS, Effective, effective
from wsrouter.policy.networks import Networks
from wsrouter.wire.target import AUTHORITY

TRUSTED = Networks([ip_network("10.0.0.0/8"), ip_network("fd00::/8")])
PEER = "10.0.0.9"


def chain(*ips: str) -> Effective:
    return Effective(ips[0], chain=ips)


@pytest.mark.parametrize(
    ("values", "result"),
    [
        ([], Effective(PEER)),
        ([b""], Effective(PEER)),
        ([b" , ,"], Effective(PEER)),
        ([b"192.0.2.1"], chain("192.0.2.1")),
        ([b"6.6.6.6, 192.0.2.1"], chain("192.0.2.1")),
        ([b"6.6.6.6", b"192.0.2.1"], chain("192.0.2.1")),
        ([b"192.0.2.1, 10.0.0.1,10.0.0.2"], chain("192.0.2.1", "10.0.0.1", "10.0.0.2")),
        ([b"6.6.6.6, 192.0.2.1", b"10.0.0.1, 10.0.0.2"], chain("192.0.2.1", "10.0.0.1", "10.0.0.2")),
        ([b"10.0.0.1, 10.0.0.2"], chain("10.0.0.1", "10.0.0.2")),
        ([b"192.0.2.1,, 10.0.0.1 ,"], chain("192.0.2.1", "10.0.0.1")),
        ([b"192.0.2.1, evil, 10.0.0.1"], chain("10.0.0.1")),
        ([b"192.0.2.1, evil"], Effective(PEER)),
        ([b"unknown"], Effective(PEER)),
        ([b"192.0.2.1 6.6.6.6"], Effective(PEER)),
        ([b"192.0.2.01"], Effective(PEER)),
        ([b'"192.0.2.1"'], Effective(PEER)),
        ([b"192.0.2.1:4711"], chain("192.0.2.1")),
        ([b"192.0.2.1:"], Effective(PEER)),
        ([b"192.0.2.1:123456"], Effective(PEER)),
        ([b"2001:DB8::1"], chain("2001:db8::1")),
        ([b"[2001:db8::1]"], chain("2001:db8::1")),
        ([b"[2001:db8::1]:4711, fd00::1, ::ffff:10.0.0.1"], chain("2001:db8::1", "fd00::1", "10.0.0.1")),
        ([b"[192.0.2.1]"], Effective(PEER)),
        ([b"[::1"], Effective(PEER)),
        ([b"fe80::1%eth0"], Effective(PEER)),
        ([b"1" * 5000], Effective(PEER)),
        ([b"\xff\0"], Effective(PEER)),
    ],
)
def test_x_forwarded_for_is_walked_from_the_right_past_trusted_proxies(values: list[bytes], result: Effective) -> None:
    assert effective(PEER, TRUSTED, values) == result


@pytest.mark.parametrize(
    ("values", "result"),
    [
        ([b"for=192.0.2.1"], chain("192.0.2.1")),
        ([b"FOR=192.0.2.1;By=10.0.0.1"], chain("192.0.2.1")),
        ([b'for="192.0.2.1:4711"'], chain("192.0.2.1")),
        ([b'for="[2001:db8::1]:4711"'], chain("2001:db8::1")),
        ([b"for=[2001:db8::1]:4711"], chain("2001:db8::1")),
        ([b'for="192\\.0.2.1"'], chain("192.0.2.1")),
        ([b"for=6.6.6.6, for=192.0.2.1", b"for=10.0.0.1"], chain("192.0.2.1", "10.0.0.1")),
        (
            [b"for=192.0.2.1;proto=https;host=a.example, for=10.0.0.1;proto=http;host=inner"],
            Effective("192.0.2.1", "https", "a.example", ("192.0.2.1", "10.0.0.1")),
        ),
        (
            [b'; proto=HTTPS ; host="a.example:8443" ;for=192.0.2.1;'],
            Effective("192.0.2.1", "https", "a.example:8443", ("192.0.2.1",)),
        ),
        ([b'for=192.0.2.1;proto=ftp;host="a/b"'], chain("192.0.2.1")),
        ([b"for=192.0.2.1;ext=x"], chain("192.0.2.1")),
        ([b'for=192.0.2.1;ext="a;b=\\"c"'], chain("192.0.2.1")),
        ([b"proto=https"], Effective(PEER)),
        ([b"for=unknown;proto=https"], Effective(PEER)),
        ([b"for=_hidden"], Effective(PEER)),
        ([b"for=192.0.2.1;for=6.6.6.6"], Effective(PEER)),
        ([b"for=192.0.2.1;=x"], Effective(PEER)),
        ([b"for = 192.0.2.1"], Effective(PEER)),
        ([b"for=192.0.2.1 proto=https"], Effective(PEER)),
        ([b"for"], Effective(PEER)),
        ([b'for="192.0.2.1'], Effective(PEER)),
        # Quotes of the client's cannot swallow what the proxy appended, nor do commas in quotes make elements.
        ([b'for=6.6.6.6;x="', b"for=192.0.2.1"], chain("192.0.2.1")),
        ([b'x="', b'for="[2001:db8::1]"'], chain("2001:db8::1")),
        ([b'for=192.0.2.1;x="1, for=6.6.6.6, 2"'], Effective(PEER)),
        ([b'for=192.0.2.1;x="1, for=6.6.6.6;y=\\"2"'], Effective(PEER)),
    ],
)
def test_forwarded_is_walked_in_the_same_way(values: list[bytes], result: Effective) -> None:
    assert effective(PEER, TRUSTED, [], values) == result


def test_x_forwarded_for_goes_before_forwarded_and_they_are_never_mixed() -> None:
    result = effective(PEER, TRUSTED, [b"192.0.2.1"], [b"for=6.6.6.6;proto=https;host=evil"])
    assert result == chain("192.0.2.1")
    result = effective(PEER, TRUSTED, [], [b"for=192.0.2.1"], [b"https"], [b"evil"])
    assert result == chain("192.0.2.1")
    result = effective(PEER, TRUSTED, [b"evil"], [b"for=6.6.6.6"])
    assert result == Effective(PEER)


@pytest.mark.parametrize(
    ("protos", "hosts", "proto", "host"),
    [
        ([b"https"], [b"a.example"], "https", "a.example"),
        ([b"HTTP"], [b"[::1]:80"], "http", "[::1]:80"),
        ([b"wss"], [b"a.example:8443"], "https", "a.example:8443"),
        ([b"ws"], [], "http", None),
        ([b"https", b"http"], [b"a", b"b"], None, None),
        ([b"https, http"], [b"a, b"], None, None),
        ([b"ftp"], [b"a/b"], None, None),
        ([b""], [b""], None, None),
        ([b"https\xff"], [b"\xff"], None, None),
        ([], [b"a\r\nX: b"], None, None),
    ],
)
def test_scheme_and_host_are_believed_if_one_valid_value_is_given(
    protos: list[bytes], hosts: list[bytes], proto: str | None, host: str | None
) -> None:
    result = effective(PEER, TRUSTED, [b"192.0.2.1"], [], protos, hosts)
    assert (result.proto, result.host) == (proto, host)
    assert effective(PEER, TRUSTED, [], [], protos, hosts) == Effective(PEER, result.proto, host)


@pytest.mark.parametrize(
    ("values", "port"),
    [
        ([], None),
        ([b"443"], 443),
        ([b"65535"], 65535),
        ([b"65536"], None),
        ([b"0"], None),
        ([b"+443"], None),
        ([b"443, 80"], None),
        ([b"443", b"80"], None),
        ([b"4" * 5000], None),
        ([b""], None),
    ],
)
def test_a_port_is_believed_if_one_valid_value_is_given(values: list[bytes], port: int | None) -> None:
    assert effective(PEER, TRUSTED, [b"192.0.2.1"], forwarded_port=values).port == port
    # With Forwarded, the host of its element has the port.
    assert effective(PEER, TRUSTED, [], [b"for=192.0.2.1"], forwarded_port=values).port is None


@pytest.mark.parametrize(
    ("values", "result"),
    [
        ([b"192.0.2.1"], Effective("192.0.2.1", chain=("192.0.2.1",), real_ip=True)),
        ([b"2001:DB8::1"], Effective("2001:db8::1", chain=("2001:db8::1",), real_ip=True)),
        ([b"10.0.0.1"], Effective("10.0.0.1", chain=("10.0.0.1",), real_ip=True)),
        ([b"192.0.2.1, 192.0.2.2"], Effective(PEER, real_ip=True)),
        ([b"192.0.2.1", b"192.0.2.1"], Effective(PEER, real_ip=True)),
        ([b"evil"], Effective(PEER, real_ip=True)),
    ],
)
def test_a_real_address_counts_where_no_list_is_given(values: list[bytes], result: Effective) -> None:
    assert effective(PEER, TRUSTED, [], real_ip=values) == result
    for lists in ([b"192.0.2.9"], []), ([b"evil"], []), ([], [b"for=192.0.2.9"]), ([], [b"for=unknown"]):
        with_it = effective(PEER, TRUSTED, *lists, real_ip=values)
        assert with_it == replace(effective(PEER, TRUSTED, *lists), real_ip=True)


def test_a_forwarded_host_is_what_a_host_field_may_be() -> None:
    assert HOST.pattern == AUTHORITY.pattern


def test_the_walk_ends_after_so_many_proxies() -> None:
    result = effective(PEER, TRUSTED, [b"192.0.2.1" + b", 10.0.0.1" * 1000])
    assert result.ip == "10.0.0.1"
    assert len(result.chain) == MAX_HOPS


def test_a_trusted_peer_in_another_spelling_is_trusted() -> None:
    assert effective("::ffff:10.0.0.9", TRUSTED, [b"192.0.2.1"]) == chain("192.0.2.1")


VALUES = st.lists(
    st.one_of(
        st.binary(max_size=60),
        st.text('for=192.0.2.1;proto=https,host="\\[]: ', max_size=60).map(str.encode),
        st.sampled_from(
            [b"10.0.0.1", b"192.0.2.1", b"for=10.0.0.1", b"for=1.2.3.4;proto=http", b"https", b"a.example"]
        ),
    ),
    max_size=4,
)


@given(st.sampled_from(["192.0.2.7", "2001:db8::7"]), VALUES, VALUES, VALUES, VALUES)
def test_what_an_untrusted_peer_says_changes_nothing(
    peer: str, x_for: list[bytes], forwarded: list[bytes], said: list[bytes], other: list[bytes]
) -> None:
    assert effective(peer, TRUSTED, x_for, forwarded, said, other, other, said) == Effective(peer)


@given(VALUES, VALUES, VALUES, VALUES)
def test_whatever_a_trusted_peer_says_nothing_is_raised(
    x_for: list[bytes], forwarded: list[bytes], proto: list[bytes], host: list[bytes]
) -> None:
    result = effective(PEER, TRUSTED, x_for, forwarded, proto, host)
    assert result.ip == (result.chain[0] if result.chain else PEER)
    assert all(ip in TRUSTED for ip in result.chain[1:])
    assert len(result.chain) <= MAX_HOPS


@given(
    st.one_of(st.binary(max_size=80), st.text('for=6.6.6.6;x,"\\[]: ', max_size=80).map(str.encode)),
    st.ip_addresses().map(str).filter(lambda ip: ip not in TRUSTED),
    st.lists(st.sampled_from(["10.0.0.1", "fd00::1"]), max_size=3),
    st.booleans(),
)
@example(b'for="', "::1", [], True)
def test_a_spoofed_left_part_never_wins_over_the_rightmost_untrusted_address(
    spoofed: bytes, client: str, proxies: list[str], one_line: bool
) -> None:
    hops = [client, *proxies]
    appended = ", ".join(hops).encode()
    elements = ", ".join(f'for="[{ip}]"' if ":" in ip else f"for={ip}" for ip in hops).encode()
    honest = effective(PEER, TRUSTED, [appended])
    assert len(honest.chain) == len(hops)
    assert effective(PEER, TRUSTED, [], [elements]) == honest
    for said, line in ((appended, spoofed), (elements, spoofed)):
        lines = [line + b", " + said] if one_line else [line, said]
        x_for, forwarded = (lines, []) if said is appended else ([], lines)
        assert effective(PEER, TRUSTED, x_for, forwarded) == honest


def test_a_proxy_on_a_unix_socket_is_believed_where_anybody_is() -> None:
    assert effective("unix", TRUSTED, [b"6.6.6.6, 192.0.2.1, 10.0.0.1"]) == chain("192.0.2.1", "10.0.0.1")
    assert effective("unix", TRUSTED, []) == Effective("unix")
    assert effective("unix", Networks(), [b"192.0.2.1"]) == Effective("unix")
