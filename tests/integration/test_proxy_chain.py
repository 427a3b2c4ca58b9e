"""Client, HAProxy, router, nginx, backend: who the client is survives the whole way, by PROXY headers.

HAProxy writes one (``send-proxy``), the router reads it and writes another (``send_proxy``), nginx reads that.
"""

from __future__ import annotations

import socket
import subprocess

import pytest
from websockets.sync.client import connect as open_websocket

from tests.integration.nginx import HTTP, PREAMBLE, serving

PATIENCE = 10.0
#: Where the clients connect from. Everything else is 127.0.0.1.
CLIENT = "127.0.0.7"

HAPROXY = """
defaults
    mode tcp
    timeout connect {patience:g}s
    timeout client {patience:g}s
    timeout server {patience:g}s
frontend front
    bind fd@{descriptor}
    default_backend router
backend router
    server router 127.0.0.1:{port} {send_proxy}
"""

ROUTER = """
[listener main]
endpoint = tcp:0:interface=127.0.0.1
proxy_protocol = require
trusted = 127.0.0.1
certificates = ended.example.pem
[tunnel passed]
match = tls sni=passed.example
pool = tls
[route all]
accept = both
pool = plain
[pool plain]
backends = unix:plain.sock
send_proxy = {send_proxy}
[pool tls]
backends = unix:tls.sock
send_proxy = {send_proxy}
"""

NGINX = (
    PREAMBLE
    + "http {{"
    + HTTP
    + """
    server {{
        listen unix:{folder}/plain.sock proxy_protocol;
        listen unix:{folder}/tls.sock ssl proxy_protocol;
        ssl_certificate {folder}/passed.example.pem;
        ssl_certificate_key {folder}/passed.example.pem;
        location /who {{ return 200 "$proxy_protocol_addr:$proxy_protocol_port"; }}
        location / {{
            proxy_pass http://{backend};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
            proxy_set_header X-Seen $proxy_protocol_addr:$proxy_protocol_port;
        }}
    }}
}}
"""
)


@pytest.fixture(params=["v1", "v2"])
def chain(request, router, echo_backend, authority, require_program, tmp_path):
    """``running, echo, port``: the router, the backend at the end, and where HAProxy listens."""
    version = request.param
    programs = [require_program(name, f"apt-get install {name}") for name in ("haproxy", "nginx")]
    echo = echo_backend()
    files = {f"{name}.pem": authority.issue(name) for name in ("ended.example", "passed.example")}
    running = router(ROUTER.format(send_proxy=version), files)
    with (
        serving(programs[1], tmp_path, NGINX.format(folder=tmp_path, backend=echo.address)),
        socket.create_server(("127.0.0.1", 0)) as listening,
    ):
        configuration = HAPROXY.format(
            patience=PATIENCE,
            descriptor=listening.fileno(),
            port=running.port(),
            send_proxy="send-proxy" if version == "v1" else "send-proxy-v2",
        )
        (tmp_path / "haproxy.cfg").write_text(configuration)
        haproxy = subprocess.Popen(
            [programs[0], "-db", "-q", "-f", str(tmp_path / "haproxy.cfg")], pass_fds=[listening.fileno()]
        )
        try:
            yield running, echo, listening.getsockname()[1]
        finally:
            haproxy.terminate()
            haproxy.wait(PATIENCE)


@pytest.mark.parametrize("name", ["", "ended.example", "passed.example"], ids=["ws", "wss", "passed through"])
def test_the_client_is_known_from_end_to_end(chain, authority, name) -> None:
    running, echo, port = chain
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE, source_address=(CLIENT, 0))
    client = f"{CLIENT}:{sock.getsockname()[1]}"
    context = authority.client_context(threads=True) if name else None
    scheme = "wss" if name else "ws"
    with open_websocket(f"{scheme}://{name or 'localhost'}/", sock=sock, ssl=context, proxy=None) as session:
        session.send("hello")
        assert session.recv(timeout=PATIENCE) == "hello"
        seen = echo.requests.get(timeout=PATIENCE).headers
        assert seen["X-Seen"] == client
        # A tunnel cannot tell more than the header does.
        assert seen.get("X-Forwarded-For") == (None if name == "passed.example" else CLIENT)
        (entry,) = running.opened
        assert entry.facts.client == client
    running.until(lambda: running.closed)


def test_the_client_of_a_plain_request_is_known_too(chain) -> None:
    running, _, port = chain
    with socket.create_connection(("127.0.0.1", port), PATIENCE, source_address=(CLIENT, 0)) as sock:
        sock.sendall(b"GET /who HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b""
        while data := sock.recv(4096):
            answer += data
        client = f"{CLIENT}:{sock.getsockname()[1]}"
    assert answer.endswith(b"\r\n\r\n" + client.encode())
    assert [one.client for one in running.answered] == [client]
