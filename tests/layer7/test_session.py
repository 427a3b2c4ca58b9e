from __future__ import annotations

import gc
import select
import socket
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.turning import Meeting
from wsrouter.backends.discovery import Discovery
from wsrouter.backends.pool import BackendPool
from wsrouter.config.values import Backend, PathKind, PathRule, Pool, Rate, Route
from wsrouter.layer7.session import RelaySession
from wsrouter.layer7.site import Site
from wsrouter.live.idle import IdleSweeper
from wsrouter.live.registry import End, Facts, Kind, Registry, Who
from wsrouter.policy.routing import RouteTable

BACKEND = Backend("127.0.0.1", 1)


class Scene(Meeting):
    """A session whose legs have peers: ``client`` and ``server``."""

    def __init__(self, **route: Any) -> None:
        super().__init__()
        self.registry = Registry()
        self.ends: list[End] = []
        self.registry.observers.append(self)  # type: ignore[arg-type]
        self.pool = BackendPool(self.relay, Pool("app", (BACKEND,)), Discovery(self.clock, object(), [BACKEND]))  # type: ignore[arg-type]
        (self.member,) = self.pool.members
        self.pool.take(self.member)
        self.client_leg, self.client = self.leg()
        self.server_leg, self.server = self.leg()
        self.session: Any = RelaySession(
            Site(self.relay, self.registry, IdleSweeper(self.clock), {}, RouteTable(()), {}, {}),
            Route("r", PathRule(PathKind.PREFIX, "/"), **route),
            self.pool,
            self.member,
            1,
            Facts(Kind.SESSION, "10.0.0.1", "10.0.0.1:5", "main", "r", "app", BACKEND.label, 0.0),
            self.client_leg,
            self.server_leg,
            False,
        )

    def run(self, from_client: bytes = b"", from_server: bytes = b"") -> None:
        self.session.run(from_client, b"101", from_server)
        self.until(lambda: self.client.received.startswith(b"101"))
        self.client.received = self.client.received[3:]

    def opened(self, entry: object) -> None: ...

    def closed(self, entry: object, end: End) -> None:
        self.ends.append(end)

    def over(self) -> None:
        """Let both peers go, and what is left of the session with them."""
        self.client.socket.close()
        self.server.socket.close()
        self.settle()
        for _ in range(4):
            self.clock.advance(3)
            self.settle()
        assert not self.relay.members
        assert not self.registry.entries
        assert self.member.live == 0
        assert len(self.ends) == 1


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.close()


@pytest.fixture
def scene_with() -> Iterator[Callable[..., Scene]]:
    """``scene_with(ping=8.0)``: a scene on a route with these options."""
    made: list[Scene] = []

    def make(**route: Any) -> Scene:
        made.append(Scene(**route))
        return made[-1]

    yield make
    for one in made:
        one.close()


def frame(payload: bytes, *, masked: bool) -> bytes:
    """A binary message in one frame of a 16-bit length; the mask is zero."""
    size = len(payload).to_bytes(2, "big")
    return b"\x82" + (b"\xfe" + size + bytes(4) if masked else b"\x7e" + size) + payload


LONG = b"x" * 1000
CLIENT_CLOSE = b"\x88\x82\0\0\0\0\x03\xe8"
SERVER_CLOSE = b"\x88\x02\x03\xe8"


def close_to_client(code: int) -> bytes:
    return b"\x88\x02" + code.to_bytes(2, "big")


def code_to_server(received: bytes) -> int:
    """The code of the masked Close frame at the end."""
    assert received[-8:-6] == b"\x88\x82"
    key, payload = received[-6:-2], received[-2:]
    return (payload[0] ^ key[0]) << 8 | payload[1] ^ key[1]


def test_early_frames_of_both_sides_come_behind_the_answer_in_order(scene):
    scene.run(frame(LONG, masked=True), frame(LONG, masked=False))
    scene.until(lambda: scene.client.received == frame(LONG, masked=False))
    scene.until(lambda: scene.server.received == frame(LONG, masked=True))
    counts = scene.session.counts()
    assert (counts.messages_in, counts.messages_out) == (1, 1)
    scene.over()


