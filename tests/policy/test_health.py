"""The health of one backend."""

from __future__ import annotations

from typing import Any

import pytest

from wsrouter.config.values import Check, CheckKind, Pool
from wsrouter.policy.health import TRANSITIONS, Change, Event, Hand, Health, State

UP, EJECTED, DOWN, DRAINED, OFF = State

CHECK = Check(CheckKind.TCP, rise=2, fall=3)


def pool(check: Check | None = CHECK, **more: Any) -> Pool:
    return Pool("app", (), check=check, **{"max_failures": 3, "failure_time": 10.0, **more})


UNCHECKED = pool(None)


def in_state(state: State, rules: Pool) -> Health:
    """A backend that came into ``state`` at 0."""
    health = Health("a:80", rules, 0.0)
    if state is EJECTED:
        for _ in range(rules.max_failures):
            health.failure(0.0, "refused")
    elif state is DOWN:
        for _ in range(CHECK.fall):
            health.failed(0.0, "refused")
    elif state is not UP:
        health.by_hand(0.0, Hand.DRAIN if state is DRAINED else Hand.DOWN)
    assert health.state is state
    return health


def happen(health: Health, event: Event) -> Change | None:
    """Let ``event`` happen at 10."""
    change: Change | None = None
    for _ in range(9):
        if event is Event.FAILURES:
            change = health.failure(10.0, "refused")
        elif event is Event.FALL:
            change = health.failed(10.0, "refused")
        elif event is Event.RISE:
            change = health.passed(10.0, 0.001)
        elif event is Event.EXPIRE:
            change = health.due(10.0)
        elif event is Event.UNCHECKED:
            change = health.reconfigure(UNCHECKED, 10.0)
        else:
            change = health.by_hand(10.0, Hand(event))
        if change is not None:
            return change
    return None


@pytest.mark.parametrize("event", Event, ids=lambda event: event.name)
@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_every_event_in_every_state_does_what_the_table_says(state: State, event: Event) -> None:
    rules = UNCHECKED if event is Event.EXPIRE and state is not DOWN else pool()
    health = in_state(state, rules)
    new = TRANSITIONS.get((state, event))
    change = happen(health, event)
    if new is None:
        assert change is None
        assert health.state is state
        assert health.since == 0.0
    else:
        assert change is not None
        assert (change.label, change.old, change.new, change.now) == ("a:80", state, new, 10.0)
        assert (health.state, health.since, health.why) == (new, 10.0, change.reason)


@pytest.mark.parametrize(
    ("state", "event", "reason"),
    [
        (UP, Event.FAILURES, "refused (3 failures within 10 s)"),
        (UP, Event.FALL, "refused (3 failed checks)"),
        (DOWN, Event.RISE, "2 passed checks"),
        (EJECTED, Event.EXPIRE, "tried again after 10 s"),
        (DOWN, Event.UNCHECKED, "it is not checked any more"),
        (OFF, Event.BRING_UP, "by hand"),
    ],
)
def test_a_change_says_why(state: State, event: Event, reason: str) -> None:
    change = happen(in_state(state, UNCHECKED if event is Event.EXPIRE else pool()), event)
    assert change is not None
    assert change.reason == reason


def test_one_is_not_many() -> None:
    health = Health("a:80", pool(Check(CheckKind.TCP, rise=1, fall=1)), 0.0)
    fall, rise = health.failed(1.0, "refused"), health.passed(2.0, 0.1)
    assert fall is not None
    assert fall.reason == "refused (1 failed check)"
    assert rise is not None
    assert rise.reason == "1 passed check"


@pytest.mark.parametrize(
    ("times", "ejected"),
    [
        ([0, 0, 0], True),
        ([0, 5, 10], True),
        ([0, 5, 10.1], False),
        ([0, 5, 11, 14], True),
        ([0, 11, 22, 33, 44], False),
        ([0, 0], False),
    ],
)
def test_only_failures_close_together_eject(times: list[float], ejected: bool) -> None:
    health = Health("a:80", UNCHECKED, 0.0)
    changes = [health.failure(time, "refused") for time in times]
    assert (health.state is EJECTED) == ejected
    assert changes[:-1] == [None] * (len(times) - 1)


def test_successes_between_do_not_excuse_failures() -> None:
    health = Health("a:80", UNCHECKED, 0.0)
    for time in range(3):
        health.success()
        health.failure(time, "refused")
    assert health.state is EJECTED


def test_max_failures_0_never_ejects() -> None:
    health = Health("a:80", pool(max_failures=0), 0.0)
    assert not any(health.failure(1.0, "refused") for _ in range(100))
    assert health.snapshot(1.0).failures == 0


