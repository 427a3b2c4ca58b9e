"""One plain request on one connection to a backend.

``twisted.web.client.HTTPConnectionPool`` keeps the connections and frames the bodies of answers. Two things stand
around it, because its own counterparts do not serve a proxy:

- ``Outgoing`` is the request that ``HTTP11ClientProtocol`` writes. The target and the fields go out byte for byte
  (``Agent`` parses a URI and puts it together again), and an answer may come while the body is still being sent.
- ``Upstream`` sits between connection and protocol. It holds an answer's head back until it is whole and parses it
  strictly, drops interim answers, and lets nothing of a malformed answer or of a 101 through.

A kept connection serves one client after another, so a byte that a backend sends behind the end of an answer would be
the beginning of a stranger's answer. ``Upstream`` therefore reads along where each answer ends. A connection is kept
only while nothing has come behind that end, and it is used again only if nothing lies unread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IPushProducer, IStreamClientEndpoint, ITransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IClientRequest
from zope.interface import implementer

from wsrouter.errors import BackendError, HttpError
from wsrouter.layer7.intake import RequestBody
from wsrouter.layer7.quiet import Quiet
from wsrouter.layer7.request import PlainRequest
from wsrouter.relay.leg import Leg
from wsrouter.wire.body import Body, ChunkedBody, LengthBody
from wsrouter.wire.head import ResponseHead, cut_response, parse_response


class Upstream(ProtocolWrapper):
    """A connection to a backend, kept over many requests."""

    #: How many requests were sent on it.
    uses = 0
    #: The answer's head, once it is whole.
    head: ResponseHead | None = None
    #: What was wrong with the answer.
    fault: BackendError | None = None
    #: Any byte of an answer has come.
    heard = False
    #: Why the connection ended, if not in order.
    broken: Failure | None = None
    _waiting: bytearray | None = None
    _to_head = False
    #: Reads the answer's body; None where its end, if it has one but the connection's, cannot be told.
    _body: Body | None = None
    _surplus = False

    def expect(self, method: bytes) -> None:
        """A request follows: the next bytes are its answer's head."""
        self.uses += 1
        self.head = self.fault = None
        self.heard = False
        self._waiting = bytearray()
        self._to_head = method == b"HEAD"
        self._body = None

    @property
    def reusable(self) -> bool:
        """The answer is whole, nothing has come behind it, and nothing need be feared to come."""
        head = self.head
        if head is None or self._body is None or not self._body.done or self._surplus:
            return False
        # Some backends send the body all the same, and it may come too late to be seen here.
        return head.keep_alive and not (self._is_bodiless(head) and (head.chunked or head.content_length))

    @property
    def ready(self) -> bool:
        """Whether a request may be sent now. What lies unread is no answer to it; only a ``Leg`` tells of that."""
        if not self.uses:
            return True
        if not self.reusable or self.transport.disconnecting:  # type: ignore[union-attr]
            return False
        transport: object = self.transport
        return not (isinstance(transport, Leg) and transport.has_unread())

    def dataReceived(self, data: bytes) -> None:
        self.heard = True
        if self._waiting is None:
            self._follow(data)
            return
        self._waiting += data
        try:
            answer = self._whole_head(self._waiting)
        except BackendError as error:
            self.fault = error
            self.abort()
            return
        if answer is not None:
            self._waiting = None
            # The protocol asks whether the connection is reusable before it returns.
            super().dataReceived(answer)  # type: ignore[no-untyped-call]

    def _follow(self, data: bytes) -> None:
        """Pass on more of an answer; what belongs to none ends the connection."""
        if self.head is None or (self._body is not None and self._body.done):
            self._surplus = True
            self.abort()
            return
        self._read_along(data)
        super().dataReceived(data)  # type: ignore[no-untyped-call]

    def _read_along(self, data: bytes) -> None:
        if self._body is not None:
            try:
                _, rest = self._body.feed(data)
            except HttpError:
                self._body = None  # the protocol may see an end all the same, but not a certain one
            else:
                self._surplus = bool(rest)

    def _is_bodiless(self, head: ResponseHead) -> bool:
        """Whether the answer ends with its head, whatever that says (RFC 9112 6.3)."""
        return self._to_head or head.status in (204, 304)

    def _body_of(self, head: ResponseHead) -> Body | None:
        if self._is_bodiless(head):
            return LengthBody(0)
        if head.chunked:
            return ChunkedBody()
        return None if head.content_length is None else LengthBody(head.content_length)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not isinstance(reason.value, ConnectionDone):
            self.broken = reason
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    def abort(self) -> None:
        """Close it at once."""
        self.transport.abortConnection()  # type: ignore[union-attr]

    def _whole_head(self, waiting: bytearray) -> bytes | None:
        """The answer from its final head on, or None while that is not whole. Raises BackendError."""
        while (end := cut_response(waiting)) is not None:
            head = parse_response(bytes(waiting[:end]))
            if head.status == 101:
                raise BackendError(502, "the backend switched protocols, which nobody asked for")
            if head.status >= 200:
                self.head = head
                self._body = self._body_of(head)
                self._read_along(bytes(waiting[end:]))
                return bytes(waiting)
            del waiting[:end]
        return None


