"""The configuration as frozen values.

Units: durations are seconds (float), sizes are bytes (int), paths are absolute. ``None`` stands for "off"
or "absent". Host names are lower case without a final dot; a wildcard is ``*.example.com`` and stands
for one or more labels to the left of ``example.com``.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import TypeAlias

#: Of addresses that are believed, let in or turned away; a single address is a network of one.
Network: TypeAlias = IPv4Network | IPv6Network


class Plain(enum.Enum):
    """What a listener does with HTTP that comes without TLS."""

    YES = "yes"
    NO = "no"
    REDIRECT = "redirect"


class ClientAuth(enum.Enum):
    """Whether a client must, or may, show a certificate (only where ``client_ca`` is set)."""

    REQUIRED = "required"
    OPTIONAL = "optional"


class Match(enum.Enum):
    """What a tunnel rule looks for."""

    TLS = "tls"
    HTTP = "http"
    OPAQUE = "opaque"
    SILENCE = "silence"
    ANY = "any"


class PathKind(enum.Enum):
    """How a route's path is compared."""

    EXACT = "exact"
    REGEX = "regex"
    PREFIX = "prefix"


class Accept(enum.Enum):
    """Which requests a pool route takes."""

    WEBSOCKET = "websocket"
    HTTP = "http"
    BOTH = "both"


class Log(enum.Enum):
    """The form of log lines."""

    TEXT = "text"
    JSON = "json"


class Balance(enum.Enum):
    """How a pool chooses a backend."""

    ROUND_ROBIN = "round-robin"
    LEAST_SESSIONS = "least-sessions"
    RANDOM_TWO = "random-two"
    FIRST = "first"
    HASH = "hash"


class KeySource(enum.Enum):
    """What ``balance = hash`` looks at."""

    CLIENT_IP = "client-ip"
    PATH = "path"
    HEADER = "header"
    COOKIE = "cookie"
    QUERY = "query"
    SNI = "sni"


class CheckKind(enum.Enum):
    """How a backend is probed."""

    TCP = "tcp"
    HTTP = "http"
    WEBSOCKET = "websocket"


class OnDown(enum.Enum):
    """What becomes of the live sessions of a backend that goes down or is removed."""

    KEEP = "keep"
    CLOSE = "close"


class SameSite(enum.Enum):
    """The SameSite attribute of a cookie (RFC 6265bis 5.5)."""

    STRICT = "Strict"
    LAX = "Lax"
    NONE = "None"


class SendProxy(enum.Enum):
    """The PROXY header that opens each connection to a backend."""

    V1 = "v1"
    V2 = "v2"


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
    close_timeout: float = 5.0
    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    line: int = 0


@dataclass(frozen=True, slots=True)
class Backend:
    """One server of a pool: ``host:port`` or ``unix:/path``, with its words."""

    #: A host name or an IP literal; empty for a unix socket.
    host: str
    port: int
    #: The socket's path, for a unix socket.
    unix: str | None = None
    weight: int = 1
    max_sessions: int | None = None
    backup: bool = False

    def __hash__(self) -> int:
        # Looked up several times for each session; what differs beyond the address is left to equality.
        return hash((self.host, self.port, self.unix))

    @property
    def label(self) -> str:
        """How logs name this backend, as it was written: ``127.0.0.1:2222``, ``[::1]:80``, ``unix:/run/app.sock``."""
        if self.unix is not None:
            return f"unix:{self.unix}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class BackendTls:
    """How a pool re-encrypts: ``tls = yes`` and its ``tls_`` options."""

    #: None: the system's CAs.
    ca: Path | None = None
    #: The name that is sent (SNI) and verified; None: each backend's own host.
    name: str | None = None
    #: The certificate (chain and key) that the router shows.
    certificate: Path | None = None
    verify: bool = True


@dataclass(frozen=True, slots=True)
class BalanceKey:
    """What ``balance = hash`` looks at; ``name`` is that of a header (lower case), cookie or query parameter."""

    source: KeySource
    name: str = ""


@dataclass(frozen=True, slots=True)
class Sticky:
    """``sticky = cookie NAME ...``."""

    cookie: str
    #: Signs the cookie; None: it is opaque, but a client could make up the one of another backend.
    secret: bytes | None = None
    same_site: SameSite = SameSite.LAX
    #: None: Secure on connections with TLS.
    secure: bool | None = None
    #: Seconds; None: until the browser ends.
    max_age: int | None = None
    path: str = "/"


@dataclass(frozen=True, slots=True)
class Check:
    """``check = ...`` and its ``check_`` options."""

    kind: CheckKind
    #: The request target (path and query), for HTTP and WEBSOCKET.
    path: str = "/"
    #: The Host that is sent; None: the backend's own.
    host: str | None = None
    subprotocol: str | None = None
    #: Pairs of first and last status that pass, for HTTP.
    statuses: tuple[tuple[int, int], ...] = ((200, 399),)
    interval: float = 5.0
    timeout: float = 2.0
    rise: int = 2
    fall: int = 3
    #: None: each backend's own port.
    port: int | None = None
    #: What the probe's own connection speaks; the pool's unless ``check_tls`` says otherwise.
    tls: BackendTls | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """``[pool NAME]``."""

    name: str
    backends: tuple[Backend, ...]
    connect_timeout: float = 2.0
    handshake_timeout: float = 10.0
    retries: int = 2
    #: The time within which a further backend may be tried, in seconds, from the first attempt on.
    retry_time: float = 10.0
    tls: BackendTls | None = None
    balance: Balance = Balance.ROUND_ROBIN
    #: For ``Balance.HASH``.
    key: BalanceKey | None = None
    sticky: Sticky | None = None
    #: Passive: so many failures within ``failure_time`` take a backend out; 0: never.
    max_failures: int = 3
    failure_time: float = 10.0
    check: Check | None = None
    on_down: OnDown = OnDown.KEEP
    #: Over how long the Close frames of ``OnDown.CLOSE`` are spread, in seconds.
    down_spread: float = 5.0
    slow_start: float | None = None
    #: How many clients may wait while every backend is full, and for how long.
    queue: int = 0
    queue_timeout: float = 5.0
    send_proxy: SendProxy | None = None
    line: int = 0


@dataclass(frozen=True, slots=True)
class Echo:
    """``[echo NAME]``: demonstration backends on 127.0.0.1, one for each port."""

    name: str
    ports: tuple[int, ...]
    #: The name for which these backends speak TLS with a throwaway certificate; None: plain.
    demo_certificate: str | None = None
    line: int = 0


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
