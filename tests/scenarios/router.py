"""The router of a scenario: its process, and what its log says."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable
from datetime import datetime
from pathlib import Path

from tests.integration.process import FOREGROUND
from tests.memory import peak, processor_time, resident
from tests.scenarios.backend import Backend
from tests.scenarios.program import Line, Program, Watch

_SERVES = re.compile(r"worker (\d+) \(process (\d+)\) serves")
_CHANGE = re.compile(r"pool app: backend (?P<label>\S+) is (?P<state>[a-z]+): ")


class Router(Program):
    """``twistd -n wsrouter``."""

    def __init__(self, watch: Watch, folder: Path, text: str) -> None:
        (folder / "router.ini").write_text(text)
        #: Its last word on each backend that it had one on, by label.
        self._states: dict[str, str] = {}
        #: Lines of the access log by kind and worker; without workers that is None.
        self._counts: Counter[tuple[str, int | None]] = Counter()
        #: Each worker's process, of all that have ever served.
        self.workers: dict[int, int] = {}
        super().__init__(watch, [*FOREGROUND, "wsrouter", "--config", "router.ini"], folder)

    @property
    def port(self) -> int:
        """The listener's port; waits until it listens."""
        line = self.wait_for_words("listening on")
        return int(line["message"].rpartition(":")[2])

    def hear(self, line: Line) -> None:
        """Something was logged."""
        super().hear(line)
        self._counts[line.get("event", ""), line.get("worker")] += 1
        message = line.get("message", "")
        change = _CHANGE.match(message)
        if change:
            self._states[change["label"]] = change["state"]
        serves = _SERVES.search(message)
        if serves:
            self.workers[int(serves[1])] = int(serves[2])

    def count(self, event: str, but: Collection[int] = ()) -> int:
        """How many lines of one kind the access log has; those ``but`` of some workers, if there are any."""
        return sum(count for (kind, worker), count in self._counts.items() if kind == event and worker not in but)

    def events(self, event: str, since: int = 0) -> list[Line]:
        """The lines of the access log of one kind."""
        return [line for line in self.lines[since:] if line.get("event") == event]

    def told_of(self, event: str) -> dict[int, Line]:
        """The lines of the access log of one kind, by the number of the client's session."""
        return {int(line["path"].partition("?")[2]): line for line in self.events(event)}

    def wait_for_opening(self, number: int) -> Line:
        """The line that tells of the opening of a client's session; it may come after the client knows."""
        return self._wait_for_session("open", number)

    def wait_for_end(self, number: int) -> Line:
        """The line that tells of the end of a client's session."""
        return self._wait_for_session("close", number)

    def _wait_for_session(self, event: str, number: int) -> Line:
        return self.wait_for(
            lambda line: line.get("event") == event and line["path"].partition("?")[2] == str(number),
            f"the {event} of session {number} is told of",
        )

    def wait_for_change(self, backend: Backend, states: Iterable[str], since: int = 0) -> Line:
        """The first such line."""
        return self.wait_for_words(*(f": backend {backend.label} is {state}: " for state in states), since=since)

    def wait_for_words(self, *words: str, since: int = 0) -> Line:
        """The first line whose message has one of ``words``."""
        return self.wait_for(
            lambda line: any(one in line.get("message", "") for one in words), f"it says {' or '.join(words)!r}", since
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
        return resident(self.pid)

    def peak(self) -> int:
        """The most resident memory that it ever had, in bytes."""
        return peak(self.pid)

    def seconds(self) -> float:
        """The processor time that it has used, in seconds."""
        return processor_time(self.pid)
