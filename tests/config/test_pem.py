"""PEM files are judged before OpenSSL sees them."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.x509.oid import NameOID

from wsrouter.config.faults import BadValue
from wsrouter.config.pem import read_authorities, read_chain

CA = trustme.CA()
LEAF = CA.issue_cert("app.example", "*.Apps.Example", "192.0.2.1")
CHAIN = b"".join(blob.bytes() for blob in LEAF.cert_chain_pems)
KEY = LEAF.private_key_pem.bytes()
TEXT = serialization.Encoding.PEM
NOW = datetime.datetime.now(datetime.UTC)


def encrypted(form: serialization.PrivateFormat) -> bytes:
    key = serialization.load_pem_private_key(KEY, None)
    return key.private_bytes(TEXT, form, serialization.BestAvailableEncryption(b"secret"))


def self_signed(
    common: str | None = None,
    names: list[x509.GeneralName] | None = None,
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey | None = None,
) -> bytes:
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)] if common is not None else [])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, NOW, NOW + datetime.timedelta(days=1))
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    signed = builder.sign(key, hashes.SHA256() if isinstance(key, ec.EllipticCurvePrivateKey) else None)
    private = key.private_bytes(TEXT, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return signed.public_bytes(TEXT) + private


def written(folder: Path, data: bytes) -> Path:
    path = folder / "some.pem"
    path.write_bytes(data)
    return path


def test_a_chain_tells_its_names_its_kind_and_its_term(tmp_path: Path) -> None:
    chain = read_chain(written(tmp_path, CHAIN + KEY))
    assert chain.names == {"app.example", "*.apps.example"}
    assert chain.kind == "ECDSA"
    assert chain.not_before < NOW < chain.not_after
    assert chain.strange == ()


def test_the_key_may_come_before_the_chain(tmp_path: Path) -> None:
    assert read_chain(written(tmp_path, KEY + CHAIN)).kind == "ECDSA"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "holds no certificate (expected PEM, BEGIN CERTIFICATE)"),
        (b"\xff\xfe\x00", "holds no certificate (expected PEM, BEGIN CERTIFICATE)"),
        (KEY, "holds no certificate (expected PEM, BEGIN CERTIFICATE)"),
        (CHAIN[:200] + KEY, "malformed certificate (the PEM text cannot be read)"),
        (CHAIN, "holds no private key (expected the chain and its key in one file)"),
        (CHAIN + b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "malformed private key"),
        (CHAIN + CA.issue_cert("x").private_key_pem.bytes(), "the private key does not belong to the certificate"),
        (
            CA.cert_pem.bytes() + CHAIN + KEY,
            "the private key belongs to certificate 2 of the file, which must come first",
        ),
        (
            CHAIN + encrypted(serialization.PrivateFormat.PKCS8),
            "the private key has a pass phrase (a router starts unattended: remove it)",
        ),
        (
            CHAIN + encrypted(serialization.PrivateFormat.TraditionalOpenSSL),
            "the private key has a pass phrase (a router starts unattended: remove it)",
        ),
    ],
)
def test_an_unusable_file_is_named_with_its_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    path = written(tmp_path, data)
    with pytest.raises(BadValue) as caught:
        read_chain(path)
    assert str(caught.value) == f"{path}: {reason}"


def test_a_file_that_cannot_be_read_is_named_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(BadValue, match=r"gone\.pem: cannot be read \(No such file or directory\)"):
        read_chain(tmp_path / "gone.pem")
    with pytest.raises(BadValue, match=r"cannot be read \(Is a directory\)"):
        read_authorities(tmp_path)


def test_a_certificate_with_a_broken_extension_is_malformed(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder(
        x509.Name([]), x509.Name([]), key.public_key(), 1, NOW, NOW + datetime.timedelta(days=1)
    ).add_extension(x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"\x01"), critical=False)
    private = key.private_bytes(TEXT, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = written(tmp_path, builder.sign(key, hashes.SHA256()).public_bytes(TEXT) + private)
    with pytest.raises(BadValue, match=r"some\.pem: malformed certificate"):
        read_chain(path)


@pytest.mark.parametrize(
    ("common", "names", "expected"),
    [
        ("Old.Example", None, {"old.example"}),
        ("192.0.2.1", None, set()),
        ("Some Company", None, set()),
        (None, None, set()),
        ("old.example", [x509.DNSName("new.example")], {"new.example"}),
        ("old.example", [x509.RFC822Name("a@new.example")], set()),
        (None, [x509.DNSName("a_b.example."), x509.DNSName("localhost")], {"a_b.example", "localhost"}),
    ],
)
def test_the_common_name_counts_only_without_alternative_names(
    tmp_path: Path, common: str | None, names: list[x509.GeneralName] | None, expected: set[str]
) -> None:
    assert read_chain(written(tmp_path, self_signed(common, names))).names == expected


def test_a_wildcard_that_is_no_whole_first_label_is_strange(tmp_path: Path) -> None:
    odd = ["a*.example", "a.*.example", "*", "*.*.example", "*.0.0.1"]
    chain = read_chain(written(tmp_path, self_signed(None, [x509.DNSName(name) for name in [*odd, "*.example"]])))
    assert chain.names == {"*.example"}
    assert chain.strange == tuple(odd)


def test_every_type_of_key_has_a_kind_of_its_own(tmp_path: Path) -> None:
    for key, kind in ((ed25519.Ed25519PrivateKey.generate(), "Ed25519"), (ed448.Ed448PrivateKey.generate(), "Ed448")):
        assert read_chain(written(tmp_path, self_signed("a.example", key=key))).kind == kind


def test_authorities_come_without_comments_and_keys(tmp_path: Path) -> None:
    root = CA.cert_pem.bytes()
    text = read_authorities(written(tmp_path, b"# J\xc3\xb6rg's CA\n" + root + KEY + trustme.CA().cert_pem.bytes()))
    assert text.count("BEGIN CERTIFICATE") == 2
    assert "KEY" not in text
    assert text.isascii()
