"""The ``key=value`` words behind a value, such as ``samesite=lax`` behind the name of a cookie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wsrouter.config.faults import BadValue, misspelt, quoted


def keywords(words: list[str], parsers: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """The values of ``words`` by key, each read by the parser of its key; in any order, none twice."""
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in parsers:
            raise misspelt("word", key, parsers)
        if not equals or not value:
            raise BadValue(f"{quoted(word)} lacks its value (expected {key}=...)")
        if key in found:
            raise BadValue(f"{quoted(key)} is given twice")
        try:
            found[key] = parsers[key](value)
        except BadValue as error:
            raise BadValue(f"{key}: {error}") from None
    return found


def nothing_more(words: list[str], behind: str) -> None:
    """Raise ``BadValue`` when anything stands behind a value that takes no more words."""
    if words:
        raise BadValue(f"{quoted(words[0])} is one word too many behind '{behind}'")
