"""What is known of a client connection from the moment it is accepted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress

from wsrouter.backends.preface import proxy_preface
from wsrouter.config.values import SendProxy
from wsrouter.policy.networks import UNIX
from wsrouter.relay.leg import Leg
from wsrouter.wire.proxy_header import CRC32C, NOOP, Address, Tlv, client_tlvs


@dataclass(frozen=True, slots=True)
class Announced:
    """What a PROXY header said of a connection beyond its client, and who sent it."""

    #: The address of the proxy; ``unix`` for a unix socket.
    peer_ip: str
    #: Where the client had connected to; None where the header does not tell.
    destination: Address | None
    #: Further facts (version 2), in the order they came.
    tlvs: tuple[Tlv, ...]


@dataclass(slots=True)
class Connection:
    """A client connection: who, through which listener, and what its TLS said."""

    #: The registry's number; logs name the connection by it.
    number: int
    #: The client's address, from the PROXY header where there was one; ``unix`` for a unix socket. An HTTP proxy that
    #: is trusted may speak for others still: who they are is known for each request.
    ip: str
    port: int
    #: The listener's name.
    listener: str
    #: What that listener demanded when the connection came in; see ``Listener.epoch``.
    epoch: Any = None
    #: The server name of the ClientHello, normalised; None without TLS or without one.
    sni: str | None = None
    #: TLS was ended at the router.
    secure: bool = False
    #: The subject of the client's certificate (RFC 4514), or empty.
    client_subject: str = ""
    #: What the PROXY header said; None without one.
    announced: Announced | None = None

    @property
    def peer_ip(self) -> str:
        """The address at the other end of the socket: the proxy's where a PROXY header came, else ``ip``."""
        return self.ip if self.announced is None else self.announced.peer_ip

    @property
    def client(self) -> str:
        """Address and port for logs."""
        if not self.port:
            return self.ip
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"

    def preface(self, form: SendProxy, near: IAddress) -> bytes:
        """The PROXY header that tells a backend of this client; ``near`` is the router's own end of the connection."""
        source = (self.ip, self.port) if self.port else None
        tlvs = client_tlvs(self.sni)
        announced = self.announced
        if announced is None:
            destination = (near.host, near.port) if isinstance(near, IPv4Address | IPv6Address) else None
        else:
            destination = announced.destination
            # What a proxy in front has said goes on, but for what the router knows itself or has to count anew.
            ours = {kind for kind, _ in tlvs} | {CRC32C, NOOP}
            tlvs += tuple([tlv for tlv in announced.tlvs if tlv[0] not in ours])
        return proxy_preface(form, source, destination, tlvs)


def connection_of(leg: Leg, number: int, listener: str, epoch: object = None) -> Connection:
    """The connection behind a leg that was just accepted."""
    peername = leg.peername
    if not isinstance(peername, tuple):
        return Connection(number, UNIX, 0, listener, epoch)
    ip, port = peername[:2]
    # A dual-stack socket reports IPv4 clients as mapped addresses (RFC 4291 2.5.5.2).
    return Connection(number, ip.removeprefix("::ffff:") if "." in ip else ip, port, listener, epoch)
