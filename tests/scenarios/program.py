"""A process that tells what happens, and how a scenario waits for what it tells."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.telling import Telling

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
#: Whether the scenarios have their full size.
FULL = os.environ.get("SCENARIOS") == "full"
#: How long anything may take before the scenario fails, in seconds.
PATIENCE = 120.0 if FULL else 30.0

Line = dict[str, Any]


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


class Program(Telling):
    """A process that tells what happens. ``lines`` is all it has told; what is no JSON is a line with a ``text``."""

    def __init__(self, watch: Watch, arguments: Sequence[str], cwd: Path) -> None:
        self.watch = watch
        self.lines: list[Line] = []
        self.ended = False
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        super().__init__(arguments, cwd, PATIENCE, {"PYTHONPATH": path}, stdin=subprocess.PIPE)

    def take(self, text: str | None) -> None:
        """A line of its output."""
        if text is None:
            self.watch.changed(lambda: setattr(self, "ended", True))
            return
        try:
            line = json.loads(text)
        except ValueError:
            line = {"text": text.rstrip()}
        self.watch.changed(lambda: self.hear(line))

    def hear(self, line: Line) -> None:
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
