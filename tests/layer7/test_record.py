"""What the observers hear of a request."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from wsrouter.layer7.record import Record
from wsrouter.layer7.site import Site
from wsrouter.live.connection import Connection
from wsrouter.live.idle import IdleSweeper
from wsrouter.live.registry import Answer, Refusal, Registry
from wsrouter.policy.forwarded import Effective
from wsrouter.policy.routing import RouteTable
from wsrouter.wire.head import parse_request
from wsrouter.wire.target import parse_target

pytestmark = pytest.mark.interpreted


class Scene:
    def __init__(self) -> None:
        self.clock = Clock()
        self.told: list[Refusal | Answer] = []
        registry = Registry()
        registry.observers.append(self)  # type: ignore[arg-type]
        relay: Any = self.clock
        site = Site(relay, registry, IdleSweeper(self.clock), {}, RouteTable(()), {}, {})
        self.record = Record(site, Connection(3, "10.0.0.1", 9, "main"))

    def refused(self, refusal: Refusal) -> None:
        self.told.append(refusal)

    def answered(self, answer: Answer) -> None:
        self.told.append(answer)

    def know(self, behind: Effective | None = None) -> None:
        record = self.record
        record.head = parse_request(b"GET /x?token=secret HTTP/1.1\r\nHost: a.example\r\n\r\n")
        record.target = parse_target(record.head.target, "GET")
        record.route = "files"
        record.behind = behind


def test_a_refusal_tells_what_is_known_so_far() -> None:
    scene = Scene()
    scene.record.refused(400, "malformed")
    scene.know()
    scene.record.refused(404, "no route")
    assert scene.told == [
        Refusal(3, "10.0.0.1:9", "main", "http", "", "malformed", 400),
        Refusal(3, "10.0.0.1:9", "main", "http", "files", "no route", 404, "a.example", "/x"),
    ]


def test_an_answer_tells_how_long_it_took_since_it_began() -> None:
    scene = Scene()
    scene.clock.advance(100)
    scene.know()
    scene.record.began = 98.5
    scene.record.answered(200, 1234)
    assert scene.told == [Answer(3, "10.0.0.1:9", "main", "files", "GET", "a.example", "/x", 200, 1234, 1.5)]


def test_the_client_is_the_one_behind_a_trusted_proxy() -> None:
    scene = Scene()
    scene.know(Effective("192.0.2.1"))
    scene.record.refused(403, "no")
    scene.record.answered(200, 0)
    assert [one.client for one in scene.told] == ["192.0.2.1", "192.0.2.1"]


def test_the_next_request_knows_nothing_of_the_one_before() -> None:
    scene = Scene()
    scene.know(Effective("192.0.2.1"))
    scene.record.forget()
    scene.record.refused(408, "late")
    assert scene.told == [Refusal(3, "10.0.0.1:9", "main", "http", "", "late", 408)]
