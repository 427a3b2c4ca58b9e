"""HTTP as the tests write and read it, byte for byte."""

from __future__ import annotations


def get(host: str) -> bytes:
    """A plain request."""
    return f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


#: An opening handshake without its request line and its Host.
UPGRADE_FIELDS = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)


def upgrade(host: str = "localhost", path: str = "/ws", more: bytes = b"") -> bytes:
    """An opening handshake; ``more`` are further lines, each with its end."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n".encode() + UPGRADE_FIELDS + more + b"\r\n"


def status_of(answer: bytes) -> int:
    """The status of an answer of HTTP/1.1."""
    assert answer.startswith(b"HTTP/1.1 "), answer[:200]
    return int(answer[9:12])


def fields_of(head: bytes) -> dict[str, str]:
    """The fields of a head by their names in lower case; of one that comes twice, the last."""
    lines = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
