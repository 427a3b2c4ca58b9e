"""Sessions that choose a backend for each message, as the client and the backends see them on the wire."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import ssl
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import aiohttp
import pytest
from twisted.internet.threads import deferToThread
from websockets.sync.client import connect as open_websocket

from tests.integration import sessions
from tests.integration.conftest import encode
from tests.integration.sessions import BINARY, CLOSE, MEGABYTE, PING, PONG, TEXT, ended, is_over
from wsrouter.live.registry import Who
from wsrouter.policy.health import Hand


def configured(*addresses: str, route: str = "", **more: str) -> str:
    backends = "".join(f"\n    {address}" for address in addresses)
    return sessions.configured(backends, f"dispatch = message\n{route}", **more)


@pytest.fixture
def start(router, backend, connect):
    """``start(count, route="", pool="") -> running, client, servers, peers``.

    A session that lives, its backends, and the first one's end of it; further ones are for the test to accept.
    """

    def begin(count: int = 2, words: str = "", headers=(), answer=(), receive: int | None = None, **more):
        servers = [backend() for _ in range(count)]
        running = router(configured(*(f"{server.address} {words}" for server in servers), **more))
        client = connect(running.port(), receive=receive)
        client.request(headers=headers)
        peer = servers[0].accept()
        peer.answer(answer)
        assert client.recv_head().startswith(b"HTTP/1.1 101 ")
        return running, client, servers, [peer]

    return begin


def joined(server, answer=()):
    """The next connection that a backend gets, once the backend has agreed to a session."""
    peer = server.accept()
    peer.answer(answer)
    return peer


def served(entry) -> dict[str, tuple[int, int]]:
    """What each backend has had: messages to it, and from it."""
    return {one.backend: (one.messages_in, one.messages_out) for one in entry.counts().served}


# Where messages go.


def test_messages_take_turns_and_backends_are_opened_as_they_are_needed(start, frame) -> None:
    running, client, (a, b, c), peers = start(3)
    assert not b.was_contacted()
    client.send(frame(TEXT, b"1"))
    assert peers[0].recv_frame()[:2] == (TEXT, b"1")
    assert running.in_use("app") == 1
    client.send(frame(BINARY, b"2") + frame(TEXT, b"3") + frame(TEXT, b"4") + frame(TEXT, b"5"))
    peers += [joined(b), joined(c)]
    assert peers[0].recv_frame()[:2] == (TEXT, b"4")
    assert [peers[1].recv_frame()[:2] for _ in range(2)] == [(BINARY, b"2"), (TEXT, b"5")]
    assert peers[2].recv_frame() == (TEXT, b"3", True, 0, True)
    assert running.in_use("app") == 3
    assert a.count == b.count == c.count == 1


def test_answers_come_in_the_order_in_which_they_arrive_and_each_whole(start, frame) -> None:
    running, client, (_, b), peers = start(2)
    client.send(frame(TEXT, b"x") * 2)
    peers.append(joined(b))
    one, other = peers
    one.send(frame(TEXT, b"be", mask=False, fin=False))
    running.settle()
    other.send(frame(TEXT, b"first", mask=False))
    assert client.recv_frame() == (TEXT, b"first", True, 0, False)
    one.send(frame(0, b"fo", mask=False, fin=False))
    other.send(frame(BINARY, b"second", mask=False))
    assert client.recv_frame()[:2] == (BINARY, b"second")
    one.send(frame(0, b"re", mask=False))
    assert client.recv_frame()[:2] == (TEXT, b"before")


def test_no_more_backends_than_fan_out_says(start, frame) -> None:
    running, client, (_, b, c), peers = start(3, route="fan_out = 2")
    client.send(frame(TEXT, b"x") * 6)
    peers.append(joined(b))
    for peer in peers:
        assert [peer.recv_frame().payload for _ in range(3)] == [b"x"] * 3
    assert not c.was_contacted()
    # One that is lost makes room for another.
    peers[1].reset()
    b.close()
    running.until(lambda: running.in_use("app") == 1)
    client.send(frame(TEXT, b"y") * 2)
    assert joined(c).recv_frame().payload == b"y"


def test_least_sessions_looks_at_what_waits_for_an_answer(start, frame) -> None:
    running, client, (_, b), peers = start(2, pool="balance = least-sessions")
    client.send(frame(TEXT, b"1") + frame(TEXT, b"2"))
    peers.append(joined(b))
    assert [peer.recv_frame().payload for peer in peers] == [b"1", b"2"]
    peers[1].send(frame(TEXT, b"two", mask=False))
    assert client.recv_frame().payload == b"two"
    for number in range(3, 6):
        client.send(frame(TEXT, b"%d" % number))
        assert peers[1].recv_frame().payload == b"%d" % number
        peers[1].send(frame(TEXT, b"done", mask=False))
        assert client.recv_frame().payload == b"done"
    running.settle()
    assert peers[0].nothing_comes()


def test_equal_parts_of_messages_meet_at_one_backend_whoever_sends_them(router, echo_backend, backend) -> None:
    def script(peer) -> None:
        peer.answer()
        while (found := peer.recv_frame()).opcode == TEXT:
            peer.send(encoded(TEXT, found.payload + b" " + str(peer.socket.getsockname()[1]).encode()))

    servers = [backend(script) for _ in range(3)]
    running = router(configured(*(server.address for server in servers), pool="balance = hash json:/room/id"))
    homes: dict[str, set[str]] = {}
    for client_number in range(3):
        with open_websocket(f"ws://127.0.0.1:{running.port()}") as client:
            for room in range(20):
                client.send(json.dumps({"from": client_number, "room": {"id": room}}))
                homes.setdefault(str(room), set()).add(client.recv(timeout=10).rpartition(" ")[2])
            # Without that part all of the message counts.
            for text in ("no JSON", '{"room": 1}'):
                client.send(text)
                homes.setdefault(text, set()).add(client.recv(timeout=10).rpartition(" ")[2])
    assert all(len(found) == 1 for found in homes.values())
    assert len({home for found in homes.values() for home in found}) == 3


def encoded(opcode: int, payload: bytes) -> bytes:
    """A backend's frame of up to 65535 bytes."""
    size = len(payload)
    return bytes([0x80 | opcode]) + (bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big")) + payload


# The opening handshakes.


def test_further_backends_are_asked_what_the_first_was_with_a_key_of_the_routers_own(router, backend, connect) -> None:
    servers = [backend(), backend()]
    running = router(
        configured(
            *(server.address for server in servers),
            route="path = /chat\nset_header = X-Told: {client_ip}\nstrip_prefix = yes",
        )
    )
    client = connect(running.port())
    client.request("/chat/a?room=1", headers=[("Sec-WebSocket-Protocol", "v2, v1"), ("Cookie", "a=b"), ("X-Own", "1")])
    first = servers[0].accept()
    heads = [first.answer([("Sec-WebSocket-Protocol", "v1"), ("Set-Cookie", "c=d")])]
    assert b"Set-Cookie: c=d" in client.recv_head()
    client.send(b"\x81\x80\0\0\0\0" * 2)
    second = servers[1].accept()
    heads.append(second.answer([("Sec-WebSocket-Protocol", "v1"), ("Set-Cookie", "other=one")]))
    assert second.recv_frame()[:2] == (TEXT, b"")
    keys, others = set(), []
    for head in heads:
        lines = head.decode().split("\r\n")
        assert lines[0] == "GET /a?room=1 HTTP/1.1"
        keys |= {line for line in lines if line.startswith("Sec-WebSocket-Key")}
        others.append(sorted(line for line in lines if not line.startswith("Sec-WebSocket-Key")))
    assert len(keys) == 2
    assert f"Sec-WebSocket-Key: {client.key}" in keys
    assert others[0] == others[1]
    assert {"X-Told: 127.0.0.1", "Cookie: a=b", "X-Own: 1", "Sec-WebSocket-Protocol: v2, v1"} <= set(others[0])


def test_a_refusal_of_the_first_backend_reaches_the_client_as_it_was_written(router, backend, connect) -> None:
    def script(peer) -> None:
        peer.recv_head()
        peer.send(b"HTTP/1.1 403 Not You\r\nContent-Length: 5\r\n\r\nsorry")

    running = router(configured(backend(script).address, backend(script).address))
    client = connect(running.port())
    client.request()
    answer = client.recv_all()
    assert answer.startswith(b"HTTP/1.1 403 Not You\r\n")
    assert answer.endswith(b"\r\n\r\nsorry")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([("Sec-WebSocket-Protocol", "v1")], "chose another subprotocol"),
        ([], "chose another subprotocol"),
        (b"HTTP/1.1 403 No\r\n\r\n", "refused the session with status 403"),
        (b"HTTP/1.1 200 OK\r\nUpgrade: websocket\r\n\r\n", "status 200 with an Upgrade field"),
        (b"HTTP/1.1 101 Fine\r\nUpgrade: websocket\r\n\r\n", "the backend's 101 lacks Connection: Upgrade"),
        (b"nonsense\r\n\r\n", "the backend's answer: "),
        (b"", "closed the connection before its answer"),
        (b"HTTP/1.1 1", "closed the connection before its answer"),
    ],
)
def test_the_message_for_a_backend_that_does_not_join_goes_to_another(start, frame, answer, reason) -> None:
    offered = [("Sec-WebSocket-Protocol", "v2, v1")]
    agreed = [("Sec-WebSocket-Protocol", "v2")]
    running, client, (_, b, c), (first,) = start(3, headers=offered, answer=agreed, pool="max_failures = 0")
    client.send(frame(TEXT, b"1") + frame(TEXT, b"2"))
    assert first.recv_frame().payload == b"1"
    peer = b.accept()
    if isinstance(answer, list):
        peer.answer(answer)
    else:
        peer.recv_head()
        peer.send(answer)
        peer.close()
    third = joined(c, agreed)
    assert third.recv_frame().payload == b"2"
    client.send(frame(TEXT, b"3") + frame(TEXT, b"4"))
    assert first.recv_frame().payload == b"3"
    assert third.recv_frame().payload == b"4"
    assert b.count == 1
    client.send(frame(CLOSE))
    for one in (first, third):
        assert one.recv_frame() == (CLOSE, b"", True, 0, True)
    entry, _ = ended(running, client, first, third)
    (lost,) = [one.lost for one in entry.counts().served if one.lost]
    assert lost.startswith(reason)


