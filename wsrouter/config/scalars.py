"""One word of text -> one value: durations, sizes, numbers, choices, tokens.

Every function takes text without outer blanks and raises ``BadValue``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from wsrouter.config.faults import BadValue, quoted, unknown

T = TypeVar("T")

_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"([0-9]{1,15})([kmg]?)", re.IGNORECASE)
_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_NUMBER = re.compile(r"[0-9]{1,15}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NAME = re.compile(r"[A-Za-z0-9_.-]+")

# A timer further away than this is a slip of the keyboard, and epoll's timeout has no room for it.
_LONGEST = 8784 * 3600.0


def duration_or_zero(text: str) -> float:
    """``500ms``, ``5s``, ``2m``, ``1h`` or ``0s``, as seconds; at most 8784h."""
    found = _DURATION.fullmatch(text)
    if not found:
        raise BadValue(f"{quoted(text)} is not a duration (expected, for example, 500ms, 5s, 2m or 1h)")
    # Dividing keeps 100ms at the float nearest to 0.1, where multiplying by 0.001 may miss it.
    seconds = float(found[1]) / 1000 if found[2] == "ms" else float(found[1]) * _SECONDS[found[2]]
    if seconds > _LONGEST:
        raise BadValue(f"{quoted(text)} is too long (at most 8784h)")
    return seconds


def duration(text: str) -> float:
    """A duration in seconds, longer than zero."""
    seconds = duration_or_zero(text)
    if not seconds:
        raise BadValue(f"{quoted(text)} is too short (expected more than zero)")
    return seconds


def keepalive(text: str) -> float:
    """A duration that TCP_KEEPIDLE takes: whole seconds, 1 to 32767 (tcp(7))."""
    seconds = duration(text)
    if seconds != int(seconds) or seconds > 32767:
        raise BadValue(f"{quoted(text)} is not a keep-alive time (expected whole seconds, at most 32767s)")
    return seconds


def or_off(parse: Callable[[str], T]) -> Callable[[str], T | None]:
    """The parser that also takes ``off``, which is None."""
    return lambda text: None if text == "off" else parse(text)


def or_auto(parse: Callable[[str], T]) -> Callable[[str], T | None]:
    """The parser that also takes ``auto``, which is None."""
    return lambda text: None if text == "auto" else parse(text)


def size(text: str) -> int:
    """``512``, ``16k``, ``1m`` or ``1g``, as bytes; more than zero."""
    found = _SIZE.fullmatch(text)
    if not found:
        raise BadValue(f"{quoted(text)} is not a size (expected, for example, 512, 16k or 1m)")
    count = int(found[1]) * _BYTES[found[2].lower()]
    if not count:
        raise BadValue(f"{quoted(text)} is too small (expected more than zero)")
    return count


def number(low: int, high: int) -> Callable[[str], int]:
    """The parser of whole numbers from ``low`` to ``high``, both included."""

    def parse(text: str) -> int:
        if not _NUMBER.fullmatch(text) or not low <= int(text) <= high:
            raise BadValue(f"{quoted(text)} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def choice(values: Mapping[str, T]) -> Callable[[str], T]:
    """The parser of one word out of the keys of ``values``."""

    def parse(text: str) -> T:
        if text not in values:
            raise unknown(text, values)
        return values[text]

    return parse


yes_no = choice({"yes": True, "no": False})


def token(text: str) -> str:
    """A token of HTTP (RFC 9110 5.6.2); case is kept."""
    if not _TOKEN.fullmatch(text):
        raise BadValue(f"{quoted(text)} is not a token (RFC 9110 5.6.2: letters, digits and !#$%&'*+-.^_`|~)")
    return text


def name(text: str) -> str:
    """The name of a section, or a reference to one."""
    if not _NAME.fullmatch(text):
        raise BadValue(f"{quoted(text)} is not a name (expected letters, digits, '_', '.' and '-')")
    return text


def protocol(text: str) -> str:
    """A protocol name of ALPN: 1 to 255 printable ASCII characters (RFC 7301 3.1)."""
    if not (text.isascii() and text.isprintable() and 0 < len(text) <= 255):
        raise BadValue(f"{quoted(text)} is not an ALPN protocol (expected, for example, h2 or http/1.1)")
    return text
