from __future__ import annotations

import itertools
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrouter.policy import words
from wsrouter.policy.filtering import DROP, PASS, Action, Close, Replace
from wsrouter.policy.words import judge_words, parse_words

WORDS = parse_words("\ufeff# denied\nbad\nStraße\n\n  naïve  \nfoo bar\nfoo\ndon't\n馬鹿\nบ้า\nпривет\r\n".encode())


def masked(text: str) -> str:
    decision = judge_words(WORDS, text.encode(), Action.MASK)
    return text if decision is PASS else decision.payload.decode()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("all is good", "all is good"),
        ("bad", "***"),
        ("a bad, BAD Bad!", "a ***, *** ***!"),
        ("badly embadden forbad", "badly embadden forbad"),
        ("bad1 2bad", "bad1 2bad"),
        ("bad_word _bad_ (bad) bad's", "***_word _***_ (***) ***'s"),
        ("STRASSE straße Strasse", "******* ****** *******"),
        ("nai\u0308ve na\u00efve NAI\u0308VE naive", "****** ***** ****** naive"),
        # Another mark makes another letter.
        ("ba\u0301d b\u00e1d", "ba\u0301d b\u00e1d"),
        ("bad\u0301", "bad\u0301"),
        # The same letters in another form: full width, mathematical, a ligature.
        ("\uff42\uff41\uff44 \U0001d41b\U0001d41a\U0001d41d", "*** ***"),
        # Characters that nobody sees.
        ("b\u200bad b\u00adad bad\u200d", "**** **** ****"),
        ("foo bar", "*******"),
        ("foo, bar", "********"),
        ("foo baz bar", "*** baz bar"),
        ("I don't, I don\u2019t, don", "I *****, I *****, don"),
        ("這是馬鹿嗎", "這是**嗎"),
        ("เขาบ้าแล้ว", "เขา***แล้ว"),
        ("ПРИВЕТ, мир", "******, мир"),
        ("\U0001f600bad\U0001f600", "\U0001f600***\U0001f600"),
    ],
)
def test_denied_words_are_found_whole_in_any_case_and_form(text, expected) -> None:
    assert masked(text) == expected


def test_what_becomes_of_the_message_is_the_action() -> None:
    assert judge_words(WORDS, b"bad", Action.CLOSE) == Close(1008, "the message holds a denied word")
    assert judge_words(WORDS, b"bad", Action.DROP) is DROP
    assert judge_words(WORDS, b"bad", Action.MASK) == Replace(b"***")
    assert judge_words(WORDS, b"good", Action.CLOSE) is PASS


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no words in it"),
        (b"# only a comment\n\n", "no words in it"),
        (b"good\n\xff\n", "line 2: not UTF-8"),
        (b"good\n***\n", "line 2: no word in it"),
    ],
)
def test_a_file_that_is_no_list_of_words_is_refused_with_the_line(content, why) -> None:
    with pytest.raises(ValueError, match=f"^{why}$"):
        parse_words(content)


def test_every_mark_and_invisible_character_is_known() -> None:
    found = {code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in ("Mn", "Mc", "Me", "Cf")}
    assert found <= set(words._CODES)


@given(st.text(), st.text(), st.sampled_from(["bad", "BAD", "Stra\u00dfe", "foo bar"]))
def test_a_word_between_blanks_is_found_whatever_is_around_it(before, after, word) -> None:
    text = f"{before} {word} {after}"
    places = WORDS.find(text)
    start = len(before) + 1
    assert any(low <= start and start + len(word) <= high for low, high in places)


@given(st.text())
def test_places_are_in_order_and_masking_leaves_nothing_denied(text) -> None:
    places = WORDS.find(text)
    assert all(low < high for low, high in places)
    assert all(high <= low for (_, high), (low, _) in itertools.pairwise(places))
    assert not WORDS.find(masked(text))
    assert len(masked(text)) == len(text)


@given(st.text(alphabet="bad \u0301\u200b\uff42Straße"))
def test_the_form_of_a_text_does_not_matter(text) -> None:
    found = len(WORDS.find(unicodedata.normalize("NFC", text)))
    assert len(WORDS.find(unicodedata.normalize("NFD", text))) == found
