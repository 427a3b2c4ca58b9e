"""The relay on the reactor that the tests run on, Twisted's epoll reactor: it waits for both."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.epollreactor import EPollReactor
from twisted.python.failure import Failure

from wsrouter.relay.loop import EPOLLIN, Relay

#: How long anything may take, in seconds.
PATIENCE = 5.0

Inside = Callable[[Callable[[], object]], None]


class Member:
    """Calls ``on_read`` for each event; it reads nothing, so that there is always another."""

    def __init__(self, relay: Relay) -> None:
        self.near, self.far = socket.socketpair()
        self.relay = relay
        self.reads = 0
        self.on_read: Callable[[], object] = lambda: None
        relay.members[self.near.fileno()] = self
        relay.watch(self.near.fileno(), EPOLLIN)

    def read(self) -> None:
        self.reads += 1
        self.on_read()

    def ready(self, events: int) -> None:
        pytest.fail(f"unexpected events {events}")

    def failed(self, failure: Failure) -> None:
        self.abort()

    def abort(self) -> None:
        fd = self.near.fileno()
        if self.relay.members.pop(fd, None) is not None:
            self.relay.unwatch(fd)


class Reader:
    """What the reactor itself reads."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.got: Deferred[bytes] = Deferred()

    def fileno(self) -> int:
        return self.near.fileno()

    def doRead(self) -> None:
        self.got.callback(self.near.recv(10))

    def connectionLost(self, reason: Failure) -> None: ...

    def logPrefix(self) -> str:
        return "reader"


@pytest.fixture
def relay(reactor: EPollReactor) -> Iterator[Relay]:
    """A relay that runs."""
    relay = Relay(reactor)
    relay.start()
    yield relay
    relay.stop()


@pytest.fixture
def member(relay: Relay) -> Iterator[Member]:
    """A member with nothing to read yet."""
    member = Member(relay)
    yield member
    member.abort()
    member.near.close()
    member.far.close()


@pytest.fixture(params=["while it sleeps", "while it is busy"])
def inside(request: pytest.FixtureRequest, member: Member) -> Inside:
    """``inside(call)``: what the relay's own turn calls, which then has nothing more to do, or never has an end of it.

    So no return to the reactor hides that one is missing behind the call.
    """

    def inside(call: Callable[[], object]) -> None:
        def read() -> None:
            if request.param == "while it sleeps":
                member.near.recv(1)
            if member.reads == 1:
                call()

        member.on_read = read
        member.far.send(b"x")

    return inside


def settled(reactor: EPollReactor, outcome: Deferred[object]) -> Deferred[object]:
    return outcome.addTimeout(PATIENCE, reactor)


def test_the_reactor_has_what_the_relay_builds_on(reactor: EPollReactor, relay: Relay) -> None:
    """Not all of it is public: where a new Twisted lacks it, this is where it is seen."""
    assert isinstance(reactor._poller, select.epoll)
    assert reactor._justStopped is False
    assert reactor._started
    assert EPollReactor.doIteration is EPollReactor.doPoll
    assert reactor.doIteration == relay._iterate
    assert relay not in reactor.getReaders()
    relay.stop()
    assert "doIteration" not in vars(reactor)
    assert not reactor.getDelayedCalls()


@pytest_twisted.ensureDeferred
async def test_a_second_relay_is_a_reader_and_both_serve(reactor: EPollReactor, relay: Relay, member: Member) -> None:
    second = Relay(reactor)
    second.start()
    other = Member(second)
    try:
        assert second in reactor.getReaders()
        done = [Deferred(), Deferred()]
        for one, outcome in zip((member, other), done, strict=True):

            def read(one: Member = one, outcome: Deferred[object] = outcome) -> None:
                one.near.recv(1)
                outcome.callback(None)

            one.on_read = read
            one.far.send(b"x")
        await settled(reactor, gatherResults(done))
    finally:
        second.stop()
        other.near.close()
        other.far.close()


