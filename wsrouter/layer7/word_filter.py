"""``deny-words``: the words of a file, which is read again when it changes (``policy.words`` says what a word is)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from twisted.logger import Logger
from zope.interface import implementer

from wsrouter.config.faults import BadValue
from wsrouter.config.files import readable_file
from wsrouter.config.memory import read_bytes
from wsrouter.errors import words_of
from wsrouter.layer7.filter_base import OwnFilter, read_words
from wsrouter.layer7.filters import IFilterMaker, Message
from wsrouter.policy.filtering import PASS, Action, Decision, Direction
from wsrouter.policy.words import judge_words, parse_words

#: How often the file is looked at, in seconds.
LOOK = 1.0

_log = Logger()


class WordFilter(OwnFilter):
    """Looks for the words of a file, which is read again when it has changed.

    It is looked at when messages come, at most each LOOK seconds; what is wrong with it then leaves the words as they
    were, and is logged once for each change.
    """

    def __init__(self, path: Path, action: Action, direction: Direction | None, seconds: Callable[[], float]) -> None:
        """Raises BadValue for a file that cannot be read or used."""
        super().__init__(action, direction)
        self._path = path
        self._seconds = seconds
        self._looked = seconds()
        self._stamp = _stamp(path)
        try:
            self._words = parse_words(read_bytes(path))
        except OSError as error:
            raise BadValue(f"'{path}' cannot be read ({words_of(error)})") from None
        except ValueError as error:
            raise BadValue(f"'{path}': {error}") from None

    def decide(self, message: Message) -> Decision:
        """See OwnFilter."""
        if message.is_binary:
            return PASS
        now = self._seconds()
        if now - self._looked >= LOOK:
            self._looked = now
            self._look()
        return judge_words(self._words, message.payload, self._action)

    def _look(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._words = parse_words(self._path.read_bytes())
        except (OSError, ValueError) as error:
            why = words_of(error) if isinstance(error, OSError) else str(error)
            _log.error("{path}: {why}; the words that were read before stay in force", path=self._path, why=why)
        else:
            _log.info("{path} was read again", path=self._path)


@implementer(IFilterMaker)
class DenyWords:
    """``deny-words FILE [action=close|drop|mask] [from=client|backend]``."""

    name = "deny-words"

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds

    def make(self, words: Sequence[str], folder: Path) -> WordFilter:
        """See IFilterMaker."""
        if not words:
            raise BadValue("a file of words is missing")
        action, direction = read_words(words[1:], *Action)
        return WordFilter(readable_file(words[0], folder), action, direction, self._seconds)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes when a file does; None while there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev
