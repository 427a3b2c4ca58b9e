from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, ServerPerMessageDeflateFactory
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from wsrouter.errors import BackendError, HttpError
from wsrouter.wire.forwarding import ClientFacts, client_answer, upgrade_head
from wsrouter.wire.head import RequestHead, cut_head, cut_response, parse_request, parse_response
from wsrouter.wire.opening import (
    Accepted,
    Upgrade,
    accept_for,
    check_upgrade,
    granted_to_us,
    own_answer,
    verify_answer,
    wants_websocket,
)

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
DEFLATE = b"permessage-deflate"


def opening(
    *fields: bytes,
    line: bytes = b"GET /ws HTTP/1.1",
    key: bytes = b"Sec-WebSocket-Key: " + KEY,
    version: bytes = b"Sec-WebSocket-Version: 13",
    upgrade: bytes = b"Upgrade: websocket",
) -> RequestHead:
    lines = [line, b"Host: a", b"Connection: Upgrade", upgrade, key, version, *fields]
    return parse_request(b"\r\n".join([*filter(None, lines), b"", b""]))


def refusal(head: RequestHead) -> HttpError:
    with pytest.raises(HttpError) as refused:
        check_upgrade(head)
    return refused.value


# What the client asks for


def test_an_opening_handshake_is_read_whole() -> None:
    head = opening(
        b"Sec-WebSocket-Protocol: chat.v2, chat.v1",
        b"Sec-WebSocket-Protocol: ,mqtt",
        b'Sec-WebSocket-Extensions: x-frames; a="b" , permessage-deflate; client_max_window_bits',
        b"Sec-WebSocket-Extensions: permessage-deflate",
    )
    assert wants_websocket(head)
    assert check_upgrade(head) == Upgrade(
        KEY, ("chat.v2", "chat.v1", "mqtt"), (b"permessage-deflate; client_max_window_bits", b"permessage-deflate")
    )
    assert check_upgrade(opening()) == Upgrade(KEY, (), ())


@pytest.mark.parametrize(
    ("upgrade", "line", "wanted"),
    [
        (b"Upgrade: WebSocket", b"GET / HTTP/1.1", True),
        (b"Upgrade: h2c, websocket", b"GET / HTTP/1.1", True),
        (b"Upgrade: h2c", b"GET / HTTP/1.1", False),
        (b"Upgrade: websocket/13", b"GET / HTTP/1.1", False),
        (b"Upgrade: xwebsocket", b"GET / HTTP/1.1", False),
        (b"", b"GET / HTTP/1.1", False),
        (b"Upgrade: websocket", b"GET / HTTP/1.0", False),
        (b"Upgrade: websocket", b"POST / HTTP/1.1", True),
    ],
)
def test_only_the_token_websocket_on_http_1_1_asks_for_a_websocket(upgrade: bytes, line: bytes, wanted: bool) -> None:
    assert wants_websocket(opening(upgrade=upgrade, line=line)) is wanted


@pytest.mark.parametrize("line", [b"POST / HTTP/1.1", b"HEAD / HTTP/1.1", b"OPTIONS * HTTP/1.1"])
def test_a_method_other_than_get_gets_405_with_allow(line: bytes) -> None:
    error = refusal(opening(line=line))
    assert (error.status, error.headers) == (405, ((b"Allow", b"GET"),))


