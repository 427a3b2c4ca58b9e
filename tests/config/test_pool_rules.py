from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrouter.config import pool_rules
from wsrouter.config.faults import BadValue
from wsrouter.config.pool_rules import BalanceRule
from wsrouter.config.values import Balance, BalanceKey, Check, CheckKind, KeySource, SameSite, Sticky
from wsrouter.policy.json_pointer import JsonPointer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("round-robin", BalanceRule(Balance.ROUND_ROBIN)),
        ("least-sessions", BalanceRule(Balance.LEAST_SESSIONS)),
        ("random-two", BalanceRule(Balance.RANDOM_TWO)),
        ("first", BalanceRule(Balance.FIRST)),
        ("hash client-ip", BalanceRule(Balance.HASH, BalanceKey(KeySource.CLIENT_IP))),
        ("hash  path", BalanceRule(Balance.HASH, BalanceKey(KeySource.PATH))),
        ("hash sni", BalanceRule(Balance.HASH, BalanceKey(KeySource.SNI))),
        ("hash header:X-Tenant", BalanceRule(Balance.HASH, BalanceKey(KeySource.HEADER, "x-tenant"))),
        ("hash cookie:Session", BalanceRule(Balance.HASH, BalanceKey(KeySource.COOKIE, "Session"))),
        ("hash query:room%20[]", BalanceRule(Balance.HASH, BalanceKey(KeySource.QUERY, "room%20[]"))),
        ("hash json:/room/id", BalanceRule(Balance.HASH, BalanceKey(KeySource.JSON, "/room/id"))),
        ("hash json:/a~1b/~0/0//ü", BalanceRule(Balance.HASH, BalanceKey(KeySource.JSON, "/a~1b/~0/0//ü"))),
        ("hash json:/", BalanceRule(Balance.HASH, BalanceKey(KeySource.JSON, "/"))),
    ],
)
def test_balance_is_a_way_to_choose_and_for_hash_its_key(text: str, expected: BalanceRule) -> None:
    assert pool_rules.balance(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("robin", "unknown value 'robin' (did you mean 'round-robin'?)"),
        ("zzz", "unknown value 'zzz' (known: round-robin, least-sessions, random-two, first, hash)"),
        ("first x", "'x' is one word too many behind 'first'"),
        (
            "hash",
            "'hash' lacks what to hash"
            " (known: client-ip, path, header:NAME, cookie:NAME, query:NAME, sni, json:/POINTER)",
        ),
        ("hash sni path", "'path' is one word too many behind 'hash sni'"),
        ("hash heeder:x", "unknown key 'heeder' (did you mean 'header'?)"),
        ("hash zzz", "unknown key 'zzz' (known: client-ip, path, header, cookie, query, sni, json)"),
        ("hash path:/x", "'path' takes no name, and 'path:/x' has one"),
        ("hash header", "'header' lacks a name (expected header:NAME)"),
        ("hash query:", "'query:' lacks a name (expected query:NAME)"),
        ("hash header:a,b", "'a,b' is not a token"),
        ("hash cookie:a;b", "'a;b' is not a token"),
        ("hash query:a=b", "'a=b' is not the name of a query's parameter"),
        ("hash json", "'json' lacks a name (expected json:/POINTER)"),
        ("hash json:", "'json:' lacks a name (expected json:/POINTER)"),
        ("hash json:room", "'room' is not a JSON pointer (expected, for example, /room/id)"),
        ("hash json:/a~2", "'/a~2' is not a JSON pointer"),
        ("hash json:/a~", "'/a~' is not a JSON pointer"),
        ("hash query:ü", "'ü' is not the name of a query's parameter"),
    ],
)
def test_what_is_no_balance_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        pool_rules.balance(text)
    assert message in str(caught.value)