def test_a_backend_that_keeps_silent_is_passed_over(start, frame) -> None:
    running, client, (_, b), (first,) = start(2, pool="handshake_timeout = 100ms")
    client.send(frame(TEXT, b"1") + frame(TEXT, b"2"))
    silent = b.accept()
    assert [first.recv_frame().payload for _ in range(2)] == [b"1", b"2"]
    silent.recv_all()
    assert running.live == 1


def test_one_that_could_not_join_is_asked_again_when_the_pool_says_that_it_came_back(start, frame) -> None:
    running, client, (_, b), (first,) = start(2, pool="failure_time = 1h\nmax_failures = 0")
    client.send(frame(TEXT, b"1") + frame(TEXT, b"2"))
    b.accept().reset()
    assert [first.recv_frame().payload for _ in range(2)] == [b"1", b"2"]
    client.send(frame(TEXT, b"3") * 5)
    assert [first.recv_frame().payload for _ in range(5)] == [b"3"] * 5
    table, member = running.service.pools["app"].table, running.service.pools["app"].members[1]
    for hand in (Hand.DOWN, Hand.UP):
        running.call(table.by_hand, member, running.reactor.seconds(), hand)
    client.send(frame(TEXT, b"4") * 2)
    assert joined(b).recv_frame().payload == b"4"
    assert b.count == 2


