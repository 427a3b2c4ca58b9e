"""What is held for as long as a leg lives, and given back when it ends, however it ends."""

from __future__ import annotations

from collections.abc import Callable

from wsrouter.relay.leg import Home, Leg


class Lease:
    """Stands between a leg and its home, and hears of the leg's end first.

    ``give_back`` is called once, when the leg has ended, and must not raise. A leg whose socket goes on as another one
    (TLS) hands its home on, and the lease with it.
    """

    __slots__ = ("_give_back", "_home")

    def __init__(self, leg: Leg, give_back: Callable[[], None]) -> None:
        self._give_back = give_back
        self._home: Home | None = leg.home
        leg.home = self

    def left(self) -> None:
        """The leg has ended."""
        self._give_back()
        if self._home is not None:
            self._home.left()
