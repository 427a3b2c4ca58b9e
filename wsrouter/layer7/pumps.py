"""The two pumps of a relay session on a route that ``polices`` frames; without policies they are plain FramePumps."""

from __future__ import annotations

import os
from typing import NamedTuple

from wsrouter.config import values
from wsrouter.config.values import OnRate
from wsrouter.policy.limits import TokenBucket
from wsrouter.relay.leg import Leg
from wsrouter.relay.policed import Meter, PolicyCoupling, PolicyPump
from wsrouter.relay.pump import FramePump
from wsrouter.wire.frames import FrameWalker
from wsrouter.wire.policed import TOKEN_SIZE, OwnPings, PolicyWalker


class Pumps(NamedTuple):
    """``up`` goes from the client to the backend, ``down`` back; and the router's pings on either leg."""

    up: FramePump
    down: FramePump
    client_pings: OwnPings | None = None
    backend_pings: OwnPings | None = None


def pumps_for(route: values.Route, session: PolicyCoupling, client: Leg, server: Leg, *, deflate: bool) -> Pumps:
    """Make the pumps of ``session`` on a route that ``polices``; ``deflate``: permessage-deflate was agreed upon."""
    pings = route.ping is not None or route.backend_ping is not None
    both = pings or route.max_message is not None
    metered = route.message_rate is not None or route.byte_rate is not None
    client_pings = None if route.ping is None else OwnPings(os.urandom(TOKEN_SIZE))
    backend_pings = None if route.backend_ping is None else OwnPings(os.urandom(TOKEN_SIZE))
    meter = None
    if metered:
        meter = Meter(_bucket(route.message_rate), _bucket(route.byte_rate), route.on_rate is OnRate.CLOSE)
    up = PolicyPump(session, client, server, _walker(route, True, deflate, client_pings), meter)
    if not both:
        return Pumps(up, FramePump(session, server, client, FrameWalker(False, deflate)))
    down = PolicyPump(session, server, client, _walker(route, False, deflate, backend_pings))
    return Pumps(up, down, client_pings, backend_pings)


def _walker(route: values.Route, masked: bool, deflate: bool, pings: OwnPings | None) -> PolicyWalker:
    return PolicyWalker(
        masked,
        deflate,
        max_message=route.max_message,
        max_fragments=None if route.max_message is None else route.max_fragments,
        pings=pings,
    )


def _bucket(rate: values.Rate | None) -> TokenBucket | None:
    return None if rate is None else TokenBucket(rate)
