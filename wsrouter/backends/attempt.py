"""The attempt to reach one backend of a pool for one client.

It walks from backend to backend, never to the same one twice, until one answers, or the pool's ``retries`` or its
``retry_time`` are used up. The layer above may send it on (``retry``) when a backend that accepted the connection turns
out to be no good before anything of it has reached the client. Where every backend is full it waits in the pool's line.
"""

from __future__ import annotations

from collections.abc import Callable

from wsrouter.backends.dial import Dial
from wsrouter.backends.pool import BackendPool
from wsrouter.backends.waiting import Waiting
from wsrouter.errors import BackendError, DialError
from wsrouter.policy.members import Member
from wsrouter.relay.leg import Leg


class Attempt:
    """Reaches one backend of a pool for one client.

    ``connected(leg, member)`` or ``failed(error)`` is called, once for ``start`` and once for each ``retry``; the
    one who got a leg owns it, and the member's count until ``give_back``. ``key`` and ``preferred`` are for
    ``BackendPool.pick``, ``preface`` opens each connection.
    """

    #: For the compiler: what ``del`` may take away.
    __deletable__ = ["_connected", "_failed"]
    __slots__ = (
        "_began",
        "_connected",
        "_dial",
        "_failed",
        "_key",
        "_preface",
        "_preferred",
        "_waiting",
        "member",
        "pool",
        "tried",
    )

    def __init__(
        self,
        pool: BackendPool,
        connected: Callable[[Leg, Member], None],
        failed: Callable[[BackendError], None],
        key: bytes | None = None,
        preferred: Member | None = None,
        preface: bytes = b"",
    ) -> None:
        self.pool = pool
        self._connected = connected
        self._failed = failed
        self._key = key
        self._preferred = preferred
        self._preface = preface
        self._began: float | None = None
        self._dial: Dial | None = None
        self._waiting: Waiting | None = None
        #: The backend that is dialled, or was reached.
        self.member: Member | None = None
        #: The backends that were tried and did not serve, with the reason.
        self.tried: list[tuple[Member, DialError]] = []

    def start(self) -> None:
        """Try the first backend."""
        pool = self.pool
        member = pool.pick(self._key, (), self._preferred)
        if member is not None:
            pool.take(member)
            self._try(member)
            return
        self._waiting = pool.wait(self._key, self._served)
        if self._waiting is None:
            self._failed(pool.refusal())

    def retry(self, error: DialError, following: Member | None = None) -> None:
        """The backend that was reached is no good after all (``error``): give it back and try another.

        ``following`` is what ``another`` has found already.
        """
        member, self.member = self.member, None
        assert member is not None
        pool = self.pool
        pool.give_back(member)
        pool.failed(member, error)
        self.tried.append((member, error))
        if following is None:
            following = self._following([member for member, _ in self.tried])
        if following is None:
            self._give_up()
        else:
            self._try(following)

    def another(self) -> Member | None:
        """A backend for ``retry`` to go on to, counted already; None where it would give up."""
        assert self.member is not None
        return self._following([*[member for member, _ in self.tried], self.member])

    def _following(self, tried: list[Member]) -> Member | None:
        pool = self.pool
        if len(tried) > pool.config.retries or self._time_left() <= 0:
            return None
        following = pool.pick(self._key, tried)
        if following is not None:
            pool.take(following)
        return following

    def cancel(self) -> None:
        """The client is gone: wait no more, stop dialling."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
            assert self.member is not None
            self.pool.give_back(self.member)
            self.member = None

    def settle(self) -> None:
        """It is over, one way or the other: nothing more is asked of this attempt but its story."""
        # Its callbacks are bound methods of whoever holds the attempt: a cycle for every session.
        del self._connected, self._failed

    def story(self) -> str:
        """What was tried, for the log: ``127.0.0.1:2222 connection refused, 127.0.0.1:3333 no connection in time``."""
        if not self.tried:
            return ""
        return ", ".join(f"{member.label} {error.reason}" for member, error in self.tried)

    def _served(self, member: Member | None) -> None:
        self._waiting = None
        if member is None:
            self._failed(BackendError(503, f"pool {self.pool.name}: every backend is full, and was while it waited"))
        else:
            self._try(member)

    def _try(self, member: Member) -> None:
        """Dial ``member``, which is counted already."""
        pool = self.pool
        self.member = member
        timeout = None
        if self._began is None:
            self._began = pool.relay.seconds()
        else:
            timeout = self._time_left()
        dial = pool.dial(member, self._reached, self._unreached, self._preface, timeout)
        if dial is not None:  # else it is decided, and if it failed, the next backend's dial may be under way already
            self._dial = dial

    def _time_left(self) -> float:
        assert self._began is not None
        return self._began + self.pool.config.retry_time - self.pool.relay.seconds()

    def _reached(self, leg: Leg) -> None:
        self._dial = None
        assert self.member is not None
        self._connected(leg, self.member)

    def _unreached(self, error: DialError) -> None:
        self._dial = None
        self.retry(error)

    def _give_up(self) -> None:
        last = self.tried[-1][1]
        status = 504 if last.timed_out else 502 if last.nonsense else 503
        self._failed(BackendError(status, f"pool {self.pool.name}: no backend answers: {self.story()}"))
