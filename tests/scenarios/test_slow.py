"""One backend takes its time for each opening handshake, and places are few."""

from __future__ import annotations

from collections import Counter


def test_least_sessions_spares_a_slow_backend_without_starving_it(stage, size) -> None:
    stage.begin("balance = least-sessions", backends=3, pause=size(1, 2))
    load, slow = stage.load, stage.backends[0]
    slow.slow_down(0.5)
    # Handshakes under way count: a slow one draws no crowd.
    load.hold(size(90, 480))
    assert set(Counter(one.backend for one in load.live()).values()) == {size(30, 160)}
    # Sessions that come and go find the places that have become free.
    passed = load.pass_through(size(150, 3000), at_once=9)
    there = sum(one.backend == slow.name for one in passed)
    assert 0 < there < len(passed) / 6

    stage.end()
    stage.nothing_was_lost(load.sessions)
    stage.opened_in_time(load.sessions)


def test_where_every_place_is_taken_the_next_wait_in_line_and_none_is_lost(stage, size) -> None:
    places = size(10, 100)
    stage.begin(
        "balance = least-sessions\nqueue = 20\nqueue_timeout = 30s",
        backends=3,
        words=f"max_sessions={places}",
        pause=size(1, 2),
    )
    router, load = stage.router, stage.load
    stage.backends[0].slow_down(0.3)
    load.hold(3 * places)

    def until(opened: int, refused: int) -> None:
        load.until(lambda: (load.opened(), len(load.refused)) == (opened, refused), f"{opened} opened, {refused} not")

    for turn in range(size(2, 20)):
        # Twenty may wait, the others are told at once.
        load.hold_more(25)
        until(opened=3 * places + 20 * turn, refused=5 * (turn + 1))
        # Each that leaves makes room for one.
        load.leave(20)
        until(opened=3 * places + 20 * (turn + 1), refused=5 * (turn + 1))
    assert {line["status"] for line in load.refused} == {503}
    assert all(int(line["retry_after"]) > 0 for line in load.refused)
    assert max(line["seconds"] for line in load.refused) < stage.connect_timeout

    stage.end()
    stage.nothing_was_lost(load.sessions)
    live: Counter[str] = Counter()
    for line in router.lines:
        if line.get("event") in ("open", "close"):
            live[line["backend"]] += 1 if line["event"] == "open" else -1
            assert 0 <= live[line["backend"]] <= places
