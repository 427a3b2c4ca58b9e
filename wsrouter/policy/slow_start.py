"""Slow start: a backend that comes back gets its share of new sessions bit by bit.

Its caches are cold, and by any measure of load it looks like the best place there is. So for ``slow_start``
seconds it counts with a part of its weight only, which grows with time.
"""

from __future__ import annotations

#: The part of its weight that a backend has at first: enough for a few sessions to go there and be judged.
LEAST = 0.01


def ramp(since: float, now: float, slow_start: float) -> float:
    """Return which part of its weight a backend has that became available at ``since``: from ``LEAST`` to 1.

    All are in seconds of one clock; ``slow_start`` is more than 0. The part grows in proportion to time.
    """
    return min(1.0, max(LEAST, (now - since) / slow_start))
