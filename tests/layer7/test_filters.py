from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

import twisted.plugins
from wsrouter.config.values import FilterRule
from wsrouter.layer7.filters import (
    DROP,
    PASS,
    Broken,
    Close,
    Direction,
    Filters,
    IMessageFilter,
    Message,
    Refused,
    Replace,
    find_makers,
)
from wsrouter.layer7.own_filters import make_filters
from wsrouter.live.registry import Facts, Kind

FACTS = Facts(Kind.SESSION, "192.0.2.1", "192.0.2.1:5", "main", "chat", "app", "b:1", 0.0)
DOCS = Path(__file__).parents[2] / "docs" / "filters.md"


def message(payload: bytes = b"hello", direction: Direction = Direction.CLIENT, *, is_binary: bool = False) -> Message:
    return Message(direction, FACTS, payload, is_binary)


@implementer(IMessageFilter)
class Scripted:
    """Answers ``answer``, raises it where it is an exception, and notes what it saw."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.seen: list[bytes] = []

    def filter(self, message: Message) -> Any:
        self.seen.append(message.payload)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def chain(*answers: Any, limit: int = 100) -> tuple[Filters, list[Scripted]]:
    filters = [Scripted(answer) for answer in answers]
    return Filters([(f"f{number}", one) for number, one in enumerate(filters)], limit), filters


def judged(*answers: Any, **more: Any) -> Any:
    verdict = chain(*answers)[0].judge(message(**more))
    if isinstance(verdict, Deferred):
        found: list[Any] = []
        verdict.addBoth(found.append)
        return found[0] if found else "waiting"
    return verdict


# The chain.


@pytest.mark.parametrize("later", [False, True], ids=["at once", "through Deferreds"])
@pytest.mark.parametrize(
    ("answers", "verdict"),
    [
        ((), b"hello"),
        ((PASS,), b"hello"),
        ((PASS, Replace(b"bye"), PASS), b"bye"),
        ((Replace(b"a"), Replace(b"b")), b"b"),
        ((Replace(b""),), b""),
        ((PASS, DROP, Close()), DROP),
        ((PASS, Close(4000, "why"), DROP), Refused("f1", Close(4000, "why"))),
    ],
)
def test_filters_judge_in_order_each_what_the_one_before_has_made(answers, verdict, later) -> None:
    assert judged(*((succeed(one) for one in answers) if later else answers)) == verdict


def test_each_filter_sees_what_the_one_before_has_made_and_none_behind_the_last_word() -> None:
    filters, (first, second, third, fourth) = chain(PASS, Replace(b"bye"), DROP, PASS)
    assert filters.judge(message()) is DROP
    assert [one.seen for one in (first, second, third, fourth)] == [[b"hello"], [b"hello"], [b"bye"], []]


def test_a_filter_that_thinks_is_waited_for() -> None:
    thinking: Deferred[Any] = Deferred()
    filters, (_, last) = chain(thinking, PASS)
    verdict = filters.judge(message())
    assert isinstance(verdict, Deferred)
    assert last.seen == []
    found: list[Any] = []
    verdict.addCallback(found.append)
    thinking.callback(Replace(b"thought"))
    assert last.seen == found == [b"thought"]


def test_who_cancels_a_filter_that_thinks_gets_nothing_and_nothing_is_logged() -> None:
    thinking: Deferred[Any] = Deferred()
    verdict = chain(thinking)[0].judge(message())
    assert isinstance(verdict, Deferred)
    found: list[Any] = []
    verdict.addCallback(found.append)
    verdict.cancel()
    assert found == [DROP]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (KeyError("x"), KeyError),
        (None, TypeError),
        (True, TypeError),
        ("pass", TypeError),
        (Replace("text"), TypeError),  # type: ignore[arg-type]
        (Replace(b"x" * 101), ValueError),
        (Replace(b"\xff"), UnicodeDecodeError),
        (Close(1005), ValueError),
        (Close(999), ValueError),
        (Close(1008, b"bytes"), TypeError),  # type: ignore[arg-type]
    ],
)
@pytest.mark.parametrize("later", [False, True], ids=["at once", "through a Deferred"])
def test_a_filter_that_fails_or_answers_nonsense_is_logged_once(logged_failures, answer, error, later) -> None:
    if later:
        answer = fail(answer) if isinstance(answer, Exception) else succeed(answer)
    assert judged(answer, PASS) == Broken("f0")
    assert len(logged_failures.flush(error)) == 1


def test_binary_messages_need_not_be_text() -> None:
    assert judged(Replace(b"\xff"), is_binary=True) == b"\xff"


# Who makes them.


def made(folder: Path, *rules: tuple[str, ...], seconds: Any = lambda: 0.0) -> tuple[list[Any], list[str]]:
    filters, faults = make_filters([FilterRule(name, words) for name, *words in map(list, rules)], folder, seconds)
    return [one for _, one in filters], faults


def decided(one: Any, payload: bytes, direction: Direction = Direction.CLIENT, *, is_binary: bool = False) -> Any:
    return one.filter(message(payload, direction, is_binary=is_binary))


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        (("max-lenght", "5"), "unknown filter 'max-lenght' (did you mean 'max-length'?)"),
        (("xyz",), "unknown filter 'xyz' (known: deny-words, max-length, json-schema)"),
        (("max-length",), "max-length: a number is missing (characters of a text, bytes of a binary message)"),
        (("max-length", "x"), "max-length: 'x' is not a whole number from 0 to 1099511627776"),
        (("max-length", "5", "action=mask"), "max-length: action: unknown value 'mask' (known: close, drop)"),
        (("max-length", "5", "form=client"), "max-length: unknown word 'form' (did you mean 'from'?)"),
        (("max-length", "5", "from=server"), "max-length: from: unknown value 'server' (known: client, backend)"),
        (("deny-words",), "deny-words: a file of words is missing"),
        (("deny-words", "none.txt"), "deny-words: 'none.txt' is no file that exists"),
        (("deny-words", "empty.txt"), "deny-words: 'empty.txt': no words in it"),
        (
            ("deny-words", "words.txt", "action=kill"),
            "deny-words: action: unknown value 'kill' (known: close, drop, mask)",
        ),
        (("json-schema",), "json-schema: a file with a schema is missing"),
        (
            ("json-schema", "words.txt"),
            "json-schema: 'words.txt' is no usable schema (Expecting value: line 1 column 1 (char 0))",
        ),
    ],
)
def test_what_cannot_be_made_is_told_with_the_filter_s_name(tmp_path, rule, fault) -> None:
    (tmp_path / "words.txt").write_text("bad\n")
    (tmp_path / "empty.txt").write_text("")
    filters, (found,) = made(tmp_path, rule)
    assert filters == []
    assert found.replace(f"{tmp_path}/", "") == fault


def test_all_faults_of_a_route_are_told_at_once(tmp_path) -> None:
    filters, faults = made(tmp_path, ("xyz",), ("max-length", "5"), ("deny-words",))
    assert (len(filters), len(faults)) == (1, 2)


def test_max_length_looks_at_the_side_that_it_is_told_to(tmp_path) -> None:
    (one, other), _ = made(tmp_path, ("max-length", "3"), ("max-length", "3", "from=client", "action=drop"))
    assert decided(one, b"abcd") == Close(1009, "the message is too long")
    assert decided(one, "\u00e4\u00f6\u00fc".encode()) is PASS
    assert decided(other, b"abcd") is DROP
    assert decided(other, b"abcd", Direction.BACKEND) is PASS


def test_denied_words_are_looked_for_in_text_only(tmp_path) -> None:
    (tmp_path / "words.txt").write_text("bad\n")
    (one,), _ = made(tmp_path, ("deny-words", "words.txt", "action=mask", "from=backend"))
    assert decided(one, b"so bad", Direction.BACKEND) == Replace(b"so ***")
    assert decided(one, b"so bad") is PASS
    assert decided(one, b"so bad", Direction.BACKEND, is_binary=True) is PASS
    (one,), _ = made(tmp_path, ("deny-words", "words.txt"))
    assert decided(one, b"so bad") == Close(1008, "the message holds a denied word")


def test_a_file_of_words_is_read_again_when_it_has_changed_and_a_fault_keeps_the_old_ones(tmp_path) -> None:
    now = [0.0]
    path = tmp_path / "words.txt"
    path.write_text("bad\n")
    (one,), _ = made(tmp_path, ("deny-words", "words.txt", "action=drop"), seconds=lambda: now[0])
    assert [decided(one, word) for word in (b"bad", b"worse")] == [DROP, PASS]
    path.write_text("worse\n")
    assert [decided(one, word) for word in (b"bad", b"worse")] == [DROP, PASS]  # not looked at yet
    now[0] = 1.0
    assert [decided(one, word) for word in (b"bad", b"worse")] == [PASS, DROP]
    for content in (b"", b"good\n\xff", None):
        now[0] += 1
        path.unlink() if content is None else path.write_bytes(content)
        assert [decided(one, word) for word in (b"bad", b"worse")] == [PASS, DROP]
    now[0] += 1
    path.write_text("bad\n")
    assert [decided(one, word) for word in (b"bad", b"worse")] == [DROP, PASS]


SCHEMA = (
    """{"type": "object", "required": ["to"], "properties": {"to": {"type": "string"}, "text": {"maxLength": 5}}}"""
)


@pytest.mark.parametrize(
    ("payload", "decision"),
    [
        (b'{"to": "you", "text": "hi"}', PASS),
        (b' {"to": "you", "more": [1.5, null]} ', PASS),
        (b'{"to": 5}', Close(1008, "the message does not keep to its schema")),
        (b'{"to": "you", "text": "too long"}', Close(1008, "the message does not keep to its schema")),
        (b"[]", Close(1008, "the message does not keep to its schema")),
        (b"", Close(1008, "the message is not JSON")),
        (b"hello", Close(1008, "the message is not JSON")),
        (b'{"to": "you", "to": 5}', Close(1008, "the message is not JSON")),
        (b'{"to": "you", "n": NaN}', Close(1008, "the message is not JSON")),
        (b'{"to": "you"} {}', Close(1008, "the message is not JSON")),
        (b'{"to": "you", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", Close(1008, "the message is not JSON")),
        (b'{"to": "you", "n": ' + b"9" * 5000 + b"}", Close(1008, "the message is not JSON")),
    ],
)
def test_messages_are_json_that_keeps_to_the_schema(tmp_path, payload, decision) -> None:
    (tmp_path / "schema.json").write_text(SCHEMA)
    (one, dropping), _ = made(
        tmp_path, ("json-schema", "schema.json"), ("json-schema", "schema.json", "action=drop", "from=client")
    )
    assert decided(one, payload) == decision
    assert decided(one, payload, is_binary=True) == decision
    assert decided(dropping, payload) is (PASS if decision is PASS else DROP)
    assert decided(dropping, payload, Direction.BACKEND) is PASS


def test_binary_messages_that_are_no_text_are_no_json(tmp_path) -> None:
    (tmp_path / "schema.json").write_text(SCHEMA)
    (one,), _ = made(tmp_path, ("json-schema", "schema.json"))
    assert decided(one, b"\xff", is_binary=True) == Close(1008, "the message is not JSON")


@pytest.mark.parametrize(
    "schema", ['{"$ref": "http://127.0.0.1:9/s.json"}', '{"type": "sting"}', '{"type": "x", "type": 1}']
)
def test_a_schema_that_cannot_be_used_is_a_fault_and_nothing_is_fetched(tmp_path, schema) -> None:
    (tmp_path / "schema.json").write_text(schema)
    filters, (fault,) = made(tmp_path, ("json-schema", "schema.json"))
    assert filters == []
    assert fault.startswith("json-schema: 'schema.json' is no usable schema (")
    assert "\n" not in fault


# Plugins.


def example() -> tuple[str, str]:
    """The plugin of the documentation: its path and its text."""
    text = DOCS.read_text()
    (path,) = re.findall(r"`(twisted/plugins/\w+\.py)`", text)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return path, code


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """``plugins(path, code)``: a plugin below a folder of its own on Twisted's path."""

    def install(path: str, code: str) -> None:
        file = tmp_path / "site" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
        monkeypatch.setattr(twisted.plugins, "__path__", [*twisted.plugins.__path__, str(file.parent)])

    return install


