"""Pools, and all that belongs to one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wsrouter.config.values.words import Balance, CheckKind, KeySource, OnDown, SameSite, SendProxy


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
    """What ``balance = hash`` looks at.

    ``name`` is that of a header (lower case), cookie or query parameter; for JSON a pointer (RFC 6901).
    """

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
