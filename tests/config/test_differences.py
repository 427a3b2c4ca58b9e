from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from wsrouter.config.differences import count, differences, same
from wsrouter.config.reader import parse
from wsrouter.config.values import Config

BASE = """
    [listener main]
    endpoint = tcp:8080
    [tunnel a]
    match = tls
    pool = p
    [tunnel b]
    match = any
    pool = p
    [route r]
    path = ~ ^/v\\d+/
    pool = p
    [route s]
    path = /s
    pool = p
    [pool p]
    backends = 127.0.0.1:1
"""


def config(text: str) -> Config:
    return parse(textwrap.dedent(text), Path("/etc/router.ini"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (BASE, []),
        ("\n\n\n" + BASE, []),
        (BASE.replace("v\\d", "w\\d"), ["1 route changed"]),
        (BASE.replace("[route s]", "[route t]"), ["1 route added", "1 route removed"]),
        (BASE + "\n    [pool q]\n    backends = 127.0.0.1:2\n", ["1 pool added"]),
        (BASE.replace("= 127.0.0.1:1", "= 127.0.0.1:2"), ["1 pool changed"]),
        (BASE.replace("match = tls", "match = http").replace("match = any", "match = tls"), ["2 tunnels changed"]),
        (BASE.replace("tunnel a", "tunnel x").replace("tunnel b", "tunnel a").replace("tunnel x", "tunnel b"),
         ["2 tunnels changed", "tunnels in another order"]),
        (BASE + "\n    [router]\n    drain = 1s\n", ["[router] changed"]),
        (BASE + "\n    [echo e]\n    ports = 1, 2\n    [echo f]\n    ports = 3\n", ["2 echoes added"]),
        (BASE.replace("tcp:8080", "tcp:8081"), []),
    ],
)  # fmt: skip
def test_what_has_changed_is_told(text, told):
    assert differences(config(BASE), config(text)) == told


def test_numbers_have_separators_and_nouns_their_plural():
    assert [count(1, "pool"), count(0, "pool"), count(1200, "pool"), count(2, "echo", "echoes")] == [
        "1 pool", "0 pools", "1,200 pools", "2 echoes"
    ]  # fmt: skip


def test_a_section_that_has_moved_is_the_same():
    one, two = config(BASE), config("\n" + BASE)
    assert one.pools[0] != two.pools[0]
    assert same(one.pools[0], two.pools[0])
    assert not same(one.routes[0], two.routes[1])
