"""TLS towards backends, tried against a server in the same process over memory BIOs."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme

from wsrouter.backends.tls import PoolTls, backend_context, load_chain, server_name
from wsrouter.config.faults import BadValue
from wsrouter.config.values import Backend, BackendTls, Check, CheckKind, Pool
from wsrouter.errors import ConfigError

CA = trustme.CA()


def backend_server(*names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    CA.issue_cert(*names).configure_cert(context)
    return context


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str | None) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=name)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [ours, theirs]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass
        if not waiting:
            return ours, theirs
    raise AssertionError("the handshake does not end")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    CA.cert_pem.write_to_path(path)
    return path


@pytest.mark.parametrize("host", ["app.internal", "127.0.0.1", "::1"])
def test_a_backend_proves_its_own_host(root: Path, host: str) -> None:
    tls = BackendTls(ca=root)
    ours, _ = handshake(backend_context(tls), backend_server(host), server_name(tls, Backend(host, 443)))
    assert ours.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize(
    ("host", "tls_name", "proven"),
    [("app.internal", None, "other.internal"), ("127.0.0.1", None, "127.0.0.2"), ("a.b", "wanted.internal", "a.b")],
)
def test_a_backend_with_another_name_does_not_verify(root: Path, host: str, tls_name: str | None, proven: str) -> None:
    tls = BackendTls(ca=root, name=tls_name)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch"):
        handshake(backend_context(tls), backend_server(proven), server_name(tls, Backend(host, 443)))


def test_a_certificate_of_an_unknown_authority_does_not_verify() -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(backend_context(BackendTls()), backend_server("a.b"), "a.b")


def test_without_verification_anything_goes() -> None:
    tls = BackendTls(verify=False)
    unix = Backend("", 0, unix="/run/app.sock")
    handshake(backend_context(tls), backend_server("a.b"), server_name(tls, unix))


def test_the_routers_own_certificate_is_shown(root: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.pem"
    CA.issue_cert("router.internal", common_name="router").private_key_and_cert_chain_pem.write_to_path(own)
    server = backend_server("a.b")
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(root)
    _, theirs = handshake(backend_context(BackendTls(ca=root, certificate=own)), server, "a.b")
    shown = theirs.getpeercert()
    assert shown is not None
    assert shown["subjectAltName"] == (("DNS", "router.internal"),)


def test_every_file_that_cannot_be_used_is_a_fault(tmp_path: Path, root: Path) -> None:
    tls = BackendTls(ca=tmp_path / "gone.pem", certificate=root)
    with pytest.raises(ConfigError) as caught:
        backend_context(tls)
    assert caught.value.faults == [
        f"tls_ca: {tmp_path}/gone.pem: cannot be read (No such file or directory)",
        f"tls_certificate: {root}: holds no private key (expected the chain and its key in one file)",
    ]


def test_a_key_that_changed_after_it_was_read_is_refused_without_a_question(tmp_path: Path) -> None:
    gone = tmp_path / "gone.pem"
    with pytest.raises(BadValue, match=r"gone\.pem: refused by OpenSSL \(no such file or directory\)"):
        load_chain(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), gone)


@pytest.mark.parametrize(
    ("name", "backend", "expected"),
    [
        ("wanted.internal", Backend("127.0.0.1", 1), "wanted.internal"),
        ("wanted.internal", Backend("", 0, unix="/run/a.sock"), "wanted.internal"),
        (None, Backend("app.internal.", 1), "app.internal"),
        (None, Backend("fe80::1%eth0", 1), "fe80::1"),
    ],
)
def test_the_name_is_the_configured_one_or_the_host(name: str | None, backend: Backend, expected: str) -> None:
    assert server_name(BackendTls(name=name), backend) == expected


def test_a_unix_socket_without_a_name_cannot_be_verified() -> None:
    with pytest.raises(ConfigError, match=r"unix:/run/a\.sock has no name to verify"):
        server_name(BackendTls(), Backend("", 0, unix="/run/a.sock"))


# Whole pools.

ONE, TWO = Backend("a.internal", 1), Backend("b.internal", 2)


def test_a_pool_without_tls_has_nothing_to_speak_it_with() -> None:
    tls = PoolTls.read(Pool("app", (ONE,), check=Check(CheckKind.TCP)))
    assert not tls.backends
    assert not tls.checks


def test_backends_and_checks_have_a_context_each_and_names_of_their_own(root: Path) -> None:
    check = Check(CheckKind.TCP, tls=BackendTls(ca=root, name="check.internal"))
    tls = PoolTls.read(Pool("app", (ONE, TWO), tls=BackendTls(ca=root), check=check))
    assert [tls.backends[one].name for one in (ONE, TWO)] == ["a.internal", "b.internal"]
    assert {client.name for client in tls.checks.values()} == {"check.internal"}
    assert len({client.context for client in tls.backends.values()}) == 1
    assert tls.backends[ONE].context is not tls.checks[ONE].context


@pytest.mark.parametrize("where", ["tls", "check"])
def test_a_file_that_cannot_be_used_is_a_fault_of_its_pool(tmp_path: Path, where: str) -> None:
    unusable = BackendTls(ca=tmp_path / "gone.pem")
    pool = (
        Pool("app", (ONE,), tls=unusable)
        if where == "tls"
        else Pool("app", (ONE,), check=Check(CheckKind.TCP, tls=unusable))
    )
    with pytest.raises(ConfigError, match=r"tls_ca: .*gone\.pem"):
        PoolTls.read(pool)