@pytest_twisted.ensureDeferred
async def test_a_relay_that_a_member_stops_and_starts_goes_on(
    reactor: EPollReactor, relay: Relay, member: Member
) -> None:
    done: Deferred[object] = Deferred()

    def read() -> None:
        member.near.recv(1)
        relay.stop()
        relay.start()
        done.callback(None)

    member.on_read = read
    member.far.send(b"x")
    await settled(reactor, done)
    assert reactor.doIteration == relay._iterate


@pytest_twisted.ensureDeferred
async def test_a_member_is_served(reactor: EPollReactor, relay: Relay, member: Member) -> None:
    done: Deferred[object] = Deferred()

    def read() -> None:
        member.near.recv(1)
        done.callback(None)

    member.on_read = read
    reactor.callLater(0.01, member.far.send, b"x")
    await settled(reactor, done)
    assert member.reads == 1


@pytest_twisted.ensureDeferred
async def test_a_timed_call_comes_in_time(reactor: EPollReactor, inside: Inside) -> None:
    done: Deferred[object] = Deferred()
    inside(lambda: reactor.callLater(0.01, done.callback, None))
    await settled(reactor, done)


@pytest_twisted.ensureDeferred
async def test_what_the_reactor_reads_is_read_at_once(
    reactor: EPollReactor, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader()
    reactor.addReader(reader)
    asked = 0
    timeout = reactor.timeout

    def counted() -> float | None:
        nonlocal asked
        asked += 1
        return timeout()

    try:
        monkeypatch.setattr(reactor, "timeout", counted)
        inside(lambda: reader.far.send(b"here"))
        await settled(reactor, reader.got)
    finally:
        reactor.removeReader(reader)
        reader.near.close()
        reader.far.close()
    # Once for each batch of the relay's, and for each turn of the reactor's.
    assert asked < 20


@pytest_twisted.ensureDeferred
async def test_threads_are_heard(reactor: EPollReactor, inside: Inside) -> None:
    done: Deferred[object] = Deferred()
    thread = threading.Timer(0.02, reactor.callFromThread, (done.callback, None))
    inside(thread.start)
    await settled(reactor, done)
    thread.join()


@pytest_twisted.ensureDeferred
async def test_a_busy_relay_is_not_left_behind_by_timed_calls(reactor: EPollReactor, member: Member) -> None:
    member.far.send(b"x")
    done: Deferred[object] = Deferred()
    times = 0

    def again() -> None:
        nonlocal times
        times += 1
        if times == 100:
            done.callback(None)
        else:
            reactor.callLater(0, again)

    again()
    await settled(reactor, done)
    assert member.reads >= 50


STOPPING = """
import socket, sys
from twisted.internet import reactor
from wsrouter.relay.loop import EPOLLIN, Relay

who, state, how = sys.argv[1:]
end = getattr(reactor, how)

class Member:
    reads = 0

    def read(self):
        self.reads += 1
        if state == "idle":
            near.recv(1)
        if self.reads == 1:
            if who == "member":
                end()
            elif who == "timer":
                reactor.callLater(0.01, end)
            else:
                reactor.callInThread(reactor.callFromThread, end)

near, far = socket.socketpair()
relay = Relay(reactor)
relay.start()
relay.members[near.fileno()] = Member()
relay.watch(near.fileno(), EPOLLIN)
far.send(b"x")
reactor.run()
reactor.getThreadPool().stop()
print("stopped")
"""


@pytest.mark.parametrize("who", ["member", "timer", "thread"])
@pytest.mark.parametrize("state", ["idle", "busy"])
@pytest.mark.parametrize("how", ["stop", "crash"])
def test_a_reactor_that_is_stopped_does_stop(who: str, state: str, how: str) -> None:
    """No event and no timed call comes behind that."""
    words = [sys.executable, "-c", STOPPING, who, state, how]
    run = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert (run.stdout, run.stderr) == ("stopped\n", "")
