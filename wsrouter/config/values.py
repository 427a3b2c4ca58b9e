"""The configuration as frozen values.

Units: durations are seconds (float), sizes are bytes (int), paths are absolute. ``None`` stands for "off"
or "absent". Host names are lower case without a final dot; a wildcard is ``*.example.com`` and stands
for one or more labels to the left of ``example.com``.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from pathlib import Path


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
class Router:
    """``[router]``."""

    drain: float = 30.0
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
class Pool:
    """``[pool NAME]``."""

    name: str
    backends: tuple[Backend, ...]
    connect_timeout: float = 2.0
    handshake_timeout: float = 10.0
    retries: int = 2
    tls: BackendTls | None = None
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
