from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrouter.config.faults import Faults
from wsrouter.config.scan import RawSection, scan


def scanned(text: str) -> tuple[list[RawSection], list[str]]:
    faults = Faults(Path("r.ini"))
    return scan(text, faults), faults.lines()


def values(text: str) -> list[tuple[int, str]]:
    """The lines of the value of one option, in a section of its own that begins at line 0."""
    (section,), faults = scanned("[a b]\n" + text)
    assert faults == []
    (option,) = section.options.values()
    return [(item.line - 1, item.text) for item in option.items]


def test_sections_and_options_know_their_lines() -> None:
    sections, faults = scanned("\n[router]\nlog = text\n\n[pool  app ]  ; why\nbalance=x\n")
    assert faults == []
    assert [(s.kind, s.name, s.line, s.title) for s in sections] == [
        ("router", "", 2, "[router]"),
        ("pool", "app", 5, "[pool app]"),
    ]
    assert sections[0].options["log"].line == 3
    assert sections[1].options["balance"].text == "x"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = b", [(1, "b")]),
        ("a =", []),
        ("a = b ; c", [(1, "b")]),
        ("a = b\t# c", [(1, "b")]),
        ("a = b;c#d", [(1, "b;c#d")]),
        ("a = ; nothing", []),
        ("a = %(x)s ${y}", [(1, "%(x)s ${y}")]),
        ("a = b = c", [(1, "b = c")]),
        ("a = b\n  c\n\td", [(1, "b"), (2, "c"), (3, "d")]),
        ("a =\n  b ; one\n\n# two\n  ; three\n  c", [(2, "b"), (6, "c")]),
        ("  a = b\n    c", [(1, "b"), (2, "c")]),
        ("a =\r\n  b\r\n", [(2, "b")]),
        ("a =\n  [x]:1", [(2, "[x]:1")]),
        ("a = \u2003", []),
    ],
)
def test_a_value_keeps_its_lines_without_comments(text: str, expected: list[tuple[int, str]]) -> None:
    assert values(text) == expected


def test_a_line_as_deep_as_its_option_is_the_next_option() -> None:
    (section,), faults = scanned("[a]\n  x = 1\n  y = 2\n")
    assert faults == []
    assert list(section.options) == ["x", "y"]


def test_a_byte_order_mark_is_no_text() -> None:
    assert scanned("\ufeff[a]")[1] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\ny = 2\n[a]", ["r.ini:1: 'x = 1' stands before the first section"]),
        ("[a", ["r.ini:1: [a]: the section's ']' is missing"]),
        ("[a] b", ["r.ini:1: [a]: 'b' stands behind the section's ']'"]),
        ("[a]\nfoo", ["r.ini:2: [a]: 'foo' is not an option (expected NAME = VALUE)"]),
        ("[a]\n= foo", ["r.ini:2: [a]: '= foo' is not an option (expected NAME = VALUE)"]),
        ("[a]\nx = 1\n\nx = 2", ["r.ini:4: [a] x: given twice (first at line 2)"]),
        ("[a]\nx = a\0b", ["r.ini:2: control character U+0000"]),
        ("[a]\nx = a\x0bb", ["r.ini:2: control character U+000B"]),
        ("[a]\nx = \ud800", ["r.ini:2: control character U+D800"]),
    ],
)
def test_what_cannot_be_read_is_a_fault_with_its_line(text: str, expected: list[str]) -> None:
    assert scanned(text)[1] == expected


def test_options_behind_a_broken_header_are_not_blamed_on_the_section_before() -> None:
    sections, _ = scanned("[a]\nx = 1\n[b\nx = 2\n")
    assert [(s.kind, s.options["x"].text) for s in sections] == [("a", "1"), ("b", "2")]


def test_of_two_options_with_one_name_the_first_stands() -> None:
    (section,), _ = scanned("[a]\nx = 1\nx = 2\n  3")
    assert section.options["x"].text == "1"


@given(st.text(alphabet=st.sampled_from("[]=;# \t\nab"), max_size=80))
def test_items_are_never_empty_and_lines_never_run_past_the_end(text: str) -> None:
    sections, _ = scanned(text)
    last = text.count("\n") + 1
    for section in sections:
        assert 1 <= section.line <= last
        for option in section.options.values():
            assert all(item.text == item.text.strip() != "" and item.line <= last for item in option.items)
