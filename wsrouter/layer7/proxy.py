"""Plain HTTP for a pool: each request to one backend, the answer back as it comes.

What is sent on and what comes back is decided in ``wire.forwarding``; here it is carried. Bodies stream both ways
with back-pressure. A request goes on to another backend while nothing of it may have had an effect: when no
connection could be made, or when a request without a body that is idempotent (RFC 9110 9.2.2) got no answer at all.

A kept connection may be closed by the backend in the moment that it is used again. An idempotent request is then
repeated on a new connection; another gets 502, because the backend may have acted on it. One that is seen to be closed,
or to hold bytes that nobody asked for, is not used again at all.

``idle_timeout`` is the longest silence of a backend, the wait for the answer's head included. It is the route's
own, long by default, because a long poll is silent for minutes and in order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Protocol, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, DNSLookupError, TimeoutError
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.web.client import HTTPConnectionPool
from twisted.web.iweb import IResponse

from wsrouter.backends.waiting import Waiting
from wsrouter.config.values import Backend, Pool
from wsrouter.errors import BackendError, DialError
from wsrouter.layer7.affinity import Affinity
from wsrouter.layer7.quiet import Deadlines, Quiet
from wsrouter.layer7.request import PlainRequest
from wsrouter.layer7.upstream import Delivery, Outgoing, Upstream, UpstreamEndpoint
from wsrouter.policy.members import Member
from wsrouter.wire.forwarding import Pair, response_fields

if TYPE_CHECKING:
    from twisted.web._newclient import HTTP11ClientProtocol

#: Idle connections kept for each backend, and for how many seconds.
KEPT_CONNECTIONS = 32
KEPT_SECONDS = 60.0

_IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))


class _Unanswered(Exception):
    """One backend gave no answer; ``error`` is what the client gets unless another does, if ``again`` allows one.

    ``fault`` is what the pool is told.
    """

    def __init__(self, error: BackendError, again: bool, fault: DialError | None = None) -> None:
        super().__init__(error.reason)
        self.error = error
        self.again = again
        self.fault = error if fault is None else fault


class _Stale(Exception):
    """A kept connection was closed by the backend before it answered, and the request may be repeated."""


class Backends(Protocol):
    """What the proxy needs of a pool; see ``BackendPool``."""

    config: Pool
    #: Changes with what connections to the backends are made of.
    epoch: object

    def pick(
        self, key: bytes | None = None, excluded: Collection[Member] = (), preferred: Member | None = None
    ) -> Member | None: ...

    def wait(self, key: bytes | None, served: Callable[[Member | None], None]) -> Waiting | None: ...

    def refusal(self) -> BackendError: ...

    def take(self, member: Member) -> None: ...

    def give_back(self, member: Member) -> None: ...

    def failed(self, member: Member, error: DialError | BackendError) -> None: ...

    def worked(self, member: Member) -> None: ...

    def endpoint(self, member: Member, preface: bytes = b"", timeout: float | None = None) -> IStreamClientEndpoint: ...


class HttpProxy:
    """The plain HTTP side of one pool.

    Its endpoints connect within the pool's ``connect_timeout`` and speak TLS where the pool says so; they fail with
    DialError or one of Twisted's connect errors.
    """

    def __init__(self, reactor: IReactorTime, pool: Backends, deadlines: Deadlines) -> None:
        self._reactor = reactor
        self._pool = pool
        self._deadlines = deadlines
        self._stopped = False
        self._epoch = pool.epoch
        self._connections = HTTPConnectionPool(reactor)  # type: ignore[no-untyped-call]
        self._connections.maxPersistentPerHost = KEPT_CONNECTIONS
        self._connections.cachedConnectionTimeout = KEPT_SECONDS  # type: ignore[assignment]
        self._connections.retryAutomatically = False

    async def handle(
        self,
        request: PlainRequest,
        target: bytes,
        fields: Sequence[Pair],
        idle_timeout: float | None,
        affinity: Affinity = Affinity(),  # noqa: B008 (it is a value)
    ) -> None:
        """Answer ``request`` with what a backend says to ``target`` and ``fields`` (``plain_fields``).

        ``idle_timeout`` is in seconds. Raises BackendError when no backend has answered: 503 when none could
        take it, 504 when time ran out, 502 when one answered nonsense, failed in TLS or broke off. An answer
        that breaks off later ends the client's connection. Cancelling ends the backend's part too.
        """
        pool = self._pool
        member = pool.pick(affinity.key, (), affinity.preferred)
        if member is None:
            member = await self._wait(affinity.key)
        else:
            pool.take(member)
        until = self._reactor.seconds() + pool.config.retry_time
        tried: list[Member] = []
        while True:
            limit = until if tried else None
            tried.append(member)
            try:
                await self._use(member, request, target, fields, idle_timeout, affinity, limit)
                return
            except _Unanswered as unanswered:
                error, again, fault = unanswered.error, unanswered.again, unanswered.fault
            finally:
                pool.give_back(member)
            pool.failed(member, fault)
            if not again or len(tried) > pool.config.retries or self._reactor.seconds() >= until:
                raise error
            following = pool.pick(affinity.key, tried)
            if following is None:
                raise error
            member = following
            pool.take(member)

    def _wait(self, key: bytes | None) -> Deferred[Member]:
        """A member that is counted already, once there is room. Fails with BackendError."""
        waiting: Waiting | None = None

        def cancelled(_: Deferred[Member]) -> None:
            if waiting is not None:
                waiting.cancel()

        def served(member: Member | None) -> None:
            if member is None:
                result.errback(self._pool.refusal())
            else:
                result.callback(member)

        result: Deferred[Member] = Deferred(cancelled)
        waiting = self._pool.wait(key, served)
        if waiting is None:
            result.errback(self._pool.refusal())
        return result

    def stop(self) -> Deferred[None]:
        """Close what is idle, and keep no connection from now on; requests under way end as they would."""
        self._stopped = True
        return self._connections.closeCachedConnections()  # type: ignore[no-untyped-call, no-any-return]

    async def _use(
        self,
        member: Member,
        request: PlainRequest,
        target: bytes,
        fields: Sequence[Pair],
        idle_timeout: float | None,
        affinity: Affinity,
        until: float | None,
    ) -> None:
        lines = _head_lines(request, target, fields, member.backend)
        use = _Use(member, request, lines, self._deadlines, idle_timeout)
        preface = affinity.preface
        try:
            if preface:
                # It speaks for this client: the connection is nobody else's.
                response = await use.ask(await self._connect(member, object(), until, preface), lambda: False)
            else:
                epoch = self._present_epoch()
                connection = await self._connect(member, member, until)
                response = await use.ask(connection, lambda: not self._stopped and epoch is self._pool.epoch)
        except _Stale:
            # Other kept ones may be no better: a key of its own gets a new connection, which is not kept.
            response = await use.ask(await self._connect(member, object(), until, preface), lambda: False)
        self._pool.worked(member)
        await use.deliver(response, affinity.cookie(member))

    def _present_epoch(self) -> object:
        """The pool's epoch; connections that were kept in another one are closed."""
        if self._epoch is not self._pool.epoch:
            self._epoch = self._pool.epoch
            self._connections.closeCachedConnections()  # type: ignore[no-untyped-call]
        return self._epoch

    async def _connect(
        self, member: Member, key: object, until: float | None, preface: bytes = b""
    ) -> HTTP11ClientProtocol:
        """A connection to ``member``, kept or new; a new one stands by ``until``, on the reactor's clock."""
        timeout = None if until is None else max(0.0, until - self._reactor.seconds())
        endpoint = UpstreamEndpoint(self._pool.endpoint(member, preface, timeout))
        while True:
            try:
                connection = await self._connections.getConnection(key, endpoint)
            except CancelledError:
                raise
            except Exception as error:
                fault = error if isinstance(error, DialError) else None
                raise _Unanswered(_dial_fault(member, error), True, fault) from error
            upstream = _upstream_of(connection)
            if upstream.ready:
                return connection
            upstream.abort()


