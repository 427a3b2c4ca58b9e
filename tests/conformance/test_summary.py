"""What is told about all runs."""

from __future__ import annotations

import json

from conformance import summary
from conformance.kinds import Kind
from conformance.runs import Outcome, Role, Run
from conformance.verdicts import Judgement

GOOD = Outcome(
    Run(Kind("relay"), "ws", Role.CLIENT), Judgement(517, 517, {"OK": 512, "NON-STRICT": 2, "INFORMATIONAL": 3}), 90.0
)
BAD = Outcome(Run(Kind("relay"), "wss", Role.SERVER), Judgement(517, 0, {}, ("no case ran",)), 6.0)


def test_each_run_is_a_row_and_faults_stand_below() -> None:
    rows = summary.table([GOOD, BAD])
    assert summary.as_text(rows, [GOOD, BAD]) == (
        "session  over  the suite as    cases  passed   OK  non-strict  informational  minutes\n"
        "relay    ws    fuzzing client    517     517  512           2              3      1.5\n"
        "relay    wss   fuzzing server    517       0    0           0              0      0.1\n"
        "relay-wss-fuzzing-server: no case ran"
    )


def test_the_file_has_the_same_as_markdown() -> None:
    told = summary.as_markdown(summary.table([GOOD, BAD]), [GOOD, BAD]).splitlines()
    assert told[1] == "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert told[2] == "| relay | ws | fuzzing client | 517 | 517 | 512 | 2 | 3 | 1.5 |"
    assert told[-2:] == ["", "- relay-wss-fuzzing-server: no case ran"]


def test_programs_get_counts_and_faults_by_name() -> None:
    told = json.loads(summary.as_json([GOOD, BAD]))
    assert told["relay-ws-fuzzing-client"] == {
        "asked": 517,
        "passed": 517,
        "verdicts": {"OK": 512, "NON-STRICT": 2, "INFORMATIONAL": 3},
        "faults": [],
    }
    assert told["relay-wss-fuzzing-server"]["faults"] == ["no case ran"]


def test_one_line_tells_one_run() -> None:
    assert summary.in_words(GOOD) == "517 of 517 cases passed"
    assert summary.in_words(BAD) == "0 of 517 cases passed, 1 faults"
