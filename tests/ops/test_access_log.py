from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import LogEvent, eventAsText

from wsrouter.config.values import Log
from wsrouter.errors import RouterError
from wsrouter.live.registry import Answer, Counts, End, Facts, Kind, Refusal, Registry, Served, Who
from wsrouter.ops.access_log import AccessLog

#: What a peer may send to break a line, to forge one, or to be taken for a format or for a terminal's command.
NASTY = 'a b="c"\nevent=close\r\x1b[31m{0} {line} \\ \x85\u2028\u202e\x00\x7f é \ud800'


class Entry:
    def __init__(self, facts: Facts, counts: Counts) -> None:
        self.number = 7
        self.facts = facts
        self._counts = counts

    def counts(self) -> Counts:
        return self._counts

    def end(self, code: int, reason: str) -> None: ...

    def abort(self) -> None: ...


def session(**more: Any) -> Entry:
    known: dict[str, Any] = {
        "kind": Kind.SESSION,
        "client_ip": "192.0.2.1",
        "client": "192.0.2.1:4711",
        "listener": "main",
        "rule": "chat",
        "pool": "app",
        "backend": "127.0.0.1:2222",
        "opened": 0.0,
    }
    return Entry(Facts(**known | more), Counts(10, 20, 1, 2))


def tunnel() -> Entry:
    facts = Facts(Kind.TUNNEL, "192.0.2.1", "192.0.2.1:4711", "main", "all", "app", "[::1]:80", 0.0, sni="a.example")
    return Entry(facts, Counts(3, 4))


REFUSAL = Refusal(8, "[2001:db8::1]:80", "main", "http", "files", "no route", 404, "example.com", "/x")
ANSWER = Answer(9, "192.0.2.1:4711", "main", "files", "GET", "example.com", "/y", 200, 123, 0.12345)


def told(events: list[LogEvent]) -> list[str]:
    return [eventAsText(event, includeTimestamp=False, includeSystem=False) for event in events]


def written(form: Log, file: Path, *calls: tuple[str, Any]) -> list[str]:
    """The lines of the file behind these calls of the registry, a second and a half after the start."""
    clock = Clock()
    log = AccessLog(clock, form, file)
    log.open()
    clock.advance(1.5)
    for name, argument in calls:
        arguments = argument if isinstance(argument, tuple) else (argument,)
        getattr(log, name)(*arguments)
    log.close()
    text = file.read_bytes().decode("ascii")
    assert text.endswith("\n")
    # By "\n" alone: str.splitlines would hide what else breaks a line for some readers.
    return text[:-1].split("\n")


