from __future__ import annotations

import pytest

from wsrouter.policy.filtering import DROP, PASS, Action, Close, judge_length


@pytest.mark.parametrize(
    ("payload", "is_binary", "passes"),
    [
        (b"", False, True),
        (b"abc", False, True),
        (b"abcd", False, False),
        ("äöü".encode(), False, True),
        ("äöü".encode(), True, False),
        ("äöüß".encode(), False, False),
        (b"\xff" * 3, True, True),
    ],
)
def test_text_is_measured_in_characters_and_binary_messages_in_bytes(payload, is_binary, passes) -> None:
    decision = judge_length(payload, is_binary, 3, Action.CLOSE)
    assert decision == (PASS if passes else Close(1009, "the message is too long"))
    assert judge_length(payload, is_binary, 3, Action.DROP) is (PASS if passes else DROP)