# Losing backends.


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_backend_that_dies_takes_its_unanswered_messages_with_it_and_no_more(start, frame, how) -> None:
    running, client, (a, b), peers = start(2)
    client.send(frame(TEXT, b"1") + frame(TEXT, b"2"))
    peers.append(joined(b))
    assert [peer.recv_frame().payload for peer in peers] == [b"1", b"2"]
    a.socket.close()
    getattr(peers[0], how)()
    peers[1].send(frame(TEXT, b"two", mask=False))
    assert client.recv_frame().payload == b"two"
    running.until(lambda: running.in_use("app") == 1)
    client.send(frame(TEXT, b"3") + frame(TEXT, b"4") + frame(TEXT, b"5"))
    assert {peers[1].recv_frame().payload for _ in range(3)} == {b"3", b"4", b"5"}
    client.send(frame(CLOSE, b"\x03\xe8"))
    assert peers[1].recv_frame().code == 1000
    entry, end = ended(running, client, peers[1])
    assert (end.who, end.code) == (Who.CLIENT, 1000)
    assert served(entry) == {a.address: (1, 0), b.address: (4, 1)}
    assert entry.counts().served[0].lost == "connection refused"


def test_a_backend_that_closes_is_answered_and_opened_anew_for_the_next_message(start, frame) -> None:
    running, client, (a,), (first,) = start(1)
    client.send(frame(TEXT, b"1"))
    assert first.recv_frame().payload == b"1"
    first.send(frame(TEXT, b"one", mask=False) + frame(CLOSE, b"\x03\xe9bye", mask=False))
    assert client.recv_frame().payload == b"one"
    assert first.recv_frame() == (CLOSE, b"\x03\xe9bye", True, 0, True)
    first.finish()
    assert is_over(first)
    running.until(lambda: running.in_use("app") == 0)
    assert running.live == 1
    client.send(frame(TEXT, b"2"))
    assert joined(a).recv_frame().payload == b"2"
    assert running.opened[0].counts().served[0].lost == "closed with 1001: bye"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x81\x81\0\0\0\0x", 1002),
        (b"\x83\x00", 1002),
        (b"\x81\x02\xc3\x28", 1007),
        (b"\x82\x7e\x03\xe9" + b"x" * 1001, 1009),
    ],
)
def test_a_backend_that_breaks_a_rule_is_told_and_left_alone_while_the_session_goes_on(
    start, frame, sent, code
) -> None:
    running, client, (_, b), (first,) = start(2, route="max_message = 1000")
    client.send(frame(TEXT, b"1") + frame(TEXT, b"2"))
    second = joined(b)
    assert second.recv_frame().payload == b"2"
    second.send(sent)
    assert second.recv_frame().code == code
    second.send(frame(CLOSE, code.to_bytes(2, "big"), mask=False))
    assert is_over(second)
    second.close()
    first.send(frame(TEXT, b"one", mask=False))
    assert client.recv_frame().payload == b"one"
    running.until(lambda: running.in_use("app") == 1)


@pytest.mark.parametrize("down", [False, True])
def test_a_session_for_whose_message_there_is_no_backend_ends_with_1013(start, frame, down) -> None:
    running, client, servers, (first,) = start(2)
    for server in servers:
        server.socket.close()
    first.reset()
    running.until(lambda: running.in_use("app") == 0)
    assert running.live == 1
    if down:
        pool = running.service.pools["app"]
        for member in pool.members:
            running.call(pool.table.by_hand, member, running.reactor.seconds(), Hand.DOWN)
    client.send(frame(TEXT, b"1") + frame(TEXT, b"2"))
    told = client.recv_frame()
    assert (told.opcode, told.code) == (CLOSE, 1013)
    client.send(frame(CLOSE, told.payload))
    assert is_over(client)
    _, end = ended(running, client)
    a, b = (server.address for server in servers)
    story = "pool app: every backend is down" if down else f"{a} connection refused, {b} connection refused"
    assert (end.who, end.code, end.reason) == (Who.BACKEND, 1013, f"no backend takes a message: {story}")


