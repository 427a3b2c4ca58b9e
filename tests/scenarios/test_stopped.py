"""A backend hangs (SIGSTOP): the kernel accepts connections for it until its queue is full, and nobody answers."""

from __future__ import annotations

import socket

CHECKED = """
    check = websocket /ws
    check_interval = 400ms
    check_timeout = 400ms
    check_rise = 2
    check_fall = 3
    on_down = keep
    handshake_timeout = 1m
"""
#: Answers are what it lacks.
UNCHECKED = """
    check = off
    handshake_timeout = 300ms
    max_failures = 3
    failure_time = 3s
"""


def test_checks_find_a_backend_that_hangs_and_its_sessions_live_on_when_it_wakes(stage, size) -> None:
    stage.begin(CHECKED, pause=size(1, 2))
    router, load, victim = stage.router, stage.load, stage.backends[2]
    load.hold(size(120, 500))
    load.arrive(size(20, 40))
    load.until_opened(20)
    since = len(router.lines)
    victim.stop()
    down = router.wait_for_change(victim, ("down",), since)
    assert "(3 failed checks)" in down["message"]
    # A check that only connects would have seen nothing.
    socket.create_connection(("127.0.0.1", victim.port), stage.connect_timeout).close()

    # From then on nobody goes there.
    load.until_opened(size(30, 1000))
    asleep = [one for one in load.sessions if one.tried > router.time_of(down) and one.opened is not None]
    assert len(asleep) > 10
    assert victim.name not in {one.backend for one in asleep}
    stage.opened_in_time(asleep)

    since = len(router.lines)
    victim.go_on()
    back = router.wait_for_change(victim, ("up",), since)
    assert "2 passed checks" in back["message"]
    load.until(
        lambda: any(one.backend == victim.name and one.tried > router.time_of(back) for one in load.sessions),
        "new sessions go there",
    )
    # Those that were there speak again, and the handshakes that had to wait came to their end.
    kept = [one for one in load.live("held") if one.pid == victim.pid]
    assert len(kept) >= size(120, 500) // 4 - 1
    before = {one.number: one.echoed for one in kept}
    load.until(lambda: all(one.echoed > before[one.number] for one in kept), "its sessions speak again")

    stage.end()
    stage.nothing_was_lost(load.sessions)
    assert not load.refused


def test_without_checks_three_unanswered_handshakes_take_a_backend_out_and_no_more_fail(stage, size) -> None:
    stage.begin(UNCHECKED)
    router, load, victim = stage.router, stage.load, stage.backends[0]
    load.hold(size(60, 500))
    since = len(router.lines)
    victim.stop()
    first = load.pass_through(30)
    out = router.wait_for_change(victim, ("ejected",), since)
    assert "keeps silent after the opening handshake (3 failures within 3 s)" in out["message"]
    assert [one.refusal["status"] for one in first if one.refusal] == [504] * 3
    assert all(victim.label in line["reason"] for line in router.events("refuse", since))
    assert {one.backend for one in first[-10:]} == {"b2", "b3", "b4"}

    # Once the time is over it is tried again: a single failure is enough now.
    again = len(router.lines)
    tried = router.wait_for_change(victim, ("up",), since)
    assert "tried again after 3 s" in tried["message"]
    second = load.pass_through(20)
    out = router.wait_for_change(victim, ("ejected",), again)
    assert "tried again in vain" in out["message"]
    assert [one.refusal["status"] for one in second if one.refusal] == [504]

    # It wakes, and the next trial succeeds. What it had kept waiting is long gone.
    again = len(router.lines)
    victim.go_on()
    router.wait_for_change(victim, ("up",), again)
    third = load.pass_through(20)
    assert [one.refusal for one in third if one.refusal] == []
    assert {one.backend for one in third} == {"b1", "b2", "b3", "b4"}

    stage.end()
    stage.nothing_was_lost(load.sessions)
    assert len(load.refused) == 4


def test_new_sessions_pass_a_backend_over_that_takes_no_connection_within_the_connect_timeout(stage, size) -> None:
    stage.connect_timeout = 0.5
    stage.begin("check = off\nmax_failures = 3\nfailure_time = 4s", backlog=16)
    router, load, victim = stage.router, stage.load, stage.backends[3]
    load.hold(size(60, 500))
    since = len(router.lines)
    victim.stop_up()
    first = load.pass_through(30)
    # Three had to wait for one connect timeout, and then were served elsewhere.
    out = router.wait_for_change(victim, ("ejected",), since)
    assert "no connection in time (3 failures within 4 s)" in out["message"]
    opened = [router.wait_for_opening(one.number) for one in first]
    tried = [line["tried"] for line in opened if "tried" in line]
    assert tried == [f"{victim.label} no connection in time"] * 3
    assert {one.backend for one in first} == {"b1", "b2", "b3"}

    again = len(router.lines)
    victim.go_on()
    router.wait_for_change(victim, ("up",), again)
    second = load.pass_through(20)
    assert {one.backend for one in second} == {"b1", "b2", "b3", "b4"}

    stage.end()
    stage.nothing_was_lost(load.sessions)
    stage.opened_in_time(load.sessions)
