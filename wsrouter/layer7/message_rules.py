"""What the message sessions of one route have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wsrouter.config import values
from wsrouter.config.values import Compression
from wsrouter.layer7.filters import Filters, IMessageFilter
from wsrouter.layer7.sides import factories
from wsrouter.wire.opening import own_answer


@dataclass(frozen=True, slots=True)
class MessageRules:
    """Made once for a route, when its configuration is put in force; its sessions keep it."""

    #: The largest message, uncompressed, in bytes.
    limit: int
    compression: Compression
    filters: Filters
    #: Autobahn's, for the side of the client and for that of the backend.
    server_factory: Any
    client_factory: Any

    @classmethod
    def of(cls, route: values.Route, filters: Sequence[tuple[str, IMessageFilter]], reactor: Any) -> MessageRules:
        """The rules of a route; ``filters`` are its own by name, in order."""
        limit = route.max_message
        assert limit is not None
        return cls(limit, route.compression, Filters(filters, limit), *factories(reactor, limit))

    @property
    def backend_offers(self) -> tuple[bytes, ...]:
        """The extensions that the router offers to backends; they may ask for a smaller window (RFC 7692 7.1.2.2)."""
        return (b"permessage-deflate; client_max_window_bits",) if self.compression is Compression.BOTH else ()

    def taken_offer(self, offers: tuple[bytes, ...]) -> bytes | None:
        """Which of a client's offers of permessage-deflate the router takes up, as ``own_answer`` writes it."""
        return None if self.compression is Compression.OFF else own_answer(offers)
