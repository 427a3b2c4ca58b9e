"""Byte ranges: what a Range field asks of a file of known size (RFC 9110 14)."""

from __future__ import annotations

import re

#: More ranges than this in one field are not worth serving: the field is ignored (RFC 9110 14.2 allows it).
MOST_RANGES = 16

_RANGES = re.compile(rb"(?i:bytes)=[ \t]*([0-9, \t-]+)")
_RANGE = re.compile(rb"([0-9]{0,18})-([0-9]{0,18})")


def parse_ranges(value: bytes, size: int) -> list[tuple[int, int]] | None:
    """The (offset, length) pairs that a Range field's ``value`` selects in ``size`` bytes, in the order asked.

    None: the field is malformed, in another unit, or asks for more than the whole: it is ignored. An empty list:
    nothing of it can be satisfied (416).
    """
    match = _RANGES.fullmatch(value.strip())
    if match is None:
        return None
    chosen: list[tuple[int, int]] = []
    asked = 0
    for part in match[1].split(b","):
        part = part.strip(b" \t")
        if not part:
            continue
        pair = _RANGE.fullmatch(part)
        if pair is None or pair[0] == b"-":
            return None
        asked += 1
        if pair[1]:
            first = int(pair[1])
            last = min(int(pair[2]), size - 1) if pair[2] else size - 1
            if pair[2] and int(pair[2]) < first:
                return None
        else:
            first, last = max(size - int(pair[2]), 0), size - 1
        if first <= last:
            chosen.append((first, last - first + 1))
    if not asked or asked > MOST_RANGES or sum(length for _, length in chosen) > size:
        return None
    return chosen
