"""What the tests of sessions share: a configuration with one route, both ends of its session, and how it ends."""

from __future__ import annotations

import ssl
from typing import Any, NamedTuple

# Opcodes (RFC 6455 5.2).
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
MEGABYTE = 1 << 20


def configured(address: str, route: str = "", listener: str = "", pool: str = "", close_timeout: str = "60s") -> str:
    """A configuration with one listener, one route and one pool, each with these lines."""
    return (
        f"[listener main]\nendpoint = tcp:0:interface=127.0.0.1\n{listener}\n"
        f"[route rule]\npool = app\nclose_timeout = {close_timeout}\n{route}\n"
        f"[pool app]\nbackends = {address}\n{pool}\n"
    )


class Wire(NamedTuple):
    """How the two legs are carried: arguments for the backend and for the client, lines and files."""

    for_backend: dict[str, Any]
    for_client: dict[str, Any]
    listener: str
    pool: str
    files: dict[str, bytes]


def wired(kind: str, authority: Any) -> Wire:
    """TLS on both legs where ``kind`` begins with that word, for a client of two threads with ``tls for threads``."""
    if not kind.startswith("tls"):
        return Wire({}, {}, "", "", {})
    return Wire(
        {"tls": authority.server_context("inner.example")},
        {"tls": authority.client_context(threads=kind == "tls for threads"), "name": "outer.example"},
        "certificates = outer.pem",
        "tls = yes\ntls_ca = ca.pem\ntls_name = inner.example",
        {"outer.pem": authority.issue("outer.example"), "ca.pem": authority.pem},
    )


def both(client: Any, peer: Any, first: str) -> tuple[Any, Any, bool]:
    """The side that ``first`` names, the other one, and whether the first masks its frames."""
    return (client, peer, True) if first == "client" else (peer, client, False)


def ended(running: Any, *peers: Any) -> Any:
    """The one session's entry and its end, once it is over. ``peers`` are closed first: who does not, is waited for."""
    for peer in peers:
        peer.close()
    running.until(lambda: running.closed)
    ((entry, end),) = running.closed
    assert running.live == 0
    assert running.in_use("app") == 0
    assert all(member.unanswered == 0 for member in running.service.pools["app"].members)
    return entry, end


def is_over(end: Any) -> bool:
    """Whether nothing follows but the end of the connection, in order."""
    return end.recv_all() == b"" and not end.was_reset


def are_over(client: Any, peer: Any) -> bool:
    """The same for both ends behind both Close frames, where the backend closes first, being the server."""
    if not (is_over(client) and peer.nothing_comes()):
        return False
    if isinstance(peer.socket, ssl.SSLSocket):
        peer.socket = peer.socket.unwrap()
    peer.finish()
    return is_over(peer)
