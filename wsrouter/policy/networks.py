"""Addresses and networks: who is let in, turned away, believed.

An address comes as text, from the kernel or from a header. IPv4 addresses mapped into IPv6 (RFC 4291 2.5.5.2) are
IPv4 addresses here, networks of them too, so that a dual-stack socket is no way around a rule. ``::/0`` is then every
IPv6 address and no IPv4 one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from wsrouter.config.values import Network

#: Stands for the address of a client that has none: it came through a unix socket.
UNIX = "unix"
#: The longest text of an address: an IPv6 one whose last 32 bits are written as IPv4.
LONGEST_ADDRESS = 45
#: IPv6 addresses lie behind the IPv4 ones on one line of numbers.
IPV6 = 1 << 128
_MAPPED = 0xFFFF << 32


# A connection asks several times for the same address: limits, lists, trust. The size bounds what strangers can fill.
@lru_cache(maxsize=4096)
def number_of(ip: str) -> int | None:
    """One number for an address: IPv4 below 2**32, IPv6 from ``IPV6`` on; None for what is no address (``unix``).

    A zone (RFC 4007 11) is not part of an address: with one it is none.
    """
    try:
        if ":" not in ip:
            return int(IPv4Address(ip))
        if "%" in ip:
            return None
        number = int(IPv6Address(ip))
    except ValueError:
        return None
    return number & 0xFFFFFFFF if number >> 32 == 0xFFFF else IPV6 | number


def canonical(ip: str) -> str | None:
    """The address in the one form in which the router writes it (RFC 5952; mapped ones as IPv4); None if it is none."""
    if len(ip) > LONGEST_ADDRESS:
        return None
    number = number_of(ip)
    return None if number is None else text_of(number)


def text_of(number: int) -> str:
    """The text of an address from its ``number_of``."""
    return str(IPv6Address(number ^ IPV6) if number >= IPV6 else IPv4Address(number))


class Networks:
    """A set of networks, made once; asking costs one search among sorted ranges, however many there are."""

    __slots__ = ("_first", "_last")

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._first: list[int] = []
        self._last: list[int] = []
        for first, last in sorted(map(_range, networks)):
            if self._last and first <= self._last[-1] + 1:
                self._last[-1] = max(self._last[-1], last)
            else:
                self._first.append(first)
                self._last.append(last)

    def __contains__(self, ip: str) -> bool:
        """Whether the address lies in one of the networks; what is no address lies in none."""
        if not self._first:
            return False
        number = number_of(ip)
        if number is None:
            return False
        at = bisect_right(self._first, number) - 1
        return at >= 0 and number <= self._last[at]

    def __bool__(self) -> bool:
        return bool(self._first)


def allowed(ip: str, allow: Networks, deny: Networks) -> bool:
    """Whether a client may come in: never from ``deny``, and only from ``allow`` where that names any.

    A client without an address (``unix``) is in no network: it passes where ``allow`` is empty, and only there. Who may
    connect to a unix socket is said by the permissions of its file.
    """
    return ip not in deny and (not allow or ip in allow)


def believed(peer: str, trusted: Networks) -> bool:
    """Whether what a peer says of others is believed.

    A peer on a unix socket has no address to be trusted by. The permissions of the socket's file let it in, so it is
    believed where anybody is.
    """
    return peer in trusted or (peer == UNIX and bool(trusted))


class Access:
    """The ``allow`` and ``deny`` of one listener, route or tunnel, made once."""

    __slots__ = ("_allow", "_deny")

    def __init__(self, allow: Iterable[Network], deny: Iterable[Network]) -> None:
        self._allow = Networks(allow)
        self._deny = Networks(deny)

    def __bool__(self) -> bool:
        """Whether anybody is kept out."""
        return bool(self._allow) or bool(self._deny)

    def admits(self, ip: str) -> bool:
        """Whether a client may come in; see ``allowed``."""
        return allowed(ip, self._allow, self._deny)


class Ruled(Protocol):
    """What has access lists: a route, a tunnel rule."""

    @property
    def name(self) -> str:
        """Its name, unique among its kind."""

    @property
    def allow(self) -> tuple[Network, ...]:
        """Whom it serves; empty for all."""

    @property
    def deny(self) -> tuple[Network, ...]:
        """Whom it never serves."""


def access_of(rules: Iterable[Ruled]) -> dict[str, Access]:
    """The lists of each rule that has any, by its name."""
    return {rule.name: Access(rule.allow, rule.deny) for rule in rules if rule.allow or rule.deny}


def _range(network: Network) -> tuple[int, int]:
    """The first and last number of a network."""
    first, last = int(network.network_address), int(network.broadcast_address)
    if network.version == 4:
        return first, last
    if network.prefixlen >= 96 and first & ~0xFFFFFFFF == _MAPPED:
        return first ^ _MAPPED, last ^ _MAPPED
    return IPV6 | first, IPV6 | last
