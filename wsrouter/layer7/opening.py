"""One opening handshake on its way: to a backend, and its answer back (RFC 6455 4).

The client's request goes to the backend with the client's own key; the backend's 101 is verified before a single
frame passes. A refusal (401, 302, 503 and so on) reaches the client as the backend wrote it, body included; then the
connection ends, because bytes behind an upgrade request may be frames or a request, and nobody could tell.

A backend that refuses the connection, or drops it before its answer begins, is passed over for the next one. Once a
backend has answered, or has kept silent for the whole ``handshake_timeout``, its word stands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from wsrouter.backends.attempt import Attempt
from wsrouter.config.values import Dispatch
from wsrouter.errors import BackendError, DialError, HttpError
from wsrouter.layer7.affinity import affinity_of
from wsrouter.layer7.dispatch_session import DispatchSession
from wsrouter.layer7.joining import Asked
from wsrouter.layer7.message_session import MessageSession
from wsrouter.layer7.session import RelaySession
from wsrouter.layer7.site import Request, Site, client_label
from wsrouter.live.registry import SESSION, Facts
from wsrouter.policy.members import Member
from wsrouter.relay.leg import Leg
from wsrouter.relay.protocol import LegProtocol
from wsrouter.wire.body import ChunkedBody, LengthBody
from wsrouter.wire.forwarding import client_answer, response_fields
from wsrouter.wire.head import ResponseHead, final_response, new
from wsrouter.wire.opening import Accepted, Upgrade, check_refusal, granted_to_us, verify_answer

#: The longest pause within the body of a backend's refusal, in seconds.
REFUSAL_SILENCE: Final = 60.0


class Opener(Protocol):
    """The front that asked for the session."""

    def opened(self) -> bytes:
        """The backend agreed: give up the client's leg, and return the frames that came early."""

    def refused(self, error: BackendError) -> None:
        """No session: the router answers ``error``."""

    def answered(self) -> None:
        """No session: the backend's own answer has been written to the client, whole."""

    def cut(self) -> None:
        """No session: the backend's own answer broke off."""


