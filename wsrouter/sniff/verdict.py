"""What sniffing decides about a connection."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tls:
    """The connection opens with a ClientHello.

    ``sni`` is the host name asked for, in lower case and without a final dot; None when the client named no host
    or an IP literal, which RFC 6066 section 3 does not permit as a name and which selects nothing. ``alpn`` holds the
    offered protocol names in the client's order (RFC 7301), decoded as latin-1 so that every byte survives.
    """

    sni: str | None
    alpn: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Http:
    """The connection opens with an HTTP/1 request line."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """Bytes of no known protocol; ``silent`` when the deadline came before the first byte did.

    The bytes alone never say ``silent``: whoever holds the deadline does.
    """

    silent: bool = False


Verdict = Tls | Http | Opaque
