"""What a route holds the frames of its sessions to, made anew for each session of either kind."""

from __future__ import annotations

import os
from typing import NamedTuple

from wsrouter.config import values
from wsrouter.config.values import OnRate, Session
from wsrouter.policy.limits import TokenBucket
from wsrouter.relay.meter import Meter
from wsrouter.wire.policed import TOKEN_SIZE, OwnPings, PolicyWalker


class Policies(NamedTuple):
    """What holds for the frames of one peer."""

    #: The most frames of a message, and its largest payload on the wire in bytes; None for any.
    max_fragments: int | None = None
    max_message: int | None = None
    #: The router's pings to that peer.
    pings: OwnPings | None = None
    meter: Meter | None = None

    def walker(self, masked: bool, deflate: bool) -> PolicyWalker:
        """What walks the frames; arguments are as for FrameWalker."""
        return PolicyWalker(
            masked, deflate, max_message=self.max_message, max_fragments=self.max_fragments, pings=self.pings
        )


def client_policies(route: values.Route) -> Policies:
    """Those for the client of one session."""
    meter = None
    if route.message_rate is not None or route.byte_rate is not None:
        meter = Meter(_bucket(route.message_rate), _bucket(route.byte_rate), route.on_rate is OnRate.CLOSE)
    return _policies(route, route.ping, meter)


def backend_policies(route: values.Route) -> Policies:
    """Those for the backend of one session."""
    return _policies(route, route.backend_ping, None)


def _policies(route: values.Route, ping: float | None, meter: Meter | None) -> Policies:
    limit = route.max_message
    return Policies(
        None if limit is None else route.max_fragments,
        # A message session measures what a message holds, not what is on the wire.
        limit if route.session is Session.RELAY else None,
        None if ping is None else OwnPings(os.urandom(TOKEN_SIZE)),
        meter,
    )


def _bucket(rate: values.Rate | None) -> TokenBucket | None:
    return None if rate is None else TokenBucket(rate)
