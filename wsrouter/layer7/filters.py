"""Filters: what sees each message of a message session, and may change or refuse it.

This is what a filter is written against. The router's own are in ``own_filters``; others are plugins of Twisted's
kind: a module in a folder ``twisted/plugins`` on Python's path, with an object that provides ``IFilterMaker``.
``docs/filters.md`` has an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.plugin import getPlugins
from twisted.python.failure import Failure
from zope.interface import Attribute, Interface

from wsrouter.live.registry import Facts
from wsrouter.policy.filtering import DROP, PASS, Close, Decision, Direction, Drop, Pass, Replace
from wsrouter.wire.close import valid_code

__all__ = [
    "DROP",
    "PASS",
    "Close",
    "Decision",
    "Direction",
    "Drop",
    "IFilterMaker",
    "IMessageFilter",
    "Message",
    "Pass",
    "Replace",
]

_log = Logger()


class Message(NamedTuple):
    """One message, as a filter sees it."""

    direction: Direction
    #: What is known of the session: the client's address, the route, the backend and so on.
    session: Facts
    #: Uncompressed; of a text message it is valid UTF-8.
    payload: bytes
    is_binary: bool

    @property
    def text(self) -> str:
        """The payload of a text message."""
        return self.payload.decode()


class IMessageFilter(Interface):
    """Decides about messages. One object serves all sessions of a route, in the reactor's thread."""

    def filter(message):  # type: ignore[no-untyped-def]
        """Decide about one message: return PASS, DROP, ``Replace(payload)``, ``Close(code, reason)`` or a Deferred.

        While a Deferred is waited for, nothing more is read from who sent the message, so that order is kept; when the
        session ends before, the Deferred is cancelled. What raises, or is none of these, ends the session with 1011.
        """


class IFilterMaker(Interface):
    """What a plugin offers: makes the filters of one name."""

    name = Attribute("The name by which ``filter`` calls it: letters, digits, '_', '.' and '-'.")

    def make(words, folder):  # type: ignore[no-untyped-def]
        """Make an ``IMessageFilter``, when the configuration is read, for each line that names it.

        ``words`` are the words behind the name, ``folder`` is where relative paths begin. Raise ``ValueError`` with a
        text for the operator when the words, or the files that they name, cannot be used.
        """


class Broken(NamedTuple):
    """A filter did not decide, but failed: it was logged."""

    #: The filter's name.
    name: str


class Refused(NamedTuple):
    """A filter ends the session."""

    name: str
    close: Close


#: What a message comes to: the payload that goes on, or why it does not.
Verdict: TypeAlias = bytes | Drop | Refused | Broken


class Filters:
    """The filters of one route, by name, in the order in which they see a message.

    ``limit`` is the largest payload, in bytes, that may come out of them.
    """

    def __init__(self, filters: Sequence[tuple[str, IMessageFilter]], limit: int) -> None:
        self._filters = tuple(filters)
        self._limit = limit

    def __bool__(self) -> bool:
        return bool(self._filters)

    def judge(self, message: Message) -> Verdict | Deferred[Verdict]:
        """What becomes of a message. It never raises, and a Deferred never fails; who cancels one gets DROP."""
        return self._judge(message, 0)

    def _judge(self, message: Message, begin: int) -> Verdict | Deferred[Verdict]:
        for place in range(begin, len(self._filters)):
            name, one = self._filters[place]
            try:
                decision: object = one.filter(message)  # type: ignore[no-untyped-call]
                if isinstance(decision, Deferred):
                    decision.addCallback(self._decided, message, place).addErrback(_failed, name)
                    return cast("Deferred[Verdict]", decision)
                outcome = self._apply(decision, message, name)
            except Exception:
                return _failed(Failure(), name)  # type: ignore[no-untyped-call]
            if not isinstance(outcome, Message):
                return outcome
            message = outcome
        return message.payload

    def _decided(self, decision: object, message: Message, place: int) -> Verdict | Deferred[Verdict]:
        outcome = self._apply(decision, message, self._filters[place][0])
        return self._judge(outcome, place + 1) if isinstance(outcome, Message) else outcome

    def _apply(self, decision: object, message: Message, name: str) -> Message | Drop | Refused:
        """Raises TypeError or ValueError for what no filter may answer."""
        match decision:
            case Pass():
                return message
            case Drop():
                return decision
            case Replace(payload):
                self._check_payload(payload, message.is_binary)
                return message._replace(payload=payload)
            case Close(code, reason):
                if not valid_code(code):
                    raise ValueError(f"got close code {code}, expected 1000-1003, 1007-1014 or 3000-4999")
                if not isinstance(reason, str):
                    raise TypeError(f"got a close reason of {type(reason)}, expected text")
                return Refused(name, decision)
        raise TypeError(f"got {decision!r}, expected PASS, DROP, Replace, Close or a Deferred")

    def _check_payload(self, payload: object, is_binary: bool) -> None:
        if not isinstance(payload, bytes):
            raise TypeError(f"got a payload of {type(payload)}, expected bytes")
        if len(payload) > self._limit:
            raise ValueError(f"got a payload of {len(payload)} bytes, expected at most {self._limit}")
        if not is_binary:
            payload.decode()


def _failed(failure: Failure, name: str) -> Verdict:
    if isinstance(failure.value, CancelledError):
        return DROP
    _log.failure("The filter {name} failed, and with it a session", failure, name=name)
    return Broken(name)


def find_makers() -> dict[str, IFilterMaker]:
    """The makers of plugins by name; of two with one name the first that Twisted finds."""
    found: dict[str, IFilterMaker] = {}
    for maker in getPlugins(IFilterMaker):
        found.setdefault(maker.name, maker)
    return found
