"""What the scenarios share: a router, backends and clients, each a process of its own, and what they tell.

Every process tells what happens as JSON objects, one a line, and a scenario waits for what they tell. The backends and
the clients stand on PyPI's ``websockets`` (``echo_server.py``, ``load_client.py``); the router is started by ``twistd``
with ``log = json``. All ports are of the kernel's choice. The usual story::

    def test_sessions_live(stage):
        stage.begin("balance = first", backends=2)
        stage.load.hold(10)
        stage.backends[0].kill()
        stage.load.until(lambda: not stage.load.live(), "the sessions of the first backend have ended")
        assert {one.backend for one in stage.load.pass_through(5)} == {"b2"}
        stage.end()

The scenarios are small by default, so that they run with all tests. With ``SCENARIOS=full`` (``make scenarios``) they
hold 500 sessions and go on for minutes, and what came out is told at the end.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FULL = os.environ.get("SCENARIOS") == "full"
#: How long anything may take before the scenario fails, in seconds.
PATIENCE = 120.0 if FULL else 30.0

Line = dict[str, Any]

_CHANGE = re.compile(r"pool app: backend (?P<label>\S+) is (?P<state>[a-z]+): ")

_ACCOUNTS = pytest.StashKey[list[str]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A scenario may take longer than another test."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.scenario)
            item.add_marker(pytest.mark.timeout(1200 if FULL else 120))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Tell what came out."""
    if FULL and config.stash.get(_ACCOUNTS, []):
        terminalreporter.section("scenarios")
        for account in config.stash[_ACCOUNTS]:
            terminalreporter.write_line(account)


class Watch:
    """Where a scenario waits: whoever has something to tell calls ``changed``."""

    def __init__(self) -> None:
        self._condition = threading.Condition()

    def changed(self, change: Callable[[], None]) -> None:
        """Make a change, and wake who waits."""
        with self._condition:
            change()
            self._condition.notify_all()

    def until(self, predicate: Callable[[], object], what: str, told: Callable[[], str] = str) -> None:
        """Return once ``predicate()`` holds; it is asked after each change, and now and then for what is none."""
        deadline = time.monotonic() + PATIENCE
        with self._condition:
            while not predicate():
                if time.monotonic() > deadline:
                    pytest.fail(f"waited {PATIENCE:g} s in vain until {what}\n{told()}", pytrace=False)
                self._condition.wait(0.1)


class Program:
    """A process that tells what happens. ``lines`` is all it has told; what is no JSON is a line with a ``text``."""

    def __init__(self, watch: Watch, arguments: Sequence[str], cwd: Path) -> None:
        self.watch = watch
        self.lines: list[Line] = []
        self.ended = False
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            arguments,
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.pid = self.process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            try:
                line = json.loads(text)
            except ValueError:
                line = {"text": text.rstrip()}
            self.watch.changed(lambda line=line: self.take(line))  # type: ignore[misc]
        self.watch.changed(lambda: setattr(self, "ended", True))

    def take(self, line: Line) -> None:
        """Something was told."""
        self.lines.append(line)

    def tell(self, order: str) -> None:
        """Write one line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()

    def wait_for(self, predicate: Callable[[Line], object], what: str, since: int = 0) -> Line:
        """The first line, from the number ``since`` on, that ``predicate`` holds for."""
        found: Line | None = None
        looked_at = since

        def look() -> bool:
            nonlocal found, looked_at
            found = next(filter(predicate, self.lines[looked_at:]), None)
            looked_at = len(self.lines)
            return found is not None or self.ended

        self.watch.until(look, what, self.last)
        assert found is not None, f"it ended before {what}\n{self.last()}"
        return found

    def last(self) -> str:
        """Its last lines, for people."""
        return "\n".join(str(line) for line in self.lines[-30:])

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def status(self) -> int:
        """Wait for its end: the exit status."""
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """It is not needed any more."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


