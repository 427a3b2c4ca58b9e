"""A configuration file -> ``Config``, or every fault in it at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from wsrouter.config.checks import Document, check
from wsrouter.config.faults import BadValue, Faults, nearest
from wsrouter.config.memory import read_text
from wsrouter.config.options import Kind, Section, read_section
from wsrouter.config.scalars import name as section_name
from wsrouter.config.scan import RawSection, scan
from wsrouter.config.schema import KINDS
from wsrouter.config.session_rules import settle
from wsrouter.config.values import (
    Accept,
    BackendTls,
    Certificate,
    Check,
    Config,
    Echo,
    Listener,
    Pool,
    Route,
    Router,
    Tunnel,
)

T = TypeVar("T")

_KINDS = {kind.kind: kind for kind in KINDS}


def read(path: Path) -> Config:
    """Read, parse and check the file at ``path``, and whether the files that it names are there.

    Faults name the file as ``path`` does. Raises ``ConfigError``, for a file that cannot be read or is not
    UTF-8 too.
    """
    faults = Faults(path)
    text = ""
    try:
        text = read_text(path).decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        faults.add(line, f"not UTF-8 (byte 0x{error.object[error.start]:02x})")
    except OSError as error:
        faults.add(0, f"cannot be read: {error.strerror or error}")
    except ValueError as error:
        faults.add(0, f"cannot be read: {error}")
    faults.check()
    return parse(text, path)


def parse(text: str, file: Path) -> Config:
    """Parse ``text`` as the content of ``file``, whose folder is where relative paths begin.

    Raises ``ConfigError`` with every fault, in the order of the file. ``file`` itself is not opened.
    """
    faults = Faults(file)
    place = file.absolute()
    document = Document()
    lines: dict[tuple[str, str], int] = {}
    for raw in scan(text, faults):
        kind = _KINDS.get(raw.kind)
        if kind is None:
            _refuse_kind(raw, document, faults)
            continue
        _check_name(raw, kind, faults)
        section = read_section(raw, kind, tuple(other for other in KINDS if other is not kind), place.parent, faults)
        # A second section of the same name is read for its faults, and then left out.
        first = lines.setdefault((raw.kind, raw.name), raw.line)
        if first == raw.line:
            document.sections.setdefault(raw.kind, []).append(section)
        else:
            faults.add(raw.line, f"{raw.title}: given twice (first at line {first})")
    check(document, faults)
    faults.check()
    return _config(place, document)


def _refuse_kind(raw: RawSection, document: Document, faults: Faults) -> None:
    near = nearest(raw.kind, _KINDS)
    hint = f"known: {', '.join(_KINDS)}"
    if near:
        document.misspelt.setdefault(near, []).append(raw.name)
        hint = f"did you mean {_KINDS[near].title.replace('NAME', raw.name or 'NAME')}?"
    faults.add(raw.line, f"{raw.title}: unknown section ({hint})")


def _check_name(raw: RawSection, kind: Kind, faults: Faults) -> None:
    """A bad name is a fault, but no reason to leave the section's options unread."""
    if kind.named and not raw.name:
        faults.add(raw.line, f"{raw.title}: the section's name is missing (expected {kind.title})")
    elif raw.name and not kind.named:
        faults.add(raw.line, f"{raw.title}: this section takes no name (expected {kind.title})")
    elif raw.name:
        try:
            section_name(raw.name)
        except BadValue as error:
            faults.add(raw.line, f"{raw.title}: {error}")


def _config(file: Path, document: Document) -> Config:
    """The values of a file without faults."""

    def every(kind: str, make: Callable[[Section], T]) -> tuple[T, ...]:
        return tuple(map(make, document.of(kind)))

    routers = every("router", lambda section: Router(**section.values))
    return Config(
        file=file,
        router=routers[0] if routers else Router(),
        listeners=every("listener", lambda section: Listener(**_common(section))),
        certificates=every("certificate", lambda section: Certificate(**_common(section))),
        tunnels=every("tunnel", _tunnel),
        routes=every("route", _route),
        pools=every("pool", _pool),
        echoes=every("echo", lambda section: Echo(**_common(section))),
    )


def _common(section: Section) -> dict[str, Any]:
    """The values as arguments of a section's class; ``listener`` is a list there and named so."""
    values = {("listeners" if name == "listener" else name): value for name, value in section.values.items()}
    return {"name": section.name, "line": section.raw.line, **values}


def _tunnel(section: Section) -> Tunnel:
    values = _common(section)
    rule = values.pop("match")
    return Tunnel(match=rule.match, sni=rule.sni, alpn=rule.alpn, **values)


def _route(section: Section) -> Route:
    values = _common(section)
    if "pool" not in values:
        values["accept"] = Accept.HTTP
    return Route(**settle(values))


def _pool(section: Section) -> Pool:
    values = _common(section)
    wanted = values.pop("tls")
    tls_options = _taken(values, "tls_")
    tls = BackendTls(**tls_options) if wanted else None
    check = _check(values.pop("check"), _taken(values, "check_"), tls)
    sticky, secret = values.pop("sticky"), values.pop("sticky_secret", None)
    if sticky is not None:
        sticky = replace(sticky, secret=secret)
    rule = values.pop("balance")
    return Pool(balance=rule.balance, key=rule.key, sticky=sticky, check=check, tls=tls, **values)


def _check(check: Check | None, options: dict[str, Any], pool_tls: BackendTls | None) -> Check | None:
    """``check`` with what its ``check_`` options say; the pool's own TLS is where ``check_tls = pool`` begins."""
    if check is None:
        return None
    own = _taken(options, "tls_")
    tls = {"pool": pool_tls, "yes": BackendTls(), "no": None}[options.pop("tls")]
    if tls is not None:
        tls = replace(tls, **own)
    return replace(check, statuses=options.pop("status"), tls=tls, **options)


def _taken(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The values whose names begin with ``prefix``, by the rest of their names; taken out of ``values``."""
    return {name.removeprefix(prefix): values.pop(name) for name in list(values) if name.startswith(prefix)}
