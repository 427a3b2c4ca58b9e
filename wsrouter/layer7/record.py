"""What is known of the request that a front serves, and telling the observers how it went."""

from __future__ import annotations

from wsrouter.layer7.site import Site, client_label
from wsrouter.live.connection import Connection
from wsrouter.live.registry import Answer
from wsrouter.policy.forwarded import Effective
from wsrouter.wire.head import RequestHead
from wsrouter.wire.target import Target


class Record:
    """The facts of one request at a time, each set by the front as soon as it is known."""

    __slots__ = ("_connection", "_site", "began", "behind", "head", "route", "target")

    def __init__(self, site: Site, connection: Connection) -> None:
        self._site = site
        self._connection = connection
        #: When its answer began to be made, on the reactor's clock.
        self.began = 0.0
        self.forget()

    def forget(self) -> None:
        """What comes next is another request."""
        self.head: RequestHead | None = None
        self.target: Target | None = None
        self.behind: Effective | None = None
        #: The route's name.
        self.route = ""

    def refused(self, status: int | None, reason: str) -> None:
        """It did not get what it asked for."""
        head, target, site = self.head, self.target, self._site
        site.refuse(
            self._connection,
            "http",
            self.route,
            status,
            reason,
            client=client_label(self._connection, self.behind),
            host=head.host if head is not None else "",
            path=site.path_for_log(target) if target is not None else "",
        )

    def answered(self, status: int, sent: int) -> None:
        """It was answered with ``sent`` bytes behind the answer's head."""
        head, target, connection, site = self.head, self.target, self._connection, self._site
        assert head is not None
        assert target is not None
        site.registry.answer(
            Answer(
                connection.number,
                client_label(connection, self.behind),
                connection.listener,
                self.route,
                head.method,
                head.host,
                site.path_for_log(target),
                status,
                sent,
                site.relay.seconds() - self.began,
            )
        )
