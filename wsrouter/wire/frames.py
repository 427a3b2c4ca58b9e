"""Walks the frames of one direction of a relayed session without touching their payload (RFC 6455 5).

Nearly every read of a relayed session is one small message in one frame. Two table lookups and one comparison tell: a
pump asks for exactly that itself, to spare a call, and ``walk`` asks it first. Only what is not that goes to
``_walk_frames``.

What a first byte means depends on the state (a message may begin, or must go on). Each state is a table of 256 kinds,
and a change of state is a change of table: there is no condition left to test for each frame. The end, after a Close
or a violation, is a state like the others, in which every byte is refused.

A second table, one for each direction, gives a frame's whole size for its second byte, where that byte alone tells it.
They ask a table of their own, which may know fewer: a limit takes sizes out of it, and what is too large, or is to
be counted first, is seen without a comparison for each of the others.
"""

from __future__ import annotations

from typing import Final

from wsrouter.errors import FrameError
from wsrouter.wire.close import CONTROL_LIMIT, PROTOCOL_ERROR, apply_mask, parse_close

# Kinds of first bytes. Tuples of ints, because CPython indexes them faster than bytes.
WHOLE: Final = 0  # a message in one frame
LAST: Final = 1  # the final continuation
FIRST: Final = 2  # the first of several fragments
MORE: Final = 3  # a continuation that is not the final one
CONTROL: Final = 4  # ping or pong
CLOSE: Final = 5
REFUSED: Final = 6

#: The longest header, in bytes: two, a length of eight, and a key (RFC 6455 5.2).
HEADER_LIMIT: Final = 14

CLOSE_BYTE: Final = 0x88
_OPCODES: Final = frozenset((0x0, 0x1, 0x2, 0x8, 0x9, 0xA))

# Sizes for second bytes that do not tell the size.
LONG: Final = 0
MISMASKED: Final = -1


def _kinds(special: dict[int, int]) -> tuple[int, ...]:
    known = {CLOSE_BYTE: CLOSE, 0x89: CONTROL, 0x8A: CONTROL, **special}
    return tuple(known.get(byte, REFUSED) for byte in range(256))


def _sizes(masked: bool) -> tuple[int, ...]:
    overhead = 6 if masked else 2
    own = [overhead + length for length in range(126)] + [LONG, LONG]
    other = [MISMASKED] * 128
    return tuple(other + own if masked else own + other)


_FRESH_PLAIN: Final = _kinds({0x81: WHOLE, 0x82: WHOLE, 0x01: FIRST, 0x02: FIRST})
_FRESH_DEFLATE: Final = _kinds(
    {byte | rsv1: kind for byte, kind in enumerate(_FRESH_PLAIN) if kind in (WHOLE, FIRST) for rsv1 in (0, 0x40)}
)
FRAGMENTED: Final = _kinds({0x80: LAST, 0x00: MORE})
_ENDED = tuple([REFUSED] * 256)

_SIZES_MASKED: Final = _sizes(True)
_SIZES_PLAIN: Final = _sizes(False)


#: No size is told by the second byte.
NO_SIZES = tuple([LONG] * 256)


