"""Pools over sockets: who gets what, who waits, who is remembered, who is taken out, and what is told first."""

from __future__ import annotations

import contextlib
import re
import ssl
import string
from collections import Counter
from collections.abc import Callable

import pytest

from wsrouter.backends.tls import PoolTls
from wsrouter.live.registry import Who
from wsrouter.policy.health import Hand, State
from wsrouter.sniff.proxy_protocol import Header, read_header

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10

KINDS = ["session", "tunnel", "http"]

#: A session that ends without a Close frame is no fault of a backend's: the test looks at it from its own side.
UNTIL_IT_ENDS = contextlib.suppress(OSError, pytest.fail.Exception)


class Fleet:
    """Backends that say their letter, whatever is asked of them: a WebSocket, an HTTP answer, or a tunnel's bytes."""

    def __init__(self, backend, frame, tls: ssl.SSLContext | None) -> None:
        self._frame = frame
        self.servers = []
        for letter in "ABC":
            self.servers.append(backend(lambda peer, letter=letter: self._serve(peer, letter.encode()), tls=tls))
        self.addresses = [server.address for server in self.servers]
        #: The heads of the requests that came.
        self.heads: list[bytes] = []

    def pool(self, *words: str) -> str:
        """The value of ``backends``: one backend for each of ``words``, which follow its address."""
        pairs = zip(self.addresses, words, strict=False)
        return "".join(f"\n    {address} {word}".rstrip() for address, word in pairs)

    def _serve(self, peer, letter: bytes) -> None:
        # A kept connection may end between two requests.
        while first := peer.buffer or peer.socket.recv(65536):
            if first == b"\0":
                peer.send(letter)
                peer.recv_all()
                return
            peer.buffer = first
            head = peer.recv_head()
            self.heads.append(head)
            if b"Upgrade: websocket" in head:
                peer.send(peer.agreement(head) + self._frame(TEXT, letter, mask=False))
                with UNTIL_IT_ENDS:
                    while (got := peer.recv_frame()).opcode != CLOSE:
                        pass
                    peer.send(self._frame(CLOSE, got.payload, mask=False))
                return
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + letter)


@pytest.fixture
def fleet(backend, frame) -> Fleet:
    return Fleet(backend, frame, None)


class Clients:
    """Ask one router, in each of the three ways, and hear which backend it was."""

    def __init__(self, running, connect, frame) -> None:
        self.running = running
        self._connect = connect
        self._frame = frame
        #: Of the last answer.
        self.head = b""

    @property
    def pool(self):
        return self.running.service.pools["app"]

    def begin(self, kind: str, path: str = "/ws", headers=(), **more):
        """A client that has asked."""
        client = self._connect(self.running.port(), **more)
        if kind == "session":
            client.request(path, headers=headers)
        elif kind == "http":
            fields = "".join(f"{name}: {value}\r\n" for name, value in headers)
            client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n".encode())
        else:
            client.send(b"\0")
        return client

    def hear(self, kind: str, client) -> str:
        """The letter of the backend that serves it."""
        if kind == "tunnel":
            return client.recv_exactly(1).decode()
        self.head = client.recv_head()
        if kind == "session":
            assert self.head.startswith(b"HTTP/1.1 101 "), self.head
            return client.recv_frame().payload.decode()
        assert self.head.startswith(b"HTTP/1.1 200 "), self.head
        return client.recv_exactly(1).decode()

    def ask(self, kind: str, path: str | None = None, headers=(), **more) -> str:
        """Ask, and keep what was opened: a session or a tunnel lives until the test is over."""
        if path is None:
            path = "/ws" if kind == "session" else "/"
        return self.hear(kind, self.begin(kind, path, headers, **more))

    def many(self, kind: str, count: int, **more) -> Counter[str]:
        return Counter(self.ask(kind, **more) for _ in range(count))

    def refused(self, client) -> bytes:
        """The head of the 503 that it gets."""
        head = client.recv_head()
        assert head.startswith(b"HTTP/1.1 503 "), head
        return head

    def by_hand(self, place: int, hand: Hand) -> None:
        pool = self.pool
        self.running.call(lambda: pool.table.by_hand(pool.members[place], pool.relay.seconds(), hand))

    def state(self, place: int) -> State:
        return self.pool.table[self.pool.members[place]].state

    @property
    def live(self) -> list[int]:
        return [member.live for member in self.pool.members]

    @property
    def cookie(self) -> str:
        """The name and value that the last answer's Set-Cookie asks for."""
        found = re.search(rb"\r\nSet-Cookie: ([^;\r]+)", self.head)
        assert found is not None, self.head
        return found[1].decode()


