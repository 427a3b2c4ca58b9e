"""The load generator: what it counts, and that a fault makes a reading void. Its clients meet its own backend here."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench import generator, proxies
from bench.generator import BenchError, Generator

BLOCK = 65536
FRAME_HEAD = {"tcp": 0, "ws": 10}


@pytest.fixture(scope="module")
def load(require_program: Callable[[str, str], str]) -> Generator:
    require_program("cc", "apt-get install gcc libc6-dev")
    return generator.build(min(os.sched_getaffinity(0)))


@pytest.fixture(params=["tcp", "ws"])
def ends(request: pytest.FixtureRequest) -> dict[str, Any]:
    port = proxies.free_port()
    return {"protocol": request.param, "connect": port, "backend": port, "pids": ""}


def test_round_trips_are_counted_by_echoes_and_by_bytes(load: Generator, ends: dict[str, Any]) -> None:
    result = load.run("roundtrip", **ends, connections=3, size=70_000, warm=0, seconds=0.1)
    assert result["opened"] == 3
    assert result["count"] >= 1
    assert result["trips"] == pytest.approx(result["count"], abs=3)


def test_at_a_fixed_rate_no_more_messages_are_sent_than_are_due(load: Generator, ends: dict[str, Any]) -> None:
    result = load.run("roundtrip", **ends, connections=4, rate=200, warm=0, seconds=0.3)
    # The loop may be held up between the schedule's start and the window's; without a rate, thousands would be sent.
    assert 1 <= result["count"] <= 200 * (result["seconds"] + 1)


def test_a_window_lasts_until_enough_was_done(load: Generator, ends: dict[str, Any]) -> None:
    result = load.run("roundtrip", **ends, connections=1, rate=100, warm=0, seconds=0.001)
    assert result["count"] >= 20


def test_sessions_open_one_after_the_other_beside_those_that_rest(load: Generator, ends: dict[str, Any]) -> None:
    result = load.run("open", **ends, connections=2, resting=70, warm=0, seconds=0.1)
    assert result["opened"] >= 70 + result["count"] > 70


def test_idle_sessions_are_open_while_they_are_held(load: Generator, ends: dict[str, Any]) -> None:
    port = f":{ends['connect']:04X}"
    with load.holding(**{name: ends[name] for name in ("protocol", "connect", "backend")}, connections=150):
        table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert sum(words[2].endswith(port) and words[3] == "01" for words in table) == 150


def test_after_a_storm_all_are_open_again(load: Generator, ends: dict[str, Any]) -> None:
    result = load.run("storm", **ends, connections=200, warm=0, seconds=0.1)
    assert (result["count"], result["opened"], result["refused"]) == (200, 400, 0)


def test_a_push_comes_whole_beside_other_messages(load: Generator, ends: dict[str, Any]) -> None:
    result = load.run("roundtrip", **ends, connections=2, rate=500, bulks=3, bulk_bytes=5 * BLOCK, warm=0)
    assert result["bulk_bytes"] == result["pushed_bytes"] == 3 * 5 * (BLOCK + FRAME_HEAD[ends["protocol"]])


def test_a_slow_reader_takes_no_more_than_it_should(load: Generator, ends: dict[str, Any]) -> None:
    result = load.run(
        "roundtrip", **ends, connections=1, rate=100, bulks=2, bulk_bytes=64 * BLOCK, slow=500, warm=0, seconds=1.2
    )
    # Each reads at the start, one of them at 0.5 s and the other at 1 s; more only where the window was long.
    assert 0 < result["bulk_bytes"] <= 2 * 500 * (result["seconds"] + 1)
    assert result["bulk_bytes"] < result["pushed_bytes"] < 2 * 64 * BLOCK


@contextmanager
def between(backend: int, meddle: Callable[[int, bytes], bytes | None]) -> Iterator[int]:
    """A proxy on a port of its own that hands bytes on as ``meddle`` likes, told the number of the connection.

    Where that answers None to a client's first bytes, the client is reset.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(work: Callable[[], None]) -> None:
        threads.append(threading.Thread(target=work))
        threads[-1].start()

    def copy(source: socket.socket, target: socket.socket, change: Callable[[bytes], bytes]) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(change(data))
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other end has gone, as it may

    def serve(number: int, client: socket.socket) -> None:
        try:
            first = client.recv(65536)
        except OSError:
            return
        answer = meddle(number, first)
        if answer is None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
            return
        try:
            server = socket.create_connection(("127.0.0.1", backend))
        except OSError:
            client.close()  # the generator, which is the backend, has had its reading and is gone
            return
        sockets.append(server)
        try:
            server.sendall(first)
        except OSError:
            return
        start(lambda: copy(client, server, bytes))
        copy(server, client, lambda data: meddle(number, data) or b"")

    def accept() -> None:
        number = 0
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            sockets.append(client)
            start(lambda number=number, client=client: serve(number, client))  # type: ignore[misc]
            number += 1

    start(accept)
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        threads[0].join()
        for one in sockets:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in threads:
            thread.join()
        for one in sockets:
            one.close()


def test_a_wrong_byte_in_an_echo_makes_the_reading_void(load: Generator, ends: dict[str, Any]) -> None:
    def spoil(_number: int, data: bytes) -> bytes:
        return data.replace(b"lazy dog", b"lazy cat")

    with (
        between(ends["backend"], spoil) as port,
        pytest.raises(BenchError, match="what came back is not what was sent"),
    ):
        load.run("roundtrip", **ends | {"connect": port}, connections=2, warm=0, seconds=1)


def test_a_refused_session_makes_the_reading_void(load: Generator, ends: dict[str, Any]) -> None:
    with between(ends["backend"], lambda _number, _data: None) as port, pytest.raises(BenchError, match="client read"):
        load.run("roundtrip", **ends | {"connect": port}, connections=2, warm=0, seconds=1)


def test_in_a_storm_the_refused_are_counted_and_come_again(load: Generator, ends: dict[str, Any]) -> None:
    def refuse(number: int, data: bytes) -> bytes | None:
        return None if 20 <= number < 27 else data

    with between(ends["backend"], refuse) as port:
        result = load.run("storm", **ends | {"connect": port}, connections=20, warm=0, seconds=0.1)
    assert (result["refused"], result["count"], result["opened"]) == (7, 20, 40 + 7 * (ends["protocol"] == "tcp"))


def test_a_handshake_that_is_refused_says_with_what(load: Generator) -> None:
    backend = proxies.free_port()
    answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"

    def refuse(_number: int, data: bytes) -> bytes:
        return answer if data.startswith(b"HTTP/1.1 101") else data

    ends = {"protocol": "ws", "connect": 0, "backend": backend, "pids": ""}
    with between(backend, refuse) as port, pytest.raises(BenchError, match=r"refused: HTTP/1[.]1 503"):
        load.run("open", **ends | {"connect": port}, connections=1, warm=0, seconds=1)


def test_a_proxy_that_has_gone_makes_the_reading_void(load: Generator, ends: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with pytest.raises(BenchError, match="connect: Connection refused"):
        load.run("roundtrip", **ends | {"connect": port}, connections=1, warm=0, seconds=1)


@pytest.mark.parametrize(
    "options", [{"rate": 10}, {"bulks": 1, "bulk_bytes": 10}, {"slow": 10}, {"bulks": 1}, {"resting": -1}], ids=str
)
def test_options_that_do_not_go_together_are_refused(load: Generator, options: dict[str, int]) -> None:
    ends = {"protocol": "ws", "connect": 1, "backend": 1}
    with pytest.raises(BenchError, match="--rate"):
        load.run("open", **ends, **options)
