"""PEM files (a certificate chain with its key) -> frozen values.

OpenSSL alone would tell too little: it says ``PEM lib`` for most faults, and for a key with a pass phrase it asks the
terminal. So each file is read and judged here first. What a certificate is for, and whether it is in its term, is for
the caller to decide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID

from wsrouter.config.faults import BadValue
from wsrouter.config.memory import read_bytes

#: One certificate for each of these can stand beside the others in one ``ssl.SSLContext``.
_KINDS = (
    (rsa.RSAPublicKey, "RSA"),
    (ec.EllipticCurvePublicKey, "ECDSA"),
    (ed25519.Ed25519PublicKey, "Ed25519"),
    (ed448.Ed448PublicKey, "Ed448"),
    (dsa.DSAPublicKey, "DSA"),
)

#: A DNS name, or one behind a wildcard that is a whole first label; the last label is never all digits, so that no IP
#: literal looks like a name (RFC 9525 6.3; RFC 1123 2.1).
_DNS_NAME = re.compile(r"(?:\*\.)?(?:[a-z0-9_-]{1,63}\.)*(?=[a-z0-9-]*[a-z-])[a-z0-9-]{1,63}")


@dataclass(frozen=True, slots=True)
class Chain:
    """The certificates and the key of one PEM file; the first certificate is the one that the key belongs to.

    ``names`` are the DNS names that it vouches for, lower case without a final dot, ``*.`` and all; ``strange`` are
    names that no handshake can ask for (a wildcard inside a label). ``not_before`` and ``not_after`` are in UTC.
    """

    path: Path
    kind: str
    names: frozenset[str]
    strange: tuple[str, ...]
    not_before: datetime
    not_after: datetime


def read_chain(path: Path) -> Chain:
    """The chain and key in ``path``; BadValue (``PATH: reason``) when unusable, never a question on the terminal."""
    data = _read(path)
    certificates = _certificates(path, data)
    leaf = certificates[0]
    try:
        _check_key(path, data, certificates)
        public = leaf.public_key()
        names, strange = _names(leaf)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise error if isinstance(error, BadValue) else BadValue(f"{path}: malformed certificate ({error})") from None
    return Chain(path, _kind(public), names, strange, leaf.not_valid_before_utc, leaf.not_valid_after_utc)


def read_authorities(path: Path) -> str:
    """The PEM text of the CA certificates in ``path``, for ``load_verify_locations(cadata=...)``.

    BadValue (``PATH: reason``) when there is none or one is malformed. Comments and keys in the file are left out.
    """
    certificates = _certificates(path, _read(path))
    return "".join(one.public_bytes(serialization.Encoding.PEM).decode("ascii") for one in certificates)


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise BadValue(f"{path}: cannot be read ({error.strerror})") from None


def _certificates(path: Path, data: bytes) -> list[x509.Certificate]:
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise BadValue(f"{path}: holds no certificate (expected PEM, BEGIN CERTIFICATE)")
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise BadValue(f"{path}: malformed certificate (the PEM text cannot be read)") from None


def _check_key(path: Path, data: bytes, certificates: list[x509.Certificate]) -> None:
    if b"PRIVATE KEY-----" not in data:
        raise BadValue(f"{path}: holds no private key (expected the chain and its key in one file)")
    try:
        public = serialization.load_pem_private_key(data, None).public_key()
    except TypeError:
        raise BadValue(f"{path}: the private key has a pass phrase (a router starts unattended: remove it)") from None
    except (ValueError, UnsupportedAlgorithm):
        raise BadValue(f"{path}: malformed private key") from None
    owners = [number for number, one in enumerate(certificates, 1) if one.public_key() == public]
    if not owners:
        raise BadValue(f"{path}: the private key does not belong to the certificate")
    if owners[0] != 1:
        raise BadValue(f"{path}: the private key belongs to certificate {owners[0]} of the file, which must come first")


def _kind(public: CertificatePublicKeyTypes) -> str:
    return next((kind for known, kind in _KINDS if isinstance(public, known)), type(public).__name__)


def _names(leaf: x509.Certificate) -> tuple[frozenset[str], tuple[str, ...]]:
    """The subject alternative DNS names; the common name only where that extension is absent (RFC 2818 3.1)."""
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        written = found.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        common = [str(one.value) for one in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        # Old tools write anything into a common name, so what is no DNS name there is no fault.
        return frozenset(name for name in map(_normal, common) if _DNS_NAME.fullmatch(name)), ()
    strange = tuple(name for name in written if not _DNS_NAME.fullmatch(_normal(name)))
    return frozenset(name for name in map(_normal, written) if _DNS_NAME.fullmatch(name)), strange


def _normal(name: str) -> str:
    return name.lower().removesuffix(".")
