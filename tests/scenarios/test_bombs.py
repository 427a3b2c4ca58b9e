"""Messages that are far larger than the router's memory: announced, inflated, or put together from fragments."""

from __future__ import annotations

import itertools
import queue
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.sync.client import connect
from websockets.sync.connection import Connection
from websockets.sync.server import ServerConnection, serve

from tests.scenarios.program import PATIENCE

MEGABYTE = 1 << 20
LIMIT = 16 * MEGABYTE
#: A fragment of a message that is not compressed, in bytes.
FRAGMENT = 64 * 1024

Bomb = Callable[[int, bool], Iterable[bytes]]


def deflated(size: int) -> bytes:
    """The payload of a compressed message of so many zeros, a thousandth as long."""
    stream = zlib.compressobj(9, wbits=-15)
    # Behind a full flush the stream has forgotten all, so that the same bytes may follow.
    one = stream.compress(bytes(MEGABYTE)) + stream.flush(zlib.Z_FULL_FLUSH)
    return (one * (size // MEGABYTE)).removesuffix(b"\0\0\xff\xff")


def in_one_frame(size: int, mask: bool) -> Iterator[bytes]:
    """Inflates to ``size`` bytes."""
    yield compressed(Frame(Opcode.BINARY, deflated(size)), mask)


def in_fragments(size: int, mask: bool) -> Iterator[bytes]:
    """The same in fragments of 1000 bytes each, as they are on the wire."""
    data = deflated(size)
    yield compressed(Frame(Opcode.BINARY, data[:1000], fin=False), mask)
    for at in range(1000, len(data), 1000):
        yield Frame(Opcode.CONT, data[at : at + 1000], fin=at + 1000 >= len(data)).serialize(mask=mask)


def compressed(frame: Frame, mask: bool) -> bytes:
    """The bytes of a message's first frame that says it is compressed (RSV1, RFC 7692 6)."""
    first, *rest = frame.serialize(mask=mask)
    return bytes([first | 0x40, *rest])


def announced(size: int, mask: bool) -> Iterator[bytes]:
    """A frame of ``size`` zeros, not compressed."""
    yield bytes([0x82, 127 | mask << 7]) + size.to_bytes(8, "big") + bytes(4 * mask)
    yield from itertools.repeat(bytes(MEGABYTE), size // MEGABYTE)


def summed(size: int, mask: bool) -> Iterator[bytes]:
    """The same in many frames."""
    yield Frame(Opcode.BINARY, bytes(FRAGMENT), fin=False).serialize(mask=mask)
    yield from itertools.repeat(Frame(Opcode.CONT, bytes(FRAGMENT), fin=False).serialize(mask=mask), size // FRAGMENT)


BOMBS: dict[str, tuple[Bomb, ...]] = {
    "session = relay": (announced, summed),
    "session = message": (announced, summed),
    "compression = both": (announced, summed, in_one_frame, in_fragments),
}


def throw(bomb: Bomb, size: int, connection: Connection, mask: bool) -> None:
    """Send all of it behind the back of the library, until the router has had enough."""
    with suppress(OSError):
        for piece in bomb(size, mask):
            connection.socket.sendall(piece)


class Bomber:
    """A backend that answers the name of a bomb with it. ``codes`` are the close codes that it gets."""

    def __init__(self, size: int) -> None:
        self.codes: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.size = size
        self._server = serve(self._answer, "127.0.0.1", 0, max_size=None)
        self.address = f"127.0.0.1:{self._server.socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def _answer(self, connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            throw(globals()[str(connection.recv())], self.size, connection, mask=False)
            connection.recv()
        self.codes.put(connection.close_code)

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._thread.join(PATIENCE)


@pytest.fixture
def bomber(size) -> Iterator[Bomber]:
    one = Bomber(size(128 * MEGABYTE, 6144 * MEGABYTE))
    yield one
    one.close()


def test_a_bomb_is_one(size) -> None:
    stream, inflated = zlib.decompressobj(-15), 0
    data = deflated(size(128 * MEGABYTE, 6144 * MEGABYTE)) + b"\0\0\xff\xff"
    while data:
        inflated += len(stream.decompress(data, MEGABYTE))
        data = stream.unconsumed_tail
    assert inflated == size(128 * MEGABYTE, 6144 * MEGABYTE)


def test_a_bomb_of_either_side_gets_1009_takes_no_memory_and_harms_no_other_session(stage, size, bomber) -> None:
    routes = "".join(
        f"[route r{number}]\npath = /r{number}\npool = bomber\n{options}\nmax_message = 16m\n"
        for number, options in enumerate(BOMBS)
    )
    stage.begin(more=f"{routes}[pool bomber]\nbackends = {bomber.address}\n", backends=1)
    router, load = stage.router, stage.load
    load.hold(size(5, 100))
    before = router.memory()
    numbers = itertools.count(1_000_000)
    for number, bombs in enumerate(BOMBS.values()):
        for bomb, offender in itertools.product(bombs, ("client", "backend")):
            session = next(numbers)
            with connect(f"ws://127.0.0.1:{router.port}/r{number}?{session}", proxy=None, max_size=None) as client:
                if offender == "client":
                    throw(bomb, bomber.size, client, mask=True)
                else:
                    client.send(bomb.__name__)
                with pytest.raises(ConnectionClosed):
                    client.recv(PATIENCE)
            codes = client.close_code, bomber.codes.get(timeout=PATIENCE)
            assert codes == ((1009, 1001) if offender == "client" else (1011, 1009)), (bomb, number)
            end = router.wait_for_end(session)
            assert (end["by"], end["code"]) == (offender, 1009)
            assert end["reason"] == f"got a message of more than {LIMIT} bytes"
    assert router.peak() - before <= 2 * LIMIT
    stage.note(f"memory grew by at most {(router.peak() - before) / MEGABYTE:.1f} MB")

    stage.end()
    stage.nothing_was_lost(load.sessions)


def test_where_each_message_has_its_backend_a_bomb_ends_what_it_came_over_alone(stage, size, bomber) -> None:
    route = "[route r]\npath = /r\npool = bomber\ndispatch = message\ncompression = both\nmax_message = 16m\n"
    stage.begin(more=f"{route}[pool bomber]\nbackends = {bomber.address}\n", backends=1)
    router, load = stage.router, stage.load
    load.hold(size(5, 100))
    before = router.memory()
    numbers = itertools.count(1_000_000)
    for bomb in BOMBS["compression = both"]:
        session = next(numbers)
        with connect(f"ws://127.0.0.1:{router.port}/r?{session}", proxy=None, max_size=None) as client:
            throw(bomb, bomber.size, client, mask=True)
            with pytest.raises(ConnectionClosed):
                client.recv(PATIENCE)
        # The handshake had a backend session.
        assert (client.close_code, bomber.codes.get(timeout=PATIENCE)) == (1009, 1001), bomb
        end = router.wait_for_end(session)
        assert (end["by"], end["code"]) == ("client", 1009)
    session = next(numbers)
    with connect(f"ws://127.0.0.1:{router.port}/r?{session}", proxy=None, max_size=None) as client:
        for bomb in BOMBS["compression = both"]:
            # The backend loses its session, and with it the message that it has not answered; the client's goes on.
            client.send(bomb.__name__)
            assert bomber.codes.get(timeout=PATIENCE) == 1009, bomb
            assert client.ping().wait(PATIENCE)
    end = router.wait_for_end(session)
    assert (end["by"], end["code"]) == ("client", 1000)
    assert router.peak() - before <= 2 * LIMIT
    stage.note(f"memory grew by at most {(router.peak() - before) / MEGABYTE:.1f} MB")

    stage.end()
    stage.nothing_was_lost(load.sessions)
