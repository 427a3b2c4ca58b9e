from __future__ import annotations

from pathlib import Path

import pytest

from wsrouter.config.faults import Faults
from wsrouter.config.options import Kind, Option, read_section
from wsrouter.config.readers import commas, one
from wsrouter.config.scalars import duration, name, token
from wsrouter.config.scan import scan

KIND = Kind(
    "thing",
    "A thing.",
    (
        Option("needed", one(name), "Needed.", required=True),
        Option("timeout", one(duration), "A time.", "5s"),
        Option("extra", one(token), "Absent by default."),
        Option("many", commas(name), "Several."),
    ),
)
OTHER = Kind("other", "Another.", (Option("colour", one(name), "A colour."),), named=False)


def read(text: str) -> tuple[dict[str, object], list[str]]:
    faults = Faults(Path("r"))
    (raw,) = scan(text, faults)
    section = read_section(raw, KIND, (OTHER,), Path("/"), faults)
    return section.values, faults.lines()


def test_absent_options_have_their_defaults() -> None:
    assert read("[thing a]\nneeded = x") == ({"needed": "x", "timeout": 5.0}, [])


def test_an_empty_value_is_absence_where_absence_is_the_default() -> None:
    assert read("[thing a]\nneeded = x\nextra =\nmany =") == ({"needed": "x", "timeout": 5.0}, [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "r:1: [thing a] needed: missing, and there is no default"),
        ("needed =", "r:2: [thing a] needed: a value is missing"),
        ("needed = x\ntimeout =", "r:3: [thing a] timeout: a value is missing (the default is 5s)"),
        ("needed = x\nneded = x", "r:3: [thing a] neded: unknown option (did you mean 'needed'?)"),
        ("needed = x\ncolour = x", "r:3: [thing a] colour: unknown option (it belongs to [other])"),
        ("needed = x\nzzz = x", "r:3: [thing a] zzz: unknown option"),
        ("needed = x\nEXTRA = x", "r:3: [thing a] EXTRA: unknown option (did you mean 'extra'?)"),
        ("needed = x\nmany =\n  a\n  b/c", "r:5: [thing a] many: 'b/c' is not a name (expected letters, digits,"),
    ],
)
def test_a_fault_names_line_section_and_option(text: str, expected: str) -> None:
    (fault,) = read(f"[thing a]\n{text}")[1]
    assert fault.startswith(expected)


def test_kinds_have_titles() -> None:
    assert (KIND.title, OTHER.title) == ("[thing NAME]", "[other]")
