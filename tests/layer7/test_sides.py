"""What the sides take for granted of Autobahn: an update that changes it fails here, not in a session."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from autobahn.twisted.websocket import (
    WebSocketClientFactory,
    WebSocketClientProtocol,
    WebSocketServerFactory,
    WebSocketServerProtocol,
)
from autobahn.websocket.protocol import WebSocketProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from wsrouter.config.values import Rate
from wsrouter.errors import FrameError
from wsrouter.layer7.policies import Policies
from wsrouter.layer7.side import JUDGED, SLOW, Side
from wsrouter.layer7.sides import IS_FAST, BackendSide, ClientSide, client_options, factories, server_options
from wsrouter.policy.limits import TokenBucket
from wsrouter.relay.deadlines import Deadlines
from wsrouter.relay.meter import Meter
from wsrouter.wire.policed import OwnPings

LIMIT = 1000
#: What sides call of Autobahn's, or put in the place of it.
TAKEN = (
    *("processData", "consumeData", "sendData", "sendCloseFrame", "sendMessage", "sendPing", "sendPong"),
    *(
        "onFrameData",
        "onMessageBegin",
        "onMessageFrameBegin",
        "onMessageFrameData",
        "onMessageFrameEnd",
        "onMessageEnd",
    ),
    *("onPing", "onPong", "onCloseFrame"),
)


def frame(opcode: int, payload: bytes) -> bytes:
    """A client's frame; the mask is zero."""
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload


class FakeRelay:
    """Time, and deadlines on it."""

    def __init__(self, clock: Clock) -> None:
        self.seconds = clock.seconds
        self.deadlines = Deadlines(clock)


class FakeLeg(StringTransport):
    """A leg in memory."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.relay: Any = FakeRelay(clock)

    def await_end(self) -> None:
        """Stop reading."""
        self.producerState = "awaiting"


class Reports:
    """A session that notes what its side reports."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def message_came(self, side: Side, payload: bytes, is_binary: bool) -> None:
        self.heard.append(("message", payload, is_binary))

    def control_came(self, side: Side, is_ping: bool, payload: bytes) -> None:
        self.heard.append(("ping" if is_ping else "pong", payload))

    def ping_answered(self, side: Side) -> None:
        self.heard.append(("answered",))

    def close_came(self, side: Side) -> None:
        self.heard.append(("close", side.walker.close))

    def failed(self, side: Side, error: FrameError) -> None:
        side.ignore()
        self.heard.append(("failed", error.code, error.reason))

    def answer_came(self, side: Side) -> None:
        self.heard.append(("answer",))

    def fin_came(self, side: Side) -> None:
        self.heard.append(("fin",))

    def lost(self, side: Side, how: str) -> None:
        self.heard.append(("lost",))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def side(clock):
    """``side(ClientSide, offer=None, policies) -> side, reports``: attached and open."""

    def make(kind: Any, offer: bytes | None = None, policies: Policies | None = None):
        reports = Reports()
        server, client = factories(clock, LIMIT)
        one = kind(reports, FakeLeg(clock), LIMIT, policies or Policies(), server if kind is ClientSide else client)
        one.makeConnection(one.leg)
        one.granted = one.open(offer)
        return one, reports

    return make


def test_autobahn_runs_its_native_code() -> None:
    assert IS_FAST


@pytest.mark.parametrize(
    ("factory", "options"), [(WebSocketServerFactory, server_options), (WebSocketClientFactory, client_options)]
)
def test_every_option_is_set_and_none_is_left_to_a_default(factory, options) -> None:
    known = set(inspect.signature(factory.setProtocolOptions).parameters) - {"self"}
    assert set(options(LIMIT)) == known


@pytest.mark.parametrize("protocol", [WebSocketServerProtocol, WebSocketClientProtocol])
def test_a_side_has_every_attribute_that_autobahn_would_copy(side, protocol) -> None:
    one, _ = side(ClientSide if protocol is WebSocketServerProtocol else BackendSide)
    assert set(protocol.CONFIG_ATTRS) <= set(vars(one))


@pytest.mark.parametrize("name", TAKEN)
def test_what_sides_call_or_override_is_there(name) -> None:
    assert callable(getattr(WebSocketProtocol, name))
    assert callable(WebSocketClientProtocol.startHandshake)


