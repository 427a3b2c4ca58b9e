"""The Autobahn test suite itself, through the router: all that is quick. ``make conformance`` runs all of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from conformance import verdicts
from conformance.__main__ import QUICK
from conformance.kinds import Kind
from conformance.python2 import Unavailable
from conformance.runs import ROOT, Outcome, Role, Run, every_run, play, quick_runs
from conformance.suite import CASES, Suite, prepare

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def suite(cannot_run: Callable[[str], NoReturn]) -> Suite:
    """The suite; without it these tests ``cannot_run``."""
    try:
        return prepare(print)
    except Unavailable as error:
        cannot_run(str(error))


@pytest.fixture(scope="module")
def summary(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command tells of all quick runs."""
    results = tmp_path_factory.mktemp("conformance") / "results"
    command = [sys.executable, "-m", "conformance", "--quick", "--results", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stderr)
    told: dict[str, Any] = json.loads((results / "summary.json").read_text())
    assert sorted(told) == sorted(run.name for run in quick_runs())
    assert done.returncode == int(any(run["faults"] for run in told.values()))
    for name in told:
        assert (results / name / "report" / "index.html").exists()
    return told


@pytest.mark.parametrize("run", quick_runs(), ids=lambda run: run.name)
def test_every_case_passes(run: Run, suite: Suite, summary: dict[str, Any]) -> None:
    expected = len(run.cases(verdicts.select(suite.cases, QUICK)))
    assert summary[run.name]["faults"] == []
    assert (summary[run.name]["asked"], summary[run.name]["passed"]) == (expected, expected)


def test_the_quick_cases_are_all_but_the_two_groups_about_compression(suite: Suite) -> None:
    assert len(suite.cases) == CASES
    quick = verdicts.select(suite.cases, QUICK)
    assert sorted(set(suite.cases) - set(quick)) == sorted(
        set(verdicts.select(suite.cases, ["12", "13"])) - {"12.1.1", "13.1.1"}
    )


def test_every_run_has_all_cases_but_for_compression_that_a_backend_is_not_offered(suite: Suite) -> None:
    fewer = {
        run.name: len(run.cases(suite.cases)) for run in every_run() if run.cases(suite.cases) != list(suite.cases)
    }
    assert fewer == {"message-to-plain-ws-fuzzing-server": 301, "message-to-plain-wss-fuzzing-server": 301}


def play_one(kind: Kind, suite: Suite, folder: Path) -> Outcome:
    run = Run(kind, "ws", Role.CLIENT)
    return asyncio.run(play(run, suite, ["1.1.1", "1.2.1"], folder / run.name, lambda case: None))


def test_a_router_that_refuses_every_session_fails_every_case(suite: Suite, tmp_path: Path) -> None:
    outcome = play_one(Kind("silent", "accept = http"), suite, tmp_path)
    assert (outcome.judgement.asked, outcome.judgement.passed) == (2, 0)
    assert len(outcome.judgement.faults) == 2


def test_a_router_that_does_not_start_is_a_fault(tmp_path: Path) -> None:
    outcome = play_one(Kind("broken", "colour = green"), Suite(("false",), ()), tmp_path)
    (fault,) = outcome.judgement.faults
    assert outcome.judgement.passed == 0
    assert "[route cases] colour: unknown option" in fault


def test_a_port_that_refuses_is_a_fault(suite: Suite, tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        server = {"agent": "relay", "url": f"ws://127.0.0.1:{nobody.getsockname()[1]}"}
        spec = {"outdir": str(tmp_path), "servers": [server], "cases": ["1.1.1"]}
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        command = [*suite.command, "--mode", "fuzzingclient", "--spec", str(tmp_path / "spec.json")]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, check=False)
    assert done.returncode == 0
    assert verdicts.judge((tmp_path / "index.json").read_text(), "relay", ["1.1.1"]).faults == ("no case ran",)


def test_who_is_interrupted_leaves_nothing_running(suite: Suite, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "conformance", "--cases", "12", "--results", str(tmp_path / "results")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        assert any("12.1.* (0 of 90 done)" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readlines()[-1] == "conformance: interrupted\n"
    assert process.returncode == 130
    # What it started is of its session, and group.
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
