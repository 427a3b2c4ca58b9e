"""Where the time goes: what is made of perf's and py-spy's words. The programs themselves are not asked here."""

from __future__ import annotations

import pytest

from bench import where
from bench.where import Look, hottest, part_of, quietest, shares, table


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("[kernel.kallsyms]", where.KERNEL),
        ("[vdso]", where.KERNEL),
        ("libcrypto.so.3", where.TLS),
        ("libpython3.11.so.1.0", where.PYTHON),
        ("python3.11", where.PYTHON),
        ("_ssl.cpython-311-x86_64-linux-gnu.so", where.MODULES),
        ("parser.cpython-311-x86_64-linux-gnu.so", where.MODULES),
        ("wsrouter__mypyc.cpython-311-x86_64-linux-gnu.so", where.COMPILED),
        ("libc.so.6", where.LIBRARIES),
        ("ld-linux-x86-64.so.2", where.LIBRARIES),
        ("nginx", where.PROXY),
    ],
)
def test_every_file_is_a_part(file, part):
    assert part_of(file) == part


def test_shares_are_of_what_was_sampled():
    report = """
# Overhead  Shared Object
# ........  ..............

    60.00%  [kernel.kallsyms]
    20.00%  python3.11
    10.00%  libcrypto.so.3
     5.00%  libssl.so.3
"""
    found = shares(report)
    assert sum(found.values()) == pytest.approx(1)
    assert found[where.KERNEL] == pytest.approx(60 / 95)
    assert found[where.TLS] == pytest.approx(15 / 95)
    assert shares("") == {}


def test_the_hottest_functions_are_those_in_which_samples_end():
    stacks = "main (a.py:1);read (pump.py:3) 30\nmain (a.py:1);send (leg.py:5) 60\nmain (a.py:1) 10\nnonsense\n"
    assert hottest(stacks, 2) == [("send (leg.py:5)", 0.6), ("read (pump.py:3)", 0.3)]
    assert hottest("") == []


def test_of_several_looks_the_quietest_is_told_with_its_own_parts():
    slow, fast = Look(20.0, {where.KERNEL: 1.0}), Look(9.0, {where.PROXY: 1.0})
    assert quietest([slow, fast]) is fast


def test_a_table_has_the_parts_that_anybody_has():
    rows = table(
        {
            "nginx": Look(10.0, {where.KERNEL: 0.9, where.PROXY: 0.1}),
            "wsrouter": Look(12.0, {where.KERNEL: 0.75, where.PYTHON: 0.25}),
        }
    )
    assert rows == [
        ["us of CPU", "all", "kernel", "interpreter", "the proxy's own"],
        ["nginx", "10.0", "9.0", "-", "1.0"],
        ["wsrouter", "12.0", "9.0", "3.0", "-"],
    ]