def closed_by(scene: Scene, first: str) -> None:
    """Both peers have sent their Close frame, ``first`` before the other, and each has got the other's."""
    for who in ("client", "server") if first == "client" else ("server", "client"):
        if who == "client":
            scene.client.socket.send(CLIENT_CLOSE)
            scene.until(lambda: scene.server.received == CLIENT_CLOSE)
        else:
            scene.server.socket.send(SERVER_CLOSE)
            scene.until(lambda: scene.client.received == SERVER_CLOSE)


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_close_and_its_answer_pass_and_the_client_is_closed_at_once_but_the_backend_closes_itself(scene, first):
    scene.run()
    closed_by(scene, first)
    scene.until(lambda: scene.client.ended)
    assert scene.client.ended == "fin"
    scene.settle()
    assert not scene.server.ended
    assert scene.ends == []
    scene.server.socket.shutdown(socket.SHUT_WR)
    scene.until(lambda: scene.server.ended)
    assert scene.server.ended == "fin"
    scene.over()
    assert scene.ends == [End(Who.CLIENT if first == "client" else Who.BACKEND, 1000, "")]


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_backend_that_does_not_close_after_both_close_frames_is_closed_when_the_close_timeout_is_over(scene, first):
    scene.run()
    closed_by(scene, first)
    scene.until(lambda: scene.client.ended)
    scene.client.socket.close()
    scene.clock.advance(scene.session._route.close_timeout - 0.1)
    scene.settle()
    assert not scene.server.ended
    assert scene.member.live == 1
    scene.clock.advance(1.0)
    scene.until(lambda: scene.server.ended)
    assert scene.server.ended == "fin"
    scene.over()
    assert scene.ends == [End(Who.CLIENT if first == "client" else Who.BACKEND, 1000, "")]


def test_a_backend_that_has_ended_its_side_before_the_answer_to_its_close_is_closed_with_it(scene):
    scene.run()
    scene.server.socket.send(SERVER_CLOSE)
    scene.server.socket.shutdown(socket.SHUT_WR)
    scene.until(lambda: scene.client.received == SERVER_CLOSE)
    scene.settle()
    assert not scene.server.ended
    scene.client.socket.send(CLIENT_CLOSE)
    scene.until(lambda: scene.client.ended and scene.server.ended)
    assert scene.server.received == CLIENT_CLOSE
    scene.over()
    assert scene.ends == [End(Who.BACKEND, 1000, "")]


@pytest.mark.parametrize("behind", [0, 1, 3, 14, 500, 1003])
def test_a_drain_within_a_frame_lets_it_pass_whole_and_nothing_behind_it(scene, behind):
    scene.run()
    message = frame(LONG, masked=False)
    scene.server.socket.send(message[:500])
    scene.until(lambda: len(scene.client.received) == 500)
    scene.session.end(1001, "drain")
    scene.server.socket.send(message[500:] + message[:behind])
    scene.settle()
    scene.server.socket.send(message[behind:])
    scene.until(lambda: len(scene.client.received) >= len(message) + 4)
    scene.settle()
    assert scene.client.received == message + close_to_client(1001)
    assert code_to_server(scene.server.received) == 1001
    scene.client.socket.send(CLIENT_CLOSE)
    scene.server.socket.send(SERVER_CLOSE)
    scene.until(lambda: scene.client.ended and scene.server.ended)
    scene.over()
    assert scene.ends == [End(Who.ROUTER, 1001, "drain")]


def test_a_drain_waits_for_a_frame_that_goes_on_and_then_for_the_answer(scene):
    scene.run()
    message = frame(LONG, masked=False)
    scene.server.socket.send(message[:500])
    scene.until(lambda: len(scene.client.received) == 500)
    scene.session.end(1001, "drain")
    for at in range(500, 900, 100):
        scene.clock.advance(4)
        scene.server.socket.send(message[at : at + 100])
        scene.until(lambda at=at: len(scene.client.received) == at + 100)
    scene.server.socket.send(message[900:])
    scene.until(lambda: len(scene.client.received) >= len(message) + 4)
    scene.clock.advance(4)
    scene.settle()
    assert scene.client.received == message + close_to_client(1001)
    assert scene.ends == []
    scene.client.socket.send(CLIENT_CLOSE)
    scene.server.socket.send(SERVER_CLOSE)
    scene.until(lambda: scene.client.ended and scene.server.ended)
    scene.over()
    assert scene.ends == [End(Who.ROUTER, 1001, "drain")]


