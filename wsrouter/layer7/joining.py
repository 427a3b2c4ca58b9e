"""The opening handshake with a further backend of a session (RFC 6455 4).

The client's own request goes out once more, with a key of the router's own. What the first backend and the client have
agreed on stands, so a backend that does not agree to it, too, is of no use.
"""

from __future__ import annotations

import binascii
import os
from collections.abc import Callable
from typing import NamedTuple

from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from wsrouter.backends.dial import Dial
from wsrouter.backends.pool import BackendPool
from wsrouter.errors import BackendError, DialError
from wsrouter.layer7.site import HeaderRules, Request
from wsrouter.policy.members import Member
from wsrouter.relay.leg import Leg
from wsrouter.relay.protocol import LegProtocol
from wsrouter.wire.head import ResponseHead, final_response
from wsrouter.wire.opening import Upgrade, check_refusal, verify_answer


class Asked(NamedTuple):
    """What the backends of one session are asked for."""

    request: Request
    #: The extensions are the router's own offers.
    upgrade: Upgrade
    headers: HeaderRules
    #: What the first backend has chosen, or empty.
    subprotocol: str


class Joining(LegProtocol):
    """The way to a further backend, from the dial to its 101; the protocol on its leg until then.

    ``joined(leg, response, rest)`` or ``failed(reason, lasting)`` is called once, unless ``cancel`` comes before.
    ``lasting`` tells that the backend is well, but of no use to this session.
    """

    #: For the compiler: what ``del`` may take away.
    __deletable__ = ["_joined", "_failed"]
    __slots__ = ("_asked", "_dial", "_failed", "_joined", "_key", "_leg", "_member", "_over", "_pool", "_received")

    def __init__(
        self,
        pool: BackendPool,
        member: Member,
        asked: Asked,
        joined: Callable[[Leg, ResponseHead, bytes], None],
        failed: Callable[[str, bool], None],
    ) -> None:
        super().__init__()
        self._pool = pool
        self._member = member
        self._asked = asked
        self._key = binascii.b2a_base64(os.urandom(16), newline=False)
        self._joined = joined
        self._failed = failed
        self._over = False
        self._dial: Dial | None = None
        self._leg: Leg | None = None
        self._received = b""

    def start(self, preface: bytes) -> None:
        """Dial; ``preface`` opens the connection."""
        dial = self._pool.dial(self._member, self._connected, self._unreached, preface)
        if dial is not None:  # else it is decided already
            self._dial = dial

    def cancel(self) -> None:
        """It is not needed any more."""
        self._end()

    def _connected(self, leg: Leg) -> None:
        self._dial = None
        self._leg = leg
        self.wait(self._pool.relay.deadlines, self._pool.config.handshake_timeout)
        leg.attach(self)
        request, upgrade, headers, _ = self._asked
        leg.write(request.opening(upgrade, [*headers.fill(request), (b"Sec-WebSocket-Key", self._key)]))

    def _unreached(self, error: DialError) -> None:
        self._dial = None
        self._blame(error)

    def late(self) -> None:
        """The backend keeps silent."""
        self._blame(DialError("keeps silent after the opening handshake", timed_out=True))

    def dataReceived(self, data: bytes) -> None:
        """Gather the answer's head, then judge it."""
        if self._over:
            return
        try:
            response, rest = final_response(self._received + data, len(self._received))
            if response is None:
                self._received = rest
            else:
                self._answered(response, rest)
        except BackendError as error:
            self._blame(error)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The backend went away before it had answered."""
        self._leg = None
        if not self._over:
            self._blame(DialError("closed the connection before its answer", nonsense=True))

    def _answered(self, response: ResponseHead, rest: bytes) -> None:
        if response.status != 101:
            check_refusal(response)
            self._decline(f"refused the session with status {response.status}", lasting=False)
            return
        accepted = verify_answer(response, self._asked.upgrade._replace(key=self._key))
        if (accepted.subprotocol or "") != self._asked.subprotocol:
            self._decline("chose another subprotocol", lasting=True)
            return
        self._pool.worked(self._member)
        leg, self._leg = self._leg, None
        assert leg is not None
        joined = self._joined
        self._end()
        joined(leg, response, rest)

    def _decline(self, reason: str, *, lasting: bool) -> None:
        """The backend is well, and does not join."""
        self._pool.worked(self._member)
        failed = self._failed
        self._end()
        failed(reason, lasting)

    def _blame(self, error: DialError | BackendError) -> None:
        """The backend has spoilt it."""
        failed = self._failed
        self._end()
        self._pool.failed(self._member, error)
        failed(error.reason, False)

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        # Bound methods of who holds this: a cycle.
        del self._joined, self._failed
        self.stop_waiting()
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        leg, self._leg = self._leg, None
        if leg is not None:
            leg.abortConnection()
