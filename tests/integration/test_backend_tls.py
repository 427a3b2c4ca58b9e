"""TLS that the router begins towards backends, over sockets: who is verified, by what name, and what it carries."""

from __future__ import annotations

import os
import ssl
import threading

import pytest
import trustme

from tests.integration.http import get, status_of, upgrade

MEGABYTE = 1024 * 1024


@pytest.fixture
def behind_tls(router, connect):
    """``behind_tls(address, pool, files={}) -> (running, client)``: a pool with ``tls = yes``; the client has asked."""

    def begin(address: str, pool: str, files=None, request: bytes = upgrade("example.com")):
        running = router(
            "[listener main]\nendpoint = tcp:0:interface=127.0.0.1\n"
            "[route ws]\npath = /ws\npool = app\n[route all]\naccept = http\npool = app\n"
            f"[pool app]\nbackends = {address}\ntls = yes\n{pool}",
            files=files,
        )
        client = connect(running.port())
        client.send(request)
        return running, client

    return begin


@pytest.fixture
def tls_backend(backend, authority):
    """``tls_backend(names, configure=...) -> (server, asked)``; ``asked`` gets the name of each connection's SNI."""

    def make(*names: str, configure=None):
        context = authority.server_context(*names, alpn=["http/1.1"])
        asked: list[str | None] = []

        def look(_tls, name: str | None, _context) -> None:
            asked.append(name)

        context.sni_callback = look
        if configure is not None:
            configure(context)
        return backend(tls=context), asked

    return make


def test_a_backend_is_verified_by_the_name_that_the_pool_says(behind_tls, tls_backend, authority, frame) -> None:
    server, asked = tls_backend("app.internal")
    _running, client = behind_tls(server.address, "tls_ca = ca.pem\ntls_name = app.internal", {"ca.pem": authority.pem})
    peer = server.accept()
    assert peer.socket.selected_alpn_protocol() == "http/1.1"
    assert asked == ["app.internal"]
    peer.answer()
    assert status_of(client.recv_head()) == 101
    client.send(frame(1, b"through"))
    assert peer.recv_frame().payload == b"through"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_backend_is_verified_by_its_own_host(behind_tls, tls_backend, authority, host) -> None:
    server, asked = tls_backend(host)
    _running, client = behind_tls(f"{host}:{server.port}", "tls_ca = ca.pem", {"ca.pem": authority.pem})
    server.accept().answer()
    assert status_of(client.recv_head()) == 101
    assert asked == [None if host == "127.0.0.1" else host]


@pytest.mark.parametrize(
    ("names", "pool"),
    [
        (["other.internal"], "tls_ca = ca.pem\ntls_name = app.internal"),
        (["127.0.0.2"], "tls_ca = ca.pem"),
        (["app.internal"], "tls_ca = ca.pem"),
        (["127.0.0.1"], ""),
    ],
    ids=["another name", "another address", "a name where an address is asked for", "an unknown CA"],
)
def test_a_backend_whose_certificate_does_not_verify_becomes_502(
    behind_tls, tls_backend, authority, names, pool
) -> None:
    server, _ = tls_backend(*names)
    running, client = behind_tls(server.address, pool, {"ca.pem": authority.pem})
    with pytest.raises(ssl.SSLError):
        # In TLS 1.3 the backend may believe that all is well until it reads.
        server.accept().recv_head()
    assert status_of(client.recv_all()) == 502
    (refusal,) = running.refused
    assert refusal.status == 502
    assert "certificate does not verify" in refusal.reason


def test_the_next_backend_is_tried_when_one_does_not_verify(behind_tls, tls_backend, authority) -> None:
    wrong, _ = tls_backend("other.internal")
    right, _ = tls_backend("app.internal")
    running, client = behind_tls(
        f"{wrong.address}, {right.address}", "tls_ca = ca.pem\ntls_name = app.internal", {"ca.pem": authority.pem}
    )
    with pytest.raises(ssl.SSLError):
        wrong.accept().recv_head()
    right.accept().answer()
    assert status_of(client.recv_head()) == 101
    running.until(lambda: running.opened)
    assert "certificate does not verify" in running.opened[0].facts.tried


def test_the_time_to_connect_covers_the_handshake(behind_tls, backend) -> None:
    server = backend()
    running, client = behind_tls(server.address, "tls_verify = no\nconnect_timeout = 100ms")
    peer = server.accept()
    assert status_of(client.recv_all()) == 504
    assert b"GET" not in peer.recv_all()
    assert [one.status for one in running.refused] == [504]


def test_a_backend_that_leaves_in_the_handshake_becomes_502(behind_tls, backend) -> None:
    server = backend()
    running, client = behind_tls(server.address, "tls_verify = no")
    peer = server.accept()
    peer.recv_exactly(100)
    peer.close()
    assert status_of(client.recv_all()) == 502
    assert [one.status for one in running.refused] == [502]


