"""What a filter may decide about a message, and the rules of the filters that the router brings along."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

#: Close codes (RFC 6455 7.4.1, the IANA registry): a message that a policy refuses, and one that is too big.
_POLICY = 1008
_TOO_BIG = 1009


class Direction(enum.Enum):
    """Where a message comes from."""

    CLIENT = "client"
    BACKEND = "backend"


@dataclass(frozen=True, slots=True)
class Pass:
    """The message goes on as it is."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The message goes nowhere, and nobody is told."""


@dataclass(frozen=True, slots=True)
class Replace:
    """The message goes on with another payload; a text message stays one, so its payload is UTF-8."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The session ends. Who sent the message gets ``code`` and ``reason``, the other side that the session failed."""

    code: int = _POLICY
    #: At most 123 bytes of UTF-8 reach the peer.
    reason: str = ""


Decision: TypeAlias = Pass | Drop | Replace | Close

PASS = Pass()
DROP = Drop()


class Action(enum.Enum):
    """What the router's own filters do with a message that they do not let pass."""

    CLOSE = "close"
    DROP = "drop"
    #: Put asterisks for what is denied.
    MASK = "mask"


def refuse(action: Action, reason: str, code: int = _POLICY) -> Decision:
    """The decision of a filter that closes or drops; ``reason`` holds no input."""
    return DROP if action is Action.DROP else Close(code, reason)


def judge_length(payload: bytes, is_binary: bool, longest: int, action: Action) -> Decision:
    """Refuse text of more than ``longest`` characters, and binary messages of more bytes. Text is valid UTF-8."""
    # A character has one byte at least, so most messages need no counting.
    if len(payload) <= longest or (not is_binary and len(payload.decode()) <= longest):
        return PASS
    return refuse(action, "the message is too long", _TOO_BIG)
