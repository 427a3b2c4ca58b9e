"""What it costs to look after many sessions in which nothing happens."""

from __future__ import annotations

import time

from tests.scenarios.program import FULL


def test_pings_to_many_quiet_sessions_cost_next_to_nothing(stage, size) -> None:
    count, rounds = size(30, 1000), size(2, 4)
    stage.begin(route=f"ping = {size('300ms', '25s')}", backends=1, pause=3600)
    router, load = stage.router, stage.load

    def until_pinged(times: int) -> tuple[float, float]:
        load.until(lambda: min(one.pings for one in load.live()) >= times, f"each session was pinged {times} times")
        return time.monotonic(), router.seconds()

    load.hold(count)
    began, used = until_pinged(1)
    ended, used_then = until_pinged(rounds)
    share = (used_then - used) / (ended - began)
    stage.note(f"{count} sessions, {ended - began:.0f} s: {100 * share:.2f} % of a core")
    # The share of a moment would say nothing.
    if FULL:
        assert share < 0.05

    stage.end()
    stage.nothing_was_lost(load.sessions)
    assert all("rtt" in line for line in router.events("close"))
