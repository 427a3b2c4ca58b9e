"""What is known of a client connection from the moment it is accepted."""

from __future__ import annotations

from dataclasses import dataclass

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress

from wsrouter.backends.preface import proxy_preface
from wsrouter.config.values import SendProxy
from wsrouter.relay.leg import Leg
from wsrouter.wire.proxy_header import client_tlvs


@dataclass(slots=True)
class Connection:
    """A client connection: who, through which listener, and what its TLS said."""

    #: The registry's number; logs name the connection by it.
    number: int
    #: The client's address; ``unix`` for a unix socket.
    ip: str
    port: int
    #: The listener's name.
    listener: str
    #: The server name of the ClientHello, normalised; None without TLS or without one.
    sni: str | None = None
    #: TLS was ended at the router.
    secure: bool = False
    #: The subject of the client's certificate (RFC 4514), or empty.
    client_subject: str = ""

    @property
    def client(self) -> str:
        """Address and port for logs."""
        if not self.port:
            return self.ip
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"

    def preface(self, form: SendProxy, near: IAddress) -> bytes:
        """The PROXY header that tells a backend of this client; ``near`` is the router's own end of the connection."""
        source = (self.ip, self.port) if self.port else None
        destination = (near.host, near.port) if isinstance(near, IPv4Address | IPv6Address) else None
        return proxy_preface(form, source, destination, client_tlvs(self.sni))


def connection_of(leg: Leg, number: int, listener: str) -> Connection:
    """The connection behind a leg that was just accepted."""
    peername = leg.peername
    if not isinstance(peername, tuple):
        return Connection(number, "unix", 0, listener)
    ip, port = peername[:2]
    # A dual-stack socket reports IPv4 clients as mapped addresses (RFC 4291 2.5.5.2).
    return Connection(number, ip.removeprefix("::ffff:") if "." in ip else ip, port, listener)