def test_one_that_chose_another_subprotocol_is_not_asked_again_even_where_there_is_no_other(start, frame) -> None:
    offered, agreed = [("Sec-WebSocket-Protocol", "v2, v1")], [("Sec-WebSocket-Protocol", "v2")]
    running, client, (a, b), (first,) = start(2, headers=offered, answer=agreed)
    client.send(frame(TEXT, b"1") * 2)
    b.accept().answer([("Sec-WebSocket-Protocol", "v1")])
    assert [first.recv_frame().payload for _ in range(2)] == [b"1"] * 2
    a.socket.close()
    first.reset()
    running.until(lambda: running.in_use("app") == 0)
    client.send(frame(TEXT, b"2"))
    assert client.recv_frame().code == 1013
    _, end = ended(running, client)
    assert end.reason == f"no backend takes a message: {a.address} connection refused"
    assert b.count == 1


def test_one_that_is_down_is_spared_but_serves_while_no_other_is_left(start, frame) -> None:
    running, client, (_, b), (first,) = start(2)
    client.send(frame(TEXT, b"1") + frame(TEXT, b"2"))
    second = joined(b)
    assert second.recv_frame().payload == b"2"
    assert first.recv_frame().payload == b"1"
    pool = running.service.pools["app"]
    running.call(pool.table.by_hand, pool.members[0], running.reactor.seconds(), Hand.DOWN)
    client.send(frame(TEXT, b"3") + frame(TEXT, b"4"))
    assert [second.recv_frame().payload for _ in range(2)] == [b"3", b"4"]
    running.call(pool.table.by_hand, pool.members[1], running.reactor.seconds(), Hand.DRAIN)
    client.send(frame(TEXT, b"5"))
    assert first.recv_frame().payload == b"5"


def test_who_is_full_takes_no_further_session_but_keeps_those_that_it_has(router, backend, connect, frame) -> None:
    servers = [backend(), backend()]
    running = router(configured(servers[0].address, f"{servers[1].address} max_sessions=1"))
    clients = []
    for number in range(2):
        client = connect(running.port())
        client.request()
        clients.append((client, joined(servers[number])))
        client.recv_head()
    (one, at_a), (other, at_b) = clients
    one.send(frame(TEXT, b"1") + frame(TEXT, b"2"))
    assert [at_a.recv_frame().payload for _ in range(2)] == [b"1", b"2"]
    other.send(frame(TEXT, b"3") + frame(TEXT, b"4") + frame(TEXT, b"5"))
    assert joined(servers[0]).recv_frame().payload == b"4"
    assert [at_b.recv_frame().payload for _ in range(2)] == [b"3", b"5"]


def test_what_a_backend_never_saw_goes_to_another_when_it_dies(start, frame) -> None:
    running, client, (a, b), (first,) = start(2, pool="balance = first", route="max_message = 32m")
    client.send(frame(BINARY, b"x" * (24 * MEGABYTE)) + frame(TEXT, b"small") * 3)
    running.until(lambda: queued(running) == 3)
    a.socket.close()
    first.reset()
    second = joined(b)
    assert [second.recv_frame().payload for _ in range(3)] == [b"small"] * 3
    assert served(running.opened[0])[b.address] == (3, 0)


def queued(running) -> int:
    """How many messages wait in the branches of the one session."""
    return running.call(lambda: sum(len(branch._queue) for branch in running.opened[0]._all))


@pytest.mark.parametrize("others", [True, False])
def test_on_down_close_ends_the_branch_and_the_session_only_where_there_is_no_other(start, frame, others) -> None:
    running, client, servers, peers = start(2 if others else 1, pool="on_down = close\ndown_spread = 0s")
    client.send(frame(TEXT, b"1") * len(servers))
    peers += [joined(server) for server in servers[1:]]
    for peer in peers:
        peer.recv_frame()
    pool = running.service.pools["app"]
    running.call(pool.table.by_hand, pool.members[0], running.reactor.seconds(), Hand.DOWN)
    assert peers[0].recv_frame().code == 1012
    # What it still says counts until it closes.
    peers[0].send(frame(TEXT, b"late", mask=False))
    if others:
        assert client.recv_frame().payload == b"late"
    peers[0].send(frame(CLOSE, b"\x03\xf4", mask=False))
    peers[0].finish()
    assert is_over(peers[0])
    if others:
        client.send(frame(TEXT, b"2") * 2)
        assert [peers[1].recv_frame().payload for _ in range(2)] == [b"2"] * 2
        assert running.live == 1
    else:
        assert client.recv_frame().code == 1012
        _, end = ended(running, client)
        assert (end.who, end.code, end.reason) == (Who.ROUTER, 1012, f"backend {servers[0].address} is gone")


# Ends.


