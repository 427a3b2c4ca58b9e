"""What a scenario plays on: one router, its backends, its clients, and what every scenario promises."""

from __future__ import annotations

import re
import signal
import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from tests.scenarios.backend import Backend
from tests.scenarios.load import Load, Session
from tests.scenarios.program import Watch
from tests.scenarios.router import Router

#: What a drain says of itself, in a worker or without any.
_DRAINS = re.compile(r"(worker \d+: )?draining\b")


class Stage:
    """A scenario's router, backends and clients."""

    def __init__(self, folder: Path, accounts: list[str], name: str) -> None:
        self.watch = Watch()
        self.folder = folder
        self.backends: list[Backend] = []
        self.connect_timeout = 2.0
        self.drain = 10.0
        self._name = name
        self._accounts = accounts
        self._router: Router | None = None
        self._load: Load | None = None

    @property
    def router(self) -> Router:
        """The router."""
        assert self._router is not None
        return self._router

    @property
    def load(self) -> Load:
        """The clients."""
        assert self._load is not None
        return self._load

    def begin(
        self,
        options: str = "",
        *,
        router: str = "",
        route: str = "",
        more: str = "",
        backends: int = 4,
        words: str = "",
        backlog: int = 1024,
        goodbye: Sequence[str] = (),
        pause: float = 1.0,
    ) -> None:
        """Start all. ``options`` are the pool's, ``router`` the router's own, ``words`` stand behind each backend.

        ``route`` are options of the clients' route, ``more`` is other sections.
        ``backlog`` is how many connections wait to be accepted by a backend, ``goodbye`` its close code and reason.
        """
        for number in range(1, backends + 1):
            self.backends.append(Backend(self.watch, f"b{number}", backlog, goodbye))
        servers = "\n".join(f"    {one.label} {words}" for one in self.backends)
        options, route, more = (textwrap.dedent(text).strip() for text in (options, route, more))
        config = (
            f"[router]\nlog = json\nlog_query = yes\ndrain = {self.drain:g}s\n{router}\n"
            "[listener main]\nendpoint = tcp:0:interface=127.0.0.1:backlog=1024\n"
            f"[route ws]\npath = /ws\npool = app\n{route}\n"
            f"[pool app]\nconnect_timeout = {self.connect_timeout:g}s\nbackends =\n{servers}\n{options}\n{more}\n"
        )
        for one in self.backends:
            one.wait()
        self._router = Router(self.watch, self.folder, config)
        self._load = Load(self.watch, self.router.port, pause)

    def until(self, predicate: Callable[[], object], what: str) -> None:
        """Wait until things are as ``predicate`` says."""
        self.watch.until(predicate, what, lambda: f"{self.load.last()}\n{self.router.last()}")

    def end(self, dead: Collection[int] = ()) -> None:
        """Let the clients leave, then the router: all it had opened has ended, and it ends in order.

        What ``dead`` workers had is left out: they could not tell of its end any more.
        """
        router = self.router
        self.load.leave()
        self.account()
        self.until(lambda: router.count("close", dead) == router.count("open", dead), "the log has all ends")
        since = len(router.lines)
        router.signal(signal.SIGTERM)
        assert router.status() == 0
        self.until(lambda: router.ended, "the log has ended")
        opened, closed = (
            sorted((line.get("worker", 0), line["connection"]) for line in router.events(event))
            for event in ("open", "close")
        )
        assert [one for one in opened if one[0] not in dead] == [one for one in closed if one[0] not in dead]
        # A drain tells how many it found, if any; and what it had to cut.
        assert not [line for line in router.lines[since:] if _DRAINS.match(line.get("message", ""))]
        deaths = tuple(f"worker {one} has died" for one in dead)
        assert not [line for line in router.faults if not (dead and line.get("message", "").startswith(deaths))]
        began, ends = router.told_of("open"), router.told_of("close")
        for one in filter(lambda one: one.flawless, self.load.sessions):
            if dead and one.number not in ends:
                # Its worker was killed before it told of the end, or of either.
                assert one.number not in began or began[one.number]["worker"] in dead
                continue
            line = ends[one.number]
            assert (line["by"], line["code"], line["backend"]) == ("client", 1000, self.label_of(one.backend))
            assert line["messages_in"] == line["messages_out"] == one.echoed

    def label_of(self, name: str) -> str:
        """How the router calls the backend ``name``."""
        return next(one.label for one in self.backends if one.name == name)

    def account(self) -> None:
        """Note what came out."""
        sessions = [one for one in self.load.sessions if one.opened is not None]
        ends = Counter(one.end["code"] for one in sessions if one.end is not None)
        self.note(
            f"{len(sessions)} sessions, {sum(one.echoed for one in sessions)} echoes,"
            f" slowest handshake {max((one.seconds for one in sessions), default=0):.3f} s,"
            f" ends {dict(ends.most_common())}, refused {len(self.load.refused)}"
        )

    def note(self, text: str) -> None:
        """Tell it at the end of the run."""
        self._accounts.append(f"{self._name}: {text}")

    # What scenarios promise.

    def nothing_was_lost(self, sessions: Iterable[Session]) -> None:
        """Each of them has ended as its client wished, with all echoes, once and in order."""
        assert [one for one in sessions if one.opened is not None and not one.flawless] == []

    def opened_in_time(self, sessions: Iterable[Session]) -> None:
        """Each of them was opened, and none took longer than the connect timeout (and a moment for the machine)."""
        sessions = list(sessions)
        assert [one.refusal for one in sessions if one.opened is None] == []
        assert max(one.seconds for one in sessions) < self.connect_timeout + 1.0

    def close(self) -> None:
        """The scenario is over."""
        for one in (self._load, self._router, *self.backends):
            if one is not None:
                one.close()
