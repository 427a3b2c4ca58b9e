"""A reload: reads the configuration again and puts it in force without cutting anybody.

First everything is read and every fault is gathered, then new names are looked up, then new ports are bound. Until then
nothing of what runs was touched, and any fault leaves it as it is. Then all is swapped in one step.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from wsrouter.assembly import Assembly, Drawing, backends_of
from wsrouter.config.differences import count, differences, same
from wsrouter.config.reader import read
from wsrouter.config.values import Config
from wsrouter.errors import ConfigError
from wsrouter.listener.listener import Listener
from wsrouter.ops.notify import Notifier
from wsrouter.ports import Ports

#: How long the first look-ups of backends' names may hold up the start or a reload, in seconds.
FIRST_LOOKUPS = 3.0

_log = Logger()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a configuration has changed when it was put in force."""

    #: In words, for the log.
    changed: str = ""
    #: Listeners that are new.
    opened: Sequence[Listener] = ()
    #: One line for each thing that is not as the operator may expect.
    warnings: Sequence[str] = ()
    #: Sessions and tunnels that live on.
    live: int = 0


class Reloader:
    """Reloads, one at a time; what is asked for during a reload is one more behind it.

    ``installed`` is called when a configuration was put in force, with it and the listeners that were opened; it
    does what is left to be done, and returns what there is to warn of, and how many live on.
    """

    def __init__(
        self,
        parts: Assembly,
        notifier: Notifier,
        installed: Callable[[Config, Sequence[Listener]], Coroutine[Any, Any, Outcome]],
        source: Callable[[Path], Config] = read,
    ) -> None:
        self._parts = parts
        self._notifier = notifier
        self._installed = installed
        self._source = source
        self._busy = False
        self._running: Deferred[None] | None = None
        self._again = False
        self._stopped = False

    def request(self) -> None:
        """Reload now, or once more when the reload under way is over."""
        if self._stopped:
            _log.info("no reload: the router is shutting down")
        elif self._busy:
            self._again = True
        else:
            self._begin()

    def stop(self) -> None:
        """Reload no more: what is under way is given up, and leaves all as it was."""
        self._stopped = True
        if self._running is not None:
            self._running.cancel()

    @property
    def busy(self) -> bool:
        """Whether a reload is under way."""
        return self._busy

    def _begin(self) -> None:
        self._busy = True
        self._running = running = Deferred.fromCoroutine(self._reload())
        running.addErrback(self._failed)
        running.addCallback(self._ended)

    def _failed(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):
            _log.failure("The reload failed in the router itself", failure)

    def _ended(self, _: None) -> None:
        self._busy, self._running = False, None
        if self._again and not self._stopped:
            self._again = False
            self._begin()

    async def _reload(self) -> None:
        self._notifier.reloading()
        status = "the configuration on disk is refused; the log has its faults"
        try:
            outcome = await self.change()
            status = "serving"
        except ConfigError as error:
            _log.error("reload refused, the old configuration stays in force:")
            for fault in error.faults:
                _log.error("{fault}", fault=fault)
        else:
            for warning in outcome.warnings:
                _log.warn("{warning}", warning=warning)
            live = count(outcome.live, "session or tunnel lives", "sessions and tunnels live")
            _log.info("reloaded: {changed}; {live} on", changed=outcome.changed, live=live)
        finally:
            if not self._stopped:
                self._notifier.ready(status)

    async def change(self) -> Outcome:
        """Read the configuration and put it in force; returns what that has changed.

        Raises ConfigError: all stays as it was. Only one may run at a time.
        """
        parts = self._parts
        try:
            drawing = self._draw()
            try:
                await self._look_up(drawing.config)
                if self._stopped:
                    raise CancelledError
                outcome = self._install(drawing)
            except BaseException:
                parts.discard(drawing)
                raise
        finally:
            # Names that were looked up for nothing are forgotten.
            parts.discovery.reconfigure(backends_of(parts.config))
        more = await self._installed(parts.config, outcome.opened)
        return replace(outcome, warnings=(*outcome.warnings, *more.warnings), live=more.live)

    def _draw(self) -> Drawing:
        parts = self._parts
        parts.memory.begin()
        with parts.memory.reading():
            config = self._source(parts.config.file)
        return parts.draw(config)

    async def _look_up(self, config: Config) -> None:
        """Look up the names that are new, for FIRST_LOOKUPS at most: no session is refused because one is not known."""
        looked_up = self._parts.discovery.add(backends_of(config))
        if looked_up.called:
            return
        done: Deferred[None] = Deferred(lambda _: patience.cancel())
        patience = self._parts.reactor.callLater(FIRST_LOOKUPS, done.callback, None)

        def here(_: None) -> None:
            if patience.active():
                patience.cancel()
                done.callback(None)

        looked_up.addCallback(here)
        await done

    def _install(self, drawing: Drawing) -> Outcome:
        parts = self._parts
        old, new = parts.config, drawing.config
        restart = [] if old.router.log is new.router.log else ["[router] log: another form needs a restart"]
        drawing = replace(drawing, config=replace(new, router=replace(new.router, log=old.router.log)))
        restart += _kept_certificates(parts, new)
        echoes = parts.open_echoes(new, drawing.demo)
        parts.part()
        try:
            ports = parts.ports.open(
                parts.listeners, new.listeners, lambda config: parts.make_listener(config, drawing)
            )
        except BaseException:
            for echo in echoes.values():
                echo.retire()
            raise
        # From here on nothing fails.
        changed = [*_listeners(ports, old), *differences(old, drawing.config)]
        files = len(parts.memory.changed())
        if files:
            changed.append(f"{count(files, 'file')} changed")
        parts.install(drawing, ports, echoes)
        denied = [
            f"{path}: cannot be read (permission denied): what it was when it could be stays in force"
            for path in parts.memory.denied
        ]
        warnings = (*drawing.warnings, *ports.warnings, *denied, *restart)
        return Outcome("; ".join(changed) or "nothing has changed", ports.opened, warnings)


def _listeners(ports: Ports, old: Config) -> list[str]:
    before = {listener.name: listener for listener in old.listeners}
    fresh = set(ports.opened)
    counts = {
        "opened": len(ports.opened),
        "closed": len(ports.closed),
        "changed": sum(
            listener not in fresh and not (wanted.name in before and same(before[wanted.name], wanted))
            for wanted, listener in ports.taken
        ),
    }
    return [f"{count(number, 'listener')} {what}" for what, number in counts.items() if number]


def _kept_certificates(parts: Assembly, new: Config) -> list[str]:
    before = {port: echo.demo_certificate for echo in parts.config.echoes for port in echo.ports}
    return [
        f"[echo {echo.name}] port {port}: another certificate needs a restart"
        for echo in new.echoes
        for port in echo.ports
        if port in before and before[port] != echo.demo_certificate
    ]
