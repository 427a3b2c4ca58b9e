"""The front: reads the request heads of one client connection and sends each request on its way.

The front owns the heads. Each is cut at its blank line and parsed whole; no next head is looked at before the request
before it has been answered. So what a backend gets is always one request that was judged, and nothing that hid behind
it.

An upgrade, on the first or any later request, ends the front: the connection becomes a session. A refusal ends the
connection, with the answer first and a lingering close, because what follows a refused request cannot be trusted to
be a request.
"""

from __future__ import annotations

import enum
from typing import Final

from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from wsrouter.config.values import Accept, Plain
from wsrouter.errors import BackendError, HttpError
from wsrouter.layer7.certificates import CertificateStore
from wsrouter.layer7.checks import check_client, check_opening, check_scheme
from wsrouter.layer7.exchange import Exchange
from wsrouter.layer7.opening import Opening
from wsrouter.layer7.record import Record
from wsrouter.layer7.site import Door, Request
from wsrouter.live.connection import Connection
from wsrouter.policy.members import Member
from wsrouter.policy.routing import host_name
from wsrouter.relay.leg import Leg
from wsrouter.relay.protocol import LegProtocol
from wsrouter.wire.answer import RETRY_AFTER, answer
from wsrouter.wire.forwarding import said_behind
from wsrouter.wire.head import RequestHead, cut_head, new, parse_request
from wsrouter.wire.opening import Upgrade, check_upgrade, wants_websocket
from wsrouter.wire.target import parse_target

#: Frames that may come early, before the backend has agreed, in bytes; then the client is paused.
EARLY_LIMIT: Final = 64 * 1024

