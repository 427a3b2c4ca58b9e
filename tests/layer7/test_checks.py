"""Whether a request may go on."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from twisted.internet.task import Clock

from wsrouter.config.values import Listener, PathKind, PathRule, Plain, Rate, Route
from wsrouter.errors import HttpError
from wsrouter.layer7.checks import check_client, check_opening, check_scheme
from wsrouter.layer7.site import Request
from wsrouter.live.connection import Connection
from wsrouter.policy.admission import Admission
from wsrouter.policy.forwarded import Effective
from wsrouter.policy.routing import RouteTable
from wsrouter.wire.head import parse_request
from wsrouter.wire.target import parse_target

pytestmark = pytest.mark.interpreted

NOTHING = None
SAYS_HTTPS = Effective("192.0.2.1", proto="https", host="a.example")
SAYS_HTTP = Effective("192.0.2.1", proto="http", host="a.example")
SILENT = Effective("192.0.2.1")


def head(target: str = "/x?y", *lines: str, host: str = "inner") -> Any:
    return parse_request("\r\n".join([f"GET {target} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode())


def scheme(plain: Plain, secure: bool, behind: Effective | None, upgrade: bool = False) -> int:
    """200 for a request that may pass, else the status."""
    connection = Connection(1, "10.0.0.1", 9, "main", secure=secure)
    request = head()
    try:
        check_scheme(plain, connection, behind, request, parse_target(request.target, "GET"), upgrade)
    except HttpError as error:
        return error.status
    return 200


@pytest.mark.parametrize(
    ("plain", "secure", "behind", "status"),
    [
        (Plain.YES, False, NOTHING, 200),
        (Plain.YES, True, SAYS_HTTP, 200),
        (Plain.NO, False, NOTHING, 400),
        (Plain.NO, False, SAYS_HTTPS, 400),
        (Plain.NO, True, SAYS_HTTP, 200),
        (Plain.REDIRECT, False, NOTHING, 308),
        (Plain.REDIRECT, True, NOTHING, 200),
        (Plain.REDIRECT, False, SAYS_HTTPS, 200),
        (Plain.REDIRECT, False, SILENT, 308),
        (Plain.REDIRECT, True, SILENT, 200),
        (Plain.REDIRECT, True, SAYS_HTTP, 308),
    ],
)
def test_a_redirect_goes_by_what_the_client_uses_and_a_refusal_by_the_connection(
    plain: Plain, secure: bool, behind: Effective | None, status: int
) -> None:
    assert scheme(plain, secure, behind) == status


def test_an_upgrade_is_never_redirected() -> None:
    assert scheme(Plain.REDIRECT, False, NOTHING, upgrade=True) == 403


@pytest.mark.parametrize(
    ("behind", "location"), [(NOTHING, b"https://inner/x?y"), (SAYS_HTTP, b"https://a.example/x?y")]
)
def test_a_redirect_names_the_host_that_the_client_asked_for(behind: Effective | None, location: bytes) -> None:
    request = head()
    with pytest.raises(HttpError) as caught:
        check_scheme(
            Plain.REDIRECT,
            Connection(1, "10.0.0.1", 9, "main"),
            behind,
            request,
            parse_target(request.target, "GET"),
            False,
        )
    assert caught.value.headers == ((b"Location", location),)


def test_what_has_no_place_to_be_redirected_to_is_refused() -> None:
    request = parse_request(b"OPTIONS * HTTP/1.1\r\nHost: inner\r\n\r\n")
    target = parse_target(request.target, "OPTIONS")
    with pytest.raises(HttpError) as caught:
        check_scheme(Plain.REDIRECT, Connection(1, "10.0.0.1", 9, "main"), None, request, target, False)
    assert caught.value.status == 400


ROUTE = Route("app", PathRule(PathKind.PREFIX, "/"), pool="app", origins=("same",), deny=(ip_network("192.0.2.66"),))


class Site:
    def __init__(self) -> None:
        self.relay = Clock()
        self.routes = RouteTable([ROUTE])
        self.turning_away = False


def asked(ip: str, behind: Effective | None = None, *lines: str) -> Request:
    request = head("/", *lines)
    return Request(Connection(1, ip, 9, "main"), request, parse_target(request.target, "GET"), ROUTE, behind)


def refused(check: Any, *arguments: Any) -> tuple[int, str]:
    try:
        check(*arguments)
    except HttpError as error:
        return error.status, error.reason
    return 200, ""


def test_the_lists_of_a_route_look_at_the_client_and_not_at_its_proxy() -> None:
    site: Any = Site()
    denied = (403, "this address is not allowed here")
    assert refused(check_client, site, asked("192.0.2.66")) == denied
    assert refused(check_client, site, asked("10.0.0.1")) == (200, "")
    assert refused(check_client, site, asked("10.0.0.1", Effective("192.0.2.66"))) == denied
    assert refused(check_client, site, asked("192.0.2.66", Effective("192.0.2.1"))) == (200, "")


def test_the_same_origin_is_the_one_that_the_client_asked_for() -> None:
    site: Any = Site()
    admission = Admission(Listener("main", "tcp:0"))
    denied = (403, "this origin is not allowed here")
    assert refused(check_opening, site, admission, asked("10.0.0.1", None, "Origin: http://inner")) == (200, "")
    assert refused(check_opening, site, admission, asked("10.0.0.1", None, "Origin: https://inner")) == denied
    public = "Origin: https://a.example"
    assert refused(check_opening, site, admission, asked("10.0.0.1", SAYS_HTTPS, public)) == (200, "")
    assert refused(check_opening, site, admission, asked("10.0.0.1", SAYS_HTTP, public)) == denied


def test_handshakes_are_counted_by_client_and_before_their_origin_is_looked_at() -> None:
    site: Any = Site()
    admission = Admission(Listener("main", "tcp:0", handshakes_per_ip=Rate(0.1, 1)))
    evil = "Origin: https://evil.example"
    assert refused(check_opening, site, admission, asked("10.0.0.1", Effective("192.0.2.1"), evil))[0] == 403
    assert refused(check_opening, site, admission, asked("10.0.0.1", Effective("192.0.2.1")))[0] == 429
    assert refused(check_opening, site, admission, asked("10.0.0.1", Effective("192.0.2.2")))[0] == 200


def test_a_drain_opens_no_session() -> None:
    site: Any = Site()
    site.turning_away = True
    assert refused(check_opening, site, Admission(Listener("main", "tcp:0")), asked("10.0.0.1"))[0] == 503
