"""One of several workers is killed, or all are replaced, while sessions live and new ones come."""

from __future__ import annotations

import os
import signal
import time


def test_a_killed_worker_takes_only_its_own_sessions_along_and_has_a_successor(stage, size) -> None:
    stage.begin(router="workers = 2", pause=size(1, 2))
    router, load = stage.router, stage.load
    load.hold(size(100, 500), keep=True)
    load.arrive(size(25, 40))
    dead: set[int] = set()
    killed_at: list[float] = []
    for _ in range(size(1, 5)):
        # The oldest, so that each has lived for longer than in a crash loop (10 s), which would be an error in the log.
        load.until_opened(size(10, 400))
        worker = min(router.workers.keys() - dead)
        known = len(router.workers)
        os.kill(router.workers[worker], signal.SIGKILL)
        killed_at.append(time.time())
        dead.add(worker)
        router.wait_for_words(f"worker {worker} has died: killed by SIGKILL")
        stage.until(lambda known=known: len(router.workers) > known, "its successor serves")
        load.until(lambda: len(load.live("held")) == size(100, 500), "those that were lost are back")
    load.until_opened(size(10, 40))
    stage.end(dead)

    began = router.told_of("open")
    lost = [one for one in load.sessions if one.opened is not None and not one.flawless]
    stage.note(f"{len(dead)} workers killed, {len(lost)} sessions lost with them, handshakes cut {len(load.refused)}")
    assert lost
    # Whoever was lost was the dead worker's; it may have died before it told of the session.
    assert {began[one.number]["worker"] for one in lost if one.number in began} <= dead
    assert {one.end["code"] for one in lost} == {1006}
    assert not [one for one in lost if one.end["faults"]]
    # Those that it had just accepted are cut, too, at that moment. Nobody else is refused, and nobody waits in vain.
    assert not [line for line in load.refused if line["status"] is not None or "ConnectionRefused" in line["why"]]
    assert not [line for line in load.refused if min(abs(line["at"] - at) for at in killed_at) > 1.0]


def test_nobody_is_refused_or_cut_while_all_workers_are_replaced(stage, size) -> None:
    stage.begin(router="workers = 2\ndrain_spread = 1s", pause=size(1, 2))
    router, load = stage.router, stage.load
    load.hold(size(100, 500), keep=True)
    load.arrive(size(25, 100))
    for turn in range(1, size(1, 5) + 1):
        load.until_opened(10)
        old = list(router.workers)[-2:]
        since = len(router.lines)
        router.signal(signal.SIGUSR2)
        for worker in old:
            router.wait_for_words(f"worker {worker} has ended: exit status 0", since=since)
        assert len(router.workers) == 2 + 2 * turn
        load.until(lambda: len(load.live("held")) == size(100, 500), "those that were sent away are back")
    load.until_opened(10)
    stage.end()

    assert load.refused == []
    stage.opened_in_time(load.sessions)
    sent_away = [one for one in load.sessions if not one.flawless]
    stage.note(f"{turn} times replaced, {len(sent_away)} sessions sent away by a drain")
    assert len(sent_away) >= size(100, 500) * turn
    assert {one.end["code"] for one in sent_away} == {1001}
    assert not [one for one in sent_away if one.end["faults"]]
    ends = router.told_of("close")
    assert {(line["by"], line["code"]) for line in (ends[one.number] for one in sent_away)} <= {
        ("router", 1001),
        ("client", 1000),  # it said goodbye in the same instant
    }
    assert router.events("refuse") == []
    assert not [line for line in router.lines if "has died" in line.get("message", "")]
    assert not [line for line in router.lines if "the time is up" in line.get("message", "")]
