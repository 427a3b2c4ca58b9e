"""Clients and browsers that people use, through the router to a real backend."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_websocket

#: How long a client may take, in seconds.
PATIENCE = 20.0
NODE = Path(__file__).parent.parent / "node"


#: With these no client may see a difference, but all of them have to answer the router's pings.
POLICIES = (
    "max_message = 1m",
    "message_rate = 100000/s",
    "byte_rate = 1g/s",
    "ping = 20ms",
    "backend_ping = 20ms",
)


@pytest.fixture(params=[(), POLICIES, (*POLICIES, "compression = both")], ids=["plain", "policies", "messages"])
def echo(router, echo_backend, authority, request):
    """``echo(**options) -> (running, server)``: an echo backend at ``/ws``, and files, for plain and TLS clients."""

    def begin(**options):
        policies = "\n            ".join(request.param)
        server = echo_backend(**options)
        running = router(
            f"""
            [listener main]
            endpoint = tcp:0:interface=127.0.0.1
            certificates = localhost.pem
            [route ws]
            path = /ws
            pool = app
            {policies}
            [route files]
            static = www
            [pool app]
            backends = {server.address}
            """,
            files={
                "localhost.pem": authority.issue("localhost"),
                "ca.pem": authority.pem,
                "www/index.html": "<p>hello</p>\n",
            },
        )
        return running, server

    return begin


def ended(running) -> tuple[str, int | None]:
    """Who ended the one session, and the close code."""
    running.until(lambda: running.closed)
    (_, end), *others = running.closed
    assert not others
    return end.who.value, end.code


# websockets.


def open_websocket(url: str, **options: Any) -> Any:
    """What ``with`` makes a client: every name is this machine, whatever the machine's resolver and proxies are."""
    address = ("127.0.0.1", urlsplit(url).port)
    return connect_websocket(url, address=address, proxy=None, max_size=None, **options)


@pytest.fixture
def websocket(authority):
    """``websocket(running, tls=False, **options)``: a client of the ``websockets`` library."""

    def begin(running, tls: bool = False, path: str = "/ws", **options: Any) -> Any:
        if tls:
            options["ssl"] = authority.client_context(alpn=["http/1.1"], threads=True)
        scheme = "wss" if tls else "ws"
        return open_websocket(f"{scheme}://localhost:{running.port()}{path}", **options)

    return begin


MESSAGES = ["", "hello", "\u4f60\u597d \U0001f680" * 1000, b"\0\xff", b"x" * 300_000, "y" * 70_000]


@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_websockets(echo, websocket, tls, compression) -> None:
    running, server = echo(compression=compression)
    with websocket(running, tls, compression=compression) as client:
        assert bool(client.protocol.extensions) == (compression is not None)
        for message in MESSAGES:
            client.send(message)
        assert [client.recv(PATIENCE) for _ in MESSAGES] == MESSAGES
        client.send(["in ", "three ", "fragments"])
        assert client.recv(PATIENCE) == "in three fragments"
        assert client.ping(b"ping").wait(PATIENCE)
        assert client.request.headers["Host"] == f"localhost:{running.port()}"
        client.close(3001, "enough")
    assert server.closes.get(timeout=PATIENCE) == (3001, "enough")
    assert ended(running) == ("client", 3001)
    counts = running.closed[0][0].counts()
    assert counts.messages_in == counts.messages_out == len(MESSAGES) + 1


def test_websockets_agrees_on_a_subprotocol(echo, websocket) -> None:
    running, server = echo(subprotocols=["chat.v1", "chat.v2"])
    with websocket(running, subprotocols=["other", "chat.v2"]) as client:
        assert client.subprotocol == "chat.v2"
    assert server.requests.get(timeout=PATIENCE).path == "/ws"
    running.until(lambda: running.opened)
    assert running.opened[0].facts.subprotocol == "chat.v2"


