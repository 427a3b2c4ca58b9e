from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.resource import Resource

from wsrouter.errors import BackendError, HttpError
from wsrouter.layer7.exchange import DRAIN_LIMIT, REST_LIMIT, Exchange
from wsrouter.layer7.intake import BUFFER
from wsrouter.layer7.request import Handler, PlainRequest
from wsrouter.relay.deadlines import Deadlines
from wsrouter.wire.head import cut_head, parse_request
from wsrouter.wire.target import parse_target

ADDRESS = IPv4Address("TCP", "192.0.2.1", 4711)


def hello(request: PlainRequest) -> None:
    request.answer(200, text="hello")


def wait(request: PlainRequest) -> None:
    """A handler that lets the test answer."""


class Sink:
    """A reader of a body that remembers."""

    def __init__(self) -> None:
        self.data = b""
        self.ended = False
        self.error: Exception | None = None

    def body_data(self, data: bytes) -> None:
        self.data += data

    def body_end(self) -> None:
        self.ended = True

    def body_failed(self, error: Exception) -> None:
        self.error = error


class Talk:
    """One exchange on a transport in memory; the head is cut off ``data`` as the front does it."""

    def __init__(
        self, data: bytes, handler: Handler | Resource = hello, max_body: int = 1_000_000, start: bool = True
    ) -> None:
        self.transport = StringTransport(ADDRESS)
        self.clock = Clock()
        self.done: list[bool] = []
        end = cut_head(data)
        assert end is not None
        head = parse_request(data[:end])
        self.exchange = Exchange(
            self.transport,
            head,
            parse_target(head.target, head.method),
            handler,
            secure=False,
            peer=ADDRESS,
            host=ADDRESS,
            deadlines=Deadlines(self.clock),
            max_body=max_body,
            body_timeout=60.0,
            done=self.done.append,
        )
        self.request = self.exchange.request
        if start:
            self.exchange.start(data[end:])

    @property
    def answer(self) -> bytes:
        return self.transport.value()

    @property
    def status(self) -> int:
        return int(self.answer.split(b" ", 2)[1])

    @property
    def body(self) -> bytes:
        return self.answer.partition(b"\r\n\r\n")[2]

    @property
    def paused(self) -> bool:
        return self.transport.producerState == "paused"

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)

    def lose(self) -> None:
        self.exchange.lost(Failure(ConnectionLost()))


def get(version: bytes = b"1.1", method: bytes = b"GET", fields: bytes = b"") -> bytes:
    return b"%b /p?q=1 HTTP/%b\r\nHost: h\r\n%b\r\n" % (method, version, fields)


