"""Who makes the filters that the configuration names: the router's own, and plugins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from zope.interface import implementer

from wsrouter.config.faults import BadValue, misspelt
from wsrouter.config.scalars import number
from wsrouter.config.values import FilterRule
from wsrouter.layer7.filter_base import OwnFilter, read_words
from wsrouter.layer7.filters import IFilterMaker, IMessageFilter, Message, find_makers
from wsrouter.layer7.json_filter import JsonSchema
from wsrouter.layer7.word_filter import DenyWords
from wsrouter.policy.filtering import Action, Decision, Direction, judge_length


def make_filters(
    rules: Sequence[FilterRule], folder: Path, seconds: Callable[[], float]
) -> tuple[list[tuple[str, IMessageFilter]], list[str]]:
    """The filters of one route, by name, and what is wrong with those that cannot be made, one text each.

    ``folder`` is where relative paths begin, ``seconds`` any clock that never goes back.
    """
    own: dict[str, IFilterMaker] = {maker.name: maker for maker in (DenyWords(seconds), MaxLength(), JsonSchema())}
    plugins: dict[str, IFilterMaker] | None = None
    made: list[tuple[str, IMessageFilter]] = []
    faults: list[str] = []
    for rule in rules:
        maker = own.get(rule.name)
        if maker is None:
            plugins = find_makers() if plugins is None else plugins
            maker = plugins.get(rule.name)
        if maker is None:
            faults.append(str(misspelt("filter", rule.name, [*own, *(plugins or ())])))
            continue
        try:
            one = maker.make(rule.words, folder)  # type: ignore[no-untyped-call]
        except ValueError as error:
            faults.append(f"{rule.name}: {error}")
            continue
        if IMessageFilter.providedBy(one):
            made.append((rule.name, one))
        else:
            faults.append(f"{rule.name}: its plugin made a {type(one).__name__}, which provides no IMessageFilter")
    return made, faults


class LengthFilter(OwnFilter):
    """Refuses messages that are longer than ``longest``: characters of a text, bytes of a binary message."""

    def __init__(self, longest: int, action: Action, direction: Direction | None) -> None:
        super().__init__(action, direction)
        self._longest = longest

    def decide(self, message: Message) -> Decision:
        """See OwnFilter."""
        return judge_length(message.payload, message.is_binary, self._longest, self._action)


@implementer(IFilterMaker)
class MaxLength:
    """``max-length N [action=close|drop] [from=client|backend]``."""

    name = "max-length"

    def make(self, words: Sequence[str], folder: Path) -> LengthFilter:
        """See IFilterMaker."""
        if not words:
            raise BadValue("a number is missing (characters of a text, bytes of a binary message)")
        action, direction = read_words(words[1:], Action.CLOSE, Action.DROP)
        return LengthFilter(number(0, 1 << 40)(words[0]), action, direction)
