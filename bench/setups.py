"""What a contender is, the kinds of work, and what a contender needs to know to be started."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TUNNEL, RELAY, WSS, MESSAGE, HTTP = "tunnel", "relay", "wss", "message", "http"
PROTOCOLS = {TUNNEL: "tcp", RELAY: "ws", WSS: "wss", MESSAGE: "ws", HTTP: "http"}
"""Each kind of work, and the load generator's name for what its clients speak; wrk speaks HTTP in its place."""

PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True, slots=True)
class Tools:
    """Where programs are: ``python`` has wsrouter installed; ``named`` are those that the command line names."""

    python: Path
    named: Mapping[str, str] = field(default_factory=dict)

    def find(self, name: str) -> str:
        """Path of a program, or nothing. A proxy's binary often lies outside the search path of users."""
        if name in self.named:
            return self.named[name] if Path(self.named[name]).exists() else ""
        return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin") or ""


@dataclass(frozen=True, slots=True)
class Setup:
    """What one started proxy needs to know; ``sessions`` is the most that will be live at once."""

    folder: Path
    work: str
    port: int
    backend_port: int
    sessions: int
    certificate: Path
    tools: Tools

    def write(self, name: str, text: str) -> Path:
        """Write a configuration file into the folder of this run."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of the tables. ``command`` writes the configuration and returns the command line.

    ``missing`` says why the contender cannot run here, or nothing; ``version`` is what it calls itself.
    """

    name: str
    works: tuple[str, ...]
    missing: Callable[[Tools], str]
    version: Callable[[Tools], str]
    command: Callable[[Setup], list[str]]
    #: It may use the generator's CPU as well.
    cores: bool = False


def missing_tool(name: str) -> Callable[[Tools], str]:
    """Says that a program is not there, if so."""
    return lambda tools: "" if tools.find(name) else f"{name} is not installed (--tool {name}=PATH names it)"


def first_line(*command: str | Path) -> str:
    """The first line that a command writes: its version."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return (result.stdout + result.stderr).strip().partition("\n")[0]
