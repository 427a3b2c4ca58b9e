"""One plain HTTP request as ``twisted.web`` and the router's own handlers see it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from io import BytesIO
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import unquote_to_bytes

from twisted.web import http, server
from twisted.web.error import UnsupportedMethod
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource, getChildForRequest

from wsrouter.layer7.intake import RequestBody
from wsrouter.wire.head import RequestHead
from wsrouter.wire.target import Target

if TYPE_CHECKING:
    from wsrouter.layer7.exchange import Exchange

#: Answers one request: it ends with ``request.finish()``, at once or later, or with an error. An Awaitable (a
#: coroutine, a Deferred) is cancelled when the client vanishes or its body fails. HttpError and BackendError
#: become the answers that they name; any other exception is logged and becomes 500.
Handler: TypeAlias = Callable[["PlainRequest"], Awaitable[None] | None]


class PlainRequest(server.Request):
    """A request whose head is complete; its body streams through ``body``.

    ``content`` is always empty: a resource that needs a body reads ``body``. Default fields of ``twisted.web``
    (Server, Content-Type) are not set.
    """

    defaultContentType = None
    #: None once the answer is complete or the client has gone.
    channel: Exchange | None = None  # type: ignore[assignment]

    def __init__(self, channel: Exchange, head: RequestHead, target: Target, body: RequestBody) -> None:
        super().__init__(channel, parsePOSTFormSubmission=False)  # type: ignore[no-untyped-call]
        self.head = head
        self.target = target
        self.body = body
        self.method = head.method.encode("ascii")
        self.path = target.path.encode("ascii")
        self.uri = target.forward(target.path)
        self.args = http.parse_qs(target.query, True) if target.query else {}  # type: ignore[no-untyped-call]
        self.clientproto = b"HTTP/1.1" if head.minor else b"HTTP/1.0"
        self.content = BytesIO()
        for lower, _, value in head.fields:
            self.requestHeaders.addRawHeader(lower, value)
        self.parseCookies()  # type: ignore[no-untyped-call]

    def render_resource(self, resource: IResource) -> None:
        """Let a tree of ``twisted.web`` resources answer; what no method of theirs serves gets 405."""
        self.prepath = []
        self.postpath = [unquote_to_bytes(segment) for segment in self.path[1:].split(b"/")]
        found = getChildForRequest(resource, self)  # type: ignore[no-untyped-call]
        try:
            body = found.render(self)
        except UnsupportedMethod as error:
            self.answer(http.NOT_ALLOWED, [(b"Allow", b", ".join(error.allowedMethods))])
            return
        if body is not server.NOT_DONE_YET:
            self.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
            self.write(body)  # type: ignore[no-untyped-call]
            self.finish()  # type: ignore[no-untyped-call]

    def answer(self, status: int, headers: Iterable[tuple[bytes, bytes]] = (), text: str | None = None) -> None:
        """The whole answer in one call; the text is the status line's when None."""
        self.setResponseCode(status)
        if text is None:
            text = f"{status} {self.code_message.decode('ascii')}\n"
        body = text.encode()
        if status not in http.NO_BODY_CODES:
            self.responseHeaders.setRawHeaders(b"Content-Type", [b"text/plain; charset=utf-8"])
            self.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
        for name, value in headers:
            self.responseHeaders.addRawHeader(name, value)
        self.write(body)  # type: ignore[no-untyped-call]
        self.finish()  # type: ignore[no-untyped-call]

    def forget_answer(self) -> None:
        """Take back what a handler prepared, before anything of it was sent."""
        if self.producer is not None:
            self.unregisterProducer()
        self.responseHeaders = Headers()
        self.cookies = []
        self.etag = self.lastModified = None

    def unregisterProducer(self) -> None:
        """Unlike the base class, harmless when the client has gone."""
        if self.channel is not None:
            super().unregisterProducer()  # type: ignore[no-untyped-call]
        self.producer = None

    def abort(self, why: str) -> None:
        """End the client's connection in the middle of the answer, so that it cannot take it for whole."""
        if self.channel is not None:
            self.channel.refusal = why
            self.channel.abortConnection()
