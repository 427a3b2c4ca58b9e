from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wsrouter.config import readers
from wsrouter.config.options import BadItems, Read
from wsrouter.config.scan import Item, RawOption
from wsrouter.config.values import Log

FOLDER = Path("/")


def read(reader: Read, *texts: str) -> Any:
    """The value of an option whose lines begin at line 10."""
    return reader(RawOption("x", 10, [Item(10 + n, text) for n, text in enumerate(texts)]), FOLDER)


def faults(reader: Read, *texts: str) -> list[tuple[int, str]]:
    with pytest.raises(BadItems) as caught:
        read(reader, *texts)
    return caught.value.found


def test_a_single_value_takes_one_line() -> None:
    assert read(readers.by_value(Log), "json") is Log.JSON
    assert faults(readers.by_value(Log), "json", "text") == [(11, "one value is expected, 'text' is one too many")]
    assert faults(readers.by_value(Log), "xml") == [(10, "unknown value 'xml' (known: text, json)")]


def test_a_list_goes_by_line_and_comma_and_may_end_lines_in_one() -> None:
    reader = readers.commas(str.upper)
    assert read(reader, "a, b,", "c") == ("A", "B", "C")
    assert faults(reader, "a", "b,,c") == [(11, "a value is missing between two commas")]
    assert faults(reader, "a", "b, A") == [(11, "'A' is given twice (first at line 10)")]


def test_every_bad_line_of_a_list_is_a_fault_of_its_own() -> None:
    found = faults(readers.backend_list, "a:1", "b", "c:x")
    assert [line for line, _ in found] == [11, 12]


def test_a_backend_is_given_once() -> None:
    assert [b.port for b in read(readers.backend_list, "a:1, a:2", "b:1")] == [1, 2, 1]
    assert faults(readers.backend_list, "a:1", "A:1 backup") == [(11, "'A:1 backup' is given twice (first at line 10)")]


def test_certificates_of_several_globs_come_out_sorted_and_once(tmp_path: Path) -> None:
    for name in ("b.pem", "a.pem"):
        (tmp_path / name).write_text("")
    found = read(readers.certificate_files, f"{tmp_path}/b.pem", f"{tmp_path}/*.pem")
    assert found == (tmp_path / "a.pem", tmp_path / "b.pem")


def test_origins_are_off_or_a_list() -> None:
    assert read(readers.origin_list, "off") is None
    assert read(readers.origin_list, "same") == ("same",)
    assert read(readers.origin_list, "https://a.example, null", "same") == ("https://a.example", "null", "same")
    assert faults(readers.origin_list, "same", "off") == [(11, "'off' stands alone, not among origins")]


def test_a_header_is_set_once() -> None:
    assert read(readers.header_rules, "X-A: 1, 2", "X-B:") == (("X-A", "1, 2"), ("X-B", ""))
    assert faults(readers.header_rules, "X-A: 1", "x-a: 2") == [(11, "'x-a: 2' is given twice (first at line 10)")]
