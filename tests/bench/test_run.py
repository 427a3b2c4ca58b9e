"""The benchmark as a command: every workload once, at small size, with the router as it is."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import options, run
from bench.setups import MESSAGE, RELAY, TUNNEL
from bench.targets import TARGETS
from bench.workloads import WORKLOADS

TOP = Path(__file__).parents[2]

SMALL = (
    *("--seconds=0.1", "--warm=0.02", "--rounds=1", "--connections=4", "--opening=4", "--idle=5,20"),
    *("--rate=200", "--rate-seconds=0.2", "--crowd=30", "--live=2,20", "--storm=30", "--storm-seconds=0.1"),
    *("--chatty=4", "--transfer=3000000", "--slow=4", "--slow-bytes=4000000", "--slow-seconds=1.1", "--patience=20"),
)


def bench(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench", *words], cwd=TOP, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def kept_in(folder: Path) -> Any:
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text())


@pytest.fixture(autouse=True)
def compiler(require_program: Callable[[str, str], str]) -> None:
    require_program("cc", "apt-get install gcc libc6-dev")


def test_every_workload_is_read_and_told(tmp_path: Path) -> None:
    tables = tmp_path / "tables.md"
    words = ["--workload=all", f"--work={RELAY}", "--only=wsrouter", "--sizes=125,65536", f"--markdown={tables}"]
    process = bench(*words, f"--results={tmp_path}", *SMALL)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    kept = kept_in(tmp_path)
    assert not [one for one in kept["readings"] if one["error"]]
    read = {
        (one["workload"], one["contender"], metric, value > 0)
        for one in kept["readings"]
        for metric, value in one["reading"].items()
    }
    # Latency needs a floor for that, and memory that does not grow by a page is 0.
    expected = {
        (target.workload, target.contender, target.metric, True)
        for target in TARGETS
        if target.work == RELAY
        and target.contender == "wsrouter"
        and target.metric not in ("added_p99_us", "slow_kb", "idle_kb")
        and not target.metric.endswith(".flat")
    }
    assert expected <= read
    assert {one["workload"] for one in kept["readings"]} == {one.name for one in WORKLOADS if RELAY in one.works}
    assert tables.read_text().startswith("Measured ")
    assert "| KB for each slow reader | relay | wsrouter |" in tables.read_text()
    # What is told of several readings together.
    for target in TARGETS:
        if target.metric.endswith("_us.flat"):
            assert f"| {target.what} | relay | wsrouter |" in tables.read_text()


def test_policies_are_read_beside_a_router_without_them(tmp_path: Path) -> None:
    words = ["--workload=cpu", f"--work={RELAY}", "--only=wsrouter,wsrouter-policed", "--sizes=125"]
    process = bench(*words, f"--results={tmp_path}", *SMALL)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert [line for line in out.splitlines() if line.startswith("CPU with all policies")]


def test_latency_is_told_above_that_of_the_floor(tmp_path: Path) -> None:
    words = ["--workload=latency", f"--work={RELAY}", "--only=wsrouter,floor", "--reference=wsrouter"]
    process = bench(*words, f"--results={tmp_path}", *SMALL)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "added p99 us" in out


def test_messages_are_read_beside_a_bare_pair_of_autobahn(tmp_path: Path) -> None:
    words = ["--workload=cpu", f"--work={MESSAGE}", "--only=wsrouter,autobahn", "--sizes=125", f"--results={tmp_path}"]
    process = bench(*words, *SMALL, "--seconds=0.3")
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    rows = [line.split() for line in out.splitlines() if "wsrouter / autobahn" in line]
    assert len(rows) == 2


def test_kept_readings_are_shown_again(tmp_path: Path) -> None:
    words = ["--workload=storm", f"--work={RELAY}", "--only=floor", f"--results={tmp_path}"]
    first, errors = bench(*words, *SMALL).communicate()
    assert "storm" in errors
    (file,) = tmp_path.glob("*.json")
    again, _ = bench(f"--kept={file}").communicate()
    assert again.strip() == first.partition("\nAll readings")[0].strip()


def test_a_proxy_that_does_not_start_is_told_with_its_own_words(tmp_path: Path) -> None:
    broken = tmp_path / "haproxy"
    broken.write_text("#!/bin/sh\necho cannot start: no luck >&2\nexit 3\n")
    broken.chmod(0o700)
    words = [
        "--workload=cpu",
        f"--work={TUNNEL}",
        "--only=haproxy",
        f"--tool=haproxy={broken}",
        f"--results={tmp_path}",
    ]
    process = bench(*words, *SMALL)
    out, _ = process.communicate()
    assert process.returncode == 1
    assert "haproxy ended with 3" in out
    assert "cannot start: no luck" in out


def test_what_was_read_so_far_is_told_on_interrupt(tmp_path: Path) -> None:
    words = ["--workload=cpu", f"--work={TUNNEL}", "--only=floor", f"--results={tmp_path}"]
    process = bench(*words, *SMALL, "--rounds=100000")
    assert process.stderr is not None
    line = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate()
    assert "cpu" in line
    assert process.returncode == 130
    assert "tunnel: CPU" in out or "tunnel: rates" in out
    assert kept_in(tmp_path)["readings"]


def test_nothing_to_measure_is_told() -> None:
    process = bench("--workload=cpu", f"--work={MESSAGE}", "--only=nginx")
    _, errors = process.communicate()
    assert (process.returncode, errors) == (2, "bench: nothing is left to measure\n")


def test_a_file_that_holds_no_readings_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text("{}")
    process = bench(f"--kept={file}")
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "expected a file of readings" in errors


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--workload=cpu,wind", "unknown: wind"),
        ("--rounds=0", "expected more than 0"),
        ("--sizes=1,x", "expected a number"),
        ("--tool=caddy", "expected NAME=PATH"),
        ("--tool=caddy=/nowhere/caddy", "there is no /nowhere/caddy"),
    ],
)
def test_a_faulty_option_is_told(words: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options.parse([words])
    assert complaint in capsys.readouterr().err


def test_quick_sizes_give_way_to_those_that_are_asked_for() -> None:
    asked = options.parse(["--quick", "--sizes=500"])
    assert (asked.settings.sizes, asked.settings.storm, asked.rounds) == ((500,), 1000, 2)


def test_a_told_command_names_no_paths_of_programs() -> None:
    words = ["--tool", "caddy=/me/caddy", "--tool=node=/me/node", "--plots=/me", "--python", "/me/python", "--quick"]
    told = ["--tool", "caddy=PATH", "--tool", "node=PATH", "--python", "PATH", "--quick"]
    assert list(run._without_paths(words)) == told


def test_sessions_are_as_many_as_descriptors_allow() -> None:
    settings = options.parse([]).settings.within(1000)
    assert (settings.crowd, settings.storm, settings.idle, settings.live) == (300, 266, (300,), (10, 100, 300))
