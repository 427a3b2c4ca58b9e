"""The preamble of a connection, on a leg that is only noted and a clock that stands still."""

from __future__ import annotations

import gc
from collections.abc import Callable
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.task import Clock

from tests.memory import living
from wsrouter.config import values
from wsrouter.config.values import Match, Rate, Tunnel
from wsrouter.listener.preamble import COURTESIES, COURTESY, Preamble
from wsrouter.live.connection import Announced, Connection
from wsrouter.policy.admission import Admission
from wsrouter.policy.tunnels import TunnelTable
from wsrouter.relay.deadlines import Deadlines
from wsrouter.sniff.verdict import Opaque

pytestmark = pytest.mark.interpreted

V1 = b"PROXY TCP4 192.0.2.1 198.51.100.7 4711 443\r\n"
INNER = ip_network("10.0.0.0/8")


class FakeLeg:
    """What a preamble asks of a leg; ``did`` holds what it was told."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.written = b""
        self.home: Any = SimpleNamespace(left=lambda: self.did.append("left"))
        self.attached: list[tuple[Any, bytes]] = []

    def write(self, data: bytes) -> None:
        self.written += data

    def loseConnection(self) -> None:
        self.did.append("lose")

    def close(self) -> None:
        self.did.append("close")

    def attach(self, protocol: Any, prefetch: bytes = b"") -> None:
        self.attached.append((protocol, prefetch))


class Scene:
    """A listener's door, and what came in through it."""

    def __init__(self, match: Match = Match.OPAQUE, **options: Any) -> None:
        self.clock = Clock()
        self.refusals: list[tuple[str, str, int | None, bool]] = []
        self.tunnelled: list[tuple[bytes, Connection]] = []
        relay = SimpleNamespace(deadlines=Deadlines(self.clock), seconds=self.clock.seconds)
        config = values.Listener("main", "tcp:0", **options)
        self.door: Any = SimpleNamespace(
            name="main",
            epoch=None,
            config=config,
            store=None,
            tunnels=TunnelTable([Tunnel("all", "app", match, deny=(ip_network("192.0.2.66"),))]),
            layer4=SimpleNamespace(open=lambda leg, connection, rule, data: self.tunnelled.append((data, connection))),
            site=SimpleNamespace(relay=relay, refuse=self.refuse, turning_away=False),
            admission=Admission(config),
            courtesies=0,
        )

    def refuse(
        self,
        connection: Connection,
        stage: str,
        rule: str,
        status: int | None,
        reason: str,
        repeated: bool = False,
    ) -> None:
        self.refusals.append((stage, reason, status, repeated))

    def accept(self, ip: str = "10.0.0.1") -> tuple[FakeLeg, Preamble]:
        leg = FakeLeg()
        preamble = Preamble(self.door, Connection(1, ip, 9 if ip != "unix" else 0, "main"))
        preamble.makeConnection(leg)  # type: ignore[arg-type]
        return leg, preamble

    @property
    def reasons(self) -> list[tuple[str, str]]:
        return [refusal[:2] for refusal in self.refusals]


# The PROXY header.


def announcing(**options: Any) -> Scene:
    return Scene(proxy_protocol=True, trusted=(INNER,), **options)


def test_a_header_says_who_the_client_is_and_the_peer_stays_known() -> None:
    scene = announcing()
    _, preamble = scene.accept()
    for byte in V1 + b"\0":
        preamble.dataReceived(bytes([byte]))
    [(data, connection)] = scene.tunnelled
    assert (data, connection.client, connection.peer_ip) == (b"\0", "192.0.2.1:4711", "10.0.0.1")
    assert connection.announced == Announced("10.0.0.1", ("198.51.100.7", 443), ())


def test_what_follows_the_header_goes_on_once() -> None:
    scene = announcing()
    _, preamble = scene.accept()
    preamble.dataReceived(V1 + b"\0rest")
    assert [data for data, _ in scene.tunnelled] == [b"\0rest"]


