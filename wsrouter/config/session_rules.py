"""Which kind of session a route needs, and the options of message sessions.

A relay session passes frames on without looking into them. Whatever needs a whole message (a filter, compression on one
leg, a backend for each message) needs a message session, which costs several times as much. So it is chosen only where
something asks for it.
"""

from __future__ import annotations

import shlex
from typing import Any

from wsrouter.config.faults import BadValue, Faults, quoted
from wsrouter.config.options import Section
from wsrouter.config.scalars import name
from wsrouter.config.values import Compression, Dispatch, FilterRule, Session

#: The largest message of a message session, where the route does not say: such a session keeps whole messages.
DEFAULT_MAX_MESSAGE = 1 << 20


def filter_rule(text: str) -> FilterRule:
    """``NAME [WORD ...]``; a word with blanks in it stands in quotes."""
    try:
        first, *words = shlex.split(text)
    except ValueError as error:
        raise BadValue(f"{quoted(text)} cannot be split into words ({str(error).lower()})") from None
    return FilterRule(name(first), tuple(words))


def check_session(section: Section, faults: Faults) -> None:
    """Note what the options of a route demand of its sessions, and cannot have."""
    values = section.values
    asked = _needing_messages(values)
    if values.get("session") is Session.RELAY and asked:
        section.fault(faults, "session", f"relay cannot serve '{asked[0]}', which needs message sessions")
    elif _kind(values) is Session.MESSAGE and section.given("max_message") and values.get("max_message", 0) is None:
        section.fault(faults, "max_message", "message sessions keep whole messages: a size is needed")
    if section.given("fan_out") and values.get("dispatch") is Dispatch.SESSION:
        section.fault(faults, "fan_out", "means nothing without 'dispatch = message'")


def settle(values: dict[str, Any]) -> dict[str, Any]:
    """The options of a route that could be read, with what ``session = auto`` comes to."""
    settled = dict(values, session=_kind(values), filters=values.get("filter", ()))
    settled.pop("filter", None)
    if settled["session"] is Session.MESSAGE:
        settled.setdefault("max_message", DEFAULT_MAX_MESSAGE)
    return settled


def _needing_messages(values: dict[str, Any]) -> list[str]:
    """The names of the options that only a message session can serve."""
    asked = ["filter"] if values.get("filter") else []
    if values.get("compression", Compression.OFF) is not Compression.OFF:
        asked.append("compression")
    if values.get("dispatch") is Dispatch.MESSAGE:
        asked.append("dispatch")
    return asked


def _kind(values: dict[str, Any]) -> Session:
    wanted: Session = values.get("session", Session.AUTO)
    if wanted is not Session.AUTO:
        return wanted
    return Session.MESSAGE if _needing_messages(values) else Session.RELAY
