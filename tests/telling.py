"""A process that tells what happens, a line at a time, and is read whether or not somebody listens."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


class Telling:
    """Such a process; what it writes, errors too, comes to ``take``, in a thread of its own.

    ``environment`` is added to that of this process, ``more`` is for ``subprocess.Popen``. ``patience`` is how long it
    may take to end, in seconds.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path,
        patience: float,
        environment: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        self._patience = patience
        self.process = subprocess.Popen(
            arguments,
            cwd=cwd,
            env=os.environ | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **more,
        )
        self.pid = self.process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            self.take(text)
        self.take(None)

    def take(self, text: str | None) -> None:
        """A line was told; None is the end."""
        raise NotImplementedError

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def status(self) -> int:
        """Wait for its end: the exit status."""
        return self.process.wait(self._patience)

    def close(self) -> None:
        """It is not needed any more."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(self._patience)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
