"""When a report of the test suite is good: only when all that was asked for ran, and passed."""

from __future__ import annotations

import json

import pytest

from conformance import verdicts

ASKED = ["1.1.1", "1.1.2", "12.1.1"]


def report(agent: str = "relay", /, **changes: tuple[str, str] | None) -> str:
    """An index.json in which all passed, but for ``changes``, with underscores for dots; None for a missing case."""
    given: dict[str, tuple[str, str] | None] = dict.fromkeys(ASKED, ("OK", "OK"))
    given |= {case.removeprefix("case").replace("_", "."): verdict for case, verdict in changes.items()}
    cases = {
        case: {"behavior": verdict[0], "behaviorClose": verdict[1], "duration": 3, "remoteCloseCode": 1000}
        for case, verdict in given.items()
        if verdict is not None
    }
    return json.dumps({agent: cases})


def test_a_report_in_which_all_passed_is_good() -> None:
    judgement = verdicts.judge(report(), "relay", ASKED)
    assert judgement == verdicts.Judgement(3, 3, {"OK": 3}, ())


@pytest.mark.parametrize("verdict", ["NON-STRICT", "INFORMATIONAL"])
def test_what_the_standard_allows_or_leaves_open_passes_and_is_counted(verdict: str) -> None:
    judgement = verdicts.judge(report(case1_1_2=(verdict, verdict)), "relay", ASKED)
    assert (judgement.passed, judgement.faults) == (3, ())
    assert judgement.counts == {"OK": 2, verdict: 1}


@pytest.mark.parametrize("verdict", ["FAILED", "UNIMPLEMENTED", "WRONG CODE", "a verdict of a later release"])
def test_any_other_verdict_is_a_fault(verdict: str) -> None:
    judgement = verdicts.judge(report(case1_1_2=(verdict, "OK")), "relay", ASKED)
    assert (judgement.passed, judgement.faults) == (2, (f"1.1.2: {verdict}",))


@pytest.mark.parametrize("verdict", ["FAILED", "WRONG CODE", "UNCLEAN", "FAILED BY CLIENT"])
def test_a_case_that_passed_and_ended_badly_is_a_fault(verdict: str) -> None:
    judgement = verdicts.judge(report(case12_1_1=("OK", verdict)), "relay", ASKED)
    assert (judgement.passed, judgement.faults) == (2, (f"12.1.1: its end: {verdict}",))


def test_a_case_that_did_not_run_is_a_fault() -> None:
    judgement = verdicts.judge(report(case1_1_1=None), "relay", ASKED)
    assert (judgement.asked, judgement.passed, judgement.faults) == (3, 2, ("1.1.1: did not run",))


def test_a_case_that_nobody_asked_for_is_a_fault() -> None:
    judgement = verdicts.judge(report(case9_9_9=("OK", "OK")), "relay", ASKED)
    assert (judgement.passed, judgement.faults) == (3, ("9.9.9: was not asked for, but ran",))


@pytest.mark.parametrize("index", ["{}", '{"relay": {}}'])
def test_an_empty_report_is_a_fault(index: str) -> None:
    judgement = verdicts.judge(index, "relay", ASKED)
    assert (judgement.asked, judgement.passed, judgement.faults) == (3, 0, ("no case ran",))


def test_a_report_on_somebody_else_is_a_fault() -> None:
    judgement = verdicts.judge(report("nginx"), "relay", ASKED)
    assert (judgement.passed, judgement.faults) == (0, ("tested somebody else: nginx", "no case ran"))


@pytest.mark.parametrize(
    "index", ["", "{", "[]", '{"relay": []}', '{"relay": {"1.1.1": {}}}', '{"relay": {"1.1.1": 1}}']
)
def test_a_report_that_makes_no_sense_is_a_fault(index: str) -> None:
    (fault,) = verdicts.judge(index, "relay", ASKED).faults
    assert fault.startswith("the report cannot be read: ")


@pytest.mark.parametrize(
    ("chosen", "selected"),
    [
        (["1"], ["1.1.1", "1.1.2"]),
        (["1.1"], ["1.1.1", "1.1.2"]),
        (["1.1.1"], ["1.1.1"]),
        (["12", "1.1.2"], ["1.1.2", "12.1.1"]),
        (["2", "1.1.10"], []),
        ([], []),
    ],
)
def test_cases_are_chosen_by_name_or_by_group(chosen: list[str], selected: list[str]) -> None:
    assert verdicts.select(ASKED, chosen) == selected