class Router(Program):
    """``twistd -n wsrouter``."""

    def __init__(self, watch: Watch, folder: Path, text: str) -> None:
        (folder / "router.ini").write_text(text)
        twistd = str(Path(sys.executable).with_name("twistd"))
        #: Its last word on each backend that it had one on, by label.
        self._states: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        super().__init__(watch, [twistd, "-n", "--pidfile=", "wsrouter", "--config", "router.ini"], folder)

    @property
    def port(self) -> int:
        """The listener's port; waits until it listens."""
        line = self.wait_for(lambda line: "listening on" in line.get("message", ""), "the router listens")
        return int(line["message"].rpartition(":")[2])

    def take(self, line: Line) -> None:
        """Something was logged."""
        super().take(line)
        self._counts[line.get("event", "")] += 1
        change = _CHANGE.match(line.get("message", ""))
        if change:
            self._states[change["label"]] = change["state"]

    def count(self, event: str) -> int:
        """How many lines of one kind the access log has."""
        return self._counts[event]

    def events(self, event: str, since: int = 0) -> list[Line]:
        """The lines of the access log of one kind."""
        return [line for line in self.lines[since:] if line.get("event") == event]

    def told_of(self, event: str) -> dict[int, Line]:
        """The lines of the access log of one kind, by the number of the client's session."""
        return {int(line["path"].partition("?")[2]): line for line in self.events(event)}

    def wait_for_change(self, backend: Backend, states: Iterable[str], since: int = 0) -> Line:
        """The first such line."""
        words = [f": backend {backend.label} is {state}: " for state in states]
        return self.wait_for(
            lambda line: any(one in line.get("message", "") for one in words),
            f"backend {backend.name} is {' or '.join(states)}",
            since,
        )

    def is_out(self, backend: Backend) -> bool:
        """Whether its last word on ``backend`` was not that it is up."""
        return self._states.get(backend.label, "up") != "up"

    @staticmethod
    def time_of(line: Line) -> float:
        """When it was logged: seconds of the day, rounded up to whole milliseconds."""
        return datetime.fromisoformat(line["time"]).timestamp() + 0.001

    @property
    def faults(self) -> list[Line]:
        """What must never be logged."""
        return [line for line in self.lines if "traceback" in line or line.get("level") in ("error", "critical")]

    def descriptors(self) -> int:
        """How many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def memory(self) -> int:
        """Its resident memory, in bytes."""
        resident = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return resident * os.sysconf("SC_PAGE_SIZE")


class Backend:
    """A backend that can be started again at its own port. ``program`` is its process now, ``pids`` are all it had."""

    def __init__(self, watch: Watch, name: str, backlog: int, goodbye: Sequence[str]) -> None:
        self.watch = watch
        self.name = name
        self._words = (str(backlog), *goodbye)
        self._fillers: list[socket.socket] = []
        # Bound but not listening: while the backend is dead connections are refused, and nobody else gets its port.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port = self._place.getsockname()[1]
        self.label = f"127.0.0.1:{self.port}"
        self.programs: list[Program] = []
        self.start()

    def start(self) -> None:
        """Start it, or start it again."""
        script = str(HERE / "echo_server.py")
        arguments = [sys.executable, script, self.name, str(self.port), *self._words]
        self.programs.append(Program(self.watch, arguments, HERE))

    def wait(self) -> None:
        """Wait until it listens."""
        self.program.wait_for(lambda line: line.get("event") == "listening", f"backend {self.name} listens")

    @property
    def program(self) -> Program:
        """The process now."""
        return self.programs[-1]

    @property
    def pid(self) -> int:
        """Its number."""
        return self.program.pid

    @property
    def served(self) -> list[str]:
        """What has opened at the process of now: ``probe`` and ``session``, in order."""
        return [line["event"] for line in self.program.lines if line.get("event") in ("probe", "session")]

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it, and wait until it has ended."""
        self.program.signal(number)
        self.program.status()

    def stop(self) -> None:
        """Freeze it: the kernel goes on to accept connections for it."""
        self.program.signal(signal.SIGSTOP)

    def stop_up(self) -> None:
        """Freeze it, and fill its queue: now the kernel does not answer either."""
        self.stop()
        for _ in range(100):
            try:
                self._fillers.append(socket.create_connection(("127.0.0.1", self.port), 0.2))
            except TimeoutError:
                return
        pytest.fail(f"the queue of {self.name} has no end")

    def go_on(self) -> None:
        """Thaw it."""
        while self._fillers:
            self._fillers.pop().close()
        self.program.signal(signal.SIGCONT)

    def slow_down(self, seconds: float) -> None:
        """Let it take so long for each opening handshake."""
        since = len(self.program.lines)
        self.program.tell(f"delay {seconds:g}")
        self.program.wait_for(lambda line: line.get("event") == "delay", "it has slowed down", since)

    def close(self) -> None:
        """It is not needed any more."""
        for one in (*self.programs, *self._fillers):
            one.close()
        self._place.close()


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

    def take(self, line: Line) -> None:
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


