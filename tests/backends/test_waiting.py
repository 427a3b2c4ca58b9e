from __future__ import annotations

from typing import Any

import pytest

from wsrouter.backends.waiting import Waiting, WaitingLine
from wsrouter.config.values import Backend
from wsrouter.policy.members import Member


class Counter:
    """A line before one member that takes ``room`` at once; ``told`` is who was served, in order."""

    def __init__(self, rig: Any, size: int = 3, room: int = 0) -> None:
        self.rig = rig
        self.member = Member(Backend("127.0.0.1", 1, max_sessions=room))
        self.keys: list[bytes | None] = []
        self.told: list[tuple[str, Member | None]] = []
        self.line = WaitingLine(rig.relay, self._pick, self._take, size, 5.0)

    def join(self, name: str) -> Waiting | None:
        return self.line.join(name.encode(), lambda member: self.told.append((name, member)))

    def make_room(self, room: int) -> None:
        self.member.reconfigure(Backend("127.0.0.1", 1, max_sessions=room))
        self.line.move_up()

    def _pick(self, key: bytes | None) -> Member | None:
        self.keys.append(key)
        return self.member if self.member.takes else None

    def _take(self, member: Member) -> None:
        member.live += 1


@pytest.fixture
def counter(rig) -> Counter:
    return Counter(rig)


def test_a_place_goes_to_who_has_waited_longest_and_is_counted_before_anybody_hears_of_it(counter):
    live: list[int] = []
    counter.line.join(b"first", lambda member: live.append(counter.member.live))
    counter.join("second")
    counter.make_room(1)
    counter.rig.turn()
    assert live == [1]
    assert len(counter.line) == 1
    counter.make_room(3)
    counter.rig.turn()
    assert counter.told == [("second", counter.member)]
    assert counter.member.live == 2
    assert counter.keys == [b"first", b"second", b"second"]


def test_nobody_is_served_before_the_batch_is_over_and_all_that_fit_are_served_then(counter):
    for name in ("a", "b", "c"):
        counter.join(name)
    counter.make_room(2)
    counter.line.move_up()
    assert counter.told == []
    counter.rig.turn()
    assert counter.told == [("a", counter.member), ("b", counter.member)]
    assert counter.member.live == 2


def test_the_line_has_an_end(counter):
    assert all(counter.join(name) for name in ("a", "b", "c"))
    assert counter.join("d") is None
    assert len(counter.line) == 3


def test_who_has_waited_too_long_is_told_so_once(counter):
    counter.join("a")
    counter.rig.pass_time(2.0)
    counter.join("b")
    counter.rig.pass_time(3.1)
    assert counter.told == [("a", None)]
    assert len(counter.line) == 1
    counter.make_room(5)
    counter.rig.turn()
    counter.rig.pass_time(10.0)
    assert counter.told == [("a", None), ("b", counter.member)]
    assert not counter.rig.getDelayedCalls()


def test_who_leaves_is_told_nothing_and_the_next_moves_up(counter):
    first, _ = counter.join("a"), counter.join("b")
    first.cancel()
    first.cancel()
    counter.make_room(1)
    counter.rig.turn()
    assert counter.told == [("b", counter.member)]
    assert counter.member.live == 1
    counter.rig.pass_time(10.0)
    assert len(counter.told) == 1


def test_who_leaves_while_the_one_before_is_served_takes_no_place(counter):
    second: list[Waiting | None] = []
    counter.line.join(None, lambda member: second[0].cancel())  # type: ignore[union-attr]
    second.append(counter.join("b"))
    counter.make_room(2)
    counter.rig.turn()
    assert counter.told == []
    assert counter.member.live == 1
    assert len(counter.line) == 0


def test_who_gives_its_place_back_at_once_leaves_it_to_the_next_in_the_same_turn(counter):
    def leave(member: Member) -> None:
        member.live -= 1
        counter.line.move_up()

    counter.line.join(None, leave)
    counter.join("b")
    counter.make_room(1)
    counter.rig.turn()
    assert counter.told == [("b", counter.member)]
    assert counter.member.live == 1


def test_a_cancel_after_the_end_of_the_wait_changes_nothing(counter):
    served, late = counter.join("a"), counter.join("b")
    counter.make_room(1)
    counter.rig.turn()
    served.cancel()
    counter.rig.pass_time(6.0)
    late.cancel()
    assert counter.told == [("a", counter.member), ("b", None)]
    assert counter.member.live == 1


def test_when_the_line_is_dismissed_everybody_is_told_and_nobody_is_served(counter):
    counter.join("a")
    counter.join("b")
    counter.make_room(2)
    counter.line.dismiss()
    counter.rig.turn()
    counter.rig.pass_time(10.0)
    assert counter.told == [("a", None), ("b", None)]
    assert counter.member.live == 0


def test_a_move_without_anybody_in_line_asks_for_nothing(counter):
    counter.make_room(1)
    counter.rig.turn()
    assert counter.keys == []


def test_a_line_whose_places_become_free_elsewhere_looks_for_them(rig):
    counter = Counter(rig)
    counter.line = WaitingLine(rig.relay, counter._pick, counter._take, 3, 5.0, shared=True)
    counter.join("first")
    counter.join("second")
    counter.member.reconfigure(Backend("127.0.0.1", 1, max_sessions=1))  # nobody says so
    rig.pass_time(1.0)
    assert counter.told == [("first", counter.member)]
    counter.member.reconfigure(Backend("127.0.0.1", 1, max_sessions=2))
    rig.pass_time(1.0)
    assert counter.told == [("first", counter.member), ("second", counter.member)]
    rig.pass_time(1.0)
    assert counter.line._look is None
