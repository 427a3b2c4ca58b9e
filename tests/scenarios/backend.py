"""A backend of a scenario: a process that comes and goes at a port of its own."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Sequence

import pytest

from tests.scenarios.program import HERE, Program, Watch


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
