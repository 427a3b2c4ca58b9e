"""What breaks off must not look whole, and must not go unsaid."""

from __future__ import annotations

import textwrap

import pytest

ROUTES = """
    [listener main]
    endpoint = tcp:0:interface=127.0.0.1
    [route sessions]
    path = /ws
    pool = app
    [route plain]
    path = /http
    accept = http
    pool = app
    [pool app]
    backends = {}
"""


@pytest.mark.parametrize("path", ["/ws", "/http"])
def test_an_answer_that_ends_with_its_connection_and_is_reset_never_looks_whole(router, connect, backend, path) -> None:
    server = backend()
    running = router(textwrap.dedent(ROUTES).format(server.address))
    client = connect(running.port())
    if path == "/ws":
        client.request(path)
    else:
        client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    peer = server.accept()
    peer.recv_head()
    peer.send(b"HTTP/1.1 403 Forbidden\r\n\r\nhalf of it")
    client.recv_until(b"half of it")
    peer.reset()
    rest = client.recv_all()
    assert client.was_reset or (path == "/http" and not rest.endswith(b"0\r\n\r\n"))


def test_a_client_that_leaves_before_its_answer_leaves_a_line_in_the_log(router, connect, backend) -> None:
    server = backend()
    running = router(textwrap.dedent(ROUTES).format(server.address))
    client = connect(running.port())
    client.send(b"GET /http HTTP/1.1\r\nHost: localhost\r\n\r\n")
    peer = server.accept()
    peer.recv_head()
    client.reset()
    assert peer.recv_all() == b""
    running.until(lambda: not running.connections)
    assert running.refused or running.answered


def test_a_second_head_that_is_never_finished_is_not_logged_as_the_first_request(router, connect, tmp_path) -> None:
    running = router(
        """
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        head_timeout = 300ms
        [route first]
        path = /first
        redirect = /x
        """
    )
    client = connect(running.port())
    client.send(b"GET /first HTTP/1.1\r\nHost: localhost\r\n\r\n")
    client.recv_head()
    client.send(b"GET /second HT")
    assert b" 408 " in client.recv_all()
    [refusal] = running.refused
    assert (refusal.status, refusal.rule, refusal.path) == (408, "", "")