_UPGRADE_REQUIRED = ((b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"), (b"Sec-WebSocket-Version", b"13"))


class Stage(enum.Enum):
    """What the front is doing."""

    #: Waiting for a head, or for the rest of one.
    HEAD = "head"
    #: A plain request is being answered.
    EXCHANGE = "exchange"
    #: A backend was asked for a session.
    OPENING = "opening"
    #: The connection has become a session, or ends.
    OVER = "over"


#: Members of enumerations at hand; see ``live.registry``.
HEAD: Final = Stage.HEAD
EXCHANGE: Final = Stage.EXCHANGE
OPENING: Final = Stage.OPENING
OVER: Final = Stage.OVER
HTTP_ONLY: Final = Accept.HTTP


@implementer(IPushProducer)
class _Unread:
    """Stands for an answer that the client has not taken yet."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def pauseProducing(self) -> None:
        """It waits."""

    def resumeProducing(self) -> None:
        """It is out."""
        self._front.taken()

    def stopProducing(self) -> None:
        """The client has gone."""


class Front(LegProtocol):
    """The protocol on a client's leg while the connection is at HTTP.

    ``store`` is what its certificate was chosen from; a reload may have given ``door`` another one meanwhile.
    """

    __slots__ = (
        "_connection",
        "_door",
        "_exchange",
        "_listener",
        "_opening",
        "_received",
        "_record",
        "_searched",
        "_site",
        "_stage",
        "_store",
    )

    def __init__(self, door: Door, store: CertificateStore | None, connection: Connection) -> None:
        self._door = door
        self._site = site = door.site
        #: Time limits stay what they were.
        self._listener = door.config
        self._store = store
        self._connection = connection
        connection.listener = door.name
        self._stage = HEAD
        self._received: bytes | bytearray = b""
        self._searched = 0
        #: The request that is being served, or was last.
        self._record = Record(site, connection)
        self._exchange: Exchange | None = None
        self._opening: Opening | None = None
        self._slice = None

    # What the leg calls.

    def makeConnection(self, transport: Leg) -> None:
        """The connection is at HTTP from here on."""
        self.transport = transport
        self._site.fronts.add(self)

    def await_head(self) -> None:
        """Nothing was read yet: the first head has its deadline from here on."""
        if self._stage is HEAD and not self._received:
            self._wait_for(self._listener.head_timeout)

    def dataReceived(self, data: bytes) -> None:
        """Give the bytes to whoever they are for."""
        if self._stage is HEAD:
            if not self._received:
                if self._record.head is not None:
                    # The first byte of a next request: idleness is over, its head has its own deadline.
                    self._record.forget()
                    self._wait_for(self._listener.head_timeout)
                self._received = data
            else:
                if isinstance(self._received, bytes):
                    self._received = bytearray(self._received)
                self._received += data
            self._look()
        elif self._stage is EXCHANGE:
            assert self._exchange is not None
            self._exchange.data(data)
        elif self._stage is OPENING:
            if isinstance(self._received, bytes):
                self._received = bytearray(self._received)
            self._received += data
            if len(self._received) > EARLY_LIMIT:
                self.transport.await_end()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client has left."""
        self._leave()
        opening, self._opening = self._opening, None
        if opening is not None:
            self._record.refused(None, "the client left before a backend agreed")
            opening.cancel()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            unanswered = not exchange.request.finished
            exchange.lost(reason)
            if exchange.refusal is None and unanswered:
                when = "before" if exchange.status is None else "within"
                self._record.refused(exchange.status, f"the client left {when} its answer")
            else:
                self._log_exchange(exchange)

    # Heads.

    def _look(self) -> None:
        """Serve the next head, if it is whole."""
        received = self._received
        try:
            end = cut_head(received, self._searched)
            if end is None:
                self._searched = len(received)
                if self._slice is None:
                    self._wait_for(self._listener.head_timeout)
                return
            self.stop_waiting()
            self._searched = 0
            if self._record.head is not None:
                self._record.forget()
            self._received = b""
            if not isinstance(received, bytes):
                received = bytes(received)
            self._serve(received[:end], received[end:])
        except HttpError as error:
            self._refuse(error)

    def _serve(self, raw: bytes, rest: bytes) -> None:
        record, site, connection = self._record, self._site, self._connection
        record.head = head = parse_request(raw)
        admission = self._door.admission
        record.behind = behind = said_behind(head, connection.ip, admission.trusted) if admission.trusts else None
        record.target = target = parse_target(head.target, head.method)
        if target.path == site.drain_path and (connection.secure or self._listener.plain is not Plain.NO):
            self._tell_state(head)
            return
        upgrade = check_upgrade(head) if wants_websocket(head) else None
        check_scheme(self._listener.plain, connection, behind, head, target, upgrade is not None)
        host = host_name(head.host)
        if connection.secure and self._store is not None and not self._store.allows_host(connection.sni, host):
            raise HttpError(421, "this name is not served on a connection made for another")
        route = site.routes.choose(
            connection.listener, host, target.path, upgrade.subprotocols if upgrade is not None else ()
        )
        if route is None:
            raise HttpError(404, "no route")
        record.route = route.name
        request = new(Request, (connection, head, target, route, behind))
        if site.routes.guarded:
            check_client(site, request)
        if upgrade is not None and route.pool is not None and route.accept is not HTTP_ONLY:
            self._open(request, upgrade, rest)
        elif route.pool is not None and route.accept is Accept.WEBSOCKET:
            raise HttpError(426, "this path speaks WebSocket only", _UPGRADE_REQUIRED)
        else:
            self._answer(request, rest)

    def _tell_state(self, head: RequestHead) -> None:
        """Tell a balancer in front whether more clients are welcome. Such questions are too many to be logged."""
        if head.method not in ("GET", "HEAD"):
            raise HttpError(405, "GET or HEAD only", ((b"Allow", b"GET, HEAD"),))
        head_only = head.method == "HEAD"
        if self._site.leaving:
            self._say(answer(503, "draining", (RETRY_AFTER,), head_only=head_only))
        else:
            self._say(answer(200, head_only=head_only))

    # Upgrades.

    def _open(self, request: Request, upgrade: Upgrade, rest: bytes) -> None:
        check_opening(self._site, self._door.admission, request)
        self._stage = OPENING
        self._received = rest
        self._opening = Opening(self._site, self, self.transport, request, upgrade)
        self._opening.start()

    def opened(self) -> bytes:
        """The backend agreed: the leg becomes a session's."""
        early = self._received
        self._opening = None
        self._leave()
        return early if isinstance(early, bytes) else bytes(early)

    def refused(self, error: BackendError) -> None:
        """No backend opens the session."""
        self._opening = None
        headers = (RETRY_AFTER,) if error.status == 503 else ()
        # What backends are called and how they failed is for the log, not for the client.
        self._refuse(HttpError(error.status, error.reason, headers), told="no backend took the session")

    def answered(self) -> None:
        """The backend refused the session in its own words."""
        self._opening = None
        self._leave()
        self.transport.loseConnection()

    def cut(self) -> None:
        """The backend's own words broke off; the client must see that."""
        self._opening = None
        self._leave()
        self.transport.abortConnection()

    # Plain requests.

    def _answer(self, request: Request, rest: bytes) -> None:
        leg = self.transport
        self._stage = EXCHANGE
        self._record.began = self._site.relay.seconds()
        self._exchange = exchange = Exchange(
            leg,
            request.head,
            request.target,
            self._site.handlers[request.route.name](request),
            secure=self._connection.secure,
            peer=leg.getPeer(),
            host=leg.getHost(),
            deadlines=self._site.relay.deadlines,
            max_body=self._listener.max_body,
            body_timeout=self._listener.body_timeout,
            done=self._answered,
        )
        exchange.last = self._is_last
        exchange.start(rest)

    def _answered(self, keep_alive: bool) -> None:
        exchange, self._exchange = self._exchange, None
        assert exchange is not None
        self._log_exchange(exchange)
        if not keep_alive or self._is_last:
            self._leave()
            self.transport.loseConnection()
            return
        self._stage = HEAD
        self._received, exchange.rest = exchange.rest, b""
        if self.transport.pending is None:
            self.go_on()
        else:
            # No next request before this answer is out: who asks and never reads would fill the memory.
            self._wait_for(self._listener.body_timeout)
            self.transport.pauseProducing()
            self.transport.registerProducer(_Unread(self), True)

    def taken(self) -> None:
        """The client has taken the answer that it was waited for."""
        self.transport.unregisterProducer()
        self.go_on()

    def go_on(self) -> None:
        """Look for the next request."""
        if self._stage is not HEAD:
            return
        if self._received:
            self._record.forget()
            self._wait_for(self._listener.head_timeout)
            # In a turn of its own: what one client pipelines must not hold up the others.
            self.transport.pauseProducing()
            self._site.relay.soon(self._look_again)
        else:
            self._wait_for(self._listener.keep_alive)
            self.transport.resumeProducing()

    def _log_exchange(self, exchange: Exchange) -> None:
        if exchange.refusal is not None:
            self._record.refused(exchange.status, exchange.refusal)
        elif exchange.status is not None:
            self._record.answered(exchange.status, exchange.sent)

    def _look_again(self) -> None:
        if self._stage is HEAD and self._received:
            self.transport.resumeProducing()
            self._look()

    # Refusals and the end.

    def _refuse(self, error: HttpError, told: str | None = None) -> None:
        head = self._record.head
        self._record.refused(error.status, error.reason)
        self._say(
            answer(
                error.status,
                error.reason if told is None else told,
                error.headers,
                head_only=head is not None and head.method == "HEAD",
            )
        )

    def _say(self, last: bytes) -> None:
        """The router's own answer, and the end."""
        self._leave()
        self.transport.write(last)
        self.transport.loseConnection()

    def backend_gone(self, member: Member) -> None:
        """A backend is known to be down."""
        if self._opening is not None:
            self._opening.backend_gone(member)

    @property
    def _is_last(self) -> bool:
        """Whether there is no next request: the router drains, or who comes in now has to show something else."""
        return self._site.draining or self._connection.epoch is not self._door.epoch

    def reloaded(self) -> None:
        """Routes are chosen by the listener's name, which may be another now. A connection may be outdated as well.

        One that has not asked for anything yet does so once: it was let in.
        """
        self._connection.listener = self._door.name
        if self._is_last:
            self.drain()

    def drain(self) -> None:
        """Stop waiting for another request; one that is being answered is the last.

        Who has not asked for anything yet may do so once, unless the whole router goes.
        """
        if self._exchange is not None:
            self._exchange.last = True
        if self._stage is HEAD and not self._received and (self._site.turning_away or self._record.head is not None):
            self._leave()
            self.transport.loseConnection()

    def _wait_for(self, seconds: float) -> None:
        self.wait(self._site.relay.deadlines, seconds)

    def late(self) -> None:
        """What it waits for has not come in time."""
        if self.transport.pending is not None:
            self._record.refused(None, "the client does not read its answer")
            self._leave()
            self.transport.abortConnection()
        elif self._received or self._record.head is None:
            self._record.forget()
            self._refuse(HttpError(408, f"no whole request head in {self._listener.head_timeout:g} s"))
        else:
            self._leave()
            self.transport.loseConnection()

    def _leave(self) -> None:
        self._stage = OVER
        self._received = b""
        self.stop_waiting()
        self._site.fronts.discard(self)
