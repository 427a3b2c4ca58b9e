"""permessage-deflate on the legs of message sessions, each negotiated and bounded for itself (RFC 7692)."""

from __future__ import annotations

import itertools
import random
import resource
import threading
import zlib

import pytest
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.sync.client import connect as open_websocket

from tests.integration.sessions import BINARY, MEGABYTE, TEXT, both, configured

EXTENSIONS = "Sec-WebSocket-Extensions"
DEFLATE = [(EXTENSIONS, "permessage-deflate")]


@pytest.fixture
def start(router, backend, connect):
    """``start(route, offer=None, grant=None) -> running, client, peer, asked, told``: a session and both heads."""

    def begin(route: str, offer: str | None = "permessage-deflate", grant: str | None = None):
        server = backend()
        running = router(configured(server.address, route))
        client = connect(running.port())
        client.request(headers=[] if offer is None else [(EXTENSIONS, offer)])
        peer = server.accept()
        asked = peer.answer([] if grant is None else [(EXTENSIONS, grant)])
        return running, client, peer, extensions(asked), extensions(client.recv_head())

    return begin


def extensions(head: bytes) -> list[str]:
    lines = [line.partition(b": ") for line in head.split(b"\r\n")]
    return [value.decode() for name, _, value in lines if name.decode() == EXTENSIONS]


