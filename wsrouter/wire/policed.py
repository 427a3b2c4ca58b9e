"""A frame walker for sessions with policies that frame headers can decide: sizes, rates, the router's own pings.

It does what ``FrameWalker`` does, and stops for more reasons. Sessions without such policies pay nothing for it.
"""

from __future__ import annotations

from typing import Final

from wsrouter.wire.close import CONTROL_LIMIT, POLICY, TOO_BIG, ping_frame
from wsrouter.wire.frames import CLOSE_BYTE, FIRST, LONG, NO_SIZES, WHOLE, FrameWalker

#: What the payload of a ping of the router's own begins with, in bytes, and the number behind it.
TOKEN_SIZE: Final = 8
_NUMBER_SIZE: Final = 4
_PONG_BYTE: Final = 0x8A


class OwnPings:
    """The pings that the router puts in on one leg, and what answers them.

    ``token`` is TOKEN_SIZE random bytes: nobody else's pings look like these, so a pong is known by its payload.
    """

    __slots__ = ("answered", "sent", "token")

    def __init__(self, token: bytes) -> None:
        self.token = token
        #: Numbers of the last ping that was made, and of the last that was answered; they are counted from 1.
        self.sent = 0
        self.answered = 0

    def make(self, mask: bytes | None = None) -> bytes:
        """The next ping, as a whole frame; ``mask`` as for ``close_frame``."""
        self.sent += 1
        return ping_frame(self.token + self.sent.to_bytes(_NUMBER_SIZE, "big"), mask)

    def take(self, payload: bytes) -> bool:
        """Tell whether a pong with this payload answers one of them that was not answered before.

        A peer need not answer every ping, only the latest (RFC 6455 5.5.3), so an answer stands for all before it.
        """
        if len(payload) != TOKEN_SIZE + _NUMBER_SIZE or not payload.startswith(self.token):
            return False
        number = int.from_bytes(payload[TOKEN_SIZE:], "big")
        if not self.answered < number <= self.sent:
            return False
        self.answered = number
        return True


class PolicyWalker(FrameWalker):
    """A walker that holds messages to a size and a number, and takes out the pongs to the router's own pings.

    ``max_message`` is the most payload of a message in bytes, and ``max_fragments`` the most frames that it may come
    in; None for no limit. Compressed messages are measured as they are on the wire. ``pings`` are those that were put
    in towards the peer whose frames these are.

    ``walk`` stops for two more reasons, and ``event`` is True then; the caller sets it and these back to go on:

    - ``cut``: the bytes behind what may be passed are a pong to be taken out, of this size. What follows is good.
    - ``starved``: the next frame begins one message, ping or pong more than ``ration`` has allowed. That frame, and
      what follows, has to wait. A caller who counts bytes may set it, with ``event``, for want of those.

    ``cut_bytes`` is how many bytes were taken out so far.
    """

    __slots__ = (
        "_allowance",
        "_harmless",
        "_max_fragments",
        "_max_message",
        "_pings",
        "_pong_size",
        "cut",
        "cut_bytes",
        "starved",
    )

    def __init__(
        self,
        masked: bool,
        deflate: bool = False,
        *,
        max_message: int | None = None,
        max_fragments: int | None = None,
        pings: OwnPings | None = None,
    ) -> None:
        super().__init__(masked, deflate)
        self._max_message = max_message
        self._max_fragments = max_fragments
        #: The sizes that pass without a further look while nothing is rationed.
        self._harmless = self._sizes if max_message is None or max_message >= CONTROL_LIMIT else NO_SIZES
        self.small = self._harmless
        self._pings = pings
        self._pong_size = 2 + self._key + TOKEN_SIZE + _NUMBER_SIZE
        #: How many more may begin; None for any number.
        self._allowance: int | None = None
        self.cut = 0
        self.cut_bytes = 0
        self.starved = False

    @property
    def begun(self) -> int:
        """Messages, pings and pongs that have begun so far, those that were taken out excepted."""
        return self.messages + self.fragmented + self.control

    def ration(self, allowance: int | None) -> None:
        """Let no more than ``allowance`` messages, pings and pongs begin from now on; None for any number."""
        if allowance is not None and self._allowance is None:
            # Without a record, and without sizes, nothing is known to be harmless: every message comes to ``_admit``.
            self._largest = max(self._largest, self._length(self.record))
            self.record = 0
            self.small = NO_SIZES
        elif allowance is None:
            self.small = self._harmless
        self._allowance = allowance

    def refuse(self, reason: str, code: int) -> None:
        """Let nothing more pass, over a rule that the caller knows; a frame under way stays cut off."""
        self._refuse(0, reason, code)

    def relax(self) -> None:
        """Take nothing out any more, and let everything pass that is not too large."""
        self._pings = None
        self.ration(None)

    def _admit(self, pos: int, kind: int, size: int) -> bool:
        fresh = kind in (WHOLE, FIRST)
        limit = self._max_message
        if limit is not None and self._length(size) + (0 if fresh else self._sum) > limit:
            self._refuse(pos, f"got a message of more than {limit} bytes", TOO_BIG)
            return False
        if not fresh and self._fragments == self._max_fragments:
            self._refuse(pos, f"got a message of more than {self._max_fragments} fragments", POLICY)
            return False
        if fresh and not self._spend():
            return False
        return super()._admit(pos, kind, size)

    def _grow(self, size: int) -> None:
        if self._allowance is None:
            super()._grow(size)
        else:
            self._largest = max(self._largest, self._length(size))

    def _control_frame(self, buf: bytes | bytearray | memoryview, pos: int, end: int, size: int) -> int:
        if size != LONG and end - pos >= size and buf[pos] != CLOSE_BYTE:
            if self._pings is not None and size == self._pong_size and buf[pos] == _PONG_BYTE:
                payload = self._payload(buf, pos, size)
                if self._pings.take(payload):
                    self.cut = size
                    self.cut_bytes += size
                    self.event = True
                    return pos
            if not self._spend():
                return pos
        return super()._control_frame(buf, pos, end, size)

    def _spend(self) -> bool:
        if self._allowance is None:
            return True
        if self._allowance:
            self._allowance -= 1
            return True
        self.starved = self.event = True
        return False