@pytest.fixture
def clients_of(router, connect, frame) -> Callable[..., Clients]:
    """``clients_of(backends, pool="", listener="", tunnel="match = opaque") -> Clients`` of a router with one pool."""

    def make(backends: str, pool: str = "", listener: str = "", tunnel: str = "match = opaque", files=None) -> Clients:
        ini = (
            f"[listener main]\nendpoint = tcp:0:interface=127.0.0.1\n{listener}\n"
            "[route ws]\npath = /ws\npool = app\naccept = both\n[route http]\npath = /\naccept = http\npool = app\n"
            f"[pool app]\nbackends = {backends}\n{pool}\n"
        )
        if tunnel:
            ini += f"[tunnel all]\n{tunnel}\npool = app\n"
        return Clients(router(ini, files), connect, frame)

    return make


# Balance.


@pytest.mark.parametrize(
    ("balance", "words", "held", "passing"),
    [
        ("round-robin", ("weight=2", ""), {"A": 6, "B": 3}, {"A": 6, "B": 3}),
        # Requests that are over leave nobody loaded.
        ("least-sessions", ("weight=2", ""), {"A": 6, "B": 3}, None),
        ("random-two", ("weight=2", ""), {"A": 6, "B": 3}, None),
        ("first", ("max_sessions=4", ""), {"A": 4, "B": 5}, {"A": 9}),
        ("hash client-ip", ("", ""), None, None),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_each_balance_holds_for_sessions_tunnels_and_requests(
    clients_of, fleet, balance, words, held, passing, kind
) -> None:
    clients = clients_of(fleet.pool(*words), f"balance = {balance}")
    counts = clients.many(kind, 9)
    expected = passing if kind == "http" else held
    if balance.startswith("hash"):
        # One client, one backend.
        assert list(counts.values()) == [9]
    elif expected is None:
        assert counts.total() == 9
    else:
        assert counts == expected
    if kind == "http":
        clients.running.until(lambda: clients.live == [0, 0])
    else:
        assert clients.live == [counts["A"], counts["B"]]


@pytest.mark.parametrize("kind", KINDS)
def test_who_has_no_weight_gets_nothing_and_a_backup_only_what_nobody_else_takes(clients_of, fleet, kind) -> None:
    clients = clients_of(fleet.pool("weight=0", "", "backup"))
    assert clients.many(kind, 3) == {"B": 3}
    clients.by_hand(1, Hand.DRAIN)
    assert clients.many(kind, 3) == {"C": 3}
    clients.by_hand(1, Hand.UP)
    assert clients.many(kind, 3) == {"B": 3}


def test_slow_start_keeps_new_sessions_away_from_one_that_has_just_come_back(clients_of, fleet) -> None:
    clients = clients_of(fleet.pool("", ""), "balance = least-sessions\nslow_start = 1h")
    clients.by_hand(1, Hand.DRAIN)
    assert clients.many("session", 2) == {"A": 2}
    clients.by_hand(1, Hand.UP)
    # It is the emptier one, and yet as loaded as A is, for the part of its weight that it has.
    assert clients.many("session", 4) == {"A": 4}


# What is hashed.


HEADERS = [
    ("path", lambda key: {"path": f"/ws/{key}"}),
    ("header:x-room", lambda key: {"headers": [("X-Room", key)]}),
    ("cookie:room", lambda key: {"headers": [("Cookie", f"a=b; room={key}")]}),
    ("query:room", lambda key: {"path": f"/ws?x=1&room={key}"}),
]


@pytest.mark.parametrize(("what", "asking"), HEADERS, ids=[what for what, _ in HEADERS])
@pytest.mark.parametrize("kind", ["session", "http"])
def test_the_same_key_finds_the_same_backend_and_others_are_spread(clients_of, fleet, what, asking, kind) -> None:
    clients = clients_of(fleet.pool("", "", ""), f"balance = hash {what}", tunnel="")
    found = {key: clients.ask(kind, **asking(key)) for key in string.ascii_lowercase}
    assert len(set(found.values())) > 1
    assert {key: clients.ask(kind, **asking(key)) for key in found} == found


@pytest.mark.parametrize("ends", ["at the router", "at the backend"])
def test_the_same_server_name_finds_the_same_backend(clients_of, backend, frame, authority, ends) -> None:
    # Where the backends lie on the ring depends on their ports, and one may have most of it.
    names = [f"{letter}.pools.example" for letter in string.ascii_lowercase]
    theirs = authority.server_context("*.pools.example")
    fleet = Fleet(backend, frame, theirs if ends == "at the backend" else None)
    backends = fleet.pool("", "", "")
    if ends == "at the backend":
        clients = clients_of(backends, "balance = hash sni", tunnel="match = tls sni=*.pools.example")
    else:
        clients = clients_of(
            backends, "balance = hash sni", "certificates = a.pem", "", {"a.pem": authority.issue("*.pools.example")}
        )

    def ask(name: str) -> str:
        # The Host must be one of the certificate's.
        client = clients._connect(clients.running.port(), tls=authority.client_context(), name=name)
        client.send(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
        return clients.hear("http", client)

    found = {name: ask(name) for name in names}
    assert len(set(found.values())) > 1
    assert {name: ask(name) for name in names} == found


# Waiting.


def in_line(clients: Clients, count: int) -> None:
    clients.running.until(lambda: len(clients.pool.line) == count)


ONE_PLACE = "queue = 5\nqueue_timeout = 60s"


def test_who_finds_all_full_waits_and_is_served_in_order(clients_of, fleet) -> None:
    clients = clients_of(fleet.pool("max_sessions=1"), ONE_PLACE)
    first = clients.begin("session")
    assert clients.hear("session", first) == "A"
    waiting = []
    for kind in ("tunnel", "session", "http", "session"):
        waiting.append((kind, clients.begin(kind)))
        in_line(clients, len(waiting))
    assert all(client.nothing_comes() for _, client in waiting)
    assert clients.live == [1]
    ends = first
    for place, (kind, client) in enumerate(waiting, 1):
        ends.close()
        assert clients.hear(kind, client) == "A"
        # A request is over with its answer, and its place goes on by itself.
        assert clients.live in ([1], [0])
        assert len(clients.pool.line) <= len(waiting) - place
        assert kind == "http" or all(other.nothing_comes() for _, other in waiting[place + 1 :])
        ends = client
    ends.close()
    clients.running.until(lambda: clients.live == [0])


@pytest.mark.parametrize("kind", KINDS)
def test_who_leaves_the_line_leaves_no_count_behind(clients_of, fleet, kind) -> None:
    clients = clients_of(fleet.pool("max_sessions=1"), ONE_PLACE)
    first = clients.begin("session")
    clients.hear("session", first)
    gone = clients.begin(kind)
    in_line(clients, 1)
    stays = clients.begin("session")
    in_line(clients, 2)
    gone.close()
    if kind != "tunnel":
        in_line(clients, 1)
    # A tunnel's client may have said its last word and still wait for an answer: its turn shows that it has gone.
    assert clients.live == [1]
    first.close()
    assert clients.hear("session", stays) == "A"
    assert clients.live == [1]
    stays.close()
    clients.running.until(lambda: clients.live == [0])


@pytest.mark.parametrize(
    ("kind", "said"), [("session", 0), ("session", 200_000), ("tunnel", 0), ("tunnel", 200_000), ("http", 0)]
)
def test_who_is_reset_in_line_makes_room_at_once(clients_of, fleet, kind, said) -> None:
    clients = clients_of(fleet.pool("max_sessions=1"), ONE_PLACE)
    first = clients.begin("session")
    clients.hear("session", first)
    gone = clients.begin(kind)
    in_line(clients, 1)
    # So much that the router stops to read.
    gone.send(bytes(said))
    clients.running.settle()
    gone.reset()
    in_line(clients, 0)
    assert clients.live == [1]
    first.close()
    clients.running.until(lambda: clients.live == [0])


@pytest.mark.parametrize("kind", KINDS)
def test_who_has_waited_in_vain_is_told_to_come_back(clients_of, fleet, kind) -> None:
    clients = clients_of(fleet.pool("max_sessions=1"), "queue = 1\nqueue_timeout = 200ms")
    assert clients.ask("session") == "A"
    client = clients.begin(kind)
    if kind == "tunnel":
        assert client.recv_all() == b""
    else:
        assert b"\r\nRetry-After: " in clients.refused(client)
    assert clients.live == [1]
    assert len(clients.pool.line) == 0
    clients.running.until(lambda: clients.running.refused)
    assert "full" in clients.running.refused[-1].reason


def test_a_line_that_is_too_long_takes_nobody(clients_of, fleet) -> None:
    clients = clients_of(fleet.pool("max_sessions=1"), "queue = 1\nqueue_timeout = 60s")
    assert clients.ask("session") == "A"
    clients.begin("session")
    in_line(clients, 1)
    assert b"\r\nRetry-After: " in clients.refused(clients.begin("session"))
    assert b"\r\nRetry-After: " in clients.refused(clients.begin("http"))


@pytest.mark.parametrize("kind", ["session", "http"])
def test_where_all_are_down_nobody_waits(clients_of, fleet, kind) -> None:
    clients = clients_of(fleet.pool("max_sessions=1", "max_sessions=1"), ONE_PLACE)
    clients.by_hand(0, Hand.DOWN)
    clients.by_hand(1, Hand.DRAIN)
    assert b"\r\nRetry-After: " in clients.refused(clients.begin(kind))
    clients.running.until(lambda: clients.running.refused)
    assert "down" in clients.running.refused[-1].reason


def test_those_in_line_get_the_place_of_a_backend_that_comes_back(clients_of, fleet) -> None:
    clients = clients_of(fleet.pool("max_sessions=1", "max_sessions=1"), ONE_PLACE)
    clients.by_hand(1, Hand.DOWN)
    assert clients.ask("session") == "A"
    client = clients.begin("session")
    in_line(clients, 1)
    clients.by_hand(1, Hand.UP)
    assert clients.hear("session", client) == "B"
    assert clients.live == [1, 1]


def test_a_router_that_stops_leaves_nobody_in_line(clients_of, fleet) -> None:
    clients = clients_of(fleet.pool("max_sessions=1"), ONE_PLACE)
    assert clients.ask("session") == "A"
    for kind in KINDS:
        clients.begin(kind)
    in_line(clients, 3)
    clients.running.call(clients.running.service.stopService)
    assert len(clients.pool.line) == 0
    clients.running.until(lambda: clients.live == [0])


# Sticky cookies.


@pytest.mark.parametrize("kind", ["session", "http"])
def test_a_cookie_brings_the_client_back_to_its_backend(clients_of, fleet, kind) -> None:
    clients = clients_of(fleet.pool("", "", ""), "sticky = cookie wsr")
    first = clients.ask(kind)
    assert re.search(rb"\r\nSet-Cookie: wsr=[\w-]{16}; Path=/; HttpOnly; SameSite=Lax\r\n", clients.head)
    cookie = clients.cookie
    # Whatever it asks for: the page, then the session.
    for other in ("http", "session", "http"):
        assert clients.ask(other, headers=[("Cookie", f"x=y; {cookie}")]) == first
        assert b"Set-Cookie" not in clients.head
    assert {clients.ask(kind) for _ in range(3)} == {"A", "B", "C"}


def test_a_cookie_over_tls_is_secure(clients_of, fleet, authority) -> None:
    listener, files = "certificates = a.pem", {"a.pem": authority.issue("localhost")}
    clients = clients_of(fleet.pool("", ""), "sticky = cookie wsr samesite=strict", listener, "", files)
    for kind in ("session", "http"):
        clients.ask(kind, tls=authority.client_context(), name="localhost")
        assert b"; HttpOnly; SameSite=Strict; Secure\r\n" in clients.head


def test_a_cookie_with_an_age_is_set_anew_each_time(clients_of, fleet) -> None:
    clients = clients_of(fleet.pool("", ""), "sticky = cookie wsr max_age=1h")
    first = clients.ask("session")
    for kind in ("session", "http"):
        assert clients.ask(kind, headers=[("Cookie", clients.cookie)]) == first
        assert b"; Max-Age=3600" in clients.head


@pytest.mark.parametrize("how", ["killed", "drained", "off"])
@pytest.mark.parametrize("kind", ["session", "http"])
def test_a_cookie_whose_backend_is_gone_leads_to_another_with_a_new_cookie(clients_of, fleet, kind, how) -> None:
    clients = clients_of(fleet.pool("", ""), "sticky = cookie wsr")
    first = clients.ask(kind)
    old, place = clients.cookie, "AB".index(first)
    if how == "killed":
        fleet.servers[place].close()
    else:
        clients.by_hand(place, Hand.DRAIN if how == "drained" else Hand.DOWN)
    second = clients.ask(kind, headers=[("Cookie", old)])
    assert second != first
    new = clients.cookie
    assert new != old
    assert clients.ask(kind, headers=[("Cookie", new)]) == second
    assert b"Set-Cookie" not in clients.head


def test_a_cookie_of_a_backend_that_a_reload_took_away_leads_to_another(clients_of, fleet) -> None:
    clients = clients_of(fleet.pool("", ""), "sticky = cookie wsr", tunnel="")
    first = clients.ask("session")
    old, pool = clients.cookie, clients.pool
    staying = tuple(one.backend for one in pool.members if one.label != pool.members["AB".index(first)].label)
    config = type(pool.config)(**{name: getattr(pool.config, name) for name in pool.config.__slots__})
    object.__setattr__(config, "backends", staying)
    clients.running.call(pool.reconfigure, config, None, PoolTls.read(config))
    assert clients.ask("session", headers=[("Cookie", old)]) != first
    assert clients.cookie != old
    # The session of the one that left lives on.
    assert clients.running.live == 2


def test_a_secret_makes_other_cookies_and_those_of_nobody_else_count(clients_of, fleet) -> None:
    plain = clients_of(fleet.pool("", ""), "sticky = cookie wsr")
    plain.ask("session")
    made_up = plain.cookie
    clients = clients_of(
        fleet.pool("", ""), "sticky = cookie wsr\nsticky_secret = secret", files={"secret": "s" * 32 + "\n"}
    )
    first = clients.ask("session", headers=[("Cookie", made_up)])
    signed = clients.cookie
    assert signed != made_up
    assert [clients.ask("session", headers=[("Cookie", signed)]) for _ in range(3)] == [first] * 3


def test_a_full_backend_does_not_hold_its_clients_back(clients_of, fleet) -> None:
    clients = clients_of(fleet.pool("max_sessions=1", ""), "sticky = cookie wsr\nbalance = first")
    assert clients.ask("session") == "A"
    assert clients.ask("session", headers=[("Cookie", clients.cookie)]) == "B"


# Backends that fail.


@pytest.fixture
def turned_away(backend):
    """A backend that reads a request's head and closes without a word."""
    return backend(lambda peer: peer.recv_head())


def test_a_backend_that_fails_three_times_is_ejected_and_comes_back(clients_of, fleet, turned_away) -> None:
    clients = clients_of(
        f"{turned_away.address}\n    {fleet.addresses[1]}", "balance = first\nfailure_time = 500ms", tunnel=""
    )
    for _ in range(3):
        assert clients.ask("session") == "B"
    assert clients.state(0) is State.EJECTED
    tried = [entry.facts.tried for entry in clients.running.opened]
    assert tried == [f"{turned_away.address} closed the connection before its answer"] * 3
    assert clients.ask("session") == "B"
    assert clients.running.opened[-1].facts.tried == ""
    clients.running.until(lambda: clients.state(0) is State.UP)
    # On trial one failure is enough.
    assert clients.ask("session") == "B"
    assert clients.state(0) is State.EJECTED
    assert clients.live == [0, 5]


def test_requests_that_fail_eject_too(clients_of, fleet, turned_away) -> None:
    clients = clients_of(f"{turned_away.address}\n    {fleet.addresses[1]}", "balance = first")
    assert clients.many("http", 3) == {"B": 3}
    assert clients.state(0) is State.EJECTED


def test_the_last_one_standing_is_asked_again_and_again(clients_of, turned_away, refusing_address) -> None:
    clients = clients_of(f"{turned_away.address}\n    {refusing_address}", tunnel="")
    for _ in range(6):
        head = clients.begin("session").recv_head()
        assert head.startswith((b"HTTP/1.1 502 ", b"HTTP/1.1 503 ")), head
    assert sorted(state.value for state in (clients.state(0), clients.state(1))) == ["ejected", "up"]
    assert clients.live == [0, 0]


def test_the_access_log_tells_which_backends_were_tried(router, connect, fleet, turned_away, tmp_path) -> None:
    running = router(
        f"""
        [router]
        access_log = access.log
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        [route ws]
        pool = app
        [pool app]
        backends = {turned_away.address}, {fleet.addresses[0]}
        balance = first
        """
    )
    client = connect(running.port())
    client.request()
    client.recv_head()
    running.until(lambda: running.opened)
    line = (tmp_path / "access.log").read_text().splitlines()[0]
    assert f' tried="{turned_away.address} closed the connection before its answer"' in line
    assert f" backend={fleet.addresses[0]} " in line


def test_no_backend_is_asked_twice_for_one_session(clients_of, backend) -> None:
    servers = [backend(lambda peer: peer.recv_head()) for _ in range(3)]
    clients = clients_of(", ".join(server.address for server in servers), "retries = 9\nmax_failures = 0", tunnel="")
    for kind in ("session", "http"):
        client = clients.begin(kind)
        assert client.recv_head().startswith(b"HTTP/1.1 502 ")
        client.close()
    (refusal,) = (one for one in clients.running.refused if "no backend answers" in one.reason)
    assert sorted(re.findall(r"127\.0\.0\.1:\d+", refusal.reason)) == sorted(server.address for server in servers)
    assert clients.live == [0, 0, 0]


def test_once_a_backend_has_agreed_no_other_is_asked(clients_of, backend) -> None:
    def agree_and_go(peer) -> None:
        peer.answer()
        asked.append(peer)

    asked: list[object] = []
    servers = [backend(agree_and_go) for _ in range(2)]
    clients = clients_of(", ".join(server.address for server in servers), tunnel="")
    client = clients.begin("session")
    assert client.recv_head().startswith(b"HTTP/1.1 101 ")
    assert client.recv_frame().code == 1011
    client.close()
    clients.running.until(lambda: clients.running.closed)
    assert clients.running.closed[0][1].who is Who.BACKEND
    assert len(asked) == 1
    assert clients.live == [0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_retry_time_bounds_all_attempts_together(clients_of, backend, kind) -> None:
    # They accept, and never speak TLS.
    servers = [backend() for _ in range(4)]
    clients = clients_of(
        ", ".join(server.address for server in servers),
        "tls = yes\ntls_verify = no\nretries = 9\nconnect_timeout = 200ms\nretry_time = 300ms\nmax_failures = 0",
    )
    client = clients.begin(kind)
    answer = client.recv_all() if kind == "tunnel" else client.recv_head()
    assert answer == b"" if kind == "tunnel" else answer.startswith(b"HTTP/1.1 504 ")
    assert sum(server.was_contacted() for server in servers) == 2
    assert clients.live == [0] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_who_is_cut_short_by_retry_time_is_not_blamed(clients_of, backend, refusing_address, kind) -> None:
    # They accept, and never speak TLS.
    servers = [backend() for _ in range(2)]
    clients = clients_of(
        ", ".join([refusing_address, *(server.address for server in servers)]),
        "balance = first\ntls = yes\ntls_verify = no\nconnect_timeout = 60s\nretry_time = 300ms\nmax_failures = 1",
    )
    client = clients.begin(kind)
    answer = client.recv_all() if kind == "tunnel" else client.recv_head()
    assert answer == b"" if kind == "tunnel" else answer.startswith(b"HTTP/1.1 504 ")
    assert servers[0].was_contacted()
    assert [clients.state(place) for place in range(3)] == [State.EJECTED, State.UP, State.UP]
    assert clients.live == [0] * 3


# PROXY headers.


def first_bytes(peer, count: int) -> bytes:
    """The first ``count`` bytes, and not one more."""
    data = b""
    while len(data) < count:
        piece = peer.socket.recv(count - len(data))
        assert piece, data
        data += piece
    return data


def proxy_header(peer) -> Header:
    """The PROXY header that opens a connection; what follows stays in the socket."""
    data = b""
    while True:
        data += first_bytes(peer, 1)
        if (found := read_header(data)) is not None:
            assert found[1] == len(data)
            return found[0]


def ends_of(client) -> Header:
    return Header(client.socket.getsockname(), client.socket.getpeername())


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_backend_is_told_who_the_client_is_before_anything_else(clients_of, backend, kind, version) -> None:
    server = backend()
    clients = clients_of(server.address, f"send_proxy = {version}")
    client = clients.begin(kind)
    peer = server.accept()
    signature = b"PROXY TCP4 " if version == "v1" else b"\r\n\r\n\0\r\nQUIT\n\x21\x11"
    assert peer.socket.recv(len(signature), 2) == signature  # MSG_PEEK
    assert proxy_header(peer) == ends_of(client)
    if kind == "tunnel":
        assert first_bytes(peer, 1) == b"\0"
    else:
        assert peer.recv_head().startswith(b"GET /ws HTTP/1.1\r\n")


@pytest.mark.parametrize("kind", KINDS)
def test_the_header_comes_before_tls_to_the_backend(clients_of, backend, authority, kind) -> None:
    server = backend()
    clients = clients_of(
        server.address,
        "send_proxy = v2\ntls = yes\ntls_ca = ca.pem\ntls_name = app.example",
        files={"ca.pem": authority.pem},
    )
    client = clients.begin(kind)
    peer = server.accept()
    assert proxy_header(peer) == ends_of(client)
    peer.socket = authority.server_context("app.example").wrap_socket(peer.socket, server_side=True)
    if kind == "tunnel":
        assert peer.recv_exactly(1) == b"\0"
    else:
        assert peer.recv_head().startswith(b"GET /ws HTTP/1.1\r\n")


def test_version_2_tells_the_server_name_that_the_client_asked_for(clients_of, backend, authority) -> None:
    server = backend()
    clients = clients_of(
        server.address, "send_proxy = v2", "certificates = a.pem", files={"a.pem": authority.issue("localhost")}
    )
    client = clients.begin("session", tls=authority.client_context(), name="localhost")
    header = proxy_header(server.accept())
    assert (header.source, header.tlvs) == (client.socket.getsockname(), ((2, b"localhost"),))


def test_each_request_has_a_connection_of_its_own_where_a_header_opens_it(clients_of, backend) -> None:
    server = backend()
    clients = clients_of(server.address, "send_proxy = v1")
    one, other = clients.begin("http"), clients.begin("http")
    for client in (one, other, one):
        if client is one and server.count:
            client.send(b"GET /again HTTP/1.1\r\nHost: localhost\r\n\r\n")
        peer = server.accept()
        assert proxy_header(peer) == ends_of(client)
        peer.recv_head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert clients_hear(client) == b"ok"
        assert peer.recv_all() == b""
    assert server.count == 3


def clients_hear(client) -> bytes:
    client.recv_head()
    return client.recv_exactly(2)


@pytest.mark.parametrize(
    ("version", "opens"), [("v1", b"PROXY UNKNOWN\r\n"), ("v2", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")]
)
@pytest.mark.parametrize("check", ["tcp", "http /health", "websocket /health"])
def test_a_check_speaks_for_nobody(clients_of, backend, version, opens, check) -> None:
    server = backend()
    clients_of(server.address, f"send_proxy = {version}\ncheck = {check}\ncheck_interval = 100ms")
    peer = server.accept()
    if check == "tcp":
        assert peer.recv_all() == opens
    else:
        assert first_bytes(peer, len(opens)) == opens
        assert peer.recv_head().startswith(b"GET /health HTTP/1.1\r\n")


# Active checks.


class Mortal:
    """A WebSocket server that can fall silent while its machine goes on accepting connections, and recover."""

    def __init__(self, backend, frame) -> None:
        self.silent = False
        self._frame = frame
        self._server = backend(self._serve)
        self.address = self._server.address

    def _serve(self, peer) -> None:
        if self.silent:
            peer.recv_all()
            return
        head = peer.recv_head()
        peer.send(peer.agreement(head))
        with UNTIL_IT_ENDS:
            while (got := peer.recv_frame()).opcode != CLOSE:
                peer.send(self._frame(PONG if got.opcode == PING else TEXT, got.payload, mask=False))
            peer.send(self._frame(CLOSE, got.payload, mask=False))


def test_a_check_finds_a_backend_whose_websockets_have_died_though_it_still_accepts(clients_of, backend, frame) -> None:
    mortal, other = Mortal(backend, frame), Mortal(backend, frame)
    clients = clients_of(
        f"{mortal.address}, {other.address}",
        "balance = first\ncheck = websocket /health\ncheck_interval = 50ms\ncheck_timeout = 150ms\n"
        "check_fall = 2\ncheck_rise = 2",
        tunnel="",
    )

    def backend_of_a_session() -> str:
        client = clients.begin("session")
        assert client.recv_head().startswith(b"HTTP/1.1 101 ")
        client.send(frame(TEXT, b"hello"))
        assert client.recv_frame().payload == b"hello"
        backend_label: str = clients.running.opened[-1].facts.backend
        return backend_label

    assert backend_of_a_session() == mortal.address
    mortal.silent = True
    clients.running.until(lambda: clients.state(0) is State.DOWN)
    assert "2 failed checks" in clients.pool.table[clients.pool.members[0]].why
    assert backend_of_a_session() == other.address
    # What lives there goes on.
    assert clients.live == [1, 1]
    mortal.silent = False
    clients.running.until(lambda: clients.state(0) is State.UP)
    assert clients.pool.table[clients.pool.members[0]].why == "2 passed checks"
    assert backend_of_a_session() == mortal.address
    # Clients had nothing to suffer for all that.
    assert clients.running.refused == []


@pytest.mark.parametrize("on_down", ["keep", "close\ndown_spread = 100ms"], ids=["keep", "close"])
def test_what_lives_on_a_backend_that_a_check_takes_out_ends_where_the_pool_says_so(
    router, backend, open_session, connect, frame, on_down
) -> None:
    server, checked = backend(), backend()
    running = router(
        "[listener main]\nendpoint = tcp:0:interface=127.0.0.1\n"
        "[tunnel opaque]\nmatch = opaque\npool = app\n[route all]\npool = app\n"
        f"[pool app]\nbackends = {server.address}\ncheck = tcp port={checked.port}\n"
        f"check_interval = 50ms\ncheck_fall = 2\non_down = {on_down}"
    )
    client, peer = open_session(running, server)
    tunnel = connect(running.port())
    tunnel.send(b"\0hello")
    other = server.accept()
    assert other.recv_exactly(6) == b"\0hello"
    checked.close()
    pool = running.service.pools["app"]
    running.until(lambda: pool.table[pool.members[0]].state is State.DOWN)
    if on_down != "keep":
        assert (client.recv_frame().code, peer.recv_frame().code) == (1012, 1012)
        tunnel.recv_all()
        assert tunnel.was_reset
        client.close()
        peer.close()
        running.until(lambda: len(running.closed) == 2)
    else:
        client.send(frame(TEXT, b"still here"))
        assert peer.recv_frame().payload == b"still here"
        tunnel.send(b"me too")
        assert other.recv_exactly(6) == b"me too"
        assert running.live == 2
