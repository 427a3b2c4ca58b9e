from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from wsrouter.config.options import Kind, Option, read_text
from wsrouter.config.pool_rules import BalanceRule
from wsrouter.config.schema import KINDS, describe
from wsrouter.config.values import (
    Balance,
    Check,
    CheckKind,
    Listener,
    Match,
    PathKind,
    PathRule,
    Pool,
    Route,
    Router,
    Session,
    Tunnel,
)

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
DEFAULTS: dict[str, Any] = {
    "router": Router(),
    "listener": Listener("x", "tcp:80"),
    "tunnel": Tunnel("x", "p", Match.ANY),
    "route": Route("x", PathRule(PathKind.PREFIX, "/")),
    "pool": Pool("x", ()),
}
#: The defaults that are told by another name, or in another form, than the values have them.
ELSEWHERE: dict[str, object] = {
    "tls": False,
    "tls_verify": True,
    "balance": BalanceRule(Balance.ROUND_ROBIN),
    "check_status": Check(CheckKind.HTTP).statuses,
    "check_interval": Check(CheckKind.HTTP).interval,
    "check_timeout": Check(CheckKind.HTTP).timeout,
    "check_rise": Check(CheckKind.HTTP).rise,
    "check_fall": Check(CheckKind.HTTP).fall,
    "check_tls": "pool",
    "session": Session.AUTO,
}


def test_the_page_about_the_configuration_is_up_to_date() -> None:
    assert PAGE.read_text() == describe(), (
        "write what wsrouter.config.schema.describe() returns to docs/configuration.md"
    )


def test_the_page_tells_of_every_section_and_option() -> None:
    page = describe()
    for kind in KINDS:
        assert f"## {kind.title}" in page
        assert all(f"`{row.name}`" in page for row in kind.options)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_names_are_lower_case_and_unique_and_sentences_end(kind: Kind) -> None:
    names = [row.name for row in kind.options]
    assert len(set(names)) == len(names)
    assert all(name == name.lower() for name in names)
    assert all(row.doc.endswith(".") for row in (kind, *kind.options))


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        pytest.param(kind.kind, row, id=f"{kind.kind}-{row.name}")
        for kind in KINDS
        for row in kind.options
        if row.default
    ],
)
def test_a_default_of_the_table_is_the_default_of_the_values(kind: str, row: Option) -> None:
    value = read_text(row, row.default, Path("/"))
    expected = ELSEWHERE[row.name] if row.name in ELSEWHERE else getattr(DEFAULTS[kind], row.name)
    assert value == expected


def test_every_value_can_be_written() -> None:
    #: Parts of other options, and what no option holds.
    inside = {"name", "line", "sni", "alpn", "listeners", "filters", "key"}
    for kind, value in DEFAULTS.items():
        (rows,) = [k.options for k in KINDS if k.kind == kind]
        fields = {field.name for field in dataclasses.fields(value) if field.init}
        assert fields - inside <= {row.name for row in rows}