def test_a_drain_does_not_wait_for_a_frame_that_stands_still(scene):
    scene.run()
    scene.server.socket.send(frame(LONG, masked=False)[:500])
    scene.until(lambda: len(scene.client.received) == 500)
    scene.session.end(1001, "drain")
    scene.clock.advance(5.1)
    scene.until(lambda: scene.client.ended)
    assert len(scene.client.received) == 500
    scene.over()
    assert scene.ends == [End(Who.ROUTER, 1001, "drain")]


def test_a_close_that_had_to_wait_for_a_frame_is_not_waited_for_longer_than_another_one(scene):
    scene.run()
    message = frame(LONG, masked=False)
    scene.server.socket.send(message[:500])
    scene.until(lambda: len(scene.client.received) == 500)
    scene.session.end(1001, "drain")
    scene.server.socket.send(message[500:])
    scene.until(lambda: scene.client.received == message + close_to_client(1001))
    # Nobody answers. The first look finds that the frame has ended meanwhile.
    for _ in range(3):
        scene.clock.advance(5.1)
        scene.settle()
    assert scene.client.ended
    assert scene.server.ended
    scene.over()
    assert scene.ends == [End(Who.ROUTER, 1001, "drain")]


def test_a_frame_whose_rest_never_comes_is_ended_without_a_close(scene):
    scene.run()
    scene.server.socket.send(frame(LONG, masked=False)[:500])
    scene.until(lambda: len(scene.client.received) == 500)
    scene.server.socket.close()
    scene.until(lambda: scene.client.ended)
    assert len(scene.client.received) == 500
    scene.over()
    assert scene.ends[0].code == 1006
    assert "in the middle of a frame" in scene.ends[0].reason


@pytest.mark.parametrize(("who", "told"), [("client", 1001), ("server", 1011)])
def test_who_vanishes_leaves_the_other_with_a_close(scene, who, told):
    scene.run()
    getattr(scene, who).socket.close()
    if who == "client":
        scene.until(lambda: scene.server.received)
        assert code_to_server(scene.server.received) == told
    else:
        scene.until(lambda: scene.client.received)
        assert scene.client.received == close_to_client(told)
    scene.over()
    assert scene.ends[0].code == 1006


def test_an_offender_gets_1002_and_the_innocent_backend_1001(scene):
    scene.run()
    scene.client.socket.send(frame(LONG, masked=False))
    scene.until(lambda: scene.client.received and scene.server.received)
    assert scene.client.received == close_to_client(1002)
    assert code_to_server(scene.server.received) == 1001
    scene.over()
    assert (scene.ends[0].who, scene.ends[0].code) == (Who.CLIENT, 1002)


def test_an_offending_backend_gets_1002_and_the_innocent_client_1011(scene):
    scene.run()
    scene.server.socket.send(frame(LONG, masked=True))
    scene.until(lambda: scene.client.received and scene.server.received)
    assert scene.client.received == close_to_client(1011)
    assert code_to_server(scene.server.received) == 1002
    scene.over()
    assert (scene.ends[0].who, scene.ends[0].code) == (Who.BACKEND, 1002)


def test_an_offending_client_that_has_the_backends_close_gets_no_second_one(scene):
    scene.run()
    scene.client.socket.send(frame(LONG, masked=True)[:500])
    scene.until(lambda: len(scene.server.received) == 500)
    scene.server.socket.send(SERVER_CLOSE)
    scene.until(lambda: scene.client.received)
    # As who gives up a message does: its Close is read as the rest of the frame, and what is behind that is none.
    scene.client.socket.send(frame(LONG, masked=True)[500:] + frame(LONG, masked=False))
    scene.until(lambda: scene.client.ended)
    assert scene.client.received == SERVER_CLOSE
    scene.over()
    assert scene.ends == [End(Who.BACKEND, 1000, "")]


