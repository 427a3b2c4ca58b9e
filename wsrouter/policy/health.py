"""The health of one backend: whether it may get new work, and why not.

Three sources speak of a backend. Its sessions do, as they open or fail to (passive); its checks do, where the pool has
them (active); and the operator does (by hand). Each has states of its own, so that none undoes what another has
decided:

                   failures | fall    rise | expire  unchecked | drain    down  up
    UP             EJECTED  | DOWN    -    | -       -         | DRAINED  OFF   -
    EJECTED        -        | -       UP   | UP      -         | DRAINED  OFF   UP
    DOWN           -        | -       UP   | -       UP        | DRAINED  OFF   UP
    DRAINED        -        | -       -    | -       -         | -        OFF   UP
    OFF            -        | -       -    | -       -         | DRAINED  -     UP

All times are seconds of one clock, handed in.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass

from wsrouter.config.values import Pool

#: How much of each new round-trip time goes into the smoothed one (as TCP does: RFC 6298 2).
_GAIN = 1 / 8


class State(enum.Enum):
    """Whether a backend gets new work (only UP does), and if not, who said so."""

    UP = "up"
    #: Its sessions failed.
    EJECTED = "ejected"
    #: Its checks failed.
    DOWN = "down"
    #: By hand: no new work.
    DRAINED = "drained"
    #: By hand: out of service.
    OFF = "off"


class Event(enum.Enum):
    """What moves a backend from state to state."""

    #: ``max_failures`` within ``failure_time``, or one while it was on trial.
    FAILURES = "failures"
    #: ``check_fall`` failed checks in a row.
    FALL = "fall"
    #: ``check_rise`` passed checks in a row.
    RISE = "rise"
    #: An ejection has lasted long enough, or nobody else is left.
    EXPIRE = "expire"
    #: The pool has no check any more that could bring it back.
    UNCHECKED = "unchecked"
    DRAIN = "drain"
    TAKE_DOWN = "take down"
    BRING_UP = "bring up"


class Hand(enum.Enum):
    """What an operator can ask of a backend."""

    UP = Event.BRING_UP
    DRAIN = Event.DRAIN
    DOWN = Event.TAKE_DOWN


#: What is not here changes nothing.
TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.UP, Event.FAILURES): State.EJECTED,
    (State.UP, Event.FALL): State.DOWN,
    (State.UP, Event.DRAIN): State.DRAINED,
    (State.UP, Event.TAKE_DOWN): State.OFF,
    (State.EJECTED, Event.RISE): State.UP,
    (State.EJECTED, Event.EXPIRE): State.UP,
    (State.EJECTED, Event.DRAIN): State.DRAINED,
    (State.EJECTED, Event.TAKE_DOWN): State.OFF,
    (State.EJECTED, Event.BRING_UP): State.UP,
    (State.DOWN, Event.RISE): State.UP,
    (State.DOWN, Event.UNCHECKED): State.UP,
    (State.DOWN, Event.DRAIN): State.DRAINED,
    (State.DOWN, Event.TAKE_DOWN): State.OFF,
    (State.DOWN, Event.BRING_UP): State.UP,
    (State.DRAINED, Event.TAKE_DOWN): State.OFF,
    (State.DRAINED, Event.BRING_UP): State.UP,
    (State.OFF, Event.DRAIN): State.DRAINED,
    (State.OFF, Event.BRING_UP): State.UP,
}

#: A backend that comes back by these has proved nothing yet: one more failure ejects it again.
_ON_TRIAL = frozenset((Event.EXPIRE, Event.UNCHECKED))


@dataclass(frozen=True, slots=True)
class Change:
    """One backend has gone from one state to another; ``reason`` is for people."""

    label: str
    old: State
    new: State
    reason: str
    now: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One backend's health, for people."""

    label: str
    state: State
    since: float
    #: Of the last change; empty while there was none.
    why: str
    #: Passive ones within the last ``failure_time``, at most ``max_failures``.
    failures: int
    #: When its last check ended; None while there was none.
    checked: float | None
    #: What was wrong with it; empty when it passed.
    check_error: str
    #: Seconds; None while no check has passed.
    rtt: float | None
    smoothed_rtt: float | None