def test_websockets_sees_the_status_of_a_refusal(echo, websocket) -> None:
    running, _ = echo()
    with pytest.raises(InvalidStatus) as caught, websocket(running, path="/elsewhere"):
        pass
    assert caught.value.response.status_code == 404


# aiohttp.


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_aiohttp_fetches_a_page_and_opens_a_session(echo, authority, tls) -> None:
    running, _ = echo(subprotocols=["chat.v2"])

    async def visit() -> None:
        connector = aiohttp.TCPConnector(ssl=authority.client_context() if tls else False, resolver=Loopback())
        base = f"{'https' if tls else 'http'}://localhost:{running.port()}"
        async with aiohttp.ClientSession(base, connector=connector) as session:
            async with session.get("/") as page:
                assert (page.status, await page.text()) == (200, "<p>hello</p>\n")
            async with session.ws_connect("/ws", protocols=["chat.v2"], compress=15) as socket:
                assert socket.protocol == "chat.v2"
                assert socket.compress  # the window that was agreed on
                await socket.send_str("hello")
                assert await socket.receive_str(timeout=PATIENCE) == "hello"
                await socket.send_bytes(b"x" * 100_000)
                assert await socket.receive_bytes(timeout=PATIENCE) == b"x" * 100_000
                await socket.close(code=1000, message=b"bye")
            async with session.get("/ws") as refused:
                assert (refused.status, refused.headers["Upgrade"]) == (426, "websocket")

    asyncio.run(visit())
    assert ended(running) == ("client", 1000)
    assert [one.status for one in running.refused] == [426]


