"""The clients of a scenario: a process that opens sessions, and what became of each."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.scenarios.program import HERE, Line, Program, Watch


@dataclass
class Session:
    """What the clients tell of one session. Times are seconds of the day, ``seconds`` how long the handshake took."""

    number: int
    tried: float
    kind: str = ""
    backend: str = ""
    pid: int = 0
    seconds: float = 0.0
    opened: float | None = None
    echoed: int = 0
    #: Pings that came.
    pings: int = 0
    #: How it ended; and how it was refused, where no session came of it.
    end: Line | None = None
    refusal: Line | None = None

    @property
    def flawless(self) -> bool:
        """Whether it has ended as the client wished, and nothing was lost, doubled or mixed up."""
        end = self.end
        return end is not None and not end["faults"] and end["code"] == 1000 and end["sent"] == end["echoed"]


@dataclass
class _Told:
    """The sessions of a load, kept up to date line by line; counted, because a scenario may ask at each line."""

    sessions: dict[int, Session] = field(default_factory=dict)
    #: Those that are neither refused nor ended, those that are open, and what was refused.
    unfinished: dict[int, Session] = field(default_factory=dict)
    live: dict[int, Session] = field(default_factory=dict)
    refused: list[Line] = field(default_factory=list)
    #: How many have opened, by kind.
    opened: Counter[str] = field(default_factory=Counter)
    broken: list[Line] = field(default_factory=list)

    def take(self, line: Line) -> None:
        event, number = line.get("event"), line.get("session", 0)
        if event == "try":
            self.sessions[number] = self.unfinished[number] = Session(number, line["at"])
        elif event == "open":
            one = self.live[number] = self.sessions[number]
            self.opened[line["kind"]] += 1
            one.kind, one.backend, one.pid = line["kind"], line["backend"], line["pid"]
            one.seconds, one.opened = line["seconds"], line["at"]
        elif event == "round":
            self.sessions[number].echoed = line["echoed"]
        elif event == "ping":
            self.sessions[number].pings += 1
        elif event == "refuse":
            self.unfinished.pop(number).refusal = line
            self.refused.append(line)
        elif event == "end":
            self.live.pop(number)
            self.unfinished.pop(number).end = line
        elif event != "listening":
            self.broken.append(line)


class Load(Program):
    """The clients."""

    def __init__(self, watch: Watch, port: int, pause: float) -> None:
        self._told = _Told()
        url = f"ws://127.0.0.1:{port}/ws"
        super().__init__(watch, [sys.executable, str(HERE / "load_client.py"), url, f"{pause:g}"], HERE)

    def hear(self, line: Line) -> None:
        """Something was told."""
        self._told.take(line)

    def last(self) -> str:
        """How things stand, for people."""
        ends = Counter(one.end["code"] for one in self.sessions if one.end is not None)
        return f"{len(self.live())} live, ended {dict(ends)}, refused {self.refused[-5:]}, broken {self._told.broken}"

    # What is asked of them.

    def hold(self, count: int, *, keep: bool = False) -> None:
        """Open so many sessions that live, and wait until they do. ``keep``: open another for each that is lost."""
        before = len(self.live("held"))
        self._order(do="hold", count=count, keep=keep)
        self.until(lambda: len(self.live("held")) >= before + count, f"{count} more sessions live")

    def arrive(self, rate: float) -> None:
        """Open so many a second from now on."""
        self._order(do="arrive", rate=rate)

    def pass_through(self, count: int, at_once: int = 1) -> list[Session]:
        """Open so many for one round each, ``at_once`` at a time, and wait until the last has ended."""
        before = len(self._told.sessions)
        self.open_more(count, at_once)
        self.until(
            lambda: (
                len(self._told.sessions) >= before + count and all(number <= before for number in self._told.unfinished)
            ),
            f"{count} sessions have passed",
        )
        return self.sessions[before : before + count]

    def open_more(self, count: int, at_once: int) -> None:
        """The same, without waiting."""
        self._order(do="pass", count=count, at_once=at_once)

    def hold_more(self, count: int) -> None:
        """Open so many sessions that live, without waiting."""
        self._order(do="hold", count=count)

    def leave(self, count: int | None = None) -> None:
        """End so many of those that live, the oldest first, or all; wait for the end of all."""
        if count is not None:
            self._order(do="leave", count=count)
            return
        self.arrive(0)
        self._order(do="leave")
        self.until(lambda: not self._told.unfinished, "all sessions have ended")

    def _order(self, **order: object) -> None:
        self.tell(json.dumps(order))

    # What came of it.

    def until(self, predicate: Callable[[], object], what: str) -> None:
        """Wait until the sessions are as ``predicate`` says."""
        self.watch.until(lambda: predicate() or self._told.broken or self.ended, what, self.last)
        assert not self._told.broken
        assert not self.ended

    def until_opened(self, count: int) -> None:
        """Wait until so many more of the passing sessions have opened than had when this was called."""
        opened = self.opened("passing")
        self.until(lambda: self.opened("passing") >= opened + count, f"{count} more sessions have opened")

    def opened(self, kind: str = "") -> int:
        """How many sessions have opened so far, or only the ``passing`` or ``held`` of them."""
        return self._told.opened[kind] if kind else self._told.opened.total()

    @property
    def sessions(self) -> list[Session]:
        """All that were tried, in order."""
        return list(self._told.sessions.values())

    @property
    def refused(self) -> list[Line]:
        """What the clients got that got no session."""
        return list(self._told.refused)

    def live(self, kind: str = "") -> list[Session]:
        """Those that are open, or only the ``passing`` or ``held`` of them."""
        return [one for one in self._told.live.values() if kind in ("", one.kind)]

    def of(self, pid: int) -> list[Session]:
        """Those that one process of a backend has served."""
        return [one for one in self.sessions if one.pid == pid]
