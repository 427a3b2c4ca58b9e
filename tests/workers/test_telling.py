"""The way of a worker's log to the supervisor's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from twisted.logger import LogEvent, Logger, LogLevel, formatEvent
from twisted.python.failure import Failure

from wsrouter.workers import telling
from wsrouter.workers.telling import Listening, Teller


class Reactor:
    """Knows who wants to write."""

    def __init__(self) -> None:
        self.writers: list[Teller] = []

    def addWriter(self, writer: Teller) -> None:
        self.writers.append(writer)

    def removeWriter(self, writer: Teller) -> None:
        if writer in self.writers:
            self.writers.remove(writer)


class Way:
    """A teller, a pipe, and the one who listens."""

    def __init__(self) -> None:
        self.out, into = os.pipe()
        self.into = into
        os.set_blocking(self.out, False)
        self.reactor = Reactor()
        self.teller = Teller(into)
        self.teller.reactor = self.reactor
        self.heard: list[LogEvent] = []
        self.listening = Listening(3, self.heard.append)
        self.log = Logger(namespace="wsrouter.some", observer=self.teller)

    def pass_on(self, size: int = 1 << 20) -> bytes:
        try:
            data = os.read(self.out, size)
        except BlockingIOError:
            return b""
        self.listening.take(1, data)
        return data

    def drain(self) -> None:
        while self.pass_on():
            for writer in list(self.reactor.writers):
                writer.doWrite()

    def texts(self) -> list[str]:
        return [str(formatEvent(event)) for event in self.heard]


@pytest.fixture
def way() -> Iterator[Way]:
    made = Way()
    yield made
    for descriptor in (made.out, made.into):
        os.close(descriptor)


def test_an_event_arrives_with_its_level_its_place_and_its_time(way):
    way.log.warn("{what} is full {{!}}", what="pool")
    way.pass_on()
    (event,) = way.heard
    assert formatEvent(event) == "worker 3: pool is full {!}"
    assert (event["log_level"], event["log_namespace"]) == (LogLevel.warn, "wsrouter.some")
    assert event["log_time"] > 1e9
    assert event["worker"] == 3


def test_what_a_peer_chose_cannot_forge_a_line(way):
    way.log.info("{path}", path='/\n{"message": "forged", "level": "info", "system": "x"}\n{secret}')
    way.pass_on()
    assert len(way.heard) == 1
    assert "{secret}" in way.texts()[0]


def test_lines_of_the_access_log_keep_their_fields_and_name_no_worker(way):
    way.log.info("{line}", line="event=open worker=3", fields={"event": "open", "worker": 3})
    way.pass_on()
    assert way.heard[0]["fields"] == {"event": "open", "worker": 3}
    assert way.texts() == ["event=open worker=3"]


def test_a_traceback_comes_along(way):
    try:
        raise ValueError("odd")
    except ValueError:
        way.log.failure("It failed", Failure())
    way.pass_on()
    assert "ValueError: odd" in way.heard[0]["traceback"]
    assert way.texts()[0].startswith("worker 3: It failed\nTraceback ")


@pytest.mark.parametrize(
    "line",
    [
        b"Fatal Python error: Segmentation fault",
        b"[1]",
        b'{"level": "odd"}',
        b'{"message": 1}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_what_is_no_such_line_is_told_as_it_is(way, line):
    way.listening.take(2, line + b"\n")
    assert way.texts() == [f"worker 3: {line.decode('utf-8', 'replace')}"]


def test_lines_come_in_pieces_and_the_last_one_without_an_end(way):
    whole = telling.encode({"log_format": "one"}) + telling.encode({"log_format": "two"})
    for at in range(0, len(whole), 5):
        way.listening.take(1, whole[at : at + 5])
    way.listening.take(2, b"Aborted")
    assert way.texts() == ["worker 3: one", "worker 3: two"]
    way.listening.end()
    assert way.texts()[2:] == ["worker 3: Aborted"]


def test_a_line_without_end_is_cut(way, monkeypatch):
    monkeypatch.setattr(telling, "LONGEST_LINE", 100)
    way.listening.take(2, b"x" * 101)
    assert way.texts() == ["worker 3: " + "x" * 101]


def test_a_full_pipe_holds_nothing_up_and_nothing_is_lost(way):
    lines = [f"{number} {'x' * 1000}" for number in range(200)]
    for line in lines:
        way.log.info("{line}", line=line)
    assert way.reactor.writers == [way.teller]
    way.drain()
    assert way.texts() == [f"worker 3: {line}" for line in lines]
    assert way.reactor.writers == []
    way.log.info("more")
    way.drain()
    assert way.texts()[-1] == "worker 3: more"


def test_what_is_too_much_is_lost_and_counted(way, monkeypatch):
    monkeypatch.setattr(telling, "MOST_KEPT", 50_000)
    for number in range(200):
        way.log.info("{number} {more}", number=number, more="x" * 1000)
    way.drain()
    texts = way.texts()
    kept = len(texts) - 1
    assert texts[-1] == f"worker 3: {200 - kept} lines of the log are lost: they came faster than they could be written"
    assert [text.split()[2] for text in texts[:-1]] == [str(number) for number in range(kept)]


def test_the_end_waits_for_what_is_kept(way, monkeypatch):
    for number in range(200):
        way.log.info("{number} {more}", number=number, more="x" * 1000)
    monkeypatch.setattr(telling, "LAST_WAIT", 0.0)
    way.teller.finish()  # nobody reads
    read = way.teller._write

    def read_meanwhile(data: bytes) -> int:
        way.pass_on()
        return read(data)

    monkeypatch.setattr(way.teller, "_write", read_meanwhile)
    way.pass_on()
    way.teller.finish()
    way.pass_on()
    assert len(way.heard) == 200


def test_without_a_supervisor_lines_go_nowhere(way):
    os.close(way.out)
    way.log.info("anybody?")
    way.log.info("nobody")
    assert way.teller._broken
    assert not way.teller._kept
    way.out = os.open(os.devnull, os.O_RDONLY)


def test_the_reactor_may_let_go_of_the_pipe_before_the_last_words(way):
    for number in range(200):
        way.log.info("{number} {more}", number=number, more="x" * 1000)
    way.teller.connectionLost(Failure(ValueError()))
    way.drain()
    assert len(way.heard) == 200


def test_long_texts_are_cut():
    line = json.loads(telling.encode({"log_format": "{x}", "x": "y" * 100_000}))
    assert len(line["message"]) == telling.LONGEST_TEXT
