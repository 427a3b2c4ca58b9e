from __future__ import annotations

import pytest

from wsrouter.live.connection import Connection, connection_of
from wsrouter.live.registry import Answer, Counts, End, Facts, Kind, Refusal, Registry, Who


class Entry:
    def __init__(self, number: int) -> None:
        self.number = number
        self.facts = Facts(Kind.TUNNEL, "10.0.0.1", "10.0.0.1:5", "main", "all", "app", "127.0.0.1:2222", 0.0)

    def counts(self) -> Counts:
        return Counts(1, 2)

    def end(self, code: int, reason: str) -> None: ...

    def abort(self) -> None: ...


class Observer:
    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []

    def opened(self, entry: object) -> None:
        self.heard.append(("opened", entry))

    def closed(self, entry: object, end: End) -> None:
        self.heard.append(("closed", entry, end))

    def refused(self, refusal: Refusal) -> None:
        self.heard.append(("refused", refusal))

    def answered(self, answer: Answer) -> None:
        self.heard.append(("answered", answer))


class Leg:
    def __init__(self, peername: object) -> None:
        self.peername = peername


def test_what_opens_and_closes_is_known_and_told():
    registry, one, two = Registry(), Observer(), Observer()
    registry.observers += [one, two]
    entry, end = Entry(registry.number()), End(Who.CLIENT, 1000, "")
    registry.open(entry)
    assert registry.entries == {entry.number: entry}
    registry.close(entry, end)
    assert not registry.entries
    assert one.heard == two.heard == [("opened", entry), ("closed", entry, end)]


def test_an_entry_is_gone_when_its_end_is_told():
    registry = Registry()
    seen: list[int] = []

    class Counting(Observer):
        def closed(self, entry: object, end: End) -> None:
            seen.append(len(registry.entries))

    registry.observers.append(Counting())
    entry = Entry(1)
    registry.open(entry)
    registry.close(entry, End(Who.ROUTER, 1001, "idle"))
    assert seen == [0]


def test_closing_twice_is_a_fault_of_the_caller():
    registry, entry = Registry(), Entry(1)
    registry.open(entry)
    registry.close(entry, End(Who.CLIENT, None, "closed"))
    with pytest.raises(KeyError):
        registry.close(entry, End(Who.CLIENT, None, "closed"))


def test_refusals_are_told():
    registry, observer = Registry(), Observer()
    registry.observers.append(observer)
    refusal = Refusal(1, "10.0.0.1:5", "main", "sniff", "", "no verdict")
    registry.refuse(refusal)
    assert observer.heard == [("refused", refusal)]


def test_numbers_are_never_given_twice():
    registry = Registry()
    assert [registry.number() for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("peername", "ip", "client"),
    [
        (("10.0.0.1", 5), "10.0.0.1", "10.0.0.1:5"),
        (("2001:db8::1", 5, 0, 0), "2001:db8::1", "[2001:db8::1]:5"),
        (("::ffff:10.0.0.1", 5, 0, 0), "10.0.0.1", "10.0.0.1:5"),
        (("::ffff:a00:1", 5, 0, 0), "::ffff:a00:1", "[::ffff:a00:1]:5"),
        ("", "unix", "unix"),
        (b"\0abstract", "unix", "unix"),
    ],
)
@pytest.mark.interpreted
def test_a_connection_knows_its_client(peername, ip, client):
    connection = connection_of(Leg(peername), 7, "main")  # type: ignore[arg-type]
    assert (connection.ip, connection.client) == (ip, client)
    assert (connection.number, connection.listener, connection.secure) == (7, "main", False)
    assert isinstance(connection, Connection)


def test_answers_to_plain_requests_are_told():
    registry, observer = Registry(), Observer()
    registry.observers.append(observer)
    answer = Answer(1, "10.0.0.1:5", "main", "files", "GET", "example.com", "/", 200, 5, 0.01)
    registry.answer(answer)
    assert observer.heard == [("answered", answer)]
