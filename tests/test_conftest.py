"""The check after each test catches what a test leaves; a pytest of its own runs the culprits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from twisted.logger import Logger

CULPRITS = """
import gc, os, socket
from twisted.internet.defer import Deferred, fail
from twisted.internet.protocol import Factory
from twisted.logger import Logger

def test_delayed_call(reactor):
    reactor.callLater(60, print)

async def test_port(reactor):
    reactor.listenTCP(0, Factory(), interface="127.0.0.1")

def test_descriptor():
    os.open("/dev/null", os.O_RDONLY)

def test_logged_failure():
    try:
        1 / 0
    except ZeroDivisionError:
        Logger().failure("oops")

def test_critical_event():
    Logger().critical("all is {what}", what="lost")

async def test_unhandled_error_in_a_cycle():
    cycle = [fail(ValueError("nobody took me"))]
    cycle.append(cycle)

def test_failing_itself(reactor):
    reactor.callLater(60, print)
    assert False, "own fault"

def test_program(require_program):
    require_program("no-such-program", "apt-get install it")

async def test_bare_coroutine_runs():
    assert False, "it ran"

async def test_clean(reactor):
    port = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
    done = Deferred()
    reactor.callLater(0, done.callback, None)
    await done
    port.loseConnection()
"""


def run_culprits(folder: Path, ci: str) -> str:
    (folder / "conftest.py").write_text(Path(__file__).with_name("conftest.py").read_text())
    (folder / "test_culprits.py").write_text(CULPRITS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "--tb=short", "."],
        cwd=folder,
        env={**os.environ, "CI": ci, "PYTEST_ADDOPTS": "", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stdout


@pytest.mark.parametrize(
    ("ci", "outcome"), [("", "SKIPPED [1] conftest.py"), ("true", "FAILED test_culprits.py::test_program")]
)
def test_what_a_test_leaves_makes_it_fail_and_blames_no_other(tmp_path: Path, ci: str, outcome: str) -> None:
    output = run_culprits(tmp_path, ci)
    summary = output.partition("short test summary info")[2]
    for left in (
        "delayed_call",
        "port",
        "descriptor",
        "logged_failure",
        "critical_event",
        "unhandled_error_in_a_cycle",
    ):
        assert f"ERROR test_culprits.py::test_{left} - Failed: the test left something behind" in summary, output
    for text in ("delayed call: ", "open descriptor: /dev/null", "ZeroDivisionError", "all is lost", "nobody took me"):
        assert text in output
    assert "FAILED test_culprits.py::test_failing_itself - AssertionError: own fault" in summary
    assert "ERROR test_culprits.py::test_failing_itself" not in summary
    assert "FAILED test_culprits.py::test_bare_coroutine_runs - AssertionError: it ran" in summary
    assert "ERROR test_culprits.py::test_clean" not in summary
    assert "no-such-program is not installed; get it with: apt-get install it" in summary
    assert outcome in summary


def test_an_expected_failure_is_flushed(logged_failures: object) -> None:
    try:
        raise ValueError("expected")
    except ValueError:
        Logger().failure("as it should be")
    flush: Callable[..., list[object]] = logged_failures.flush  # type: ignore[attr-defined]
    assert flush(KeyError) == []
    assert len(flush(ValueError)) == 1


def test_a_program_that_is_there_is_found(require_program: Callable[[str, str], str]) -> None:
    assert require_program("sh", "apt-get install dash").endswith("/sh")