def test_an_offending_backend_that_has_the_clients_close_gets_no_second_one(scene):
    scene.run()
    scene.server.socket.send(frame(LONG, masked=False)[:500])
    scene.until(lambda: len(scene.client.received) == 500)
    scene.client.socket.send(CLIENT_CLOSE)
    scene.until(lambda: scene.server.received)
    scene.server.socket.send(frame(LONG, masked=False)[500:] + frame(LONG, masked=True))
    scene.until(lambda: scene.server.ended)
    assert scene.server.received == CLIENT_CLOSE
    scene.over()
    assert scene.ends == [End(Who.CLIENT, 1000, "")]


def test_a_close_that_nobody_answers_ends_with_its_time(scene):
    scene.run()
    scene.session.end(1001, "drain")
    scene.until(lambda: scene.client.received and scene.server.received)
    for _ in range(4):
        scene.clock.advance(3)
        scene.settle()
    assert not scene.registry.entries
    scene.over()


POLICIES = {"max_message": 5000, "message_rate": Rate(1.0, 5), "ping": 2.0, "backend_ping": 3.0}


@pytest.mark.parametrize("options", [{}, POLICIES], ids=["plain", "policies"])
@pytest.mark.parametrize("how", ["close", "vanish", "reset", "violate", "end", "abort"])
def test_an_ended_session_is_freed_without_the_collector(scene_with, how, options):
    scene = scene_with(**options)
    scene.run()
    gc.collect()
    gc.disable()
    try:
        if how == "close":
            scene.client.socket.send(CLIENT_CLOSE)
            scene.until(lambda: scene.server.received)
            scene.server.socket.send(SERVER_CLOSE)
        elif how == "vanish":
            scene.client.socket.close()
        elif how == "reset":
            scene.server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            scene.server.socket.close()
        elif how == "violate":
            scene.client.socket.send(frame(LONG, masked=False))
        elif how == "end":
            scene.session.end(1001, "drain")
        else:
            scene.session.abort()
        scene.over()
        dead = weakref.ref(scene.client_leg.socket), weakref.ref(scene.server_leg.socket)
        del scene.client_leg, scene.server_leg, scene.session
        assert [one() for one in dead] == [None, None]
    finally:
        gc.enable()


def test_a_client_that_does_not_take_its_answer_wakes_nobody_and_gets_all_in_order(scene):
    scene.client.greedy = False
    flood = b"h" * (8 << 20)
    scene.client_leg.write(flood)
    scene.server_leg.resumeProducing()
    assert scene.client_leg.pending
    scene.session.run(b"", b"101", b"")
    scene.server.socket.send(frame(LONG, masked=False))
    scene.turn()
    assert not any(_awake(scene) for _ in range(20))
    scene.client.greedy = True
    expected = len(flood) + 3 + len(frame(LONG, masked=False))
    scene.until(lambda: len(scene.client.received) == expected)
    assert scene.client.received.endswith(b"h101" + frame(LONG, masked=False))
    scene.over()


def test_a_backend_that_has_not_taken_the_head_gets_all_in_order(scene):
    scene.server.greedy = False
    flood = b"h" * (8 << 20)
    scene.server_leg.write(flood)
    scene.session.run(b"", b"101", b"")
    scene.client.socket.send(frame(LONG, masked=True))
    for _ in range(20):
        _awake(scene)
    scene.server.greedy = True
    expected = len(flood) + len(frame(LONG, masked=True))
    scene.until(lambda: len(scene.server.received) >= expected)
    assert scene.server.received == flood + frame(LONG, masked=True)
    scene.over()


def _awake(scene: Scene) -> bool:
    awake = bool(select.select([scene.relay.fileno()], [], [], 0)[0])
    scene.turn()
    return awake


def test_a_backends_own_close_is_heard_though_its_reset_comes_first(scene):
    scene.run()
    scene.server_leg.pauseProducing()
    scene.client.socket.send(frame(LONG, masked=True))
    scene.server.greedy = False
    scene.settle()
    scene.server.socket.send(b"\x88\x02\x03\xf3")
    # With unread data this is a reset.
    scene.server.socket.close()
    scene.server_leg.resumeProducing()
    scene.client.socket.send(frame(LONG, masked=True))
    scene.until(lambda: scene.client.received)
    assert scene.client.received == b"\x88\x02\x03\xf3"
    scene.over()


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_that_a_send_meets_first_is_reported_as_one(scene, who):
    scene.run()
    gone, other = (scene.client, scene.server) if who == "client" else (scene.server, scene.client)
    # Both are there before the relay looks, in this order: the send takes the error, and the read finds a mere end.
    other.socket.send(frame(LONG, masked=other is scene.client))
    gone.reset()
    scene.until(lambda: other.received)
    scene.over()
    end = scene.ends[0]
    assert (end.code, end.reason) == (1006, "connection reset by peer")
    assert end.who is (Who.CLIENT if who == "client" else Who.BACKEND)


