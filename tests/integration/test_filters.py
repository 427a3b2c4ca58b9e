"""Filters in sessions that live: what the two ends see of them, and how a session bears one that thinks or fails."""

from __future__ import annotations

import os
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as open_websocket
from zope.interface import implementer

from tests.integration import sessions
from tests.integration.sessions import BINARY, CLOSE, PING, PONG, TEXT
from tests.vanishing import vanish
from wsrouter.errors import ConfigError
from wsrouter.layer7 import own_filters
from wsrouter.layer7.filters import DROP, PASS, Close, Direction, IFilterMaker, IMessageFilter, Replace
from wsrouter.live.registry import Who
from wsrouter.policy.heartbeat import Heartbeat


def configured(address: str, filters: str, more: str = "", close_timeout: str = "60s") -> str:
    lines = "".join(f"\n    {line}" for line in filters.splitlines())
    return sessions.configured(address, f"{more}\nfilter ={lines}", close_timeout=close_timeout)


@implementer(IFilterMaker, IMessageFilter)
class Plugin:
    """A filter that answers what the test wants, for messages of clients."""

    name = "plugin"
    answer: Any = PASS

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.facts: Any = None

    def make(self, words, folder):
        return self

    def filter(self, message):
        if message.direction is Direction.BACKEND:
            return PASS
        self.seen.append(message.payload)
        self.facts = message.session
        answer = self.answer
        return answer(message) if callable(answer) else answer


@pytest.fixture
def plugin(monkeypatch):
    """A plugin of that name, found as others are."""
    one = Plugin()
    monkeypatch.setattr(own_filters, "find_makers", lambda: {"plugin": one})
    return one


@pytest.fixture
def start(router, backend, open_session):
    """``start(filters, files=None, more="", ...) -> running, client, peer``: a session whose messages are filtered."""

    def begin(filters: str = "plugin", files=None, more: str = "", close_timeout: str = "60s"):
        server = backend()
        running = router(configured(server.address, filters, more, close_timeout), files)
        return running, *open_session(running, server, "/chat")

    return begin


# What the ends see.


def test_a_denied_word_is_masked_dropped_or_ends_the_session_as_configured(router, echo_backend) -> None:
    server = echo_backend()
    running = router(
        "[listener main]\nendpoint = tcp:0:interface=127.0.0.1\n"
        + "".join(
            f"[route {action}]\npath = /{action}\npool = app\n"
            f"filter = deny-words words.txt action={action} from=client\n"
            for action in ("mask", "drop", "close")
        )
        + f"[pool app]\nbackends = {server.address}\n",
        {"words.txt": "idiot\n"},
    )
    base = f"ws://127.0.0.1:{running.port()}"
    with open_websocket(f"{base}/mask") as client:
        client.send("you IDIOT, you")
        assert client.recv(timeout=10) == "you *****, you"
    with open_websocket(f"{base}/drop") as client:
        client.send("idiot")
        client.send("friend")
        assert client.recv(timeout=10) == "friend"
    with open_websocket(f"{base}/close") as client:
        client.send("idiotic, no")
        assert client.recv(timeout=10) == "idiotic, no"
        client.send("idiot")
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=10)
        assert (client.close_code, client.close_reason) == (1008, "the message holds a denied word")
    assert [server.closes.get(timeout=10)[0] for _ in range(3)] == [1000, 1000, 1001]
    running.until(lambda: len(running.closed) == 3)
    end = running.closed[-1][1]
    assert (end.who, end.code) == (Who.CLIENT, 1008)
    assert end.reason == "filter deny-words: the message holds a denied word"


def test_filters_see_what_is_known_of_the_session_and_may_replace_text_and_bytes(start, frame, plugin) -> None:
    plugin.answer = lambda message: Replace(message.payload[::-1])
    _, client, peer = start()
    client.send(frame(TEXT, b"abc") + frame(BINARY, b"\xff\x00"))
    assert peer.recv_frame()[:2] == (TEXT, b"cba")
    assert peer.recv_frame()[:2] == (BINARY, b"\x00\xff")
    facts = plugin.facts
    assert (facts.client_ip, facts.rule, facts.path, facts.pool) == ("127.0.0.1", "rule", "/chat", "app")
    peer.send(frame(TEXT, b"abc", mask=False))
    assert client.recv_frame()[:2] == (TEXT, b"abc")


