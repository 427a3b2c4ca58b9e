"""Whom a listener lets in, on a clock that is a number."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from wsrouter.config.values import Listener, Rate
from wsrouter.errors import HttpError
from wsrouter.policy.admission import Admission, retry_after

INNER = ip_network("10.0.0.0/8")


def config(**options: Any) -> Listener:
    return Listener("main", "tcp:0", **options)


def outcome(admission: Admission, ip: str, now: float = 0.0) -> int:
    """200 for who came in, else the status of the refusal."""
    try:
        admission.enter(ip, now)
    except HttpError as error:
        return error.status
    return 200


def waits(error: HttpError) -> int:
    [(name, value)] = error.headers
    assert name == b"Retry-After"
    return int(value)


@pytest.mark.parametrize(
    ("options", "guarded"),
    [
        ({}, False),
        ({"trusted": (INNER,)}, False),
        ({"handshakes_per_ip": Rate(1.0, 1)}, False),
        ({"max_connections": 5}, False),
        ({"allow": (INNER,)}, True),
        ({"deny": (INNER,)}, True),
        ({"max_connections_per_ip": 1}, True),
        ({"connections_per_ip": Rate(1.0, 1)}, True),
    ],
)
def test_a_listener_is_guarded_where_somebody_could_be_turned_away(options: dict[str, Any], guarded: bool) -> None:
    assert Admission(config(**options)).guarded is guarded


def test_without_lists_and_limits_everybody_comes_in_and_nobody_is_counted() -> None:
    admission = Admission(config())
    assert [admission.enter("192.0.2.1", 0.0) for _ in range(3)] == [None] * 3
    for _ in range(3):
        admission.shake_hands("192.0.2.1", 0.0)


def test_lists_turn_away_for_good() -> None:
    admission = Admission(config(allow=(INNER,), deny=(ip_network("10.6.6.0/24"),)))
    assert [outcome(admission, ip) for ip in ("10.1.1.1", "10.6.6.1", "192.0.2.1", "unix")] == [200, 403, 403, 403]


def test_an_address_has_so_many_connections_at_a_time() -> None:
    admission = Admission(config(max_connections_per_ip=2))
    key = admission.enter("192.0.2.1", 0.0)
    assert key is not None
    assert [outcome(admission, "192.0.2.1") for _ in range(2)] == [200, 429]
    assert outcome(admission, "192.0.2.2") == 200
    admission.leave(key)
    assert [outcome(admission, "192.0.2.1") for _ in range(2)] == [200, 429]


def test_an_address_connects_so_often_and_is_told_when_again() -> None:
    admission = Admission(config(connections_per_ip=Rate(0.5, 2)))
    assert [outcome(admission, "192.0.2.1") for _ in range(2)] == [200, 200]
    with pytest.raises(HttpError) as caught:
        admission.enter("192.0.2.1", 0.0)
    assert (caught.value.status, waits(caught.value)) == (429, 2)
    assert outcome(admission, "192.0.2.1", 2.0) == 200


def test_who_is_over_the_rate_does_not_count_as_connected() -> None:
    admission = Admission(config(max_connections_per_ip=2, connections_per_ip=Rate(1.0, 1)))
    assert [outcome(admission, "192.0.2.1") for _ in range(5)] == [200, 429, 429, 429, 429]
    assert [outcome(admission, "192.0.2.1", 10.0) for _ in range(2)] == [200, 429]


def test_who_is_over_the_limit_of_connections_uses_up_no_rate() -> None:
    admission = Admission(config(max_connections_per_ip=1, connections_per_ip=Rate(0.001, 2)))
    key = admission.enter("192.0.2.1", 0.0)
    assert key is not None
    assert outcome(admission, "192.0.2.1") == 429
    admission.leave(key)
    assert outcome(admission, "192.0.2.1") == 200


def test_an_ipv6_client_is_its_network_of_64_bits() -> None:
    admission = Admission(config(max_connections_per_ip=1))
    assert [outcome(admission, ip) for ip in ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1")] == [200, 429, 200]


def test_a_trusted_peer_stands_for_many_clients_and_a_unix_socket_for_nobody_knows_whom() -> None:
    limits: dict[str, Any] = {"max_connections_per_ip": 1, "connections_per_ip": Rate(1.0, 1)}
    admission = Admission(config(trusted=(INNER,), **limits))
    for ip in ("10.0.0.1", "unix"):
        assert [admission.enter(ip, 0.0) for _ in range(3)] == [None] * 3
    assert [outcome(admission, "192.0.2.1") for _ in range(2)] == [200, 429]


def test_handshakes_have_a_rate_of_their_own() -> None:
    admission = Admission(config(handshakes_per_ip=Rate(10.0, 1)))
    admission.shake_hands("192.0.2.1", 0.0)
    with pytest.raises(HttpError) as caught:
        admission.shake_hands("192.0.2.1", 0.0)
    assert (caught.value.status, waits(caught.value)) == (429, 1)
    admission.shake_hands("192.0.2.2", 0.0)
    admission.shake_hands("192.0.2.1", 0.1)
    for _ in range(3):
        admission.shake_hands("unix", 0.0)


def test_a_reload_keeps_what_was_counted() -> None:
    rates: dict[str, Any] = {"connections_per_ip": Rate(0.1, 3), "handshakes_per_ip": Rate(0.1, 1)}
    admission = Admission(config(max_connections_per_ip=3, **rates))
    keys = [admission.enter("192.0.2.1", 0.0) for _ in range(3)]
    admission.shake_hands("192.0.2.1", 0.0)
    admission.reconfigure(config(max_connections_per_ip=3, deny=(INNER,), **rates))
    assert outcome(admission, "10.0.0.1", 100.0) == 403
    assert outcome(admission, "192.0.2.1", 100.0) == 429
    with pytest.raises(HttpError):
        admission.shake_hands("192.0.2.1", 1.0)
    assert keys[0] is not None
    admission.leave(keys[0])
    # One came free, and the bucket of connections has one token by now.
    assert [outcome(admission, "192.0.2.1", 10.0) for _ in range(2)] == [200, 429]


def test_a_limit_may_be_taken_away_while_connections_that_it_counted_live() -> None:
    admission = Admission(config(max_connections_per_ip=1, connections_per_ip=Rate(1.0, 1)))
    key = admission.enter("192.0.2.1", 0.0)
    admission.reconfigure(config())
    assert not admission.guarded
    assert key is not None
    admission.leave(key)
    admission.reconfigure(config(max_connections_per_ip=1))
    assert [outcome(admission, "192.0.2.1") for _ in range(2)] == [200, 429]


def test_proxy_headers_are_believed_of_trusted_peers_and_on_unix_sockets() -> None:
    assert [Admission(config(trusted=(INNER,))).announces(ip) for ip in ("10.0.0.1", "192.0.2.1")] == [True, False]
    assert Admission(config()).announces("unix")


def test_the_log_is_told_once_a_minute_of_one_address() -> None:
    admission = Admission(config())
    assert [admission.told("192.0.2.1", now) for now in (0.0, 0.1, 59.0, 60.0, 61.0)] == [
        *(False, True, True),
        *(False, True),
    ]
    assert not admission.told("192.0.2.2", 0.0)
    assert [admission.told("unix", 0.0) for _ in range(2)] == [False, True]
    assert [admission.told("0.0.0.0", 0.0) for _ in range(2)] == [False, True]


@pytest.mark.parametrize(("seconds", "value"), [(0.1, b"1"), (1.0, b"1"), (1.000001, b"1"), (1.2, b"2"), (7.0, b"7")])
def test_the_time_to_wait_is_told_in_whole_seconds_rounded_up(seconds: float, value: bytes) -> None:
    assert retry_after(seconds) == (b"Retry-After", value)
