"""The opening handshake: what a client asks for, and whether a backend's 101 answers it (RFC 6455 4, RFC 7692).

The router negotiates nothing itself. It checks the client's request, lets the backend answer, and then
holds the answer against what was offered: a 101 that proves nothing, or that grants what nobody asked
for, must never open a tunnel.
"""

from __future__ import annotations

import binascii
import functools
import hashlib
import re
from typing import Final, NamedTuple, TypeAlias

from wsrouter.errors import BackendError, HttpError
from wsrouter.wire.head import RequestHead, ResponseHead, new

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#: A copy of one is had in half the time that OpenSSL takes to look the algorithm up for another.
_SHA1: Final = hashlib.sha1(usedforsecurity=False)

_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{22}==")
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_SUBPROTOCOL: Final = re.compile(_TOKEN)
_PARAMETER: Final = rb"(%b)(?:[ \t]*=[ \t]*(?:(%b)|\"(%b)\"))?" % (_TOKEN, _TOKEN, _TOKEN)
_EACH_PARAMETER: Final = re.compile(_PARAMETER)
_EXTENSION: Final = re.compile(rb"(%b)((?:[ \t]*;[ \t]*%b)*)" % (_TOKEN, _PARAMETER.replace(b"(%b)" % _TOKEN, _TOKEN)))
_WINDOW: Final = re.compile(rb"[89]|1[0-5]")

_DEFLATE: Final = b"permessage-deflate"
_PARAMETERS: Final = frozenset(
    (
        b"server_no_context_takeover",
        b"client_no_context_takeover",
        b"server_max_window_bits",
        b"client_max_window_bits",
    )
)

_ASK_FOR_13 = (
    (b"Upgrade", b"websocket"),
    (b"Connection", b"Upgrade"),
    (b"Sec-WebSocket-Version", b"13"),
)

#: The parameters of one extension; None for those without a value.
_Parameters: TypeAlias = dict[bytes, bytes | None]


class Upgrade(NamedTuple):
    """What a client's opening handshake asks for."""

    key: bytes
    #: In the client's order of preference.
    subprotocols: tuple[str, ...]
    #: The offers of permessage-deflate as they came; other extensions may change the framing and are left out.
    extensions: tuple[bytes, ...]


class Accepted(NamedTuple):
    """What a backend's verified 101 has granted."""

    subprotocol: str | None
    #: permessage-deflate was agreed upon.
    deflate: bool


_NOTHING: Final = Accepted(None, False)


def wants_websocket(head: RequestHead) -> bool:
    """Whether a request asks to become a WebSocket.

    It does if it is HTTP/1.1, Connection names ``upgrade`` and Upgrade names ``websocket``, perhaps among
    other protocols. An Upgrade on HTTP/1.0 is ignored (RFC 9110 7.8).
    """
    return b"websocket" in head.upgrades


def check_upgrade(head: RequestHead) -> Upgrade:
    """What an opening handshake asks for; the caller has seen that the request ``wants_websocket``.

    Raises HttpError (RFC 6455 4.2.1): 405 for a method other than GET, 426 for a version other than 13,
    400 for a missing, repeated or malformed key, for a request with a body, and for malformed or repeated
    subprotocols and malformed extensions.
    """
    if head.method != "GET":
        raise HttpError(405, "an opening handshake is a GET", ((b"Allow", b"GET"),))
    values = head.values.get
    if values(b"sec-websocket-version") != [b"13"]:
        raise HttpError(426, "Sec-WebSocket-Version is not 13", _ASK_FOR_13)
    keys = values(b"sec-websocket-key")
    if keys is None or len(keys) != 1 or _KEY.fullmatch(keys[0]) is None:
        raise HttpError(400, "Sec-WebSocket-Key must be one field of 16 bytes in base64")
    if head.content_length or head.chunked:
        raise HttpError(400, "an opening handshake has no body")
    subprotocols = values(b"sec-websocket-protocol")
    extensions = values(b"sec-websocket-extensions")
    offered = _offered_subprotocols(subprotocols) if subprotocols else ()
    if not extensions:
        return new(Upgrade, (keys[0], offered, ()))
    offers = extensions[0] if len(extensions) == 1 else b",".join(extensions)
    return new(Upgrade, (keys[0], offered, _offered_deflate(offers)))


def accept_for(key: bytes) -> bytes:
    """The Sec-WebSocket-Accept that answers a key (RFC 6455 4.2.2)."""
    digest = _SHA1.copy()
    digest.update(key + _GUID)
    return binascii.b2a_base64(digest.digest(), newline=False)


def verify_answer(response: ResponseHead, upgrade: Upgrade) -> Accepted:
    """What a backend's 101 grants, once it is shown to answer this very request (RFC 6455 4.1, RFC 7692 7.1).

    Raises BackendError with status 502 for a 101 that lacks or falsifies the proof, announces a body, or
    grants a subprotocol or extension that was not offered.
    """
    if response.status != 101 or response.minor != 1:
        raise BackendError(502, "the backend's answer is no HTTP/1.1 101")
    values = response.values.get
    upgrades = values(b"upgrade")
    if upgrades is None or len(upgrades) != 1 or upgrades[0].lower() != b"websocket":
        raise BackendError(502, "the backend's 101 does not upgrade to websocket")
    if b"upgrade" not in response.connection:
        raise BackendError(502, "the backend's 101 lacks Connection: Upgrade")
    if values(b"sec-websocket-accept") != [accept_for(upgrade.key)]:
        raise BackendError(502, "the backend's 101 has no, or a wrong, Sec-WebSocket-Accept")
    if response.content_length or response.chunked:
        raise BackendError(502, "the backend's 101 announces a body")
    subprotocols = values(b"sec-websocket-protocol")
    extensions = values(b"sec-websocket-extensions")
    if not subprotocols and not extensions:
        return _NOTHING
    return Accepted(
        _granted_subprotocol(subprotocols, upgrade.subprotocols) if subprotocols else None,
        _granted_deflate(b",".join(extensions), upgrade.extensions) if extensions else False,
    )