# Pings of the router's own.


def answer_to(ping: bytes) -> bytes:
    """A client's pong to the router's ping."""
    assert ping[:2] == b"\x89\x0c"
    return b"\x8a\x8c\0\0\0\0" + ping[2:]


def test_a_silent_client_is_pinged_after_the_interval_and_its_answers_tell_the_round_trip(scene_with):
    scene = scene_with(ping=8.0, ping_timeout=5.0)
    scene.run()
    for _ in range(3):
        scene.pass_time(7.9)
        assert scene.client.received == b""
        scene.pass_time(0.2)
        ping, scene.client.received = scene.client.received, b""
        scene.clock.advance(0.125)
        scene.client.socket.send(answer_to(ping))
        scene.settle()
        assert scene.session.counts().rtt == pytest.approx(0.125, abs=0.15)
    assert scene.server.received == b""
    assert scene.session.counts().backend_rtt is None
    scene.over()


def test_a_client_that_does_not_answer_is_cut_within_interval_and_timeout(scene_with):
    scene = scene_with(ping=8.0, ping_timeout=5.0)
    scene.run()
    scene.client.socket.send(frame(LONG, masked=True))
    scene.until(lambda: scene.server.received)
    scene.server.received = b""
    scene.pass_time(12.0)
    assert scene.server.received == b""
    scene.pass_time(1.1)
    assert code_to_server(scene.server.received) == 1001
    assert scene.client.ended == "reset"
    scene.over()
    assert scene.ends == [End(Who.CLIENT, 1006, "did not answer a ping within 5 s")]


def test_who_sends_something_is_not_pinged(scene_with):
    scene = scene_with(ping=8.0, backend_ping=8.0)
    scene.run()
    for _ in range(10):
        scene.pass_time(5.0, 0.5)
        scene.client.socket.send(frame(LONG, masked=True))
        scene.server.socket.send(frame(LONG, masked=False))
        scene.settle()
    assert scene.server.received == frame(LONG, masked=True) * 10
    assert scene.client.received == frame(LONG, masked=False) * 10
    scene.over()


def test_no_ping_follows_a_close(scene_with):
    scene = scene_with(ping=1.0, backend_ping=1.0, close_timeout=60.0)
    scene.run()
    scene.client.socket.send(CLIENT_CLOSE)
    scene.until(lambda: scene.server.received)
    scene.pass_time(20.0, 0.5)
    assert scene.server.received == CLIENT_CLOSE
    assert scene.client.received == b""
    scene.server.socket.send(SERVER_CLOSE)
    scene.until(lambda: scene.client.ended)
    assert scene.client.received == SERVER_CLOSE
    scene.over()


def test_a_dead_backend_within_a_frame_ends_the_client_without_a_close(scene_with):
    scene = scene_with(backend_ping=8.0, ping_timeout=5.0)
    scene.run()
    scene.server.socket.send(frame(LONG, masked=False)[:500])
    scene.until(lambda: scene.client.received)
    scene.pass_time(14.0)
    assert scene.client.received == frame(LONG, masked=False)[:500]
    assert scene.client.ended == "fin"
    assert scene.server.ended == "reset"
    scene.over()
    assert scene.ends == [End(Who.BACKEND, 1006, "did not answer a ping within 5 s, in the middle of a frame")]


def test_a_pong_that_lies_unread_because_the_router_was_held_up_is_an_answer(scene_with):
    scene = scene_with(ping=8.0, ping_timeout=5.0)
    scene.run()
    scene.pass_time(8.1)
    ping = scene.client.received
    scene.client.socket.send(answer_to(ping))
    # The clock goes on, but the relay does not get its turn before the deadline does.
    scene.clock.advance(6.0)
    scene.settle()
    assert scene.server.received == b""
    assert scene.session.ending() is None
    scene.over()