class Opening(LegProtocol):
    """The protocol on a backend's leg until the backend has answered."""

    __slots__ = (
        "_affinity",
        "_asked",
        "_attempt",
        "_body",
        "_client",
        "_leg",
        "_member",
        "_messages",
        "_opener",
        "_pool",
        "_received",
        "_request",
        "_rules",
        "_site",
        "_upgrade",
    )

    def __init__(self, site: Site, opener: Opener, client: Leg, request: Request, upgrade: Upgrade) -> None:
        self._site = site
        self._opener: Opener | None = opener
        self._client = client
        self._request = request
        self._upgrade = upgrade
        route = request.route
        assert route.pool is not None
        self._pool = pool = site.pools[route.pool]
        self._affinity = affinity = affinity_of(pool, request, client)
        key, preferred, preface, _, _ = affinity
        self._attempt = Attempt(pool, self._connected, self._failed, key, preferred, preface)
        # A reload may take the route away before the backend is reached.
        self._rules = site.rules[route.name]
        self._messages = messages = site.messages.get(route.name)
        #: What the backend is asked for; who ends the session offers the extensions.
        self._asked = upgrade if messages is None else upgrade._replace(extensions=messages.backend_offers)
        #: The backend that was reached; it is counted until it is given back.
        self._member: Member | None = None
        self._leg: Leg | None = None
        self._received = b""
        self._slice = None
        #: Reads the body of a refusal; the first call says what to pass on and whether that was the end.
        self._body: Callable[[bytes], tuple[bytes, bool]] | None = None

    def start(self) -> None:
        """Look for a backend."""
        self._attempt.start()

    def cancel(self) -> None:
        """The client is gone."""
        self._opener = None
        self._attempt.cancel()
        self._drop()

    def backend_gone(self, member: Member) -> None:
        """``member`` is known to be down: who waits for its answer, and has heard nothing of it, asks another."""
        leg = self._leg
        if self._member is not member or leg is None or self._received or self._body:
            return
        following = self._attempt.another()
        if following is None:
            return
        self.stop_waiting()
        self._leg = self._member = None  # the attempt gives it back
        leg.protocol = None
        leg.abortConnection()
        self._attempt.retry(DialError("went down before its answer", timed_out=True), following)

    # Reaching a backend.

    def _connected(self, leg: Leg, member: Member) -> None:
        self._leg, self._member = leg, member
        self._received = b""
        self.wait(self._site.relay.deadlines, self._pool.config.handshake_timeout)
        leg.attach(self)
        leg.write(self._request.opening(self._asked, self._rules.fill(self._request)))

    def _failed(self, error: BackendError) -> None:
        self._attempt.settle()
        opener, self._opener = self._opener, None
        if opener is not None:
            opener.refused(error)

    def late(self) -> None:
        """The backend keeps silent."""
        if self._body is None:
            self._blame(BackendError(504, f"{self._label()} keeps silent after the opening handshake"))
        else:
            self._break_off()

    def _label(self) -> str:
        assert self._member is not None
        return f"pool {self._pool.name}: backend {self._member.label}"

    # What the backend says.

    def dataReceived(self, data: bytes) -> None:
        """Gather the answer's head, then judge it."""
        if self._opener is None:
            return
        if self._body is not None:
            self._pass_body(data)
            return
        try:
            response, rest = final_response(self._received + data, len(self._received))
            if response is not None:
                self._answered(response, rest)
                return
        except BackendError as error:
            self._blame(BackendError(error.status, f"{self._label()}: {error.reason}"))
            return
        self._received = rest

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The backend went away: before its answer another may be tried."""
        self._leg = None
        self.stop_waiting()
        if self._opener is None:
            return
        if self._body is not None:
            self._pass_end(orderly=isinstance(reason.value, ConnectionDone))
        elif self._received:
            self._blame(BackendError(502, f"{self._label()} broke off within its answer"))
        else:
            self._member = None  # the attempt gives it back
            self._attempt.retry(DialError("closed the connection before its answer", nonsense=True))

    def _answered(self, response: ResponseHead, rest: bytes) -> None:
        if response.status == 101:
            accepted = verify_answer(response, self._asked)
            self._open(response, accepted, rest)
            return
        check_refusal(response)
        self._pass_refusal(response, rest)

    def _open(self, response: ResponseHead, accepted: Accepted, rest: bytes) -> None:
        opener, self._opener = self._opener, None
        leg, self._leg = self._leg, None
        member, pool, site, request, attempt = self._member, self._pool, self._site, self._request, self._attempt
        assert opener is not None
        assert leg is not None
        assert member is not None
        self.stop_waiting()
        attempt.settle()
        pool.worked(member)
        cookie = self._affinity.cookie(member)
        connection, head, target, route, behind = request
        subprotocol, deflate = accepted
        early = opener.opened()
        facts = new(
            Facts,
            (
                SESSION,
                request.client_ip,
                client_label(connection, behind),
                connection.listener,
                route.name,
                pool.name,
                member.label,
                site.relay.seconds(),
                head.host,
                site.path_for_log(target),
                subprotocol or "",
                connection.sni or "",
                attempt.story(),
            ),
        )
        client, number, messages = self._client, connection.number, self._messages
        if messages is None:
            session = RelaySession(site, route, pool, member, number, facts, client, leg, deflate)
            session.run(early, client_answer(response, accepted, cookie), rest)
            return
        answer = client_answer(response, accepted._replace(deflate=False), cookie)
        offer = messages.taken_offer(self._upgrade.extensions)
        granted = granted_to_us(response)
        if route.dispatch is Dispatch.SESSION:
            MessageSession(site, route, pool, member, number, facts, client, leg, rules=messages).run(
                early, answer, rest, offer, granted
            )
        else:
            asked = Asked(request, self._asked, self._rules, facts.subprotocol)
            DispatchSession(site, route, pool, member, number, facts, client, rules=messages, asked=asked).run(
                leg, early, answer, rest, offer, granted
            )

    # A refusal of the backend's.

    def _pass_refusal(self, response: ResponseHead, rest: bytes) -> None:
        connection, request = self._request.connection, self._request
        self._site.refuse(
            connection,
            "backend",
            request.route.name,
            response.status,
            f"{self._label()} refused the session",
            client=request.client_label,
            host=request.head.host,
            path=self._site.path_for_log(request.target),
        )
        assert self._member is not None
        self._pool.worked(self._member)
        fields = response_fields(response.fields)
        if response.chunked:
            fields.append((b"Transfer-Encoding", b"chunked"))
            self._body = _until_done(ChunkedBody())
        elif response.status in (204, 304):
            self._body = _until_done(LengthBody(0))
        elif response.content_length is not None:
            self._body = _until_done(LengthBody(response.content_length))
        else:
            self._body = _until_close
        if response.status == 426:
            # Hop-by-hop, and yet the point of this answer (RFC 9110 15.5.22).
            fields.append((b"Upgrade", b"websocket"))
            fields.append((b"Connection", b"Upgrade"))
        fields.append((b"Connection", b"close"))
        client, leg = self._client, self._leg
        assert leg is not None
        self.stop_waiting()
        client.write(
            b"HTTP/1.1 %d %b\r\n%b\r\n"
            % (response.status, response.reason, b"".join(b"%b: %b\r\n" % field for field in fields))
        )
        client.registerProducer(leg, True)
        self._pass_body(rest)

    def _pass_body(self, data: bytes) -> None:
        assert self._body is not None
        try:
            piece, done = self._body(data)
        except HttpError:
            self._break_off()
            return
        self._client.write(piece)
        if done:
            self._finish()
            return
        # Each piece has its own time, that which a slow client takes included.
        self.wait(self._site.relay.deadlines, REFUSAL_SILENCE)

    def _pass_end(self, *, orderly: bool) -> None:
        if self._body is _until_close and orderly:
            self._finish()
        else:
            self._break_off()

    def _finish(self) -> None:
        self._client.unregisterProducer()
        self._let_go().answered()

    def _break_off(self) -> None:
        self._client.unregisterProducer()
        self._let_go().cut()

    # The end.

    def _blame(self, error: BackendError) -> None:
        """The backend has spoilt it."""
        member = self._member
        assert member is not None
        self._let_go().refused(error)
        self._pool.failed(member, error)

    def _let_go(self) -> Opener:
        """Be done with the backend; the opener is told once, by the caller."""
        opener, self._opener = self._opener, None
        self._drop()
        assert opener is not None
        return opener

    def _drop(self) -> None:
        self.stop_waiting()
        self._attempt.settle()
        member, self._member = self._member, None
        if member is not None:
            self._pool.give_back(member)
        leg, self._leg = self._leg, None
        if leg is not None:
            leg.abortConnection()


def _until_done(body: ChunkedBody | LengthBody) -> Callable[[bytes], tuple[bytes, bool]]:
    def read(data: bytes) -> tuple[bytes, bool]:
        _, rest = body.feed(data)
        return data[: len(data) - len(rest)], body.done

    return read


def _until_close(data: bytes) -> tuple[bytes, bool]:
    return data, False
