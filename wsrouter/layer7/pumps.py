"""The two pumps of a relay session on a route that ``polices`` frames; without policies they are plain FramePumps."""

from __future__ import annotations

from typing import NamedTuple

from wsrouter.config import values
from wsrouter.layer7.keepalive import Peer
from wsrouter.layer7.policies import backend_policies, client_policies
from wsrouter.relay.leg import Leg
from wsrouter.relay.policed import PolicyCoupling, PolicyPump
from wsrouter.relay.pump import FramePump
from wsrouter.wire.frames import FrameWalker


class Pumps(NamedTuple):
    """``up`` goes from the client to the backend, ``down`` back. ``peers``, client and backend, if any is pinged."""

    up: FramePump
    down: FramePump
    peers: tuple[Peer, Peer] | None = None


def pumps_for(route: values.Route, session: PolicyCoupling, client: Leg, server: Leg, *, deflate: bool) -> Pumps:
    """Make the pumps of ``session`` on a route that ``polices``; ``deflate``: permessage-deflate was agreed upon."""
    of_client = client_policies(route)
    up = PolicyPump(session, client, server, of_client.walker(True, deflate), of_client.meter)
    is_pinged = route.ping is not None or route.backend_ping is not None
    if not is_pinged and route.max_message is None:
        return Pumps(up, FramePump(session, server, client, FrameWalker(False, deflate)))
    of_backend = backend_policies(route)
    down = PolicyPump(session, server, client, of_backend.walker(False, deflate))
    if not is_pinged:
        return Pumps(up, down)
    return Pumps(up, down, (Peer(up, down, of_client.pings), Peer(down, up, of_backend.pings)))