class Loopback(aiohttp.abc.AbstractResolver):
    """Every name is this machine, so that a test needs no other resolver."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[Any]:
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 0, "flags": 0}]

    async def close(self) -> None:
        pass


# curl.


@pytest.fixture
def curl(require_program, tmp_path):
    """``curl(running, path, *options) -> (exit status, output)``: over TLS if ``path`` begins with ``https``."""
    program = require_program("curl", "apt-get install curl")

    def fetch(running, url: str, *options: str) -> tuple[int, bytes]:
        done = subprocess.run(
            [
                program,
                "--silent",
                "--include",
                "--no-buffer",
                *("--noproxy", "*", "--max-time", "10", "--resolve", f"localhost:{running.port()}:127.0.0.1"),
                *("--cacert", str(tmp_path / "ca.pem")),
                *options,
                url.replace("localhost", f"localhost:{running.port()}"),
            ],
            capture_output=True,
            check=False,
            timeout=PATIENCE,
        )
        return done.returncode, done.stdout

    return fetch


@pytest.mark.parametrize("url", ["http://localhost/", "https://localhost/"])
@pytest.mark.parametrize("options", [(), ("--http2",), ("--http1.0",)], ids=["plain", "http2", "http1.0"])
def test_curl_fetches_a_page(echo, curl, url, options) -> None:
    # With --http2 curl asks for h2c, or offers h2 in ALPN: it must be content with HTTP/1.1.
    running, _ = echo()
    status, output = curl(running, url, *options)
    head, _, body = output.partition(b"\r\n\r\n")
    assert status == 0
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body == b"<p>hello</p>\n"


def test_curl_is_told_that_a_path_speaks_websocket(echo, curl) -> None:
    running, _ = echo()
    status, output = curl(running, "http://localhost/ws")
    assert status == 0
    assert output.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")


@pytest.mark.parametrize("url", ["http://localhost/ws", "https://localhost/ws"])
def test_curl_upgrades_with_headers_of_its_own(router, backend, authority, curl, frame, url) -> None:
    def greet(peer) -> None:
        peer.answer()
        peer.send(frame(1, b"hello", mask=False) + frame(8, b"\x03\xe8", mask=False))
        peer.recv_all()

    server = backend(greet)
    running = router(
        f"""
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        certificates = localhost.pem
        [route ws]
        path = /ws
        pool = app
        close_timeout = 100ms
        [pool app]
        backends = {server.address}
        """,
        files={"localhost.pem": authority.issue("localhost"), "ca.pem": authority.pem},
    )
    fields = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    headers = [part for pair in fields.items() for part in ("--header", ": ".join(pair))]
    _, output = curl(running, url, "--http1.1", *headers)
    head, _, frames = output.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    # curl answers no Close, so the router ends the connection itself.
    assert frames == b"\x81\x05hello\x88\x02\x03\xe8"
    assert ended(running) == ("backend", 1000)


# npm ws.


@pytest.fixture(scope="session")
def npm_ws(require_program, cannot_run) -> str:
    """The path of node; npm has installed ``ws`` beside the script."""
    node = require_program("node", "apt-get install nodejs")
    npm = require_program("npm", "apt-get install npm")
    if not (NODE / "node_modules" / "ws" / "package.json").exists():
        command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(command, cwd=NODE, capture_output=True, text=True, check=False, timeout=100)
        if done.returncode:
            cannot_run(f"npm cannot install ws (in {NODE}: npm ci):\n{done.stderr}")
    return node


@pytest.fixture
def node(npm_ws, tmp_path):
    """``node(url, messages, subprotocols=[]) -> dict``: what the script in ``tests/node`` saw."""

    def visit(url: str, messages: list[str], subprotocols: tuple[str, ...] = ()) -> dict[str, Any]:
        done = subprocess.run(
            [npm_ws, "client.js", url, json.dumps(messages), json.dumps(subprotocols)],
            cwd=NODE,
            env={**os.environ, "NODE_EXTRA_CA_CERTS": str(tmp_path / "ca.pem")},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    return visit


@pytest.mark.node
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_npm_ws(echo, node, scheme) -> None:
    running, server = echo(subprotocols=["chat.v2"])
    messages = ["hello", "", "x" * 100_000]
    told = node(f"{scheme}://localhost:{running.port()}/ws", messages, ("chat.v1", "chat.v2"))
    assert told == {
        "subprotocol": "chat.v2",
        "extensions": "permessage-deflate",
        "answers": messages,
        "pong": "are you there",
        "code": 3001,
        "reason": "enough",
    }
    assert server.closes.get(timeout=PATIENCE) == (3001, "enough")
    assert ended(running) == ("client", 3001)


@pytest.mark.node
def test_npm_ws_sees_the_status_of_a_refusal(echo, node) -> None:
    running, _ = echo()
    assert node(f"ws://localhost:{running.port()}/elsewhere", []) == {"status": 404}


# Chromium, on the page that ships.


class Chromium:
    """Chromium without a window, driven by its DevTools protocol; one page."""

    def __init__(self, program: str, profile: Path) -> None:
        self.process = subprocess.Popen(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--disable-dev-shm-usage",
                "--no-proxy-server",
                # The router's demonstration certificates are for everybody else to distrust.
                "--ignore-certificate-errors",
                f"--user-data-dir={profile}",
                "--remote-debugging-port=0",
                "about:blank",
            ],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._last = 0
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._socket: ClientConnection | None = None
        self._stack = ExitStack()
        try:
            connecting = open_websocket(self._address(), compression=None, ping_interval=None)
            self._socket = self._stack.enter_context(connecting)
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            self.call("Page.enable")
        except BaseException:
            self.close()
            raise

    def _address(self) -> str:
        """Where the DevTools listen; Chromium tells on its standard error."""
        stderr = self.process.stderr
        assert stderr is not None
        said = []
        for line in stderr:
            said.append(line)
            if line.startswith("DevTools listening on "):
                # What else it says nobody reads, but it must not wait for that.
                self._reader = threading.Thread(target=lambda: [None for _ in stderr], daemon=True)
                self._reader.start()
                return line.split()[-1]
        pytest.fail("Chromium did not start:\n" + "".join(said))

    _session: str | None = None
    _reader: threading.Thread | None = None

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol; events that come meanwhile are kept."""
        assert self._socket is not None
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(PATIENCE))
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._events.put(answer)

    def visit(self, url: str) -> None:
        """Load a page, its deferred scripts included."""
        assert self._socket is not None
        while not self._events.empty():
            self._events.get()
        failed = self.call("Page.navigate", url=url).get("errorText")
        assert failed is None, failed
        while True:
            event = self._events.get() if not self._events.empty() else json.loads(self._socket.recv(PATIENCE))
            if event.get("method") == "Page.loadEventFired":
                return

    def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited."""
        told = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until an expression becomes true, looking whenever the page changes."""
        done = self.run(
            f"""new Promise((tell) => {{
                let observer = null;
                const end = (value) => {{ observer.disconnect(); clearTimeout(timer); tell(value); }};
                const timer = setTimeout(() => end(false), {PATIENCE * 500});
                const look = () => {{ if ({condition}) end(true); }};
                observer = new MutationObserver(look);
                const all = {{ subtree: true, childList: true, attributes: true, characterData: true }};
                observer.observe(document.documentElement, all);
                look();
            }})"""
        )
        assert done, f"waited in vain for {condition}; the page says:\n{self.run('document.body.innerText')}"

    def close(self) -> None:
        """End Chromium."""
        if self._socket is not None:
            self._session = None
            self.call("Browser.close")
            self._stack.close()
        else:
            self.process.terminate()
        self.process.wait(PATIENCE)
        if self._reader is not None:
            self._reader.join(PATIENCE)
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture(scope="module")
def chromium(require_program, tmp_path_factory) -> Iterator[Chromium]:
    browser = Chromium(require_program("chromium", "apt-get install chromium"), tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


SESSIONS = """[...document.querySelectorAll(".session")]
    .map((one) => ({...one.dataset}))
    .sort((one, other) => one.session - other.session)"""


def all_are(count: int, **wanted: object) -> str:
    """A condition on all sessions of the page; ``state="open"`` stands for ``data-state``."""
    same = " && ".join(f"one.dataset.{name} === {json.dumps(str(value))}" for name, value in wanted.items())
    return f"""[...document.querySelectorAll(".session")].filter((one) => {same}).length === {count}"""


@pytest.mark.browser
@pytest.mark.parametrize(("path", "backends"), [("/wsapp", (2222, 3333)), ("/wschat", (4444, 5555))])
def test_on_the_page_sessions_alternate_and_each_stays_with_its_backend(shipped, chromium, path, backends) -> None:
    chromium.visit(f"http://localhost:{shipped.port}/")
    assert chromium.run("document.title").startswith("wsrouter")
    chromium.run(f"document.querySelector('#path').value = '{path}'")
    for count in range(1, 7):
        chromium.run("document.querySelector('#open').click()")
        chromium.until(all_are(count, state="open", received=1, path=path))
    first = [one["backend"] for one in chromium.run(SESSIONS)]
    assert sorted(set(first)) == sorted(str(shipped.ports[number]) for number in backends)
    assert all(one != next_one for one, next_one in pairwise(first)), first
    for count in (2, 3, 4):
        chromium.run("document.querySelector('#text').value = 'again'; document.querySelector('#send').click()")
        chromium.until(all_are(6, state="open", sent=count, received=count))
    assert [one["backend"] for one in chromium.run(SESSIONS)] == first
    assert chromium.run("document.querySelectorAll('#log [data-kind=fault]').length") == 0
    chromium.run("document.querySelector('#close').click()")
    chromium.until(all_are(6, state="closed", code=1000))


@pytest.mark.browser
def test_on_the_page_sessions_that_open_at_once_are_shared_out_evenly(shipped, chromium) -> None:
    chromium.visit(f"http://localhost:{shipped.port}/")
    chromium.run("document.querySelector('#burst').click()")
    chromium.until(all_are(6, state="open", received=1, path="/wsapp"))
    backends = [one["backend"] for one in chromium.run(SESSIONS)]
    assert [backends.count(str(shipped.ports[number])) for number in (2222, 3333)] == [3, 3]
    chromium.run("document.querySelector('#close').click()")
    chromium.until(all_are(6, state="closed", code=1000))


@pytest.mark.browser
def test_over_https_sessions_end_at_the_router_or_pass_through(shipped, chromium) -> None:
    chromium.visit(f"https://localhost:{shipped.port}/")
    chromium.run("document.querySelector('#burst').click()")
    chromium.until(all_are(6, state="open", received=1))
    chromium.run("document.querySelector('#passthrough').click()")
    chromium.until(all_are(1, path="passthrough", state="open", received=1))
    backends = [one["backend"] for one in chromium.run(SESSIONS)]
    assert backends[-1] == str(shipped.ports[6443])
    assert backends[:6].count(str(shipped.ports[2222])) == 3
    chromium.run("document.querySelector('#close').click()")
    chromium.until(all_are(7, state="closed", code=1000))


@pytest.mark.browser
def test_a_page_may_open_what_its_route_allows_and_sees_other_refusals(shipped, chromium) -> None:
    chromium.visit(f"http://localhost:{shipped.port}/")
    told = chromium.run(
        """new Promise((tell) => {
            const socket = new WebSocket(`ws://${location.host}/nowhere`);
            socket.onclose = (event) => tell([event.code, event.wasClean]);
        })"""
    )
    assert told == [1006, False]
    assert chromium.run("fetch('/wsapp').then((answer) => answer.status)") == 426
    assert chromium.run("fetch('/nothing.txt').then((answer) => answer.status)") == 404
    assert chromium.run("fetch('/app.js').then((answer) => answer.text()).then((text) => text.length > 1000)")


@pytest.fixture(scope="module")
def denying(shipped_with, tmp_path_factory):
    """The shipped router with routes where a word is denied, each named after what is done then."""
    words = tmp_path_factory.mktemp("words") / "words.txt"
    words.write_text("idiot\n")
    routes = "".join(
        f"[route {action}]\npath = /{action}\npool = app\ncompression = client\n"
        f"filter = deny-words {words} action={action}\n"
        for action in ("mask", "drop", "close")
    )
    return shipped_with(lambda text: f"{text}\n{routes}")


@pytest.mark.browser
def test_a_denied_word_is_masked_dropped_or_ends_the_session_in_the_browser(denying, chromium) -> None:
    chromium.visit(f"http://localhost:{denying.port}/")
    told = chromium.run(
        """Promise.all(["mask", "drop", "close"].map((action) => new Promise((tell) => {
            const socket = new WebSocket(`ws://${location.host}/${action}`);
            const seen = [];
            socket.onopen = () => { seen.push(socket.extensions); socket.send("you IDIOT"); socket.send("idiotic"); };
            socket.onmessage = (event) => {
                seen.push(event.data.replace(/^\\d+: /, ""));
                if (event.data.endsWith("idiotic")) socket.close(1000);
            };
            socket.onclose = (event) => tell([...seen, event.code, event.reason]);
        })))"""
    )
    assert told == [
        ["permessage-deflate", "you *****", "idiotic", 1000, ""],
        ["permessage-deflate", "idiotic", 1000, ""],
        ["permessage-deflate", 1008, "the message holds a denied word"],
    ]


def test_the_shipped_certificates_satisfy_a_client_that_trusts_their_ca(shipped) -> None:
    context = ssl.create_default_context(cafile=shipped.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # as for every client that reads and writes in two threads
    for name, path, backend in (("localhost", "/wsapp", (2222, 3333)), ("passthrough.localhost", "/", (6443,))):
        with open_websocket(f"wss://{name}:{shipped.port}{path}", ssl=context) as client:
            client.send("hello")
            assert client.recv(PATIENCE) in {f"{shipped.ports[number]}: hello" for number in backend}
