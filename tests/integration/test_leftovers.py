"""Nothing of a connection stays in the process once it has ended, whatever its end was."""

from __future__ import annotations

import gc
from collections import Counter

import pytest

from tests.integration.http import upgrade

REQUESTS = [
    upgrade(path="/ws"),
    upgrade(path="/ws/refused"),
    upgrade(path="/ws/nonsense"),
    upgrade(path="/none"),
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /http HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /a.txt HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /none HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /nonsense \r\n\r\n",
]


def made_by_the_router() -> Counter[str]:
    """How many objects of each of the router's classes there are."""
    gc.collect()
    kinds = Counter(type(one) for one in gc.get_objects())
    return Counter(
        {
            f"{kind.__module__}.{kind.__qualname__}": count
            for kind, count in kinds.items()
            if str(kind.__module__).startswith("wsrouter.")
        }
    )


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_nothing_of_ended_connections_is_kept(router, connect, backend, authority, frame, tls) -> None:
    def serve(peer) -> None:
        head = peer.recv_head()
        if b"/refused" in head:
            peer.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        elif b"/nonsense" in head:
            peer.send(b"nonsense\r\n\r\n")
        elif b"/http" in head:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        else:
            peer.send(peer.agreement(head))
            # And then it closes, as servers do: the router waits for that.
            peer.send(frame(8, peer.recv_frame().payload, mask=False))

    server = backend(serve)
    running = router(
        f"""
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        certificates = localhost.pem
        [route ws]
        path = /ws
        pool = app
        [route http]
        path = /http
        accept = http
        pool = app
        [route files]
        static = www
        [pool app]
        backends = {server.address}
        """,
        files={"localhost.pem": authority.issue("localhost"), "www/a.txt": "hello"},
    )
    way = {"tls": authority.client_context(), "name": "localhost"} if tls else {}

    def visit() -> None:
        # These come first: when the others have been answered, they have been accepted.
        for cut in (REQUESTS[0][:-1], b"", b"\x16\x03"):
            client = connect(running.port(), **way)
            client.send(cut)
            client.reset()
        for request in REQUESTS:
            client = connect(running.port(), **way)
            client.send(request)
            head = client.recv_head()
            if head.startswith(b"HTTP/1.1 101 "):
                client.send(frame(8, b"\x03\xe8"))
                assert client.recv_frame().code == 1000
            client.close()
        running.until(lambda: not running.connections and not running.live)
        # What the test itself was told of.
        for told in (running.opened, running.closed, running.refused, running.answered):
            told.clear()

    visit()
    before = running.call(made_by_the_router)
    for _ in range(10):
        visit()
    assert running.call(made_by_the_router) - before == Counter()
    assert not running.service.site.fronts
    assert running.in_use("app") == 0
