"""The way of an answer to the client."""

from __future__ import annotations

from typing import Final, Protocol

from twisted.internet.interfaces import IPullProducer, IPushProducer
from twisted.web import http
from twisted.web.http_headers import Headers
from zope.interface import classImplements

from wsrouter.layer7.quiet import Quiet

_HOP_BY_HOP: Final = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"upgrade"))


class ClientTransport(Protocol):
    """What an exchange asks of the client's connection; Twisted's transports and the relay's legs have it."""

    def write(self, data: bytes) -> None:
        """Send ``data``."""
        ...

    def pauseProducing(self) -> None:
        """Stop reading."""
        ...

    def resumeProducing(self) -> None:
        """Read on."""
        ...

    def abortConnection(self) -> None:
        """Reset the connection."""
        ...

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """Pause ``producer`` while the client is slow, or ask it for more where it does not stream."""
        ...

    def unregisterProducer(self) -> None:
        """The producer is done."""
        ...


class Valve:
    """Stands between the answer's producer and the client, and notices a client that takes nothing."""

    def __init__(self, producer: IPushProducer | IPullProducer, streaming: bool, stall: Quiet) -> None:
        self._producer: IPushProducer | IPullProducer | None = producer
        self._streaming = streaming
        self._stall = stall
        if not streaming:
            stall.start()

    def pauseProducing(self) -> None:
        """The client takes no more for now."""
        if self._producer is not None:
            self._stall.start()
            self._producer.pauseProducing()  # type: ignore[union-attr]

    def resumeProducing(self) -> None:
        """The client takes more."""
        if self._streaming:
            self._stall.stop()
        else:
            self._stall.touch()
        if self._producer is not None:
            self._producer.resumeProducing()

    def stopProducing(self) -> None:
        """The client has gone; the producer is told once."""
        self._stall.stop()
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()


classImplements(Valve, IPushProducer)


def answer_head(code: bytes, reason: bytes, headers: Headers, connection: bytes | None) -> bytes:
    """An answer's head: what a handler set, less hop-by-hop fields, dated, with ``connection`` as Connection.

    The version is our own whatever the client's is (RFC 9110 2.5).
    """
    lines = [b"HTTP/1.1 %b %b\r\n" % (code, reason)]
    if not headers.hasHeader(b"Date"):
        lines.append(b"Date: %b\r\n" % http.datetimeToString())  # type: ignore[no-untyped-call]
    for name, values in headers.getAllRawHeaders():
        if name.lower() not in _HOP_BY_HOP:
            lines += [b"%b: %b\r\n" % (name, value) for value in values]
    if connection is not None:
        lines.append(b"Connection: %b\r\n" % connection)
    return b"".join(lines) + b"\r\n"
