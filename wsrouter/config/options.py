"""What the schema's table is made of, and how a raw section is read by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsrouter.config.faults import BadValue, Faults, nearest
from wsrouter.config.scan import Item, RawOption, RawSection

#: Reads one option; the path is the folder where relative paths begin. Raises ``BadItems``.
Read = Callable[[RawOption, Path], Any]


class BadItems(Exception):
    """The faults of one option's value: lines and texts."""

    def __init__(self, found: list[tuple[int, str]]) -> None:
        super().__init__(found)
        self.found = found


@dataclass(frozen=True, slots=True)
class Option:
    """An option: ``default`` is what absence means, as it would be written; empty for off or absent."""

    name: str
    read: Read
    doc: str
    default: str = ""
    required: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of section: ``[kind NAME]``, or ``[kind]`` where it is not ``named``."""

    kind: str
    doc: str
    options: tuple[Option, ...]
    named: bool = True

    @property
    def title(self) -> str:
        return f"[{self.kind} NAME]" if self.named else f"[{self.kind}]"


@dataclass(frozen=True, slots=True)
class Section:
    """A section as read: ``values`` holds the options whose values could be read, and the defaults."""

    raw: RawSection
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.raw.name

    def given(self, option: str) -> bool:
        """Whether the option was written with a value, readable or not."""
        return option in self.raw.options and bool(self.raw.options[option].items)

    def fault(self, faults: Faults, option: str, text: str) -> None:
        """Note a fault at the option's line, or at the section's where the option was not written."""
        line = self.raw.options[option].line if option in self.raw.options else self.raw.line
        faults.add(line, f"{self.raw.title} {option}: {text}")


def read_section(raw: RawSection, kind: Kind, others: tuple[Kind, ...], folder: Path, faults: Faults) -> Section:
    """Read every option of ``raw`` by the rows of ``kind``; ``others`` are searched for misplaced options."""
    section = Section(raw)
    rows = {row.name: row for row in kind.options}
    for option in raw.options.values():
        row = rows.get(option.name)
        if row is None:
            section.fault(faults, option.name, _unknown_option(option.name, rows, others))
            continue
        try:
            _read_option(section, row, option, folder)
        except BadItems as error:
            for line, text in error.found:
                faults.add(line, f"{raw.title} {option.name}: {text}")
        except BadValue as error:
            section.fault(faults, option.name, str(error))
    for row in kind.options:
        if row.name in raw.options:
            continue
        if row.required:
            section.fault(faults, row.name, "missing, and there is no default")
        elif row.default:
            section.values[row.name] = read_text(row, row.default, folder)
    return section


def _read_option(section: Section, row: Option, option: RawOption, folder: Path) -> None:
    if option.items:
        section.values[row.name] = row.read(option, folder)
    elif row.required or row.default:
        raise BadValue("a value is missing" + (f" (the default is {row.default})" if row.default else ""))


def read_text(row: Option, text: str, folder: Path) -> Any:
    """The value of an option that is written as one line, such as a default."""
    return row.read(RawOption(row.name, 0, [Item(0, text)]), folder)


def _unknown_option(name: str, rows: dict[str, Option], others: tuple[Kind, ...]) -> str:
    homes = [kind.title for kind in others if name in (row.name for row in kind.options)]
    near = nearest(name, rows)
    if homes:
        return f"unknown option (it belongs to {' or '.join(homes)})"
    return f"unknown option (did you mean '{near}'?)" if near else "unknown option"