@pytest.mark.parametrize("kind", [ClientSide, BackendSide])
def test_opening_writes_nothing_to_the_peer_and_sets_no_timer(side, clock, kind) -> None:
    one, reports = side(kind)
    assert one.leg.value() == b""
    assert reports.heard == []
    assert clock.getDelayedCalls() == []


def test_the_extension_that_autobahn_grants_is_told(side) -> None:
    assert side(ClientSide)[0].granted is None
    assert side(ClientSide, b"permessage-deflate")[0].granted == b"permessage-deflate"
    one, _ = side(ClientSide, b"permessage-deflate; client_no_context_takeover; server_max_window_bits=9")
    assert one.granted == b"permessage-deflate; server_max_window_bits=9; client_no_context_takeover"


def test_what_autobahn_does_not_open_on_is_an_error(side) -> None:
    one, _ = side(ClientSide)
    one.state = one.STATE_CONNECTING
    with pytest.raises(RuntimeError, match="does not open"):
        one.begin(b"GET / HTTP/1.1\r\n")


def test_a_side_takes_one_frame_at_a_time_and_stops_where_it_is_held(side) -> None:
    one, reports = side(ClientSide)
    reports.message_came = lambda side, payload, is_binary: (reports.heard.append(payload), side.hold(1))
    one.dataReceived(frame(1, b"a") + frame(1, b"b") + frame(8, b"\x03\xe8"))
    assert reports.heard == [b"a"]
    assert one.leg.producerState == "paused"
    one.go_on(1)
    assert reports.heard == [b"a", b"b"]
    one.go_on(1)
    assert reports.heard == [b"a", b"b", ("close", (1000, ""))]
    assert one.leg.producerState == "producing"


def test_a_violation_is_told_behind_what_came_before_it_also_when_that_was_held_up(side) -> None:
    one, reports = side(ClientSide)
    one.hold(1)
    one.dataReceived(frame(1, b"a") + frame(3, b"b"))
    assert reports.heard == []
    one.go_on(1)
    assert reports.heard == [("message", b"a", False), ("failed", 1002, "got reserved opcode 3")]
    one.dataReceived(frame(1, b"too late"))
    assert reports.heard[2:] == [("answer",)]


@pytest.mark.parametrize("kind", [ClientSide, BackendSide])
def test_control_frames_before_the_first_message_and_within_a_compressed_one_are_not_inflated(side, kind) -> None:
    one, reports = side(kind, b"permessage-deflate")
    mask = kind is ClientSide
    ping = frame(9, b"ping") if mask else b"\x89\x04ping"
    one.dataReceived(ping)
    for first, payload in ((0x42, b"\xf2\x48"), (0x80, b"\xcd\xc9\xc9\x07\x00")):  # "Hello" (RFC 7692 7.2.3.1)
        one.dataReceived(bytes([first, mask << 7 | len(payload)]) + bytes(4 * mask) + payload)
        one.dataReceived(ping)
    assert reports.heard == [("ping", b"ping"), ("ping", b"ping"), ("message", b"Hello", True), ("ping", b"ping")]


def test_autobahn_says_what_it_cannot_read_through_sendCloseFrame(side) -> None:
    one, reports = side(ClientSide)
    one.dataReceived(frame(1, b"\xff"))
    ((what, code, reason),) = reports.heard
    assert (what, code) == ("failed", 1007)
    assert "UTF-8" in reason
    assert one.leg.value() == b""


def test_a_lost_side_holds_itself_in_no_cycle_and_is_silent_when_dissolved(side) -> None:
    one, reports = side(ClientSide)
    one.dissolve()
    one.readConnectionLost()
    one.connectionLost(Failure(ConnectionDone()))
    assert reports.heard == []
    assert not hasattr(one, "is_closed")


def meter(messages: Rate, *, strict: bool = False) -> Policies:
    """Policies with that rate of messages."""
    return Policies(meter=Meter(TokenBucket(messages), None, strict))