def test_the_plugin_of_the_documentation_works_as_it_stands_there(tmp_path, plugins) -> None:
    assert "no-links" not in find_makers()
    plugins(*example())
    (one,), faults = made(tmp_path, ("no-links",))
    assert faults == []
    assert decided(one, b"see http://x/") == Close(1008, "no links here")
    assert decided(one, b"see you") is PASS
    assert decided(one, b"see http://x/", Direction.BACKEND) is PASS
    assert decided(one, b"http://x/", is_binary=True) is PASS


def test_a_plugin_may_refuse_its_words_and_must_make_a_filter(tmp_path, plugins) -> None:
    head = (
        "from twisted.plugin import IPlugin\nfrom zope.interface import implementer\n"
        "from wsrouter.layer7.filters import IFilterMaker\n"
        "@implementer(IPlugin, IFilterMaker)\nclass Maker:\n"
    )
    plugins(
        "twisted/plugins/odd_filters.py",
        f"{head}    name = 'odd'\n    def make(self, words, folder):\n        if words:\n"
        "            raise ValueError(f'{words[0]} is one too many')\n        return 'no filter'\nodd = Maker()\n",
    )
    assert made(tmp_path, ("odd", "word"), ("odd",), ("odb",))[1] == [
        "odd: word is one too many",
        "odd: its plugin made a str, which provides no IMessageFilter",
        "unknown filter 'odb' (did you mean 'odd'?)",
    ]