class Health:
    """The health of one backend. What changes its state returns the Change, once."""

    __slots__ = (
        "_failures",
        "_falls",
        "_pool",
        "_rises",
        "_trial_until",
        "check_error",
        "checked",
        "label",
        "rtt",
        "since",
        "smoothed_rtt",
        "state",
        "why",
    )

    def __init__(self, label: str, pool: Pool, now: float) -> None:
        self.label = label
        self.state = State.UP
        #: When it came into its state.
        self.since = now
        self.why = ""
        self.checked: float | None = None
        self.check_error = ""
        self.rtt: float | None = None
        self.smoothed_rtt: float | None = None
        self._pool = pool
        #: When the last passive failures were; no more than matter.
        self._failures: deque[float] = deque(maxlen=pool.max_failures)
        #: Checks in a row, counted only where they can change something.
        self._rises = 0
        self._falls = 0
        #: Until then a single failure ejects.
        self._trial_until: float | None = None

    def failure(self, now: float, reason: str, alone: bool = False) -> Change | None:
        """A session or request did not get through to it. Being the last one (``alone``), it is not ejected."""
        pool = self._pool
        if self.state is not State.UP or not pool.max_failures:
            return None
        self._failures.append(now)
        if self._trial_until is not None and now < self._trial_until:
            told = "tried again in vain"
        elif len(self._failures) == pool.max_failures and now - self._failures[0] <= pool.failure_time:
            told = f"{_count(pool.max_failures, 'failure')} within {pool.failure_time:g} s"
        else:
            return None
        return None if alone else self._move(Event.FAILURES, now, f"{reason} ({told})")

    def success(self) -> None:
        """A session or request got through: the end of a trial."""
        self._trial_until = None

    def passed(self, now: float, rtt: float) -> Change | None:
        """A check passed, with this round-trip time in seconds."""
        check = self._pool.check
        if check is None:
            return None  # one that a reload has overtaken
        self.checked = now
        self.check_error = ""
        self.rtt = rtt
        self.smoothed_rtt = rtt if self.smoothed_rtt is None else self.smoothed_rtt + (rtt - self.smoothed_rtt) * _GAIN
        self._falls = 0
        if (self.state, Event.RISE) not in TRANSITIONS:
            return None
        self._rises += 1
        if self._rises < check.rise:
            return None
        return self._move(Event.RISE, now, _count(self._rises, "passed check"))

    def failed(self, now: float, reason: str) -> Change | None:
        """A check failed."""
        check = self._pool.check
        if check is None:
            return None
        self.checked = now
        self.check_error = reason
        self._rises = 0
        if (self.state, Event.FALL) not in TRANSITIONS:
            return None
        self._falls += 1
        if self._falls < check.fall:
            return None
        return self._move(Event.FALL, now, f"{reason} ({_count(self._falls, 'failed check')})")

    @property
    def due_at(self) -> float | None:
        """When its ejection ends by itself; None if it is not ejected, or has to wait for checks."""
        if self.state is not State.EJECTED or self._pool.check is not None:
            return None
        return self.since + self._pool.failure_time

    def due(self, now: float) -> Change | None:
        """Try it again, if its ejection has lasted long enough."""
        at = self.due_at
        if at is None or now < at:
            return None
        return self._move(Event.EXPIRE, now, f"tried again after {self._pool.failure_time:g} s")

    def last_resort(self, now: float) -> Change | None:
        """Try it again if it is ejected: no other backend is left."""
        return self._move(Event.EXPIRE, now, "tried again: no other backend is left")

    def by_hand(self, now: float, hand: Hand) -> Change | None:
        """Do what the operator asks for. ``Hand.UP`` also forgets what was held against a backend that is up."""
        if hand is Hand.UP:
            self._forget()
        return self._move(hand.value, now, "by hand")

    def take_over(self, now: float, state: State, why: str) -> Change | None:
        """Come into ``state``: another process, which knows better, has it there."""
        return None if state is self.state else self._enter(state, now, why)

    def reconfigure(self, pool: Pool, now: float) -> Change | None:
        """The pool has other rules from now on."""
        self._failures = deque(self._failures, maxlen=pool.max_failures)
        rechecked = pool.check != self._pool.check
        self._pool = pool
        if not rechecked:
            return None
        self._rises = self._falls = 0
        return self._move(Event.UNCHECKED, now, "it is not checked any more") if pool.check is None else None

    def snapshot(self, now: float) -> Snapshot:
        """What there is to tell at this time."""
        since = now - self._pool.failure_time
        return Snapshot(
            self.label,
            self.state,
            self.since,
            self.why,
            sum(time >= since for time in self._failures),
            self.checked,
            self.check_error,
            self.rtt,
            self.smoothed_rtt,
        )

    def _move(self, event: Event, now: float, why: str) -> Change | None:
        new = TRANSITIONS.get((self.state, event))
        if new is None:
            return None
        change = self._enter(new, now, why)
        if event in _ON_TRIAL:
            self._trial_until = now + self._pool.failure_time
        return change

    def _enter(self, new: State, now: float, why: str) -> Change:
        change = Change(self.label, self.state, new, why, now)
        self._forget()
        self.state = new
        self.since = now
        self.why = why
        return change

    def _forget(self) -> None:
        self._failures.clear()
        self._rises = self._falls = 0
        self._trial_until = None


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
