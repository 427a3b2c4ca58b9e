from __future__ import annotations

import pytest

from wsrouter.config.faults import BadValue
from wsrouter.config.keywords import keywords, nothing_more
from wsrouter.config.scalars import token, yes_no

PARSERS = {"secure": yes_no, "name": token}


def test_words_become_values_in_any_order() -> None:
    assert keywords([], PARSERS) == {}
    assert keywords(["name=a", "secure=no"], PARSERS) == {"name": "a", "secure": False}
    assert keywords(["secure=yes"], PARSERS) == {"secure": True}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("secur=yes", "unknown word 'secur' (did you mean 'secure'?)"),
        ("zzz=1", "unknown word 'zzz' (known: secure, name)"),
        ("secure", "'secure' lacks its value (expected secure=...)"),
        ("secure=", "'secure=' lacks its value (expected secure=...)"),
        ("secure=maybe", "secure: unknown value 'maybe' (known: yes, no)"),
        ("name=b", "'name' is given twice"),
    ],
)
def test_a_word_that_is_no_known_key_with_a_value_is_refused(word: str, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        keywords(["name=a", word], PARSERS)
    assert str(caught.value) == message


def test_where_nothing_may_follow_the_first_word_is_named() -> None:
    nothing_more([], "off")
    with pytest.raises(BadValue, match="'a' is one word too many behind 'off'"):
        nothing_more(["a", "b"], "off")
