"""Backends are restarted again and again, without and with a word, while sessions live and new ones come."""

from __future__ import annotations

import random
import signal

CHECKED = """
    check = websocket /ws
    check_interval = 300ms
    check_timeout = 1s
    check_rise = 2
    check_fall = 3
"""
#: What an allocator may keep of a storm that has passed, in bytes.
KEPT = 8 << 20


def test_a_storm_of_restarts_costs_no_healthy_session_and_leaves_nothing_behind(stage, size) -> None:
    stage.begin(CHECKED, pause=size(1, 2))
    router, load, chance = stage.router, stage.load, random.Random(7)
    # What the first sessions make the router allocate for good is no leak.
    load.hold(size(100, 500))
    load.leave()
    stage.until(lambda: router.count("close") == len(load.sessions), "the log has their ends")
    descriptors, memory = router.descriptors(), router.memory()

    load.hold(size(100, 500), keep=True)
    load.arrive(size(25, 40))
    killed = set()
    for _ in range(size(6, 90)):
        stage.until(lambda: sum(map(router.is_out, stage.backends)) <= 1, "no more than one is out")
        victim = chance.choice([one for one in stage.backends if not router.is_out(one)])
        killed.add(victim.pid)
        victim.kill()
        victim.start()
        load.until_opened(size(25, 40))
        victim.wait()
    stage.until(lambda: not any(map(router.is_out, stage.backends)), "all are back")
    load.until(lambda: len(load.live("held")) == size(100, 500), "the lost sessions were opened again")
    stage.note(f"{len(killed)} kills")

    load.leave()
    stage.until(lambda: router.descriptors() <= descriptors, "all descriptors are closed")
    stage.note(f"resident memory {memory / 1e6:.1f} MB before, {router.memory() / 1e6:.1f} MB behind")
    assert router.memory() < memory + KEPT
    stage.end()
    flawed = [one for one in load.sessions if one.opened is not None and not one.flawless]
    assert {one.pid for one in flawed} <= killed
    assert {one.end["code"] for one in flawed} == {1011}
    assert not [one for one in flawed if one.end["faults"]]
    ends = router.told_of("close")
    told = {(ends[one.number]["by"], ends[one.number]["code"], one.kind) for one in flawed}
    # One that passes may have said goodbye already, and its backend died before the answer.
    assert told - {("client", 1000, "passing")} <= {("backend", 1006, "held"), ("backend", 1006, "passing")}
    stage.opened_in_time(load.sessions)


def test_a_rolling_restart_passes_the_goodbyes_of_the_backends_on(stage, size) -> None:
    stage.begin(CHECKED, goodbye=("1012", "back soon"), pause=size(1, 2))
    router, load = stage.router, stage.load
    load.hold(size(100, 500), keep=True)
    load.arrive(size(20, 40))
    old = {one.pid for one in stage.backends}
    for _ in range(size(1, 5)):
        for backend in stage.backends:
            since = len(router.lines)
            backend.kill(signal.SIGTERM)
            backend.start()
            backend.wait()
            if router.is_out(backend):
                router.wait_for_change(backend, ("up",), since)
            load.until_opened(10)
            old.add(backend.pid)
    load.until(lambda: len(load.live("held")) == size(100, 500), "those that were sent away are back")
    now = {one.pid for one in stage.backends}
    assert {one.pid for one in load.live()} <= now

    stage.end()
    sent_away = [one for one in load.sessions if one.opened is not None and not one.flawless]
    assert len(sent_away) >= size(100, 500) // 2
    assert {(one.end["code"], one.end["reason"]) for one in sent_away} == {(1012, "back soon")}
    assert not [one for one in sent_away if one.end["faults"]]
    assert not now & {one.pid for one in sent_away}
    ends = router.told_of("close")
    told = {(line["by"], line["code"], line["reason"]) for line in (ends[one.number] for one in sent_away)}
    # Where both say goodbye at once, the log has the first.
    assert told <= {("backend", 1012, "back soon"), ("client", 1000, "")}
    assert ("backend", 1012, "back soon") in told
    # Only a backend itself, caught between its last session and its end, may say no.
    assert {line["stage"] for line in router.events("refuse")} <= {"backend"}
    assert len(load.refused) == len(router.events("refuse"))
