"""The way of a worker's log to the supervisor's: one JSON object a line, on the worker's standard output.

The supervisor says it again as its own: so there is one log, in one form, and twistd's options for it hold for all.
What a worker writes that is no such line, as a crashing interpreter does, is logged as it is.

A worker never waits for the supervisor: what the pipe does not take is kept up to a limit, and then lost, and counted.
"""

from __future__ import annotations

import json
import os
import select
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import ILoggingContext, IWriteDescriptor
from twisted.logger import (
    ILogObserver,
    LogEvent,
    LogLevel,
    globalLogPublisher,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from wsrouter.ops.json_log import described

#: The longest message and the longest traceback that are passed on, in characters.
LONGEST_TEXT = 64_000
#: How much is kept while the pipe is full, in bytes.
MOST_KEPT = 1 << 20
#: How much of a line the supervisor waits for, in bytes: messages are escaped.
LONGEST_LINE = 1 << 20
#: How long the end of a worker may wait for the pipe, in seconds.
LAST_WAIT = 1.0


@implementer(ILogObserver, IWriteDescriptor, ILoggingContext)
class Teller:
    """Observes a worker's log and writes it to ``descriptor``, a pipe. ``reactor`` is set when there is one."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._kept: deque[bytes] = deque()
        self._size = 0
        self._lost = 0
        self._broken = False
        self.reactor: Any = None

    def __call__(self, event: LogEvent) -> None:
        """Tell of ``event``."""
        line = encode(event)
        if self._kept:
            self._keep(line)
            return
        self._flush(line)

    def _keep(self, line: bytes) -> None:
        if self._size + len(line) > MOST_KEPT:
            self._lost += 1
            return
        if not self._kept and self.reactor is not None:
            self.reactor.addWriter(self)
        self._kept.append(line)
        self._size += len(line)

    def _flush(self, line: bytes) -> None:
        """Write a line, or keep the rest of it."""
        rest = line[self._write(line) :]
        if rest:
            self._keep(rest)

    def _write(self, data: bytes) -> int:
        if self._broken:
            return len(data)
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            return 0
        except OSError:
            # The supervisor is gone; the control channel says so as well, and that ends this process.
            self._broken = True
            return len(data)

    def doWrite(self) -> None:
        """The pipe takes more."""
        while self._kept:
            line = self._kept.popleft()
            self._size -= len(line)
            written = self._write(line)
            if written < len(line):
                self._kept.appendleft(line[written:])
                self._size += len(line) - written
                return
        if self.reactor is not None:
            self.reactor.removeWriter(self)
        lost, self._lost = self._lost, 0
        if lost:
            self._flush(_encode_lost(lost))

    def finish(self) -> None:
        """The process ends: write what is kept, or most of it."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        self.reactor = None
        while self._kept and poll.poll(1000 * LAST_WAIT):
            self.doWrite()

    def fileno(self) -> int:
        """The pipe."""
        return self._descriptor

    def logPrefix(self) -> str:
        """How the reactor names this."""
        return "log"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor lets go of it, as at the end of all; a pipe that is broken shows when it is written to."""


def encode(event: LogEvent) -> bytes:
    """A line for an event of the log."""
    line: dict[str, Any] = {"time": event.get("log_time", 0.0), **described(event)}
    line["message"] = line["message"][:LONGEST_TEXT]
    if "traceback" in line:
        line["traceback"] = line["traceback"][-LONGEST_TEXT:]
    fields = event.get("fields")
    if isinstance(fields, dict):
        line["fields"] = fields
    return json.dumps(line, separators=(",", ":"), default=str).encode("ascii") + b"\n"


def _encode_lost(lines: int) -> bytes:
    return encode(
        {
            "log_level": LogLevel.warn,
            "log_namespace": __name__,
            "log_format": "{lines:,} lines of the log are lost: they came faster than they could be written",
            "lines": lines,
        }
    )


class Listening:
    """The supervisor's side for one worker: takes the bytes of its pipes and logs them as worker ``number``'s."""

    def __init__(self, number: int, publish: Callable[[LogEvent], None] = globalLogPublisher) -> None:
        self._number = number
        self._publish = publish
        #: By pipe: the beginning of a line.
        self._begun: dict[int, bytes] = {}

    def take(self, pipe: int, data: bytes) -> None:
        """Bytes have come from the worker's descriptor ``pipe``."""
        *lines, rest = (self._begun.get(pipe, b"") + data).split(b"\n")
        if len(rest) > LONGEST_LINE:
            lines.append(rest)
            rest = b""
        self._begun[pipe] = rest
        for line in lines:
            self._say(line)

    def end(self) -> None:
        """Nothing more will come."""
        for pipe, rest in self._begun.items():
            if rest:
                self.take(pipe, b"\n")

    def _say(self, line: bytes) -> None:
        try:
            told = json.loads(line)
            event = self._event(told)
        except Exception:  # whatever it is, it is no line of a teller
            event = self._event({"level": "warn", "system": __name__, "message": line.decode("utf-8", "replace")})
        self._publish(event)

    def _event(self, told: dict[str, Any]) -> LogEvent:
        event: LogEvent = {
            "log_level": LogLevel.levelWithName(told["level"]),
            "log_namespace": told["system"],
            "log_format": "worker {worker}: {message}",
            "message": told["message"],
            "worker": self._number,
        }
        if told.get("time"):
            event["log_time"] = float(told["time"])
        if "fields" in told:
            # A line of the access log, which names the worker itself.
            event["log_format"] = "{message}"
            event["fields"] = told["fields"]
        if "traceback" in told:
            event["log_format"] += "\n{traceback}"
            event["traceback"] = told["traceback"]
        return event