def test_a_close_of_a_filter_reaches_both_sides_each_in_its_way(start, frame, plugin) -> None:
    plugin.answer = Close(4001, "not here")
    running, client, peer = start()
    client.send(frame(TEXT, b"x") + frame(TEXT, b"y"))
    assert client.recv_frame()[:2] == (CLOSE, b"\x0f\xa1not here")
    assert peer.recv_frame()[:2] == (CLOSE, b"\x03\xe9")
    assert plugin.seen == [b"x"]
    client.close()
    peer.close()
    running.until(lambda: running.closed)
    end = running.closed[0][1]
    assert (end.who, end.code, end.reason) == (Who.CLIENT, 4001, "filter plugin: not here")


# One that thinks.


def test_while_a_filter_thinks_its_side_waits_in_order_and_the_other_goes_on(start, frame, plugin) -> None:
    thinking: list[Deferred[Any]] = []

    def think(message):
        thinking.append(Deferred())
        return thinking[-1]

    plugin.answer = think
    running, client, peer = start()
    client.send(frame(TEXT, b"one") + frame(PING, b"p") + frame(TEXT, b"two") + frame(CLOSE, b"\x03\xe8"))
    running.until(lambda: thinking)
    peer.send(frame(TEXT, b"meanwhile", mask=False))
    assert client.recv_frame().payload == b"meanwhile"
    running.settle()
    assert peer.nothing_comes()
    assert plugin.seen == [b"one"]
    running.call(thinking[0].callback, PASS)
    assert peer.recv_frame()[:2] == (TEXT, b"one")
    assert peer.recv_frame()[:2] == (PING, b"p")
    running.until(lambda: len(thinking) == 2)
    running.call(thinking[1].callback, DROP)
    assert peer.recv_frame()[:2] == (CLOSE, b"\x03\xe8")


def test_deferreds_that_have_fired_already_hold_nothing_up(start, frame, plugin) -> None:
    def answer(message):
        done: Deferred[Any] = Deferred()
        done.callback(Replace(message.payload.upper()))
        return done

    plugin.answer = answer
    _, client, peer = start()
    client.send(b"".join(frame(TEXT, b"m%d" % number) for number in range(1000)))
    assert [peer.recv_frame().payload for _ in range(1000)] == [b"M%d" % number for number in range(1000)]


def test_what_a_client_sends_while_a_filter_thinks_is_not_read(start, frame, plugin) -> None:
    plugin.answer = Deferred()
    running, client, _ = start()
    client.socket.settimeout(0.3)
    flood = frame(BINARY, os.urandom(1000)) * 100
    sent = 0
    try:
        while sent < 64 << 20:
            sent += client.socket.send(flood)
    except TimeoutError:
        pass
    assert sent < 64 << 20
    assert len(running.opened[0]._client.data) <= 65536


@pytest.mark.parametrize("how", ["the client vanishes", "the backend vanishes", "the router ends it"])
def test_a_session_that_ends_while_a_filter_thinks_cancels_it(start, frame, plugin, how) -> None:
    cancelled: list[object] = []
    plugin.answer = Deferred(cancelled.append)
    running, client, peer = start()
    client.send(frame(TEXT, b"x"))
    running.until(lambda: plugin.seen)
    if how == "the backend vanishes":
        peer.close()
        assert client.recv_frame().code == 1011
        client.close()
    else:
        if how == "the router ends it":
            running.call(running.opened[0].end, 1001, "drained")
        else:
            client.reset()
        assert peer.recv_frame().code == 1001
        peer.close()
        client.close()
    running.until(lambda: running.closed)
    assert len(cancelled) == 1


# Who is gone while one thinks.


class Thinking:
    """An answer of a plugin: Deferreds, kept for the test, which notes in ``cancelled`` those that are given up."""

    def __init__(self) -> None:
        self.deferreds: list[Deferred[Any]] = []
        self.cancelled: list[Deferred[Any]] = []

    def __call__(self, message):
        self.deferreds.append(Deferred(self.cancelled.append))
        return self.deferreds[-1]


@pytest.fixture
def thinking(plugin):
    """How the plugin answers."""
    plugin.answer = Thinking()
    return plugin.answer


def ended(running, *peers):
    """The end of the one session, once it is over; ``peers`` are closed first."""
    for peer in peers:
        peer.close()
    running.until(lambda: running.closed)
    return running.closed[0][1]


@pytest.mark.parametrize("more", ["", "more"])
def test_a_reset_is_noticed_while_a_filter_thinks_also_behind_what_waits(start, frame, thinking, more) -> None:
    running, client, peer = start()
    client.send(frame(TEXT, b"x") + (frame(TEXT, b"more") if more else b""))
    running.until(lambda: thinking.deferreds)
    # What is written to a client in the meantime ends no waiting for its reset.
    peer.send(frame(TEXT, b"meanwhile", mask=False))
    assert client.recv_frame().payload == b"meanwhile"
    client.reset()
    assert peer.recv_frame().code == 1001
    end = ended(running, peer)
    assert (end.who, end.code, end.reason) == (Who.CLIENT, 1006, "connection reset by peer")
    assert len(thinking.cancelled) == 1


