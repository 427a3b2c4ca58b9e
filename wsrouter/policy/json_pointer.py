"""What ``balance = hash json:/pointer`` hashes of a message (RFC 6901)."""

from __future__ import annotations

import json
from typing import Any


def no_constant(name: str) -> None:
    """Refuse ``NaN`` and its kin, which ``json`` reads and RFC 8259 does not know. Raises ValueError."""
    raise ValueError(f"{name} is no number")


# Of members with one name the last counts, as with most parsers.
_read = json.JSONDecoder(parse_constant=no_constant).decode


class JsonPointer:
    """A pointer to one part of a JSON document: ``/`` before each step; ``~1`` stands for ``/``, ``~0`` for ``~``."""

    __slots__ = ("steps",)

    def __init__(self, text: str) -> None:
        # In this order, or "~01" would become "/" (RFC 6901 4).
        self.steps = tuple([step.replace("~1", "/").replace("~0", "~") for step in text.split("/")[1:]])

    def find(self, document: Any) -> Any:
        """The part of ``document``, as ``json`` reads it. Raises LookupError where it has none."""
        for step in self.steps:
            if isinstance(document, list):
                document = document[_index(step)]
            elif isinstance(document, dict):
                document = document[step]
            else:
                raise LookupError(step)
        return document

    def key(self, message: bytes) -> bytes:
        """What of ``message`` is hashed: the part in one form of writing, or the whole message where it has none.

        So it is for what is no JSON. ``{"a": 1, "b": 2}`` and ``{"b":2,"a":1}`` are equal, ``1``, ``1.0`` and ``"1"``
        are not.
        """
        try:
            part = self.find(_read(message.decode()))
            return json.dumps(part, sort_keys=True, separators=(",", ":")).encode()
        except (ValueError, LookupError, RecursionError):
            return message


def _index(step: str) -> int:
    """``0`` or ``12``, but not ``01``; ``-`` is behind the end (RFC 6901 4)."""
    if not (step.isascii() and step.isdigit()) or (step[0] == "0" and step != "0"):
        raise LookupError(step)
    return int(step)
