"""The kinds of session that the suite is sent through, and the router's configuration for each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of session. ``route`` are lines of the route, and make it one.

    ``deflate_clients`` and ``deflate_backends`` say on which leg permessage-deflate can be negotiated; where it
    cannot, groups 12 and 13 have nothing to test. ``suite_as_backend`` says whether the suite can be the backend.
    """

    name: str
    route: str = ""
    deflate_clients: bool = True
    deflate_backends: bool = True
    suite_as_backend: bool = True


#: Message sessions bound everything. The suite's largest message has 16 MB (9.1.6); most fragments has one of 4 MB in
#: frames of 64 bytes, with an empty last one (9.3.1, 9.4.1).
_LIMITS = "max_message = 32m\nmax_fragments = 65537"

#: A kind to add is a line here. With dispatch the suite can be no backend: it ends each case with a Close, and to check
#: that the client is told, while there a backend that closes takes only its unanswered messages along, and the session
#: goes on.
KINDS = (
    Kind("relay", "session = relay"),
    Kind("message", f"session = message\ncompression = both\n{_LIMITS}"),
    Kind("message-to-plain", f"session = message\ncompression = client\n{_LIMITS}", deflate_backends=False),
    Kind("dispatch", f"dispatch = message\ncompression = both\n{_LIMITS}", suite_as_backend=False),
)


def configuration(kind: Kind, backend: int, certificate: Path | None) -> str:
    """The router's configuration: a port of the kernel's choice, all sessions to the backend at that port.

    With a certificate (chain and key) the listener speaks TLS only.
    """
    tls = "" if certificate is None else f"plain = no\ncertificates = {certificate}\n"
    return f"""\
[router]
log = json

[listener main]
endpoint = tcp:0:interface=127.0.0.1
{tls}
[route cases]
path = /
pool = peer
{kind.route}

[pool peer]
backends = 127.0.0.1:{backend}
"""
