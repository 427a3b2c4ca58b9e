"""One side of a message session, ended by Autobahn: its leg's bytes become messages, and messages bytes.

Autobahn unmasks, inflates, checks UTF-8, puts messages together and takes them apart. What it is not asked for:

- The opening handshake. Client and backend have done it already, through ``opening``; Autobahn is given a head that the
  router wrote, with nothing in it that a peer chose, and says only which extension it takes.
- Framing rules, policies and Close frames: ``inlet`` stands before Autobahn, which sees well-formed frames only.
- Limits, timers, and the end: they are the session's.

Autobahn handles what it was given in one go. Here it takes one step at a time (``consumeData``), so that one read,
which may inflate to a thousand times its size, is held up in its midst when the other side is slow or a filter thinks.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from typing import Any, Protocol

from autobahn.websocket.protocol import WebSocketProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from wsrouter.errors import FrameError
from wsrouter.layer7.inlet import Inlet
from wsrouter.layer7.pieces import SMALL, Pieces
from wsrouter.layer7.policies import Policies
from wsrouter.relay.deadlines import Deadline
from wsrouter.relay.leg import Leg
from wsrouter.relay.tls import reason_of
from wsrouter.wire.close import INVALID_TEXT, TOO_BIG, close_frame
from wsrouter.wire.policed import PolicyWalker

#: Steps of Autobahn's, about two for each frame, that one side may take before others have their turn.
STEPS = 256

# Why a side does not go on with its peer's messages: the other side is slow, a filter thinks, others have their turn.
SLOW, JUDGED, TURN = 1, 2, 4
#: Why it does not read on, but goes on with what has come: a rate is used up.
RATE = 8


class Session(Protocol):
    """What the sides report to. After ``failed`` or ``close_came`` a side reports nothing but its peer's end."""

    def message_came(self, side: Side, payload: bytes, is_binary: bool) -> None:
        """The peer sent a whole message; text is valid UTF-8."""

    def control_came(self, side: Side, is_ping: bool, payload: bytes) -> None:
        """The peer sent a ping or a pong."""

    def ping_answered(self, side: Side) -> None:
        """The peer has answered a ping of the router's own."""

    def close_came(self, side: Side) -> None:
        """The peer sent the Close frame that ``side.walker.close`` holds, and all before it was reported."""

    def failed(self, side: Side, error: FrameError) -> None:
        """The peer broke a rule."""

    def answer_came(self, side: Side) -> None:
        """Of a peer that was told to close: it has, or will not any more."""

    def fin_came(self, side: Side) -> None:
        """The peer sends nothing more."""

    def lost(self, side: Side, how: str) -> None:
        """The connection is gone; ``how``, in words."""


class _Mute:
    """Stands for Autobahn's logger, which tells of each end at its own length: the session tells of it, once."""

    def _ignore(self, *_: Any, **__: Any) -> None:
        pass

    trace = debug = info = warn = error = _ignore


