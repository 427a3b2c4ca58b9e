"""The other sections, and a whole configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import TypeAlias

from wsrouter.config.values.pools import Echo, Pool
from wsrouter.config.values.words import (
    Accept,
    ClientAuth,
    Compression,
    Dispatch,
    IdleCounts,
    Log,
    Match,
    OnRate,
    PathKind,
    Plain,
    Session,
)

#: Of addresses that are believed, let in or turned away; a single address is a network of one.
Network: TypeAlias = IPv4Network | IPv6Network

#: The placeholders that ``set_header`` and ``redirect`` may use, in braces.
TEMPLATE_FIELDS = (
    "client_ip",
    "client_port",
    "client_cert_subject",
    "sni",
    "request_id",
    "host",
    "scheme",
    "path",
    "uri",  # the path with its query
    "listener",
    "route",
)


@dataclass(frozen=True, slots=True)
class Rate:
    """``50/s burst=100``: a token bucket that holds ``burst`` and gains ``per_second``."""

    per_second: float
    burst: int


@dataclass(frozen=True, slots=True)
class Router:
    """``[router]``."""

    drain: float = 30.0
    drain_delay: float = 0.0
    drain_spread: float = 5.0
    #: None: no such path.
    drain_path: str | None = None
    #: The close code of a drain: 1001 (going away) or 1012 (service restart).
    drain_code: int = 1001
    log: Log = Log.TEXT
    #: A file, ``"-"`` for the log stream, or None for off.
    access_log: Path | str | None = "-"
    log_query: bool = False
    #: How many processes; None: as many as there are processors.
    workers: int | None = 1


@dataclass(frozen=True, slots=True)
class Listener:
    """``[listener NAME]``."""

    name: str
    endpoint: str
    plain: Plain = Plain.YES
    sniff_timeout: float = 5.0
    tls_timeout: float = 10.0
    head_timeout: float = 10.0
    keep_alive: float = 75.0
    body_timeout: float = 60.0
    max_body: int = 10 * 1024 * 1024
    tcp_keepalive: float | None = 60.0
    #: PEM files (chain and key), the globs expanded, sorted.
    certificates: tuple[Path, ...] = ()
    default_certificate: Path | None = None
    #: "1.2" or "1.3"
    tls_min: str = "1.2"
    #: Names for which throwaway certificates are made at start.
    demo_certificates: tuple[str, ...] = ()
    max_connections: int | None = None
    #: A PROXY header (v1 or v2) must open each connection; only from ``trusted``.
    proxy_protocol: bool = False
    #: Whose PROXY headers and X-Forwarded fields are believed.
    trusted: tuple[Network, ...] = ()
    #: Only these clients, when there are any; never those of ``deny``.
    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    max_connections_per_ip: int | None = None
    connections_per_ip: Rate | None = None
    handshakes_per_ip: Rate | None = None
    line: int = 0


@dataclass(frozen=True, slots=True)
class Certificate:
    """``[certificate NAME]``: what one certificate needs beyond a listener's ``certificates``."""

    name: str
    file: Path
    client_ca: Path | None = None
    client_auth: ClientAuth | None = None
    line: int = 0


@dataclass(frozen=True, slots=True)
class Tunnel:
    """``[tunnel NAME]``: a layer-4 rule."""

    name: str
    pool: str
    match: Match
    #: For ``Match.TLS``: any of these names, and any of these protocols; empty tuples match all.
    sni: tuple[str, ...] = ()
    alpn: tuple[str, ...] = ()
    #: Listener names; empty for all.
    listeners: tuple[str, ...] = ()
    idle_timeout: float | None = 3600.0
    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    line: int = 0


@dataclass(frozen=True, slots=True)
class PathRule:
    """The path of a route.

    ``regex`` is set for ``PathKind.REGEX``, ``text`` holds what was written after ``=`` or ``~``.
    """

    kind: PathKind
    text: str
    regex: re.Pattern[str] | None = None


@dataclass(frozen=True, slots=True)
class Redirect:
    """``redirect = [301|302|307|308] URL``; the URL may hold placeholders."""

    status: int
    location: str


@dataclass(frozen=True, slots=True)
class FilterRule:
    """One line of ``filter``: the filter's name, and the words behind it."""

    name: str
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """``[route NAME]``: a layer-7 rule. Exactly one of ``pool``, ``static`` and ``redirect`` is set."""

    name: str
    path: PathRule
    pool: str | None = None
    static: Path | None = None
    redirect: Redirect | None = None
    host: str | None = None
    subprotocol: str | None = None
    listeners: tuple[str, ...] = ()
    #: WEBSOCKET by default for pool routes; files and redirects are always HTTP.
    accept: Accept = Accept.WEBSOCKET
    #: None: off. Else the allowed origins, lower case; ``"same"`` stands for the request's own scheme and authority.
    origins: tuple[str, ...] | None = None
    #: (name, template) pairs in file order; a template with an empty text takes the header away.
    set_header: tuple[tuple[str, str], ...] = ()
    strip_prefix: bool = False
    idle_timeout: float | None = 3600.0
    idle_counts: IdleCounts = IdleCounts.FRAMES
    close_timeout: float = 5.0
    #: The largest message: on the wire for relay sessions, what it holds for message sessions, where it is never None.
    max_message: int | None = None
    # What is known of frames by their headers.
    #: Holds with ``max_message`` only.
    max_fragments: int = 16384
    #: Of clients: messages, pings and pongs; and bytes.
    message_rate: Rate | None = None
    byte_rate: Rate | None = None
    on_rate: OnRate = OnRate.SLOW
    #: How long client or backend may be silent before the router pings it, and how long it may take to answer.
    ping: float | None = None
    backend_ping: float | None = None
    ping_timeout: float = 20.0
    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    #: RELAY or MESSAGE: what AUTO comes to is known when the file has been read.
    session: Session = Session.RELAY
    #: In the order in which they see a message.
    filters: tuple[FilterRule, ...] = ()
    compression: Compression = Compression.OFF
    dispatch: Dispatch = Dispatch.SESSION
    #: How many backends a session may be at, with ``Dispatch.MESSAGE``.
    fan_out: int = 4
    line: int = 0
    #: Whether the frames of its relay sessions are held to anything beyond the protocol, or pinged for.
    polices: bool = field(init=False, compare=False, default=False)

    def __post_init__(self) -> None:
        given = (self.max_message, self.message_rate, self.byte_rate, self.ping, self.backend_ping)
        object.__setattr__(self, "polices", given != (None,) * len(given))


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration; references between sections hold."""

    file: Path
    router: Router = field(default_factory=Router)
    listeners: tuple[Listener, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    tunnels: tuple[Tunnel, ...] = ()
    routes: tuple[Route, ...] = ()
    pools: tuple[Pool, ...] = ()
    echoes: tuple[Echo, ...] = ()