@pytest.mark.parametrize("how", ["close", "reset"])
def test_the_end_of_a_client_with_tls_is_noticed_too(
    router, backend, open_session, authority, frame, thinking, how
) -> None:
    server = backend()
    text = configured(server.address, "plugin", close_timeout="200ms")
    text = text.replace("[route", "certificates = outer.pem\n[route", 1)
    running = router(text, {"outer.pem": authority.issue("outer.example")})
    client, peer = open_session(running, server, tls=authority.client_context(), name="outer.example")
    client.send(frame(TEXT, b"x") + (frame(TEXT, b"more") if how == "reset" else b""))
    running.until(lambda: thinking.deferreds)
    getattr(client, how)()
    assert peer.recv_frame().code == 1001
    end = ended(running, peer)
    assert (end.who, end.code) == (Who.CLIENT, 1006)
    assert len(thinking.cancelled) == 1


@pytest.mark.parametrize("how", ["lets it pass", "drops it", "refuses it"])
def test_what_a_client_said_before_its_fin_is_judged_and_then_the_backend_is_told(start, frame, thinking, how) -> None:
    running, client, peer = start()
    client.send(frame(TEXT, b"last words"))
    running.until(lambda: thinking.deferreds)
    client.finish()
    running.until(lambda: running.opened[0]._client.leg.eof)
    peer.send(frame(TEXT, b"it may still read", mask=False))
    assert client.recv_frame().payload == b"it may still read"
    verdict = {"lets it pass": PASS, "drops it": DROP, "refuses it": Close(4001, "no")}[how]
    running.call(thinking.deferreds[0].callback, verdict)
    if how == "lets it pass":
        assert peer.recv_frame().payload == b"last words"
    elif how == "refuses it":
        assert client.recv_frame().code == 4001
    assert peer.recv_frame().code == 1001
    assert client.recv_all() == b""
    end = ended(running, peer)
    expected = (4001, "filter plugin: no")
    if how != "refuses it":
        expected = (1006, "closed the connection without a Close frame")
    assert (end.who, end.code, end.reason) == (Who.CLIENT, *expected)
    assert not thinking.cancelled


def test_behind_a_fin_a_filter_that_does_not_decide_is_given_up_in_the_close_timeout(start, frame, thinking) -> None:
    running, client, peer = start(close_timeout="200ms")
    client.send(frame(TEXT, b"x"))
    running.until(lambda: thinking.deferreds)
    client.close()
    assert peer.recv_frame().code == 1001
    end = ended(running, peer)
    assert (end.who, end.reason) == (Who.CLIENT, "closed the connection without a Close frame")
    assert len(thinking.cancelled) == 1


@pytest.mark.parametrize("then", ["reset", "drain", "the backend closes", "the backend vanishes", "the backend errs"])
def test_whatever_ends_a_session_behind_a_fin_while_a_filter_thinks(start, frame, thinking, then) -> None:
    running, client, peer = start()
    client.send(frame(TEXT, b"x"))
    running.until(lambda: thinking.deferreds)
    client.finish()
    running.until(lambda: running.opened[0]._client.leg.eof)
    if then == "reset":
        client.reset()
        assert peer.recv_frame().code == 1001
    elif then == "drain":
        running.call(running.opened[0].end, 1001, "drained")
        assert client.recv_frame().code == peer.recv_frame().code == 1001
    elif then == "the backend closes":
        peer.send(frame(CLOSE, b"\x03\xe8", mask=False))
        assert client.recv_frame().code == 1000
        assert peer.recv_frame().code == 1001
    elif then == "the backend vanishes":
        peer.close()
        assert client.recv_frame().code == 1011
    else:
        peer.send(frame(3, mask=False))
        assert client.recv_frame().code == 1011
        assert peer.recv_frame().code == 1002
    ended(running, client, peer)
    assert len(thinking.cancelled) == 1


@pytest.mark.parametrize("waits", [False, True])
def test_a_client_that_vanishes_while_a_filter_thinks_is_found_by_a_ping(start, frame, thinking, waits) -> None:
    running, client, peer = start(more="ping = 300ms\nping_timeout = 1s")
    client.send(frame(TEXT, b"x"))
    running.until(lambda: thinking.deferreds)
    ping = client.recv_frame()
    assert ping.opcode == PING
    client.send(frame(PONG, ping.payload))
    running.until(lambda: running.call(running.opened[0].counts).rtt)
    if waits:
        client.send(frame(TEXT, b"half a message")[:9])
        running.until(lambda: running.opened[0]._client.data)
    vanish(client)
    if waits:
        # It is not heard any more, so its silence proves nothing.
        running.settle()
        assert running.live == 1
        running.call(thinking.deferreds[0].callback, PASS)
        assert peer.recv_frame().payload == b"x"
    assert peer.recv_frame().code == 1001
    end = ended(running, peer)
    assert (end.who, end.reason) == (Who.CLIENT, "did not answer a ping within 1 s")