@implementer(IHalfCloseableProtocol, IPushProducer)
class Side(WebSocketProtocol):  # type: ignore[misc]
    """What both sides have in common; it stands before Autobahn's own class. As a producer it feeds the other leg.

    What pings its peer is told by it, in the words of ``keepalive.Heard`` and ``keepalive.Into``.
    """

    log = _Mute()
    #: Autobahn would copy its options one by one, and format them for its log.
    CONFIG_ATTRS: Sequence[str] = ()

    #: Every frame goes out whole.
    at_boundary = True
    is_inserting = False

    #: Autobahn's own.
    _isMessageCompressed: bool

    def __init__(self, session: Session, leg: Leg, limit: int, policies: Policies, factory: Any) -> None:
        super().__init__()
        self.__dict__.update(factory.options)
        self.factory = factory
        self._session: Session | None = session
        self.leg = leg
        #: The other side's leg.
        self.sink: Leg | None = None
        #: Bytes that came, and bytes of frames that were passed on to the peer.
        self.bytes = 0
        self.passed = 0
        #: Nothing that comes is passed on any more; only the peer's Close is waited for.
        self.over = False
        self._limit = limit
        self.policies = policies
        self._held = 0
        self._consuming = False
        self._pieces = Pieces()
        self._deflated = False
        #: How much may come of a compressed message at once, in bytes.
        self._sip = max(SMALL, limit // 4)
        self._said = b""
        #: What goes on when a rate allows it.
        self._timer: Deadline | None = None

    # What the session asks for.

    def begin(self, head: bytes) -> bytes:
        """Bring Autobahn into the open state with a head of the router's own; returns what it answers."""
        super().dataReceived(head)
        if self.state != self.STATE_OPEN:
            raise RuntimeError(f"Autobahn does not open on {head!r}: {self._said!r}")
        said, self._said = self._said, b""
        self._inlet = Inlet(
            self.policies,
            masked=self.factory.isServer,
            deflate=bool(self.websocket_extensions_in_use),
            seconds=self.leg.relay.seconds,
        )
        return said

    def say_close(self, code: int, reason: str = "") -> None:
        """Send a Close frame."""
        self.leg.write(close_frame(code, reason, None if self.factory.isServer else os.urandom(4)))

    def put_in(self, frame: bytes) -> None:
        """Send a control frame of the router's own."""
        self.leg.write(frame)

    def hold(self, why: int) -> None:
        """Take nothing more of the peer's messages, and read none that would have to wait."""
        self._held |= why
        self._read_or_wait()

    def go_on(self, why: int) -> None:
        """A reason to hold is gone; without another one, the messages that have come are taken first."""
        if self._held & why:
            self._held &= ~why
            self.consumeData()
            self._read_or_wait()

    def ignore(self) -> None:
        """Pass on nothing more, but read on, to see the peer's Close; ``walker.event`` tells whether it has come."""
        if self.over:
            return
        self.over = True
        self.data = b""
        self._pieces = Pieces()
        self._stop_waiting()
        self._inlet.relax()
        self._held = 0
        self._read_or_wait()

    def dissolve(self) -> None:
        """The session has ended: let go of it."""
        self.over = True
        self._stop_waiting()
        self.sink = None
        self._session = None

    def activity(self, *, data: bool) -> int:
        """See Inlet.activity."""
        return self._inlet.activity(self.bytes, data=data)

    @property
    def walker(self) -> PolicyWalker:
        """What judges the frames that come; its counts are the session's."""
        return self._inlet.walker

    @property
    def source(self) -> Leg:
        """The peer's leg."""
        return self.leg

    @property
    def paused(self) -> bool:
        """Whether the peer is not read."""
        return not self.leg.is_reading

    # What the leg calls.

    def dataReceived(self, data: bytes) -> None:
        """Judge the frames, then let Autobahn have them."""
        self.bytes += len(data)
        self._take(self._inlet.take(data))

    def _take(self, data: bytes) -> None:
        inlet = self._inlet
        if inlet.answered:
            inlet.answered = False
            self._report().ping_answered(self)
        if self.over:
            if inlet.walker.event and self._session is not None:
                self._session.answer_came(self)
            return
        if inlet.wait is not None:
            self._timer = self.leg.relay.deadlines.after(inlet.wait, self._take_rest)
            self._held |= RATE
        self.data += data
        self.consumeData()
        if self._held:
            self._read_or_wait()

    def _take_rest(self) -> None:
        self._timer = None
        self._held &= ~RATE
        try:
            self._take(self._inlet.take_rest())
            self._read_or_wait()
        except Exception:
            self.leg.relay.fail(self.leg)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _read_or_wait(self) -> None:
        """Read on, unless something holds, and what is read would have to wait."""
        if not self._held or (self._held == JUDGED and not self.data):
            # While a filter thinks, pongs and the end of the peer are still heard.
            self.leg.resumeProducing()
        elif self._held & JUDGED:
            self.leg.await_end()
        else:
            self.leg.pauseProducing()

    def readConnectionLost(self) -> None:
        """The peer's FIN."""
        if self._session is not None:
            self._session.fin_came(self)

    def writeConnectionLost(self) -> None:
        """Part of IHalfCloseableProtocol; a side never half-closes."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        super().connectionLost(reason)
        # Autobahn's Deferreds hold this object in a cycle.
        del self.is_open, self.is_closed
        if self._session is not None:
            error = reason.value
            if isinstance(error, Exception) and not isinstance(error, ConnectionDone):
                self._session.lost(self, reason_of(error))
            else:
                self._session.lost(self, "vanished")

    # What the other leg calls.

    def pauseProducing(self) -> None:
        """The other side is slow."""
        self.hold(SLOW)

    def resumeProducing(self) -> None:
        """The other side takes more."""
        self.go_on(SLOW)

    def stopProducing(self) -> None:
        """The other side is gone: the session hears that from there."""

    # What Autobahn calls.

    def consumeData(self) -> None:
        """Take the frames that have come, as far as nothing holds them up."""
        if self.state == self.STATE_CONNECTING:
            super().consumeData()
            return
        if self._consuming:
            return  # a filter answered at once: the loop below goes on by itself
        self._consuming = True
        try:
            self._take_steps()
        finally:
            self._consuming = False

    def _take_steps(self) -> None:
        for _ in range(STEPS):
            if self._held & ~RATE or self.over:
                return
            if not self.processData():
                break
        else:
            self.hold(TURN)
            self.leg.relay.soon(self._take_turn)
            return
        violation = self.walker.violation
        if violation is not None and not self._held & ~RATE and not self.over:
            self._fail(violation)

    def _take_turn(self) -> None:
        try:
            self.go_on(TURN)
        except Exception:
            self.leg.relay.fail(self.leg)

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Write frames to the leg; what Autobahn says in its handshake is for ``begin``."""
        if self.state == self.STATE_CONNECTING:
            self._said += data
        else:
            self.passed += len(data)
            self.leg.write(data)

    def sendCloseFrame(self, code: int, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        """Autobahn cannot go on: the text is not UTF-8, or a message is damaged or inflates beyond the limit."""
        if code == TOO_BIG:
            self._refuse_size()
        else:
            self._fail(FrameError(code, (reasonUtf8 or b"").decode()))

    def onMessageBegin(self, isBinary: bool) -> None:
        """A message begins."""
        super().onMessageBegin(isBinary)
        self._deflated = bool(self.current_frame.rsv)

    def onMessageFrameBegin(self, length: int) -> None:
        """A frame of it begins, of ``length`` bytes on the wire."""
        super().onMessageFrameBegin(length)
        if not self._deflated and self.message_data_total_length > self._limit:
            self._refuse_size()

    def onFrameData(self, payload: bytes) -> bool | None:
        """A piece of a frame, unmasked: Autobahn gets it inflated.

        It would inflate all at once, up to the limit, and zlib has what comes of it twice while it puts it together.
        """
        if self.current_frame.opcode > 7 or not self._isMessageCompressed:
            return super().onFrameData(payload)  # type: ignore[no-any-return]
        (deflate,) = self.websocket_extensions_in_use
        stream, sip, piece = deflate._decompressor, self._sip, None
        self._isMessageCompressed = False
        try:
            while payload or piece is None or len(piece) == sip:
                piece = stream.decompress(payload, sip)
                payload = stream.unconsumed_tail
                if super().onFrameData(piece) is False or self.over:
                    return False
        except zlib.error:
            self._fail(FrameError(INVALID_TEXT, "got a message that does not inflate"))
            return False
        finally:
            self._isMessageCompressed = True
        return None

    def onMessageFrameData(self, payload: bytes) -> None:
        """A piece of a frame, unmasked and inflated."""
        if self.over:
            return
        if self._pieces.size + len(payload) > self._limit:
            self._refuse_size()
        else:
            self._pieces.add(payload)

    def onMessageFrameEnd(self) -> None:
        """A frame is whole; its pieces were taken as they came."""

    def onMessageEnd(self) -> None:
        """The message is whole."""
        if self.over:
            return
        if self._deflated:
            self._renew_inflation()
        self._report().message_came(self, self._pieces.take(), self.message_is_binary)

    def onPing(self, payload: bytes) -> None:
        """It is for the other end to answer."""
        if not self.over:
            self._report().control_came(self, True, payload)

    def onPong(self, payload: bytes) -> None:
        """It is for the other end to see."""
        if not self.over:
            self._report().control_came(self, False, payload)

    def onCloseFrame(self, code: int | None, reasonRaw: bytes | None) -> None:
        """The walker has judged it: Autobahn knows fewer codes."""
        if not self.over:
            self._report().close_came(self)

    def _renew_inflation(self) -> None:
        """Begin a new stream behind one that a final block has ended (RFC 7692 7.2.3.4): nothing would come of it."""
        (deflate,) = self.websocket_extensions_in_use
        if deflate._decompressor.eof:
            deflate._decompressor = None

    def _refuse_size(self) -> None:
        self._fail(FrameError(TOO_BIG, f"got a message of more than {self._limit} bytes"))

    def _fail(self, error: FrameError) -> None:
        if not self.over:
            self._report().failed(self, error)

    def _report(self) -> Session:
        session = self._session
        assert session is not None
        return session