@pytest.mark.parametrize(("payload", "code"), [(b"\x03\xe8bye", 1000), (b"", 1005), (b"\x0f\xa1", 4001)])
def test_the_clients_close_goes_to_all_backends_and_is_answered_behind_their_last_words(
    start, frame, payload, code
) -> None:
    running, client, (_, b), peers = start(2)
    client.send(frame(TEXT, b"1") + frame(TEXT, b"2"))
    peers.append(joined(b))
    client.send(frame(CLOSE, payload) + frame(TEXT, b"too late"))
    for peer, number in zip(peers, (b"1", b"2"), strict=True):
        assert peer.recv_frame().payload == number
        assert peer.recv_frame() == (CLOSE, payload, True, 0, True)
    for peer in peers:
        running.settle()
        assert client.nothing_comes()
        peer.send(frame(TEXT, b"last", mask=False) + frame(CLOSE, payload, mask=False))
        assert client.recv_frame().payload == b"last"
        peer.finish()
        assert is_over(peer)
    assert client.recv_frame() == (CLOSE, payload, True, 0, False)
    assert is_over(client)
    _, end = ended(running)
    assert (end.who, end.code) == (Who.CLIENT, code)


def test_messages_before_a_close_reach_even_backends_that_are_just_being_opened(start, frame) -> None:
    running, client, (_, b), (first,) = start(2)
    client.send(frame(TEXT, b"1") + frame(TEXT, b"2") + frame(CLOSE, b"\x03\xe8"))
    assert first.recv_frame().payload == b"1"
    assert first.recv_frame().code == 1000
    first.send(frame(CLOSE, b"\x03\xe8", mask=False))
    second = joined(b)
    assert second.recv_frame().payload == b"2"
    assert second.recv_frame().code == 1000
    second.send(frame(CLOSE, b"\x03\xe8", mask=False))
    assert client.recv_frame().code == 1000
    ended(running, first, second)


def test_a_close_that_a_backend_does_not_answer_is_answered_at_the_close_timeout(start, frame) -> None:
    running, client, (_, b), (first,) = start(2, close_timeout="300ms")
    client.send(frame(TEXT, b"1") + frame(TEXT, b"2") + frame(CLOSE, b"\x03\xe8"))
    opening = b.accept()
    assert client.recv_frame().code == 1000
    assert is_over(client)
    assert first.recv_frame().payload == b"1"
    assert first.recv_frame().code == 1000
    assert is_over(first)
    opening.recv_all()
    ended(running, client, first)


@pytest.mark.parametrize("how", ["finish", "reset"])
def test_a_client_that_vanishes_is_told_to_all_backends(start, frame, how) -> None:
    running, client, (_, b), peers = start(2)
    client.send(frame(TEXT, b"1") * 2)
    peers.append(joined(b))
    assert [peer.recv_frame().payload for peer in peers] == [b"1"] * 2
    getattr(client, how)()
    for peer in peers:
        assert peer.recv_frame().code == 1001
        peer.send(frame(CLOSE, b"\x03\xe9", mask=False))
        peer.finish()
        assert is_over(peer)
    _, end = ended(running, client)
    assert (end.who, end.code) == (Who.CLIENT, 1006)


@pytest.mark.parametrize(
    ("sent", "code"), [(b"\x81\x01x", 1002), (b"\x81\x82\0\0\0\0\xc3\x28", 1007), (b"\x82\xfe\x03\xe9\0\0\0\0", 1009)]
)
def test_a_client_that_breaks_a_rule_ends_the_session(start, frame, sent, code) -> None:
    running, client, (_, b), peers = start(2, route="max_message = 1000")
    client.send(frame(TEXT, b"1") * 2)
    peers.append(joined(b))
    client.send(sent)
    assert client.recv_frame().code == code
    for peer in peers:
        assert peer.recv_frame().payload == b"1"
        assert peer.recv_frame().code == 1001
    _, end = ended(running, client, *peers)
    assert (end.who, end.code) == (Who.CLIENT, code)


def test_a_drain_tells_the_client_and_all_backends(start, frame) -> None:
    running, client, (_, b), peers = start(2)
    client.send(frame(TEXT, b"1") * 2)
    peers.append(joined(b))
    assert [peer.recv_frame().payload for peer in peers] == [b"1"] * 2
    running.call(running.opened[0].end, 1001, "the router is shutting down")
    for end in (client, *peers):
        assert end.recv_frame().code == 1001
    assert ended(running, client, *peers)[1].who is Who.ROUTER


def test_an_idle_session_ends_with_1001_on_all_sides(start, frame) -> None:
    running, client, (_, b), peers = start(2, route="idle_timeout = 300ms")
    client.send(frame(TEXT, b"1") * 2)
    peers.append(joined(b))
    assert [peer.recv_frame().payload for peer in peers] == [b"1"] * 2
    for end in (client, *peers):
        assert end.recv_frame().code == 1001
    assert ended(running, client, *peers)[1].reason == "idle"


def test_the_end_of_the_router_cuts_all_sides_those_being_opened_as_well(start, frame) -> None:
    running, client, (_, b), (first,) = start(2)
    client.send(frame(TEXT, b"1") * 2)
    opening = b.accept()
    running.call(running.opened[0].abort)
    for end in (client, first, opening):
        end.recv_all()
        assert end.was_reset
    assert ended(running)[1].reason == "cut"


# Pings.


