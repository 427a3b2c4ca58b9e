"""Who the client of a request is, where it came through proxies that are trusted.

Each proxy appends the address that it was reached from, so the right end of the list is the youngest. The walk
begins with the peer itself and goes left for as long as the address that it stands on is trusted: only a trusted
proxy's word on who reached it is believed. It ends on the first address that is not trusted: that is the client, and
what stands to the left of it is the client's own claim, worth nothing. An entry that is no address ends the walk on the
last good one.
(nginx does the same with ``real_ip_recursive on``.)

``X-Forwarded-For`` goes before ``Forwarded`` (RFC 7239), and one is never completed from the other. Proxies that write
only the former let the latter pass as the client sent it; those that write only the latter are rare, and must
take ``X-Forwarded-For`` away. ``X-Real-IP`` counts where there is neither: its one address stands for a list of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal, TypeAlias

from wsrouter.policy.networks import LONGEST_ADDRESS, Networks, believed, canonical

Scheme: TypeAlias = Literal["http", "https"]

#: The most proxies that are walked past.
MAX_HOPS: Final = 32

#: What a Host may be; the same as for the Host field itself (``wire.target.AUTHORITY``).
HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
#: Some proxies (Traefik) name the schemes of WebSockets.
_SCHEMES: dict[bytes, Scheme] = {b"http": "http", b"https": "https", b"ws": "http", b"wss": "https"}
#: An address, perhaps with a port: IPv6 in brackets, IPv4, or IPv6 without brackets and then without a port.
_NODE: Final = re.compile(
    rb"(?:\[(?P<six>[0-9A-Fa-f]*:[0-9A-Fa-f:.]+)\]|(?P<four>[0-9.]+))(?::[0-9]{1,5})?"
    rb"|(?P<bare>[0-9A-Fa-f]*:[0-9A-Fa-f:.]+)"
)
#: One parameter of an element of Forwarded, or none (RFC 7239 4). Some write addresses without quotes, or blanks around
#: the semicolon: both are harmless.
_PARAMETER: Final = re.compile(
    rb"[ \t]*(?:(?P<name>[!#$%&'*+\-.^_`|~0-9A-Za-z]+)="
    rb"(?:(?P<token>[!#$%&'*+\-.^_`|~0-9A-Za-z:\[\]]+)|\"(?P<quoted>(?:[^\"\\]|\\.)*)\")[ \t]*)?(?:;|\Z)",
    re.DOTALL,
)
_PORT: Final = re.compile(rb"[0-9]{1,5}")
_QUOTED_PAIR: Final = re.compile(rb"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Effective:
    """The client of a request, as far as it is believed."""

    #: The client's address in canonical form; that of the peer where nobody says another.
    ip: str
    #: The scheme and the authority of the client's own request; None where nothing valid is said of them.
    proto: Scheme | None = None
    host: str | None = None
    #: Whose addresses were believed, the client first, then the proxies behind it; without the peer, so empty where
    #: the peer is the client.
    chain: tuple[str, ...] = ()
    #: The port that the client came to; None where nothing valid is said of it.
    port: int | None = None
    #: Whether the peer has sent X-Real-IP, whatever it said: backends may look for it.
    real_ip: bool = False


@dataclass(frozen=True, slots=True)
class _Hop:
    """What one proxy says of who reached it."""

    ip: str
    proto: Scheme | None = None
    host: str | None = None


def effective(
    peer: str,
    trusted: Networks,
    forwarded_for: Sequence[bytes],
    forwarded: Sequence[bytes] = (),
    forwarded_proto: Sequence[bytes] = (),
    forwarded_host: Sequence[bytes] = (),
    forwarded_port: Sequence[bytes] = (),
    real_ip: Sequence[bytes] = (),
) -> Effective:
    """Find the client of a request that came from ``peer``.

    ``peer`` is the address of the connection, after its PROXY header if it had one; ``unix`` on a unix socket, see
    ``networks.believed``. The others are the values of
    ``X-Forwarded-For``, ``Forwarded``, ``X-Forwarded-Proto``, ``X-Forwarded-Host``, ``X-Forwarded-Port`` and
    ``X-Real-IP``, in the order of their lines.
    An untrusted peer is the client, whatever it sends. Scheme, host, port and the real address are believed if exactly
    one is given: of several, nobody can tell who wrote which. Nothing is raised for what is malformed.
    """
    if not believed(peer, trusted):
        return Effective(peer)
    if forwarded and not forwarded_for:
        hops = _walk(trusted, map(_element, _members(forwarded)))
        if not hops:
            return Effective(peer, real_ip=bool(real_ip))
        return Effective(hops[-1].ip, hops[-1].proto, hops[-1].host, _chain(hops), real_ip=bool(real_ip))
    if real_ip and not forwarded_for:
        hop = _address(real_ip[0]) if len(real_ip) == 1 else None
        hops = [] if hop is None else [hop]
    else:
        hops = _walk(trusted, map(_address, _members(forwarded_for)))
    proto = _scheme(forwarded_proto[0]) if len(forwarded_proto) == 1 else None
    host = _host(forwarded_host[0]) if len(forwarded_host) == 1 else None
    port = _port(forwarded_port[0]) if len(forwarded_port) == 1 else None
    return Effective(hops[-1].ip if hops else peer, proto, host, _chain(hops), port, bool(real_ip))


def _walk(trusted: Networks, hops: Iterator[_Hop | None]) -> list[_Hop]:
    """The hops that are believed, the youngest first."""
    walked: list[_Hop] = []
    for hop in hops:
        if hop is None:
            break
        walked.append(hop)
        if hop.ip not in trusted:
            break
    return walked


def _chain(hops: list[_Hop]) -> tuple[str, ...]:
    return tuple([hop.ip for hop in reversed(hops)])


def _members(values: Sequence[bytes]) -> Iterator[bytes]:
    """The members of a list, the last first, empty ones left out (RFC 9110 5.6.1.2), ``MAX_HOPS`` at most."""
    members = (member for value in reversed(values) for member in reversed(value.split(b",")))
    return islice(filter(None, (member.strip(b" \t") for member in members)), MAX_HOPS)


def _element(element: bytes) -> _Hop | None:
    """What one element of Forwarded says; None if it is malformed or names no address.

    Elements were cut at every comma, those in quotes too. The last piece of such an element has a lone quote and is
    malformed, so the walk ends before it comes to what stood inside the quotes.
    """
    parameters: dict[bytes, bytes] = {}
    at = 0
    while at < len(element):
        found = _PARAMETER.match(element, at)
        if found is None:
            return None
        at = found.end()
        if found["name"] is None:
            continue
        name = found["name"].lower()
        if name in parameters:
            return None  # RFC 7239 4 forbids it, because readers differ on which one holds
        quoted = found["quoted"]
        parameters[name] = found["token"] if quoted is None else _QUOTED_PAIR.sub(rb"\1", quoted)
    hop = _address(parameters.get(b"for", b""))
    if hop is None:
        return None
    return _Hop(hop.ip, _scheme(parameters.get(b"proto", b"")), _host(parameters.get(b"host", b"")))


def _address(node: bytes) -> _Hop | None:
    """An address with or without a port; None for anything else, ``unknown`` and hidden names among it (RFC 7239 6)."""
    if len(node) > LONGEST_ADDRESS + len("[]:65535"):
        return None
    found = _NODE.fullmatch(node)
    if found is None:
        return None
    ip = canonical((found["six"] or found["four"] or found["bare"]).decode("ascii"))
    return None if ip is None else _Hop(ip)


def _scheme(value: bytes) -> Scheme | None:
    return _SCHEMES.get(value.lower())


def _host(value: bytes) -> str | None:
    return value.decode("ascii") if HOST.fullmatch(value) else None


def _port(value: bytes) -> int | None:
    return int(value) if _PORT.fullmatch(value) and 0 < int(value) < 65536 else None
