"""INI text -> sections and options, each with its line.

The syntax is configparser's, read by a scan of its own: configparser keeps no line numbers and stops
at the first duplicate, and here every fault of a file is wanted at once. What holds:

* ``[kind name]`` opens a section; ``option = value`` sets an option, in lower case.
* A line indented deeper than its option continues the value; blank lines between do not end it.
* ``#`` and ``;`` begin a comment at the start of a line or after a blank; elsewhere they are text.
* Nothing is interpolated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from wsrouter.config.faults import Faults, quoted

_NEWLINE = re.compile(r"\r\n|\n|\r")
_COMMENT = re.compile(r"(?:^|(?<=[ \t]))[#;].*")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Item:
    """One line of a value, without comment and outer blanks; never empty."""

    line: int
    text: str


@dataclass(slots=True)
class RawOption:
    """An option as written; ``items`` is empty for an empty value."""

    name: str
    line: int
    items: list[Item] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The whole value, its lines joined by newlines."""
        return "\n".join(item.text for item in self.items)


@dataclass(slots=True)
class RawSection:
    """A section as written; ``kind`` and ``name`` are the first word of its header and the rest."""

    kind: str
    name: str
    line: int
    options: dict[str, RawOption] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """How faults name this section: ``[pool app]``."""
        return f"[{self.kind} {self.name}]" if self.name else f"[{self.kind}]"


class _Scan:
    """The state between two lines: the open section, and the open option with its indent."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.sections: list[RawSection] = []
        self.option: RawOption | None = None
        self.indent = 0
        self.strayed = False

    def line(self, number: int, text: str) -> None:
        found = _CONTROL.search(text)
        if found:
            self.faults.add(number, f"control character U+{ord(found[0]):04X}")
            return
        # A comment takes the blanks before it along, so that "a ; b" is "a".
        body = _COMMENT.sub("", text, count=1).rstrip()
        content = body.lstrip()
        if not content:
            return
        indent = len(body) - len(content)
        if self.option is not None and indent > self.indent:
            self.option.items.append(Item(number, content))
        elif content.startswith("["):
            self._header(number, content)
        elif not self.sections:
            if not self.strayed:
                self.faults.add(number, f"{quoted(content)} stands before the first section")
            self.strayed = True
        else:
            self._option(number, indent, content)

    def _header(self, number: int, content: str) -> None:
        inside, closed, rest = content[1:].partition("]")
        kind, _, name = inside.strip().partition(" ")
        section = RawSection(kind, name.strip(), number)
        if not closed:
            self.faults.add(number, f"{section.title}: the section's ']' is missing")
        elif rest:
            self.faults.add(number, f"{section.title}: {quoted(rest.strip())} stands behind the section's ']'")
        self.sections.append(section)
        self.option = None

    def _option(self, number: int, indent: int, content: str) -> None:
        section = self.sections[-1]
        name, equals, value = content.partition("=")
        name, value = name.rstrip(), value.lstrip()
        self.option, self.indent = RawOption(name, number), indent
        if value:
            self.option.items.append(Item(number, value))
        if not equals or not name:
            self.faults.add(number, f"{section.title}: {quoted(content)} is not an option (expected NAME = VALUE)")
            return
        first = section.options.setdefault(name, self.option)
        if first is not self.option:
            self.faults.add(number, f"{section.title} {name}: given twice (first at line {first.line})")


def scan(text: str, faults: Faults) -> list[RawSection]:
    """The sections of ``text`` in file order, duplicates included; what cannot be read goes to ``faults``.

    The first of two options with one name stands. A section with a broken header is still opened, so
    that its options are not blamed on the section before.
    """
    state = _Scan(faults)
    for number, line in enumerate(_NEWLINE.split(text.removeprefix("\ufeff")), start=1):
        state.line(number, line)
    return state.sections
