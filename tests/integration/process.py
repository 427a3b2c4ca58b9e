"""The router as a process of its own, run by ``twistd``."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.telling import Telling

TWISTD = str(Path(sys.executable).with_name("twistd"))
_PLACE = re.compile(r"listening on ([^\s\",]+)")
FOREGROUND = (TWISTD, "-n", "--pidfile=")
#: How long a process may take for anything, in seconds.
PATIENCE = 20.0


class RouterProcess(Telling):
    """A router in the foreground, which serves when ``begin`` has returned. ``lines`` is its log so far.

    ``text`` becomes ``router.ini`` in ``folder``, where it runs unless ``cwd`` says otherwise; ``config`` is how the
    command names that file. ``options`` are twistd's own, ``before`` stands in front of the command.
    """

    def __init__(
        self,
        folder: Path,
        text: str,
        *,
        cwd: Path | None = None,
        config: str = "router.ini",
        options: Sequence[str] = (),
        before: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.folder = folder
        (folder / "router.ini").write_text(textwrap.dedent(text))
        self.lines: list[str] = []
        self._grown = threading.Condition()
        #: Where it listens, by its last listener: a port, or the path of a unix socket.
        self.port = 0
        self.path = ""
        command = [*before, *FOREGROUND, *options, "wsrouter", "--config", config]
        super().__init__(command, cwd or folder, PATIENCE, environment, pass_fds=pass_fds)

    def begin(self) -> None:
        """Wait until it serves: who is answered finds the reactor running, and with it the handlers for signals."""
        place = _PLACE.findall(self.wait_for("listening on"))[-1]
        if place.startswith("unix:"):
            self.path = place.removeprefix("unix:")
            sock = socket.socket(socket.AF_UNIX)
        else:
            self.port = int(place.rpartition(":")[2])
            sock = socket.socket()
        with sock:
            sock.settimeout(PATIENCE)
            sock.connect(self.path or ("127.0.0.1", self.port))
            sock.sendall(b"GET /is-it-up HTTP/1.0\r\n\r\n")
            while sock.recv(65536):
                pass

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def wait_for(self, *words: str) -> str:
        """The first line of the log that has one of ``words``; the test fails when the process ends before."""
        with self._grown:

            def told() -> bool:
                return any(one in self.log for one in words)

            assert self._grown.wait_for(lambda: told() or "<end>" in self.lines, PATIENCE), self.log
            assert told(), self.log
            return next(line for line in self.lines if any(one in line for one in words))

    def wait_for_line(self, *words: str) -> str:
        """The first line that has all of ``words``."""
        with self._grown:

            def found() -> str | None:
                return next((line for line in self.lines if all(word in line for word in words)), None)

            assert self._grown.wait_for(found, PATIENCE), self.log
            line = found()
        assert line is not None
        return line

    def reload(self, text: str | None = None) -> str:
        """Put ``text`` into the file and send SIGHUP; returns what the log says until the reload is over."""
        if text is not None:
            (self.folder / "router.ini").write_text(textwrap.dedent(text))
        with self._grown:
            before = len(self.lines)
            self.signal(signal.SIGHUP)

            def over() -> bool:
                told = "".join(self.lines[before:])
                return "reloaded: " in told or "\n<end>" in told or "reload refused" in told

            assert self._grown.wait_for(over, PATIENCE), self.log
            return "".join(self.lines[before:])

    def take(self, text: str | None) -> None:
        """Something was logged; the last line is ``<end>``."""
        with self._grown:
            self.lines.append("<end>" if text is None else text)
            self._grown.notify_all()


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``twistd -n wsrouter`` with ``arguments`` to its end."""
    return _finish([*FOREGROUND, "wsrouter", *arguments], folder)


def run_daemon(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start ``router.ini`` as a daemon, with ``d.pid`` and ``d.log``; returns when it serves, or does not."""
    words = [TWISTD, "--pidfile=d.pid", "--logfile=d.log", "wsrouter", "--config", "router.ini"]
    return _finish(words, folder, **environment)


def _finish(command: Sequence[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | environment
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