@pytest.mark.parametrize("offer", [None, b"permessage-deflate"])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_an_answer_to_a_ping_of_the_routers_own_is_taken_out_and_is_no_activity(side, offer, step) -> None:
    pings = OwnPings(b"8 bytes!")
    one, reports = side(ClientSide, offer, Policies(pings=pings))
    assert pings.make() == b"\x89\x0c8 bytes!\0\0\0\x01"
    data = frame(1, b"a") + frame(10, b"8 bytes!\0\0\0\x01") + frame(10, b"their own") + frame(1, b"b")
    for begin in range(0, len(data), step):
        one.dataReceived(data[begin : begin + step])
    heard = [("message", b"a", False), ("pong", b"their own"), ("message", b"b", False)]
    assert [report for report in reports.heard if report != ("answered",)] == heard
    assert reports.heard.count(("answered",)) == 1
    assert one.bytes == len(data)
    assert one.activity(data=False) == 7 + 15 + 7
    assert one.activity(data=True) == 7 + 7


def test_what_is_over_a_rate_waits_unread_and_comes_in_its_time(side, clock) -> None:
    one, reports = side(ClientSide, None, meter(Rate(1.0, 2)))
    one.dataReceived(b"".join(frame(1, payload) for payload in (b"a", b"b", b"c", b"d")))
    assert reports.heard == [("message", b"a", False), ("message", b"b", False)]
    assert one.leg.producerState == "paused"
    assert one.activity(data=True) == 14
    clock.advance(1.1)
    assert reports.heard[2:] == [("message", b"c", False)]
    assert one.leg.producerState == "paused"
    clock.advance(1.1)
    assert reports.heard[3:] == [("message", b"d", False)]
    assert one.leg.producerState == "producing"
    assert not clock.getDelayedCalls()


def test_a_rate_and_another_reason_to_hold_are_both_waited_for(side, clock) -> None:
    one, reports = side(ClientSide, None, meter(Rate(1.0, 1)))
    one.hold(SLOW)
    one.dataReceived(frame(1, b"a") + frame(1, b"b"))
    clock.advance(1.1)
    assert reports.heard == []
    assert one.leg.producerState == "paused"
    one.go_on(SLOW)
    assert reports.heard == [("message", b"a", False), ("message", b"b", False)]
    assert one.leg.producerState == "producing"


def test_a_strict_rate_is_a_violation_behind_what_it_allows(side) -> None:
    one, reports = side(ClientSide, None, meter(Rate(1.0, 1), strict=True))
    one.dataReceived(frame(1, b"a") + frame(1, b"b"))
    assert reports.heard == [("message", b"a", False), ("failed", 1008, "got more than the rate of the route")]


@pytest.mark.parametrize("end", ["ignore", "dissolve"])
def test_who_is_ignored_waits_for_no_tokens_and_the_close_behind_them_is_seen(side, clock, end) -> None:
    one, reports = side(ClientSide, None, meter(Rate(1.0, 1)))
    one.dataReceived(frame(1, b"a") + frame(1, b"b") + frame(8, b"\x03\xe8"))
    assert not one.walker.event
    getattr(one, end)()
    clock.advance(2)
    assert reports.heard == [("message", b"a", False)]
    if end == "ignore":
        assert one.walker.close == (1000, "")
        assert one.leg.producerState == "producing"


def test_while_a_filter_thinks_a_peer_is_read_until_something_waits_and_then_watched(side) -> None:
    one, reports = side(ClientSide)
    one.hold(JUDGED)
    assert one.leg.producerState == "producing"
    one.dataReceived(frame(1, b"a"))
    assert one.leg.producerState == "awaiting"
    one.hold(SLOW)
    assert one.leg.producerState == "awaiting"
    one.go_on(JUDGED)
    assert one.leg.producerState == "paused"
    one.go_on(SLOW)
    assert one.leg.producerState == "producing"
    assert reports.heard == [("message", b"a", False)]


def test_bytes_of_messages_count_as_passed_and_pings_are_whole_at_once(side) -> None:
    one, _ = side(ClientSide)
    one.sendMessage(b"hello", True)
    one.put_in(b"\x89\0")
    assert one.leg.value() == b"\x82\x05hello\x89\0"
    assert (one.passed, one.at_boundary, one.is_inserting) == (7, True, False)
