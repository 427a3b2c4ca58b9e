"""What workers run on: a configuration with all the files that it names, and how the backends are.

The supervisor has read it all, maybe with more rights than the workers have, and found it good. So all workers run on
the same, whatever happens to the files meanwhile.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsrouter.config.memory import Reading
from wsrouter.config.values import Log
from wsrouter.workers.control import PROTOCOL, Refused


@dataclass(frozen=True, slots=True)
class Condition:
    """How one backend is: a state of ``policy.health``, and why."""

    pool: str
    backend: str
    state: str
    why: str


@dataclass(frozen=True, slots=True)
class Generation:
    """One configuration. ``revision`` counts up with each, ``file`` is its path, ``reading`` what was read."""

    revision: int
    file: Path
    reading: Reading
    #: Listener -> the number of its port, as in ``control.Lend``.
    ports: Mapping[str, int]
    #: The form of the log, which a reload does not change.
    log: str = Log.TEXT.value
    #: Where the demonstration certificates lie, if there are any.
    demo_folder: Path | None = None
    #: Of all backends that are not up.
    conditions: Sequence[Condition] = field(default_factory=list)

    def as_descriptor(self) -> int:
        """A descriptor of a file in memory that holds this; the caller closes it."""
        descriptor = os.memfd_create("generation", os.MFD_CLOEXEC)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(json.dumps(self._as_values()).encode("ascii"))
        return descriptor

    def _as_values(self) -> dict[str, Any]:
        reading = self.reading
        return {
            "protocol": PROTOCOL,
            "revision": self.revision,
            "file": str(self.file),
            "text": _as_text(reading.text),
            "contents": {str(path): _as_text(data) for path, data in reading.contents.items()},
            "folders": [str(path) for path in reading.folders],
            "globs": [[str(folder), pattern, names] for (folder, pattern), names in reading.globs.items()],
            "ports": dict(self.ports),
            "log": self.log,
            "demo_folder": None if self.demo_folder is None else str(self.demo_folder),
            "conditions": [[one.pool, one.backend, one.state, one.why] for one in self.conditions],
        }

    @classmethod
    def of_descriptor(cls, descriptor: int) -> Generation:
        """What ``as_descriptor`` has put there; the caller closes it. Raises Refused for another protocol."""
        # Other workers have the same open file: its position is theirs too.
        values = json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
        if values.get("protocol") != PROTOCOL:
            raise Refused("this version of the router needs a restart, new workers alone are not enough")
        reading = Reading(
            text=_as_bytes(values["text"]),
            contents={Path(path): _as_bytes(data) for path, data in values["contents"].items()},
            folders={Path(path) for path in values["folders"]},
            globs={(Path(folder), pattern): tuple(names) for folder, pattern, names in values["globs"]},
        )
        folder = values["demo_folder"]
        return cls(
            revision=values["revision"],
            file=Path(values["file"]),
            reading=reading,
            ports=values["ports"],
            log=values["log"],
            demo_folder=None if folder is None else Path(folder),
            conditions=[Condition(*one) for one in values["conditions"]],
        )


def _as_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _as_bytes(text: str) -> bytes:
    return base64.b64decode(text)
