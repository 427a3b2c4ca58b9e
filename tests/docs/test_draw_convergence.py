"""What the picture of a joining backend shows, without drawing it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "draw_convergence.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_convergence", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


@pytest.fixture(scope="module")
def courses(script: ModuleType) -> dict[str, Any]:
    return {name: script.simulate(pool) for name, pool in script.RUNS.items()}


NAMES = ["least-sessions", "least-sessions, slow_start = 60s", "round-robin"]


@pytest.mark.parametrize(("name", "apart"), list(zip(NAMES, [5, 5, 60], strict=True)))
def test_live_sessions_level_out(courses: dict[str, Any], name: str, apart: int) -> None:
    assert courses[name].at(-1.0)[2] == 0
    last = courses[name].at(240.0)
    assert max(last) - min(last) <= apart
    assert sum(last) == pytest.approx(1000, abs=100)


def test_slow_start_takes_its_time_and_turns_take_longer(courses: dict[str, Any]) -> None:
    fast, slow, turns = (courses[name].level() for name in NAMES)
    assert fast < 30 < 50 < slow <= 62 < turns


def test_without_slow_start_every_new_session_goes_to_the_newcomer(courses: dict[str, Any]) -> None:
    course = courses["least-sessions"]
    assert max(course.part) == 1.0
    one, two, three = course.at(30.0)
    assert three == pytest.approx((one + two) / 2, abs=1)


@pytest.mark.parametrize("seconds", [10.0, 20.0, 30.0, 40.0, 50.0])
def test_in_slow_start_the_newcomer_has_its_part_of_what_the_others_have(
    courses: dict[str, Any], seconds: float
) -> None:
    course = courses["least-sessions, slow_start = 60s"]
    one, two, three = course.at(seconds)
    assert three / ((one + two) / 2) == pytest.approx(seconds / 60, abs=0.02)
    assert max(course.part) < 0.7


def test_round_robin_sends_the_newcomer_no_more_than_its_turns(courses: dict[str, Any]) -> None:
    assert max(courses["round-robin"].part) < 0.35


def test_a_run_is_the_same_each_time(script: ModuleType, courses: dict[str, Any]) -> None:
    assert script.simulate(script.RUNS["least-sessions"]).live == courses["least-sessions"].live
