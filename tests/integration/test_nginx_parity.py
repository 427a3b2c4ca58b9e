"""The router against nginx with the configuration that every tutorial shows: the same backends, the same clients.

Whoever moves from nginx must find the same answers, byte for byte where it matters. Where the router answers otherwise
on purpose, ``DIFFERENCES`` says how, and why.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.integration.nginx import HTTP, PREAMBLE, serving

PATIENCE = 10.0
MODULES = Path("/usr/lib/nginx/modules")

#: What was asked -> the statuses of nginx and of the router.
DIFFERENCES = {
    # The router tells a backend that is not there (503, with Retry-After) from one that talks nonsense (502).
    "a backend that refuses": (502, 503),
    # nginx hands plain requests to the WebSocket backends too; a route of the router says which requests it takes.
    "a plain request where sessions live": (200, 426),
    # RFC 6585 has a status of its own for it.
    "a header line of 10 KiB": (400, 431),
}

NGINX = (
    "{modules}"
    + PREAMBLE
    + "http {{"
    + HTTP
    + """
    types {{ text/html html; text/css css; text/javascript js; image/svg+xml svg; }}
    charset utf-8;
    charset_types text/css text/javascript;

    map $http_upgrade $connection_upgrade {{
        default upgrade;
        ''      close;
    }}
    upstream app    {{ server 127.0.0.1:{p2222}; server 127.0.0.1:{p3333}; }}
    upstream chat   {{ server 127.0.0.1:{p4444}; server 127.0.0.1:{p5555}; }}
    upstream down   {{ server {refusing}; }}
    upstream half   {{ server {refusing}; server 127.0.0.1:{p2222}; }}

    server {{
        listen 127.0.0.1:{plain};
        listen 127.0.0.1:{inner} ssl;
        server_name localhost;
        ssl_certificate {folder}/localhost.pem;
        ssl_certificate_key {folder}/localhost.pem;

        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $connection_upgrade;
        proxy_set_header Host $host;
        proxy_set_header X-Forwarded-For $remote_addr;

        location /wsapp  {{ proxy_pass http://app; }}
        location /wschat {{ proxy_pass http://chat; }}
        location /both   {{ proxy_pass http://app; }}
        location /down   {{ proxy_pass http://down; }}
        location /half   {{ proxy_pass http://half; }}
        location /       {{ root {www}; }}
    }}
}}

stream {{
    map $ssl_preread_server_name $way {{
        passthrough.localhost 127.0.0.1:{p6443};
        default               127.0.0.1:{inner};
    }}
    server {{
        listen 127.0.0.1:{tls};
        ssl_preread on;
        proxy_pass $way;
    }}
}}
"""
)

ROUTES = """
[route both]
path = /both
pool = app
accept = both
[route down]
path = /down
pool = down
[route half]
path = /half
pool = half
[pool down]
backends = {refusing}
[pool half]
backends =
    {refusing}
    127.0.0.1:{live}
"""


@dataclass(frozen=True)
class Proxy:
    """One of the two, running: where it speaks HTTP and TLS, and a client's context that trusts its certificates."""

    name: str
    plain: int
    tls: int
    context: ssl.SSLContext
    #: The ports of the backends, by those in the shipped configuration.
    backends: dict[int, int]
    www: Path

    def get(
        self, path: str, method: str = "GET", tls: bool = False, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, fields (names in lower case) and body."""
        connection: http.client.HTTPConnection
        if tls:
            connection = http.client.HTTPSConnection("localhost", self.tls, timeout=PATIENCE, context=self.context)
        else:
            connection = http.client.HTTPConnection("localhost", self.plain, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
            answer = connection.getresponse()
            fields = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, fields, answer.read()

    def raw(self, request: bytes) -> int:
        """The status that a request gets which no client would write."""
        with socket.create_connection(("127.0.0.1", self.plain), PATIENCE) as sock:
            sock.sendall(request)
            answer = b""
            while b"\r\n" not in answer and (data := sock.recv(4096)):
                answer += data
        return int(answer.split()[1])

    def websocket(self, path: str, name: str | None = None, **options: Any) -> Any:
        """What ``with`` makes a session; with ``name``, over TLS."""
        port = self.plain if name is None else self.tls
        url = f"ws://localhost:{port}{path}" if name is None else f"wss://{name}:{port}{path}"
        if name is not None:
            options["ssl"] = self.context
        return connect(url, address=("127.0.0.1", port), proxy=None, open_timeout=PATIENCE, **options)

    def refused(self, path: str) -> int:
        """The status that an opening handshake gets instead of a session."""
        with pytest.raises(InvalidStatus) as caught, self.websocket(path):
            pass
        return int(caught.value.response.status_code)

    def differs(self, what: str) -> int:
        """What is expected where the two differ."""
        return DIFFERENCES[what][self.name == "wsrouter"]


@pytest.fixture(scope="module")
def refusing() -> Iterator[str]:
    """An address where connections are refused."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{sock.getsockname()[1]}"


@pytest.fixture(scope="module")
def routed(shipped_with, refusing, authority) -> Iterator[Any]:
    """The router as it ships, with routes to a pool that is down and one that is down by half."""

    def configure(text: str) -> str:
        # The file's first backend of the pool app is alive.
        found = re.search(r"^\[echo app\]\nports = (\d+)", text, re.MULTILINE)
        assert found is not None
        return text + ROUTES.format(refusing=refusing, live=found[1])

    return shipped_with(configure)


@pytest.fixture(scope="module")
def proxies(routed, refusing, authority, nginx_program, tmp_path_factory) -> Iterator[dict[str, Proxy]]:
    """Both, before the same backends and files."""
    folder = tmp_path_factory.mktemp("nginx")
    (folder / "localhost.pem").write_bytes(authority.issue("localhost"))
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        plain, inner, tls = (one.getsockname()[1] for one in sockets)
    www = routed.folder / "www"
    configuration = NGINX.format(
        modules=f"load_module {MODULES}/ngx_stream_module.so;",
        folder=folder,
        www=www,
        refusing=refusing,
        plain=plain,
        inner=inner,
        tls=tls,
        **{f"p{number}": port for number, port in routed.ports.items()},
    )
    context = authority.client_context(threads=True)
    context.load_verify_locations(routed.ca)
    with serving(nginx_program, folder, configuration):
        yield {
            "nginx": Proxy("nginx", plain, tls, context, routed.ports, www),
            "wsrouter": Proxy("wsrouter", routed.port, routed.port, context, routed.ports, www),
        }


@pytest.fixture(scope="module")
def nginx_program(require_program, cannot_run) -> str:
    """nginx, with what tunnels need."""
    program = require_program("nginx", "apt-get install nginx libnginx-mod-stream")
    if not (MODULES / "ngx_stream_module.so").exists():
        cannot_run("nginx has no stream module; get it with: apt-get install libnginx-mod-stream")
    return program


@pytest.fixture(params=["nginx", "wsrouter"])
def proxy(proxies, request) -> Proxy:
    return proxies[request.param]


# Sessions.


@pytest.mark.parametrize(
    ("path", "backends"), [("/wsapp", (2222, 3333)), ("/wschat", (4444, 5555)), ("/wsapp/a", (2222, 3333))]
)
def test_sessions_alternate_and_each_stays_with_its_backend(proxy, path, backends) -> None:
    seen = []
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(proxy.websocket(path)) for _ in range(6)]
        for text in ("one", "two", "three"):
            for session in sessions:
                session.send(text)
            answers = [session.recv(PATIENCE) for session in sessions]
            assert all(answer.endswith(f": {text}") for answer in answers)
            seen.append([int(answer.partition(":")[0]) for answer in answers])
    assert set(seen[0]) == {proxy.backends[number] for number in backends}
    assert all(one != other for one, other in pairwise(seen[0]))
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_what_is_sent_comes_back(proxy, compression) -> None:
    with proxy.websocket("/wsapp", compression=compression) as session:
        assert bool(session.protocol.extensions) == (compression is not None)
        for message in (b"", b"\0" * 200_000, os.urandom(70_000)):
            session.send(message)
            assert session.recv(PATIENCE) == message
        session.send(["in ", "three ", "fragments"])
        assert session.recv(PATIENCE).endswith(": in three fragments")
        assert session.ping(b"ping").wait(PATIENCE)


@pytest.mark.parametrize("offered", [["chat.v2", "chat.v1"], ["one"], []])
def test_the_backend_chooses_the_subprotocol(proxy, offered) -> None:
    with proxy.websocket("/wsapp", subprotocols=offered or None) as session:
        assert session.subprotocol == (offered[0] if offered else None)


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "away"), (3001, "enough"), (4999, "x" * 100)])
def test_close_codes_pass_both_ways(proxy, code, reason) -> None:
    with proxy.websocket("/wsapp") as session:
        session.close(code, reason)
        assert (session.close_code, session.close_reason) == (code, reason)
        assert session.protocol.close_rcvd.code == code


def test_the_backends_own_close_reaches_the_client(proxy) -> None:
    with proxy.websocket("/wsapp", max_size=None) as session:
        session.send(bytes(1024 * 1024 + 1))
        with pytest.raises(ConnectionClosed) as caught:
            session.recv(PATIENCE)
    assert caught.value.rcvd.code == 1009


@pytest.mark.parametrize("path", ["/nothing", "/ws", "/WSAPP"])
def test_a_session_nowhere_gets_404(proxy, path) -> None:
    assert proxy.refused(path) == 404


def test_a_session_on_a_file_gets_the_file(proxy) -> None:
    assert proxy.refused("/index.html") == 200


def test_a_pool_that_is_down_by_half_serves_every_session(proxy) -> None:
    for _ in range(4):
        with proxy.websocket("/half") as session:
            session.send("hello")
            assert session.recv(PATIENCE) == f"{proxy.backends[2222]}: hello"


def test_a_pool_that_is_down(proxy) -> None:
    assert proxy.refused("/down") == proxy.differs("a backend that refuses")


# TLS.


def test_tls_ends_before_the_backends(proxy) -> None:
    seen = []
    for _ in range(4):
        with proxy.websocket("/wschat", name="localhost") as session:
            session.send("hello")
            seen.append(session.recv(PATIENCE))
    assert set(seen) == {f"{proxy.backends[number]}: hello" for number in (4444, 5555)}
    assert all(one != other for one, other in pairwise(seen))


def test_tls_passes_through_by_name(proxy) -> None:
    with proxy.websocket("/", name="passthrough.localhost") as session:
        names = [value for _, value in session.socket.getpeercert()["subjectAltName"]]
        assert names == ["passthrough.localhost"]
        session.send("hello")
        assert session.recv(PATIENCE) == f"{proxy.backends[6443]}: hello"


def test_a_page_over_tls_is_the_same_page(proxy) -> None:
    assert proxy.get("/", tls=True)[2] == (proxy.www / "index.html").read_bytes()


# Files and plain requests.


@pytest.mark.parametrize(
    ("path", "file", "kind"),
    [
        ("/", "index.html", "text/html; charset=utf-8"),
        ("/index.html", "index.html", "text/html; charset=utf-8"),
        ("/app.js", "app.js", "text/javascript; charset=utf-8"),
        ("/style.css?v=1", "style.css", "text/css; charset=utf-8"),
        ("/./%61pp.js", "app.js", "text/javascript; charset=utf-8"),
        ("/x/../favicon.svg", "favicon.svg", "image/svg+xml"),
    ],
)
def test_files_are_the_same_bytes_of_the_same_kind(proxy, path, file, kind) -> None:
    status, fields, body = proxy.get(path)
    content = (proxy.www / file).read_bytes()
    assert (status, body) == (200, content)
    assert fields["content-type"] == kind
    assert fields["content-length"] == str(len(content))
    assert proxy.get(path, "HEAD")[1]["content-length"] == str(len(content))
    assert proxy.get(path, "HEAD")[2] == b""


def test_a_file_is_sent_in_parts_and_only_when_it_is_new(proxy) -> None:
    content = (proxy.www / "app.js").read_bytes()
    status, fields, body = proxy.get("/app.js", Range="bytes=10-19")
    assert (status, body) == (206, content[10:20])
    assert fields["content-range"] == f"bytes 10-19/{len(content)}"
    assert proxy.get("/app.js", Range=f"bytes={len(content)}-")[0] == 416
    _, fields, _ = proxy.get("/app.js")
    assert proxy.get("/app.js", If_Modified_Since=fields["last-modified"])[0] == 304
    assert proxy.get("/app.js", If_None_Match=fields["etag"])[::2] == (304, b"")


@pytest.mark.parametrize("path", ["/nothing", "/index.html/x", "/app.js/", "/.htaccess"])
def test_a_file_that_is_not_there_gets_404(proxy, path) -> None:
    assert proxy.get(path)[0] == 404


def test_a_file_takes_no_post(proxy) -> None:
    assert proxy.get("/index.html", "POST")[0] == 405


def test_plain_requests_alternate_too(proxy) -> None:
    pages = [proxy.get("/both")[::2] for _ in range(4)]
    assert {status for status, _ in pages} == {200}
    assert len({page for _, page in pages}) == 2
    assert all(one != other for one, other in pairwise(pages))


def test_a_plain_request_where_sessions_live(proxy) -> None:
    assert proxy.get("/wsapp")[0] == proxy.differs("a plain request where sessions live")


BAD = {
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a NUL": b"GET / HTTP/1.1\r\nHost: a\r\nX-A: b\0c\r\n\r\n",
    "a path above the root": b"GET /../x HTTP/1.1\r\nHost: a\r\n\r\n",
    "a path above the root, encoded": b"GET /%2e%2e/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "an encoded NUL": b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a malformed percent-encoding": b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n",
    "two lengths": b"POST /both HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "a length with a sign": b"POST /both HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n",
    "Content-Length with Transfer-Encoding": (
        b"POST /both HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
}


@pytest.mark.parametrize("request_bytes", BAD.values(), ids=BAD.keys())
def test_a_bad_request_gets_400(proxy, request_bytes) -> None:
    assert proxy.raw(request_bytes) == 400


def test_heads_that_are_too_long(proxy) -> None:
    assert proxy.raw(b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"a" * 10_000)) == 414
    line = b"GET / HTTP/1.1\r\nHost: a\r\nX-A: %b\r\n\r\n" % (b"a" * 10_000)
    assert proxy.raw(line) == proxy.differs("a header line of 10 KiB")


def test_http_1_0_without_a_host_gets_the_page(proxy) -> None:
    assert proxy.raw(b"GET / HTTP/1.0\r\n\r\n") == 200


def test_a_connection_carries_several_requests(proxy) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", proxy.plain, timeout=PATIENCE)) as connection:
        connection.connect()
        first = connection.sock
        for path in ("/", "/nothing", "/app.js"):
            connection.request("GET", path)
            connection.getresponse().read()
            assert connection.sock is first
