from __future__ import annotations

from pathlib import Path

import pytest

from wsrouter.config.faults import Faults, misspelt, nearest, quoted
from wsrouter.errors import ConfigError


def test_faults_come_out_by_line_and_as_they_came_within_one_line() -> None:
    faults = Faults(Path("etc/router.ini"))
    faults.add(7, "second")
    faults.add(2, "first")
    faults.add(7, "third")
    faults.add(0, "of the whole file")
    assert faults.lines() == [
        "etc/router.ini: of the whole file",
        "etc/router.ini:2: first",
        "etc/router.ini:7: second",
        "etc/router.ini:7: third",
    ]


def test_checking_raises_only_when_there_is_a_fault() -> None:
    faults = Faults(Path("x"))
    faults.check()
    faults.add(1, "wrong")
    with pytest.raises(ConfigError) as caught:
        faults.check()
    assert caught.value.faults == ["x:1: wrong"]


def test_a_fault_is_one_printable_line_whatever_it_quotes() -> None:
    faults = Faults(Path("a\nb"))
    faults.add(1, quoted("\x1b[31m\u2028\u202e"))
    (line,) = faults.lines()
    assert line.isprintable()
    assert line == r"a\nb:1: '\x1b[31m\u2028\u202e'"


def test_long_text_is_cut() -> None:
    assert quoted("x" * 80) == f"'{'x' * 80}'"
    assert quoted("x" * 81) == f"'{'x' * 80}...'"


def test_the_nearest_name_is_found_in_any_case_and_never_far_away() -> None:
    assert nearest("BALNCE", ["balance", "backends"]) == "balance"
    assert nearest("zzz", ["balance", "backends"]) is None


def test_a_misspelt_word_is_told_the_nearest_known_one_or_all_of_them() -> None:
    assert str(misspelt("key", "heder", ["header", "path"])) == "unknown key 'heder' (did you mean 'header'?)"
    assert str(misspelt("key", "zzz", iter(["header", "path"]))) == "unknown key 'zzz' (known: header, path)"
