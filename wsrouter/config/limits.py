"""Whom a listener lets in, and how often; how much a session may send: networks and rates."""

from __future__ import annotations

import ipaddress
import re

from wsrouter.config.faults import BadValue, quoted
from wsrouter.config.keywords import keywords
from wsrouter.config.scalars import number, size
from wsrouter.config.values import Network, Rate

# ipaddress would also take a mask behind the slash, where 0.0.0.255 means the opposite of 255.255.255.0.
_NETWORK = re.compile(r"[0-9A-Fa-f:.]+(?:/[0-9]{1,3})?")
_RATE = re.compile(r"([0-9]{1,9})/([smh])")
_BYTE_RATE = re.compile(r"([0-9]{1,15}[kmg]?)/([smh])", re.IGNORECASE)
#: The least burst of bytes: a frame's header, or a whole ping, must fit into it at once.
_LEAST_BURST = 1024
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def network(text: str) -> Network:
    """``10.0.0.0/8`` or ``2001:db8::/32``; a single address is a network of one."""
    if not _NETWORK.fullmatch(text):
        raise _no_network(text)
    try:
        found = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise _no_network(text) from None
    if found.network_address != ipaddress.ip_address(text.partition("/")[0]):
        raise BadValue(f"{quoted(text)} has bits set behind its prefix (did you mean '{found}'?)")
    return found if found.version == 4 else _never_mapped(text, found)


def _never_mapped(text: str, found: ipaddress.IPv6Network) -> Network:
    """Clients of IPv4 are compared as such, so a network of IPv4-mapped addresses would hold nobody."""
    mapped = found.network_address.ipv4_mapped
    if mapped is not None and found.prefixlen >= 96:
        raise BadValue(f"{quoted(text)} is a network of IPv4 (write '{mapped}/{found.prefixlen - 96}')")
    return found


def _no_network(text: str) -> BadValue:
    return BadValue(f"{quoted(text)} is not a network (expected, for example, 10.0.0.0/8, 192.0.2.1 or 2001:db8::/32)")


def rate(text: str) -> Rate:
    """``50/s``, ``300/m`` or ``1000/h``, then ``burst=N`` for how many may come at once.

    Without a burst that is the number itself, so that ``300/m`` means what it says: three hundred may come in any
    minute, at once too. One second's share of it would turn away a page that opens six connections.
    """
    amount, *words = text.split()
    found = _RATE.fullmatch(amount)
    if not found:
        raise BadValue(f"{quoted(amount)} is not a rate (expected, for example, 50/s, 300/m or 1000/h)")
    count = int(found[1])
    if not count:
        raise BadValue(f"{quoted(amount)} is too small (expected more than zero)")
    burst = keywords(words, {"burst": number(1, 10**9)}).get("burst", count)
    return Rate(count / _SECONDS[found[2]], burst)


def byte_rate(text: str) -> Rate:
    """``64k/s``, ``10m/m`` or ``1g/h``, then ``burst=SIZE`` for how many bytes may come at once.

    Without a burst that is the size itself. It is at least 1k.
    """
    amount, *words = text.split()
    found = _BYTE_RATE.fullmatch(amount)
    if not found:
        raise BadValue(f"{quoted(amount)} is not a rate of bytes (expected, for example, 64k/s or 10m/m)")
    count = size(found[1])
    burst = keywords(words, {"burst": size}).get("burst", count)
    if burst < _LEAST_BURST:
        raise BadValue(f"a burst of {burst} bytes is too small (expected at least 1k, such as burst=64k)")
    return Rate(count / _SECONDS[found[2].lower()], burst)