@pytest.mark.parametrize(
    ("version", "more"),
    [
        (b"", b""),
        (b"Sec-WebSocket-Version: 8", b""),
        (b"Sec-WebSocket-Version: 13, 8", b""),
        (b"Sec-WebSocket-Version: 013", b""),
        (b"Sec-WebSocket-Version:", b""),
        (b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Version: 13"),
    ],
)
def test_a_version_other_than_13_gets_426_and_is_told_what_to_speak(version: bytes, more: bytes) -> None:
    error = refusal(opening(more, version=version))
    assert error.status == 426
    assert dict(error.headers) == {
        b"Upgrade": b"websocket",
        b"Connection": b"Upgrade",
        b"Sec-WebSocket-Version": b"13",
    }


@pytest.mark.parametrize(
    ("key", "more"),
    [
        (b"", b""),
        (b"Sec-WebSocket-Key:", b""),
        (b"Sec-WebSocket-Key: " + KEY, b"Sec-WebSocket-Key: " + KEY),
        (b"Sec-WebSocket-Key: " + KEY + b"\xff", b""),
        (b"Sec-WebSocket-Key: c2hvcnQ=", b""),
        (b"Sec-WebSocket-Key: " + KEY[:-2], b""),
        (b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAAA=", b""),
        (b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j-_==", b""),
        (b"Sec-WebSocket-Key: dGhlIHNhbXBs ZSBub25jZQ==", b""),
    ],
)
def test_the_key_is_one_field_of_sixteen_bytes_or_400(key: bytes, more: bytes) -> None:
    assert refusal(opening(more, key=key)).status == 400


@pytest.mark.parametrize("field", [b"Content-Length: 1", b"Transfer-Encoding: chunked"])
def test_an_opening_handshake_with_a_body_gets_400(field: bytes) -> None:
    assert refusal(opening(field)).status == 400


def test_a_body_of_no_bytes_is_no_body() -> None:
    assert check_upgrade(opening(b"Content-Length: 0")).key == KEY


@pytest.mark.parametrize(
    "value", [b"", b",", b"a b", b"a, b c", b'"a"', b"a, a", b"a,b,a", b"a;b", b"a/b", b"\xe9", b"(a)"]
)
def test_malformed_and_repeated_subprotocols_get_400(value: bytes) -> None:
    assert refusal(opening(b"Sec-WebSocket-Protocol: " + value)).status == 400


def test_a_subprotocol_repeated_over_two_fields_gets_400() -> None:
    assert refusal(opening(b"Sec-WebSocket-Protocol: a", b"Sec-WebSocket-Protocol: b, a")).status == 400


@pytest.mark.parametrize(
    "value",
    [b"", b" , ", b"a b", b"a;", b";a", b"a;;b", b"a; =b", b"a; b=", b'a; b="c d"', b'a; b="c,d"', b'a; b="c', b"a=b"],
)
def test_malformed_extensions_get_400(value: bytes) -> None:
    assert refusal(opening(b"Sec-WebSocket-Extensions: " + value)).status == 400


def test_only_offers_of_permessage_deflate_go_on() -> None:
    offers = b'x-webkit-deflate-frame, bbf-usp-protocol; a, Permessage-Deflate; server_max_window_bits="10"'
    head = opening(b"Sec-WebSocket-Extensions: " + offers)
    assert check_upgrade(head).extensions == (b'Permessage-Deflate; server_max_window_bits="10"',)


# What the backend answers


def answered(
    *fields: bytes,
    line: bytes = b"HTTP/1.1 101 Switching Protocols",
    upgrade: bytes = b"Upgrade: websocket",
    connection: bytes = b"Connection: Upgrade",
    accept: bytes = b"Sec-WebSocket-Accept: " + ACCEPT,
    asked: Upgrade = Upgrade(KEY, ("chat.v2", "chat.v1"), (DEFLATE,)),  # noqa: B008
) -> Accepted:
    lines = [line, *filter(None, [upgrade, connection, accept, *fields]), b"", b""]
    return verify_answer(parse_response(b"\r\n".join(lines)), asked)


def test_the_accept_is_the_one_of_rfc_6455() -> None:
    assert accept_for(KEY) == ACCEPT


def test_a_101_that_answers_the_request_is_accepted() -> None:
    assert answered() == Accepted(None, False)
    assert answered(b"Sec-WebSocket-Protocol: chat.v1") == Accepted("chat.v1", False)
    assert answered(b"Sec-WebSocket-Extensions: permessage-deflate") == Accepted(None, True)
    assert answered(b"Content-Length: 0", b"Sec-WebSocket-Extensions:") == Accepted(None, False)
    assert answered(upgrade=b"Upgrade: WebSocket", connection=b"connection: keep-alive, UPGRADE") == Accepted(
        None, False
    )


@pytest.mark.parametrize(
    "change",
    [
        {"line": b"HTTP/1.1 200 OK"},
        {"line": b"HTTP/1.0 101 Switching Protocols"},
        {"upgrade": b""},
        {"upgrade": b"Upgrade: foo"},
        {"upgrade": b"Upgrade: websocket, foo"},
        {"upgrade": b"Upgrade: websocket\r\nUpgrade: websocket"},
        {"connection": b""},
        {"connection": b"Connection: close"},
        {"accept": b""},
        {"accept": b"Sec-WebSocket-Accept: " + ACCEPT.lower()},
        {"accept": b"Sec-WebSocket-Accept: " + KEY},
        {"accept": b"Sec-WebSocket-Accept: %b, %b" % (ACCEPT, ACCEPT)},
        {"accept": b"Sec-WebSocket-Accept: %b\r\nSec-WebSocket-Accept: %b" % (ACCEPT, ACCEPT)},
    ],
)
def test_a_101_without_proof_gets_502(change: dict[str, bytes]) -> None:
    with pytest.raises(BackendError) as refused:
        answered(**change)  # type: ignore[arg-type]
    assert refused.value.status == 502


@pytest.mark.parametrize(
    "field",
    [
        b"Content-Length: 5",
        b"Transfer-Encoding: chunked",
        b"Sec-WebSocket-Protocol:",
        b"Sec-WebSocket-Protocol: other",
        b"Sec-WebSocket-Protocol: CHAT.v1",
        b"Sec-WebSocket-Protocol: chat.v2, chat.v1",
        b"Sec-WebSocket-Protocol: chat.v2\r\nSec-WebSocket-Protocol: chat.v2",
        b"Sec-WebSocket-Protocol: \xe9",
        b"Sec-WebSocket-Extensions: x-frames",
        b"Sec-WebSocket-Extensions: permessage-deflate, x-frames",
        b"Sec-WebSocket-Extensions: permessage-deflate, permessage-deflate",
        b"Sec-WebSocket-Extensions: permessage-deflate;",
    ],
)
def test_a_101_that_grants_what_was_not_offered_gets_502(field: bytes) -> None:
    with pytest.raises(BackendError) as refused:
        answered(field)
    assert refused.value.status == 502


def test_nothing_is_granted_where_nothing_was_offered() -> None:
    asked = Upgrade(KEY, (), ())
    for field in (b"Sec-WebSocket-Protocol: chat.v1", b"Sec-WebSocket-Extensions: permessage-deflate"):
        with pytest.raises(BackendError):
            answered(field, asked=asked)


@pytest.mark.parametrize(
    ("offers", "answer", "good"),
    [
        ([""], "", True),
        ([""], "; server_no_context_takeover; client_no_context_takeover", True),
        ([""], "; server_max_window_bits=8", True),
        ([""], '; server_max_window_bits="15"', True),
        ([""], "; server_max_window_bits=7", False),
        ([""], "; server_max_window_bits=16", False),
        ([""], "; server_max_window_bits=08", False),
        ([""], "; server_max_window_bits=ten", False),
        ([""], "; server_max_window_bits", False),
        ([""], "; server_no_context_takeover=1", False),
        ([""], "; server_no_context_takeover; server_no_context_takeover", False),
        ([""], "; unknown", False),
        ([""], "; client_max_window_bits=10", False),
        (["; client_max_window_bits"], "; client_max_window_bits=10", True),
        (["; client_max_window_bits"], "; client_max_window_bits", False),
        (["; client_max_window_bits"], "", True),
        (["; client_max_window_bits=12"], "; client_max_window_bits=12", True),
        (["; client_max_window_bits=12"], "; client_max_window_bits=13", False),
        (["; client_max_window_bits=99"], "; client_max_window_bits=13", False),
        (["; server_max_window_bits=10"], "; server_max_window_bits=9", True),
        (["; server_max_window_bits=10"], "; server_max_window_bits=11", False),
        (["; server_max_window_bits=10"], "", False),
        (["; server_no_context_takeover"], "", False),
        (["; server_no_context_takeover"], "; server_no_context_takeover", True),
        (["; client_no_context_takeover"], "", True),
        (["; server_max_window_bits=10", ""], "", True),
        (["; client_max_window_bits; client_max_window_bits"], "", False),
        (["; client_max_window_bits; client_max_window_bits", ""], "", True),
    ],
)
def test_the_parameters_of_permessage_deflate_answer_an_offer(offers: list[str], answer: str, good: bool) -> None:
    asked = Upgrade(KEY, (), tuple(DEFLATE + offer.encode() for offer in offers))
    field = b"Sec-WebSocket-Extensions: permessage-deflate" + answer.encode()
    if good:
        assert answered(field, asked=asked).deflate
    else:
        with pytest.raises(BackendError):
            answered(field, asked=asked)


# With an independent client and server


BITS = st.one_of(st.none(), st.integers(9, 15))


@given(
    st.builds(
        ClientPerMessageDeflateFactory,
        server_no_context_takeover=st.booleans(),
        client_no_context_takeover=st.booleans(),
        server_max_window_bits=BITS,
        client_max_window_bits=st.one_of(BITS, st.just(True)),
    ),
    st.builds(
        ServerPerMessageDeflateFactory,
        server_no_context_takeover=st.booleans(),
        client_no_context_takeover=st.booleans(),
        server_max_window_bits=BITS,
        client_max_window_bits=BITS,
    ),
    st.lists(st.sampled_from(["chat.v1", "chat.v2", "mqtt"]), unique=True),
    st.sampled_from([["mqtt"], ["chat.v2", "chat.v1"], None]),
)
def test_any_handshake_of_a_real_client_and_server_passes_through(
    offer: ClientPerMessageDeflateFactory,
    support: ServerPerMessageDeflateFactory,
    wanted: list[str],
    served: list[str] | None,
) -> None:
    client = ClientProtocol(parse_uri("ws://a/ws"), extensions=[offer], subprotocols=wanted or None)  # type: ignore[arg-type]
    server = ServerProtocol(
        extensions=[support],
        subprotocols=served,  # type: ignore[arg-type]
        select_subprotocol=lambda _, offered: next((one for one in served or () if one in offered), None),  # type: ignore[arg-type]
    )
    client.send_request(client.connect())
    stream = b"".join(client.data_to_send())
    assert cut_head(stream) == len(stream)
    head = parse_request(stream)
    asked = check_upgrade(head)
    assert asked.subprotocols == tuple(wanted)

    facts = ClientFacts("192.0.2.1", 50000, "http", head.host)
    server.receive_data(upgrade_head(head, asked, head.target, facts, ()))
    request = server.events_received()[0]
    server.send_response(server.accept(request))  # type: ignore[arg-type]
    # A frame may come in the segment of the 101: it stays behind the cut.
    stream = b"".join(server.data_to_send()) + b"\x81\x02yo"
    end = cut_response(stream)
    assert end is not None
    assert stream[end:] == b"\x81\x02yo"
    response = parse_response(stream[:end])
    accepted = verify_answer(response, asked)
    assert accepted.subprotocol == server.subprotocol
    assert accepted.deflate == bool(server.extensions)

    client.receive_data(client_answer(response, accepted) + stream[end:])
    assert client.handshake_exc is None
    assert [getattr(event, "data", None) for event in client.events_received()[1:]] == [b"yo"]


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_no_list_makes_the_checks_fail_otherwise_than_by_contract(one: bytes, other: bytes) -> None:
    clean = [bytes(c for c in raw if c == 9 or (c >= 32 and c != 127)) for raw in (one, other)]
    fields = [b"Sec-WebSocket-Protocol: " + clean[0], b"Sec-WebSocket-Extensions: permessage-deflate" + clean[1]]
    statuses = []
    try:
        check_upgrade(opening(*fields))
    except HttpError as error:
        statuses.append(error.status)
    try:
        answered(*fields)
    except BackendError as error:
        statuses.append(error.status)
    assert statuses in ([], [400], [502], [400, 502])


# Sessions that the router ends itself


@pytest.mark.parametrize(
    ("offers", "taken"),
    [
        ((), None),
        ((b"permessage-deflate",), b"permessage-deflate"),
        ((b"Permessage-Deflate ;client_max_window_bits = 8",), b"permessage-deflate"),
        (
            (b'permessage-deflate; server_max_window_bits="9" ;client_no_context_takeover',),
            b"permessage-deflate; server_max_window_bits=9; client_no_context_takeover",
        ),
        ((b"permessage-deflate; server_max_window_bits=8", b"permessage-deflate; a"), None),
        ((b"permessage-deflate; server_max_window_bits=8", b"permessage-deflate"), b"permessage-deflate"),
        ((b"permessage-deflate; server_max_window_bits",), None),
        ((b"permessage-deflate; client_max_window_bits=16",), None),
        ((b"permessage-deflate; client_no_context_takeover=1",), None),
        ((b"permessage-deflate; client_max_window_bits; client_max_window_bits",), None),
    ],
)
def test_the_router_takes_up_the_first_offer_that_it_can_keep_to(offers, taken) -> None:
    assert own_answer(offers) == taken


@pytest.mark.parametrize(
    ("granted", "written"),
    [
        (None, None),
        (b"", None),
        (b"permessage-deflate", b"permessage-deflate"),
        (b"Permessage-Deflate;server_max_window_bits=8", b"permessage-deflate"),
        (
            b"permessage-deflate;server_no_context_takeover ; client_no_context_takeover",
            b"permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        ),
    ],
)
def test_what_a_backend_grants_to_the_router_is_written_anew(granted, written) -> None:
    fields = [] if granted is None else [b"Sec-WebSocket-Extensions: " + granted]
    lines = [b"HTTP/1.1 101 .", b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Accept: " + ACCEPT]
    response = parse_response(b"\r\n".join([*lines, *fields, b"", b""]))
    assert verify_answer(response, Upgrade(KEY, (), (DEFLATE,))).deflate is (written is not None)
    assert granted_to_us(response) == written
