"""Certificates by sniffed name, tried with real handshakes over memory BIOs."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path
from typing import Protocol

import pytest
import trustme

from wsrouter.config.values import Certificate, ClientAuth, Listener
from wsrouter.errors import ConfigError
from wsrouter.layer7.certificates import CertificateStore, Choice, client_subject

CA = trustme.CA()
CLIENTS = trustme.CA()
RSA_LEAF = CA.issue_cert("app.example", key_type=trustme.KeyType.RSA)
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


class Write(Protocol):
    def __call__(
        self,
        file: str,
        *names: str,
        leaf: trustme.LeafCert | None = None,
        not_before: datetime.datetime | None = None,
        not_after: datetime.datetime | None = None,
    ) -> Path: ...


@pytest.fixture
def pem(tmp_path: Path) -> Write:
    def write(
        file: str,
        *names: str,
        leaf: trustme.LeafCert | None = None,
        not_before: datetime.datetime | None = None,
        not_after: datetime.datetime | None = None,
    ) -> Path:
        path = tmp_path / file
        issued = leaf or CA.issue_cert(*names, not_before=not_before, not_after=not_after)
        issued.private_key_and_cert_chain_pem.write_to_path(path)
        return path

    return write


@pytest.fixture
def client_ca(tmp_path: Path) -> Path:
    path = tmp_path / "clients.pem"
    CLIENTS.cert_pem.write_to_path(path)
    return path


def store(
    *files: Path, default: Path | None = None, sections: tuple[Certificate, ...] = (), tls_min: str = "1.2"
) -> CertificateStore:
    return CertificateStore.load(
        Listener("main", "tcp:0", certificates=files, default_certificate=default, tls_min=tls_min), sections
    )


def client(*, own: trustme.LeafCert | None = None, alpn: tuple[str, ...] = ("http/1.1",)) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    CA.configure_trust(context)
    if alpn:
        context.set_alpn_protocols(alpn)
    if own is not None:
        own.configure_cert(context)
    return context


def handshake(
    ours: ssl.SSLContext, choice: Choice | None, name: str = "app.example", session: ssl.SSLSession | None = None
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    assert choice is not None
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = ours.wrap_bio(to_client, to_server, server_hostname=name, session=session)
    far = choice.context.wrap_bio(to_server, to_client, server_side=True)
    waiting = [near, far]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass
        if not waiting:
            far.write(b"x")
            # Reading takes the tickets of TLS 1.3 in too.
            assert near.read(1) == b"x"
            return near, far
    raise AssertionError("the handshake does not end")


def section(name: str, file: Path, ca: Path | None = None, auth: ClientAuth | None = None) -> Certificate:
    return Certificate(name, file, client_ca=ca, client_auth=auth)


def chosen(certificates: CertificateStore, sni: str | None) -> str | None:
    choice = certificates.choose(sni)
    return None if choice is None else Path(choice.name).name


def shown_names(ours: ssl.SSLObject) -> set[str]:
    certificate = ours.getpeercert()
    assert certificate is not None
    return {str(pair[1]) for pair in certificate["subjectAltName"]}


# Choosing.


def test_an_exact_name_comes_before_a_wildcard_and_that_before_the_default(pem: Write) -> None:
    exact, wild, default = pem("exact", "app.example"), pem("wild", "*.example"), pem("default", "other.test")
    certificates = store(exact, wild, default=default)
    assert chosen(certificates, "app.example") == "exact"
    assert chosen(certificates, "b.example") == "wild"
    for stranger in ("a.b.example", "example", ".example", "unknown.test", "192.0.2.1", "::1", "*.example", None):
        expected = "wild" if stranger == "*.example" else "default"
        assert chosen(certificates, stranger) == expected
    assert certificates.warnings == ()


def test_without_a_default_an_unknown_name_and_no_name_choose_nothing(pem: Write) -> None:
    certificates = store(pem("a", "app.example"))
    assert certificates.choose("unknown.test") is None
    assert certificates.choose(None) is None


def test_names_with_the_same_certificate_share_a_context(pem: Write) -> None:
    certificates = store(pem("a", "a.example", "b.example"))
    choice = certificates.choose("a.example")
    assert choice is not None
    assert choice is certificates.choose("b.example")
    assert choice.names == {"a.example", "b.example"}
    assert choice.client_auth is False


def test_a_section_names_the_choice_and_its_file_is_read_once(pem: Write, client_ca: Path, tmp_path: Path) -> None:
    file = pem("a", "app.example")
    (tmp_path / "link").symlink_to(file)
    sections = (section("app", file, client_ca, ClientAuth.REQUIRED),)
    for certificates in (store(sections=sections), store(file, tmp_path / "link", default=file, sections=sections)):
        choice = certificates.choose("app.example")
        assert choice is not None
        assert choice.name == "app"
        assert choice.client_auth is True
        assert certificates.warnings == ()


def test_demonstration_certificates_are_served_too(pem: Write) -> None:
    listener = Listener("main", "tcp:0")
    certificates = CertificateStore.load(listener, (), [pem("demo", "demo.example")])
    assert chosen(certificates, "demo.example") == "demo"


def test_of_two_certificates_for_a_name_the_one_valid_longest_is_served(pem: Write) -> None:
    old = pem("old", "app.example", "old.example", not_after=NOW + 5 * DAY)
    new = pem("new", "app.example", not_after=NOW + 9 * DAY)
    later = pem("later", "app.example", not_before=NOW + 2 * DAY, not_after=NOW + 99 * DAY)
    certificates = store(later, new, old, default=old)
    assert chosen(certificates, "app.example") == "new"
    assert chosen(certificates, "old.example") == "old"
    assert chosen(certificates, None) == "old"
    assert f"two ECDSA certificates for app.example: {new} is served, {old} is not" in certificates.warnings
    assert f"two ECDSA certificates for app.example: {new} is served, {later} is not" in certificates.warnings


def test_a_default_that_lost_all_its_names_is_still_the_default(pem: Write) -> None:
    old = pem("old", "app.example", not_after=NOW + 5 * DAY)
    certificates = store(pem("new", "app.example", not_after=NOW + 9 * DAY), default=old)
    assert chosen(certificates, None) == "old"
    assert chosen(certificates, "app.example") == "new"


@pytest.mark.parametrize("kind", ["RSA", "ECDSA"])
def test_certificates_with_different_keys_stand_side_by_side(pem: Write, kind: str) -> None:
    certificates = store(pem("rsa", leaf=RSA_LEAF), pem("ec", "app.example", "more.example"))
    ours = client()
    ours.maximum_version = ssl.TLSVersion.TLSv1_2
    ours.set_ciphers(f"ECDHE-{kind}-AES128-GCM-SHA256")
    choice = certificates.choose("app.example")
    assert choice is not None
    near, _ = handshake(ours, choice)
    assert shown_names(near) == ({"app.example"} if kind == "RSA" else {"app.example", "more.example"})
    assert choice.names == {"app.example"}
    assert certificates.warnings == ()


# Faults and warnings.


def test_every_unusable_file_is_a_fault_with_its_place(pem: Write, client_ca: Path, tmp_path: Path) -> None:
    good, gone = pem("good", "app.example"), tmp_path / "gone"
    with pytest.raises(ConfigError) as caught:
        store(gone, client_ca, default=tmp_path, sections=(section("app", good, gone, ClientAuth.REQUIRED),))
    assert caught.value.faults == [
        f"[certificate app] client_ca: {gone}: cannot be read (No such file or directory)",
        f"[listener main] certificates: {gone}: cannot be read (No such file or directory)",
        f"[listener main] certificates: {client_ca}: holds no private key (expected the chain and its key in one file)",
        f"[listener main] default_certificate: {tmp_path}: cannot be read (Is a directory)",
    ]


def test_sections_that_contradict_each_other_are_faults(pem: Write, client_ca: Path) -> None:
    one, two = pem("one", "app.example"), pem("two", "app.example")
    with pytest.raises(ConfigError) as caught:
        store(
            sections=(
                section("a", one, client_ca, ClientAuth.REQUIRED),
                section("b", two, client_ca, ClientAuth.OPTIONAL),
                section("c", two),
            )
        )
    assert caught.value.faults == [
        f"[certificate c] file: {two}: another section has this file already",
        "[certificate a] and [certificate b]: client_ca and client_auth differ for the same name app.example",
    ]


def test_a_key_that_openssl_finds_too_weak_is_a_fault(pem: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = pem("a", "app.example")

    def refuse(*_: object, **__: object) -> None:
        raise ssl.SSLError(1, "[SSL: EE_KEY_TOO_SMALL] ee key too small")

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", refuse)
    with pytest.raises(ConfigError, match=r"refused by OpenSSL \(.*ee key too small"):
        store(file)


def test_a_certificate_out_of_its_term_is_served_with_a_warning(pem: Write) -> None:
    old = pem("old", "old.example", not_before=NOW - 9 * DAY, not_after=NOW - DAY)
    early = pem("early", "early.example", not_before=NOW + DAY, not_after=NOW + 9 * DAY)
    certificates = store(old, early)
    assert chosen(certificates, "old.example") == "old"
    assert chosen(certificates, "early.example") == "early"
    assert certificates.warnings == (
        f"[listener main] certificates: {old}: expired on {NOW - DAY:%Y-%m-%d}",
        f"[listener main] certificates: {early}: not valid before {NOW + DAY:%Y-%m-%d %H:%M} UTC",
    )


def test_a_certificate_that_no_name_can_reach_is_a_warning_unless_it_is_the_default(pem: Write) -> None:
    nameless, default = pem("nameless", "192.0.2.1"), pem("default", "192.0.2.2")
    certificates = store(nameless, default=default)
    assert certificates.warnings == (
        f"[listener main] certificates: {nameless}: names no host and is not the default: never served",
    )
    assert chosen(certificates, "192.0.2.1") == "default"


def test_a_name_that_is_no_name_is_a_warning(pem: Write) -> None:
    file = pem("odd", "app.example", "*.0.0.1")
    assert store(file).warnings == (
        f"[listener main] certificates: {file}: '*.0.0.1' is never served (a wildcard is a whole first label)",
    )


# Host against server name.


@pytest.fixture
def estate(pem: Write, client_ca: Path) -> CertificateStore:
    """Exact names, a wildcard, one protected name below the wildcard, and a default."""
    secret = pem("secret", "secret.wild.example")
    return store(
        pem("app", "app.example", "also.example"),
        pem("wild", "*.wild.example"),
        pem("plain", "plain.wild.example"),
        default=pem("default", "default.example"),
        sections=(section("secret", secret, client_ca, ClientAuth.REQUIRED),),
    )


@pytest.mark.parametrize(
    ("sni", "host", "allowed"),
    [
        ("app.example", "app.example", True),
        ("app.example", "APP.example.", True),
        ("app.example", "also.example", True),
        ("app.example", "x.wild.example", False),
        ("app.example", "default.example", False),
        ("app.example", "unknown.example", True),
        ("app.example", "192.0.2.1", True),
        ("app.example", "[::1]", True),
        ("app.example", "", True),
        ("x.wild.example", "y.wild.example", True),
        ("x.wild.example", "plain.wild.example", True),
        ("plain.wild.example", "y.wild.example", False),
        ("x.wild.example", "secret.wild.example", False),
        ("secret.wild.example", "secret.wild.example", True),
        ("secret.wild.example", "x.wild.example", False),
        ("unknown.example", "unknown.example", True),
        ("unknown.example", "app.example", False),
        ("unknown.example", "default.example", True),
        (None, "default.example", True),
        (None, "app.example", True),
        (None, "unknown.example", True),
        (None, "192.0.2.1", True),
        (None, "secret.wild.example", False),
    ],
)
def test_a_host_is_held_against_the_server_name(
    estate: CertificateStore, sni: str | None, host: str, allowed: bool
) -> None:
    assert estate.allows_host(sni, host) is allowed


@pytest.mark.parametrize(
    ("sni", "host", "allowed"),
    [
        ("app.example", "unknown.example", False),
        ("app.example", "192.0.2.1", False),
        ("app.example", "app.example", True),
        ("unknown.example", "unknown.example", True),
        (None, "192.0.2.1", True),
        (None, "app.example", True),
        ("unknown.example", "app.example", False),
    ],
)
def test_a_default_that_asks_for_client_certificates_protects_unknown_hosts(
    pem: Write, client_ca: Path, sni: str | None, host: str, allowed: bool
) -> None:
    default = pem("default", "default.example")
    sections = (section("default", default, client_ca, ClientAuth.OPTIONAL),)
    certificates = store(pem("app", "app.example"), default=default, sections=sections)
    assert certificates.allows_host(sni, host) is allowed


def test_no_host_is_allowed_where_no_handshake_could_be(pem: Write) -> None:
    certificates = store(pem("app", "app.example"))
    assert certificates.allows_host(None, "app.example") is False
    assert certificates.allows_host("unknown.example", "unknown.example") is False


def test_a_demand_holds_for_a_name_whichever_file_is_shown(pem: Write, client_ca: Path) -> None:
    old = pem("old", "app.example", not_after=NOW + 5 * DAY)
    renewed = pem("renewed", "app.example", not_after=NOW + 9 * DAY)
    certificates = store(renewed, sections=(section("app", old, client_ca, ClientAuth.REQUIRED),))
    choice = certificates.choose("app.example")
    assert choice is not None
    assert choice.client_auth is True
    assert choice.context.verify_mode is ssl.CERT_REQUIRED


# Handshakes.


@pytest.mark.parametrize(
    ("offered", "agreed"),
    [(("h2", "http/1.1"), "http/1.1"), (("http/1.1",), "http/1.1"), (("h2",), None), ((), None)],
)
def test_alpn_agrees_on_http_1_1_or_on_nothing(pem: Write, offered: tuple[str, ...], agreed: str | None) -> None:
    near, far = handshake(client(alpn=offered), store(pem("a", "app.example")).choose("app.example"))
    assert near.selected_alpn_protocol() == far.selected_alpn_protocol() == agreed


@pytest.mark.parametrize(("least", "refused"), [("1.2", False), ("1.3", True)])
def test_tls_min_refuses_older_clients(pem: Write, least: str, refused: bool) -> None:
    ours = client()
    ours.maximum_version = ssl.TLSVersion.TLSv1_2
    choice = store(pem("a", "app.example"), tls_min=least).choose("app.example")
    if refused:
        with pytest.raises(ssl.SSLError, match=r"(?i)unsupported.protocol"):
            handshake(ours, choice)
    else:
        assert handshake(ours, choice)[0].version() == "TLSv1.2"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("auth", [None, ClientAuth.REQUIRED, ClientAuth.OPTIONAL])
def test_sessions_resume_and_still_know_the_client(
    pem: Write, client_ca: Path, version: ssl.TLSVersion, auth: ClientAuth | None
) -> None:
    file = pem("a", "app.example")
    sections = (section("app", file, client_ca if auth else None, auth),)
    choice = store(file, sections=sections).choose("app.example")
    ours = client(own=CLIENTS.issue_cert("u@client.test", common_name="Ann"))
    ours.maximum_version = version
    near, far = handshake(ours, choice)
    assert near.session is not None
    again, resumed = handshake(ours, choice, session=near.session)
    assert again.session_reused is True
    assert client_subject(resumed) == client_subject(far)
    assert client_subject(resumed).startswith("CN=Ann,") is (auth is not None)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_ticket_of_another_name_does_not_slip_past_a_demand(
    pem: Write, client_ca: Path, version: ssl.TLSVersion
) -> None:
    secret = pem("secret", "secret.example")
    certificates = store(pem("a", "app.example"), sections=(section("secret", secret, client_ca, ClientAuth.REQUIRED),))
    ours = client()
    ours.maximum_version = version
    near, _ = handshake(ours, certificates.choose("app.example"))
    with pytest.raises(ssl.SSLError, match=r"(?i)peer.did.not.return.a.certificate"):
        handshake(ours, certificates.choose("secret.example"), "secret.example", session=near.session)


def test_a_client_certificate_of_an_unknown_authority_is_refused(pem: Write, client_ca: Path) -> None:
    file = pem("a", "app.example")
    for auth in (ClientAuth.REQUIRED, ClientAuth.OPTIONAL):
        choice = store(sections=(section("app", file, client_ca, auth),)).choose("app.example")
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate.verify.failed"):
            handshake(client(own=CA.issue_cert("u@client.test")), choice)


def test_an_optional_certificate_may_be_absent(pem: Write, client_ca: Path) -> None:
    file = pem("a", "app.example")
    choice = store(sections=(section("app", file, client_ca, ClientAuth.OPTIONAL),)).choose("app.example")
    _, far = handshake(client(), choice)
    assert client_subject(far) == ""


def test_a_section_that_names_a_ca_alone_requires_certificates(pem: Write, client_ca: Path) -> None:
    choice = store(sections=(section("app", pem("a", "app.example"), client_ca),)).choose("app.example")
    assert choice is not None
    assert choice.context.verify_mode is ssl.CERT_REQUIRED


def test_a_subject_with_control_characters_stays_on_one_line(pem: Write, client_ca: Path) -> None:
    file = pem("a", "app.example")
    choice = store(sections=(section("app", file, client_ca, ClientAuth.REQUIRED),)).choose("app.example")
    own = CLIENTS.issue_cert("u@client.test", common_name="Eve\r\nX-Admin: yes, Jörg")
    _, far = handshake(client(own=own), choice)
    assert client_subject(far).startswith("CN=Eve\\0D\\0AX-Admin: yes\\, Jörg,")


def test_a_subject_that_cannot_be_read_is_nobodys() -> None:
    class Odd:
        def getpeercert(self, binary_form: bool) -> bytes:
            return b"\x30\x00" if binary_form else b""

    assert client_subject(Odd()) == ""  # type: ignore[arg-type]
