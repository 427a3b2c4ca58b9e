"""The channel between supervisor and workers: what it takes for granted of Twisted's AMP."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.logger import LogLevel
from twisted.protocols.amp import AMP, BinaryBoxProtocol
from twisted.python.failure import Failure

from wsrouter.workers.control import Channel, Leave


class Worker(Channel):
    """One end, which hears."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[str, bool]] = []

    @Leave.responder
    def leave(self, why: str, alone: bool) -> dict[str, object]:
        self.heard.append((why, alone))
        return {}


def test_what_is_passed_over_of_twisteds_class_does_no_more_than_log(logged) -> None:
    """``Channel`` calls the class below AMP: once AMP does more, something would be missing without a word."""
    assert AMP.__mro__[1] is BinaryBoxProtocol
    plain: Any = AMP()
    plain.makeConnection(StringTransport())
    made = set(vars(plain))
    plain.connectionLost(Failure(ConnectionDone()))
    assert [event["log_level"] for event in logged] == [LogLevel.info] * 2
    ours: Any = Channel()
    ours.makeConnection(StringTransport())
    # What AMP keeps of the connection is for its lines in the log.
    assert made - set(vars(ours)) == {"_transportPeer", "_transportHost"}
    ours.connectionLost(Failure(ConnectionDone()))
    assert ours.transport is plain.transport is None


def test_a_command_arrives_and_the_end_is_known_on_both_sides() -> None:
    supervisor: Any = Channel()
    worker: Any = Worker()
    there, back = StringTransport(), StringTransport()
    supervisor.makeConnection(there)
    worker.makeConnection(back)
    supervisor.tell(Leave, why="a reason", alone=True)
    worker.dataReceived(there.value())
    assert worker.heard == [("a reason", True)]
    for one in (supervisor, worker):
        one.connectionLost(Failure(ConnectionDone()))
        assert one.transport is None
    supervisor.tell(Leave, why="in vain", alone=True)
    assert there.value().count(b"a reason") == 1
    assert b"in vain" not in there.value()
