"""Instructions: the rounds that are counted are real ones, and what is made of callgrind's words."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.generator import BenchError
from bench.instructions import DRY, ROOT, WHAT, collected, main, table


@pytest.mark.parametrize("what", WHAT)
def test_a_dry_run_opens_and_ends_sessions(what, tmp_path) -> None:
    """It fails by itself when sessions do not open or do not end."""
    words = [sys.executable, "-P", str(DRY), what, "2", "4"]
    done = subprocess.run(words, env={"PYTHONPATH": str(ROOT)}, cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 0


def test_a_folder_without_a_router_is_no_checkout(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--before", str(tmp_path)])
    assert "holds no checkout of the router" in capsys.readouterr().err


def test_what_callgrind_says() -> None:
    assert collected("==1== Events    : Ir\n==1== Collected : 123456\n") == 123456
    with pytest.raises(BenchError, match="no such program"):
        collected("valgrind: no such program")


def test_ratios_are_to_the_first() -> None:
    before = {"roundtrip": 12_000.0, "opened": 400_000.0}
    now = {"roundtrip": 9_000.0, "opened": 300_000.0}
    counts = {"before": before, "now": now}
    assert table(counts) == [
        ["instructions", "round trip", "ratio", "opened session", "ratio"],
        ["before", "12,000", "1.00", "400,000", "1.00"],
        ["now", "9,000", "0.75", "300,000", "0.75"],
    ]
