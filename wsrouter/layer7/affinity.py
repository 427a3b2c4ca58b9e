"""What binds a request to a backend: the key that ``balance = hash`` looks at, the sticky cookie, the PROXY header."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Protocol

from wsrouter.backends.pool import BackendPool
from wsrouter.config.values import BalanceKey, KeySource
from wsrouter.layer7.site import Request
from wsrouter.policy.members import Member
from wsrouter.policy.stickiness import StickyCookie, cookie_value
from wsrouter.wire.forwarding import Pair


class Affinity(NamedTuple):
    """What one request asks of the choice of its backend, and what of the connection to it."""

    #: For ``balance = hash``.
    key: bytes | None = None
    #: The backend that the client's sticky cookie names, if it is still of the pool.
    preferred: Member | None = None
    #: What opens the connection to the backend; one with a preface belongs to this client alone.
    preface: bytes = b""
    #: The sticky cookie of the pool, and whether the client's connection has TLS.
    sticky: StickyCookie | None = None
    secure: bool = False

    def cookie(self, member: Member) -> Pair | None:
        """The Set-Cookie field that binds the client to ``member``; None where it is bound already, or never is.

        A cookie with an age is set anew each time, so that it lasts while it is used.
        """
        sticky = self.sticky
        if sticky is None or (self.preferred is member and not sticky.ages):
            return None
        return (b"Set-Cookie", sticky.set_cookie(member, self.secure))


class ClientEnd(Protocol):
    """A client's leg, or the request that came over it."""

    def getHost(self) -> Any:
        """The router's own address there, as Twisted has it."""


_NONE: Final = Affinity()


def affinity_of(pool: BackendPool, request: Request, client: ClientEnd) -> Affinity:
    """The affinity of ``request`` in ``pool``; ``client`` is asked for the router's end of the client's connection."""
    config, sticky = pool.config, pool.sticky
    if config.key is None and sticky is None and config.send_proxy is None:
        return _NONE
    return Affinity(
        None if config.key is None else _key(config.key, request),
        None if sticky is None else sticky.member_of(_cookies(request)),
        b"" if config.send_proxy is None else request.connection.preface(config.send_proxy, client.getHost()),
        sticky,
        request.scheme == "https",
    )


def _key(key: BalanceKey, request: Request) -> bytes | None:
    match key.source:
        case KeySource.CLIENT_IP:
            return request.client_ip.encode()
        case KeySource.PATH:
            return request.target.path.encode()
        case KeySource.HEADER:
            return request.head.first(key.name.encode())
        case KeySource.COOKIE:
            return cookie_value(_cookies(request), key.name.encode())
        case KeySource.QUERY:
            return _parameter(request.target.query or b"", key.name.encode())
        case KeySource.SNI:
            return (request.connection.sni or "").encode()
        case KeySource.JSON:
            return None  # of each message; an opening handshake has none


def _cookies(request: Request) -> bytes:
    return b"; ".join(request.head.all(b"cookie"))


def _parameter(query: bytes, name: bytes) -> bytes | None:
    """The value of the first query parameter of that name, as it was sent."""
    for pair in query.split(b"&"):
        known, _, value = pair.partition(b"=")
        if known == name:
            return value
    return None
