"""Whether the page that opens a WebSocket may do so."""

from __future__ import annotations

import pytest

from wsrouter.policy.origins import origin_allowed


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        (None, [b"https://evil.example"], True),
        (None, [b"https://a.example", b"https://b.example"], True),
        (("same",), [], True),
        ((), [], True),
        ((), [b"https://app.example"], False),
        (("https://app.example",), [b"https://app.example"], True),
        (("https://app.example",), [b"HTTPS://App.Example"], True),
        (("https://app.example",), [b"https://app.example:443"], True),
        (("https://app.example:443",), [b"https://app.example"], True),
        (("http://app.example",), [b"http://app.example:80"], True),
        (("https://app.example",), [b"https://app.example:80"], False),
        (("https://app.example",), [b"http://app.example"], False),
        (("https://app.example",), [b"https://app.example:4433"], False),
        (("https://app.example",), [b"https://app.example.evil.example"], False),
        (("https://app.example",), [b"https://app.example https://evil.example"], False),
        (("https://app.example",), [b"https://app.example", b"https://app.example"], False),
        (("https://app.example",), [b""], False),
        (("https://app.example",), [b"https://app.ex\xffmple"], False),
        (("https://a.example", "https://b.example"), [b"https://b.example"], True),
        (("https://app.example", "same"), [b"null"], False),
        (("null",), [b"null"], True),
        (("same",), [b"https://host.example"], True),
        (("same",), [b"https://host.example:443"], True),
        (("same",), [b"http://host.example"], False),
        (("same",), [b"same"], False),
        (("https://app.example",), [b"https://host.example"], False),
    ],
)
def test_an_origin_passes_when_it_is_listed(
    origins: tuple[str, ...] | None, origin: list[bytes], allowed: bool
) -> None:
    assert origin_allowed(origins, origin, "https", "host.example") is allowed


@pytest.mark.parametrize(
    ("scheme", "authority", "origin", "allowed"),
    [
        ("http", "Host.Example:80", b"http://host.example", True),
        ("https", "host.example:443", b"https://host.example", True),
        ("https", "host.example:8443", b"https://host.example:8443", True),
        ("http", "host.example:8080", b"http://host.example", False),
        ("http", "[::1]:80", b"http://[::1]", True),
        ("http", "[::80]", b"http://[::80]", True),
    ],
)
def test_same_is_the_requests_own_scheme_and_authority(
    scheme: str, authority: str, origin: bytes, allowed: bool
) -> None:
    assert origin_allowed(("same",), [origin], scheme, authority) is allowed
