"""What the router's own filters have in common: whose messages they look at, and what they do with one."""

from __future__ import annotations

from collections.abc import Sequence

from zope.interface import implementer

from wsrouter.config.keywords import keywords
from wsrouter.config.scalars import choice
from wsrouter.layer7.filters import IMessageFilter, Message
from wsrouter.policy.filtering import PASS, Action, Decision, Direction

_directions = choice({direction.value: direction for direction in Direction})


def read_words(words: Sequence[str], *known: Action) -> tuple[Action, Direction | None]:
    """Read ``action=`` (``close`` when absent; ``known`` are those of the filter) and ``from=client|backend``."""
    actions = choice({action.value: action for action in known})
    found = keywords(list(words), {"action": actions, "from": _directions})
    return found.get("action", Action.CLOSE), found.get("from")


@implementer(IMessageFilter)
class OwnFilter:
    """The base of them. ``direction`` is whose messages it looks at, None for both sides'."""

    def __init__(self, action: Action, direction: Direction | None) -> None:
        self._action = action
        self._direction = direction

    def filter(self, message: Message) -> Decision:
        """See IMessageFilter."""
        if self._direction is not None and message.direction is not self._direction:
            return PASS
        return self.decide(message)

    def decide(self, message: Message) -> Decision:
        """Decide about a message that is looked at."""
        raise NotImplementedError
