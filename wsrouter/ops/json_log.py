"""The whole log as JSON, one object a line: ``twistd --logger=wsrouter.ops.json_log.observer -n wsrouter ...``.

Lines of the access log are objects of their own fields; every other line has ``level``, ``system`` and ``message``.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TextIO, cast

from twisted.logger import ILogObserver, LogEvent, formatEvent
from zope.interface import provider


def observer(stream: TextIO | None = None) -> ILogObserver:
    """An observer that writes to ``stream``, standard output unless given."""
    out = sys.stdout if stream is None else stream

    @provider(ILogObserver)
    def write(event: LogEvent) -> None:
        out.write(_as_json(event) + "\n")
        out.flush()

    return cast(ILogObserver, write)


def described(event: LogEvent) -> dict[str, str]:
    """What an event says: ``level``, ``system`` and ``message``, and the ``traceback`` where it has one."""
    level = event.get("log_level")
    told = {
        "level": "info" if level is None else level.name,
        "system": event.get("log_namespace", "-"),
        "message": formatEvent(event),
    }
    failure = event.get("log_failure")
    if failure is not None:
        told["traceback"] = failure.getTraceback()
    elif "traceback" in event:
        told["traceback"] = event["traceback"]  # of another process
    return told


def _as_json(event: LogEvent) -> str:
    line: dict[str, object] = {"time": _time(event)}
    fields = event.get("fields")
    if isinstance(fields, dict):
        line |= fields
    else:
        line |= described(event)
        if "worker" in event:
            line["worker"] = event["worker"]
    return json.dumps(line, separators=(",", ":"), default=str)


def _time(event: LogEvent) -> str:
    return datetime.fromtimestamp(event.get("log_time", 0.0), UTC).isoformat(timespec="milliseconds")
