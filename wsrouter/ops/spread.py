"""Ends many sessions not at once but over a time: clients connect again as soon as they are told to."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

#: The shortest pause between two looks, in seconds: one timer serves thousands.
TICK = 0.05

_log = Logger()

T = TypeVar("T")


class Spread(Generic[T]):
    """Calls ``act`` with each of ``things``, in a random order and at an even pace over ``seconds`` from ``start``.

    The first is served at once. What ``act`` raises is logged, and the others have their turn.
    """

    def __init__(
        self,
        clock: IReactorTime,
        things: Iterable[T],
        seconds: float,
        act: Callable[[T], None],
        shuffle: Callable[[list[T]], None] = random.shuffle,
    ) -> None:
        self._clock = clock
        self._queue = list(things)
        shuffle(self._queue)
        self._seconds = seconds
        self._act = act
        #: On the clock: when the next is due, and how long after it the one behind.
        self._due = 0.0
        self._gap = 0.0
        self._until = 0.0
        self._call: IDelayedCall | None = None

    @property
    def waiting(self) -> int:
        """How many have not had their turn."""
        return len(self._queue)

    def start(self) -> None:
        """Begin."""
        self._due = self._clock.seconds()
        self._until = self._due + self._seconds
        self._pace()
        self._look()

    def add(self, things: Iterable[T]) -> None:
        """More have come: they have their turn among those that wait, all of it within the same time.

        Nobody is served from within this call.
        """
        for thing in things:
            self._queue.insert(random.randint(0, len(self._queue)), thing)
        self._due = max(self._due, min(self._clock.seconds(), self._until))
        self._pace()
        if self._call is None:
            self._call = self._clock.callLater(0, self._look)

    def stop(self) -> None:
        """Nobody has a turn any more."""
        self._queue.clear()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _pace(self) -> None:
        self._gap = max(0.0, self._until - self._due) / max(1, len(self._queue))

    def _look(self) -> None:
        self._call = None
        now = self._clock.seconds()
        while self._queue and self._due <= now:
            self._due += self._gap
            thing = self._queue.pop()
            try:
                self._act(thing)
            except Exception:
                _log.failure("A session could not be asked to end")
        if self._queue:
            self._call = self._clock.callLater(max(TICK, self._due - now), self._look)
