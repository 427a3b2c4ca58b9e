"""Whether a request may go on: what is asked before anything is done for it.

Each check raises HttpError for a request that may not.
"""

from __future__ import annotations

from typing import Final

from wsrouter.config.values import Plain
from wsrouter.errors import HttpError
from wsrouter.layer7.site import Request, Site, scheme_of
from wsrouter.live.connection import Connection
from wsrouter.policy.admission import Admission
from wsrouter.policy.forwarded import Effective
from wsrouter.policy.origins import origin_allowed
from wsrouter.wire.answer import RETRY_AFTER
from wsrouter.wire.head import RequestHead
from wsrouter.wire.target import Target

#: At hand for every request; see ``live.registry``.
PLAIN_TOO: Final = Plain.YES


def check_scheme(
    plain: Plain, connection: Connection, behind: Effective | None, head: RequestHead, target: Target, upgrade: bool
) -> None:
    """Hold a listener's ``plain``.

    ``no`` goes by the connection itself. ``redirect`` goes by what the client uses: who came by https to a trusted
    proxy that ends TLS would be redirected for ever.
    """
    if plain is PLAIN_TOO:
        return
    if plain is Plain.NO:
        if not connection.secure:
            raise HttpError(400, "this port speaks TLS only")
        return
    if scheme_of(connection, behind) == "https":
        return
    if upgrade:
        # Browsers do not follow a redirect of an opening handshake, and what was sent in clear is known already.
        raise HttpError(403, "use wss")
    authority = head.host if behind is None or behind.host is None else behind.host
    if not authority or target.path == "*":
        raise HttpError(400, "use https")
    location = b"https://" + authority.encode() + target.forward(target.path)
    raise HttpError(308, "use https", ((b"Location", location),))


def check_client(site: Site, request: Request) -> None:
    """Hold the access lists of the request's route."""
    if not site.routes.admits(request.route, request.client_ip):
        raise HttpError(403, "this address is not allowed here")


def check_opening(site: Site, admission: Admission, request: Request) -> None:
    """Whether the client may ask for a session now, and from this page."""
    # The limit first: who guesses at origins uses it up as well.
    if admission.limits_handshakes:
        admission.shake_hands(request.client_ip, site.relay.seconds())
    origins = request.route.origins
    if origins is not None and not origin_allowed(
        origins, request.head.all(b"origin"), request.scheme, request.authority
    ):
        raise HttpError(403, "this origin is not allowed here")
    if site.turning_away:
        raise HttpError(503, "draining", (RETRY_AFTER,))