@given(st.text(alphabet="ab/~01", max_size=8))
def test_what_is_taken_for_a_json_pointer_is_one(text: str) -> None:
    try:
        rule = pool_rules.balance(f"hash json:{text}")
    except BadValue:
        return
    assert rule.key is not None
    # Written anew from its steps it is the same.
    steps = JsonPointer(rule.key.name).steps
    assert "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("off", None),
        ("cookie wsr", Sticky("wsr")),
        (
            "cookie wsr path=/ws max_age=1h samesite=strict secure=yes",
            Sticky("wsr", same_site=SameSite.STRICT, secure=True, max_age=3600, path="/ws"),
        ),
        ("cookie wsr samesite=lax secure=no", Sticky("wsr", same_site=SameSite.LAX, secure=False)),
        ("cookie wsr samesite=none", Sticky("wsr", same_site=SameSite.NONE)),
        ("cookie __Host-wsr secure=yes", Sticky("__Host-wsr", secure=True)),
        ("cookie __Secure-wsr path=/a", Sticky("__Secure-wsr", path="/a")),
    ],
)
def test_sticky_is_off_or_a_cookie_with_its_attributes(text: str, expected: Sticky | None) -> None:
    assert pool_rules.sticky(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cokie wsr", "unknown value 'cokie' (did you mean 'cookie'?)"),
        ("yes", "unknown value 'yes' (known: off, cookie)"),
        ("off wsr", "'wsr' is one word too many behind 'off'"),
        ("cookie", "the name of the cookie is missing (expected cookie NAME)"),
        ("cookie samesite=lax", "'samesite=lax' is not a token"),
        ("cookie wsr samsite=lax", "unknown word 'samsite' (did you mean 'samesite'?)"),
        ("cookie wsr samesite=Lax", "samesite: unknown value 'Lax' (known: strict, lax, none)"),
        ("cookie wsr secure", "'secure' lacks its value (expected secure=...)"),
        ("cookie wsr max_age=1500ms", "max_age: '1500ms' is not an age (expected whole seconds)"),
        ("cookie wsr max_age=0s", "max_age: '0s' is too short"),
        ("cookie wsr path=ws", "path: 'ws' is not a cookie's path (expected /..., without a semicolon)"),
        ("cookie wsr path=/a;b", "is not a cookie's path"),
        ("cookie wsr samesite=none secure=no", "'samesite=none' with 'secure=no': browsers drop such a cookie"),
        ("cookie __secure-wsr secure=no", "'__secure-wsr' with 'secure=no': browsers drop such a cookie"),
        ("cookie __Host-wsr path=/a", "'__Host-wsr' with a path other than '/': browsers drop it"),
    ],
)
def test_what_no_browser_would_send_back_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        pool_rules.sticky(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("off", None),
        ("tcp", Check(CheckKind.TCP)),
        ("tcp port=9000", Check(CheckKind.TCP, port=9000)),
        ("http /health?deep=1", Check(CheckKind.HTTP, "/health?deep=1")),
        ("http /h port=1 host=App:81", Check(CheckKind.HTTP, "/h", host="app:81", port=1)),
        (
            "websocket /ws subprotocol=chat.v2 host=[::1]",
            Check(CheckKind.WEBSOCKET, "/ws", host="[::1]", subprotocol="chat.v2"),
        ),
    ],
)
def test_a_check_is_off_or_a_kind_with_its_path_and_words(text: str, expected: Check | None) -> None:
    assert pool_rules.check(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("htpp /", "unknown value 'htpp' (did you mean 'http'?)"),
        ("yes", "unknown value 'yes' (known: off, tcp, http, websocket)"),
        ("off /x", "'/x' is one word too many behind 'off'"),
        ("http", "the path is missing (expected, for example, http /health)"),
        ("websocket host=a", "the path is missing (expected, for example, websocket /health)"),
        ("http health", "'health' is not a path (expected /..., other than ASCII percent-encoded)"),
        ("http /a#b", "'/a#b' is not a path"),
        ("http /ü", "'/ü' is not a path"),
        ("http /a /b", "unknown word '/b' (known: host, subprotocol, port)"),
        ("tcp /a", "unknown word '/a'"),
        ("tcp host=a", "'host' goes with 'http' and 'websocket' only, not with 'tcp'"),
        ("http / subprotocol=a", "'subprotocol' goes with 'websocket' only, not with 'http'"),
        ("http / host=a/b", "host: 'a/b' is not a host name"),
        ("tcp port=0", "port: '0' is not a port"),
    ],
)
def test_what_is_no_check_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        pool_rules.check(text)
    assert message in str(caught.value)


def test_statuses_are_one_or_a_range() -> None:
    assert pool_rules.statuses("404") == (404, 404)
    assert pool_rules.statuses("200-399") == (200, 399)
    assert pool_rules.statuses("599-599") == (599, 599)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2xx", "'2xx' is neither a status nor a range of them (expected, for example, 200-399)"),
        ("20", "neither a status nor a range"),
        ("200-", "neither a status nor a range"),
        ("101", "'101' does not lie, rising, within 200-599"),
        ("399-200", "does not lie, rising"),
        ("200-600", "does not lie, rising"),
    ],
)
def test_what_is_no_final_status_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        pool_rules.statuses(text)
    assert message in str(caught.value)


@given(st.text(min_size=1).filter(lambda text: bool(text.strip())))
def test_any_text_is_a_value_or_a_bad_value(text: str) -> None:
    for parse in (pool_rules.balance, pool_rules.sticky, pool_rules.check, pool_rules.statuses):
        for written in (
            text,
            f"hash {text}",
            f"hash query:{text}",
            f"hash json:{text}",
            f"cookie {text}",
            f"cookie a path={text}",
            f"http {text}",
        ):
            try:
                parse(written)
            except BadValue:
                pass
