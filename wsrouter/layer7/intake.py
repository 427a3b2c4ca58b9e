"""The body of one plain request, on its way from the client to whoever reads it.

The body is never held whole: until somebody reads, and whenever the reader is paused, a little is kept and then
the client is paused. So a slow reader costs ``BUFFER`` bytes and one read, whatever the client sends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from wsrouter.errors import HttpError
from wsrouter.wire.body import Body, ChunkedBody, LengthBody
from wsrouter.wire.head import RequestHead

#: How much of a body may wait for its reader, in bytes, before the client is paused.
BUFFER = 64 * 1024


class BodySink(Protocol):
    """Who reads a body."""

    def body_data(self, data: bytes) -> None:
        """The next bytes of the content, never empty."""
        ...

    def body_end(self) -> None:
        """The body is complete."""
        ...

    def body_failed(self, error: Exception) -> None:
        """The body will never be complete: malformed, too large, too slow, or the client has gone."""
        ...


class RequestBody:
    """One request's body.

    ``changed`` is called when the body's wish for bytes (``wanting``) may have changed.
    """

    def __init__(self, head: RequestHead, limit: int, changed: Callable[[], None]) -> None:
        self._reader: Body = ChunkedBody() if head.chunked else LengthBody(head.content_length or 0)
        #: Its length in bytes; None when it comes in chunks.
        self.length = None if head.chunked else head.content_length or 0
        self._limit = limit
        self._changed = changed
        self._sink: BodySink | None = None
        self._waiting: list[bytes] = []
        self._held = 0
        self._paused = False
        self._discarding = False
        self._told = False
        #: Bytes of content that came so far.
        self.received = 0
        #: Somebody has begun to read.
        self.started = False

    @property
    def complete(self) -> bool:
        """The client has sent it all."""
        return self._reader.done

    @property
    def failed(self) -> bool:
        """It will never be complete; nothing more of it may be fed."""
        return self._told and not self._reader.done

    @property
    def missing(self) -> int | None:
        """Bytes that the client has yet to send; None when it comes in chunks."""
        return None if self.length is None else self.length - self.received

    @property
    def wanting(self) -> bool:
        """Whether more bytes should be read from the client for it."""
        return not self._reader.done and not self._told and (self._discarding or self._held < BUFFER)

    def feed(self, data: bytes) -> bytes:
        """Take what came from the client; return what lies behind the body's end.

        Raises HttpError: 400 for a malformed body, 413 for one over the limit.
        """
        content, rest = self._reader.feed(data)
        if content:
            self.received += len(content)
            if self.received > self._limit:
                raise HttpError(413, "the request body is too large")
            if not self._discarding:
                self._waiting.append(content)
                self._held += len(content)
        self._deliver()
        return rest

    def start(self, sink: BodySink) -> None:
        """Hand the content to ``sink``, from its first byte on, perhaps at once. Once for each body."""
        assert not self.started
        self.started = True
        self._sink = sink
        self._deliver()
        self._changed()

    def pause(self) -> None:
        """The reader can take no more for now."""
        self._paused = True

    def resume(self) -> None:
        """The reader can take more."""
        self._paused = False
        self._deliver()
        self._changed()

    def discard(self) -> None:
        """Nobody reads it, or not any more: drop what is kept and what still comes."""
        self._sink = None
        self._discarding = True
        self._waiting.clear()
        self._held = 0
        self._changed()

    def fail(self, error: Exception) -> None:
        """It will never be complete; the reader is told, once."""
        sink, told = self._sink, self._told
        self._told = True
        self.discard()
        if sink is not None and not told:
            sink.body_failed(error)

    def _deliver(self) -> None:
        while self._sink is not None and self._waiting and not self._paused:
            data = self._waiting.pop(0)
            self._held -= len(data)
            self._sink.body_data(data)
        if self._sink is not None and self._reader.done and not self._waiting and not self._told:
            self._told = True
            self._sink.body_end()