def deflated(payload: bytes, bits: int = 15) -> bytes:
    """The payload of a compressed message, in a stream of its own."""
    stream = zlib.compressobj(wbits=-bits)
    return (stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflated(payload: bytes) -> bytes:
    return zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff")


# Who compresses.


@pytest.mark.parametrize(
    ("route", "asked", "told"),
    [
        ("session = message", [], []),
        ("compression = client", [], ["permessage-deflate"]),
        ("compression = both", ["permessage-deflate; client_max_window_bits"], ["permessage-deflate"]),
    ],
)
def test_extensions_are_negotiated_on_each_leg_as_the_route_says(start, route, asked, told) -> None:
    assert start(route)[3:] == (asked, told)


def test_with_both_a_leg_whose_peer_does_not_compress_stays_plain(start, frame) -> None:
    _, client, peer, _, told = start("compression = both", offer=None, grant="permessage-deflate")
    assert told == []
    client.send(frame(TEXT, b"hello"))
    message = peer.recv_frame()
    assert (message.rsv, inflated(message.payload)) == (4, b"hello")
    peer.send(frame(TEXT, deflated(b"hi"), rsv=4, mask=False))
    assert client.recv_frame() == (TEXT, b"hi", True, 0, False)


def test_towards_clients_only_the_backend_sees_plain_messages(start, frame) -> None:
    _, client, peer, _, _ = start("compression = client")
    client.send(frame(TEXT, deflated(b"hello" * 100), rsv=4))
    assert peer.recv_frame() == (TEXT, b"hello" * 100, True, 0, True)
    peer.send(frame(TEXT, b"hi" * 100, mask=False))
    answer = client.recv_frame()
    assert (answer.rsv, inflated(answer.payload)) == (4, b"hi" * 100)
    # A peer need not compress each message.
    client.send(frame(TEXT, b"plain"))
    assert peer.recv_frame().payload == b"plain"


@pytest.mark.parametrize(
    ("offer", "told"),
    [
        ("permessage-deflate; client_max_window_bits", "permessage-deflate"),
        ("permessage-deflate; client_max_window_bits=8", "permessage-deflate"),
        ("permessage-deflate; server_no_context_takeover", "permessage-deflate; server_no_context_takeover"),
        ("permessage-deflate; client_no_context_takeover", "permessage-deflate; client_no_context_takeover"),
        ("permessage-deflate; server_max_window_bits=10", "permessage-deflate; server_max_window_bits=10"),
        ('permessage-deflate; server_max_window_bits="9"', "permessage-deflate; server_max_window_bits=9"),
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate", "permessage-deflate"),
        ("permessage-deflate; server_max_window_bits=8", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; client_max_window_bits=7", None),
        ("permessage-deflate; server_no_context_takeover=1", None),
        ("permessage-deflate; unheard_of", None),
        ("permessage-deflate; server_no_context_takeover; server_no_context_takeover", None),
        ("x-webkit-deflate-frame", None),
    ],
)
def test_the_first_offer_that_can_be_taken_up_is_and_any_other_is_declined(start, frame, offer, told) -> None:
    _, client, peer, _, found = start("compression = client", offer)
    assert found == ([] if told is None else [told])
    peer.send(frame(TEXT, b"hello", mask=False))
    answer = client.recv_frame()
    assert (answer.payload if told is None else inflated(answer.payload)) == b"hello"


@pytest.mark.parametrize(
    "grant",
    [
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
    ],
)
def test_what_a_backend_grants_is_kept_to(start, frame, grant) -> None:
    _, client, peer, _, _ = start("compression = both", "permessage-deflate; server_no_context_takeover", grant)
    for _ in range(2):
        peer.send(frame(TEXT, deflated(b"hello" * 100, 9), rsv=4, mask=False))
        assert inflated(client.recv_frame().payload) == b"hello" * 100
    sizes = []
    for _ in range(2):
        client.send(frame(TEXT, b"hello" * 100))
        sizes.append(len(peer.recv_frame().payload))
    # Without a context the second message is as long as the first.
    assert (sizes[0] == sizes[1]) is ("client_no" in grant)


def test_a_backend_may_ask_for_a_smaller_window(start, frame) -> None:
    """Whoever offers ``client_max_window_bits`` lets the server say how far back it can look (RFC 7692 7.1.2.2)."""
    _, client, peer, _, _ = start("compression = both", grant="permessage-deflate; client_max_window_bits=9")
    twice = 2 * random.Random(1).randbytes(600).hex().encode()
    client.send(frame(TEXT, twice))
    message = peer.recv_frame()
    assert message.rsv == 4
    # Beyond 512 bytes zlib refuses to look back, as such a backend would.
    assert zlib.decompressobj(-9).decompress(message.payload + b"\0\0\xff\xff") == twice


# Streams.


def test_the_context_is_taken_over_from_message_to_message_unless_somebody_forbids_it(router, echo_backend) -> None:
    running = router(configured(echo_backend(compression="deflate").address, "compression = both"))
    noise = random.Random(1).randbytes(2000).hex()
    for factory, smaller in (
        (ClientPerMessageDeflateFactory(client_max_window_bits=True), True),
        (ClientPerMessageDeflateFactory(server_no_context_takeover=True, client_no_context_takeover=True), False),
        (ClientPerMessageDeflateFactory(server_max_window_bits=9, client_max_window_bits=9), False),
    ):
        with open_websocket(f"ws://127.0.0.1:{running.port()}/", compression=None, extensions=[factory]) as client:
            assert client.protocol.extensions
            sizes = [0]
            for _ in range(3):
                client.send(noise)
                assert client.recv(timeout=10) == noise
                sizes.append(running.call(running.opened[-1].counts).bytes_in)
        first, *others = (after - before for before, after in itertools.pairwise(sizes))
        assert all(size < first / 10 for size in others) is smaller


def test_a_stream_that_a_final_block_has_ended_begins_anew_with_the_next_message(start, frame) -> None:
    """RFC 7692 7.2.3.4 has the example; zlib's own object would give nothing for all that follows."""
    _, client, peer, _, _ = start("compression = client")
    final = bytes([0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00, 0x00])
    for _ in range(3):
        client.send(frame(TEXT, final, rsv=4))
        assert peer.recv_frame().payload == b"Hello"
    client.send(frame(TEXT, deflated(b"as usual"), rsv=4))
    assert peer.recv_frame().payload == b"as usual"


@pytest.mark.parametrize(
    "payload", [b"\xff\xff\xff", b"\x07", deflated(b"hello" * 50)[3:]], ids=["junk", "type", "cut"]
)
@pytest.mark.parametrize("offender", ["client", "backend"])
def test_what_does_not_inflate_gets_1007(start, frame, offender, payload) -> None:
    _, client, peer, _, _ = start("compression = both", grant="permessage-deflate")
    one, other, mask = both(client, peer, offender)
    one.send(frame(TEXT, payload, rsv=4, mask=mask))
    assert one.recv_frame().code == 1007
    assert other.recv_frame().code == (1001 if mask else 1011)


def test_bad_utf_8_is_found_behind_the_compression(start, frame) -> None:
    _, client, peer, _, _ = start("compression = client")
    client.send(frame(TEXT, deflated(b"good\xc3"), rsv=4))
    assert client.recv_frame().code == 1007
    assert peer.recv_frame().code == 1001


# Bounds.


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("size", [999, 1000, 1001, 100_000])
@pytest.mark.parametrize("noisy", [False, True])
def test_the_limit_holds_for_the_inflated_message_to_the_byte(start, frame, size, noisy, pieces) -> None:
    _, client, peer, _, _ = start("compression = both\nmax_message = 1000", grant="permessage-deflate")
    payload = random.Random(size).randbytes(size) if noisy else bytes(size)
    data = deflated(payload)
    cuts = [len(data) * at // pieces for at in range(pieces + 1)]
    for number, (begin, end) in enumerate(itertools.pairwise(cuts)):
        client.send(frame(0 if number else BINARY, data[begin:end], rsv=0 if number else 4, fin=number == pieces - 1))
    if size > 1000:
        assert client.recv_frame().code == 1009
        assert peer.recv_frame().code == 1001
    else:
        # Noise grows when it is compressed, and passes all the same.
        assert inflated(peer.recv_frame().payload) == payload
        peer.send(frame(BINARY, data, rsv=4, mask=False))
        assert inflated(client.recv_frame().payload) == payload


@pytest.mark.parametrize("offender", ["client", "backend"])
@pytest.mark.parametrize("size", [size + by for size in (1 << 18, 1 << 19, 1 << 20) for by in (-1, 0, 1)])
def test_a_message_is_whole_wherever_inflating_it_has_paused(start, frame, offender, size) -> None:
    _, client, peer, _, _ = start("compression = both\nmax_message = 1m", grant="permessage-deflate")
    one, other, mask = both(client, peer, offender)
    payload = (b"all that may come of it at once" * (size // 30))[:size]
    one.send(frame(TEXT, deflated(payload), rsv=4, mask=mask) + frame(TEXT, b"next", mask=mask))
    if size > 1 << 20:
        assert one.recv_frame().code == 1009
    else:
        assert inflated(other.recv_frame().payload) == payload
        assert other.recv_frame().payload


def bomb(size: int) -> bytes:
    """Zeros, compressed to a thousandth."""
    stream = zlib.compressobj(9, wbits=-15)
    parts = [stream.compress(bytes(MEGABYTE)) for _ in range(size // MEGABYTE)]
    return b"".join([*parts, stream.flush(zlib.Z_SYNC_FLUSH)])[:-4]


def test_a_bomb_gets_1009_and_takes_no_memory(start, frame) -> None:
    _, client, peer, _, _ = start("compression = client\nmax_message = 4m")
    data = frame(BINARY, bomb(512 * MEGABYTE), rsv=4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    thread = threading.Thread(target=client.send, args=(data,))
    thread.start()
    assert client.recv_frame().code == 1009
    assert peer.recv_frame().code == 1001
    thread.join()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * 4 * 1024


def test_many_small_bombs_in_one_read_are_held_back_for_a_slow_backend(start, frame) -> None:
    """Each stays within the limit; together they would inflate to a gigabyte."""
    running, client, peer, _, _ = start("compression = client\nmax_message = 1m")
    one = frame(BINARY, bomb(MEGABYTE), rsv=4)
    count = 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stream = zlib.compressobj(9, wbits=-15)
    first = (stream.compress(bytes(MEGABYTE)) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]
    again = (stream.compress(bytes(MEGABYTE)) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]
    assert len(one) < 2000
    thread = threading.Thread(
        target=client.send, args=(frame(BINARY, first, rsv=4) + frame(BINARY, again, rsv=4) * (count - 1),)
    )
    thread.start()
    running.until(lambda: running.opened and running.opened[0]._client._held)
    session = running.opened[0]
    assert len(session._backend.leg.pending or b"") <= MEGABYTE + 14
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024
    for _ in range(20):
        assert peer.recv_frame().payload == bytes(MEGABYTE)
    client.close()
    peer.close()
    thread.join()
