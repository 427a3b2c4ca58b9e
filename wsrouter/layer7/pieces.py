"""A message that comes in pieces.

One buffer that grows would now and then be copied into a larger one, and both are there meanwhile. A list of what came
takes no more than the message, unless that came byte by byte: so small pieces are put together.
"""

from __future__ import annotations

#: How much is put together, in bytes.
SMALL = 64 * 1024


class Pieces:
    """What has come of a message; ``size`` is how much, in bytes."""

    __slots__ = ("_pieces", "size")

    def __init__(self) -> None:
        self._pieces: list[bytes | bytearray] = []
        self.size = 0

    def add(self, piece: bytes) -> None:
        """Some more of it has come."""
        self.size += len(piece)
        pieces = self._pieces
        if not pieces or len(pieces[-1]) + len(piece) > SMALL:
            pieces.append(piece)
            return
        last = pieces[-1]
        if isinstance(last, bytes):
            last = pieces[-1] = bytearray(last)
        last += piece

    def take(self) -> bytes:
        """All that has come; what comes from now on belongs to the next message."""
        pieces, self._pieces, self.size = self._pieces, [], 0
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)
