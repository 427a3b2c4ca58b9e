"""The whole log as JSON."""

import io
import json

import pytest
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from wsrouter.ops.json_log import observer


@pytest.fixture
def stream():
    return io.StringIO()


@pytest.fixture
def log(stream):
    return Logger(namespace="wsrouter.test", observer=observer(stream))


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_time_level_system_and_message(log, stream):
    log.warn("listener {name}: accepting pauses", name="main")
    (line,) = lines(stream)
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "warn", "system": "wsrouter.test", "message": "listener main: accepting pauses"}


def test_a_line_of_the_access_log_is_its_fields(log, stream):
    log.info("{line}", line="event=open", fields={"event": "open", "connection": 7})
    (line,) = lines(stream)
    del line["time"]
    assert line == {"event": "open", "connection": 7}


def test_what_a_peer_chose_stays_within_its_line(log, stream):
    log.emit(LogLevel.info, "{path}", path='/a"\nb\x1b{c}')
    (line,) = lines(stream)
    assert line["message"] == '/a"\nb\x1b{c}'


def test_a_failure_comes_with_its_traceback(log, stream):
    log.failure("it broke", Failure(ZeroDivisionError("no")))
    (line,) = lines(stream)
    assert line["level"] == "critical"
    assert "ZeroDivisionError: no" in line["traceback"]


def test_standard_output_is_the_default(capsys):
    Logger(namespace="x", observer=observer()).info("hello")
    assert json.loads(capsys.readouterr().out)["message"] == "hello"