def check_refusal(response: ResponseHead) -> None:
    """Hold an answer to an opening handshake that is no 101 to being a refusal.

    Raises BackendError with status 502 for one that speaks of an upgrade all the same.
    """
    if response.status < 300 and response.first(b"upgrade") is not None:
        raise BackendError(502, f"status {response.status} with an Upgrade field")


def own_answer(extensions: tuple[bytes, ...]) -> bytes | None:
    """The first of a client's offers that the router can take up itself, written anew; None if there is none.

    For sessions that the router ends (RFC 7692 7.1). What a client says of its own window is left out: any will do.
    """
    for offer in map(_parameters, extensions):
        if offer is None or offer.get(b"server_max_window_bits") == b"8":  # smaller than zlib's smallest
            continue
        own = {name: value for name, value in offer.items() if name != b"client_max_window_bits"}
        client_bits = offer.get(b"client_max_window_bits")
        if _well_formed(own) and (client_bits is None or _WINDOW.fullmatch(client_bits)):
            return _written(own)
    return None


def granted_to_us(response: ResponseHead) -> bytes | None:
    """The permessage-deflate of a verified 101 that answers the router's own offer, written anew; None without one.

    The window that the backend keeps to is left out: whoever inflates with the largest can read any.
    """
    granted = _members(b",".join(response.values.get(b"sec-websocket-extensions", ())))
    parameters = _parameters(granted[0]) if granted else None
    if parameters is None:
        return None
    return _written({name: value for name, value in parameters.items() if name != b"server_max_window_bits"})


def _written(parameters: _Parameters) -> bytes:
    return b"; ".join(
        [_DEFLATE, *(name if value is None else name + b"=" + value for name, value in parameters.items())]
    )


def _offered_subprotocols(values: list[bytes]) -> tuple[str, ...]:
    names = _members(b",".join(values))
    if not names or not all(map(_SUBPROTOCOL.fullmatch, names)):
        raise HttpError(400, "malformed Sec-WebSocket-Protocol")
    if len(set(names)) != len(names):
        raise HttpError(400, "a subprotocol is offered twice")
    return tuple([name.decode("ascii") for name in names])


# Clients differ little in what they offer, and backends in what they grant: both are worked out once.
@functools.lru_cache(maxsize=64)
def _offered_deflate(text: bytes) -> tuple[bytes, ...]:
    offers = _members(text)
    found = [_EXTENSION.fullmatch(offer) for offer in offers]
    if not offers or None in found:
        raise HttpError(400, "malformed Sec-WebSocket-Extensions")
    return tuple([one[0] for one in found if one is not None and one[1].lower() == _DEFLATE])


def _members(text: bytes) -> list[bytes]:
    """The members of a list, empty ones left out (RFC 9110 5.6.1); here even what is quoted holds no comma."""
    return [member for part in text.split(b",") if (member := part.strip(b" \t"))]


def _granted_subprotocol(values: list[bytes], offered: tuple[str, ...]) -> str:
    name = values[0].decode("latin-1")
    if len(values) > 1 or name not in offered:
        raise BackendError(502, "the backend chose a subprotocol that was not offered")
    return name


@functools.lru_cache(maxsize=64)
def _granted_deflate(text: bytes, offers: tuple[bytes, ...]) -> bool:
    granted = _members(text)
    if not granted:
        return False
    found = _EXTENSION.fullmatch(granted[0])
    if len(granted) > 1 or found is None or found[1].lower() != _DEFLATE or not offers:
        raise BackendError(502, "the backend chose an extension that was not offered")
    answer = _parameters(granted[0])
    if answer is None or not _well_formed(answer):
        raise BackendError(502, "the backend's permessage-deflate has malformed parameters")
    if not any(_answers(answer, offer) for offer in map(_parameters, offers) if offer is not None):
        raise BackendError(502, "the backend's permessage-deflate answers none of the offers")
    return True


def _parameters(extension: bytes) -> _Parameters | None:
    """The parameters of one extension; None if one comes twice, which RFC 7692 7.1 forbids."""
    parameters: _Parameters = {}
    for found in _EACH_PARAMETER.finditer(extension, len(_DEFLATE)):
        if found[1] in parameters:
            return None
        parameters[found[1]] = found[2] or found[3]
    return parameters


def _well_formed(answer: _Parameters) -> bool:
    """Whether a server may send these at all: RFC 7692 7.1.1.1 to 7.1.2.2."""
    for name, value in answer.items():
        if name not in _PARAMETERS:
            return False
        if name.endswith(b"_bits"):
            if value is None or _WINDOW.fullmatch(value) is None:
                return False
        elif value is not None:
            return False
    return True


def _answers(answer: _Parameters, offer: _Parameters) -> bool:
    """Whether a well-formed answer keeps to one offer: it grants every demand and takes no more than was given."""
    if b"server_no_context_takeover" in offer and b"server_no_context_takeover" not in answer:
        return False
    return _within(answer, offer, b"server_max_window_bits", demanded=True) and _within(
        answer, offer, b"client_max_window_bits", demanded=False
    )


def _within(answer: _Parameters, offer: _Parameters, name: bytes, *, demanded: bool) -> bool:
    granted = answer.get(name)
    if name not in offer:
        # A server may shrink its own window unasked, the client's only by leave.
        return demanded or granted is None
    if granted is None:
        return not demanded
    limit = offer[name]
    return limit is None or (_WINDOW.fullmatch(limit) is not None and int(granted) <= int(limit))
