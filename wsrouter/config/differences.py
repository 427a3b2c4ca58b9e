"""What differs between two configurations, in words for the log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from wsrouter.config.values import Config, Route


def differences(old: Config, new: Config) -> list[str]:
    """``["1 route added", "3 pools changed", ...]``: what has changed; listeners are told of by their ports."""
    kinds = ("tunnel", "route", "pool", "certificate", "echo")
    found = []
    for kind in kinds:
        plural = kind + ("es" if kind == "echo" else "s")
        found += _of_kind(kind, plural, getattr(old, plural), getattr(new, plural))
    found += [
        f"{plural} in another order"
        for plural in ("tunnels", "routes")
        if _order(getattr(old, plural), getattr(new, plural)) != _order(getattr(new, plural), getattr(old, plural))
    ]
    if old.router != new.router:
        found.append("[router] changed")
    return found


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``1 pool``, ``1,200 pools``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def same(old: Any, new: Any) -> bool:
    """Whether two sections say the same; where in the file they stand does not matter."""
    return bool(_plain(old) == _plain(new))


def _of_kind(kind: str, plural: str, old: Iterable[Any], new: Iterable[Any]) -> list[str]:
    before = {section.name: section for section in old}
    after = {section.name: section for section in new}
    counts = {
        "added": len(after.keys() - before.keys()),
        "removed": len(before.keys() - after.keys()),
        "changed": sum(not same(before[name], after[name]) for name in before.keys() & after.keys()),
    }
    return [f"{count(number, kind, plural)} {what}" for what, number in counts.items() if number]


def _plain(section: Any) -> Any:
    if isinstance(section, Route):
        # One text may compile to two objects that are not equal.
        section = replace(section, path=replace(section.path, regex=None))
    return replace(section, line=0)


def _order(sections: Sequence[Any], others: Sequence[Any]) -> list[str]:
    """The names that both have, in the order of the first."""
    known = {section.name for section in others}
    return [section.name for section in sections if section.name in known]
