"""How faults are worded, collected and put in order.

A parser raises ``BadValue`` with what was got and what was expected; the reader adds the file, the line,
the section and the option. Nothing printed here holds a raw control character, whatever the file held.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from wsrouter.errors import ConfigError

_LONGEST = 80


class BadValue(ValueError):
    """A value that an option does not take; the text says why, without naming file or option."""


def _printable(text: str) -> str:
    """``text`` with every character escaped that would break, or hide in, one line of a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def quoted(text: str) -> str:
    """User text for a message: in single quotes, cut at 80 characters."""
    return f"'{text}'" if len(text) <= _LONGEST else f"'{text[:_LONGEST]}...'"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that ``word`` was most likely meant to be, or None when nothing comes near."""
    # Comparing takes time that grows with both lengths, and a name is never this long.
    found = difflib.get_close_matches(word[:_LONGEST].lower(), list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def unknown(what: str, known: Iterable[str]) -> BadValue:
    """The fault of a word that is not one of ``known``."""
    return BadValue(f"unknown value {quoted(what)} (known: {', '.join(known)})")


def misspelt(what: str, word: str, known: Iterable[str]) -> BadValue:
    """The fault of a word that is not one of ``known``, with the one that was likely meant, else with all of them."""
    known = list(known)
    near = nearest(word, known)
    hint = f"did you mean '{near}'?" if near else f"known: {', '.join(known)}"
    return BadValue(f"unknown {what} {quoted(word)} ({hint})")


class Faults:
    """The faults of one file, gathered in any order."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found: list[tuple[int, str]] = []

    def add(self, line: int, text: str) -> None:
        """Note a fault; lines count from 1, and 0 stands for the file as a whole."""
        self._found.append((line, text))

    def lines(self) -> list[str]:
        """Each fault as one printable line, in the order of the file."""
        ordered = sorted(self._found, key=lambda fault: fault[0])
        return [
            _printable(f"{self._file}:{line}: {text}" if line else f"{self._file}: {text}") for line, text in ordered
        ]

    def check(self) -> None:
        """Raise ``ConfigError`` when there is any fault."""
        if self._found:
            raise ConfigError(self.lines())
