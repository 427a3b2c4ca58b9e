from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrouter.policy.json_pointer import JsonPointer

#: The document of RFC 6901 5, and what its pointers stand for.
SAMPLE: dict[str, Any] = {
    "foo": ["bar", "baz"],
    "": 0,
    "a/b": 1,
    "c%d": 2,
    "e^f": 3,
    "g|h": 4,
    "i\\j": 5,
    'k"l': 6,
    " ": 7,
    "m~n": 8,
}

DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=25,
)


@pytest.mark.parametrize(
    ("pointer", "part"),
    [
        ("/foo", ["bar", "baz"]),
        ("/foo/0", "bar"),
        ("/", 0),
        ("/a~1b", 1),
        ("/c%d", 2),
        ("/e^f", 3),
        ("/g|h", 4),
        ("/i\\j", 5),
        ('/k"l', 6),
        ("/ ", 7),
        ("/m~0n", 8),
    ],
)
def test_the_pointers_of_the_rfc_find_what_it_says(pointer: str, part: object) -> None:
    assert JsonPointer(pointer).find(SAMPLE) == part


@pytest.mark.parametrize(
    "pointer",
    ["/fo", "/foo/2", "/foo/-", "/foo/-1", "/foo/01", "/foo/+1", "/foo/1_0", "/foo/٠", "/foo/", "/foo/0/0", "/a/b"],
)
def test_a_pointer_to_nothing_finds_nothing(pointer: str) -> None:
    with pytest.raises(LookupError):
        JsonPointer(pointer).find(SAMPLE)


def test_a_tilde_is_unescaped_last() -> None:
    assert JsonPointer("/~01").find({"~1": True}) is True


def parts(document: Any, pointer: str = "") -> Any:
    """Every part of a document, with its pointer."""
    if pointer:
        yield pointer, document
    if isinstance(document, list):
        for at, inner in enumerate(document):
            yield from parts(inner, f"{pointer}/{at}")
    elif isinstance(document, dict):
        for name, inner in document.items():
            escaped = name.replace("~", "~0").replace("/", "~1")
            yield from parts(inner, f"{pointer}/{escaped}")


@given(DOCUMENTS)
def test_every_part_of_a_document_is_found(document: Any) -> None:
    for pointer, part in parts(document):
        assert JsonPointer(pointer).find(document) is part


@given(DOCUMENTS, st.text().map("/{}".format))
def test_any_pointer_finds_a_part_or_nothing_and_there_is_always_a_key(document: Any, pointer: str) -> None:
    known = dict(parts(document))
    try:
        assert known[pointer] is JsonPointer(pointer).find(document)
    except LookupError:
        assert pointer not in known
    assert JsonPointer(pointer).key(json.dumps(document).encode())


@given(DOCUMENTS)
def test_how_a_message_is_written_does_not_change_its_key(document: Any) -> None:
    key = JsonPointer("/a").key
    one = json.dumps({"x": 1, "a": document}, indent=2, ensure_ascii=False).encode(errors="surrogatepass")
    other = json.dumps({"a": document, "y": [2]}).encode()
    assert key(one) == key(other) == json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def test_different_values_have_different_keys() -> None:
    texts = ["1", '"1"', "1.0", "true", "null", '""', '"null"', "[]", "{}", "[1]", '["1"]', '{"b":1}']
    keys = {JsonPointer("/a").key(b'{"a":%b}' % text.encode()) for text in texts}
    assert len(keys) == len(texts)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"hello",
        b'{"b":1}',
        b'["a"]',
        b'{"a":1',
        b'{"a":NaN}',
        b'{"a":"\xff"}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' + b"9" * 10_000 + b"}",
    ],
)
def test_of_a_message_without_that_part_all_is_hashed(message: bytes) -> None:
    assert JsonPointer("/a").key(message) == message


def test_of_members_with_one_name_the_last_counts() -> None:
    assert JsonPointer("/a").key(b'{"a":1,"a":2}') == b"2"