class Stage:
    """A scenario's router, backends and clients."""

    def __init__(self, folder: Path, accounts: list[str], name: str) -> None:
        self.watch = Watch()
        self.folder = folder
        self.backends: list[Backend] = []
        self.connect_timeout = 2.0
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
        options: str,
        *,
        backends: int = 4,
        words: str = "",
        backlog: int = 1024,
        goodbye: Sequence[str] = (),
        pause: float = 1.0,
    ) -> None:
        """Start all. ``options`` are the pool's, ``words`` stand behind each backend.

        ``backlog`` is how many connections wait to be accepted by a backend, ``goodbye`` its close code and reason.
        """
        for number in range(1, backends + 1):
            self.backends.append(Backend(self.watch, f"b{number}", backlog, goodbye))
        servers = "\n".join(f"    {one.label} {words}" for one in self.backends)
        config = (
            "[router]\nlog = json\nlog_query = yes\ndrain = 10s\n"
            "[listener main]\nendpoint = tcp:0:interface=127.0.0.1:backlog=1024\n"
            f"[route ws]\npath = /ws\npool = app\n[pool app]\nconnect_timeout = {self.connect_timeout:g}s\n"
            f"backends =\n{servers}\n{textwrap.dedent(options).strip()}\n"
        )
        for one in self.backends:
            one.wait()
        self._router = Router(self.watch, self.folder, config)
        self._load = Load(self.watch, self.router.port, pause)

    def until(self, predicate: Callable[[], object], what: str) -> None:
        """Wait until things are as ``predicate`` says."""
        self.watch.until(predicate, what, lambda: f"{self.load.last()}\n{self.router.last()}")

    def end(self) -> None:
        """Let the clients leave, then the router: all it had opened has ended, and it ends in order."""
        self.load.leave()
        self.account()
        self.until(lambda: self.router.count("close") == self.router.count("open"), "the log has all ends")
        self.router.signal(signal.SIGTERM)
        assert self.router.status() == 0
        self.until(lambda: self.router.ended, "the log has ended")
        assert sorted(line["connection"] for line in self.router.events("close")) == sorted(
            line["connection"] for line in self.router.events("open")
        )
        # A drain tells how many it found, if any; and what it had to cut.
        assert not [line for line in self.router.lines if line.get("message", "").startswith("draining")]
        assert not self.router.faults
        ends = self.router.told_of("close")
        for one in self.load.sessions:
            if one.flawless:
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


@pytest.fixture
def stage(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A scenario's router, backends and clients; ``begin`` starts them."""
    accounts = request.config.stash.setdefault(_ACCOUNTS, [])
    one = Stage(tmp_path, accounts, request.node.name.removeprefix("test_"))
    yield one
    one.close()


@pytest.fixture(scope="session")
def size() -> Callable[[float, float], Any]:
    """``size(small, full)``: the one that holds for this run."""
    return lambda small, full: full if FULL else small
