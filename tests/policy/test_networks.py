"""Who is in which network."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrouter.config.values import Match, Network, Tunnel
from wsrouter.policy.networks import (
    IPV6,
    Access,
    Networks,
    access_of,
    allowed,
    believed,
    canonical,
    number_of,
    text_of,
)


def networks(*texts: str) -> Networks:
    return Networks(ip_network(text) for text in texts)


@pytest.mark.parametrize(
    ("texts", "ip", "inside"),
    [
        (["10.0.0.0/8"], "10.0.0.0", True),
        (["10.0.0.0/8"], "10.255.255.255", True),
        (["10.0.0.0/8"], "11.0.0.0", False),
        (["10.0.0.0/8"], "9.255.255.255", False),
        (["10.0.0.0/8"], "::ffff:10.1.2.3", True),
        (["10.0.0.0/8"], "::ffff:a01:203", True),
        (["10.0.0.0/8"], "::10.1.2.3", False),
        (["::ffff:10.0.0.0/104"], "10.1.2.3", True),
        (["::ffff:0:0/96"], "10.1.2.3", True),
        (["::ffff:10.0.0.0/104"], "::ffff:10.1.2.3", True),
        (["::/0"], "10.1.2.3", False),
        (["::/0"], "::1", True),
        (["::/64"], "::1", True),
        (["0.0.0.0/0"], "::1", False),
        (["0.0.0.0/0"], "255.255.255.255", True),
        (["2001:db8::/32"], "2001:db8:ffff::1", True),
        (["2001:db8::/32"], "2001:db9::", False),
        (["192.0.2.1/32"], "192.0.2.1", True),
        (["192.0.2.1/32", "192.0.2.3/32"], "192.0.2.2", False),
        (["192.0.2.0/25", "192.0.2.128/25"], "192.0.2.200", True),
        (["10.0.0.0/8", "10.1.0.0/16"], "10.2.0.0", True),
        (["0.0.0.0/0", "::/0"], "unix", False),
        (["0.0.0.0/0", "::/0"], "", False),
        (["fe80::/10"], "fe80::1%eth0", False),
        ([], "10.1.2.3", False),
    ],
)
def test_an_address_is_in_its_networks(texts: list[str], ip: str, inside: bool) -> None:
    assert (ip in networks(*texts)) is inside


def test_a_set_without_networks_is_false() -> None:
    assert not networks()
    assert networks("::/0")


NETWORKS = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 2**32 - 1).map(IPv4Address), st.integers(0, 32)),
        st.tuples(st.integers(0, 2**128 - 1).map(IPv6Address), st.integers(0, 95)),
    ).map(lambda pair: ip_network((pair[0], pair[1]), strict=False)),
    max_size=8,
)


@given(NETWORKS, st.ip_addresses())
def test_a_set_holds_what_one_of_its_networks_holds(members: list[Network], ip: IPv4Address | IPv6Address) -> None:
    number = number_of(str(ip))
    assert number is not None
    one_form = ip_address(text_of(number))
    edges = [edge for member in members for edge in (member[0], member[-1])]
    for address in [one_form, *edges]:
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            continue
        assert (str(address) in Networks(members)) is any(address in member for member in members)


def test_thousands_of_networks_are_merged_and_looked_up() -> None:
    many = Networks(ip_network(f"10.{a}.{b}.0/25") for a in range(20) for b in range(250))
    assert "10.19.249.127" in many
    assert "10.19.249.128" not in many


@pytest.mark.parametrize(
    ("ip", "allow", "deny", "passes"),
    [
        ("10.1.2.3", [], [], True),
        ("10.1.2.3", ["10.0.0.0/8"], [], True),
        ("11.1.2.3", ["10.0.0.0/8"], [], False),
        ("10.1.2.3", [], ["10.0.0.0/8"], False),
        ("11.1.2.3", [], ["10.0.0.0/8"], True),
        ("10.1.2.3", ["10.0.0.0/8"], ["10.1.2.3/32"], False),
        ("::ffff:10.1.2.3", ["::/0"], [], False),
        ("::ffff:10.1.2.3", [], ["10.0.0.0/8"], False),
        ("unix", [], [], True),
        ("unix", [], ["0.0.0.0/0", "::/0"], True),
        ("unix", ["0.0.0.0/0", "::/0"], [], False),
    ],
)
def test_deny_goes_before_allow(ip: str, allow: list[str], deny: list[str], passes: bool) -> None:
    assert allowed(ip, networks(*allow), networks(*deny)) is passes


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.01", None),
        ("192.0.2", None),
        ("2001:DB8:0:0::0001", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:c000:201", "192.0.2.1"),
        ("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("fe80::1%1", None),
        ("unix", None),
        ("", None),
        ("1" * 1000, None),
        ("::" + "0" * 1000, None),
    ],
)
def test_an_address_has_one_form(text: str, form: str | None) -> None:
    assert canonical(text) == form


@given(st.ip_addresses())
def test_numbers_of_both_families_are_apart(ip: IPv4Address | IPv6Address) -> None:
    number = number_of(str(ip))
    assert number is not None
    assert (number < 2**32) != (number >= IPV6)
    assert number_of(text_of(number)) == number


@pytest.mark.parametrize(
    ("peer", "trusted", "is_believed"),
    [
        ("10.0.0.1", ["10.0.0.0/8"], True),
        ("192.0.2.1", ["10.0.0.0/8"], False),
        ("unix", ["10.0.0.0/8"], True),
        ("unix", [], False),
        ("192.0.2.1", [], False),
    ],
)
def test_a_peer_on_a_unix_socket_is_believed_where_anybody_is(peer: str, trusted: list[str], is_believed: bool) -> None:
    assert believed(peer, networks(*trusted)) is is_believed


def test_lists_are_made_only_for_rules_that_have_some() -> None:
    inner, evil = ip_network("10.0.0.0/8"), ip_network("10.6.6.0/24")
    rules = [
        Tunnel("open", "app", Match.ANY),
        Tunnel("inner", "app", Match.ANY, allow=(inner,), deny=(evil,)),
        Tunnel("good", "app", Match.ANY, deny=(evil,)),
    ]
    lists = access_of(rules)
    assert lists.keys() == {"inner", "good"}
    assert [lists["inner"].admits(ip) for ip in ("10.1.1.1", "10.6.6.1", "192.0.2.1")] == [True, False, False]
    assert [lists["good"].admits(ip) for ip in ("10.1.1.1", "10.6.6.1", "192.0.2.1")] == [True, False, True]


def test_lists_that_keep_nobody_out_are_false() -> None:
    inner = [ip_network("10.0.0.0/8")]
    assert [bool(Access(allow, deny)) for allow, deny in (([], []), (inner, []), ([], inner))] == [False, True, True]
