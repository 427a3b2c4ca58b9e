"""Endpoint strings: the part of Twisted's syntax that a listener may use.

Fields are separated by colons, ``key=value`` fields follow the positional ones, a backslash takes the
meaning from the next character. One thing is friendlier than Twisted: an IPv6 address may be written
as it is after ``interface=``. The string that comes out is always in Twisted's own spelling, with the
path of a unix socket absolute, so that a daemon that changed its folder still finds it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from wsrouter.config.faults import BadValue, nearest, quoted
from wsrouter.config.hosts import address, port, unix_path
from wsrouter.config.scalars import choice, number

#: The fields of each kind, in the order of their positions.
_FIELDS = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "backlog", "interface"),
    "unix": ("address", "mode", "backlog", "lockfile"),
    "systemd": ("domain", "index", "name"),
}
_PIECE = re.compile(r"((?:\\.|[^:\\])*)(:|$)")
_KEY = re.compile(r"([a-z]+)=(.*)")
_MODE = re.compile(r"[0-7]{3,4}")


@dataclass(frozen=True, slots=True)
class Address:
    """What an endpoint binds: a TCP ``host`` and ``port``, or for other kinds a ``host`` that names the rest."""

    kind: str
    host: str
    port: int = 0

    def overlaps(self, other: Address) -> bool:
        """Whether the kernel refuses to bind both. Port 0 picks a free one, and never does."""
        if self.kind != other.kind or self.port != other.port:
            return False
        if self.kind not in ("tcp", "tcp6"):
            return self.host == other.host
        return self.port != 0 and (self.host == other.host or bool({self.host, other.host} & {"0.0.0.0", "::"}))


def _pieces(text: str) -> list[str]:
    """The fields between colons, still with their backslashes."""
    pieces: list[str] = []
    position = 0
    while True:
        found = _PIECE.match(text, position)
        if found is None:
            raise BadValue(f"{quoted(text)} ends in a lone backslash")
        pieces.append(found[1])
        if not found[2]:
            return pieces
        position = found.end()


def _plain(piece: str) -> str:
    return re.sub(r"\\(.)", r"\1", piece)


def _spelled(value: str) -> str:
    return re.sub(r"([:=\\])", r"\\\1", value)


def _fields(kind: str, pieces: list[str]) -> tuple[dict[str, str], set[str]]:
    """The fields by name, and the names of those that were given as ``key=value``."""
    fields: dict[str, str] = {}
    keyed: set[str] = set()
    last = ""
    for position, piece in enumerate(pieces):
        found = _KEY.fullmatch(piece)
        if found:
            last, value = found[1], _plain(found[2])
            if last not in _FIELDS[kind]:
                near = nearest(last, _FIELDS[kind])
                hint = f"did you mean '{near}'?" if near else f"known: {', '.join(_FIELDS[kind])}"
                raise BadValue(f"unknown field {quoted(last)} of a {kind} endpoint ({hint})")
            keyed.add(last)
        elif last == "interface":
            fields[last] += f":{_plain(piece)}"
            continue
        elif last or position >= len(_FIELDS[kind]):
            raise BadValue(f"{quoted(_plain(piece))} is one field too many for a {kind} endpoint")
        else:
            value = _plain(piece)
        key = last or _FIELDS[kind][position]
        if key in fields:
            raise BadValue(f"the field '{key}' is given twice")
        fields[key] = value
    return fields, keyed


def _tcp(kind: str, fields: dict[str, str]) -> None:
    if not fields.get("port"):
        raise BadValue(f"the port is missing (expected {kind}:PORT)")
    # Port 0 is the kernel's choice, which only a listener can use.
    if fields["port"] != "0":
        port(fields["port"])
    if fields.get("interface"):
        fields["interface"] = address(fields["interface"])
        if kind == "tcp6" and ":" not in fields["interface"]:
            raise BadValue(f"{quoted(fields['interface'])} is not an IPv6 address")


def _unix(fields: dict[str, str], folder: Path) -> None:
    fields["address"] = unix_path(fields.get("address", ""), folder)
    parent = os.path.dirname(fields["address"])
    if not os.path.isdir(parent):
        raise BadValue(f"the folder {quoted(parent)} of the unix socket does not exist")
    if not _MODE.fullmatch(fields.get("mode", "666")):
        raise BadValue(f"{quoted(fields['mode'])} is not a mode (expected, for example, 660)")
    number(0, 1)(fields.get("lockfile", "1"))


def _systemd(fields: dict[str, str]) -> None:
    choice(dict.fromkeys(("INET", "INET6", "UNIX")))(fields.get("domain", ""))
    if bool(fields.get("index")) == bool(fields.get("name")):
        raise BadValue("a systemd endpoint needs either index=N or name=NAME")
    if fields.get("index"):
        number(0, 9999)(fields["index"])


def endpoint(text: str, folder: Path) -> str:
    """The endpoint string in Twisted's spelling; raises ``BadValue`` for other kinds and for fields that cannot be.

    ``folder`` is where relative paths of unix sockets begin. Nothing is bound or looked up.
    """
    kind, *pieces = _pieces(text)
    if kind not in _FIELDS:
        raise BadValue(f"unknown kind {quoted(kind)} of endpoint (known: {', '.join(_FIELDS)})")
    fields, keyed = _fields(kind, pieces)
    if kind == "unix":
        _unix(fields, folder)
    elif kind == "systemd":
        _systemd(fields)
    else:
        _tcp(kind, fields)
    if "backlog" in fields:
        number(1, 65535)(fields["backlog"])
    parts = [f"{key}={_spelled(value)}" if key in keyed else _spelled(value) for key, value in fields.items()]
    return ":".join([kind, *parts])


def bound_address(text: str) -> Address:
    """What a string that ``endpoint`` returned binds."""
    kind, *pieces = _pieces(text)
    fields, _ = _fields(kind, pieces)
    if kind in ("tcp", "tcp6"):
        host = fields.get("interface") or ("0.0.0.0" if kind == "tcp" else "::")
        return Address("tcp6" if ":" in host else "tcp", host, int(fields["port"]))
    if kind == "unix":
        return Address(kind, fields["address"])
    return Address(kind, fields.get("name") or f"#{int(fields['index'])}")


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A unix socket to bind: its absolute path, the mode of its file, and its queue; None for the router's own."""

    path: str
    mode: int
    backlog: int | None


def unix_socket(text: str) -> UnixSocket | None:
    """What a string that ``endpoint`` returned says of a unix socket; None for other kinds."""
    kind, *pieces = _pieces(text)
    if kind != "unix":
        return None
    fields, _ = _fields(kind, pieces)
    backlog = fields.get("backlog")
    return UnixSocket(fields["address"], int(fields.get("mode", "666"), 8), None if backlog is None else int(backlog))


def is_unix(text: str) -> bool:
    """Whether clients come through a unix socket, bound by the router or by systemd."""
    kind, *pieces = _pieces(text)
    return kind == "unix" or (kind == "systemd" and _fields(kind, pieces)[0]["domain"] == "UNIX")
