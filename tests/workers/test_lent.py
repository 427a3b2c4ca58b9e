"""Ports that were bound by another process."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from tests.listener.test_listener import Scene
from wsrouter.workers.lent import LentPorts


@pytest.fixture
def lent() -> Iterator[tuple[LentPorts, socket.socket]]:
    ports = LentPorts()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        sock.setblocking(False)
        ports.take(1, os.dup(sock.fileno()))
        ports.numbers = {"main": 1}
        yield ports, sock
        ports.close()


def test_a_lent_socket_never_blocks_for_the_others(lent, reactor):
    """Its mode is one for all who have it: who lost the race for a client would wait in ``accept``."""
    ports, sock = lent
    scene = Scene(reactor)
    listener = scene.listener("tcp:0")
    ports.bind(listener)
    assert not os.get_blocking(sock.fileno())
    listener.discard()
    scene.relay.stop()
