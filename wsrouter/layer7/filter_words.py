"""The words that the router's own filters have in common."""

from __future__ import annotations

from collections.abc import Callable

from wsrouter.config.scalars import choice
from wsrouter.policy.filtering import Action, Direction

#: Reads ``from=client`` and ``from=backend``: whose messages a filter looks at.
directions = choice({direction.value: direction for direction in Direction})


def actions(*known: Action) -> Callable[[str], Action]:
    """The parser of ``action=``, for the actions that a filter has."""
    return choice({action.value: action for action in known})
