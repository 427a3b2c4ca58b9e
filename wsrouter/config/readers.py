"""How an option's lines become its value: one line, one value per line, or values by line and comma."""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from wsrouter.config.faults import BadValue, quoted
from wsrouter.config.files import readable_files
from wsrouter.config.hosts import backend, origin
from wsrouter.config.limits import network
from wsrouter.config.options import BadItems, Read
from wsrouter.config.rules import header_rule
from wsrouter.config.scalars import choice
from wsrouter.config.scan import Item, RawOption
from wsrouter.config.values import Backend


def one(parse: Callable[[str], Any]) -> Read:
    """Reads exactly one line with ``parse``."""
    return one_at(lambda text, _: parse(text))


def one_at(parse: Callable[[str, Path], Any]) -> Read:
    """Reads exactly one line with a ``parse`` that needs the folder."""

    def read(raw: RawOption, folder: Path) -> Any:
        if len(raw.items) != 1:
            raise BadItems([(raw.items[1].line, f"one value is expected, {quoted(raw.items[1].text)} is one too many")])
        return _each(raw.items, lambda text: parse(text, folder))[0]

    return read


def lines(parse: Callable[[str, Path], Any], *, key: Callable[[Any], Hashable] | None = None) -> Read:
    """Reads one value per line, as a tuple; no two may have the same ``key``, if one is given."""
    return lambda raw, folder: _distinct(raw.items, lambda text: parse(text, folder), key)


def commas(parse: Callable[[str], Any]) -> Read:
    """Reads values by line and by comma, as a tuple; none may be given twice."""
    return lambda raw, _: _distinct(split_commas(raw), parse, lambda value: value)


def split_commas(raw: RawOption) -> list[Item]:
    """The items between commas; a comma at the end of a line counts for nothing."""
    return [Item(i.line, part.strip()) for i in raw.items for part in i.text.removesuffix(",").split(",")]


def _each(items: list[Item], parse: Callable[[str], Any]) -> list[Any]:
    values, bad = [], []
    for item in items:
        try:
            if not item.text:
                raise BadValue("a value is missing between two commas")
            values.append(parse(item.text))
        except BadValue as error:
            bad.append((item.line, str(error)))
    if bad:
        raise BadItems(bad)
    return values


def _distinct(items: list[Item], parse: Callable[[str], Any], key: Callable[[Any], Hashable] | None) -> tuple[Any, ...]:
    values = _each(items, parse)
    first: dict[Hashable, Item] = {}
    twice = []
    if key is not None:
        for item, value in zip(items, values, strict=True):
            earlier = first.setdefault(key(value), item)
            if earlier is not item:
                twice.append((item.line, f"{quoted(item.text)} is given twice (first at line {earlier.line})"))
    if twice:
        raise BadItems(twice)
    return tuple(values)


def by_value(kind: type[enum.Enum]) -> Read:
    """Reads the value of one member of an Enum."""
    return one(choice({member.value: member for member in kind}))


#: Reads networks by line and by comma.
networks = commas(network)


def certificate_files(raw: RawOption, folder: Path) -> tuple[Path, ...]:
    """Reads one file or glob per line; the files come out sorted, each once."""
    found = lines(readable_files)(raw, folder)
    return tuple(sorted({path for group in found for path in group}))


def backend_list(raw: RawOption, folder: Path) -> tuple[Backend, ...]:
    """Reads backends by line and by comma; none may be given twice."""
    split = RawOption(raw.name, raw.line, split_commas(raw))
    found: tuple[Backend, ...] = lines(backend, key=lambda server: server.label)(split, folder)
    return found


def origin_list(raw: RawOption, folder: Path) -> tuple[str, ...] | None:
    """Reads ``off`` (None), or origins by line and by comma."""
    items = split_commas(raw)
    if [item.text for item in items] == ["off"]:
        return None
    for item in items:
        if item.text == "off":
            raise BadItems([(item.line, "'off' stands alone, not among origins")])
    found: tuple[str, ...] = commas(origin)(raw, folder)
    return found


#: Reads one header rule per line; no header may be named twice.
header_rules = lines(lambda text, _: header_rule(text), key=lambda rule: rule[0].lower())