def test_pings_of_each_peer_are_answered_by_the_router(start, frame) -> None:
    running, client, _, (first,) = start(1)
    client.send(frame(PING, b"client") + frame(PONG, b"unasked"))
    assert client.recv_frame() == (PONG, b"client", True, 0, False)
    first.send(frame(PING, b"backend", mask=False) + frame(PONG, b"unasked", mask=False))
    assert first.recv_frame() == (PONG, b"backend", True, 0, True)
    running.settle()
    assert client.nothing_comes()
    assert first.nothing_comes()


@pytest.mark.parametrize("sender", ["client", "backend"])
def test_pings_without_end_from_who_never_reads_take_no_memory(start, frame, sender) -> None:
    running, client, _, (first,) = start(1, receive=4096)
    one, mask = (client, True) if sender == "client" else (first, False)
    flood = frame(PING, b"p" * 125, mask=mask) * 4000
    for _ in range(10):
        one.send(flood)
    running.until(lambda: running.call(running.opened[0].activity) >= 10 * len(flood))
    assert pending(running) <= 65536
    last = frame(PING, b"last", mask=mask)
    one.send(last)
    while one.recv_frame().payload != b"last":
        pass


def pending(running) -> int:
    """Bytes that the kernel did not take yet, of all legs."""
    return running.call(
        lambda: sum(
            len(leg.pending or b"") for leg in running.service.relay.members.values() if hasattr(leg, "pending")
        )
    )


# Back-pressure.


def test_a_slow_backend_holds_the_client_only_once_its_own_queue_is_full(start, frame) -> None:
    running, client, (_, b), (slow,) = start(2)
    # Each second message is for the other backend, which reads all of its own.
    client.socket.settimeout(0.3)
    pair = frame(BINARY, b"s" * 60_000) + frame(BINARY, b"f" * 10)
    client.send(pair)
    fast = joined(b)
    sent = 0
    try:
        while sent < 64 * MEGABYTE:
            client.send(pair)
            sent += len(pair)
            if not queued(running):
                assert fast.recv_frame().payload == b"f" * 10
    except TimeoutError:
        pass
    assert sent < 64 * MEGABYTE
    branch = running.call(lambda: next(iter(running.opened[0]._all)))
    assert 65536 <= branch._queued <= 65536 + 60_000 + 1000
    assert pending(running) <= 65536
    assert queued(running) == 2
    # It goes on when the backend does, once the kernel has room again for what waits.
    while branch._queued >= 65536:
        assert slow.recv_frame().payload == b"s" * 60_000


def test_a_client_that_does_not_read_holds_all_backends_and_goes_on_with_each_in_turn(start, frame) -> None:
    running, client, (_, b), peers = start(2, receive=4096)
    client.send(frame(TEXT, b"1") * 2)
    peers.append(joined(b))
    with ThreadPoolExecutor(2) as threads:
        message = [frame(BINARY, bytes([65 + at]) * 100_000, mask=False) for at in range(2)]
        sending = [threads.submit(peer.send, message[at] * 200) for at, peer in enumerate(peers)]
        running.until(lambda: all(branch.side._held for branch in running.opened[0]._all))
        assert pending(running) <= 100_100
        counts = Counter(client.recv_frame().payload[:1] for _ in range(300))
        # Nobody waited until the other had done.
        assert min(counts.values()) > 50
        counts += Counter(client.recv_frame().payload[:1] for _ in range(100))
        for one in sending:
            one.result(10)
    assert counts == {b"A": 200, b"B": 200}


def test_big_messages_flow_whole_both_ways(start, frame) -> None:
    _, client, (_, b), peers = start(2, route="max_message = 4m")
    payloads = [os.urandom(3 * MEGABYTE) for _ in range(6)]

    def echo(peer) -> None:
        for _ in range(3):
            peer.send(frame(BINARY, peer.recv_frame().payload, mask=False))

    with ThreadPoolExecutor(3) as threads:
        sending = threads.submit(client.send, b"".join(frame(BINARY, one) for one in payloads))
        echoing = [threads.submit(echo, peers[0])]
        echoing.append(threads.submit(lambda: echo(joined(b))))
        assert sorted(client.recv_frame().payload for _ in range(6)) == sorted(payloads)
        for one in (sending, *echoing):
            one.result(10)


# With what else a route and its pool have.


def test_backends_over_tls_with_a_proxy_header_each_and_clients_over_tls(
    router, backend, connect, authority, frame
) -> None:
    servers = [backend(), backend()]
    running = router(
        configured(
            *(server.address for server in servers),
            listener="certificates = outer.pem",
            pool="tls = yes\ntls_ca = ca.pem\ntls_name = inner.example\nsend_proxy = v1",
        ),
        {"outer.pem": authority.issue("outer.example"), "ca.pem": authority.pem},
    )
    client = connect(running.port(), tls=authority.client_context(), name="outer.example")
    client.request()
    peers = []
    for server in servers:
        if peers:
            client.send(frame(TEXT, b"1") * 2)
        peer = server.accept()
        header = b""
        while not header.endswith(b"\r\n"):
            header += peer.socket.recv(1)  # and not a byte of what TLS has to read
        assert header.startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ")
        peer.socket = authority.server_context("inner.example").wrap_socket(peer.socket, server_side=True)
        peer.answer()
        peers.append(peer)
    assert client.recv_head().startswith(b"HTTP/1.1 101 ")
    for peer in peers:
        assert peer.recv_frame().payload == b"1"
        peer.send(frame(TEXT, b"2", mask=False))
        assert client.recv_frame().payload == b"2"
        assert isinstance(peer.socket, ssl.SSLSocket)
    client.send(frame(CLOSE, b"\x03\xe8"))
    for peer in peers:
        assert peer.recv_frame().code == 1000
        peer.send(frame(CLOSE, b"\x03\xe8", mask=False))
        peer.close()
    assert client.recv_frame().code == 1000
    ended(running, client)