def without_time(line: str) -> str:
    stamp, _, rest = line.partition(" ")
    assert re.fullmatch(r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", stamp)
    return rest


def test_text_is_one_line_of_fields_for_each_event(tmp_path):
    lines = written(
        Log.TEXT,
        tmp_path / "access.log",
        ("opened", session(host="example.com", path="/ws", subprotocol="chat.v2")),
        ("closed", (session(), End(Who.BACKEND, 1011, "went away"))),
        ("opened", tunnel()),
        ("closed", (tunnel(), End(Who.CLIENT, None, "closed"))),
        ("refused", REFUSAL),
        ("answered", ANSWER),
    )
    base = "connection=7 client=192.0.2.1:4711 listener=main"
    assert [without_time(line) for line in lines] == [
        f"event=open kind=session {base} rule=chat pool=app backend=127.0.0.1:2222"
        " host=example.com path=/ws subprotocol=chat.v2",
        f"event=close kind=session {base} rule=chat pool=app backend=127.0.0.1:2222"
        ' by=backend code=1011 reason="went away" seconds=1.5 bytes_in=10 bytes_out=20 messages_in=1 messages_out=2',
        f"event=open kind=tunnel {base} rule=all pool=app backend=[::1]:80 sni=a.example",
        f"event=close kind=tunnel {base} rule=all pool=app backend=[::1]:80 sni=a.example"
        " by=client reason=closed seconds=1.5 bytes_in=3 bytes_out=4",
        "event=refuse connection=8 client=[2001:db8::1]:80 listener=main stage=http rule=files status=404"
        ' host=example.com path=/x reason="no route"',
        "event=request connection=9 client=192.0.2.1:4711 listener=main rule=files method=GET host=example.com path=/y"
        " status=200 bytes_out=123 seconds=0.123",
    ]


def test_what_frames_were_like_is_told_where_there_is_something_to_tell(tmp_path):
    entry = session()
    entry.counts = lambda: Counts(10, 20, 1, 2, 3, 4, 5, 0, 0.0123456789)
    (line,) = written(Log.TEXT, tmp_path / "access.log", ("closed", (entry, End(Who.CLIENT, 1000, ""))))
    assert line.endswith(" messages_in=1 messages_out=2 largest_in=5 rtt=0.012346")
    entry.counts = lambda: Counts(10, 20, 1, 2, 3, 4, 0, 7, None, 0.5)
    (line,) = written(Log.TEXT, tmp_path / "other.log", ("closed", (entry, End(Who.CLIENT, 1000, ""))))
    assert line.endswith(" messages_in=1 messages_out=2 largest_out=7 backend_rtt=0.5")


def test_what_each_of_several_backends_had_is_told(tmp_path):
    entry = session()
    known = (Served("a:1", 5, 4), Served("b:1", 4, 0, "connection reset by peer"), Served("c:1", 0, 0, "refused"))
    entry.counts = lambda: Counts(10, 20, 9, 4, served=known)
    (line,) = written(Log.TEXT, tmp_path / "access.log", ("closed", (entry, End(Who.CLIENT, 1000, ""))))
    backends, lost = "a:1 5/4, b:1 4/0, c:1 0/0", "b:1 connection reset by peer, c:1 refused"
    assert line.endswith(f' messages_in=9 messages_out=4 backends="{backends}" lost="{lost}"')
    entry.counts = lambda: Counts(10, 20, 9, 4, served=known[:1])
    (line,) = written(Log.TEXT, tmp_path / "other.log", ("closed", (entry, End(Who.CLIENT, 1000, ""))))
    assert line.endswith(' messages_out=4 backends="a:1 5/4"')


def test_json_is_one_object_a_line_with_numbers_as_numbers(tmp_path):
    opened, closed, refused, answered = (
        json.loads(line)
        for line in written(
            Log.JSON,
            tmp_path / "access.log",
            ("opened", session(tried="127.0.0.1:3333 connection refused")),
            ("closed", (session(), End(Who.ROUTER, 1001, ""))),
            ("refused", REFUSAL),
            ("answered", ANSWER),
        )
    )
    assert opened["event"] == "open"
    assert opened["tried"] == "127.0.0.1:3333 connection refused"
    assert (closed["code"], closed["seconds"], closed["bytes_out"], closed["messages_in"]) == (1001, 1.5, 20, 1)
    assert (closed["by"], closed["reason"]) == ("router", "")
    assert (refused["status"], refused["path"], refused["reason"]) == (404, "/x", "no route")
    assert (answered["method"], answered["status"], answered["bytes_out"]) == ("GET", 200, 123)
    assert {line["time"][-6:] for line in (opened, closed, refused, answered)} == {"+00:00"}


def test_what_is_not_known_of_a_refusal_is_left_out(tmp_path):
    [line] = written(Log.TEXT, tmp_path / "log", ("refused", Refusal(1, "unix", "main", "sniff", "", "silence")))
    assert without_time(line) == "event=refuse connection=1 client=unix listener=main stage=sniff reason=silence"


def test_an_empty_value_is_seen_as_empty(tmp_path):
    [line] = written(Log.TEXT, tmp_path / "log", ("closed", (session(), End(Who.CLIENT, 1000, ""))))
    assert ' reason="" ' in line


NASTY_EVENTS = [
    ("opened", session(host=NASTY)),
    ("opened", session(path=NASTY)),
    ("opened", session(subprotocol=NASTY)),
    ("opened", session(sni=NASTY)),
    ("closed", (session(), End(Who.CLIENT, 1000, NASTY))),
    ("refused", Refusal(8, "192.0.2.1:1", "main", "http", "files", NASTY, 404)),
    ("refused", Refusal(8, "192.0.2.1:1", "main", "http", "files", "no route", 404, NASTY, "/x")),
    ("refused", Refusal(8, "192.0.2.1:1", "main", "http", "files", "no route", 404, "example.com", NASTY)),
    ("answered", Answer(9, "192.0.2.1:1", "main", "files", NASTY, "example.com", "/y", 200, 0, 0.0)),
    ("answered", Answer(9, "192.0.2.1:1", "main", "files", "GET", NASTY, "/y", 200, 0, 0.0)),
    ("answered", Answer(9, "192.0.2.1:1", "main", "files", "GET", "example.com", NASTY, 200, 0, 0.0)),
]


@pytest.mark.parametrize("form", list(Log))
@pytest.mark.parametrize("call", NASTY_EVENTS)
def test_what_a_peer_chose_neither_breaks_nor_forges_a_line(tmp_path, form, call):
    [line] = written(form, tmp_path / "access.log", call)
    assert line.isascii()
    assert line.isprintable()
    if form is Log.JSON:
        assert NASTY in json.loads(line).values()
    else:
        quoted = json.dumps(NASTY)
        assert line.count(quoted) == 1
        assert line.replace(quoted, "").count("event=") == 1


@given(value=st.text(max_size=40))
def test_any_value_stands_in_text_as_one_word_or_in_quotes(tmp_path_factory, value):
    entry = session(path=value or "/")
    [line] = written(Log.TEXT, tmp_path_factory.mktemp("log") / "access.log", ("opened", entry))
    field = line[line.index(" path=") + len(" path=") :]
    if field.startswith('"'):
        assert json.loads(field) == entry.facts.path
    else:
        assert field == entry.facts.path
        assert not set(field) & set(' "=\\')


@pytest.mark.parametrize("form", list(Log))
def test_without_a_file_the_lines_go_to_the_log_stream_as_fields_not_as_formats(logged, form):
    log = AccessLog(Clock(), form, None)
    log.open()
    log.opened(session(path="/{0}/{line}/%s"))
    log.close()
    [event] = logged
    assert event["log_namespace"] == "wsrouter.access"
    assert "/{0}/{line}/%s" in told(logged)[0]
    if form is Log.JSON:
        assert json.loads(told(logged)[0])["event"] == "open"


def test_a_file_is_appended_to_and_a_line_is_there_at_once(tmp_path):
    file = tmp_path / "access.log"
    file.write_text("an old line\n")
    log = AccessLog(Clock(), Log.TEXT, file)
    log.open()
    log.refused(REFUSAL)
    lines = file.read_text().splitlines()
    log.close()
    assert lines[0] == "an old line"
    assert lines[1].startswith("time=")
    assert len(lines) == 2


def test_closing_twice_or_unopened_is_harmless(tmp_path):
    log = AccessLog(Clock(), Log.TEXT, tmp_path / "access.log")
    log.close()
    log.open()
    log.close()
    log.close()
    assert (tmp_path / "access.log").read_bytes() == b""


@pytest.mark.parametrize(
    ("name", "why"),
    [("gone/access.log", "no such file or directory"), (".", "is a directory"), ("pipe", "no such device or address")],
)
def test_a_file_that_cannot_be_opened_is_told_in_one_line(tmp_path, name, why):
    os.mkfifo(tmp_path / "pipe")  # and nobody reads it
    with pytest.raises(RouterError) as caught:
        AccessLog(Clock(), Log.TEXT, tmp_path / name).open()
    assert str(caught.value) == f"access log {tmp_path / name}: cannot be opened: {why}"


def test_a_full_disk_is_told_once_and_harms_nobody(logged):
    log = AccessLog(Clock(), Log.TEXT, Path("/dev/full"))
    log.open()
    registry = Registry(observers=[log])
    for _ in range(3):
        registry.refuse(REFUSAL)
    log.close()
    assert told(logged) == ["the access log /dev/full cannot be written: no space left on device; lines are lost"]


def test_a_pipe_whose_reader_sleeps_loses_lines_and_holds_nobody_up(tmp_path, logged):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog(Clock(), Log.TEXT, pipe)
    log.open()
    # Longer than what a pipe takes whole or not at all (pipe(7), PIPE_BUF).
    long = replace(REFUSAL, path="/" + "x" * 5000)
    for _ in range(100):
        log.refused(long)
    first = os.read(reader, 1 << 20)
    log.refused(REFUSAL)
    log.refused(REFUSAL)
    rest = os.read(reader, 1 << 20)
    log.close()
    os.close(reader)
    assert told(logged) == [
        f"the access log {pipe} cannot be written: not all of a line was taken; lines are lost",
        f"the access log {pipe} is written again",
    ]
    # What was cut off does not run into the next line.
    lines = (first + rest).decode().splitlines()
    assert all(line.startswith("time=") for line in lines)
    assert [line.endswith('reason="no route"') for line in lines[-3:]] == [False, True, True]


def test_a_refusal_that_was_told_of_lately_has_no_line_of_its_own(tmp_path):
    log = AccessLog(Clock(), Log.TEXT, tmp_path / "access.log")
    log.open()
    log.refused(REFUSAL)
    log.refused(replace(REFUSAL, repeated=True))
    log.close()
    assert len((tmp_path / "access.log").read_text().splitlines()) == 1


# Reopening.


def test_reopened_it_goes_on_in_the_new_file(tmp_path):
    log = AccessLog(Clock(), Log.TEXT, tmp_path / "log")
    log.open()
    log.refused(REFUSAL)
    (tmp_path / "log").rename(tmp_path / "log.1")
    log.reopen(tmp_path / "log")
    log.answered(ANSWER)
    log.reopen(None)
    assert "event=refuse" in (tmp_path / "log.1").read_text()
    assert "event=request" in (tmp_path / "log").read_text()
    log.close()


def test_a_file_that_cannot_be_opened_leaves_the_old_one(tmp_path):
    log = AccessLog(Clock(), Log.TEXT, tmp_path / "log")
    log.open()
    with pytest.raises(RouterError, match="nowhere/log: cannot be opened: no such file"):
        log.reopen(tmp_path / "nowhere" / "log")
    log.answered(ANSWER)
    log.close()
    assert "event=request" in (tmp_path / "log").read_text()