def test_silence_behind_a_header_is_silence() -> None:
    scene = announcing(match=Match.SILENCE)
    _, preamble = scene.accept()
    preamble.dataReceived(V1)
    assert scene.tunnelled == []
    scene.clock.advance(5.1)
    assert [data for data, _ in scene.tunnelled] == [b""]


def test_a_peer_that_is_not_trusted_is_closed_before_it_says_anything() -> None:
    scene = announcing()
    assert [scene.accept("192.0.2.9")[0].did for _ in range(2)] == [["close"]] * 2
    reason = "a peer that is not trusted must not send PROXY headers"
    assert scene.refusals == [("proxy", reason, None, False), ("proxy", reason, None, True)]


def test_a_header_that_does_not_come_in_time_is_refused() -> None:
    scene = announcing()
    leg, preamble = scene.accept("unix")
    preamble.dataReceived(V1[:-1])
    scene.clock.advance(5.1)
    assert scene.reasons == [("proxy", "no whole PROXY header in 5 s")]
    assert (leg.did, leg.written) == (["lose"], b"")


def test_a_fin_within_a_header_is_refused_and_one_before_it_is_nobody_s_fault() -> None:
    scene = announcing()
    leg, preamble = scene.accept()
    preamble.readConnectionLost()
    assert (leg.did, scene.refusals) == (["lose"], [])
    leg, preamble = scene.accept()
    preamble.dataReceived(b"PROXY")
    preamble.readConnectionLost()
    assert (leg.did, scene.reasons) == (["lose"], [("proxy", "the connection ended within its PROXY header")])


# Lists and limits.


def test_lists_close_at_once_and_the_log_hears_once_a_minute_of_one_address() -> None:
    scene = Scene(deny=(INNER,))
    assert [scene.accept()[0].did for _ in range(2)] == [["close"]] * 2
    assert scene.accept("192.0.2.1")[0].did == []
    reason = "this address is not allowed here"
    assert scene.refusals == [("accept", reason, None, False), ("accept", reason, None, True)]


def test_what_is_counted_is_given_back_when_the_leg_ends_whatever_became_of_it() -> None:
    scene = Scene(max_connections_per_ip=1)
    leg, preamble = scene.accept()
    preamble.dataReceived(b"\0hello")
    assert len(scene.tunnelled) == 1
    over, _ = scene.accept()
    assert scene.door.courtesies == 1
    leg.home.left()
    assert leg.did == ["left"]
    over.home.left()
    assert over.did == ["left"]
    assert scene.door.courtesies == 0
    assert len(scene.door.admission._connections) == 0
    scene.accept()
    assert len(scene.door.admission._connections) == 1


GET = b"GET / HTTP/1.1\r\n"


@pytest.mark.parametrize(
    ("end", "answer", "status"),
    [
        (lambda scene, preamble: preamble.dataReceived(GET), b"HTTP/1.1 429 Too Many Requests\r\n", 429),
        (lambda scene, preamble: preamble.dataReceived(b"\0"), b"", None),
        (lambda scene, preamble: preamble.dataReceived(b"\x16\x03\x01\0\x04\2\0\0\0"), b"", None),
        (lambda scene, preamble: preamble.readConnectionLost(), b"", None),
        (lambda scene, preamble: scene.clock.advance(COURTESY + 0.1), b"", None),
        (lambda scene, preamble: preamble.connectionLost(), b"", None),
    ],
    ids=["http", "opaque", "broken tls", "fin", "silence", "gone"],
)
def test_who_is_over_a_limit_hears_of_it_in_http(
    end: Callable[[Scene, Preamble], None], answer: bytes, status: int | None
) -> None:
    scene = Scene(connections_per_ip=Rate(0.25, 1))
    _, first = scene.accept()
    first.connectionLost()
    leg, preamble = scene.accept()
    assert (leg.did, scene.refusals) == ([], [])
    end(scene, preamble)
    assert leg.written.startswith(answer)
    assert (b"Retry-After: 4\r\n" in leg.written) is bool(answer)
    assert scene.refusals == [("accept", "too many new connections of one address", status, False)]
    preamble.connectionLost()
    assert len(scene.refusals) == 1
    assert preamble._slice is None


