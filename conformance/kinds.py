"""The kinds of session that the suite is sent through, and the router's configuration for each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of session. ``route`` are lines of the route, and make it one.

    ``deflate_clients`` and ``deflate_backends`` say on which leg permessage-deflate can be negotiated; where it
    cannot, groups 12 and 13 have nothing to test.
    """

    name: str
    route: str = ""
    deflate_clients: bool = True
    deflate_backends: bool = True


#: A kind to add is a line here.
KINDS = (Kind("relay", "session = relay"),)


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
