"""The workers, together: kept alive, replaced, told what concerns them all.

There are as many places as the configuration wants workers. A worker that dies is replaced at once in its place; one
that dies again and again is replaced after pauses that grow. While all are replaced, one after the other, a place has
two for a moment: the new one serves before the old one begins to leave.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from socket import socket
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList, gatherResults
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from wsrouter.config.differences import count
from wsrouter.errors import words_of
from wsrouter.workers.control import Refused
from wsrouter.workers.generation import Condition, Generation
from wsrouter.workers.process import Stage, WorkerProcess
from wsrouter.workers.shared import SharedMemory

#: A worker that has lived this long was well, in seconds: the pauses begin anew.
WELL = 10.0
#: The pause before the second replacement in a row, which doubles with every further one; the longest, in seconds.
PAUSE = 0.5
LONGEST_PAUSE = 30.0
#: How long a worker may take to serve, or to take over a reload, in seconds. Then it is killed.
PATIENCE = 60.0
#: For how many workers at a time there is room in the memory of limits: those that drain have a place there too.
COLUMNS_EACH = 4
LEAST_COLUMNS = 16
#: How long the last words of a worker may take to come when all are to end, in seconds.
LAST_WORDS = 1.0
#: How far apart a signal that is meant for all may reach them, in seconds.
SIGNALS = 0.25
#: How often workers are asked what lives in them, and after what silence the log is told, in seconds.
ASK = 5.0
SILENCE = 10.0

_log = Logger()


class StartFailed(Exception):
    """No worker could be started."""


def _why_not_started(error: OSError) -> str:
    """What keeps a process from being started, and what to do where the new user of ``--uid`` may not run Python."""
    why = words_of(error)
    if isinstance(error, PermissionError):
        why += (
            f"; user {os.geteuid()} has to be able to run {sys.executable} and to enter every folder on the way: "
            "change their modes, or install wsrouter elsewhere"
        )
    return why


@dataclass(slots=True, eq=False)
class Place:
    """One of the workers that the configuration wants."""

    worker: WorkerProcess | None = None
    #: How often in a row a worker has died young here.
    deaths: int = 0
    #: The next try.
    call: IDelayedCall | None = None


class Fleet:
    """All workers of one router.

    ``generation`` makes what they run on, and gives the ports that it names; ``conditions`` tells how all backends are.
    ``closed`` is called whenever there is one less that accepts. ``make`` makes a worker that is not started yet.
    """

    def __init__(
        self,
        reactor: Any,
        generation: Callable[[], tuple[Generation, Mapping[int, socket]]],
        conditions: Callable[[], Sequence[Condition]],
        closed: Callable[[], None],
        make: Callable[..., WorkerProcess] = WorkerProcess,
    ) -> None:
        self._reactor = reactor
        #: Made at the start.
        self.memory: SharedMemory | None = None
        self._make = make
        self._generation = generation
        self._conditions = conditions
        self._one_less = closed
        #: All whose process lives, by number.
        self.workers: dict[int, WorkerProcess] = {}
        #: Those whose process has ended, and whose last words may still come.
        self._unheard: set[WorkerProcess] = set()
        #: Those that were held up, and have missed what was probed.
        self._behind: set[WorkerProcess] = set()
        self._places: list[Place] = []
        self._last = 0
        self._stopping = False
        self._rolling = False
        #: Fires when no process is left.
        self._gone: Deferred[None] | None = None
        self._last_words: IDelayedCall | None = None
        #: Whether any worker has ever served.
        self._proven = False
        self._asking = LoopingCall(self._ask)
        self._asking.clock = reactor

    @property
    def serving(self) -> list[WorkerProcess]:
        """The workers that take clients."""
        return [worker for worker in self.workers.values() if worker.stage is Stage.SERVING]

    @property
    def leaving(self) -> list[WorkerProcess]:
        """The workers that were told to end."""
        return [worker for worker in self.workers.values() if worker.stage is Stage.LEAVING]

    # The start.

    async def start(self, number: int) -> None:
        """Start ``number`` workers; returns when all serve, or some do and the others are tried again and again.

        Raises StartFailed when none can be started.
        """
        self.memory = SharedMemory.create(max(LEAST_COLUMNS, COLUMNS_EACH * number))
        self._places = [Place() for _ in range(number)]
        await self._fill_all(self._places)
        if self._stopping:
            return
        if not self._proven:
            raise StartFailed
        for place in self._places:
            if place.worker is None and place.call is None:
                self._replace(place, was_well=False)
        self._asking.start(ASK, now=False)

    async def _fill_all(self, places: Sequence[Place]) -> None:
        await DeferredList([self._fill(place) for place in places])

    def _fill(self, place: Place) -> Deferred[None]:
        """Start a worker in a place that has none; fires when it serves, or does not."""
        place.call = None
        filled = Deferred.fromCoroutine(self._try_to_fill(place))
        filled.addErrback(_unless_cancelled, "A worker could not be started")
        return filled

    async def _try_to_fill(self, place: Place) -> None:
        worker = self._spawn()
        if worker is None:
            self._replace(place, was_well=False)
            return
        place.worker = worker
        await self._begin(worker)

    def _spawn(self) -> WorkerProcess | None:
        """A new worker; None: there can be no new process, and that was told."""
        assert self.memory is not None
        taken = {worker.column for worker in self.workers.values()}
        column = next((column for column in range(self.memory.columns) if column not in taken), None)
        if column is None:
            _log.error("no worker is started: {all} live already, with those that drain", all=len(taken))
            return None
        self._last += 1
        worker = self._make(self._reactor, self._last, self.memory, column, self)
        try:
            worker.start()
        except OSError as error:
            _log.error("worker {number} cannot be started: {why}", number=worker.number, why=_why_not_started(error))
            return None
        self.workers[worker.number] = worker
        return worker

    async def _begin(self, worker: WorkerProcess) -> bool:
        """Make a worker serve; False: it does not, and is ended."""
        try:
            while True:
                generation, sockets = self._generation()
                with _held(generation.as_descriptor()) as descriptor:
                    await self._within(worker, worker.configure(generation, descriptor, sockets))
                if worker.stage is not Stage.STARTING:
                    return False
                if generation.revision == self._generation()[0].revision:
                    break
        except Refused as error:
            for line in str(error).splitlines():
                _log.error("worker {number}: {line}", number=worker.number, line=line)
            worker.kill()
            return False
        except (ConnectionClosed, CancelledError):
            return False  # its end is told where its process has ended; or all are about to end
        except Exception as error:
            # What failed in the worker is in its own part of the log.
            _log.error("worker {number} cannot be started: {error}", number=worker.number, error=error)
            worker.kill()
            return False
        worker.stage = Stage.SERVING
        self._proven = True
        self._share()
        _log.info("worker {number} (process {pid}) serves", number=worker.number, pid=worker.pid)
        return True

    def _share(self) -> None:
        """Workers know how many they are: none takes much more than its share of the clients."""
        if self.memory is not None:
            self.memory.serve(len(self.serving))

    async def _within(self, worker: WorkerProcess, coroutine: Any) -> Any:
        """The answer of a worker, which is killed if it takes longer than PATIENCE."""

        def late() -> None:
            _log.error(
                "worker {number} has not answered for {seconds:g} s: it is killed",
                number=worker.number,
                seconds=PATIENCE,
            )
            worker.kill()

        call = self._reactor.callLater(PATIENCE, late)
        try:
            return await coroutine
        finally:
            if call.active():
                call.cancel()

    # What concerns all.

    async def configure(self) -> tuple[list[str], int]:
        """Have all run on what ``generation`` makes now; returns what there is to warn of, and how many live on.

        One that cannot is killed, and its place gets another.
        """
        generation, sockets = self._generation()
        warnings: list[str] = []
        live = sum(worker.sessions + worker.tunnels for worker in self.leaving)

        async def one(worker: WorkerProcess, descriptor: int) -> int:
            try:
                found, lives = await self._within(worker, worker.configure(generation, descriptor, sockets))
            except (ConnectionClosed, CancelledError):
                return 0  # it has ended, or all are about to
            except Exception as error:
                # One that leaves takes nothing over any more, and need not.
                if worker.stage is Stage.SERVING:
                    _log.error(
                        "worker {number} cannot take over the reload and is killed: {error}",
                        number=worker.number,
                        error=error,
                    )
                    worker.kill()
                return 0
            warnings.extend(line for line in found if line not in warnings)
            return int(lives)

        with _held(generation.as_descriptor()) as descriptor:
            begun = [Deferred.fromCoroutine(one(worker, descriptor)) for worker in self.serving]
            return warnings, live + sum(await gatherResults(begun))

    def probed(self, pool: str, backend: str, rtt: float | None, reason: str, state: str, why: str) -> None:
        """Tell all what a probe has found; those that are held up are told how all is when they answer again."""
        for worker in self.workers.values():
            if self._is_held_up(worker):
                self._behind.add(worker)
            else:
                worker.probed(pool, backend, rtt, reason, state, why)

    async def resize(self, number: int) -> list[str]:
        """Have ``number`` workers from now on: more are started, or the last ones drain; returns what to warn of."""
        assert self.memory is not None
        most = self.memory.columns // 2
        warnings = [] if number <= most else [f"[router] workers: more than {most} need a restart"]
        number = min(number, most)
        while len(self._places) > number:
            self._clear(self._places.pop(), "there are to be fewer workers")
        more = [Place() for _ in range(number - len(self._places))]
        self._places += more
        await self._fill_all(more)
        return warnings

    def _clear(self, place: Place, why: str) -> None:
        if place.call is not None:
            place.call.cancel()
            place.call = None
        worker, place.worker = place.worker, None
        if worker is not None:
            worker.leave(why)
            self._share()

    async def roll(self) -> None:
        """Replace all workers, one after the other, by fresh processes; the old ones drain."""
        if self._rolling or self._stopping:
            why = "they are ending" if self._stopping else "they are being replaced already"
            _log.warn("workers are not replaced: {why}", why=why)
            return
        self._rolling = True
        try:
            await self._roll()
        finally:
            self._rolling = False

    async def _roll(self) -> None:
        places = list(self._places)
        _log.info("replacing {workers}", workers=count(len(places), "worker"))
        for done, place in enumerate(places):
            if place not in self._places:
                continue  # there are fewer by now
            worker = self._spawn()
            well = worker is not None and await self._begin(worker)
            if self._stopping:
                return
            if worker is None or not well:
                _log.error(
                    "workers are replaced no further: the new one does not serve; {done} of {all} were",
                    done=done,
                    all=len(places),
                )
                return
            if place not in self._places:
                worker.leave("there are to be fewer workers")
                continue
            self._clear(place, "another worker takes its place")
            place.worker, place.deaths = worker, 0
        _log.info("{workers} replaced", workers=count(len(places), "worker"))

    # The end.

    def leave(self, why: str) -> Deferred[None]:
        """Have all drain and end; fires when they have."""
        self._stop_filling()
        for worker in self.workers.values():
            worker.leave(why, alone=False)
        return self._all_gone()

    def end(self) -> Deferred[None]:
        """Have all end now; fires when they have."""
        self._stop_filling()
        for worker in self.workers.values():
            worker.end()
        return self._all_gone()

    def kill(self) -> Deferred[None]:
        """End what is left; fires when it has."""
        self._stop_filling()
        for worker in list(self.workers.values()):
            worker.kill()
        return self._all_gone()

    def _stop_filling(self) -> None:
        self._stopping = True
        if self._asking.running:
            self._asking.stop()
        for place in self._places:
            if place.call is not None:
                place.call.cancel()
                place.call = None

    def _all_gone(self) -> Deferred[None]:
        if self._gone is None:
            self._gone = Deferred()
            self._look_who_is_left()
        waiting: Deferred[None] = Deferred()

        def gone(_: None) -> None:
            waiting.callback(None)

        self._gone.addCallback(gone)
        return waiting

    def _look_who_is_left(self) -> None:
        """Nobody is, when all processes have ended and all that they have said is here, or does not come."""
        if self._gone is None or self._gone.called or self.workers:
            return
        if not self._unheard:
            if self._last_words is not None:
                self._last_words.cancel()
                self._last_words = None
            self._gone.callback(None)
        elif self._last_words is None:
            self._last_words = self._reactor.callLater(LAST_WORDS, self._hear_no_more)

    def _hear_no_more(self) -> None:
        self._last_words = None
        self._unheard.clear()
        self._look_who_is_left()

    # What workers tell.

    def over(self, worker: WorkerProcess, how: str) -> None:
        """Its process has ended."""
        self.workers.pop(worker.number, None)
        self._unheard.add(worker)
        self._behind.discard(worker)
        if self.memory is not None:
            self.memory.clear(worker.column)
        self._share()
        self._one_less()
        place = self._place_of(worker)
        if self._stopping:
            self._look_who_is_left()
        elif place is None:
            # It was to end; or it was to take a place and never served, which is told there.
            _log.info("worker {number} has ended: {how}", number=worker.number, how=how)
        else:
            place.worker = None
            lost = count(worker.sessions + worker.tunnels, "session or tunnel", "sessions and tunnels")
            _log.error(
                "worker {number} has died: {how}; {lost} with it, when it was last asked",
                number=worker.number,
                how=how,
                lost=lost,
            )
            self._replace(place, self._reactor.seconds() - worker.started >= WELL)

    def silent(self, worker: WorkerProcess) -> None:
        """All that it has said is here."""
        self._unheard.discard(worker)
        self._look_who_is_left()

    def closed(self, worker: WorkerProcess) -> None:
        """It accepts no more."""
        self._one_less()

    def asks_to_leave(self, worker: WorkerProcess) -> None:
        """It has got a signal. It may leave, unless all were to: then that signal is on its way to here too."""
        self._reactor.callLater(SIGNALS, self._let_leave, worker)

    def _let_leave(self, worker: WorkerProcess) -> None:
        if self._stopping or worker.stage not in (Stage.STARTING, Stage.SERVING):
            return
        _log.warn("worker {number} was told to end, and gets a successor", number=worker.number)
        was_well = worker.stage is Stage.SERVING
        worker.leave("SIGTERM")
        self._share()
        place = self._place_of(worker)
        if place is not None:
            place.worker = None
            self._replace(place, was_well)

    def _place_of(self, worker: WorkerProcess) -> Place | None:
        return next((place for place in self._places if place.worker is worker), None)

    def _replace(self, place: Place, was_well: bool) -> None:
        """Start another worker in a place that has none any more, at once or after a pause."""
        if not self._proven:
            return  # the start has failed, or looks after this itself
        place.deaths = 1 if was_well else place.deaths + 1
        pause = 0.0 if place.deaths == 1 else min(PAUSE * 2 ** (place.deaths - 2), LONGEST_PAUSE)
        if place.deaths > 1:
            _log.error(
                "a worker has died, or did not start, {deaths} times in a row; the next one is started in {pause:g} s",
                deaths=place.deaths,
                pause=pause,
            )
        place.call = self._reactor.callLater(pause, self._fill, place)

    # Looking after them.

    def _is_held_up(self, worker: WorkerProcess) -> bool:
        return worker.asked is not None and self._reactor.seconds() - worker.asked >= SILENCE

    def _ask(self) -> None:
        for worker in self.workers.values():
            if worker.stage is Stage.STARTING:
                continue
            if worker.asked is None:
                asked = Deferred.fromCoroutine(self._count(worker))
                asked.addErrback(_unless_cancelled, "A worker could not be asked what lives in it")
            elif self._is_held_up(worker):
                _log.warn(
                    "worker {number} has not answered for {seconds:.0f} s: something holds up its loop",
                    number=worker.number,
                    seconds=self._reactor.seconds() - worker.asked,
                )

    async def _count(self, worker: WorkerProcess) -> None:
        try:
            await worker.count()
        except ConnectionClosed:
            return  # its end is told where its process has ended
        if worker in self._behind:
            self._behind.discard(worker)
            for one in self._conditions():
                worker.probed(one.pool, one.backend, None, "", one.state, one.why)


@contextmanager
def _held(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _unless_cancelled(failure: Failure, what: str) -> None:
    """Log it, if it is not only that all come to an end."""
    if not isinstance(failure.value, CancelledError):
        _log.failure(what, failure)