def test_filters_see_messages_before_they_are_sent_anywhere_and_may_end_the_session(start, frame) -> None:
    running, client, (_, b), peers = start(2, route="filter = max-length 10 action=close from=client")
    client.send(frame(TEXT, b"1") * 2)
    peers.append(joined(b))
    client.send(frame(TEXT, b"x" * 11))
    assert client.recv_frame().code == 1009
    for peer in peers:
        assert peer.recv_frame().payload == b"1"
        assert peer.recv_frame().code == 1001
    ended(running, client, *peers)


def test_a_filter_that_closes_over_a_backends_message_ends_the_session(start, frame) -> None:
    running, client, (_, b), peers = start(2, route="filter = max-length 10 action=close from=backend")
    client.send(frame(TEXT, b"1") * 2)
    peers.append(joined(b))
    assert [peer.recv_frame().payload for peer in peers] == [b"1"] * 2
    peers[1].send(frame(TEXT, b"x" * 11, mask=False))
    assert client.recv_frame().code == 1011
    assert [peer.recv_frame().code for peer in peers] == [1001, 1009]
    _, end = ended(running, client, *peers)
    assert (end.who, end.code) == (Who.BACKEND, 1009)


def test_a_reload_brings_new_backends_to_sessions_that_live(start, frame, tmp_path) -> None:
    running, client, (a, b, c), (first,) = start(3, route="fan_out = 3")
    config = running.service.parts.config
    pool = config.pools[0]
    without = replace(config, pools=(replace(pool, backends=pool.backends[:1]),))
    swap(running, without)
    client.send(frame(TEXT, b"1") * 3)
    assert [first.recv_frame().payload for _ in range(3)] == [b"1"] * 3
    swap(running, replace(config, pools=(replace(pool, backends=pool.backends[1:]),)))
    client.send(frame(TEXT, b"2") * 2)
    assert [joined(server).recv_frame().payload for server in (b, c)] == [b"2"] * 2
    # The one that was removed may still answer.
    first.send(frame(TEXT, b"late", mask=False))
    assert client.recv_frame().payload == b"late"
    assert a.count == 1


def swap(running, config) -> None:
    """Put another configuration in force."""
    parts = running.service.parts
    running.call(lambda: parts._install_pools(parts.draw(config)))
    running.call(setattr, parts, "config", config)


# What frames are held to.


def test_a_client_that_answers_no_ping_ends_the_session_and_a_backend_only_its_branch(start, frame) -> None:
    running, client, (_, b), peers = start(2, route="ping = 200ms\nbackend_ping = 200ms\nping_timeout = 1s")
    client.send(frame(TEXT, b"1") * 2)
    peers.append(joined(b))
    with ThreadPoolExecutor(2) as threads:
        answering = threads.submit(answer_pings, client, True)
        mute = threads.submit(answer_pings, peers[0], False)
        peers[1].recv_all()
        assert peers[1].was_reset
        running.until(lambda: running.in_use("app") == 1)
        counts = running.opened[0].counts()
        assert counts.served[1].lost == "did not answer a ping within 1 s"
        assert counts.rtt is not None
        assert counts.backend_rtt is not None
        running.call(running.opened[0].end, 1001, "drained")
        assert {answering.result(10), mute.result(10)} == {1001}


def answer_pings(end, is_client: bool) -> int | None:
    """Answer pings until a Close comes, and that too; returns its code."""
    while (found := end.recv_frame()).opcode != CLOSE:
        if found.opcode == PING:
            end.send(encode(PONG, found.payload, mask=is_client))
    end.send(encode(CLOSE, found.payload, mask=is_client))
    return found.code


def test_a_client_that_is_dead_is_told_to_all_backends(start, frame) -> None:
    running, client, (_, b), peers = start(2, route="ping = 200ms\nping_timeout = 500ms")
    client.send(frame(TEXT, b"1") * 2)
    peers.append(joined(b))
    for peer in peers:
        assert peer.recv_frame().payload == b"1"
        assert peer.recv_frame().code == 1001
    _, end = ended(running, *peers)
    assert (end.who, end.code, end.reason) == (Who.CLIENT, 1006, "did not answer a ping within 0.5 s")


def test_a_client_over_its_rate_is_closed(start, frame) -> None:
    running, client, _, (first,) = start(1, route="message_rate = 1/h burst=3\non_rate = close")
    client.send(frame(TEXT, b"1") * 4)
    assert client.recv_frame().code == 1008
    assert [first.recv_frame().payload for _ in range(3)] == [b"1"] * 3
    assert first.recv_frame().code == 1001
    ended(running, client, first)