class _Use:
    """One request's use of one backend."""

    def __init__(
        self,
        member: Member,
        request: PlainRequest,
        lines: Sequence[bytes],
        deadlines: Deadlines,
        idle_timeout: float | None,
    ) -> None:
        self._label = member.label
        self._request = request
        self._lines = lines
        self._quiet = Quiet(deadlines, idle_timeout, self._silent)
        self._timed_out = False
        self._outgoing: Outgoing
        self._upstream: Upstream

    async def ask(self, connection: HTTP11ClientProtocol, may_last: Callable[[], bool]) -> IResponse:
        """Send the request; return the answer when its head is here. Raises _Unanswered and _Stale."""
        upstream = self._upstream = _upstream_of(connection)
        upstream.expect(self._request.method)
        body = self._request.body
        self._outgoing = Outgoing(self._request.method, self._lines, body, self._quiet, self._may_last(may_last))
        self._quiet.start()
        try:
            return await connection.request(self._outgoing)  # type: ignore[arg-type]
        except Exception as error:
            self._quiet.stop()
            self._outgoing.stop()
            raise self._explain(error) from error

    async def deliver(self, response: IResponse, cookie: Pair | None) -> None:
        """Pass the answer on; one that breaks off ends the client's connection."""
        request = self._request
        head = self._upstream.head
        assert head is not None
        request.setResponseCode(head.status, head.reason)
        for name, value in response_fields(head.fields):
            request.responseHeaders.addRawHeader(name, value)
        if cookie is not None:
            request.responseHeaders.addRawHeader(*cookie)
        request.write(b"")  # type: ignore[no-untyped-call]
        delivery = Delivery(request, self._upstream, self._quiet)
        try:
            response.deliverBody(delivery)  # type: ignore[no-untyped-call]
            if not delivery.ended.called:
                # Not before: deliverBody ends by resuming the backend, whatever the client said.
                request.registerProducer(delivery, True)  # type: ignore[no-untyped-call]
            whole = await delivery.ended
        finally:
            self._quiet.stop()
            self._outgoing.stop()
            if request.producer is not None:
                request.unregisterProducer()
        if whole:
            request.finish()  # type: ignore[no-untyped-call]
        else:
            cause = "fell silent in" if self._timed_out else "broke off"
            request.abort(f"backend {self._label} {cause} its answer")

    def _may_last(self, may_last: Callable[[], bool]) -> Callable[[], bool]:
        upstream = self._upstream
        return lambda: upstream.reusable and may_last()

    def _explain(self, error: Exception) -> Exception:
        upstream = self._upstream
        label = self._label
        if self._timed_out:
            return _Unanswered(BackendError(504, f"{label} did not answer in time"), False)
        reasons = getattr(error, "reasons", ())
        if isinstance(error, CancelledError) or any(reason.check(CancelledError) for reason in reasons):
            return CancelledError()
        if upstream.fault is not None:
            return _Unanswered(upstream.fault, False)
        again = not upstream.heard and self._request.body.length == 0 and self._request.head.method in _IDEMPOTENT
        if again and upstream.uses > 1:
            return _Stale()
        return _Unanswered(BackendError(502, f"{label} broke off before its answer"), again)

    def _silent(self) -> None:
        if self._outgoing.awaits_client:
            self._quiet.start()
            return
        self._timed_out = True
        self._upstream.abort()