def post(body: bytes, fields: bytes = b"", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n%b\r\n%b" % (size, fields, body)


def chunked(body: bytes) -> bytes:
    return b"POST /p HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + body


@pytest.mark.parametrize(
    ("head", "field", "kept"),
    [
        (get(), None, True),
        (get(fields=b"Connection: close\r\n"), b"Connection: close", False),
        (get(b"1.0"), b"Connection: close", False),
        (get(b"1.0", fields=b"Connection: keep-alive\r\n"), b"Connection: keep-alive", True),
    ],
)
def test_the_connection_lasts_as_the_client_asks(head: bytes, field: bytes | None, kept: bool) -> None:
    talk = Talk(head)
    assert talk.answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert talk.body == b"hello"
    assert talk.done == [kept]
    assert (b"Connection" not in talk.answer) if field is None else (field + b"\r\n" in talk.answer)


def test_no_answer_names_its_server_and_every_answer_is_dated() -> None:
    talk = Talk(get())
    assert b"Server:" not in talk.answer
    assert b"\r\nDate: " in talk.answer


def stream(request: PlainRequest) -> None:
    request.write(b"one")
    request.write(b"two")
    request.finish()


def test_an_answer_of_unknown_length_is_chunked_for_1_1_and_ended_by_closing_for_1_0() -> None:
    talk = Talk(get(), stream)
    assert talk.body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    assert talk.done == [True]
    talk = Talk(get(b"1.0", fields=b"Connection: keep-alive\r\n"), stream)
    assert talk.body == b"onetwo"
    assert b"chunked" not in talk.answer
    assert talk.done == [False]


def test_a_head_request_gets_the_head_alone() -> None:
    talk = Talk(get(method=b"HEAD"))
    assert b"Content-Length: 5\r\n" in talk.answer
    assert talk.body == b""
    assert talk.done == [True]


@pytest.mark.parametrize("status", [204, 304])
def test_some_answers_have_no_body(status: int) -> None:
    def handler(request: PlainRequest) -> None:
        request.setResponseCode(status)
        request.setHeader(b"Content-Length", b"3")
        request.write(b"abc")
        request.finish()

    talk = Talk(get(), handler)
    assert talk.body == b""
    assert (b"Content-Length" in talk.answer) == (status == 304)
    assert talk.done == [True]


@pytest.mark.parametrize("written", [b"ab", b"abcdef"])
def test_an_answer_that_breaks_its_length_ends_the_connection(written: bytes) -> None:
    def handler(request: PlainRequest) -> None:
        request.setHeader(b"Content-Length", b"4")
        request.write(written)
        request.finish()

    talk = Talk(get(), handler)
    assert talk.transport.disconnected
    assert talk.done == []


def test_a_handler_cannot_set_hop_by_hop_fields() -> None:
    def handler(request: PlainRequest) -> None:
        request.answer(200, [(b"Connection", b"upgrade"), (b"Upgrade", b"h2c"), (b"Keep-Alive", b"1"), (b"X-A", b"b")])

    talk = Talk(get(), handler)
    assert b"pgrade" not in talk.answer
    assert b"Keep-Alive" not in talk.answer
    assert b"X-A: b\r\n" in talk.answer


def test_a_draining_router_says_that_the_connection_ends() -> None:
    talk = Talk(get(), wait)
    talk.exchange.last = True
    hello(talk.request)
    assert b"Connection: close\r\n" in talk.answer
    assert talk.done == [False]


def test_a_resource_of_twisted_web_answers() -> None:
    class Leaf(Resource):
        isLeaf = True

        def render_GET(self, request: PlainRequest) -> bytes:
            return b" ".join(request.postpath) + request.args[b"q"][0]

    talk = Talk(get(), Leaf())
    assert talk.body == b"p1"
    talk = Talk(post(b""), Leaf())
    assert talk.status == 405


# Bodies.


def test_the_handler_sees_the_request_before_its_body() -> None:
    talk = Talk(post(b"", length=10), wait)
    sink = Sink()
    talk.exchange.data(b"12345")
    assert talk.request.body.length == 10
    talk.request.body.start(sink)
    assert sink.data == b"12345"
    talk.exchange.data(b"67890GET /next")
    assert (sink.data, sink.ended) == (b"1234567890", True)
    assert talk.exchange.rest == b"GET /next"
    hello(talk.request)
    assert talk.done == [True]


def test_a_chunked_body_is_decoded() -> None:
    talk = Talk(chunked(b"3\r\nabc\r\n"), wait)
    sink = Sink()
    talk.request.body.start(sink)
    talk.exchange.data(b"2\r\nde\r\n0\r\n\r\nrest")
    assert (sink.data, sink.ended, talk.exchange.rest) == (b"abcde", True, b"rest")


def test_a_body_that_nobody_reads_pauses_the_client() -> None:
    talk = Talk(post(b"", length=900_000), wait)
    talk.exchange.data(b"x" * (BUFFER - 1))
    assert not talk.paused
    talk.exchange.data(b"x")
    assert talk.paused
    sink = Sink()
    talk.request.body.start(sink)
    assert not talk.paused
    talk.request.body.pause()
    talk.exchange.data(b"y" * BUFFER)
    assert talk.paused
    assert len(sink.data) == BUFFER
    talk.request.body.resume()
    assert not talk.paused
    assert len(sink.data) == 2 * BUFFER


def test_what_waits_behind_the_body_is_bounded() -> None:
    talk = Talk(get(), wait)
    talk.exchange.data(b"x" * REST_LIMIT)
    assert not talk.paused
    talk.exchange.data(b"x")
    assert talk.paused
    hello(talk.request)
    assert not talk.paused
    assert len(talk.exchange.rest) == REST_LIMIT + 1


def test_100_is_sent_when_the_handler_begins_to_read() -> None:
    talk = Talk(post(b"", b"Expect: 100-continue\r\n", length=3), wait)
    assert talk.answer == b""
    talk.wait(200)
    sink = Sink()
    talk.request.body.start(sink)
    assert talk.answer == b"HTTP/1.1 100 Continue\r\n\r\n"
    talk.exchange.data(b"abc")
    assert sink.ended
    hello(talk.request)
    assert talk.done == [True]
    assert talk.answer.count(b"100 Continue") == 1


def test_100_is_not_sent_when_the_answer_comes_first() -> None:
    talk = Talk(post(b"", b"Expect: 100-continue\r\n", length=3))
    assert talk.answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Connection: close" in talk.answer
    assert talk.done == [False]


def test_100_is_not_sent_when_the_body_came_unasked() -> None:
    talk = Talk(post(b"abc", b"Expect: 100-continue\r\n"), wait)
    talk.request.body.start(Sink())
    assert talk.answer == b""


@pytest.mark.parametrize(
    ("length", "kept"), [(10, True), (DRAIN_LIMIT, True), (DRAIN_LIMIT + 1, False)], ids=["little", "limit", "much"]
)
def test_an_unread_body_is_read_behind_the_answer_if_it_is_small(length: int, kept: bool) -> None:
    talk = Talk(post(b"", length=length))
    assert talk.body == b"hello"
    assert (b"Connection: close" in talk.answer) != kept
    if kept:
        assert talk.done == []
        talk.exchange.data(b"x" * length + b"next")
        assert talk.exchange.rest == b"next"
    assert talk.done == [kept]


def test_a_client_that_holds_back_an_unread_body_is_left() -> None:
    talk = Talk(post(b"", length=10))
    talk.wait(80)
    assert talk.done == [False]


def test_a_declared_body_over_the_limit_is_refused_before_the_handler() -> None:
    called: list[PlainRequest] = []
    talk = Talk(post(b"", length=11), called.append, max_body=10)
    assert (talk.status, talk.done, called) == (413, [False], [])
    assert b"Connection: close" in talk.answer


def test_a_chunked_body_over_the_limit_is_refused_and_its_reader_told() -> None:
    talk = Talk(chunked(b"a\r\n0123456789\r\n"), wait, max_body=10)
    sink = Sink()
    talk.request.body.start(sink)
    talk.exchange.data(b"1\r\nx\r\n")
    assert isinstance(sink.error, HttpError)
    assert not sink.ended
    assert (talk.status, talk.done) == (413, [False])


def test_a_malformed_body_is_refused_and_the_handler_cancelled() -> None:
    running: Deferred[None] = Deferred()
    talk = Talk(chunked(b""), lambda request: running)
    talk.exchange.data(b"zz\r\n")
    assert (talk.status, talk.done) == (400, [False])
    assert running.called
    assert talk.exchange.refusal is not None


def test_a_malformed_body_that_came_with_the_head_reaches_no_handler() -> None:
    called: list[PlainRequest] = []
    talk = Talk(chunked(b"zz\r\n"), called.append)
    assert (talk.status, called) == (400, [])


def test_a_body_that_fails_in_the_middle_of_an_answer_ends_the_connection() -> None:
    talk = Talk(chunked(b""), wait)
    talk.request.body.start(Sink())
    talk.request.write(b"begun")
    talk.exchange.data(b"zz\r\n")
    assert talk.transport.disconnected
    assert talk.done == []


def test_an_unread_body_that_fails_lets_the_answer_end() -> None:
    talk = Talk(chunked(b""), wait)
    talk.request.write(b"begun")
    talk.exchange.data(b"zz\r\n")
    talk.exchange.data(b"more\r\n")
    talk.request.finish()
    assert talk.body.endswith(b"0\r\n\r\n")
    assert talk.done == [False]


def test_a_body_that_stops_gets_408() -> None:
    talk = Talk(post(b"", length=10), wait)
    talk.wait(50)
    talk.exchange.data(b"x")
    talk.wait(59)
    assert talk.answer == b""
    talk.wait(20)
    assert (talk.status, talk.done) == (408, [False])


def test_a_body_is_not_timed_while_its_reader_is_slow() -> None:
    talk = Talk(post(b"x" * BUFFER, length=BUFFER + 1), wait)
    talk.wait(500)
    assert talk.answer == b""
    talk.lose()


# Failures.


@pytest.mark.parametrize(
    ("error", "status", "field"),
    [
        (HttpError(405, "no", ((b"Allow", b"GET"),)), 405, b"Allow: GET"),
        (BackendError(503, "10.0.0.1 refused"), 503, b"Retry-After: 1"),
        (BackendError(504, "10.0.0.1 slept"), 504, b"Content-Length"),
    ],
)
def test_an_error_of_the_router_becomes_its_status(error: Exception, status: int, field: bytes) -> None:
    def handler(request: PlainRequest) -> None:
        request.setHeader(b"X-Half", b"prepared")
        raise error

    talk = Talk(get(), handler)
    assert talk.status == status
    assert field in talk.answer
    assert b"X-Half" not in talk.answer
    assert b"10.0.0.1" not in talk.answer
    assert talk.done == [isinstance(error, BackendError)]


@pytest.mark.parametrize("late", [False, True])
def test_any_other_error_is_500_and_logged_once(logged_failures, late: bool) -> None:  # type: ignore[no-untyped-def]
    failing: Deferred[None] = Deferred()

    def handler(request: PlainRequest) -> Deferred[None]:
        if not late:
            raise ZeroDivisionError
        return failing

    talk = Talk(get(), handler)
    if late:
        failing.errback(ZeroDivisionError())
    assert (talk.status, talk.done) == (500, [False])
    assert len(logged_failures.flush(ZeroDivisionError)) == 1


def test_an_error_in_the_middle_of_an_answer_ends_the_connection(logged_failures) -> None:  # type: ignore[no-untyped-def]
    def handler(request: PlainRequest) -> None:
        request.write(b"begun")
        raise ZeroDivisionError

    talk = Talk(get(), handler)
    assert talk.transport.disconnected
    assert len(logged_failures.flush(ZeroDivisionError)) == 1


def test_a_client_that_vanishes_cancels_the_handler_and_tells_the_request() -> None:
    running: Deferred[None] = Deferred()
    told: list[Failure] = []
    ended: list[Failure] = []
    talk = Talk(post(b"", length=10), lambda request: running, start=False)
    talk.request.notifyFinish().addErrback(told.append)
    running.addErrback(ended.append)
    sink = Sink()
    talk.exchange.start()
    talk.request.body.start(sink)
    talk.lose()
    assert told[0].check(ConnectionLost)
    assert ended[0].check(CancelledError)
    assert isinstance(sink.error, ConnectionLost)
    assert talk.done == []
    talk.request.write(b"nobody listens")
    talk.wait(500)
    assert talk.answer == b""


class Source:
    """A producer that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.told.append(name)


def test_a_slow_client_pauses_the_answer_and_ends_it_when_it_never_reads() -> None:
    talk = Talk(get(), wait)
    source = Source()
    talk.request.registerProducer(source, True)
    valve = talk.transport.producer
    valve.pauseProducing()
    talk.wait(50)
    valve.resumeProducing()
    talk.wait(500)
    assert not talk.transport.disconnected
    valve.pauseProducing()
    talk.wait(80)
    assert talk.transport.disconnected
    talk.lose()
    assert source.told == ["pauseProducing", "resumeProducing", "pauseProducing", "stopProducing"]
    assert talk.exchange.refusal is not None


def test_a_producer_that_comes_too_late_is_stopped() -> None:
    talk = Talk(get(), wait)
    talk.exchange.abortConnection()
    source = Source()
    talk.request.registerProducer(source, True)
    assert source.told == ["stopProducing"]
    talk.lose()