class FrameWalker:
    """Judges and counts the frames of one direction of one session.

    ``masked`` is True for client to backend, where every frame must be masked, False for backend to client, where none
    may be (RFC 6455 5.1). ``deflate`` says that permessage-deflate was negotiated: RSV1 may then be set on the first
    frame of a data message, and only there (RFC 7692 6).

    Readable at any time, and written by nobody else, but for ``event`` and what a pump does in ``walk``'s place:

    - ``messages``: data messages, counted when the whole header of their final frame is here;
    - ``control``: pings and pongs, counted when they are whole;
    - ``control_bytes``: the bytes of those, and of a Close;
    - ``skip``: payload bytes of the current frame that are still to come; 0 means that what was passed on so far ends
      at a frame boundary, so another frame may be put in;
    - ``fragmented``: True between the first and the final frame of a message;
    - ``held``: bytes that the last ``walk`` kept back, at most 130;
    - ``close``: code and reason of the Close frame, once one has been seen;
    - ``violation``: what rule was broken, with the close code that says so;
    - ``event``: True once ``close`` or ``violation`` is set. The walker never reads it, so a caller who must stop for a
      reason of its own may set it, or set it back.

    For a pump that takes one small message which has come alone, as ``walk`` would:

    - ``kinds``: what a first byte means in the present state;
    - ``small``: by the second byte, the sizes of frames that may pass without a further look when they come alone;
    - ``record``: the size of the largest frame that was a whole message.
    """

    __slots__ = (
        "_deflate",
        "_fragments",
        "_fresh",
        "_key",
        "_largest",
        "_others",
        "_sizes",
        "_sum",
        "close",
        "control",
        "control_bytes",
        "event",
        "fragmented",
        "held",
        "kinds",
        "messages",
        "record",
        "skip",
        "small",
        "violation",
    )

    def __init__(self, masked: bool, deflate: bool = False) -> None:
        self._deflate = deflate
        self._fresh = _FRESH_DEFLATE if deflate else _FRESH_PLAIN
        self.kinds = self._fresh
        self._sizes = _SIZES_MASKED if masked else _SIZES_PLAIN
        self._key = 4 if masked else 0
        self._others = 0
        self.small = self._sizes
        self.record = 0
        #: Payload of the largest message besides; fragments and payload of the one that comes in fragments.
        self._largest = 0
        self._fragments = 0
        self._sum = 0
        self.messages = 0
        self.control = 0
        self.control_bytes = 0
        self.skip = 0
        self.fragmented = False
        self.held = b""
        self.close: tuple[int, str] | None = None
        self.violation: FrameError | None = None
        self.event = False

    @property
    def frames(self) -> int:
        """All frames that were passed on, at least their header; one that broke a rule does not count."""
        return self.messages + self._others

    @property
    def largest(self) -> int:
        """Payload of the largest message so far, in bytes as they are on the wire: compressed, where that is agreed."""
        return max(self._length(self.record), self._largest)

    def walk(self, buf: bytes | bytearray | memoryview, end: int) -> int:
        """Return how many of the bytes ``buf[0:end]`` may be passed on now; never raises for what a peer sent.

        The caller puts ``held`` in front of the new bytes when it is not empty. The rest behind the returned position
        is in ``held`` (an unfinished header, or an unfinished control frame: those are judged whole), or is to be
        dropped, if ``event`` is set: it lies behind a Close frame (RFC 6455 5.5.1), or it breaks a rule. After that
        every call returns 0. So one check follows each call: ``if passed != end or walker.event``.
        """
        skip = self.skip
        if skip >= end:
            self.skip = skip - end
            return end
        if self.held:
            self.held = b""
        if skip:
            self.skip = 0
        elif end > 1 and self.kinds[buf[0]] == WHOLE and self.small[buf[1]] == end:
            self.messages += 1
            if end > self.record:
                self.record = end
            return end
        return self._walk_frames(buf, skip, end)

    def _walk_frames(self, buf: bytes | bytearray | memoryview, pos: int, end: int) -> int:
        """Go from frame to frame, from the boundary ``pos`` on."""
        sizes = self._sizes
        header = 2 + self._key
        while pos < end:
            first = buf[pos]
            kind = self.kinds[first]
            if kind == REFUSED:
                return pos if self.kinds is _ENDED else self._refuse(pos, self._fault(first))
            if end - pos < 2:
                return self._hold(buf, pos, end)
            size = sizes[buf[pos + 1]]
            if size == MISMASKED:
                return self._refuse(pos, "got an unmasked frame" if self._key else "got a masked frame")
            if kind >= CONTROL:
                passed = self._control_frame(buf, pos, end, size)
                if passed == pos or kind == CLOSE:
                    return passed
                pos = passed
                continue
            if size == LONG:
                size = self._long_size(buf, pos, end)
                if not size:
                    return pos
            elif end - pos < header:
                return self._hold(buf, pos, end)
            if kind == WHOLE and size <= self.record:
                self.messages += 1
            elif not self._admit(pos, kind, size):
                return pos
            pos += size
        self.skip = pos - end
        return end

    def _admit(self, pos: int, kind: int, size: int) -> bool:
        """Take in a data frame of ``size`` bytes that is a fragment, or a record; False if it must not pass."""
        if kind == WHOLE:
            self.messages += 1
            self._grow(size)
            return True
        if kind == FIRST:
            self._fragments = self._sum = 0
        self._fragments += 1
        self._sum += self._length(size)
        self.fragmented = kind != LAST
        if self.fragmented:
            self._others += 1
            self.kinds = FRAGMENTED
        else:
            self.messages += 1
            self.kinds = self._fresh
            if self._sum > self._largest:
                self._largest = self._sum
        return True

    def _grow(self, size: int) -> None:
        """A message in one frame of ``size`` bytes is the largest of its kind so far."""
        self.record = size

    def _length(self, size: int) -> int:
        """The payload of a frame whose size is ``size`` (RFC 6455 5.2); 0 for no frame."""
        length = size - self._key - 2
        if length > 125:
            length -= 2
            if length > 65535:
                length -= 6
        return max(length, 0)

    def _long_size(self, buf: bytes | bytearray | memoryview, pos: int, end: int) -> int:
        """Size of a frame with an extended length, or 0 if it was held or refused (RFC 6455 5.2)."""
        here = end - pos
        if buf[pos + 1] & 0x7F == 126:
            header = 4 + self._key
            if here >= 4:
                length = buf[pos + 2] << 8 | buf[pos + 3]
                if length < 126:
                    self._refuse(pos, f"got a length of {length} in 16 bits")
                    return 0
                if here >= header:
                    return header + length
        else:
            header = 10 + self._key
            if here > 2 and buf[pos + 2] & 0x80:
                self._refuse(pos, "got a 64-bit length with its top bit set")
                return 0
            # The last two bytes need not be here to know that they would have sufficed.
            if here >= 8 and not any(buf[pos + 2 : pos + 8]):
                self._refuse(pos, "got a length in 64 bits that fits 16")
                return 0
            if here >= header:
                return header + int.from_bytes(buf[pos + 2 : pos + 10], "big")
        self._hold(buf, pos, end)
        return 0

    def _control_frame(self, buf: bytes | bytearray | memoryview, pos: int, end: int, size: int) -> int:
        """Judge a control frame; return the position behind it, or ``pos`` if it was held or refused."""
        if size == LONG:
            return self._refuse(pos, f"got a control frame of more than {CONTROL_LIMIT} bytes")
        closing = buf[pos] == CLOSE_BYTE
        if closing and buf[pos + 1] & 0x7F == 1:
            return self._refuse(pos, "got a Close frame with half a code")
        if end - pos < size:
            return self._hold(buf, pos, end)
        self._others += 1
        self.control_bytes += size
        if not closing:
            self.control += 1
            return pos + size
        try:
            self.close = parse_close(self._payload(buf, pos, size))
        except FrameError as error:
            self._others -= 1
            return self._refuse(pos, error.reason, error.code)
        self._end()
        return pos + size

    def _payload(self, buf: bytes | bytearray | memoryview, pos: int, size: int) -> bytes:
        """The unmasked payload of a control frame that is whole."""
        head = pos + 2 + self._key
        payload = bytes(buf[head : pos + size])
        return apply_mask(payload, bytes(buf[pos + 2 : head])) if self._key else payload

    def _hold(self, buf: bytes | bytearray | memoryview, pos: int, end: int) -> int:
        self.held = bytes(buf[pos:end])
        return pos

    def _refuse(self, pos: int, reason: str, code: int = PROTOCOL_ERROR) -> int:
        # Never the error that was raised: its traceback would keep the stack, and with it the read buffer.
        self.violation = FrameError(code, reason)
        self._end()
        return pos

    def _end(self) -> None:
        self.event = True
        self.kinds = _ENDED

    def _fault(self, first: int) -> str:
        """Say why a frame must not begin with this byte in the present state."""
        opcode = first & 0x0F
        if opcode not in _OPCODES:
            return f"got reserved opcode {opcode}"
        if first & 0x30 or (first & 0x40 and not self._deflate):
            return "got a reserved bit without an extension that defines it"
        if opcode >= 8:
            return "got a compressed control frame" if first & 0x40 else "got a fragmented control frame"
        if opcode:
            return "got a new message inside a fragmented one"
        return "got a continuation with RSV1 set" if first & 0x40 else "got a continuation with nothing to continue"
