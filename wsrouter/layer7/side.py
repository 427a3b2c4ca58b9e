"""One side of a message session, ended by Autobahn: its leg's bytes become messages, and messages bytes.

Autobahn unmasks, inflates, checks UTF-8, puts messages together and takes them apart. What it is not asked for:

- The opening handshake. Client and backend have done it already, through ``opening``; Autobahn is given a head that the
  router wrote, with nothing in it that a peer chose, and says only which extension it takes.
- Framing rules and Close frames. The walker that judges the frames of relay sessions stands before Autobahn, so both
  kinds of session refuse the same, and Autobahn sees well-formed frames only.
- Limits, timers, and the end: they are the session's.

Autobahn handles what it was given in one go. Here it takes one step at a time (``consumeData``), so that one read,
which may inflate to a thousand times its size, is held up in its midst when the other side is slow or a filter thinks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

from autobahn.websocket.protocol import WebSocketProtocol
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from wsrouter.errors import FrameError
from wsrouter.relay.leg import Leg
from wsrouter.wire.close import POLICY, TOO_BIG, close_frame
from wsrouter.wire.frames import FrameWalker

#: Empty fragments that one message may have: they cost the sender nothing, and no limit of size ends them.
EMPTY_FRAGMENTS = 1000
#: Steps of Autobahn's, about two for each frame, that one side may take before others have their turn.
STEPS = 256

# Why a side does not go on with its peer's messages.
SLOW, JUDGED, TURN = 1, 2, 4


class Session(Protocol):
    """What the sides report to. After ``failed`` or ``close_came`` a side reports nothing but its peer's end."""

    def message_came(self, side: Side, payload: bytes, is_binary: bool) -> None:
        """The peer sent a whole message; text is valid UTF-8."""

    def control_came(self, side: Side, is_ping: bool, payload: bytes) -> None:
        """The peer sent a ping or a pong."""

    def close_came(self, side: Side) -> None:
        """The peer sent the Close frame that ``side.walker.close`` holds, and all before it was reported."""

    def failed(self, side: Side, error: FrameError) -> None:
        """The peer broke a rule."""

    def answer_came(self, side: Side) -> None:
        """Of a peer that was told to close: it has, or will not any more."""

    def fin_came(self, side: Side) -> None:
        """The peer sends nothing more."""

    def lost(self, side: Side, reason: Failure) -> None:
        """The connection is gone."""


class _Mute:
    """Stands for Autobahn's logger, which tells of each end at its own length: the session tells of it, once."""

    def _ignore(self, *_: Any, **__: Any) -> None:
        pass

    trace = debug = info = warn = error = _ignore


@implementer(IHalfCloseableProtocol, IPushProducer)
class Side(WebSocketProtocol):  # type: ignore[misc]
    """What both sides have in common; it stands before Autobahn's own class. As a producer it feeds the other leg."""

    log = _Mute()
    #: Autobahn would copy its options one by one, and format them for its log.
    CONFIG_ATTRS: Sequence[str] = ()

    def __init__(self, session: Session, leg: Leg, limit: int, factory: Any) -> None:
        super().__init__()
        self.__dict__.update(factory.options)
        self.factory = factory
        self._session: Session | None = session
        self.leg = leg
        #: Judges the frames that come; its counts are the session's.
        self.walker = FrameWalker(masked=factory.isServer, deflate=False)
        #: Bytes that came.
        self.bytes = 0
        #: Nothing that comes is passed on any more; only the peer's Close is waited for.
        self.over = False
        self._limit = limit
        self._held = 0
        self._consuming = False
        self._message: bytes | bytearray = b""
        self._deflated = False
        self._empty_fragments = 0
        self._said = b""

    # What the session asks for.

    def begin(self, head: bytes) -> bytes:
        """Bring Autobahn into the open state with a head of the router's own; returns what it answers."""
        super().dataReceived(head)
        if self.state != self.STATE_OPEN:
            raise RuntimeError(f"Autobahn does not open on {head!r}: {self._said!r}")
        said, self._said = self._said, b""
        if self.websocket_extensions_in_use:
            self.walker = FrameWalker(masked=self.factory.isServer, deflate=True)
        return said

    def say_close(self, code: int, reason: str = "") -> None:
        """Send a Close frame."""
        self.leg.write(close_frame(code, reason, None if self.factory.isServer else os.urandom(4)))

    def hold(self, why: int) -> None:
        """Take nothing more of the peer's messages, and read none."""
        if not self._held:
            self.leg.pauseProducing()
        self._held |= why

    def go_on(self, why: int) -> None:
        """A reason to hold is gone; without another one, the messages that have come are taken first."""
        if self._held & why:
            self._held &= ~why
            if not self._held:
                self.consumeData()
            if not self._held:
                self.leg.resumeProducing()

    def ignore(self) -> None:
        """Pass on nothing more, but read on, to see the peer's Close."""
        if not self.over:
            self.over = True
            self.data = self._message = b""
            if self._held:
                self._held = 0
                self.leg.resumeProducing()

    def dissolve(self) -> None:
        """The session has ended: let go of it."""
        self.over = True
        self._session = None

    # What the leg calls.

    def dataReceived(self, data: bytes) -> None:
        """Judge the frames, then let Autobahn have them."""
        self.bytes += len(data)
        walker = self.walker
        if walker.held:
            data = walker.held + data
        end = walker.walk(data, len(data))
        if self.over:
            if walker.event and self._session is not None:
                self._session.answer_came(self)
            return
        self.data += data if end == len(data) else data[:end]
        self.consumeData()

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
            self._session.lost(self, reason)

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
            if self._held or self.over:
                return
            if not self.processData():
                break
        else:
            self.hold(TURN)
            self.leg.relay.soon(self._take_turn)
            return
        violation = self.walker.violation
        if violation is not None and not self._held and not self.over:
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
        self._message = b""
        self._empty_fragments = 0
        self._deflated = bool(self.current_frame.rsv)

    def onMessageFrameBegin(self, length: int) -> None:
        """A frame of it begins, of ``length`` bytes on the wire."""
        super().onMessageFrameBegin(length)
        if not self._deflated and self.message_data_total_length > self._limit:
            self._refuse_size()
        elif not length:
            self._empty_fragments += 1
            if self._empty_fragments > EMPTY_FRAGMENTS:
                self._fail(FrameError(POLICY, f"got a message with more than {EMPTY_FRAGMENTS} empty fragments"))

    def onMessageFrameData(self, payload: bytes) -> None:
        """A piece of a frame, unmasked and inflated."""
        if self.over:
            return
        if not self._message:
            self._message = payload
        elif isinstance(self._message, bytearray):
            self._message += payload
        else:
            self._message = bytearray(self._message)
            self._message += payload
        if len(self._message) > self._limit:
            self._refuse_size()

    def onMessageFrameEnd(self) -> None:
        """A frame is whole; its pieces were taken as they came."""

    def onMessageEnd(self) -> None:
        """The message is whole."""
        if self.over:
            return
        if self._deflated:
            self._renew_inflation()
        message, self._message = bytes(self._message), b""
        self._report().message_came(self, message, self.message_is_binary)

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
