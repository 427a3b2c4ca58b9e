"""A lease on a leg that has no socket: only its home matters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from wsrouter.relay.lease import Lease

pytestmark = pytest.mark.interpreted


class Home:
    def __init__(self, told: list[str]) -> None:
        self._told = told

    def left(self) -> None:
        self._told.append("home")


def test_what_was_leased_is_given_back_before_the_home_hears_of_the_end() -> None:
    told: list[str] = []
    leg: Any = SimpleNamespace(home=Home(told))
    Lease(leg, lambda: told.append("first"))
    Lease(leg, lambda: told.append("second"))
    leg.home.left()
    assert told == ["second", "first", "home"]


def test_a_leg_may_be_nobodys() -> None:
    told: list[str] = []
    leg: Any = SimpleNamespace(home=None)
    Lease(leg, lambda: told.append("given back"))
    leg.home.left()
    assert told == ["given back"]
