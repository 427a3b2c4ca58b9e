"""Watches over the backends of one pool: probes them, ends ejections, and logs what changes.

Each backend has rounds of its own: a probe, then a pause up to the next one, ``check_interval`` after the last began,
give or take a tenth. So there is never more than one probe at a backend, and the probes of many
backends, and of many routers that were started together, do not fall into step.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from wsrouter.backends.dial import Address
from wsrouter.backends.discovery import Discovery, literal_address
from wsrouter.backends.preface import proxy_preface
from wsrouter.backends.probes import probe
from wsrouter.backends.tls import PoolTls
from wsrouter.config.values import Backend, Check, Pool
from wsrouter.errors import DialError
from wsrouter.policy.health import Change, State
from wsrouter.policy.health_table import HealthTable
from wsrouter.policy.members import Member
from wsrouter.relay.loop import Relay

#: How far a pause may be from ``check_interval``, as a part of it, either way.
JITTER = 0.1

_log = Logger()


class Watched(Protocol):
    """What the checker needs of a pool."""

    relay: Relay
    config: Pool
    discovery: Discovery
    tls: PoolTls


class HealthChecker:
    """Keeps the ``table`` of one pool true, from ``start`` to ``stop``; a pool without a check needs one, too.

    ``chance`` gives numbers from 0 to 1.
    """

    def __init__(
        self,
        clock: IReactorTime,
        pool: Watched,
        table: HealthTable,
        log: Logger = _log,
        chance: Callable[[], float] = random.random,
        probes: bool = True,
    ) -> None:
        self.clock = clock
        self.pool = pool
        self.table = table
        self.log = log
        self.chance = chance
        #: Whether the probes are made here; else somebody tells the table what they have found.
        self._probes = probes
        #: Hears what every probe has found, when the table knows it.
        self.found: Callable[[Member, float | None, str], None] | None = None
        self._check = pool.config.check
        self._targets = self._all_targets()
        self._rounds: dict[Member, _Rounds] = {}
        self._running = False
        self._expiry: IDelayedCall | None = None
        table.observe(self._changed)

    def start(self) -> None:
        """Begin; the first probes are spread over one interval."""
        self._running = True
        self._begin_rounds()
        self._await_expiry()

    def stop(self) -> None:
        """Probe no more. A probe that runs is broken off and tells nothing."""
        self._running = False
        self._end_rounds()
        self._await_expiry()

    def reconfigure(self) -> None:
        """The pool has another configuration, and the table follows it already.

        A backend that stays keeps its rounds if the check is the same.
        """
        self._targets = self._all_targets()
        check, self._check = self._check, self.pool.config.check
        self._end_rounds(self._targets if self._check == check else ())
        for member, rounds in self._rounds.items():
            rounds.target = self._targets[member]
        self._begin_rounds()
        self._await_expiry()

    def _all_targets(self) -> dict[Member, _Target]:
        """All that is to be probed."""
        check = self.pool.config.check
        if check is None or not self._probes:
            return {}
        return {member: _Target(self.pool, member.backend, check) for member in self.table}

    def tell(self, member: Member, rtt: float | None, reason: str) -> None:
        """A probe of ``member`` took ``rtt`` seconds; or None, and it failed for ``reason``."""
        now = self.clock.seconds()
        if rtt is None:
            self.table.failed(member, now, reason)
        else:
            self.table.passed(member, now, rtt)
        if self.found is not None:
            self.found(member, rtt, reason)

    def _begin_rounds(self) -> None:
        if self._running:
            for member, target in self._targets.items():
                if member not in self._rounds:
                    self._rounds[member] = _Rounds(self, member, target)

    def _end_rounds(self, staying: Collection[Member] = ()) -> None:
        for member in [member for member in self._rounds if member not in staying]:
            self._rounds.pop(member).end()

    def _await_expiry(self) -> None:
        """Ejections end by time where there is no check."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        at = self.table.next_due() if self._running else None
        if at is not None:
            self._expiry = self.clock.callLater(max(0.0, at - self.clock.seconds()), self._expire)

    def _expire(self) -> None:
        self._expiry = None
        self.table.due(self.clock.seconds())
        self._await_expiry()

    def _changed(self, member: Member, change: Change) -> None:
        tell = self.log.info if change.new is State.UP else self.log.warn
        tell(
            "pool {pool}: backend {backend} is {state}: {reason}",
            pool=self.pool.config.name,
            backend=change.label,
            state=change.new.value,
            reason=change.reason,
        )
        self._await_expiry()


class _Target:
    """Where and how one backend is probed."""

    def __init__(self, pool: Watched, backend: Backend, check: Check) -> None:
        self._tls = pool.tls.checks.get(backend)
        if check.port is not None and backend.unix is None:
            backend = replace(backend, port=check.port)
        self.check = check
        self._pool = pool
        self._backend = backend
        self._literal = literal_address(backend)
        #: A socket's path is no host.
        self._host = check.host or (backend.label if backend.unix is None else "localhost")
        # A backend that wants a PROXY header wants it of probes as well; this one speaks for nobody.
        self._preface = b"" if pool.config.send_proxy is None else proxy_preface(pool.config.send_proxy, None, None)

    def probe(self) -> Deferred[float]:
        """Probe it now."""
        return probe(self._pool.relay, self.check, self._addresses(), self._host, self._tls, self._preface)

    def _addresses(self) -> Sequence[Address]:
        return self._pool.discovery.addresses(self._backend) if self._literal is None else (self._literal,)


class _Rounds:
    """Probes one backend again and again."""

    def __init__(self, checker: HealthChecker, member: Member, target: _Target) -> None:
        self.target = target
        self._checker = checker
        self._member = member
        self._began = 0.0
        self._probe: Deferred[float] | None = None
        self._call: IDelayedCall | None = None
        self._call_later(target.check.interval * checker.chance())

    def end(self) -> None:
        """No round more, nor the rest of this one."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        running, self._probe = self._probe, None
        if running is not None:
            running.cancel()

    def _call_later(self, seconds: float) -> None:
        self._call = self._checker.clock.callLater(seconds, self._begin)

    def _begin(self) -> None:
        self._call = None
        self._began = self._checker.clock.seconds()
        health = self._checker.table.get(self._member)
        if health is None or health.state is State.OFF:
            self._pause()  # the operator knows that nobody is there
            return
        self._probe = running = maybeDeferred(self.target.probe)
        running.addCallbacks(self._passed, self._failed)
        running.addErrback(self._untold)

    def _pause(self) -> None:
        self._probe = None
        checker = self._checker
        pause = self.target.check.interval * (1 + JITTER * (2 * checker.chance() - 1))
        self._call_later(max(0.0, self._began + pause - checker.clock.seconds()))

    def _passed(self, rtt: float) -> None:
        self._pause()
        self._checker.tell(self._member, rtt, "")

    def _failed(self, failure: Failure) -> None:
        if isinstance(failure.value, CancelledError):
            return
        self._pause()
        if isinstance(failure.value, DialError):
            reason = failure.value.reason
        else:
            self._checker.log.failure(
                "The check of {backend} failed in the router itself", failure, backend=self._member.backend.label
            )
            reason = "internal error"
        self._checker.tell(self._member, None, reason)

    def _untold(self, failure: Failure) -> None:
        self._checker.log.failure("What a check has found could not be told", failure)