def test_nobody_is_taken_for_dead_whom_a_filter_keeps_from_being_heard(start, frame, thinking, monkeypatch) -> None:
    held = []
    look = Heartbeat.look

    def noted(self, now, heard, is_held, stuck):
        held.append(is_held)
        return look(self, now, heard, is_held, stuck)

    monkeypatch.setattr(Heartbeat, "look", noted)
    running, client, peer = start(more="ping = 100ms\nping_timeout = 300ms")
    client.send(frame(TEXT, b"x") + frame(TEXT, b"y"))
    # Looks come every 25 ms or later: these take far longer than ping and ping_timeout together.
    running.until(lambda: sum(held) > 30)
    assert running.live == 1
    running.call(thinking.deferreds[0].callback, PASS)
    assert peer.recv_frame().payload == b"x"


# One that fails.


class Injected(Exception):
    """Raised on purpose."""


@pytest.mark.parametrize("later", [False, True], ids=["at once", "through a Deferred"])
def test_a_filter_that_fails_ends_that_session_with_1011_and_is_logged_once(
    start, frame, plugin, connect, logged_failures, later
) -> None:
    def answer(message):
        if message.payload != b"poison":
            return PASS
        if not later:
            raise Injected
        failing: Deferred[Any] = Deferred()
        running.reactor.callLater(0, failing.errback, Injected())
        return failing

    plugin.answer = answer
    running, client, peer = start()
    client.send(frame(TEXT, b"fine") + frame(TEXT, b"poison") + frame(TEXT, b"poison"))
    assert peer.recv_frame().payload == b"fine"
    assert client.recv_frame().code == 1011
    assert peer.recv_frame().code == 1011
    client.close()
    peer.close()
    running.until(lambda: running.closed)
    end = running.closed[0][1]
    assert (end.who, end.code, end.reason) == (Who.ROUTER, 1011, "filter plugin failed")
    assert len(logged_failures.flush(Injected)) == 1


# The configuration.


def test_a_filter_that_cannot_be_made_refuses_the_start_with_its_route(router) -> None:
    with pytest.raises(ConfigError) as refused:
        router(configured("127.0.0.1:1", "deny-words none.txt\nmax-lenght 5"))
    assert [fault.partition(": ")[2] for fault in refused.value.faults] == [
        "[route rule] filter: deny-words: 'none.txt' is no file that exists",
        "[route rule] filter: unknown filter 'max-lenght' (did you mean 'max-length'?)",
    ]


def test_a_changed_file_of_words_holds_for_sessions_that_live(start, frame, tmp_path) -> None:
    running, client, peer = start("deny-words words.txt action=mask", {"words.txt": "bad\n"})
    client.send(frame(TEXT, b"bad worse"))
    assert peer.recv_frame().payload == b"*** worse"
    (tmp_path / "words.txt").write_text("worse\n")

    def is_read_again() -> bool:
        client.send(frame(TEXT, b"bad worse"))
        return peer.recv_frame().payload == b"bad *****"

    running.until(is_read_again)


def test_a_reload_gives_new_sessions_new_filters_and_a_fault_in_a_file_refuses_it(
    router, backend, open_session, frame, tmp_path
) -> None:
    server = backend()
    file = tmp_path / "router.ini"
    text = configured(server.address, "deny-words words.txt action=mask")
    running = router(text, {"words.txt": "bad\n", "router.ini": text})
    old = open_session(running, server)

    def reload(content: str) -> None:
        file.write_text(content)
        running.call(running.service.reload)
        running.until(lambda: not running.service.reloader.busy)

    (tmp_path / "words.txt").write_text("")
    reload(text)
    new = open_session(running, server)
    for client, peer in (old, new):
        client.send(frame(TEXT, b"bad"))
        assert peer.recv_frame().payload == b"***"
    (tmp_path / "words.txt").write_text("worse\n")
    reload(configured(server.address, "max-length 5"))
    newest = open_session(running, server)
    newest[0].send(frame(TEXT, b"bad"))
    assert newest[1].recv_frame().payload == b"bad"
    newest[0].send(frame(TEXT, b"bad bad"))
    assert newest[0].recv_frame().code == 1009