@implementer(IStreamClientEndpoint)
class UpstreamEndpoint:
    """An endpoint whose connections are ``Upstream``s."""

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; fires with what ``protocolFactory`` builds, whose transport is the ``Upstream``."""
        factory = WrappingFactory(protocolFactory)  # type: ignore[no-untyped-call]
        factory.protocol = Upstream
        return self._endpoint.connect(factory).addCallback(_unwrapped)


def _unwrapped(upstream: IProtocol) -> IProtocol:
    assert isinstance(upstream, Upstream)
    return upstream.wrappedProtocol


@implementer(IClientRequest, IPushProducer)
class Outgoing:
    """A request as ``HTTP11ClientProtocol`` writes it, its body as it comes from the client.

    ``may_last`` tells, when the answer has ended, whether the connection may be kept.
    """

    absoluteURI = None

    def __init__(
        self,
        method: bytes,
        lines: Sequence[bytes],
        body: RequestBody,
        quiet: Quiet,
        may_last: Callable[[], bool],
    ) -> None:
        self.method = method
        self.headers = Headers()
        self._lines = lines
        self._body = body
        self._quiet = quiet
        self._may_last = may_last
        self._transport: ITransport | None = None
        #: The whole body is written.
        self.complete = body.length == 0
        self._paused = False

    @property
    def persistent(self) -> bool:
        """Read by the protocol when the answer has ended: a request cut short spoils its connection."""
        return self.complete and self._may_last()

    @property
    def awaits_client(self) -> bool:
        """More of the body is to come, and it is the client who has not sent it."""
        return not self.complete and not self._paused

    def writeTo(self, transport: ITransport) -> Deferred[None]:
        """Write the head and begin with the body. It counts as written at once, so that an early answer is seen."""
        transport.write(b"".join(self._lines))
        if not self.complete:
            self._transport = transport
            transport.registerProducer(self, True)  # type: ignore[attr-defined]
            self._body.start(self)
        return succeed(None)

    def stopWriting(self) -> None:
        """Part of what the protocol expects; a request that counts as written has nothing to stop."""

    def stop(self) -> None:
        """No more of the body is wanted."""
        transport, self._transport = self._transport, None
        if transport is not None:
            self._body.discard()
            transport.unregisterProducer()  # type: ignore[attr-defined]
            transport.abortConnection()  # type: ignore[attr-defined]

    # The body's reader.

    def body_data(self, data: bytes) -> None:
        """Pass it on."""
        self._quiet.touch()
        if self._transport is not None:
            self._transport.write(data if self._body.length is not None else b"%x\r\n%b\r\n" % (len(data), data))

    def body_end(self) -> None:
        """The request is whole."""
        transport, self._transport = self._transport, None
        if transport is not None:
            if self._body.length is None:
                transport.write(b"0\r\n\r\n")
            self.complete = True
            transport.unregisterProducer()  # type: ignore[attr-defined]

    def body_failed(self, error: Exception) -> None:
        """It will never be whole: the backend must not take it for that."""
        self.stop()

    # The producer that the backend's connection pauses.

    def pauseProducing(self) -> None:
        """The backend is slow."""
        self._paused = True
        self._body.pause()

    def resumeProducing(self) -> None:
        """The backend takes more."""
        self._paused = False
        self._quiet.touch()
        self._body.resume()

    def stopProducing(self) -> None:
        """The connection to the backend is lost."""
        self._transport = None
        self._body.discard()


@implementer(IPushProducer)
class Delivery(Protocol):
    """An answer's body on its way to the client. ``ended`` fires with whether it is whole."""

    def __init__(self, request: PlainRequest, upstream: Upstream, quiet: Quiet) -> None:
        self._request = request
        self._upstream = upstream
        self._quiet = quiet
        self.ended: Deferred[bool] = Deferred(self._cancelled)

    def dataReceived(self, data: bytes) -> None:
        self._quiet.touch()
        self._request.write(data)  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        # A body that ends with its connection is whole only if that ended in order.
        by_close = isinstance(reason.value, PotentialDataLoss) and self._upstream.broken is None
        if not self.ended.called:
            self.ended.callback(by_close or isinstance(reason.value, ResponseDone))

    def pauseProducing(self) -> None:
        """The client is slow; the exchange watches it, not the backend's silence."""
        self._quiet.stop()
        self.transport.pauseProducing()  # type: ignore[union-attr]

    def resumeProducing(self) -> None:
        """The client takes more."""
        self._quiet.start()
        self.transport.resumeProducing()  # type: ignore[union-attr]

    def stopProducing(self) -> None:
        """The client has gone; what cancels the request ends this too."""

    def _cancelled(self, _: Deferred[bool]) -> None:
        self._upstream.abort()