def _upstream_of(connection: HTTP11ClientProtocol) -> Upstream:
    return cast(Upstream, connection.transport)


def _head_lines(request: PlainRequest, target: bytes, fields: Sequence[Pair], backend: Backend) -> list[bytes]:
    """The request's head as a backend gets it; the body's framing is decided anew (RFC 9112 6)."""
    lines = [b"%b %b HTTP/1.1\r\n" % (request.method, target)]
    lines += [b"%b: %b\r\n" % pair for pair in fields]
    if not any(name.lower() == b"host" for name, _ in fields):
        # An HTTP/1.0 client may leave it out; HTTP/1.1 may not.
        lines.append(b"Host: %b\r\n" % (b"localhost" if backend.unix else backend.label.encode("ascii", "replace")))
    if request.body.length is None:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    elif request.head.content_length is not None:
        lines.append(b"Content-Length: %d\r\n" % request.body.length)
    lines.append(b"\r\n")
    return lines


def _dial_fault(member: Member, error: Exception) -> BackendError:
    """What a failed connection means for the client."""
    reason = f"{member.label}: {error}"
    if isinstance(error, DialError):
        return BackendError(504 if error.timed_out else 502 if error.nonsense else 503, reason)
    if isinstance(error, TimeoutError):
        return BackendError(504, reason)
    return BackendError(503 if isinstance(error, (ConnectError, DNSLookupError, OSError)) else 502, reason)
