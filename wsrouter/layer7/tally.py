"""What a session that chooses a backend for each message has had with each of them."""

from __future__ import annotations

from dataclasses import dataclass

from wsrouter.config.values import IdleCounts
from wsrouter.layer7.side import Side
from wsrouter.live.registry import Served


@dataclass(slots=True)
class Tally:
    """What a session has had with one backend, over all branches to it that have ended."""

    backend: str
    #: Messages that were sent to it.
    sent: int = 0
    messages: int = 0
    frames: int = 0
    bytes: int = 0
    largest: int = 0
    #: As ``Side.activity`` counts.
    activity: int = 0
    #: The round-trip time of the last ping of the router's own that was answered, in seconds.
    rtt: float | None = None
    #: How the last branch was lost, or why it could not be opened; empty if nothing went wrong.
    lost: str = ""

    def add(self, side: Side, counts: IdleCounts) -> None:
        """Add what has come from the backend over ``side``; ``counts`` says what is activity."""
        walker = side.walker
        self.messages += walker.messages
        self.frames += walker.frames
        self.bytes += side.bytes
        self.largest = max(self.largest, walker.largest)
        self.activity += side.activity(data=counts is IdleCounts.DATA)

    def served(self) -> Served:
        """The same for those who ask the registry."""
        return Served(self.backend, self.sent, self.messages, self.lost)
