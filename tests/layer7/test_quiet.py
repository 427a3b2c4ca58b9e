from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from wsrouter.layer7.quiet import Quiet
from wsrouter.relay.deadlines import Deadlines


class Watch:
    def __init__(self, seconds: float | None) -> None:
        self.clock = Clock()
        self.fired: list[float] = []
        self.quiet = Quiet(Deadlines(self.clock), seconds, lambda: self.fired.append(self.clock.seconds()))

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds * 10)):
            self.clock.advance(0.1)


def test_silence_is_told_once_and_not_early() -> None:
    watch = Watch(8)
    watch.quiet.start()
    watch.wait(30)
    assert len(watch.fired) == 1
    assert 8 <= watch.fired[0] <= 8 * 1.25 + 1


@pytest.mark.parametrize("moved", [0.1, 1.9, 2.1, 7.9])
def test_a_touch_starts_the_time_again(moved: float) -> None:
    watch = Watch(8)
    watch.quiet.start()
    watch.wait(moved)
    watch.quiet.touch()
    watch.wait(30)
    assert 8 + moved - 0.1 <= watch.fired[0] <= moved + 8 * 1.25 + 1


def test_what_is_stopped_tells_nothing_and_may_start_again() -> None:
    watch = Watch(8)
    watch.quiet.start()
    watch.wait(7)
    watch.quiet.stop()
    watch.quiet.stop()
    watch.wait(20)
    assert watch.fired == []
    watch.quiet.start()
    watch.quiet.start()
    watch.wait(20)
    assert len(watch.fired) == 1


def test_no_limit_never_tells() -> None:
    watch = Watch(None)
    watch.quiet.start()
    watch.wait(100)
    assert watch.fired == []
    assert watch.clock.getDelayedCalls() == []
