"""Host names, origins, ports and backends.

Names come out as they appear on the wire: lower case, without a final dot, Unicode as IDNA A-labels
(RFC 5890, mapped as UTS 46 says). IP literals come out in their canonical spelling.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any

import idna

from wsrouter.config.faults import BadValue, nearest, quoted
from wsrouter.config.scalars import number
from wsrouter.config.values import Backend

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_ORIGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#@\s]+?)(?::([0-9]*))?")
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]*))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_UNIX_LONGEST = 107


def port(text: str) -> int:
    """A port that something may listen on: 1 to 65535."""
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise BadValue(f"{quoted(text)} is not a port (expected 1 to 65535)")
    return int(text)


def ip(text: str) -> str | None:
    """The canonical spelling of an IPv4 or IPv6 literal (no brackets), or None when it is neither."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def host_name(text: str) -> str:
    """A DNS name, never an IP literal (RFC 1123 2.1; underscores are let through, as resolvers do)."""
    bare = text[:-1] if text.endswith(".") else text
    ascii_name = bare.lower()
    if not bare.isascii():
        try:
            ascii_name = idna.encode(bare, uts46=True).decode("ascii")
        except UnicodeError as error:
            raise BadValue(f"{quoted(text)} is not a host name ({error})") from None
    labels = ascii_name.split(".")
    # A last label of digits alone would be taken for a broken IPv4 address by every URL parser.
    if len(ascii_name) > 253 or not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        raise BadValue(f"{quoted(text)} is not a host name")
    return ascii_name


def wildcard_name(text: str) -> str:
    """A DNS name, or ``*.`` and a DNS name."""
    if "*" not in text:
        return host_name(text)
    if not text.startswith("*.") or "*" in text[2:]:
        raise BadValue(f"{quoted(text)} is not a host name (a wildcard is '*.' and a name)")
    return f"*.{host_name(text[2:])}"


def server_name(text: str) -> str:
    """What a ClientHello may name (RFC 6066 3): a DNS name or a wildcard, no IP literal."""
    if ip(text.strip("[]")):
        raise BadValue(f"{quoted(text)} is an IP address (SNI holds host names only, RFC 6066 3)")
    return wildcard_name(text)


def address(text: str) -> str:
    """A DNS name or an IP literal, an IPv6 one with or without brackets; comes out without."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return ip(bare) or host_name(text)


def certificate_name(text: str) -> str:
    """What a certificate may name: a DNS name, a wildcard, or an IP literal without brackets."""
    return ip(text) or wildcard_name(text)


def route_host(text: str) -> str:
    """What a Host header may name, without its port: a DNS name, a wildcard, or an IP literal.

    An IPv6 literal may be written with or without brackets; it comes out without, as routes compare it.
    """
    literal = ip(text[1:-1]) if text.startswith("[") and text.endswith("]") else ip(text)
    if literal:
        return literal
    if ":" in text:
        raise BadValue(f"{quoted(text)} is not a host name (a host is given without its port)")
    return wildcard_name(text)


def authority(text: str) -> str:
    """What a Host header holds (RFC 9112 3.2): a DNS name or an IP literal, an IPv6 one in brackets, maybe a port."""
    found = _AUTHORITY.fullmatch(text)
    host = address(found[1]) if found else ""
    if found is None or found[1].startswith("[") is not (":" in host):
        raise BadValue(f"{quoted(text)} is not a host (expected NAME, NAME:PORT or [IPV6]:PORT)")
    host = f"[{host}]" if ":" in host else host
    return host if found[2] is None else f"{host}:{port(found[2])}"


def origin(text: str) -> str:
    """An origin as browsers write it (RFC 6454 6.2): ``scheme://host[:port]``, no default port; ``null``; ``same``."""
    if text in ("same", "null"):
        return text
    found = _ORIGIN.fullmatch(text)
    if not found:
        raise BadValue(f"{quoted(text)} is not an origin (expected scheme://host[:port] without a path, same or null)")
    scheme, host, digits = found[1].lower(), route_host(found[2]), found[3]
    if host.startswith("*"):
        raise BadValue(f"{quoted(text)} is not an origin (wildcards are not known here)")
    host = f"[{host}]" if ":" in host else host
    if digits is None or digits == _DEFAULT_PORTS.get(scheme):
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{port(digits)}"


def unix_path(text: str, folder: Path) -> str:
    """The absolute path of a unix socket, relative ones taken from ``folder``; unix(7) has room for 107 bytes."""
    if not text:
        raise BadValue("the path of the unix socket is missing")
    path = str(folder / text)
    if len(path.encode()) > _UNIX_LONGEST:
        raise BadValue(f"{quoted(path)} is too long for a unix socket (at most {_UNIX_LONGEST} bytes)")
    return path


def backend(text: str, folder: Path) -> Backend:
    """``HOST:PORT`` or ``unix:PATH``, then any of ``weight=N``, ``max_sessions=N``, ``backup``."""
    where, *words = text.split()
    options = _backend_words(words)
    if where.startswith("unix:"):
        return Backend("", 0, unix=unix_path(where[5:], folder), **options)
    host, colon, digits = where.rpartition(":")
    if not colon or not host or (":" in host and not host.startswith("[")):
        raise BadValue(f"{quoted(where)} is not a backend (expected HOST:PORT, [IPV6]:PORT or unix:PATH)")
    return Backend(address(host), port(digits), **options)


def _backend_words(words: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    known = {"weight": number(0, 1000), "max_sessions": number(1, 10**9)}
    for word in words:
        key, equals, value = word.partition("=")
        if key in options:
            raise BadValue(f"{quoted(key)} is given twice")
        if equals and key in known:
            options[key] = known[key](value)
        elif word == "backup":
            options[key] = True
        else:
            near = nearest(key, ["weight", "max_sessions", "backup"])
            hint = f"did you mean '{near}'?" if near and near != key else "known: weight=N, max_sessions=N, backup"
            raise BadValue(f"unknown word {quoted(word)} ({hint})")
    return options