def test_with_idle_counts_data_pings_do_not_keep_it(start, frame) -> None:
    running, client, _, (first,) = start(1, route="idle_timeout = 500ms\nidle_counts = data")
    while True:
        first.send(frame(PING, mask=False))
        client.send(frame(PING))
        found = client.recv_frame()
        if found.opcode == CLOSE:
            assert found.code == 1001
            break
    assert ended(running, client, first)[1].reason == "idle"


# Real clients and backends.


def test_messages_are_dealt_evenly_and_the_session_outlives_a_backend_that_is_killed(router, echo_backend) -> None:
    servers = [echo_backend(compression=None, ping_interval=None) for _ in range(4)]
    running = router(configured(*(server.address for server in servers)))
    half = 5000

    def converse(client, texts) -> None:
        """Send all, a hundred ahead of their answers, which come in any order."""
        waiting: set[str] = set()
        for text in texts:
            client.send(text)
            waiting.add(text)
            if len(waiting) == 100:
                waiting.remove(client.recv(timeout=10))
        while waiting:
            waiting.remove(client.recv(timeout=10))

    with open_websocket(f"ws://127.0.0.1:{running.port()}", compression=None, ping_interval=None) as client:
        converse(client, map(str, range(half)))
        first = served(running.opened[0])
        assert first == {server.address: (half // 4, half // 4) for server in servers}
        servers[2].close()
        running.until(lambda: running.in_use("app") == 3)
        converse(client, map(str, range(half)))
    entry, end = ended(running)
    assert (end.who, end.code) == (Who.CLIENT, 1000)
    counts = served(entry)
    assert counts.pop(servers[2].address) == first[servers[2].address]
    assert sum(sent for sent, _ in counts.values()) == 2 * half - half // 4
    assert all(sent == answered for sent, answered in counts.values())
    sents = [sent for sent, _ in counts.values()]
    assert max(sents) - min(sents) <= 1


def test_the_websockets_client_with_compression_and_backends_with_compression(router, echo_backend) -> None:
    servers = [echo_backend() for _ in range(3)]
    running = router(configured(*(server.address for server in servers), route="compression = both"))
    with open_websocket(f"ws://127.0.0.1:{running.port()}") as client:
        texts = ["hello " * size for size in range(1, 60)]
        for text in texts:
            client.send(text)
        assert sorted(client.recv(timeout=10) for _ in texts) == sorted(texts)
    assert [server.closes.get(timeout=10)[0] for server in servers] == [1000] * 3
    counts = ended(running)[0].counts()
    assert counts.messages_in == counts.messages_out == len(texts)
    assert counts.bytes_in < sum(map(len, texts)) / 2
    assert counts.bytes_out < sum(map(len, texts)) / 2


async def test_aiohttp(router, echo_backend) -> None:
    servers = [echo_backend() for _ in range(2)]
    running = router(configured(*(server.address for server in servers)))

    async def talk() -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"http://127.0.0.1:{running.port()}") as ws:
            for number in range(10):
                await ws.send_str(str(number))
            assert {(await ws.receive()).data for _ in range(10)} == {str(number) for number in range(10)}
            await ws.close(code=4001)
            assert ws.close_code == 4001

    await deferToThread(asyncio.run, talk())
    await running.reached(lambda: running.closed)
    assert running.closed[0][1].code == 4001


# Whatever happens.


@pytest.mark.parametrize("seed", range(20))
def test_whatever_client_and_backends_do_the_session_ends_and_leaves_nothing(start, frame, seed) -> None:
    rng = random.Random(seed)
    running, client, servers, peers = start(3, close_timeout="200ms", pool="handshake_timeout = 200ms")
    running.until(lambda: running.opened)
    sides = [weakref.ref(running.opened[0]._client)]
    try:
        for _ in range(rng.randrange(1, 20)):
            what = rng.randrange(10)
            if what < 4:
                client.send(frame(TEXT, b"hello") * rng.randrange(1, 10))
            elif what == 4:
                server = rng.choice(servers)
                server.socket.settimeout(0.05)
                try:
                    peer = server.accept()
                    if rng.randrange(3):
                        peer.answer()
                        peers.append(peer)
                    else:
                        peer.close()
                except TimeoutError:
                    pass
            elif what == 5:
                rng.choice(peers).send(frame(TEXT, b"answer", mask=False) * rng.randrange(1, 10))
            elif what == 6:
                rng.choice(peers).send(rng.choice([frame(CLOSE, b"\x03\xe9", mask=False), b"\x83\x00", b"\x81\x7e"]))
            elif what == 7:
                getattr(rng.choice(peers), rng.choice(["finish", "close"]))()
            elif what == 8:
                running.settle()
            else:
                running.call(running.opened[0].leave, rng.choice(servers).address)
    except OSError:
        pass
    try:
        rng.choice(
            [
                client.close,
                client.finish,
                lambda: client.send(frame(CLOSE, b"\x03\xe8")),
                lambda: running.call(running.opened[0].end, 1001, "drained"),
                lambda: running.call(running.opened[0].abort),
            ]
        )()
    except OSError:
        pass
    for server in servers:
        server.close()
    sides += [weakref.ref(branch.side) for branch in list(running.opened[0]._all) if branch.side is not None]
    ended(running, client, *peers)
    running.opened.clear()
    running.closed.clear()
    running.settle()
    gc.collect()
    assert not any(side() for side in sides)
