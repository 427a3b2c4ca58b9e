"""What the tests of plain HTTP share: a front in small, backends that follow a script, clients beside the reactor."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterator
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import pytest_twisted
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, DeferredQueue, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from zope.interface import implementer

from wsrouter.backends.dial import Address, Dial
from wsrouter.config.values import Backend, Pool
from wsrouter.errors import BackendError, DialError
from wsrouter.layer7.affinity import Affinity
from wsrouter.layer7.exchange import Exchange
from wsrouter.layer7.proxy import HttpProxy
from wsrouter.layer7.request import Handler, PlainRequest
from wsrouter.policy.members import Member
from wsrouter.relay.acceptor import Acceptor
from wsrouter.relay.leg import Leg
from wsrouter.relay.loop import Relay
from wsrouter.wire.forwarding import ClientFacts, plain_fields
from wsrouter.wire.head import cut_head, parse_request
from wsrouter.wire.target import parse_target

T = TypeVar("T")


class SmallFront(Protocol):
    """Cuts heads, one exchange at a time; a connection ends as its last exchange says."""

    exchange: Exchange | None = None
    factory: Any

    def connectionMade(self) -> None:
        self.waiting = b""
        self.gone: Deferred[None] = Deferred()
        self.factory.connections.append(self)

    def dataReceived(self, data: bytes) -> None:
        if self.exchange is not None:
            self.exchange.data(data)
            return
        self.waiting += data
        end = cut_head(self.waiting)
        if end is None:
            return
        head, rest, self.waiting = parse_request(self.waiting[:end]), self.waiting[end:], b""
        self.exchange = Exchange(
            self.transport,
            head,
            parse_target(head.target, head.method),
            self.factory.handler,
            secure=False,
            peer=self.transport.getPeer(),
            host=self.transport.getHost(),
            deadlines=self.factory.deadlines,
            max_body=10_000_000,
            body_timeout=60.0,
            done=self.done,
        )
        self.exchange.start(rest)

    def done(self, keep_alive: bool) -> None:
        exchange, self.exchange = self.exchange, None
        if not keep_alive:
            self.transport.loseConnection()
        elif exchange.rest:
            self.dataReceived(exchange.rest)

    def connectionLost(self, reason: Failure) -> None:
        if self.exchange is not None:
            self.exchange.lost(reason)
        self.gone.callback(None)


class ScriptedConnection(Protocol):
    factory: Any

    def connectionMade(self) -> None:
        self.data = b""
        self.gone: Deferred[None] = Deferred()
        self.factory.connections.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self.factory.received += len(data)
        self.factory.react(self)

    def connectionLost(self, reason: Failure) -> None:
        self.gone.callback(None)

    def take_head(self) -> bytes | None:
        """The next request's head, once it is whole."""
        head, end, rest = self.data.partition(b"\r\n\r\n")
        if not end:
            return None
        self.data = rest
        return head + end


class ScriptedBackend(Factory):
    """Answers each request's head with what ``answer`` returns; None leaves it to the test, through ``arrived``."""

    protocol = ScriptedConnection

    def __init__(self, answer: Callable[[bytes], bytes | None]) -> None:
        self.connections: list[ScriptedConnection] = []
        self.arrived: DeferredQueue[tuple[ScriptedConnection, bytes]] = DeferredQueue()
        self.heads: list[bytes] = []
        self.received = 0
        self.answer = answer
        self.backend = Backend("127.0.0.1", 0)

    def react(self, connection: ScriptedConnection) -> None:
        head = connection.take_head()
        if head is not None:
            self.heads.append(head)
            answer = self.answer(head)
            if answer is None:
                self.arrived.put((connection, head))
            else:
                connection.transport.write(answer)


class FakePool:
    """A pool that gives its backends in their order, and tells in ``log`` what the proxy said of them."""

    def __init__(self, config: Pool, endpoint_for: Callable[[Backend], Any]) -> None:
        self.config = config
        self.epoch = object()
        self.members = [Member(backend) for backend in config.backends]
        #: ("taken" | "given back" | "worked" | "failed", the backend's place).
        self.log: list[tuple[str, int]] = []
        #: What was said of failures.
        self.reasons: list[str] = []
        #: What was asked of the choice: key and preferred member; what opened each connection.
        self.asked: list[tuple[bytes | None, Member | None]] = []
        self.prefaces: list[bytes] = []
        #: Whether all are full, and who waits therefore: (key, what to call with a member that was taken).
        self.full = False
        self.line: list[tuple[bytes | None, Callable[[Member | None], None]]] = []
        self._endpoint_for = endpoint_for

    def pick(
        self, key: bytes | None = None, excluded: Collection[Member] = (), preferred: Member | None = None
    ) -> Member | None:
        self.asked.append((key, preferred))
        if self.full:
            return None
        return next((one for one in [preferred, *self.members] if one is not None and one not in excluded), None)

    def wait(self, key: bytes | None, served: Callable[[Member | None], None]) -> Any:
        if not self.config.queue:
            return None
        place = (key, served)
        self.line.append(place)
        return SimpleNamespace(cancel=lambda: self.line.remove(place))

    def refusal(self) -> BackendError:
        return BackendError(503, "nobody can take it")

    def take(self, member: Member) -> None:
        self._note("taken", member)
        member.live += 1

    def give_back(self, member: Member) -> None:
        self._note("given back", member)
        member.live -= 1
        assert member.live >= 0

    def failed(self, member: Member, error: DialError | BackendError) -> None:
        self._note("failed", member)
        self.reasons.append(error.reason)

    def worked(self, member: Member) -> None:
        self._note("worked", member)

    def endpoint(self, member: Member, preface: bytes = b"", timeout: float | None = None) -> IStreamClientEndpoint:
        self.prefaces.append(preface)
        endpoint: IStreamClientEndpoint = self._endpoint_for(member.backend)
        return endpoint

    def _note(self, what: str, member: Member) -> None:
        self.log.append((what, self.members.index(member)))


