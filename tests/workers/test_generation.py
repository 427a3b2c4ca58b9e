"""What workers run on, on its way through a file in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from wsrouter.config.memory import Reading
from wsrouter.workers.control import Refused
from wsrouter.workers.generation import Condition, Generation

WHOLE = Generation(
    revision=3,
    file=Path("/etc/r.ini"),
    reading=Reading(
        text=b"[router]\n",
        contents={Path("/etc/a.pem"): b"\x00\xff", Path(os.fsdecode(b"/etc/\xff.pem")): b""},
        folders={Path("/srv/www")},
        globs={(Path("/etc"), "*.pem"): ("a.pem",)},
    ),
    ports={"main": 1, "more": 7},
    demo_folder=Path("/tmp/demo"),
    conditions=[Condition("app", "10.0.0.1:80", "down", "refused (3 failed checks)")],
)


@contextmanager
def descriptor(generation: Generation) -> Iterator[int]:
    opened = generation.as_descriptor()
    try:
        yield opened
    finally:
        os.close(opened)


@pytest.mark.parametrize("generation", [WHOLE, Generation(0, Path("r.ini"), Reading(), {})])
def test_a_worker_gets_what_the_supervisor_has(generation):
    with descriptor(generation) as opened:
        assert Generation.of_descriptor(opened) == generation
        # So does the next one: the position in the file is the same for all.
        assert Generation.of_descriptor(opened) == generation


def test_a_worker_of_another_version_refuses():
    with descriptor(WHOLE) as opened:
        values = json.loads(os.pread(opened, 1 << 20, 0))
        text = json.dumps(values | {"protocol": values["protocol"] + 1}).encode()
        os.pwrite(opened, text, 0)
        with pytest.raises(Refused, match="needs a restart"):
            Generation.of_descriptor(opened)