def test_who_is_over_a_limit_by_its_header_is_answered_by_what_follows_it() -> None:
    scene = announcing(connections_per_ip=Rate(0.25, 1))
    for _ in range(2):
        leg, preamble = scene.accept()
        preamble.dataReceived(V1 + GET)
    assert leg.written.startswith(b"HTTP/1.1 429 ")
    leg, preamble = scene.accept()
    preamble.dataReceived(V1)
    assert (leg.did, leg.written) == ([], b"")
    preamble.dataReceived(GET)
    assert leg.written.startswith(b"HTTP/1.1 429 ")
    preamble.connectionLost()
    assert preamble._slice is None


def test_only_so_many_at_a_time_hear_of_a_limit() -> None:
    scene = Scene(max_connections_per_ip=1)
    scene.accept()
    legs = [scene.accept()[0] for _ in range(COURTESIES + 2)]
    assert [leg.did for leg in legs] == [[]] * COURTESIES + [["close"]] * 2
    legs[0].home.left()
    assert [scene.accept()[0].did for _ in range(2)] == [[], ["close"]]


def test_what_was_turned_away_waits_for_no_collector() -> None:
    scene = Scene(max_connections_per_ip=1)
    first, _ = scene.accept()
    gc.disable()
    try:
        over, preamble = scene.accept()
        known = living(Preamble)
        over.home.left()
        preamble.connectionLost()
        del over, preamble
        assert living(Preamble) == known - 1
    finally:
        gc.enable()
    assert first.did == []


# Verdicts.


@pytest.mark.parametrize(("match", "said"), [(Match.TLS, b"\0\1\2"), (Match.HTTP, b"GE")])
def test_who_fits_no_rule_is_closed_and_the_log_says_why(match: Match, said: bytes) -> None:
    scene = Scene(match)
    leg, preamble = scene.accept()
    preamble.dataReceived(said)
    if not leg.did:
        preamble.readConnectionLost()
    assert scene.reasons == [("sniff", "neither TLS nor HTTP, and no tunnel rule for it")]
    assert leg.did == ["lose"]


def test_a_few_bytes_and_a_fin_are_opaque() -> None:
    scene = Scene()
    _, preamble = scene.accept()
    preamble.dataReceived(b"GE")
    preamble.readConnectionLost()
    assert [data for data, _ in scene.tunnelled] == [b"GE"]


def test_http_goes_to_the_front_with_all_that_was_read() -> None:
    scene = Scene()
    leg, preamble = scene.accept()
    preamble.dataReceived(b"G")
    preamble.dataReceived(b"ET / HTTP/1.1\r\n\r\n")
    assert [prefetch for _, prefetch in leg.attached] == [b"GET / HTTP/1.1\r\n\r\n"]
    assert preamble._slice is None


def test_tls_that_nobody_serves_gets_an_alert() -> None:
    scene = Scene()
    leg, preamble = scene.accept()
    preamble._decide(Opaque(silent=True))
    assert scene.reasons == [("sniff", "silence, and no tunnel rule for it")]
    leg, preamble = scene.accept()
    preamble.dataReceived(b"\x16\x03\x01\0\x04\2\0\0\0")
    assert leg.written[:1] == b"\x15"
    assert leg.did == ["lose"]


def test_a_drain_opens_no_new_tunnel() -> None:
    scene = Scene()
    scene.door.site.turning_away = True
    _, preamble = scene.accept()
    preamble.dataReceived(b"\0hello")
    assert (scene.reasons, scene.tunnelled) == ([("sniff", "draining")], [])


def test_a_tunnel_closes_whom_it_does_not_serve() -> None:
    scene = Scene()
    leg, preamble = scene.accept("192.0.2.66")
    preamble.dataReceived(b"\0hello")
    assert (scene.reasons, scene.tunnelled) == ([("tunnel", "this address is not allowed here")], [])
    assert leg.did == ["lose"]
