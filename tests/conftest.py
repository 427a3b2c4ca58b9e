"""What every test stands on: the reactor of pytest-twisted, and the check that a test leaves nothing behind.

pytest-twisted installs the platform's default reactor (epoll on Linux; its ``--reactor`` option knows no other name for
it) and runs every test function inside it, so a bare ``async def`` test just works. It does not look at what
a test leaves in the reactor; ``nothing_is_left`` does.
"""

from __future__ import annotations

import gc
import inspect
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, cast

import pytest
import pytest_twisted
from hypothesis import HealthCheck, settings
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.protocol import Factory
from twisted.internet.tcp import Port
from twisted.logger import ILogObserver, LogEvent, LogLevel, eventAsText, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from wsrouter.wire import frames

#: Turns of the reactor that the last events of a test may take: first some that wait for nothing, then, where a thread
#: or another process has yet to end something, as many that idle for 2 ms each. A clean test takes none.
QUICK_TURNS = 50
IDLE = 0.002

# How long an example takes says something of the machine, and nothing of the code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what a compiled router does not allow; see docs/compiled.md."""
    if not (frames.__file__ or "").endswith(".py"):
        for item in items:
            if item.get_closest_marker("interpreted") is not None:
                item.add_marker(pytest.mark.skip(reason="compiled classes do not allow it"))


_OUTCOME = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def cannot_run() -> Callable[[str], NoReturn]:
    """``cannot_run(why)``: something is missing here, so the test is skipped; where ``CI=true`` it fails.

    There a skip would go unseen.
    """

    def give_up(why: str) -> NoReturn:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{why} (with CI=true what is missing is a failure)", pytrace=False)
        pytest.skip(why)

    return give_up


@pytest.fixture(scope="session")
def require_program(cannot_run: Callable[[str], NoReturn]) -> Callable[[str, str], str]:
    """Gives a function that finds a program which a test drives: ``require_program("node", "apt-get install nodejs")``.

    It returns the full path. Without the program the test ``cannot_run``, and says how to get it.
    """

    def require(name: str, how_to_get_it: str) -> str:
        path = shutil.which(name)
        if path is None:
            cannot_run(f"{name} is not installed; get it with: {how_to_get_it}")
        return path

    return require


@implementer(ILogObserver)
class LoggedFailures:
    """The failures and critical events that were logged during one test; as an observer it takes the others too."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_failure") is not None or event.get("log_level") is LogLevel.critical:
            self.events.append(event)

    def flush(self, *types: type[BaseException]) -> list[Failure]:
        """Take out, and return, the failures of these types (of any, without types): the ones that a test expects."""
        taken, kept = [], []
        for event in self.events:
            failure = event.get("log_failure")
            expected = failure is not None and (not types or failure.check(*types) is not None)
            (taken if expected else kept).append(event)
        self.events = kept
        return [event["log_failure"] for event in taken]


@pytest.fixture(scope="session")
def reactor() -> EPollReactor:
    """The running reactor of the test session."""
    from twisted.internet import reactor as installed  # noqa: TID251

    assert isinstance(installed, EPollReactor), f"expected the epoll reactor, got {type(installed).__name__}"
    # The first turn starts the reactor, the first port opens a spare descriptor for good: no test has left those.
    _turn(installed)
    port = cast("Port", installed.listenTCP(0, Factory(), interface="127.0.0.1"))
    pytest_twisted.blockon(maybeDeferred(port.stopListening))
    # What is loaded by now stays: the collector need not walk it again after each test.
    gc.collect()
    gc.freeze()
    return installed


@pytest.fixture
def logged_failures() -> Iterator[LoggedFailures]:
    """The failures that the test logs; ``flush`` those that it expects, the others make it fail."""
    seen = LoggedFailures()
    globalLogPublisher.addObserver(seen)
    yield seen
    globalLogPublisher.removeObserver(seen)


@pytest.fixture
def logged() -> Iterator[list[LogEvent]]:
    """The events of the log, as they come while the test runs."""
    seen: list[LogEvent] = []
    globalLogPublisher.addObserver(seen.append)
    yield seen
    globalLogPublisher.removeObserver(seen.append)


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The lines of the log, as they come while the test runs, without time and system."""
    seen: list[str] = []

    def observe(event: LogEvent) -> None:
        seen.append(eventAsText(event, includeTimestamp=False, includeSystem=False))

    globalLogPublisher.addObserver(observe)
    yield seen
    globalLogPublisher.removeObserver(observe)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if call.when == "call":
        item.stash[_OUTCOME] = report.passed
    return report


@pytest.fixture(autouse=True)
def nothing_is_left(
    request: pytest.FixtureRequest, reactor: EPollReactor, logged_failures: LoggedFailures
) -> Iterator[None]:
    """After each test: no delayed call, no reader or writer, no descriptor and no logged failure more than before.

    What a test leaves is taken away, so that it does not blame the next one, and reported only where the test passed.
    """
    watched, descriptors = _watched(reactor), _descriptors()
    yield
    for turn in range(2 * QUICK_TURNS):
        if (
            not reactor.getDelayedCalls()
            and _watched(reactor) <= watched
            and _descriptors().total() <= descriptors.total()
        ):
            break
        if turn == QUICK_TURNS:
            # What waits only for the collector (a selector of the standard library is a cycle) is no left-over.
            gc.collect()
        _turn(reactor, 0 if turn < QUICK_TURNS else IDLE)
    if inspect.iscoroutinefunction(getattr(request.node, "function", None)):
        # A Deferred tells of an error that nobody took when it is collected.
        gc.collect()
    left = [
        *(f"delayed call: {call}" for call in _cancelled(reactor.getDelayedCalls())),
        *(f"watched by the reactor: {one!r}" for one in _forgotten(reactor, _watched(reactor) - watched)),
        *(f"logged: {_told(event)}" for event in logged_failures.events),
    ]
    now = _descriptors()
    if now.total() > descriptors.total():
        left.extend(f"open descriptor: {name} ({count} more)" for name, count in (now - descriptors).items())
    if left and request.node.stash.get(_OUTCOME, False):
        pytest.fail("the test left something behind:\n  " + "\n  ".join(left), pytrace=False)


def _turn(reactor: EPollReactor, longest: float = 0) -> None:
    """Let the reactor serve what is ready, and what becomes so within ``longest`` seconds."""
    done: Deferred[None] = Deferred()
    reactor.callLater(longest, done.callback, None)
    pytest_twisted.blockon(done)


def _watched(reactor: EPollReactor) -> set[object]:
    return {*reactor.getReaders(), *reactor.getWriters()}


def _forgotten(reactor: EPollReactor, left: set[Any]) -> set[object]:
    for one in left:
        reactor.removeReader(one)
        reactor.removeWriter(one)
    return left


def _cancelled(calls: Sequence[Any]) -> list[str]:
    told = [str(call) for call in calls]
    for call in calls:
        call.cancel()
    return told


def _descriptors() -> Counter[str]:
    """What every open descriptor of this process stands for, such as ``socket:[1234]``, with its count."""
    found: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd"):
        try:
            found[os.readlink(f"/proc/self/fd/{number}")] += 1
        except OSError:
            # The descriptor of the listing itself is closed by now.
            continue
    return found


def _told(event: LogEvent) -> str:
    failure = event.get("log_failure")
    return eventAsText(event, includeTimestamp=False) if failure is None else failure.getTraceback()
