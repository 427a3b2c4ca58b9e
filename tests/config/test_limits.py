from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrouter.config import limits
from wsrouter.config.faults import BadValue
from wsrouter.config.values import Network, Rate


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.0/8", IPv4Network("10.0.0.0/8")),
        ("192.0.2.1", IPv4Network("192.0.2.1/32")),
        ("0.0.0.0/0", IPv4Network("0.0.0.0/0")),
        ("2001:DB8::/32", IPv6Network("2001:db8::/32")),
        ("::1", IPv6Network("::1/128")),
        ("::/0", IPv6Network("::/0")),
        ("::fffe:0:0/95", IPv6Network("::fffe:0:0/95")),
    ],
)
def test_a_network_is_a_prefix_or_one_address(text: str, expected: Network) -> None:
    assert limits.network(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.1/8", "'10.0.0.1/8' has bits set behind its prefix (did you mean '10.0.0.0/8'?)"),
        ("2001:db8::1/32", "has bits set behind its prefix (did you mean '2001:db8::/32'?)"),
        ("::ffff:10.0.0.0/104", "'::ffff:10.0.0.0/104' is a network of IPv4 (write '10.0.0.0/8')"),
        ("::ffff:192.0.2.1", "is a network of IPv4 (write '192.0.2.1/32')"),
        ("all", "'all' is not a network (expected, for example, 10.0.0.0/8, 192.0.2.1 or 2001:db8::/32)"),
        ("10/8", "is not a network"),
        ("10.0.0.0/33", "is not a network"),
        ("10.0.0.0/", "is not a network"),
        ("10.0.0.0/255.0.0.0", "is not a network"),
        ("10.0.0.0/8/8", "is not a network"),
        ("fe80::1%eth0", "is not a network"),
        ("[::1]", "is not a network"),
        ("example.com", "is not a network"),
        ("", "is not a network"),
    ],
)
def test_what_is_no_network_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        limits.network(text)
    assert message in str(caught.value)


@given(st.ip_addresses(), st.integers(0, 128))
def test_a_network_reads_back_as_itself_and_a_host_in_it_leads_to_it(address: object, prefix: int) -> None:
    network = ip_network(f"{address}/{min(prefix, 32 if '.' in str(address) else 128)}", strict=False)
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped:
        return
    assert limits.network(str(network)) == network
    if str(address) != str(network.network_address):
        with pytest.raises(BadValue, match=re.escape(f"(did you mean '{network}'?)")):
            limits.network(f"{address}/{network.prefixlen}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50/s", Rate(50.0, 50)),
        ("300/m", Rate(5.0, 300)),
        ("1800/h", Rate(0.5, 1800)),
        ("1/h", Rate(1 / 3600, 1)),
        ("50/s burst=100", Rate(50.0, 100)),
        ("300/m  burst=5", Rate(5.0, 5)),
    ],
)
def test_a_rate_is_a_number_in_a_time_and_a_burst(text: str, expected: Rate) -> None:
    assert limits.rate(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("50", "'50' is not a rate (expected, for example, 50/s, 300/m or 1000/h)"),
        ("50/d", "is not a rate"),
        ("1.5/s", "is not a rate"),
        ("50 / s", "'50' is not a rate"),
        ("0/s", "'0/s' is too small (expected more than zero)"),
        ("50/s burst=0", "burst: '0' is not a whole number from 1 to 1000000000"),
        ("50/s brust=5", "unknown word 'brust' (did you mean 'burst'?)"),
        ("50/s 100", "unknown word '100' (known: burst)"),
    ],
)
def test_what_is_no_rate_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        limits.rate(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64k/s", Rate(65536.0, 65536)),
        ("2048/s", Rate(2048.0, 2048)),
        ("60K/m", Rate(1024.0, 61440)),
        ("1m/h burst=4k", Rate((1 << 20) / 3600, 4096)),
        ("100/s burst=1k", Rate(100.0, 1024)),
    ],
)
def test_a_rate_of_bytes_is_a_size_in_a_time_and_a_burst(text: str, expected: Rate) -> None:
    assert limits.byte_rate(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("64k", "'64k' is not a rate of bytes (expected, for example, 64k/s or 10m/m)"),
        ("64 k/s", "'64' is not a rate of bytes"),
        ("64k/d", "'64k/d' is not a rate of bytes"),
        ("0/s", "'0' is too small (expected more than zero)"),
        ("100/s", "a burst of 100 bytes is too small (expected at least 1k, such as burst=64k)"),
        ("64k/s burst=1000", "a burst of 1000 bytes is too small"),
        ("64k/s burst=x", "burst: 'x' is not a size"),
        ("64k/s brust=1m", "unknown word 'brust' (did you mean 'burst'?)"),
    ],
)
def test_what_is_no_rate_of_bytes_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        limits.byte_rate(text)
    assert message in str(caught.value)


@given(st.text(min_size=1).filter(lambda text: bool(text.strip())))
def test_any_text_is_a_value_or_a_bad_value(text: str) -> None:
    for parse in (limits.network, limits.rate, limits.byte_rate):
        for written in (text, f"10.0.0.0/{text}", f"5/s {text}"):
            try:
                parse(written)
            except BadValue:
                pass
