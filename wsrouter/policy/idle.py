"""When a tunnel or session has been idle for too long."""

from __future__ import annotations

#: How often a counter is looked at within the length of a timeout.
SAMPLES = 8


class IdleWatch:
    """Decides idleness by looking at a counter now and then, so that the relay's bytes need not touch a timer.

    Times are seconds of any one clock that never goes back. The caller samples every ``interval`` seconds. Activity
    counts as having been at the sample that first sees it: an end may come late, by two intervals at most, never early.
    """

    __slots__ = ("_count", "_since", "timeout")

    def __init__(self, timeout: float, now: float, count: int = 0) -> None:
        self.timeout = timeout
        self._count = count
        self._since = now

    @property
    def interval(self) -> float:
        """How long to wait between samples, in seconds."""
        return self.timeout / SAMPLES

    def sample(self, now: float, count: int) -> bool:
        """Tell whether ``count``, which grows with every activity, has stood still for at least ``timeout`` seconds."""
        if count != self._count:
            self._count = count
            self._since = now
            return False
        return now - self._since >= self.timeout
