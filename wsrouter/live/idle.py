"""Ends what has been idle for too long, at no cost to the bytes that flow.

Nothing is noted when bytes pass. Instead each watched thing has a counter that grows with its activity, and the
counter is sampled a few times within the timeout. All things of one timeout are sampled by one timer.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from wsrouter.policy.idle import SAMPLES, IdleWatch

_log = Logger()


class Watched(Protocol):
    """What can be idle."""

    def activity(self) -> int:
        """A number that grows whenever there is activity, from 0 when it begins to be watched."""

    def idle(self) -> None:
        """There was none for the whole timeout."""


class IdleSweeper:
    """Watches all sessions and tunnels of one process."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._groups: dict[float, _Group] = {}

    def watch(self, thing: Watched, timeout: float) -> None:
        """Call ``thing.idle()`` once there was no activity for ``timeout`` seconds; ``forget`` must follow."""
        group = self._groups.get(timeout)
        if group is None:
            group = self._groups[timeout] = _Group(self._clock, timeout)
        group.watched[thing] = self._clock.seconds()

    def forget(self, thing: Watched, timeout: float) -> None:
        """Watch it no more."""
        group = self._groups.get(timeout)
        if group is not None:
            group.watched.pop(thing, None)
            if not group.watched:
                group.stop()
                del self._groups[timeout]

    def stop(self) -> None:
        """Watch nothing any more."""
        for group in self._groups.values():
            group.stop()
        self._groups.clear()


class _Group:
    def __init__(self, clock: IReactorTime, timeout: float) -> None:
        self._clock = clock
        self._timeout = timeout
        #: Each with what watches it; before the first sample, since when. Most sessions do not live to see it.
        self.watched: dict[Watched, IdleWatch | float] = {}
        self._call: IDelayedCall | None = None
        self._schedule()

    def stop(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _schedule(self) -> None:
        self._call = self._clock.callLater(self._timeout / SAMPLES, self._sweep)

    def _sweep(self) -> None:
        self._schedule()
        now = self._clock.seconds()
        idle = []
        for thing, watch in self.watched.items():
            if not isinstance(watch, IdleWatch):
                watch = self.watched[thing] = IdleWatch(self._timeout, watch)
            if watch.sample(now, thing.activity()):
                idle.append(thing)
        for thing in idle:
            try:
                thing.idle()
            except Exception:
                _log.failure("Ending an idle connection failed")
