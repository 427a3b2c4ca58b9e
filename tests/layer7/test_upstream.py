"""What may happen to a backend's connection between two requests: nobody gets what was not meant for him."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.internet.testing import AccumulatingProtocol, StringTransport
from twisted.protocols.policies import WrappingFactory

from wsrouter.layer7.upstream import Upstream
from wsrouter.relay.leg import Leg

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
NOT_MODIFIED = b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n"
HEAD_ALONE = b"HTTP/1.1 200 OK\r\nETag: x\r\n\r\n"
OWN = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nown"
EVIL = b"HTTP/1.1 200 OK\r\nX-Evil: 1\r\nContent-Length: 4\r\n\r\nEVIL"

#: A request's method and an answer to it that leaves its connection fit for another.
GOOD = [
    pytest.param(b"GET", LENGTH, id="length"),
    pytest.param(b"GET", EMPTY, id="empty"),
    pytest.param(b"GET", CHUNKED, id="chunked"),
    pytest.param(b"GET", NO_CONTENT, id="204"),
    pytest.param(b"GET", NOT_MODIFIED, id="304"),
    pytest.param(b"HEAD", HEAD_ALONE, id="HEAD"),
    pytest.param(b"HEAD", EMPTY, id="HEAD of nothing"),
]


def request(method: bytes = b"GET") -> bytes:
    return b"%b /p HTTP/1.1\r\nHost: h.example\r\nConnection: close\r\n\r\n" % method


class Script:
    """One backend behind a front: its first request gets ``first``, every other one ``OWN``."""

    def __init__(self, stage: Any, raw: Any, first: bytes, **more: Any) -> None:
        self.backend = stage.backend(self._answer)
        self.port = stage.serve(stage.proxy(self.backend.backend, **more)).getHost().port
        self._raw = raw
        self._first: bytes | None = first

    def _answer(self, head: bytes) -> bytes:
        first, self._first = self._first, None
        return OWN if first is None else first

    def ask(self, method: bytes = b"GET") -> Deferred[bytes]:
        answer: Deferred[bytes] = self._raw(self.port, request(method))
        return answer

    @property
    def connections(self) -> list[Any]:
        connections: list[Any] = self.backend.connections
        return connections


def assert_own(answer: bytes) -> None:
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nown")


@pytest.mark.parametrize(("method", "answer"), GOOD)
async def test_an_answer_with_a_clear_end_leaves_its_connection_in_use(
    stage: Any, raw: Any, method: bytes, answer: bytes
) -> None:
    script = Script(stage, raw, answer)
    await script.ask(method)
    assert_own(await script.ask())
    assert_own(await script.ask(b"POST"))
    assert len(script.connections) == 1


@pytest.mark.parametrize(("method", "answer"), GOOD)
async def test_an_answer_that_comes_byte_by_byte_leaves_its_connection_in_use(
    stage: Any, raw: Any, method: bytes, answer: bytes
) -> None:
    script = Script(stage, raw, b"")
    asked = script.ask(method)
    while not script.backend.heads:
        await deferLater(stage.reactor, 0)
    transport = script.connections[0].transport
    transport.setTcpNoDelay(True)
    for at in range(len(answer)):
        transport.write(answer[at : at + 1])
        for _ in range(3):
            await deferLater(stage.reactor, 0)
    await asked
    assert_own(await script.ask())
    assert len(script.connections) == 1


@pytest.mark.parametrize("surplus", [b"J", b"\r\n", EVIL], ids=["a byte", "an empty line", "an answer"])
@pytest.mark.parametrize(("method", "answer"), GOOD)
async def test_a_surplus_behind_an_answer_in_the_same_segment_is_nobodys(
    stage: Any, raw: Any, method: bytes, answer: bytes, surplus: bytes
) -> None:
    script = Script(stage, raw, answer + surplus)
    first = await script.ask(method)
    assert first.startswith(answer[:12])
    assert b"vil" not in first.lower()
    assert_own(await script.ask())
    assert len(script.connections) == 2


async def test_a_surplus_that_comes_with_the_last_piece_of_a_long_answer_is_nobodys(stage: Any, raw: Any) -> None:
    content = b"x" * 300_000
    script = Script(stage, raw, b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + content + EVIL)
    assert (await script.ask()).endswith(b"\r\n\r\n" + content)
    assert_own(await script.ask())
    assert len(script.connections) == 2


@pytest.mark.parametrize(("method", "answer"), GOOD)
async def test_a_surplus_on_an_idle_connection_ends_it(stage: Any, raw: Any, method: bytes, answer: bytes) -> None:
    script = Script(stage, raw, answer)
    await script.ask(method)
    script.connections[0].transport.write(EVIL)
    await script.connections[0].gone
    assert_own(await script.ask(b"POST"))
    assert len(script.connections) == 2


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 54\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 54\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 54\r\n\r\n"),
    ],
    ids=["HEAD", "HEAD chunked", "204", "304"],
)
async def test_an_answer_that_speaks_of_a_body_it_must_not_have_is_the_last_on_its_connection(
    stage: Any, raw: Any, method: bytes, answer: bytes
) -> None:
    script = Script(stage, raw, answer)
    await script.ask(method)
    # The body that a careless backend sends all the same comes while the next request is under way.
    next_one = script.ask()
    script.connections[0].transport.write(EVIL)
    assert_own(await next_one)
    assert len(script.connections) == 2


async def test_a_chunked_answer_whose_end_is_in_doubt_is_the_last_on_its_connection(stage: Any, raw: Any) -> None:
    doubtful = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a b\r\nok\r\n0\r\n\r\n"
    script = Script(stage, raw, doubtful)
    assert b"ok\r\n" in await script.ask()
    assert_own(await script.ask())
    assert len(script.connections) == 2


def test_words_before_any_request_end_the_connection() -> None:
    factory = WrappingFactory(Factory.forProtocol(AccumulatingProtocol))
    upstream = Upstream(factory, AccumulatingProtocol())
    transport = StringTransport()
    upstream.makeConnection(transport)
    assert upstream.ready
    upstream.dataReceived(EVIL)
    assert transport.disconnecting
    assert upstream.wrappedProtocol.data == b""


# What the kernel holds, but nobody has read.


class Remembered:
    """Endpoints whose connections can be held: what comes on them stays unread."""

    def __init__(self, stage: Any) -> None:
        self._stage = stage
        self.legs: list[Leg] = []

    def endpoint_for(self, backend: Any) -> Any:
        endpoint = self._stage.endpoint(backend)

        class Remembering:
            def connect(_, factory: Any) -> Deferred[Any]:
                connected: Deferred[Any] = endpoint.connect(factory)
                return connected.addCallback(self._remember)

        return Remembering()

    def _remember(self, upstream: Upstream) -> Upstream:
        leg = upstream.transport
        assert isinstance(leg, Leg)
        self.legs.append(leg)
        return upstream


@pytest.fixture
def legs_only(stage: Any) -> None:
    if not stage.legs:
        pytest.skip("only a leg can tell what lies unread")


@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize("what", ["answer", "end", "reset"])
async def test_a_kept_connection_with_something_unread_is_not_used_again(
    stage: Any, raw: Any, legs_only: None, method: bytes, what: str
) -> None:
    remembered = Remembered(stage)
    script = Script(stage, raw, LENGTH, endpoint_for=remembered.endpoint_for)
    await script.ask()
    (leg,) = remembered.legs
    leg.pauseProducing()
    transport = script.connections[0].transport
    if what == "answer":
        transport.write(EVIL)
    elif what == "end":
        transport.loseConnection()
    else:
        transport.abortConnection()
    while not leg.has_unread():
        await deferLater(stage.reactor, 0)
    assert_own(await script.ask(method))
    await script.connections[0].gone
    assert len(script.connections) == 2
    assert len(script.backend.heads) == 2


async def test_every_kept_connection_that_is_spoilt_is_passed_over(stage: Any, raw: Any, legs_only: None) -> None:
    remembered = Remembered(stage)
    backend = stage.backend(lambda head: None)
    port = stage.serve(stage.proxy(backend.backend, endpoint_for=remembered.endpoint_for)).getHost().port
    asked = [raw(port, request()) for _ in range(3)]
    arrived = [(await backend.arrived.get())[0] for _ in range(3)]
    for connection in arrived:
        connection.transport.write(LENGTH)
    for answer in asked:
        await answer
    for leg in remembered.legs:
        leg.pauseProducing()
    for connection in backend.connections[:2]:
        connection.transport.write(EVIL)
    while sum(leg.has_unread() for leg in remembered.legs) < 2:
        await deferLater(stage.reactor, 0)
    for leg in remembered.legs:
        if not leg.has_unread():
            leg.resumeProducing()
    backend.answer = lambda head: OWN
    assert_own(await raw(port, request(b"POST")))
    assert_own(await raw(port, request(b"POST")))
    assert len(backend.connections) == 3
