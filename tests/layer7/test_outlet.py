from __future__ import annotations

import pytest
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers

from wsrouter.layer7.outlet import Valve, answer_head
from wsrouter.layer7.quiet import Quiet
from wsrouter.relay.deadlines import Deadlines


def test_a_head_is_dated_and_keeps_repeated_fields_in_order() -> None:
    headers = Headers({b"Set-Cookie": [b"b=1", b"a=2"], b"Keep-Alive": [b"5"], b"Connection": [b"x"]})
    lines = answer_head(b"200", b"Fine", headers, None).split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 200 Fine"
    assert lines[1].startswith(b"Date: ")
    assert lines[2:] == [b"Set-Cookie: b=1", b"Set-Cookie: a=2", b"", b""]


def test_a_date_that_a_backend_gave_stays() -> None:
    head = answer_head(b"204", b"", Headers({b"Date": [b"yesterday"]}), b"close")
    assert head == b"HTTP/1.1 204 \r\nDate: yesterday\r\nConnection: close\r\n\r\n"


class Producer:
    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


@pytest.mark.parametrize("streaming", [True, False])
def test_a_valve_tells_its_producer_and_watches_for_a_stall(streaming: bool) -> None:
    clock, producer, stalled = Clock(), Producer(), list[bool]()
    valve = Valve(producer, streaming, Quiet(Deadlines(clock), 8.0, lambda: stalled.append(True)))
    clock.pump([1] * 7)
    valve.resumeProducing()
    clock.pump([1] * 7)
    assert stalled == []
    if streaming:
        clock.pump([1] * 50)
        assert stalled == []
        valve.pauseProducing()
    clock.pump([1] * 20)
    assert stalled == [True]
    valve.stopProducing()
    valve.stopProducing()
    valve.pauseProducing()
    valve.resumeProducing()
    assert producer.told == (["resume", "pause", "stop"] if streaming else ["resume", "stop"])
    clock.pump([1] * 50)
    assert stalled == [True]