@implementer(IStreamClientEndpoint)
class LegEndpoint:
    """Connects with a leg of the relay."""

    def __init__(self, relay: Relay, backend: Backend) -> None:
        self.relay = relay
        self.address = Address(socket.AF_INET, (backend.host, backend.port))

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        def connected(leg: Leg) -> None:
            protocol = protocolFactory.buildProtocol(leg.getPeer())
            leg.attach(protocol)
            result.callback(protocol)

        def failed(error: Exception) -> None:
            result.errback(error)

        dial = Dial(self.relay, [self.address], 20.0, connected, failed)
        result: Deferred[Any] = Deferred(lambda _: dial.cancel())
        return result


class LegPort:
    """A listening socket whose connections are legs; looks like one of Twisted's ports."""

    def __init__(self, relay: Relay, factory: Any) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.factory = factory
        self.acceptor = Acceptor(relay, self.socket.fileno(), "test", self.accepted, None, None)

    def accepted(self, leg: Leg) -> None:
        leg.attach(self.factory.buildProtocol(leg.getPeer()))

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", *self.socket.getsockname())

    def stopListening(self) -> Deferred[None]:
        self.acceptor.abort()
        self.socket.close()
        return succeed(None)


class Stage:
    """Everything that one test starts; ``close`` ends it all.

    With ``legs`` the router's own connections are legs of the relay, as they are in the running router; else
    they are Twisted's.
    """

    def __init__(self, reactor: Any, legs: bool) -> None:
        self.reactor = reactor
        self.legs = legs
        self.relay = Relay(reactor)
        self.relay.start()
        self.deadlines = self.relay.deadlines
        self.ports: list[Any] = []
        self.factories: list[Any] = []
        self.proxies: list[HttpProxy] = []
        #: The pool of the last proxy.
        self.pool: FakePool

    def listen(self, factory: Any) -> Any:
        port = self.reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.ports.append(port)
        self.factories.append(factory)
        return port

    def serve(self, handler: Handler) -> Any:
        """A front on a port of its own; returns the listening port."""
        factory = Factory.forProtocol(SmallFront)
        factory.handler = handler
        factory.deadlines = self.deadlines
        factory.connections = []
        if not self.legs:
            return self.listen(factory)
        port = LegPort(self.relay, factory)
        self.ports.append(port)
        self.factories.append(factory)
        return port

    def backend(self, answer: Callable[[bytes], bytes | None]) -> ScriptedBackend:
        factory = ScriptedBackend(answer)
        factory.backend = Backend("127.0.0.1", self.listen(factory).getHost().port)
        return factory

    def endpoint(self, backend: Backend) -> IStreamClientEndpoint:
        if self.legs:
            return LegEndpoint(self.relay, backend)
        return TCP4ClientEndpoint(self.reactor, backend.host, backend.port)

    def proxy(
        self,
        *backends: Backend,
        idle: float | None = 3600.0,
        endpoint_for: Callable[[Backend], Any] | None = None,
        deadlines: Any = None,
        clock: Any = None,
        affinity: Affinity = Affinity(),  # noqa: B008 (it is a value)
        **config: Any,
    ) -> Handler:
        """A handler that proxies to these backends, tried in this order; ``config`` is for their pool."""
        self.pool = FakePool(Pool("app", backends, **config), endpoint_for or self.endpoint)
        proxy = HttpProxy(clock or self.reactor, self.pool, deadlines or self.deadlines)
        self.proxies.append(proxy)

        def handler(request: PlainRequest) -> Any:
            facts = ClientFacts("192.0.2.1", 4711, "http", request.head.host)
            target = request.target.forward(request.target.path)
            return proxy.handle(request, target, plain_fields(request.head, facts, ()), idle, affinity)

        return handler

    async def close(self) -> None:
        for proxy in self.proxies:
            await proxy.stop()
        for port in self.ports:
            await port.stopListening()
        for factory in self.factories:
            for connection in factory.connections:
                connection.transport.abortConnection()
                await connection.gone
        self.relay.stop()


@pytest.fixture(scope="session", autouse=True)
def descriptor_in_reserve(reactor: Any) -> None:
    """Twisted's first port opens a descriptor that it keeps for good: no test's doing."""
    pytest_twisted.blockon(reactor.listenTCP(0, Factory(), interface="127.0.0.1").stopListening())


@pytest.fixture(params=["twisted", "legs"])
def stage(reactor: Any, request: pytest.FixtureRequest) -> Iterator[Stage]:
    stage = Stage(reactor, request.param == "legs")
    yield stage
    pytest_twisted.blockon(Deferred.fromCoroutine(stage.close()))


@pytest.fixture
def beside() -> Callable[..., Deferred[Any]]:
    """Runs a blocking client in a thread: ``await beside(function, arguments)``."""
    return deferToThread


@pytest.fixture
def raw() -> Callable[[int, bytes], Deferred[bytes]]:
    """``await raw(port, request)``: what the server says until it closes, or resets, the connection."""

    def talk(port: int, request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(request)
            answer = b""
            try:
                while data := client.recv(65536):
                    answer += data
            except ConnectionResetError:
                answer += b"<RESET>"
            return answer

    return lambda port, request: deferToThread(talk, port, request)
