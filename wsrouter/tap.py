"""What ``twistd wsrouter`` takes on its command line, and the service that it runs."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from twisted.application.service import IService
from twisted.logger import ILogObserver
from twisted.python import usage
from twisted.python.components import Componentized

from wsrouter import __version__
from wsrouter.config.memory import FileMemory
from wsrouter.config.reader import read
from wsrouter.config.values import Config, Log
from wsrouter.errors import ConfigError
from wsrouter.ops.json_log import observer
from wsrouter.service import RouterService, workers_of
from wsrouter.workers.supervisor import SupervisorService


class Options(usage.Options):
    """The command line. ``config`` holds the frozen configuration once it was parsed."""

    synopsis = "[options]"
    longdesc = (
        "Routes WebSockets (and TLS, HTTP and other TCP) from one port to pools of backends, as an INI file says. "
        "SIGHUP reads the file again. SIGTERM ends live sessions politely; a second one ends at once. "
        "Try: twistd -n wsrouter --config etc/router.ini"
    )
    optParameters = [
        ["config", "c", None, "The configuration file (INI). etc/router.ini is one that explains itself."],
    ]
    optFlags = [
        ["check", None, "Read the configuration and every file it names, say what is wrong, and exit."],
    ]
    compData = usage.Completions(  # type: ignore[no-untyped-call]
        optActions={"config": usage.CompleteFiles("*.ini")}  # type: ignore[no-untyped-call]
    )

    configuration: Config
    #: The files that it names.
    memory: FileMemory

    def opt_version(self) -> NoReturn:
        """Show the version of wsrouter and exit."""
        print(f"wsrouter {__version__}")
        sys.exit(0)

    def postOptions(self) -> None:
        """Read the configuration; faults go to standard error, one line each, and end the program with status 1."""
        if self["config"] is None:
            _leave(["wsrouter: --config FILE is needed (etc/router.ini in the project is a start)"])
        try:
            self.memory = FileMemory()
            with self.memory.reading():
                self.configuration = read(Path(self["config"]))
            if self["check"]:
                service = RouterService(_reactor(), self.configuration, self.memory)
                service.prepare()
                for warning in service.warnings:
                    print(f"{self['config']}: warning: {warning}", file=sys.stderr)
        except ConfigError as error:
            _leave(error.faults)
        if self["check"]:
            print(f"{self['config']}: the configuration is good")
            sys.exit(0)


def makeService(options: Options) -> IService:
    """Build the service; nothing is bound yet. Called by twistd, before it daemonises."""
    if not sys.platform.startswith("linux"):
        _leave([f"wsrouter: needs Linux (epoll); this is {sys.platform}"])
    reactor = _reactor()
    config = options.configuration
    kind = RouterService if workers_of(config) == 1 else SupervisorService
    service = kind(reactor, config, options.memory)
    try:
        service.prepare()
    except ConfigError as error:
        _leave(error.faults)
    reactor.callWhenRunning(service.handle_signals)
    reactor.callWhenRunning(service.settle)
    if config.router.log is Log.JSON:
        service.on_parent = partial(_log_as_json, _log_file(options.parent))
    return service


def _log_as_json(file: Path | None, parent: Any) -> None:
    """Make the whole log stream JSON, for ``log = json``. ``--logger`` still has the last word."""
    # twistd asks the application for its observer once the service has its parent.
    if isinstance(parent, Componentized):
        stream = None if file is None else file.open("a", encoding="utf-8")
        parent.setComponent(ILogObserver, observer(stream))  # type: ignore[no-untyped-call]


def _log_file(twistd: usage.Options | None) -> Path | None:
    """Where twistd logs to; None for standard output."""
    if twistd is None:
        return None
    name = twistd.get("logfile")
    if name == "-" or (not name and twistd.get("nodaemon")):
        return None
    return Path(name or "twistd.log").absolute()


def _reactor() -> Any:
    from twisted.internet import reactor  # noqa: TID251

    return reactor


def _leave(lines: list[str]) -> NoReturn:
    for line in lines:
        print(line, file=sys.stderr)
    sys.exit(1)
