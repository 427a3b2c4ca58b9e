"""What of a head goes on to the other side (RFC 9110 7.6, RFC 7239).

End-to-end fields pass byte for byte, in order, with their names as written. Hop-by-hop fields end here, and
so does whatever Connection names, except the fields that carry the handshake, the Host, and what the router
itself adds: a client must not be able to talk those away.

No client is trusted. ``X-Forwarded-For``, ``-Proto``, ``-Host`` and ``Forwarded`` are the router's own; what a
client sends under these names, as any other ``X-Forwarded-`` field or as ``X-Real-IP`` is dropped. Backends of the
CGI family read ``X_Forwarded_For`` as the same name, so names are compared with hyphens for underscores.

A proxy in front that the operator trusts is believed as far as ``policy.forwarded`` says. Its fields are not
passed on either: what was believed of them is written anew, with the proxy itself behind it. A backend that
takes the left end of the list for the client is then right. ``X-Forwarded-Port`` and ``X-Real-IP`` are written only
where the proxy has: the router makes up neither.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final, Literal, NamedTuple, TypeAlias

from wsrouter.policy.forwarded import Effective, effective
from wsrouter.policy.networks import Networks, believed
from wsrouter.wire.head import Field, RequestHead, ResponseHead, keep, tokens
from wsrouter.wire.opening import Accepted, Upgrade

#: A field as it is written: name and value.
Pair: TypeAlias = tuple[bytes, bytes]

_HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
_FRAMING: Final = _HOP_BY_HOP | {b"content-length"}
_EXTENSIONS: Final = b"sec-websocket-extensions"
_NO_EXTENSIONS: Final = _FRAMING | {_EXTENSIONS}
_NOT_TO_BACKENDS: Final = _FRAMING | {b"expect", b"http2-settings", b"forwarded", b"x-real-ip"}
_NOT_WITH_UPGRADE: Final = _NOT_TO_BACKENDS | {_EXTENSIONS}
_SPOOFED: Final = b"x-forwarded-"
#: What Connection holds in nearly all handshakes.
_UPGRADE: Final = (b"upgrade",)
#: What Connection cannot remove, with the fields of the handshake.
_KEPT: Final = frozenset((b"host", b"content-length"))
_HANDSHAKE: Final = b"sec-websocket-"

_PLACEHOLDER: Final = re.compile(r"\{\{|\}\}|\{([a-z_]+)\}|[{}]")
#: C0 controls but HTAB, and DEL: none may stand in a field's value.
_CONTROLS: Final = dict.fromkeys([*range(9), *range(10, 32), 127])


class ClientFacts(NamedTuple):
    """What the router knows of a client and tells backends."""

    #: The address as text; empty for a client without one (a unix socket).
    ip: str
    port: int
    scheme: Literal["http", "https"]
    #: The authority that the client asked for, as it came: ``RequestHead.host``.
    host: str
    #: The client behind this one, where this one is a trusted proxy; None where it speaks for itself.
    behind: Effective | None = None


@dataclass(frozen=True, slots=True)
class Template:
    """A compiled template; ``compile_template`` makes it."""

    #: Texts and names in turns, a text first and last.
    parts: tuple[str, ...]

    def fill(self, fields: Mapping[str, str]) -> bytes:
        """The text in UTF-8 with every placeholder filled in; control characters of the values are left out.

        ``fields`` holds every name that the template uses, else KeyError is raised; what is unknown is empty.
        """
        if len(self.parts) == 1:
            return self.parts[0].encode()
        filled = [fields[part].translate(_CONTROLS) if index % 2 else part for index, part in enumerate(self.parts)]
        return "".join(filled).encode("utf-8", "replace")


@functools.cache
def compile_template(template: str) -> Template:
    """A template as ``set_header`` writes it: ``{name}`` is a placeholder, ``{{`` and ``}}`` are braces.

    Raises ValueError for a lone brace. Templates come from the configuration: there are few, and each is
    compiled once.
    """
    parts = [""]
    end = 0
    for found in _PLACEHOLDER.finditer(template):
        parts[-1] += template[end : found.start()]
        end = found.end()
        if found[1] is not None:
            parts += [found[1], ""]
        elif len(found[0]) == 2:
            parts[-1] += found[0][0]
        else:
            raise ValueError(f"a lone {found[0]!r} at offset {found.start()} of the template {template!r}")
    parts[-1] += template[end:]
    return Template(tuple(parts))


def fill(template: str, fields: Mapping[str, str]) -> bytes:
    """``template`` with its placeholders filled in from ``fields``; see ``Template.fill``."""
    return compile_template(template).fill(fields)


def upgrade_head(
    head: RequestHead,
    upgrade: Upgrade,
    forward_target: bytes,
    client: ClientFacts,
    set_headers: Sequence[Pair],
) -> bytes:
    """The whole head of an opening handshake for a backend, with the client's own key and subprotocols.

    ``forward_target`` comes from ``Target.forward``. ``set_headers`` replace fields of the same name, the
    router's own included; an empty value removes. They cannot touch hop-by-hop fields, nor take Host away.
    """
    if set_headers or head.connection != _UPGRADE or head.target[0] != 0x2F:
        pairs = _request_pairs(head, client, set_headers, _NOT_WITH_UPGRADE)
        lines = list(map(b": ".join, pairs))
    else:
        # Most clients' handshakes, by the same rules: nothing in them depends on anything but the field itself.
        names = head.values if len(head.values) == len(head.lines) else map(_lower_of, head.fields)
        lines = [line for name, line in zip(names, head.lines) if _passes_with_upgrade[name]]  # noqa: B905 (of one size)
        lines.append(_forwarded_lines(client))
    if upgrade.extensions and not (set_headers and _EXTENSIONS in {name.lower() for name, _ in set_headers}):
        lines.append(b"Sec-WebSocket-Extensions: " + b", ".join(upgrade.extensions))
    return b"GET %b HTTP/1.1\r\n%b\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n" % (
        forward_target,
        b"\r\n".join(lines),
    )


def plain_fields(head: RequestHead, client: ClientFacts, set_headers: Sequence[Pair]) -> list[Pair]:
    """The fields of a plain request for a backend, by the rules of ``upgrade_head``.

    Framing is the HTTP client's: there is no Content-Length, Transfer-Encoding, Connection or Expect.
    """
    return _request_pairs(head, client, set_headers, _NOT_TO_BACKENDS)


def response_fields(fields: Iterable[Field]) -> list[Pair]:
    """The end-to-end fields of a backend's answer, Content-Length included (``ResponseHead.fields``)."""
    fields = list(fields)
    named = tokens([value for lower, _, value in fields if lower == b"connection"])
    dropped = _HOP_BY_HOP | _named(named)
    return [(name, value) for lower, name, value in fields if lower not in dropped]


