"""Denied words in a text: found whole, whatever their case and form, and masked.

A word is a run of letters and digits with the marks on them. Everything else parts words, the apostrophe and the
underscore too. A denied entry of several words ("foo bar", "don't") is found wherever these words follow each
other. In scripts that part no words (Chinese, Japanese, Thai and their like) every character with its marks counts as
a word, so an entry is found anywhere within a run of them.

Words are compared as people read them: compatible forms (full width, ligatures) and upper and lower case are the same
(Unicode's compatibility caseless match, chapter 3.13, D146), and invisible characters within a word count for nothing.
A letter with another mark on it is another letter.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable

from wsrouter.policy.filtering import PASS, Action, Decision, Replace, refuse

#: Scripts without blanks between words: Thai, Lao, Myanmar, Khmer, Hiragana, and Han.
_UNPARTED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x309F),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFD),
)


#: Where there are marks and invisible characters: the first two planes, and the tags.
_CODES = (*range(0x20000), *range(0xE0000, 0xE1000))

_ASCII_WORDS = re.compile("[0-9a-z]+")


@functools.cache
def _words() -> re.Pattern[str]:
    """Finds words. Made when it is needed first: it looks at many characters."""
    unparted = "".join(f"{chr(low)}-{chr(high)}" for low, high in _UNPARTED)
    behind = f"[{_class_of('Mn', 'Mc', 'Me', 'Cf')}]"
    # Python knows no class for marks; what is neither \W nor _ is a letter or a digit.
    letter = f"[^\\W_{unparted}]"
    return re.compile(f"[{unparted}]{behind}*|{letter}+(?:{behind}+{letter}*)*")


@functools.cache
def _invisible() -> re.Pattern[str]:
    return re.compile(f"[{_class_of('Cf')}]+")


def _class_of(*categories: str) -> str:
    """The characters of these categories, as they stand between the brackets of a pattern."""
    ranges: list[list[int]] = []
    for code in _CODES:
        if unicodedata.category(chr(code)) in categories:
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"{re.escape(chr(low))}-{re.escape(chr(high))}" for low, high in ranges)


def _folded(words: list[str]) -> list[str]:
    """Words in the form in which they are compared."""
    # All at once, for that is fast: no form of a character holds a line feed, and none reaches beyond one.
    text = "\n".join(words)
    if text.isascii():
        return text.lower().split("\n")
    text = unicodedata.normalize("NFD", _invisible().sub("", text)).casefold()
    text = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", text).split("\n")


class WordList:
    """Denied entries, ready to be looked for."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Iterable[tuple[str, ...]]) -> None:
        #: By their first word.
        self._entries: dict[str, list[tuple[str, ...]]] = {}
        for entry in entries:
            known = self._entries.setdefault(entry[0], [])
            if entry not in known:
                known.append(entry)
        for known in self._entries.values():
            known.sort(key=len, reverse=True)  # the longest is masked whole

    def find(self, text: str) -> list[tuple[int, int]]:
        """Where entries stand in ``text``: start and end of each, in order, none within another."""
        # Nearly all messages hold nothing denied: look at that first, without places.
        words = _ASCII_WORDS.findall(text.lower()) if text.isascii() else _folded(_words().findall(text))
        if self._entries.keys().isdisjoint(words):
            return []
        found = list(_words().finditer(text))
        places = []
        at = 0
        while at < len(words):
            length = self._length_at(words, at)
            if length:
                places.append((found[at].start(), found[at + length - 1].end()))
            at += length or 1
        return places

    def _length_at(self, words: list[str], at: int) -> int:
        """How many words the longest entry that begins with the word ``at`` has; 0 if none does."""
        for entry in self._entries.get(words[at], ()):
            if tuple(words[at : at + len(entry)]) == entry:
                return len(entry)
        return 0


def parse_words(data: bytes) -> WordList:
    """The content of a file of denied words: UTF-8, an entry on each line; ``#`` begins a comment at its start.

    Raises ValueError, with the line, for what is not UTF-8 or holds no word, and for a file without entries: one that
    is cut off while it is written must not let everything pass.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"line {data.count(10, 0, error.start) + 1}: not UTF-8") from None
    entries = []
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.strip()
        if not content or content.startswith("#"):
            continue
        words = _words().findall(content)
        if not words:
            raise ValueError(f"line {number}: no word in it")
        entries.append(tuple(_folded(words)))
    if not entries:
        raise ValueError("no words in it")
    return WordList(entries)


def judge_words(words: WordList, payload: bytes, action: Action) -> Decision:
    """What becomes of a text message (valid UTF-8) that may hold denied words."""
    text = payload.decode()
    places = words.find(text)
    if not places:
        return PASS
    if action is not Action.MASK:
        return refuse(action, "the message holds a denied word")
    masked = []
    end = 0
    for start, stop in places:
        masked += [text[end:start], "*" * (stop - start)]
        end = stop
    return Replace("".join([*masked, text[end:]]).encode())
