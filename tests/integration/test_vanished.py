"""Clients that vanish without a word, as TCP itself finds them."""

from __future__ import annotations

import socket

from tests.vanishing import reappear, vanish
from wsrouter.live.registry import Who

TEXT, CLOSE = 1, 8
KEEPALIVE = 1


def test_a_client_that_vanishes_is_found_by_tcp_and_its_backend_is_told(
    router, backend, open_session, connect, frame
) -> None:
    """Those that are quiet are found by unanswered probes, the others by what they do not acknowledge."""
    server = backend()
    running = router(f"""
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        tcp_keepalive = {KEEPALIVE}s
        [tunnel opaque]
        match = opaque
        pool = app
        [route all]
        pool = app
        [pool app]
        backends = {server.address}
    """)
    quiet, busy, staying = (open_session(running, server) for _ in range(3))
    tunnel = connect(running.port())
    tunnel.send(b"\0hello")
    tunnel_peer = server.accept()
    assert tunnel_peer.recv_exactly(6) == b"\0hello"
    for client in (quiet[0], busy[0], tunnel):
        vanish(client)
    busy[1].send(frame(TEXT, b"is anybody there?", mask=False))

    for _, peer in (quiet, busy):
        told = peer.recv_frame()
        assert (told.opcode, told.code) == (CLOSE, 1001)
        peer.send(frame(CLOSE, told.payload, mask=False))
        peer.close()
    assert tunnel_peer.recv_all() == b""
    running.until(lambda: len(running.closed) == 3)
    assert {(end.who, end.reason) for _, end in running.closed} == {(Who.CLIENT, "connection timed out")}
    # Who is quiet but there is left alone.
    client, peer = staying
    client.send(frame(TEXT, b"here"))
    assert peer.recv_frame().payload == b"here"
    assert running.live == 1


def unanswered_probes(leg) -> int:
    """How many keep-alive probes in a row nobody has acknowledged on a leg that lives, as the kernel knows."""
    assert leg.connected
    # struct tcp_info of linux/tcp.h: state, congestion state, retransmits, probes, a byte each.
    return leg.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 4)[3]


def test_a_probe_that_is_lost_costs_a_quiet_client_nothing(router, backend, open_session, frame) -> None:
    server = backend()
    running = router(f"""
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        tcp_keepalive = {KEEPALIVE}s
        [route all]
        pool = app
        [pool app]
        backends = {server.address}
    """)
    client, peer = open_session(running, server)
    running.until(lambda: running.opened)
    leg = running.opened[0]._client
    vanish(client)
    running.until(lambda: running.call(unanswered_probes, leg) == 1)
    reappear(client)
    running.until(lambda: running.call(unanswered_probes, leg) == 0)
    client.send(frame(TEXT, b"still here"))
    assert peer.recv_frame().payload == b"still here"
