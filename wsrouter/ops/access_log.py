"""The access log: a line when a session or tunnel opens, one when it ends, one for each plain request or refusal.

As text the fields are ``name=value``, with quotes around what holds blanks; as JSON every line is one object.
Whatever a peer chose (path, host, close reason) is escaped: it can neither break a line nor forge one.
"""

from __future__ import annotations

import io
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from wsrouter.config.values import Log
from wsrouter.errors import RouterError, words_of
from wsrouter.live.registry import Answer, End, Entry, Facts, Refusal

_log = Logger(namespace="wsrouter.access")

#: What a line holds: strings, numbers, nothing deeper.
Line = dict[str, str | int | float | None]

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~:/[]@,+*%?&!$;")


class AccessLog:
    """Observes the registry and writes to a file, or to the log stream for ``None``.

    ``worker`` is named in each line, where there are several: the numbers of connections are each one's own.
    """

    def __init__(self, clock: IReactorTime, form: Log, file: Path | None, worker: int | None = None) -> None:
        self._clock = clock
        self._format = _as_json if form is Log.JSON else _as_text
        self._file = file
        self._worker = worker
        self._stream: io.FileIO | None = None
        #: The last line could not be written, or not whole.
        self._failing = False
        self._torn = False

    def open(self) -> None:
        """Open the file, to append to it. Raises RouterError with a reason in one line."""
        self.reopen(self._file)

    def reopen(self, file: Path | None) -> None:
        """Write to ``file`` from now on, opened anew: the old one may have been moved away.

        Raises RouterError with a reason in one line, and goes on as before, when that cannot be opened.
        """
        stream = None
        if file is not None:
            try:
                # Unbuffered: a line is whole in the file at once, so that one can follow it.
                stream = io.FileIO(file, "ab", opener=_open_at_once)
            except OSError as error:
                raise RouterError(f"access log {file}: cannot be opened: {words_of(error)}") from None
        self.close()
        self._file, self._stream = file, stream
        self._failing = self._torn = False

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def opened(self, entry: Entry) -> None:
        """A session or tunnel lives."""
        self._write(_opening("open", entry.number, entry.facts))

    def closed(self, entry: Entry, end: End) -> None:
        """It has ended."""
        counts = entry.counts()
        line = _opening("close", entry.number, entry.facts)
        line["by"] = end.who.value
        if end.code is not None:
            line["code"] = end.code
        line["reason"] = end.reason
        line["seconds"] = round(self._clock.seconds() - entry.facts.opened, 3)
        line["bytes_in"] = counts.bytes_in
        line["bytes_out"] = counts.bytes_out
        if counts.messages_in is not None:
            line["messages_in"] = counts.messages_in
            line["messages_out"] = counts.messages_out
        for name in ("largest_in", "largest_out"):
            if getattr(counts, name):
                line[name] = getattr(counts, name)
        for name in ("rtt", "backend_rtt"):
            seconds = getattr(counts, name)
            if seconds is not None:
                line[name] = round(seconds, 6)
        if counts.served:
            line["backends"] = ", ".join(
                [f"{one.backend} {one.messages_in}/{one.messages_out}" for one in counts.served]
            )
            lost = ", ".join([f"{one.backend} {one.lost}" for one in counts.served if one.lost])
            if lost:
                line["lost"] = lost
        self._write(line)

    def refused(self, refusal: Refusal) -> None:
        """Somebody was turned away."""
        if refusal.repeated:
            return
        line: Line = {
            "event": "refuse",
            "connection": refusal.number,
            "client": refusal.client,
            "listener": refusal.listener,
            "stage": refusal.stage,
        }
        if refusal.rule:
            line["rule"] = refusal.rule
        if refusal.status is not None:
            line["status"] = refusal.status
        if refusal.host:
            line["host"] = refusal.host
        if refusal.path:
            line["path"] = refusal.path
        line["reason"] = refusal.reason
        self._write(line)

    def answered(self, answer: Answer) -> None:
        """A plain request was answered."""
        self._write(
            {
                "event": "request",
                "connection": answer.number,
                "client": answer.client,
                "listener": answer.listener,
                "rule": answer.rule,
                "method": answer.method,
                "host": answer.host,
                "path": answer.path,
                "status": answer.status,
                "bytes_out": answer.bytes_out,
                "seconds": round(answer.seconds, 3),
            }
        )

    def _write(self, line: Line) -> None:
        if self._worker is not None:
            line["worker"] = self._worker
        if self._stream is None:
            _log.info("{line}", line=self._format(line), fields=line)
            return
        stamp: Line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")}
        self._append(self._stream, self._format(stamp | line).encode("ascii") + b"\n")

    def _append(self, stream: io.FileIO, data: bytes) -> None:
        if self._torn:
            data = b"\n" + data
        why = "not all of a line was taken"
        try:
            written = stream.write(data) or 0
        except OSError as error:
            written, why = 0, words_of(error)
        if written:
            self._torn = written < len(data)
        failing = written < len(data)
        # Told once, not for every line: there are as many as requests.
        if failing and not self._failing:
            _log.error("the access log {file} cannot be written: {why}; lines are lost", file=self._file, why=why)
        elif self._failing and not failing:
            _log.info("the access log {file} is written again", file=self._file)
        self._failing = failing


def _open_at_once(path: str, flags: int) -> int:
    # A pipe that nobody reads must hold up neither the start nor, later, the router.
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


def _opening(event: str, number: int, facts: Facts) -> Line:
    line: Line = {
        "event": event,
        "kind": facts.kind.value,
        "connection": number,
        "client": facts.client,
        "listener": facts.listener,
        "rule": facts.rule,
        "pool": facts.pool,
        "backend": facts.backend,
    }
    for name in ("host", "path", "subprotocol", "sni", "tried"):
        value = getattr(facts, name)
        if value:
            line[name] = value
    return line


def _as_json(line: Line) -> str:
    return json.dumps(line, ensure_ascii=True, separators=(",", ":"))


def _as_text(line: Line) -> str:
    return " ".join(f"{name}={_quoted(value)}" for name, value in line.items())


def _quoted(value: str | float | None) -> str:
    text = str(value)
    if text and _PLAIN.issuperset(text):
        return text
    return json.dumps(text, ensure_ascii=True)
