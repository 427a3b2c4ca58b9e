"""Backends are killed: what is lost, what goes on, and how they come back."""

from __future__ import annotations

CHECKED = """
    balance = least-sessions
    max_failures = 3
    check = websocket /ws
    check_interval = 500ms
    check_timeout = 500ms
    check_rise = 2
    check_fall = 3
"""
#: How a connection ends whose other end was killed: with what it had not read yet, or without.
KILLED = {"closed the connection without a Close frame", "connection reset by peer"}
SLOW_START = 30.0


def test_a_killed_backend_takes_only_its_own_sessions_along_and_comes_back_bit_by_bit(stage, size) -> None:
    stage.begin(f"{CHECKED}\n    slow_start = {SLOW_START:g}s", pause=size(1, 2))
    router, load, victim = stage.router, stage.load, stage.backends[1]
    load.hold(size(120, 500))
    load.arrive(size(25, 40))
    load.until_opened(20)
    since, killed = len(router.lines), victim.pid
    victim.kill()

    # It is taken out within three failures, of sessions or of checks.
    out = router.wait_for_change(victim, ("ejected", "down"), since)
    assert "(3 failures within" in out["message"] or "(3 failed checks)" in out["message"]
    load.until(lambda: not any(one.pid == killed for one in load.live()), "its sessions have ended")
    load.until_opened(size(50, 1000))
    in_vain = [line for line in router.events("open", since) if f"{victim.label} connection refused" in str(line)]
    assert len(in_vain) <= 3
    # Its sessions are told, and the log knows why.
    lost = [one for one in load.of(killed) if not one.flawless]
    assert len([one for one in lost if one.kind == "held"]) >= size(120, 500) // 4 - 2
    assert {one.end["code"] for one in lost} == {1011}
    ends = router.told_of("close")
    told = [ends[one.number] for one in lost if one.kind == "held"]
    assert {(line["backend"], line["by"], line["code"]) for line in told} == {(victim.label, "backend", 1006)}
    assert {line["reason"] for line in told} <= KILLED

    # It comes back with its second good check, no session before.
    since = len(router.lines)
    victim.start()
    back = router.wait_for_change(victim, ("up",), since)
    assert "2 passed checks" in back["message"]
    load.hold(size(40, 200))
    stage.until(lambda: "session" in victim.served, "it gets sessions again")
    assert victim.served.index("session") >= 2
    # Being the emptiest by far, it would have got all of them.
    held = [one for one in load.of(victim.pid) if one.kind == "held"]
    elapsed = max((one.opened for one in held), default=0) - router.time_of(back)
    others = max(sum(one.backend == other.name for one in load.live()) for other in stage.backends)
    assert len(held) <= others * max(elapsed, 0) / SLOW_START + 3

    stage.end()
    stage.nothing_was_lost(one for one in load.sessions if one not in lost)
    stage.opened_in_time(load.sessions)


def test_with_all_backends_down_new_sessions_get_503_at_once_until_checks_bring_one_back(stage, size) -> None:
    stage.begin(CHECKED, backends=3)
    router, load = stage.router, stage.load
    load.hold(size(60, 500))
    since = len(router.lines)
    for backend in stage.backends:
        backend.kill()
    load.until(lambda: not load.live(), "all sessions have ended")
    assert {one.end["code"] for one in load.sessions} == {1011}

    # Refused by all, and then known to be down: the answer is the same, and does not wait for any timeout.
    refused = load.pass_through(5)
    for backend in stage.backends:
        router.wait_for_change(backend, ("down",), since)
    refused += load.pass_through(5)
    assert {one.refusal and one.refusal["status"] for one in refused} == {503}
    assert all(int(one.refusal["retry_after"]) > 0 for one in refused)
    assert max(one.refusal["seconds"] for one in refused) < stage.connect_timeout
    assert router.events("refuse", since)[-1]["reason"] == "pool app: every backend is down"

    # One is enough.
    since = len(router.lines)
    stage.backends[2].start()
    back = router.wait_for_change(stage.backends[2], ("up",), since)
    assert "2 passed checks" in back["message"]
    passed = load.pass_through(10)
    assert {one.backend for one in passed} == {"b3"}
    since = len(router.lines)
    for backend in stage.backends[:2]:
        backend.start()
    for backend in stage.backends[:2]:
        router.wait_for_change(backend, ("up",), since)
    load.hold(size(60, 500))
    assert {one.backend for one in load.live()} == {"b1", "b2", "b3"}

    stage.end()
    stage.nothing_was_lost(passed + [one for one in load.sessions if one.number > passed[-1].number])