def client_answer(response: ResponseHead, accepted: Accepted, added: Pair | None = None) -> bytes:
    """A backend's verified 101 as the client gets it; ``accepted`` is what ``verify_answer`` made of it.

    Everything end-to-end passes as the backend wrote it, cookies and the handshake's fields included; ``added`` is a
    field of the router's own.
    """
    # An empty list of extensions grants nothing, but some clients choke on it.
    dropped = _FRAMING if accepted.deflate else _NO_EXTENSIONS
    if response.connection != _UPGRADE:
        dropped |= _named(response.connection)
    names = response.values if len(response.values) == len(response.lines) else map(_lower_of, response.fields)
    lines = [line for name, line in zip(names, response.lines) if name not in dropped]  # noqa: B905 (of one size)
    if added is not None:
        lines.append(b"%b: %b" % added)
    return b"HTTP/1.1 101 %b\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n%b\r\n\r\n" % (
        response.reason or b"Switching Protocols",
        b"\r\n".join(lines),
    )


def with_field(head: bytes, field: Pair) -> bytes:
    """A whole head with one more field at its end."""
    return head[:-2] + b"%b: %b\r\n\r\n" % field


def _request_pairs(
    head: RequestHead, client: ClientFacts, set_headers: Sequence[Pair], dropped: frozenset[bytes]
) -> list[Pair]:
    if head.connection != _UPGRADE:
        dropped |= _named(head.connection)
    ours = _forwarded(client)
    if set_headers:
        # HTTP/1.1 needs a Host: it can be replaced, not removed.
        names = {lower for name, value in set_headers if (lower := name.lower()) != b"host" or value}
        dropped |= {name.replace(b"_", b"-") for name in names}
        ours = [pair for pair in ours if pair[0].lower() not in names]
        ours += [pair for pair in set_headers if pair[1] and pair[0].lower() not in _FRAMING]
    together = b" ".join(head.values)
    if _SPOOFED in together or b"_" in together:
        dropped |= {name for name in head.values if _is_spoofed(name, dropped)}
    pairs = [field[1:] for field in head.fields if field[0] not in dropped]
    if not head.target.startswith(b"/"):
        # An absolute-form target overrules the Host field (RFC 9112 3.2.2).
        pairs = [(name, head.host.encode() if name.lower() == b"host" else value) for name, value in pairs]
    pairs += ours
    return pairs


class _Names(dict[bytes, bool]):
    """Whether a field of this name passes behind an upgrade; kept for short names, of which there are not many."""

    def __missing__(self, lower: bytes) -> bool:
        passes = not _is_spoofed(lower, _NOT_WITH_UPGRADE)
        keep(self, lower, passes, len(lower), _REMEMBERED_NAMES)
        return passes


