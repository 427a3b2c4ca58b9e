from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrouter.config import scalars
from wsrouter.config.faults import BadValue


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (scalars.duration, "500ms", 0.5),
        (scalars.duration, "5s", 5.0),
        (scalars.duration, "2m", 120.0),
        (scalars.duration, "1h", 3600.0),
        (scalars.duration, "1.5s", 1.5),
        (scalars.duration, "8784h", 8784 * 3600.0),
        (scalars.duration_or_zero, "0s", 0.0),
        (scalars.keepalive, "60s", 60.0),
        (scalars.or_off(scalars.duration), "off", None),
        (scalars.or_off(scalars.duration), "1s", 1.0),
        (scalars.size, "512", 512),
        (scalars.size, "16k", 16384),
        (scalars.size, "1m", 1 << 20),
        (scalars.size, "2G", 2 << 30),
        (scalars.number(1, 5), "5", 5),
        (scalars.yes_no, "yes", True),
        (scalars.yes_no, "no", False),
        (scalars.token, "chat.v2", "chat.v2"),
        (scalars.name, "a_B.1-x", "a_B.1-x"),
        (scalars.protocol, "http/1.1", "http/1.1"),
    ],
)
def test_text_becomes_a_value(parse: Callable[[str], Any], text: str, expected: Any) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (scalars.duration, "5", "'5' is not a duration (expected, for example, 500ms, 5s, 2m or 1h)"),
        (scalars.duration, "-5s", "is not a duration"),
        (scalars.duration, "1d", "is not a duration"),
        (scalars.duration, "٣s", "is not a duration"),
        (scalars.duration, "5 s", "is not a duration"),
        (scalars.duration, "0s", "too short"),
        (scalars.duration, "8785h", "too long"),
        (scalars.duration, "9" * 5000 + "s", "is not a duration"),
        (scalars.keepalive, "500ms", "whole seconds"),
        (scalars.keepalive, "10h", "at most 32767s"),
        (scalars.size, "1kb", "is not a size"),
        (scalars.size, "0", "too small"),
        (scalars.number(1, 5), "6", "'6' is not a whole number from 1 to 5"),
        (scalars.number(1, 5), "9" * 5000, "is not a whole number"),
        (scalars.number(1, 5), "", "is not a whole number"),
        (scalars.yes_no, "true", "unknown value 'true' (known: yes, no)"),
        (scalars.token, "a b", "is not a token"),
        (scalars.name, "a/b", "is not a name"),
        (scalars.protocol, "", "is not an ALPN protocol"),
        (scalars.protocol, "x" * 256, "is not an ALPN protocol"),
        (scalars.protocol, "ü", "is not an ALPN protocol"),
    ],
)
def test_other_text_is_refused_with_what_was_expected(parse: Callable[[str], Any], text: str, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        parse(text)
    assert message in str(caught.value)


@given(st.integers(1, 3_600_000))
def test_milliseconds_round_trip(milliseconds: int) -> None:
    seconds = scalars.duration(f"{milliseconds}ms")
    assert seconds == milliseconds / 1000
    assert round(seconds * 1000) == milliseconds


@given(st.integers(1, 8784), st.sampled_from([("s", 1), ("m", 60), ("h", 3600)]))
def test_whole_durations_round_trip(count: int, unit: tuple[str, int]) -> None:
    assert scalars.duration(f"{count}{unit[0]}") / unit[1] == count


@given(st.integers(1, 10**6), st.sampled_from([("", 0), ("k", 10), ("m", 20), ("g", 30)]))
def test_sizes_round_trip(count: int, unit: tuple[str, int]) -> None:
    assert scalars.size(f"{count}{unit[0]}") >> unit[1] == count


@given(st.text())
def test_any_text_is_a_value_or_a_bad_value(text: str) -> None:
    for parse in (scalars.duration, scalars.keepalive, scalars.size, scalars.number(0, 9), scalars.token, scalars.name):
        try:
            parse(text)
        except BadValue:
            pass
