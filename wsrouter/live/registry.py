"""The registry of live sessions and tunnels.

A session or tunnel enters when its backend has answered and leaves when its end is known. Whoever wants to
know (the access log, drains, metrics) observes the registry; nothing that carries bytes knows its observers.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, runtime_checkable

from twisted.logger import Logger

_log = Logger()


class Kind(enum.Enum):
    """What lives: a layer-7 session or a layer-4 tunnel."""

    SESSION = "session"
    TUNNEL = "tunnel"


class Who(enum.Enum):
    """Who brought a session or tunnel to its end."""

    CLIENT = "client"
    BACKEND = "backend"
    ROUTER = "router"


# CPython 3.11 takes as long as for two calls to find a member of an enumeration by its name: what every session asks
# for is had at once.
SESSION: Final = Kind.SESSION
CLIENT: Final = Who.CLIENT
BACKEND: Final = Who.BACKEND


class Facts(NamedTuple):
    """What is known of a session or tunnel when it opens. Names are those of the configuration."""

    kind: Kind
    #: The client's address, without and with its port.
    client_ip: str
    client: str
    listener: str
    #: The name of the route or tunnel rule.
    rule: str
    pool: str
    #: The backend's label.
    backend: str
    #: Seconds on the reactor's clock.
    opened: float
    #: Layer 7: the authority and the path (without its query unless the operator wants it) that the client asked for.
    host: str = ""
    path: str = ""
    subprotocol: str = ""
    #: The server name of the ClientHello; empty without TLS.
    sni: str = ""
    #: Backends that were tried before, with the reasons.
    tried: str = ""


class Served(NamedTuple):
    """What one backend has had of a session that chooses a backend for each message."""

    backend: str
    #: Messages to it, and from it.
    messages_in: int
    messages_out: int
    #: How it was lost, or why it could not be reached, the last time; empty if nothing went wrong.
    lost: str = ""


class Counts(NamedTuple):
    """What has passed so far.

    ``in`` is from the client. What concerns frames is None for tunnels. Bytes are those of the wire, inside TLS, and
    those of messages are compressed where that was agreed upon.
    """

    bytes_in: int
    bytes_out: int
    messages_in: int | None = None
    messages_out: int | None = None
    frames_in: int | None = None
    frames_out: int | None = None
    #: Bytes of the largest message so far; 0 before the first.
    largest_in: int | None = None
    largest_out: int | None = None
    #: Round-trip times of the router's last answered pings, in seconds; None without any.
    rtt: float | None = None
    backend_rtt: float | None = None
    #: Each backend's part, where there are several.
    served: tuple[Served, ...] = ()


class End(NamedTuple):
    """How it ended: who began it, the close code (RFC 6455 7.4; None for tunnels) and the reason in words."""

    who: Who
    code: int | None
    reason: str


class Entry(Protocol):
    """A live session or tunnel."""

    #: The number of the connection; see ``Registry.number``.
    number: int

    @property
    def facts(self) -> Facts:
        """What is known of it since it has opened."""

    def counts(self) -> Counts:
        """What has passed so far."""

    def ending(self) -> End | None:
        """How it ends, once that is known; it lives until both connections are gone."""

    def end(self, code: int, reason: str) -> None:
        """Begin a polite end on behalf of the router: a Close frame at the next frame boundary, for a session."""

    def abort(self) -> None:
        """End at once."""


@runtime_checkable
class Branched(Protocol):
    """An entry that is at several backends, and can lose one and live on."""

    def branches(self) -> Collection[str]:
        """The labels of the backends that it is at."""

    def leave(self, backend: str) -> None:
        """Be done with the backend of this label, with 1012; the entry ends where it has no other."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A connection or request that was turned away: where (``stage``), by what rule, and why."""

    number: int
    client: str
    listener: str
    stage: str
    rule: str
    reason: str
    #: The HTTP status, where HTTP was spoken.
    status: int | None = None
    host: str = ""
    path: str = ""
    #: The like was told of this address a moment ago: for counting, not for a line of its own.
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A plain HTTP request that was answered by the router's files or redirects, or by a backend."""

    number: int
    client: str
    listener: str
    #: The route's name.
    rule: str
    method: str
    host: str
    path: str
    status: int
    #: Bytes behind the answer's head, its framing included.
    bytes_out: int
    seconds: float


class Observer(Protocol):
    """Hears what happens."""

    def opened(self, entry: Entry) -> None:
        """A session or tunnel lives."""

    def closed(self, entry: Entry, end: End) -> None:
        """It has ended; its counts are final."""

    def refused(self, refusal: Refusal) -> None:
        """Somebody was turned away."""

    def answered(self, answer: Answer) -> None:
        """A plain request was answered."""


@dataclass(slots=True)
class Registry:
    """All live entries, by number."""

    entries: dict[int, Entry] = field(default_factory=dict)
    observers: list[Observer] = field(default_factory=list)
    _last: int = 0

    def number(self) -> int:
        """A number for a new client connection; logs name it by this."""
        self._last += 1
        return self._last

    def open(self, entry: Entry) -> None:
        """``entry`` lives from now on."""
        self.entries[entry.number] = entry
        if self.observers:
            self._tell(lambda observer: observer.opened(entry))

    def close(self, entry: Entry, end: End) -> None:
        """``entry`` has ended. Called once for each that was opened."""
        del self.entries[entry.number]
        if self.observers:
            self._tell(lambda observer: observer.closed(entry, end))

    def answer(self, answer: Answer) -> None:
        """A plain request was answered."""
        self._tell(lambda observer: observer.answered(answer))

    def refuse(self, refusal: Refusal) -> None:
        """Somebody was turned away."""
        self._tell(lambda observer: observer.refused(refusal))

    def _tell(self, call: Callable[[Observer], None]) -> None:
        # What an observer does wrong must harm neither a session nor the next one. A copy: one may leave meanwhile.
        for observer in tuple(self.observers):
            try:
                call(observer)
            except Exception:
                _log.failure("An observer of the registry failed")
