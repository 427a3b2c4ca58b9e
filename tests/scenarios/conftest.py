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

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.program import FULL, HERE
from tests.scenarios.stage import Stage

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
