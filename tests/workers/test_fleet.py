"""The workers together. The processes are made up here; tests/integration/test_workers has real ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure

from wsrouter.config.memory import Reading
from wsrouter.workers import fleet as module
from wsrouter.workers.control import Refused
from wsrouter.workers.fleet import Fleet, StartFailed
from wsrouter.workers.generation import Condition, Generation
from wsrouter.workers.process import Stage


class Worker:
    """A worker that does what the test says."""

    def __init__(self, clock: Clock, number: int, memory: Any, column: int, keeper: Any) -> None:
        self.number = self.pid = number
        self.memory, self.column = memory, column
        self.keeper = keeper
        self.stage = Stage.STARTING
        self.clock = clock
        self.started = clock.seconds()
        #: The answer to ``count``.
        self.counted: Deferred[None] = Deferred()
        self.sessions = self.tunnels = 0
        self.closed = False
        self.asked: float | None = None
        self.told: list[str] = []
        #: Of ``configure``, and what it was to run on.
        self.answers: list[Deferred[tuple[list[str], int]]] = []
        self.revisions: list[int] = []

    def start(self) -> None:
        scene = self.memory_scene
        if scene.no_more:
            raise OSError(11, "Resource temporarily unavailable")
        scene.workers.append(self)

    async def configure(self, generation: Generation, descriptor: int, sockets: Any) -> tuple[list[str], int]:
        assert Generation.of_descriptor(descriptor) == generation
        self.revisions.append(generation.revision)
        self.answers.append(Deferred())
        return await self.answers[-1]

    def serve(self, warnings: tuple[str, ...] = (), live: int = 0) -> None:
        self.answers.pop(0).callback((list(warnings), live))

    def die(self, how: str = "killed by SIGKILL", silent: bool = True) -> None:
        self.stage = Stage.OVER
        answers, self.answers = self.answers, []
        for answer in answers:
            answer.errback(Failure(ConnectionDone()))
        self.keeper.over(self, how)
        if silent:
            self.keeper.silent(self)

    def probed(self, pool: str, backend: str, rtt: float | None, reason: str, state: str, why: str) -> None:
        self.told.append(f"{backend} {state}")

    def leave(self, why: str, alone: bool = True) -> None:
        self.stage = Stage.LEAVING
        self.told.append(f"leave{' alone' if alone else ''}")

    def end(self) -> None:
        self.told.append("end")

    def kill(self) -> None:
        self.told.append("kill")

    async def count(self) -> None:
        self.told.append("count")
        self.asked = self.clock.seconds()
        await self.counted
        self.asked = None


class Scene:
    def __init__(self) -> None:
        self.clock = Clock()
        self.workers: list[Worker] = []
        self.no_more = False
        self.revision = 1
        self.lines: list[str] = []
        self.fleet = Fleet(self.clock, self.generation, self.conditions, lambda: None, self.make)

    def make(self, *arguments: Any) -> Any:
        worker = Worker(*arguments)
        worker.memory_scene = self  # type: ignore[attr-defined]
        return worker

    def generation(self) -> tuple[Generation, dict[int, Any]]:
        return Generation(self.revision, Path("r.ini"), Reading(), {}), {}

    def conditions(self) -> list[Condition]:
        return [Condition("app", "one", "up", ""), Condition("app", "two", "down", "refused")]

    def observe(self, event: Any) -> None:
        self.lines.append(str(formatEvent(event)))

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def start(self, number: int = 2) -> Deferred[None]:
        return Deferred.fromCoroutine(self.fleet.start(number))

    def running(self, number: int = 2) -> list[Worker]:
        started = self.start(number)
        for worker in self.workers:
            worker.serve()
        assert started.called
        return list(self.workers)

    def numbers(self) -> list[int]:
        return [worker.number for worker in self.fleet.serving]


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    globalLogPublisher.addObserver(made.observe)
    yield made
    globalLogPublisher.removeObserver(made.observe)
    made.fleet.kill()
    for worker in list(made.workers):
        if worker.stage is not Stage.OVER:
            worker.die()
    if made.fleet.memory is not None:
        made.fleet.memory.close()
    assert not made.clock.getDelayedCalls()


# The start.


def test_the_start_is_over_when_all_serve(scene):
    started = scene.start()
    one, two = scene.workers
    assert [one.column, two.column] == [0, 1]
    one.serve()
    assert not started.called
    two.serve()
    assert started.called
    assert scene.numbers() == [1, 2]


def test_where_none_can_be_started_the_start_has_failed(scene):
    failed: list[Failure] = []
    scene.start().addErrback(failed.append)
    for worker in list(scene.workers):
        worker.die("exit status 1")
    assert failed[0].check(StartFailed)
    assert len(scene.workers) == 2


def test_without_processes_the_start_has_failed(scene):
    scene.no_more = True
    failed: list[Failure] = []
    scene.start().addErrback(failed.append)
    assert failed[0].check(StartFailed)
    assert "cannot be started: resource temporarily unavailable" in scene.log


def test_one_that_dies_while_the_other_starts_is_replaced(scene):
    started = scene.start()
    one, two = scene.workers
    one.die()
    two.serve()
    assert started.called
    scene.clock.advance(0)
    scene.workers[2].serve()
    assert scene.numbers() == [2, 3]


def test_one_that_takes_too_long_is_killed(scene):
    scene.start()
    scene.clock.advance(module.PATIENCE)
    assert [worker.told for worker in scene.workers] == [["kill"], ["kill"]]


def test_one_that_refuses_is_killed_and_says_why(scene):
    scene.start(1).addErrback(lambda failure: failure.trap(StartFailed))
    scene.workers[0].answers.pop().errback(Failure(Refused("r.ini:3: odd\nr.ini:4: too")))
    assert scene.workers[0].told == ["kill"]
    assert "worker 1: r.ini:3: odd" in scene.log


def test_one_that_cannot_even_be_told_is_killed(scene):
    scene.start(1).addErrback(lambda failure: failure.trap(StartFailed))
    scene.workers[0].answers.pop().errback(Failure(OSError(24, "Too many open files")))
    assert scene.workers[0].told == ["kill"]
    assert "worker 1 cannot be started: [Errno 24] Too many open files" in scene.log


def test_a_reload_while_one_starts_reaches_it(scene):
    scene.start(1)
    scene.revision = 2
    scene.workers[0].serve()
    assert scene.numbers() == []
    scene.workers[0].serve()
    assert scene.workers[0].revisions == [1, 2]
    assert scene.numbers() == [1]


# Deaths.


def test_pauses_grow_while_workers_die_young_and_begin_anew(scene):
    scene.running(1)
    pauses = []
    for _ in range(9):
        scene.workers[-1].die()
        (call,) = [call for call in scene.clock.getDelayedCalls() if call.func == scene.fleet._fill]
        pauses.append(call.getTime() - scene.clock.seconds())
        scene.clock.advance(pauses[-1])
        scene.workers[-1].serve()
    assert pauses == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert "died, or did not start, 9 times in a row; the next one is started in 30 s" in scene.log
    scene.clock.advance(module.WELL)
    scene.workers[-1].die()
    scene.clock.advance(0)
    scene.workers[-1].serve()
    assert scene.numbers() == [11]


def test_a_death_tells_what_is_lost(scene):
    one, _ = scene.running()
    one.sessions, one.tunnels = 1200, 1
    one.die()
    assert "worker 1 has died: killed by SIGKILL; 1,201 sessions and tunnels with it" in scene.log


def test_when_there_is_no_process_it_is_tried_again(scene):
    one, _ = scene.running()
    scene.no_more = True
    one.die()
    scene.clock.advance(0)
    scene.no_more = False
    scene.clock.advance(module.PAUSE)
    scene.workers[-1].serve()
    assert len(scene.numbers()) == 2


def test_a_column_of_a_dead_worker_is_empty_and_used_again(scene):
    one, _ = scene.running()
    gauge = one.memory.gauge("listener main")
    gauge._counts[gauge._first + one.column] = 5
    one.die()
    assert gauge._all() == 0
    scene.clock.advance(0)
    assert scene.workers[-1].column == one.column


# Reloads.


def test_a_reload_is_over_when_all_have_it_and_adds_up(scene):
    one, two = scene.running()
    scene.revision = 2
    done = Deferred.fromCoroutine(scene.fleet.configure())
    one.serve(("odd",), 5)
    assert not done.called
    two.serve(("odd", "even"), 7)
    assert done.result == (["odd", "even"], 12)


def test_one_that_cannot_take_a_reload_is_killed(scene):
    one, two = scene.running()
    done = Deferred.fromCoroutine(scene.fleet.configure())
    one.answers.pop().errback(Failure(Refused("odd")))
    two.die()
    assert done.called
    assert one.told == ["kill"]
    assert "worker 1 cannot take over the reload and is killed: odd" in scene.log


def test_there_may_be_more_or_fewer(scene):
    scene.running()
    Deferred.fromCoroutine(scene.fleet.resize(3))
    scene.workers[2].serve()
    assert scene.numbers() == [1, 2, 3]
    Deferred.fromCoroutine(scene.fleet.resize(1))
    assert scene.numbers() == [1]
    assert [worker.told for worker in scene.workers[1:]] == [["leave alone"]] * 2
    scene.workers[1].die("exit status 0")
    assert "worker 2 has ended: exit status 0" in scene.log
    scene.clock.advance(60)
    assert len(scene.workers) == 3


def test_a_place_that_waits_for_its_next_worker_may_be_given_up(scene):
    one, _ = scene.running()
    one.die()
    scene.fleet._places.reverse()
    Deferred.fromCoroutine(scene.fleet.resize(1))
    scene.clock.advance(60)
    assert len(scene.workers) == 2


# Replacing all.


def test_all_are_replaced_one_after_the_other(scene):
    one, two = scene.running()
    rolled = Deferred.fromCoroutine(scene.fleet.roll())
    assert len(scene.workers) == 3
    assert one.told == []
    scene.workers[2].serve()
    assert (one.told, two.told) == (["leave alone"], [])
    scene.workers[3].serve()
    assert two.told == ["leave alone"]
    assert rolled.called
    assert scene.numbers() == [3, 4]
    assert "2 workers replaced" in scene.log


def test_a_new_one_that_does_not_serve_ends_it_and_the_old_ones_stay(scene):
    scene.running()
    rolled = Deferred.fromCoroutine(scene.fleet.roll())
    scene.workers[2].die("exit status 1")
    assert rolled.called
    assert scene.numbers() == [1, 2]
    assert "workers are replaced no further: the new one does not serve; 0 of 2 were" in scene.log
    Deferred.fromCoroutine(scene.fleet.roll())
    scene.workers[3].serve()
    assert scene.numbers() == [2, 4]


def test_only_one_replacement_runs_at_a_time(scene):
    scene.running()
    Deferred.fromCoroutine(scene.fleet.roll())
    Deferred.fromCoroutine(scene.fleet.roll())
    assert len(scene.workers) == 3
    assert "workers are not replaced: they are being replaced already" in scene.log


def test_an_old_one_that_dies_before_its_turn_leaves_one_worker_in_its_place(scene):
    one, _ = scene.running()
    Deferred.fromCoroutine(scene.fleet.roll())
    one.die()
    scene.workers[2].serve()
    scene.clock.advance(60)
    scene.workers[3].serve()
    for worker in scene.workers[4:]:
        worker.serve()
    assert len(scene.numbers()) == 2


def test_there_is_no_place_for_more_than_live_already(scene):
    scene.running(1)
    for _ in range(15):
        Deferred.fromCoroutine(scene.fleet.roll())
        scene.workers[-1].serve()
    Deferred.fromCoroutine(scene.fleet.roll())
    assert len(scene.workers) == 16
    assert "no worker is started: 16 live already, with those that drain" in scene.log


def test_more_than_there_is_room_for_need_a_restart(scene):
    scene.running(1)
    resized = Deferred.fromCoroutine(scene.fleet.resize(60))
    for worker in scene.workers[1:]:
        worker.serve()
    assert resized.result == ["[router] workers: more than 8 need a restart"]
    assert len(scene.numbers()) == 8


# The end.


def test_the_end_waits_for_all(scene):
    one, two = scene.running()
    gone = scene.fleet.leave("SIGTERM")
    assert [worker.told for worker in (one, two)] == [["leave"], ["leave"]]
    one.die("exit status 0")
    assert not gone.called
    again = scene.fleet.end()
    two.die("exit status 0")
    assert gone.called
    assert again.called
    scene.clock.advance(60)
    assert len(scene.workers) == 2


def test_the_end_waits_for_last_words_but_not_for_long(scene):
    one, two = scene.running()
    gone = scene.fleet.kill()
    one.die(silent=False)
    two.die(silent=False)
    scene.fleet.silent(one)
    assert not gone.called
    scene.clock.advance(module.LAST_WORDS)
    assert gone.called


def test_an_end_during_a_reload_kills_nobody(scene):
    one, two = scene.running()
    done = Deferred.fromCoroutine(scene.fleet.configure())
    done.addErrback(lambda failure: None)
    done.cancel()
    scene.fleet.leave("SIGTERM")
    assert [worker.told for worker in (one, two)] == [["leave"], ["leave"]]
    assert "cannot take over" not in scene.log


def test_the_end_of_none_is_at_once(scene):
    assert scene.fleet.kill().called


def test_an_end_during_a_replacement_ends_the_new_one_too(scene):
    scene.running()
    Deferred.fromCoroutine(scene.fleet.roll())
    gone = scene.fleet.leave("SIGTERM")
    assert scene.workers[2].told == ["leave"]
    for worker in scene.workers:
        worker.die("exit status 0")
    assert gone.called


# Looking after them.


def test_silence_is_told_and_what_was_missed_is_made_up_for(scene):
    (worker,) = scene.running(1)
    scene.clock.advance(module.ASK)
    scene.fleet.probed("app", "one", 0.1, "", "up", "")
    assert worker.told == ["count", "one up"]
    scene.clock.pump([module.ASK] * 2)
    assert "worker 1 has not answered for 10 s: something holds up its loop" in scene.log
    # What it does not read must not pile up.
    scene.fleet.probed("app", "two", None, "refused", "down", "refused")
    assert worker.told == ["count", "one up"]
    worker.counted.callback(None)
    assert worker.told[2:] == ["one up", "two down"]
    worker.counted = Deferred()
    worker.counted.addErrback(lambda failure: None)
    scene.clock.advance(module.ASK)
    assert worker.told[4:] == ["count"]
    worker.counted.errback(Failure(ConnectionDone()))


def test_one_that_is_told_to_end_by_others_gets_a_successor(scene):
    one, _ = scene.running()
    scene.fleet.asks_to_leave(one)
    scene.clock.advance(module.SIGNALS)
    assert one.told == ["leave alone"]
    scene.clock.advance(0)
    scene.workers[2].serve()
    assert scene.numbers() == [2, 3]
    one.die("exit status 0")
    assert "has died" not in scene.log


def test_where_all_are_told_to_end_nobody_gets_a_successor(scene):
    one, two = scene.running()
    scene.fleet.asks_to_leave(one)
    scene.fleet.leave("SIGTERM")
    scene.fleet.asks_to_leave(two)
    scene.clock.advance(60)
    assert [worker.told for worker in scene.workers] == [["leave"], ["leave"]]