def test_the_last_one_is_not_ejected_until_it_is_no_more_the_last() -> None:
    health = Health("a:80", UNCHECKED, 0.0)
    assert not any(health.failure(1.0, "refused", alone=True) for _ in range(10))
    assert health.failure(2.0, "refused") is not None


def on_trial() -> Health:
    health = in_state(EJECTED, UNCHECKED)
    assert health.due(9.9) is None
    assert health.due(10.0) is not None
    assert health.state is UP
    return health


def test_after_an_ejection_one_failure_ejects_again() -> None:
    health = on_trial()
    change = health.failure(19.9, "refused")
    assert change is not None
    assert change.reason == "refused (tried again in vain)"
    assert health.due_at == 29.9


@pytest.mark.parametrize("proof", ["a success", "time"])
def test_a_trial_ends_with_a_success_or_with_time(proof: str) -> None:
    health = on_trial()
    if proof == "a success":
        health.success()
    at = 11.0 if proof == "a success" else 20.0
    assert health.failure(at, "refused") is None
    assert health.failure(at, "refused") is None
    assert health.failure(at, "refused") is not None


def test_with_a_check_an_ejection_does_not_run_out() -> None:
    health = in_state(EJECTED, pool())
    assert health.due_at is None
    assert health.due(1000.0) is None
    health.passed(1001.0, 0.1)
    health.failed(1002.0, "refused")
    assert health.passed(1003.0, 0.1) is None
    assert health.passed(1004.0, 0.1) is not None
    assert health.state is UP


def test_only_checks_in_a_row_count() -> None:
    health = Health("a:80", pool(), 0.0)
    for _ in range(5):
        assert health.failed(1.0, "refused") is None
        assert health.failed(1.0, "refused") is None
        assert health.passed(1.0, 0.1) is None
    health = in_state(DOWN, pool())
    for _ in range(5):
        assert health.passed(1.0, 0.1) is None
        assert health.failed(1.0, "refused") is None


def test_a_passed_check_is_no_success_of_a_session() -> None:
    health = Health("a:80", pool(), 0.0)
    for _ in range(2):
        assert health.failure(1.0, "refused") is None
        assert health.passed(1.0, 0.1) is None
    assert health.failure(1.0, "refused") is not None


def test_up_by_hand_wipes_the_slate() -> None:
    health = Health("a:80", pool(), 0.0)
    for _ in range(2):
        health.failure(1.0, "refused")
        health.failed(1.0, "refused")
    assert health.by_hand(1.0, Hand.UP) is None
    assert health.failure(1.0, "refused") is None
    assert health.failed(1.0, "refused") is None
    assert health.state is UP


def test_round_trip_times_are_smoothed() -> None:
    health = Health("a:80", pool(), 0.0)
    assert health.smoothed_rtt is None
    health.passed(1.0, 0.8)
    assert (health.rtt, health.smoothed_rtt) == (0.8, 0.8)
    health.passed(2.0, 1.6)
    assert (health.rtt, health.smoothed_rtt) == (1.6, pytest.approx(0.9))


def test_a_snapshot_tells_it_all() -> None:
    health = Health("a:80", pool(), 5.0)
    health.failure(6.0, "refused")
    health.failure(15.0, "refused")
    health.failed(16.0, "no answer in time")
    told = health.snapshot(17.0)
    assert (told.label, told.state, told.since, told.why) == ("a:80", UP, 5.0, "")
    assert (told.failures, told.checked, told.check_error) == (1, 16.0, "no answer in time")
    assert (told.rtt, told.smoothed_rtt) == (None, None)
    health.passed(18.0, 0.5)
    told = health.snapshot(19.0)
    assert (told.checked, told.check_error, told.rtt) == (18.0, "", 0.5)


def test_new_rules_hold_from_now_on() -> None:
    health = Health("a:80", pool(), 0.0)
    health.failure(1.0, "refused")
    health.failure(1.0, "refused")
    assert health.reconfigure(pool(max_failures=2), 2.0) is None
    assert health.failure(2.0, "refused") is not None
    # The ejection waits for checks no more.
    assert health.reconfigure(pool(None, max_failures=2, failure_time=5.0), 3.0) is None
    assert health.due_at == 7.0


def test_another_check_begins_to_count_anew() -> None:
    health = Health("a:80", pool(), 0.0)
    health.failed(1.0, "refused")
    health.failed(1.0, "refused")
    health.reconfigure(pool(Check(CheckKind.HTTP, fall=2)), 2.0)
    assert health.failed(3.0, "refused") is None
    assert health.failed(4.0, "refused") is not None


def test_a_check_that_ends_after_the_checks_were_taken_away_is_ignored() -> None:
    health = Health("a:80", UNCHECKED, 0.0)
    assert health.passed(1.0, 0.1) is None
    assert health.failed(1.0, "refused") is None
    assert health.checked is None