def test_a_self_signed_backend_is_trusted_by_its_own_certificate(behind_tls, backend, tmp_path) -> None:
    # A CA of trustme is the simplest self-signed certificate: it stands for itself.
    own = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf = own.issue_cert("127.0.0.1")
    leaf.configure_cert(context)
    server = backend(tls=context)
    _running, client = behind_tls(server.address, "tls_ca = own.pem", {"own.pem": own.cert_pem.bytes()})
    server.accept().answer()
    assert status_of(client.recv_head()) == 101


def test_a_backend_is_not_verified_where_the_pool_says_so(behind_tls, tls_backend) -> None:
    server, _ = tls_backend("nobody.example")
    _running, client = behind_tls(server.address, "tls_verify = no")
    server.accept().answer()
    assert status_of(client.recv_head()) == 101


def test_the_router_shows_a_certificate_to_a_backend_that_asks(behind_tls, tls_backend, authority) -> None:
    def ask(context: ssl.SSLContext) -> None:
        context.verify_mode = ssl.CERT_REQUIRED
        authority.ca.configure_trust(context)

    server, _ = tls_backend("127.0.0.1", configure=ask)
    files = {"ca.pem": authority.pem, "router.pem": authority.issue("router.internal")}
    _running, client = behind_tls(server.address, "tls_ca = ca.pem\ntls_certificate = router.pem", files)
    peer = server.accept()
    assert ("DNS", "router.internal") in peer.socket.getpeercert()["subjectAltName"]
    peer.answer()
    assert status_of(client.recv_head()) == 101


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_backend_that_asks_in_vain_for_a_certificate_becomes_502(behind_tls, tls_backend, authority, version) -> None:
    def ask(context: ssl.SSLContext) -> None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = context.maximum_version = version
        authority.ca.configure_trust(context)

    server, _ = tls_backend("127.0.0.1", configure=ask)
    running, client = behind_tls(server.address, "tls_ca = ca.pem\nretries = 0", {"ca.pem": authority.pem})
    with pytest.raises(ssl.SSLError):
        server.accept()
    assert status_of(client.recv_all()) == 502
    assert running.in_use("app") == 0


def test_plain_http_goes_to_a_backend_over_tls(behind_tls, tls_backend, authority) -> None:
    server, asked = tls_backend("app.internal")
    _running, client = behind_tls(
        server.address,
        "tls_ca = ca.pem\ntls_name = app.internal",
        {"ca.pem": authority.pem},
        b"POST /a HTTP/1.1\r\nHost: example.com\r\nContent-Length: 5\r\n\r\nhello",
    )
    peer = server.accept()
    head = peer.recv_head()
    assert head.startswith(b"POST /a HTTP/1.1\r\n")
    assert peer.recv_exactly(5) == b"hello"
    assert asked == ["app.internal"]
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert status_of(client.recv_head()) == 200
    assert client.recv_exactly(2) == b"ok"


def test_plain_http_to_a_backend_that_does_not_verify_becomes_502(behind_tls, tls_backend, authority) -> None:
    server, _ = tls_backend("other.internal")
    _running, client = behind_tls(
        server.address, "tls_ca = ca.pem\ntls_name = app.internal", {"ca.pem": authority.pem}, get("example.com")
    )
    with pytest.raises(ssl.SSLError):
        server.accept().recv_head()
    assert status_of(client.recv_head()) == 502


def test_tls_on_both_sides_carries_big_messages(router, connect, tls_backend, authority, frame) -> None:
    server, _ = tls_backend("127.0.0.1")
    running = router(
        f"""
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        certificates = a.pem
        [route all]
        pool = app
        [pool app]
        backends = {server.address}
        tls = yes
        tls_ca = ca.pem
        """,
        files={"a.pem": authority.issue("a.example"), "ca.pem": authority.pem},
    )
    client = connect(running.port(), tls=authority.client_context(), name="a.example")
    client.send(upgrade("a.example"))
    peer = server.accept()
    peer.answer()
    client.recv_head()
    payload = os.urandom(3 * MEGABYTE)
    for source, sink, mask in ((client, peer, True), (peer, client, False)):
        sender = threading.Thread(target=source.send, args=(frame(2, payload, mask=mask),))
        sender.start()
        assert sink.recv_frame().payload == payload
        sender.join(10)


@pytest.mark.parametrize("orderly", [True, False], ids=["close_notify", "FIN"])
def test_a_tls_backend_that_vanishes_gives_the_client_1011(behind_tls, tls_backend, authority, orderly) -> None:
    server, _ = tls_backend("127.0.0.1")
    running, client = behind_tls(server.address, "tls_ca = ca.pem", {"ca.pem": authority.pem})
    peer = server.accept()
    peer.answer()
    assert status_of(client.recv_head()) == 101
    if orderly:
        peer.socket.settimeout(0)
        with pytest.raises((ssl.SSLWantReadError, BlockingIOError)):
            peer.socket.unwrap()
    else:
        peer.finish()
    close = client.recv_frame()
    assert (close.opcode, close.code) == (8, 1011)
    client.close()
    running.until(lambda: running.closed)
    assert running.closed[0][1].who.value == "backend"
