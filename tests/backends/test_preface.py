from __future__ import annotations

import pytest

from wsrouter.backends.preface import proxy_preface
from wsrouter.config.values import SendProxy
from wsrouter.sniff.proxy_protocol import Header, read_header
from wsrouter.wire.proxy_header import client_tlvs

CLIENT, ROUTER = ("192.0.2.1", 4711), ("198.51.100.2", 443)
TLVS = client_tlvs("app.example")


@pytest.mark.parametrize(
    ("form", "told"), [(SendProxy.V1, Header(CLIENT, ROUTER)), (SendProxy.V2, Header(CLIENT, ROUTER, TLVS))]
)
def test_a_reader_learns_who_the_client_is_and_from_version_2_what_else_is_known(form, told):
    preface = proxy_preface(form, CLIENT, ROUTER, TLVS)
    assert read_header(preface) == (told, len(preface))


@pytest.mark.parametrize(("source", "destination"), [(None, None), (CLIENT, None), (None, ROUTER)])
@pytest.mark.parametrize(
    ("form", "preface"),
    [(SendProxy.V1, b"PROXY UNKNOWN\r\n"), (SendProxy.V2, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")],
)
def test_what_is_not_known_is_not_claimed(form, preface, source, destination):
    assert proxy_preface(form, source, destination, TLVS) == preface