_REMEMBERED_NAMES: Final = 1024
_passes_with_upgrade = _Names()
_lower_of: Callable[[Field], bytes] = itemgetter(0)


def _is_spoofed(lower: bytes, dropped: frozenset[bytes]) -> bool:
    """Whether a name stands for one that only the router may use, as backends may read it."""
    read_as = lower.replace(b"_", b"-")
    return read_as in dropped or read_as.startswith(_SPOOFED)


def _named(connection: Iterable[bytes]) -> frozenset[bytes]:
    """The fields that Connection makes hop-by-hop, but for those that it must not."""
    return frozenset([name for name in connection if name not in _KEPT and not name.startswith(_HANDSHAKE)])


def said_behind(head: RequestHead, peer: str, trusted: Networks) -> Effective | None:
    """Who is behind a peer, by the forwarding fields of its request; None if the peer is not trusted."""
    if not believed(peer, trusted):
        return None
    return effective(
        peer,
        trusted,
        head.all(b"x-forwarded-for"),
        head.all(b"forwarded"),
        head.all(b"x-forwarded-proto"),
        head.all(b"x-forwarded-host"),
        head.all(b"x-forwarded-port"),
        head.all(b"x-real-ip"),
    )


def _forwarded(client: ClientFacts) -> list[Pair]:
    """The router's own fields about a client (RFC 7239 4, 6); what is not known is left out."""
    if client.behind is not None:
        return _forwarded_behind(client, client.behind)
    ip, _, scheme, host, _ = client
    pairs = [(b"X-Forwarded-Proto", scheme.encode())]
    if ip:
        pairs.append((b"X-Forwarded-For", ip.encode()))
    if host:
        pairs.append((b"X-Forwarded-Host", host.encode()))
    pairs.append((b"Forwarded", (_node(ip) + _told(host, scheme)).encode()))
    return pairs


def _forwarded_lines(client: ClientFacts) -> bytes:
    """``_forwarded`` as it is written, without the last CRLF."""
    ip, _, scheme, host, behind = client
    if behind is not None or not ip:
        return b"\r\n".join(map(b": ".join, _forwarded(client)))
    before, between, told = _about_hosts[scheme, host]
    return f"{before}{ip}{between}{_node(ip)}{told}".encode()


class _AboutHosts(dict[tuple[str, str], tuple[str, str, str]]):
    """What ``_forwarded_lines`` writes for a scheme and a host around the client's address; a router serves few."""

    def __missing__(self, key: tuple[str, str]) -> tuple[str, str, str]:
        scheme, host = key
        before = f"X-Forwarded-Proto: {scheme}\r\nX-Forwarded-For: "
        between = f"\r\nX-Forwarded-Host: {host}\r\nForwarded: " if host else "\r\nForwarded: "
        about = before, between, _told(host, scheme)
        keep(self, key, about, len(host))
        return about


_about_hosts = _AboutHosts()


def _node(ip: str) -> str:
    """How an element of Forwarded begins for a client with this address (RFC 7239 6); empty: for one without."""
    return f'for="[{ip}]"' if ":" in ip else f"for={ip or 'unknown'}"


def _forwarded_behind(client: ClientFacts, behind: Effective) -> list[Pair]:
    """The same about a client behind a trusted proxy: the believed chain, and the proxy itself at its end.

    Each element of Forwarded tells of one hop. The first carries the client's own scheme and Host, the last
    what the router has seen; of those between them only the addresses are known.
    """
    host = behind.host or client.host
    proto = behind.proto or client.scheme
    # A proxy on a unix socket has no address: a list of addresses leaves it out, Forwarded has a word for it.
    chain = (*behind.chain, client.ip) if client.ip else behind.chain
    pairs = [(b"X-Forwarded-Proto", proto.encode())]
    if chain:
        pairs.append((b"X-Forwarded-For", ", ".join(chain).encode()))
        if behind.real_ip:
            pairs.append((b"X-Real-IP", chain[0].encode()))
    if host:
        pairs.append((b"X-Forwarded-Host", host.encode()))
    if behind.port is not None:
        pairs.append((b"X-Forwarded-Port", b"%d" % behind.port))
    elements = [_node(ip) for ip in chain]
    if not client.ip:
        elements.append(_node(""))
    if behind.chain:
        elements[-1] += _told(client.host, client.scheme)
        elements[0] += _told(behind.host or "", behind.proto)
    else:
        elements[0] += _told(host, proto)
    pairs.append((b"Forwarded", ", ".join(elements).encode()))
    return pairs


def _told(host: str, proto: str | None) -> str:
    """The parameters of an element of Forwarded that follow its address.

    What an authority may hold is a token, but for the colon and brackets of a port or an IPv6 address.
    """
    told = "" if not host else f';host="{host}"' if ":" in host else f";host={host}"
    return told if proto is None else f"{told};proto={proto}"
