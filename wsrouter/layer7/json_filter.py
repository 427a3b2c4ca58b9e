"""``json-schema``: messages are JSON (RFC 8259) that keeps to a schema.

What backends might read in different ways is refused as no JSON: an object that names a member twice, ``NaN`` and its
kin, and what nests too deep. The schema is judged by a library that is not installed with the router itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zope.interface import implementer

from wsrouter.config.faults import BadValue, quoted
from wsrouter.config.files import readable_file
from wsrouter.config.memory import read_bytes
from wsrouter.errors import words_of
from wsrouter.layer7.filter_base import OwnFilter, read_words
from wsrouter.layer7.filters import IFilterMaker, Message
from wsrouter.policy.filtering import PASS, Action, Decision, Direction, refuse
from wsrouter.policy.json_pointer import no_constant


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object names a member twice")
    return members


_read = json.JSONDecoder(object_pairs_hook=_members, parse_constant=no_constant).decode


class JsonFilter(OwnFilter):
    """Refuses what is no JSON, or does not keep to ``validator``'s schema; binary messages are held to it, too."""

    def __init__(self, validator: Any, action: Action, direction: Direction | None) -> None:
        super().__init__(action, direction)
        self._keeps_to_schema = validator.is_valid

    def decide(self, message: Message) -> Decision:
        """See OwnFilter."""
        try:
            value = _read(message.text)
        except (ValueError, RecursionError):
            return refuse(self._action, "the message is not JSON")
        if self._keeps_to_schema(value):
            return PASS
        return refuse(self._action, "the message does not keep to its schema")


@implementer(IFilterMaker)
class JsonSchema:
    """``json-schema FILE [action=close|drop] [from=client|backend]``."""

    name = "json-schema"

    def make(self, words: Sequence[str], folder: Path) -> JsonFilter:
        """See IFilterMaker."""
        try:
            import jsonschema_rs
        except ImportError:
            raise BadValue("it needs the package jsonschema-rs: pip install 'wsrouter[json]'") from None
        if not words:
            raise BadValue("a file with a schema is missing")
        path = readable_file(words[0], folder)
        action, direction = read_words(words[1:], Action.CLOSE, Action.DROP)
        try:
            # Offline: a schema that refers to another machine is a fault, and no request to it.
            validator = jsonschema_rs.validator_for(_read(read_bytes(path).decode()), offline=True)
        except OSError as error:
            raise BadValue(f"{quoted(words[0])} cannot be read ({words_of(error)})") from None
        except ValueError as error:
            reason = str(error).partition("\n")[0]
            raise BadValue(f"{quoted(words[0])} is no usable schema ({reason})") from None
        return JsonFilter(validator, action, direction)
