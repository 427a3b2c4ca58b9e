"""What all connections of layer 7 share: the routes, the pools, and for each route what answers plain requests."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from wsrouter.backends.pool import BackendPool
from wsrouter.config import values
from wsrouter.layer7.certificates import CertificateStore
from wsrouter.layer7.message_rules import MessageRules
from wsrouter.layer7.request import Handler
from wsrouter.live.connection import Connection
from wsrouter.live.idle import IdleSweeper
from wsrouter.live.registry import Refusal, Registry
from wsrouter.policy.admission import Admission
from wsrouter.policy.forwarded import Effective, Scheme
from wsrouter.policy.members import Member
from wsrouter.policy.networks import UNIX
from wsrouter.policy.routing import RouteTable, strip
from wsrouter.relay.loop import Relay
from wsrouter.wire.forwarding import ClientFacts, Pair, Template, compile_template, upgrade_head
from wsrouter.wire.head import RequestHead, new
from wsrouter.wire.opening import Upgrade
from wsrouter.wire.target import Target


class Request(NamedTuple):
    """One request with all that was made of it: what routes, templates and backends need."""

    connection: Connection
    head: RequestHead
    target: Target
    route: values.Route
    #: The client behind the connection's own, where that is a trusted proxy; None where it speaks for itself.
    behind: Effective | None = None

    @property
    def client_ip(self) -> str:
        """The address of the client, as far as it is believed; ``unix`` where it has none."""
        return self.connection.ip if self.behind is None else self.behind.ip

    @property
    def client_label(self) -> str:
        """The client for logs: address and port; behind a proxy nobody knows the port."""
        return client_label(self.connection, self.behind)

    @property
    def scheme(self) -> Scheme:
        """What the client itself has used: ``http`` or ``https``."""
        return scheme_of(self.connection, self.behind)

    @property
    def authority(self) -> str:
        """The Host that the client itself has asked for; routes go by ``head.host``."""
        return self.head.host if self.behind is None or self.behind.host is None else self.behind.host

    def client(self) -> ClientFacts:
        """What backends are told of the client."""
        connection, head, _, _, behind = self
        ip = "" if connection.ip == UNIX else connection.ip
        own: Scheme = "https" if connection.secure else "http"
        return new(ClientFacts, (ip, connection.port, own, head.host, behind))

    def opening(self, asked: Upgrade, fields: Sequence[Pair]) -> bytes:
        """The whole head of its opening handshake for a backend; ``fields`` are those of ``HeaderRules``."""
        _, head, target, route, _ = self
        path = strip(route, target.path) if route.strip_prefix else target.path
        return upgrade_head(head, asked, target.forward(path), self.client(), fields)

    def fields(self) -> dict[str, str]:
        """What the placeholders of templates stand for (``values.TEMPLATE_FIELDS``)."""
        connection = self.connection
        return {
            "client_ip": self.client_ip,
            "client_port": str(connection.port) if self.client_ip == connection.ip else "",
            "client_cert_subject": connection.client_subject,
            "sni": connection.sni or "",
            "request_id": os.urandom(16).hex(),
            "host": self.authority,
            "scheme": self.scheme,
            "path": self.target.path,
            "uri": self.target.forward(self.target.path).decode("latin-1"),
            "listener": connection.listener,
            "route": self.route.name,
        }


def scheme_of(connection: Connection, behind: Effective | None) -> Scheme:
    """What a client has used; the word of a trusted proxy goes before what its own connection uses."""
    if behind is not None and behind.proto is not None:
        return behind.proto
    return "https" if connection.secure else "http"


def client_label(connection: Connection, behind: Effective | None) -> str:
    """A client for logs; see ``Request.client_label``."""
    return connection.client if behind is None or behind.ip == connection.ip else behind.ip


@dataclass(frozen=True, slots=True)
class HeaderRules:
    """``set_header`` of one route, compiled."""

    templates: tuple[tuple[bytes, Template], ...]

    @classmethod
    def of(cls, route: values.Route) -> HeaderRules:
        """Compile a route's rules."""
        return cls(tuple((name.encode(), compile_template(text)) for name, text in route.set_header))

    def fill(self, request: Request) -> list[Pair]:
        """The headers for one request."""
        if not self.templates:
            return []
        fields = request.fields()
        return [(name, template.fill(fields)) for name, template in self.templates]


class Drainable(Protocol):
    """A client connection at HTTP."""

    def drain(self) -> None:
        """End it, unless it is busy, or has not asked yet and may (``Site.turning_away``); then it ends itself."""

    def backend_gone(self, member: Member) -> None:
        """A backend is known to be down: who waits for it may ask another."""

    def reloaded(self) -> None:
        """Its listener may have another name now, demand something else, or be gone."""


@dataclass(slots=True)
class Site:
    """Layer 7 of one process."""

    relay: Relay
    registry: Registry
    sweeper: IdleSweeper
    pools: Mapping[str, BackendPool]
    routes: RouteTable
    rules: Mapping[str, HeaderRules]
    #: For each route that answers plain requests: what makes the handler of one.
    handlers: Mapping[str, Callable[[Request], Handler]]
    log_query: bool = False
    #: Where a balancer in front asks whether it may send clients here; None: nowhere.
    drain_path: str | None = None
    #: A drain of the whole router was asked for: ``drain_path`` says so, but all else goes on until it begins.
    leaving: bool = False
    #: A drain has begun, of the whole router or of this process alone: answers close their connections.
    draining: bool = False
    #: Client connections that are at HTTP, live sessions excepted.
    fronts: set[Drainable] = field(default_factory=set)
    #: For each route with message sessions.
    messages: Mapping[str, MessageRules] = field(default_factory=dict)

    @property
    def turning_away(self) -> bool:
        """Whether who was let in before a drain begins nothing any more; while others go on, he has to be served."""
        return self.draining and self.leaving

    def refuse(
        self,
        connection: Connection,
        stage: str,
        rule: str,
        status: int | None,
        reason: str,
        *,
        client: str | None = None,
        host: str = "",
        path: str = "",
        repeated: bool = False,
    ) -> None:
        """Tell the observers of a refusal; ``client`` is who was refused, where that is not the connection's own."""
        self.registry.refuse(
            Refusal(
                connection.number,
                connection.client if client is None else client,
                connection.listener,
                stage,
                rule,
                reason,
                status,
                host,
                path,
                repeated,
            )
        )

    def path_for_log(self, target: Target) -> str:
        """A request's path, with its query only where the operator wants it (queries carry tokens)."""
        return target.forward(target.path).decode("latin-1") if self.log_query else target.path


class Door(Protocol):
    """What layer 7 asks of the listener that a connection came in by. A reload changes all of it but ``site``."""

    name: str
    config: values.Listener
    store: CertificateStore | None
    site: Site
    admission: Admission
    #: Another object whenever it demands something else of clients; see ``Connection.epoch``.
    epoch: object
