"""What is known of a connection."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from wsrouter.live.connection import Announced, Connection, connection_of

pytestmark = pytest.mark.interpreted


@pytest.mark.parametrize(
    ("peername", "ip", "client"),
    [
        (("192.0.2.1", 9), "192.0.2.1", "192.0.2.1:9"),
        (("2001:db8::1", 9, 0, 0), "2001:db8::1", "[2001:db8::1]:9"),
        (("::ffff:192.0.2.1", 9, 0, 0), "192.0.2.1", "192.0.2.1:9"),
        ("", "unix", "unix"),
    ],
)
def test_a_client_is_known_by_its_address(peername: object, ip: str, client: str) -> None:
    leg: Any = SimpleNamespace(peername=peername)
    connection = connection_of(leg, 1, "main")
    assert (connection.ip, connection.client, connection.peer_ip) == (ip, client, ip)


def test_the_peer_is_the_proxy_where_one_announced_the_client() -> None:
    connection = Connection(1, "192.0.2.1", 9, "main", announced=Announced("10.0.0.1", ("10.0.0.2", 443), ()))
    assert (connection.ip, connection.peer_ip) == ("192.0.2.1", "10.0.0.1")
