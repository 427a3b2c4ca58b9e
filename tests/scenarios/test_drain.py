"""The router is told to end while many sessions live, some of them in the middle of a long message."""

from __future__ import annotations

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

from websockets.client import ClientProtocol
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from tests.scenarios.program import PATIENCE

#: More than the buffers of all kernels and processes on the way hold, in bytes, so that the sender is held up.
LONG = 32 << 20


class SlowReader:
    """A session on a raw socket, to which a frame of ``LONG`` bytes is on its way; it reads a little at a time."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(("127.0.0.1", port))
        self._protocol = ClientProtocol(parse_uri(f"ws://127.0.0.1:{port}/ws?0"), max_size=None)
        self._events: list[object] = []
        self._protocol.send_request(self._protocol.connect())
        self._send()
        answer = self._next()
        assert isinstance(answer, Response)
        assert answer.status_code == 101
        self._protocol.send_text(b"x" * LONG)
        self._send()
        self._receive(1000)

    def read_a_little(self, size: int) -> None:
        """Read some more of the frame."""
        self._receive(size)

    def read_on(self) -> Close:
        """Read the rest of the frame, the Close behind it, and after the answer the end of TCP; returns the Close."""
        with self._socket:
            echo, close = self._next(), self._next()
            assert isinstance(echo, Frame)
            assert echo.data.startswith(b"x" * LONG)
            assert isinstance(close, Frame)
            assert close.opcode is Opcode.CLOSE
            self._send()
            assert self._socket.recv(1) == b""
        return Close.parse(close.data)

    def _next(self) -> object:
        while not self._events:
            self._receive(1 << 20)
        return self._events.pop(0)

    def _receive(self, most: int) -> None:
        data = self._socket.recv(most)
        assert data, "the connection has ended"
        self._protocol.receive_data(data)
        self._events += self._protocol.events_received()

    def _send(self) -> None:
        for data in self._protocol.data_to_send():
            self._socket.sendall(data)


def test_every_session_is_told_behind_its_frame_and_the_router_ends_in_time(stage, size) -> None:
    spread, count, slow = size(2.0, 5.0), size(200, 2000), size(3, 10)
    stage.drain = size(20.0, 30.0)
    stage.begin(router=f"drain_spread = {spread:g}s", pause=size(1, 2))
    router, load = stage.router, stage.load
    load.hold(count)
    with ThreadPoolExecutor(slow) as threads:
        readers = list(threads.map(SlowReader, [router.port] * slow))
        began = time.monotonic()
        router.signal(signal.SIGTERM)
        first = router.wait_for(lambda line: line.get("message", "").startswith("draining"), "the drain begins")
        assert first["message"] == f"draining: {count + slow:,} sessions; {stage.drain:g} s at most"
        # They read on a little with each of the others that ends: behind the last, half of their frames is left.
        for ended in range(1, count + 1):
            stage.until(lambda ended=ended: router.count("close") >= ended, f"{ended} others have ended")
            for reader in readers:
                reader.read_a_little(LONG // count // 2)
        # Those that are within a frame live on until its end has passed.
        assert not router.ended
        assert {close.code for close in threads.map(SlowReader.read_on, readers)} == {1001}
    assert router.status() == 0
    assert time.monotonic() - began < stage.drain + 1
    stage.until(lambda: router.ended, "the log has ended")

    # Nobody saw TCP end without a Close.
    assert {one.end["code"] for one in load.sessions} == {1001}
    assert [one.end for one in load.sessions if one.end["faults"]] == []
    ends = router.events("close")
    assert len(ends) == count + slow
    assert {(line["by"], line["code"]) for line in ends} == {("router", 1001)}
    # They were told one after the other, over the time that was asked for: no wave of clients comes back at once.
    told = sorted(one.end["at"] - router.time_of(first) for one in load.sessions)
    assert told[-1] > 0.8 * spread
    assert sum(at < spread / 2 for at in told) < 0.65 * count
    last = [line["message"] for line in router.lines if "draining: " in line.get("message", "")][-1]
    assert last.startswith("draining: done")
    assert not router.faults
    stage.account()
