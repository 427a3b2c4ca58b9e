from __future__ import annotations

import socket
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock

from wsrouter.backends.dial import Address
from wsrouter.backends.discovery import REFRESH, Discovery, literal_address
from wsrouter.config.values import Backend

APP = Backend("app.internal", 3333)
SAME = Backend("app.internal", 4444)
LITERAL = Backend("127.0.0.1", 2222)


class Resolver:
    """Notes the look-ups; ``answer`` completes all that wait."""

    def __init__(self) -> None:
        self.nameResolver = self
        self.waiting: list[tuple[Any, str]] = []
        self.asked: list[str] = []

    def resolveHostName(self, receiver: Any, name: str, **options: Any) -> None:
        receiver.resolutionBegan(None)
        self.asked.append(name)
        self.waiting.append((receiver, name))

    def answer(self, *addresses: Any) -> None:
        waiting, self.waiting = self.waiting, []
        for receiver, _ in waiting:
            for address in addresses:
                receiver.addressResolved(address)
            receiver.resolutionComplete()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def resolver() -> Resolver:
    return Resolver()


@pytest.fixture
def discovery(clock: Clock, resolver: Resolver) -> Discovery:
    made = Discovery(clock, resolver, [APP, SAME, LITERAL])  # type: ignore[arg-type]
    made.start()
    return made


def four(host: str) -> IPv4Address:
    return IPv4Address("TCP", host, 0)


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        (LITERAL, Address(socket.AF_INET, ("127.0.0.1", 2222))),
        (Backend("::1", 80), Address(socket.AF_INET6, ("::1", 80, 0, 0))),
        (Backend("", 0, unix="/run/app.sock"), Address(socket.AF_UNIX, "/run/app.sock")),
        (APP, None),
    ],
)
def test_literals_need_no_look_up(backend, expected):
    assert literal_address(backend) == expected


def test_without_names_nothing_is_asked(clock, resolver):
    discovery = Discovery(clock, resolver, [LITERAL])
    assert discovery.start().called
    assert discovery.addresses(LITERAL) == (literal_address(LITERAL),)
    assert not resolver.asked
    assert not clock.getDelayedCalls()
    discovery.stop()


def test_a_name_is_asked_once_for_all_its_backends(discovery, resolver):
    assert resolver.asked == ["app.internal"]
    assert discovery.addresses(APP) == []
    resolver.answer(four("10.0.0.1"))
    assert discovery.addresses(APP) == [Address(socket.AF_INET, ("10.0.0.1", 3333))]
    assert discovery.addresses(SAME) == [Address(socket.AF_INET, ("10.0.0.1", 4444))]


def test_addresses_take_turns_at_being_the_first(discovery, resolver):
    resolver.answer(four("10.0.0.1"), IPv6Address("TCP", "::2", 0), four("10.0.0.1"), UNIXAddress(b"odd"))
    both = {
        Address(socket.AF_INET, ("10.0.0.1", 3333)),
        Address(socket.AF_INET6, ("::2", 3333, 0, 0)),
    }
    seen = [discovery.addresses(APP) for _ in range(4)]
    assert all(set(addresses) == both for addresses in seen)
    assert [addresses[0] for addresses in seen[:2]] == [addresses[0] for addresses in seen[2:]]
    assert {addresses[0] for addresses in seen} == both


def test_a_start_is_done_when_the_first_answers_are_here(clock, resolver):
    done = []
    discovery = Discovery(clock, resolver, [APP, Backend("other.internal", 1)])
    discovery.start().addCallback(done.append)
    assert not done
    resolver.answer(four("10.0.0.1"))
    assert done == [None]
    discovery.stop()


def test_names_are_asked_again_and_follow_the_answer(discovery, resolver, clock):
    resolver.answer(four("10.0.0.1"))
    clock.advance(REFRESH)
    assert resolver.asked == ["app.internal"] * 2
    resolver.answer(four("10.0.0.2"))
    assert discovery.addresses(APP) == [Address(socket.AF_INET, ("10.0.0.2", 3333))]


def test_a_name_that_stops_resolving_keeps_its_addresses(discovery, resolver, clock):
    resolver.answer(four("10.0.0.1"))
    clock.advance(REFRESH)
    resolver.answer()
    assert discovery.addresses(APP)


def test_a_name_that_never_resolved_has_none_until_it_does(discovery, resolver, clock):
    resolver.answer()
    assert not discovery.addresses(APP)
    clock.advance(REFRESH)
    resolver.answer(four("10.0.0.1"))
    assert discovery.addresses(APP)


def test_a_look_up_that_takes_long_is_not_asked_twice(discovery, resolver, clock):
    for _ in range(5):
        clock.advance(REFRESH)
    assert resolver.asked == ["app.internal"]
    resolver.answer(four("10.0.0.1"))
    clock.advance(REFRESH)
    assert resolver.asked == ["app.internal"] * 2


def test_a_stop_ends_the_asking_and_late_answers_count_for_nothing(discovery, resolver, clock):
    discovery.stop()
    discovery.stop()
    resolver.answer(four("10.0.0.1"))
    assert not discovery.addresses(APP)
    assert not clock.getDelayedCalls()


# Reloads.

NEW = Backend("new.internal", 1)


def test_names_that_stay_keep_their_addresses_and_are_not_asked_again(discovery, resolver):
    resolver.answer(four("10.0.0.1"))
    done = []
    discovery.add([APP, NEW]).addCallback(done.append)
    assert resolver.asked == ["app.internal", "new.internal"]
    assert not done
    resolver.answer(four("10.0.0.9"))
    assert done == [None]
    discovery.reconfigure([APP, NEW])
    assert discovery.addresses(APP) == [Address(socket.AF_INET, ("10.0.0.1", 3333))]
    assert discovery.addresses(NEW) == [Address(socket.AF_INET, ("10.0.0.9", 1))]


def test_a_name_that_is_gone_is_forgotten_and_not_asked_again(discovery, resolver, clock):
    resolver.answer(four("10.0.0.1"))
    discovery.reconfigure([LITERAL])
    assert discovery.addresses(APP) == []
    clock.advance(REFRESH)
    assert resolver.asked == ["app.internal"]
    assert not clock.getDelayedCalls()


def test_an_answer_for_a_name_that_is_gone_counts_for_nothing(discovery, resolver):
    discovery.reconfigure([])
    resolver.answer(four("10.0.0.1"))
    discovery.reconfigure([APP])
    assert discovery.addresses(APP) == []


def test_the_first_names_of_a_reload_are_kept_fresh(clock, resolver):
    discovery = Discovery(clock, resolver, [LITERAL])
    discovery.start()
    assert not clock.getDelayedCalls()
    discovery.add([APP])
    discovery.reconfigure([APP])
    resolver.answer(four("10.0.0.1"))
    clock.advance(REFRESH)
    assert resolver.asked == ["app.internal"] * 2
    discovery.stop()
