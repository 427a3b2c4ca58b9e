"""One plain HTTP request and its answer, on a connection whose heads the front owns.

The front cuts and parses heads; an exchange gets one, and from then on every byte of the connection until it is
done. Towards ``twisted.web`` it plays the channel of one ``Request``, so that the router alone decides about
HTTP/1.1 framing (RFC 9112) and ``twisted.web`` is handed parsed values only. It is done when the answer is written and
the body was read: what lies behind the body waits in ``rest``, and nobody looks at it before.

The connection lasts behind an answer only if the next head can be found: a body that nobody reads ends the
connection, unless so little of it is missing that reading it is cheaper than a new connection.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress, IPullProducer, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource

from wsrouter.errors import BackendError, HttpError
from wsrouter.layer7.intake import RequestBody
from wsrouter.layer7.outlet import ClientTransport, Valve, answer_head
from wsrouter.layer7.quiet import Deadlines, Quiet
from wsrouter.layer7.request import Handler, PlainRequest
from wsrouter.wire.answer import RETRY_AFTER
from wsrouter.wire.head import RequestHead
from wsrouter.wire.target import Target

#: How much may wait behind the body, in bytes, before the client is paused.
REST_LIMIT = 16 * 1024
#: How much of an unread body is read and dropped to keep the connection, in bytes.
DRAIN_LIMIT = 64 * 1024

_log = Logger()


class _Stage(enum.Enum):
    """How far the answer is."""

    WAITING = enum.auto()
    ANSWERING = enum.auto()
    #: The answer is written, the rest of a small body is awaited.
    DRAINING = enum.auto()
    OVER = enum.auto()


class Exchange:
    """One plain request and its answer.

    ``handler`` is a callable (see ``Handler``) or a ``twisted.web`` resource. ``max_body`` is in bytes;
    ``body_timeout`` in seconds is the longest silence of a client inside its body, and the longest time that it
    may leave an answer unread; None for no limit. ``done`` is called once with whether the connection may carry another
    request, unless the connection is lost before; it may be called from inside ``start`` and ``data``.
    """

    #: ``twisted.web`` asks its channel for both.
    site = None
    factory = None

    def __init__(
        self,
        transport: ClientTransport,
        head: RequestHead,
        target: Target,
        handler: Handler | IResource,
        *,
        secure: bool,
        peer: IAddress,
        host: IAddress,
        deadlines: Deadlines,
        max_body: int,
        body_timeout: float | None,
        done: Callable[[bool], None],
    ) -> None:
        self.transport = transport
        self._head = head
        self._handler = handler
        self._secure = secure
        self._peer = peer
        self._host = host
        self._max_body = max_body
        self._done = done
        self._stage = _Stage.WAITING
        self._reading = True
        self._keep = False
        self._refused = False
        self._continued = False
        self._owed: int | None = None
        self._running: Deferred[object] | None = None
        self._valve: Valve | None = None
        self._silence = Quiet(deadlines, body_timeout, self._body_timed_out)
        self._stall = Quiet(deadlines, body_timeout, self._stalled)
        #: Set it before the answer's head is written to have it say that the connection ends (a drain has begun).
        self.last = False
        #: The bytes that came behind the body: the beginning of the next head.
        self.rest = b""
        #: For the access log: the status once the head is written, the bytes behind it, and why it was refused.
        self.status: int | None = None
        self.sent = 0
        self.refusal: str | None = None
        self.body = RequestBody(head, max_body, self._flow)
        self.request = PlainRequest(self, head, target, self.body)

    # What the front calls.

    def start(self, data: bytes = b"") -> None:
        """Begin; ``data`` is what came behind the head already."""
        if self.body.length is not None and self.body.length > self._max_body:
            self.rest = data
            self._fail(HttpError(413, "the request body is too large"))
            return
        self.data(data)
        if self._stage is not _Stage.WAITING:
            return
        running: Deferred[object] = maybeDeferred(self._handle)
        if not running.called:
            self._running = running
        running.addErrback(self._handler_failed)
        running.addErrback(lambda failure: _log.failure("A failed request could not be answered", failure))

    def data(self, data: bytes) -> None:
        """The client sent ``data``."""
        if self._stage is _Stage.OVER or self.body.complete:
            self.rest += data
        elif data and not self.body.failed:
            self._silence.touch()
            try:
                self.rest += self.body.feed(data)
            except HttpError as error:
                self._fail(error)
                return
        self._flow()
        if self._stage is _Stage.DRAINING and self.body.complete:
            self._end(True)

    def lost(self, reason: Failure) -> None:
        """The client has gone."""
        if self._stage is _Stage.OVER and self.request.channel is None:
            return
        answered = self.request.finished
        self._stop()
        valve, self._valve = self._valve, None
        if valve is not None:
            valve.stopProducing()
        if not answered:
            self.request.connectionLost(reason)  # type: ignore[no-untyped-call]
        self.body.fail(reason.value if isinstance(reason.value, Exception) else ConnectionError())
        self._cancel()

    # What the request calls: the channel of twisted.web.

    def getPeer(self) -> IAddress:
        """The client's address."""
        return self._peer

    def getHost(self) -> IAddress:
        """The router's address that the client connected to."""
        return self._host

    def isSecure(self) -> bool:
        """Whether the request came over TLS."""
        return self._secure

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        """The answer's head; Connection, Date and the length of what follows are settled here."""
        if self._stage is not _Stage.WAITING:
            return
        self._stage = _Stage.ANSWERING
        self.status = status = int(code)
        if status == http.NO_CONTENT:
            headers.removeHeader(b"Content-Length")
        chunked = headers.hasHeader(b"Transfer-Encoding")
        length = headers.getRawHeaders(b"Content-Length")
        if self._head.method == "HEAD" or status in http.NO_BODY_CODES:
            self._owed = 0
        elif length is not None:
            self._owed = int(length[0])
        framed = self._owed is not None or chunked
        lasting = self._head.keep_alive and not self.last and not self._refused
        self._keep = framed and lasting and self._body_will_end()
        connection = None
        if not self._keep:
            connection = b"close"
        elif not self._head.minor:
            connection = b"keep-alive"
        self.transport.write(answer_head(code, reason, headers, connection))
        self._flow()

    def write(self, data: bytes) -> None:
        """Bytes of the answer, coded already if it is chunked."""
        if self._stage is not _Stage.ANSWERING:
            return
        if self._owed is not None:
            if len(data) > self._owed:
                _log.error("An answer is longer than its Content-Length; the connection is ended")
                self.abortConnection()
                return
            self._owed -= len(data)
        self.sent += len(data)
        self.transport.write(data)

    def writeSequence(self, pieces: Iterable[bytes]) -> None:
        """Several pieces as one."""
        self.write(b"".join(pieces))

    def requestDone(self, request: PlainRequest) -> None:
        """The answer is complete."""
        if self._stage is not _Stage.ANSWERING:
            return
        if self._owed:
            _log.error("An answer is shorter than its Content-Length; the connection is ended")
            self.abortConnection()
        elif self.body.complete or not self._keep:
            self._end(self._keep)
        else:
            self._stage = _Stage.DRAINING
            self.body.discard()

    def registerProducer(self, producer: IPushProducer | IPullProducer, streaming: bool) -> None:
        """Pause ``producer`` while the client is slow."""
        if self._stage is _Stage.OVER:
            producer.stopProducing()
            return
        self._valve = Valve(producer, streaming, self._stall)
        self.transport.registerProducer(self._valve, streaming)

    def unregisterProducer(self) -> None:
        """The producer is done."""
        self._stall.stop()
        if self._valve is not None:
            self._valve = None
            self.transport.unregisterProducer()

    def loseConnection(self) -> None:
        """``twisted.web`` gives up on the answer."""
        self.abortConnection()

    def abortConnection(self) -> None:
        """End the connection at once; the front hears of it as of any loss."""
        self._stop()
        self.transport.abortConnection()

    # What happens inside.

    def _handle(self) -> object:
        if IResource.providedBy(self._handler):
            self.request.render_resource(self._handler)
            return None
        assert callable(self._handler)
        return self._handler(self.request)

    def _handler_failed(self, failure: Failure) -> None:
        self._running = None
        error = failure.value
        if self._stage is _Stage.OVER:
            if not isinstance(error, CancelledError):
                _log.failure("A handler failed behind the end of its request", failure)
        elif isinstance(error, HttpError):
            self._fail(error)
        elif isinstance(error, BackendError):
            self._answer_for_backend(error)
        elif isinstance(error, CancelledError):
            self._fail(HttpError(500, "cancelled"))
        else:
            _log.failure("A handler failed", failure)
            self._fail(HttpError(500, "internal error"))

    def _answer_for_backend(self, error: BackendError) -> None:
        if self._stage is not _Stage.WAITING:
            self.abortConnection()
            return
        self.refusal = error.reason
        self.request.forget_answer()
        headers = [RETRY_AFTER] if error.status == http.SERVICE_UNAVAILABLE else []
        self.request.answer(error.status, headers)

    def _fail(self, error: HttpError) -> None:
        """The request is refused, or its body is no good: an answer if there is still time for one, and the end."""
        if self._stage is _Stage.OVER:
            return
        reader_cut = self.body.started and not self.body.complete
        stage = self._stage
        self._keep = False
        self._refused = True
        self.refusal = error.reason
        if stage is _Stage.WAITING:
            # The handler must not answer what is being refused.
            self._stage = _Stage.OVER
            self.body.fail(error)
            self._cancel()
            self._stage = _Stage.WAITING
            self.request.forget_answer()
            self.request.answer(error.status, error.headers, f"{error.status} {error.reason}\n")
        elif stage is _Stage.DRAINING:
            self._end(False)
        elif error.status >= http.INTERNAL_SERVER_ERROR or reader_cut:
            self.abortConnection()
        else:
            self.body.fail(error)

    def _body_will_end(self) -> bool:
        """Whether the body's end is near enough to wait for it behind the answer."""
        if self.body.complete:
            return True
        missing = self.body.missing
        return missing is not None and missing <= DRAIN_LIMIT and not self._continue_is_due()

    def _continue_is_due(self) -> bool:
        """The client waits for ``100 Continue`` and nobody has asked for the body (RFC 9110 10.1.1)."""
        return self._head.expects_continue and not self.body.received and not self.body.started

    def _flow(self) -> None:
        """Read from the client exactly while there is a use for its bytes, and watch that they come."""
        if self._stage is _Stage.OVER:
            return
        body = self.body
        if body.started and self._head.expects_continue and not self._continued:
            self._continued = True
            if not body.received and self._stage is _Stage.WAITING:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        wanting = body.wanting
        reading = wanting if not body.complete else len(self.rest) <= REST_LIMIT
        if reading != self._reading:
            self._reading = reading
            if reading:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()
        if wanting and not self._continue_is_due():
            self._silence.start()
        else:
            self._silence.stop()

    def _body_timed_out(self) -> None:
        self._fail(HttpError(408, "the request body came too slowly"))

    def _stalled(self) -> None:
        self.refusal = "the client does not read its answer"
        self.abortConnection()

    def _cancel(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.cancel()

    def _stop(self) -> None:
        self._stage = _Stage.OVER
        self._silence.stop()
        self._stall.stop()

    def _end(self, keep: bool) -> None:
        self._stop()
        if not self._reading:
            self._reading = True
            self.transport.resumeProducing()
        self._done(keep)
