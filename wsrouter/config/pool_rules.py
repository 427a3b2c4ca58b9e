"""The values of a pool with a small language of their own: balance, sticky, check."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from wsrouter.config.faults import BadValue, misspelt, quoted
from wsrouter.config.hosts import authority, port
from wsrouter.config.keywords import keywords, nothing_more
from wsrouter.config.scalars import choice, duration, token, yes_no
from wsrouter.config.values import Balance, BalanceKey, Check, CheckKind, KeySource, SameSite, Sticky

_NAMED = {
    KeySource.HEADER: "header:NAME",
    KeySource.COOKIE: "cookie:NAME",
    KeySource.QUERY: "query:NAME",
    KeySource.JSON: "json:/POINTER",
}
_KEYS = ", ".join(_NAMED.get(source, source.value) for source in KeySource)
#: A parameter's name as it stands in a query.
_PARAMETER = re.compile(r"[!-~]+")
#: A pointer to a part of a JSON document (RFC 6901 3); the empty one, to all of it, is left out.
_POINTER = re.compile(r"(?:/(?:[^/~]|~[01])*)+")
#: The request target that a check asks for (RFC 9112 3.2.1).
_TARGET = re.compile(r"/[!-~]*")
_STATUSES = re.compile(r"([0-9]{3})(?:-([0-9]{3}))?")
#: The words of a check that not every kind takes.
_CHECK_WORDS = {"host": (CheckKind.HTTP, CheckKind.WEBSOCKET), "subprotocol": (CheckKind.WEBSOCKET,)}


@dataclass(frozen=True, slots=True)
class BalanceRule:
    """The parts of a ``balance`` option; ``key`` is there for ``hash`` only."""

    balance: Balance
    key: BalanceKey | None = None


def balance(text: str) -> BalanceRule:
    """``round-robin``, ``least-sessions``, ``random-two``, ``first``, or ``hash`` with what is hashed."""
    word, *rest = text.split()
    known = {member.value: member for member in Balance}
    if word not in known:
        raise misspelt("value", word, known)
    if known[word] is not Balance.HASH:
        nothing_more(rest, word)
        return BalanceRule(known[word])
    if not rest:
        raise BadValue(f"'hash' lacks what to hash (known: {_KEYS})")
    nothing_more(rest[1:], f"hash {rest[0]}")
    return BalanceRule(Balance.HASH, _balance_key(rest[0]))


def _balance_key(text: str) -> BalanceKey:
    word, colon, name = text.partition(":")
    known = {source.value: source for source in KeySource}
    if word not in known:
        raise misspelt("key", word, known)
    source = known[word]
    if source not in _NAMED:
        if colon:
            raise BadValue(f"{quoted(word)} takes no name, and {quoted(text)} has one")
        return BalanceKey(source)
    if not name:
        raise BadValue(f"{quoted(text)} lacks a name (expected {_NAMED[source]})")
    if source is KeySource.JSON:
        if not _POINTER.fullmatch(name):
            raise BadValue(f"{quoted(name)} is not a JSON pointer (expected, for example, /room/id)")
        return BalanceKey(source, name)
    if source is not KeySource.QUERY:
        # Names of fields are compared without regard to case, those of cookies are not (RFC 9110 5.1, RFC 6265 4.2.2).
        return BalanceKey(source, token(name).lower() if source is KeySource.HEADER else token(name))
    if not _PARAMETER.fullmatch(name) or {"&", "=", "#"} & set(name):
        raise BadValue(f"{quoted(name)} is not the name of a query's parameter (expected it as it stands in a URL)")
    return BalanceKey(source, name)


def sticky(text: str) -> Sticky | None:
    """``off`` (None), or ``cookie NAME``, then any of ``samesite=``, ``secure=``, ``max_age=`` and ``path=``.

    What browsers would drop is refused: ``SameSite=None`` without Secure (RFC 6265bis 5.7), and the names that promise
    more than the cookie holds (RFC 6265bis 4.1.3).
    """
    word, *rest = text.split()
    if word == "off":
        nothing_more(rest, word)
        return None
    if word != "cookie":
        raise misspelt("value", word, ("off", "cookie"))
    if not rest:
        raise BadValue("the name of the cookie is missing (expected cookie NAME)")
    same_sites = {member.value.lower(): member for member in SameSite}
    parsers = {"samesite": choice(same_sites), "secure": yes_no, "max_age": _max_age, "path": _cookie_path}
    words = keywords(rest[1:], parsers)
    if "samesite" in words:
        words["same_site"] = words.pop("samesite")
    found = Sticky(token(rest[0]), **words)
    if found.secure is False and found.same_site is SameSite.NONE:
        raise BadValue("'samesite=none' with 'secure=no': browsers drop such a cookie (RFC 6265bis 5.7)")
    prefix = found.cookie.lower()
    if found.secure is False and prefix.startswith(("__secure-", "__host-")):
        raise BadValue(f"{quoted(found.cookie)} with 'secure=no': browsers drop such a cookie (RFC 6265bis 4.1.3)")
    if found.path != "/" and prefix.startswith("__host-"):
        raise BadValue(f"{quoted(found.cookie)} with a path other than '/': browsers drop it (RFC 6265bis 4.1.3.2)")
    return found


def _max_age(text: str) -> int:
    seconds = duration(text)
    if seconds != int(seconds):
        raise BadValue(f"{quoted(text)} is not an age (expected whole seconds)")
    return int(seconds)


def _cookie_path(text: str) -> str:
    if not _TARGET.fullmatch(text) or ";" in text:
        raise BadValue(f"{quoted(text)} is not a cookie's path (expected /..., without a semicolon)")
    return text


def check(text: str) -> Check | None:
    """``off`` (None), ``tcp``, ``http PATH`` or ``websocket PATH``, then any of ``host=``, ``subprotocol=``, ``port=``.

    What the ``check_`` options say is left at its defaults.
    """
    word, *rest = text.split()
    known = {"off": None, **{member.value: member for member in CheckKind}}
    if word not in known:
        raise misspelt("value", word, known)
    kind = known[word]
    if kind is None:
        nothing_more(rest, word)
        return None
    found: dict[str, Any] = {}
    if kind is not CheckKind.TCP:
        found["path"] = _check_path(word, rest[:1])
        rest = rest[1:]
    words = keywords(rest, {"host": authority, "subprotocol": token, "port": port})
    for key, kinds in _CHECK_WORDS.items():
        if key in words and kind not in kinds:
            fitting = " and ".join(f"'{one.value}'" for one in kinds)
            raise BadValue(f"'{key}' goes with {fitting} only, not with '{word}'")
    return Check(kind, **found, **words)


def _check_path(kind: str, words: list[str]) -> str:
    # Any other word with an equals sign belongs behind the path.
    if not words or (not words[0].startswith("/") and "=" in words[0]):
        raise BadValue(f"the path is missing (expected, for example, {kind} /health)")
    if not _TARGET.fullmatch(words[0]) or "#" in words[0]:
        raise BadValue(f"{quoted(words[0])} is not a path (expected /..., other than ASCII percent-encoded)")
    return words[0]


def statuses(text: str) -> tuple[int, int]:
    """``200`` or ``200-399``, as the first and the last status; 1xx are never final (RFC 9110 15.2)."""
    found = _STATUSES.fullmatch(text)
    if not found:
        raise BadValue(f"{quoted(text)} is neither a status nor a range of them (expected, for example, 200-399)")
    first, last = int(found[1]), int(found[2] or found[1])
    if not 200 <= first <= last <= 599:
        raise BadValue(f"{quoted(text)} does not lie, rising, within 200-599")
    return first, last
