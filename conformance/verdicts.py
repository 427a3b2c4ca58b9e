"""What a report of the suite says: which cases ran, and what the suite thinks of each.

The suite ends with status 0 whatever it found, and a peer that could not be reached gives it an empty report. So a run
is good only if each case that was asked for is in the report, and passed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

#: The suite's words for what conforms: as the standard asks, as it allows, and what it leaves open.
OK, NON_STRICT, INFORMATIONAL = "OK", "NON-STRICT", "INFORMATIONAL"
PASSED = frozenset({OK, NON_STRICT, INFORMATIONAL})


@dataclass(frozen=True, slots=True)
class Judgement:
    """``passed`` of ``asked`` cases passed; ``counts`` has each verdict's number, ``faults`` what is wrong."""

    asked: int
    passed: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    faults: tuple[str, ...] = ()


def select(cases: Iterable[str], chosen: Sequence[str]) -> list[str]:
    """Those of ``cases`` that ``chosen`` names: a case (``9.1.1``), a part of a group (``9.1``) or a group (``9``)."""
    return [case for case in cases if any(case == one or case.startswith(f"{one}.") for one in chosen)]


def judge(index: str, agent: str, asked: Sequence[str]) -> Judgement:
    """Judge a report: ``index`` is the text of its index.json, ``agent`` the name of who was tested.

    Each fault is a line for people. A case passes if both the exchange and its end did.
    """
    try:
        report = json.loads(index)
        verdicts = {
            case: (str(one["behavior"]), str(one["behaviorClose"])) for case, one in report.get(agent, {}).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return Judgement(len(asked), faults=(f"the report cannot be read: {error!r}",))
    faults = [f"tested somebody else: {other}" for other in report if other != agent]
    if not verdicts:
        return Judgement(len(asked), faults=(*faults, "no case ran"))
    faults += [f"{case}: was not asked for, but ran" for case in verdicts if case not in set(asked)]
    passed = 0
    for case in asked:
        if case not in verdicts:
            faults.append(f"{case}: did not run")
            continue
        behaviour, end = verdicts[case]
        if behaviour not in PASSED:
            faults.append(f"{case}: {behaviour}")
        elif end not in PASSED:
            faults.append(f"{case}: its end: {end}")
        else:
            passed += 1
    return Judgement(len(asked), passed, Counter(behaviour for behaviour, _ in verdicts.values()), tuple(faults))
