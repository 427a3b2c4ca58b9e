"""Whom one listener lets in, and how often: its access lists, and what a single address may have.

A limit holds for one client, so a peer that speaks for many, one that is ``trusted``, is not bound by those on
connections. Behind a proxy that sends PROXY headers each connection is the client's own again; behind one that speaks
HTTP each request is, and there ``handshakes_per_ip`` holds. Access lists hold for everybody.

Refusals come as HttpError, also where HTTP is not spoken yet: 403 for who may never come in, 429 for who may come again
later, with the time to wait.
"""

from __future__ import annotations

import math
from typing import Final

from wsrouter.config.values import Listener, Rate
from wsrouter.errors import HttpError
from wsrouter.policy.limits import RateLimiter, client_key
from wsrouter.policy.networks import UNIX, Access, Networks
from wsrouter.policy.sharing import Alone, Limiter, Sharing

#: How often the log is told of one address that is turned away: a flood must not become a flood of lines.
_TOLD: Final = Rate(1 / 60, 1)
#: How many such addresses are remembered.
_TOLD_OF: Final = 10_000


class Admission:
    """The admission of one listener. Times are seconds of one clock."""

    __slots__ = (
        "_access",
        "_connections",
        "_handshakes",
        "_limited",
        "_rate",
        "_sharing",
        "_told",
        "guarded",
        "limits_handshakes",
        "trusted",
        "trusts",
    )

    def __init__(self, config: Listener, sharing: Sharing | None = None) -> None:
        self._sharing = sharing = sharing or Alone()
        self._connections = sharing.counter(f"connections {config.name}")
        self._rate: Limiter | None = None
        self._handshakes: Limiter | None = None
        self._told = RateLimiter(_TOLD, _TOLD_OF)
        self.reconfigure(config)

    def reconfigure(self, config: Listener) -> None:
        """Hold these lists and limits from now on; what was counted stays counted.

        A limit of connections that was off counts only who comes from now on.
        """
        #: Whose PROXY headers and forwarding fields are believed.
        self.trusted = Networks(config.trusted)
        #: Whether anybody's are.
        self.trusts = bool(config.trusted)
        self._access = Access(config.allow, config.deny)
        self._connections.limit = config.max_connections_per_ip
        self._rate = self._limiter("rate", self._rate, config, config.connections_per_ip)
        self._handshakes = self._limiter("handshakes", self._handshakes, config, config.handshakes_per_ip)
        #: Whether ``shake_hands`` could turn anybody away.
        self.limits_handshakes = self._handshakes is not None
        self._limited = config.max_connections_per_ip is not None or self._rate is not None
        #: Whether anybody could be turned away when connecting; if not, ``enter`` need not be asked.
        self.guarded = self._limited or bool(self._access)

    def _limiter(self, what: str, limiter: Limiter | None, config: Listener, rate: Rate | None) -> Limiter | None:
        """A limiter for ``rate``: the old one, with its debts, where there is one."""
        if rate is None:
            return None
        if limiter is None:
            return self._sharing.limiter(f"{what} {config.name}", rate)
        limiter.reconfigure(rate)
        return limiter

    def announces(self, peer: str) -> bool:
        """Whether the PROXY header of this peer is believed. Who may connect to a unix socket says its file."""
        return peer in self.trusted or peer == UNIX

    def enter(self, ip: str, now: float) -> int | None:
        """Let a connection of ``ip`` in, its address after the PROXY header, or raise HttpError (403, 429).

        Returns what ``leave`` must be told once when the connection ends; None where it is not counted.
        """
        if not self._access.admits(ip):
            raise HttpError(403, "this address is not allowed here")
        if not self._limited or ip in self.trusted:
            return None
        key = client_key(ip)
        if key is None:
            return None
        counter = self._connections
        counted = counter.limit is not None
        if counted and not counter.enter(key):
            raise HttpError(429, "too many connections of one address", (retry_after(1.0),))
        if self._rate is not None and (wait := self._rate.take(key, now)):
            if counted:
                counter.leave(key)
            raise HttpError(429, "too many new connections of one address", (retry_after(wait),))
        return key if counted else None

    def leave(self, key: int) -> None:
        """A connection that ``enter`` returned this for has ended."""
        self._connections.leave(key)

    def shake_hands(self, ip: str, now: float) -> None:
        """Let a client ask for a session, or raise HttpError (429). ``ip`` is the client's, not its proxy's."""
        key = client_key(ip)
        if self._handshakes is not None and key is not None and (wait := self._handshakes.take(key, now)):
            raise HttpError(429, "too many handshakes of one address", (retry_after(wait),))

    def told(self, ip: str, now: float) -> bool:
        """Whether the log was told lately that this address is turned away; if not, this counts as telling it."""
        key = client_key(ip)
        return self._told.take(ip if key is None else key, now) > 0.0


def retry_after(seconds: float) -> tuple[bytes, bytes]:
    """The field that says when to try again, in whole seconds, rounded up (RFC 9110 10.2.3)."""
    # A limiter adds a little for the rounding of floats; it must not become a second.
    return (b"Retry-After", b"%d" % max(1, math.ceil(seconds - 0.001)))
