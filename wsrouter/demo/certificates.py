"""Throwaway certificates for demonstration names.

One CA signs one certificate for each name, all at once, and its private key is then forgotten: whoever
trusts the CA trusts these few certificates for at most 30 days and nothing that could be signed later. So a
name that is not there yet means a new CA with new certificates. As trust has to be given again after
that (``curl --cacert``, a browser's import), the files are kept in a cache folder and used again.
"""

from __future__ import annotations

import atexit
import fcntl
import ipaddress
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = timedelta(days=30)
#: Certificates are made anew when less than this is left of their life.
RENEW_BEFORE = timedelta(days=7)
#: Certificates start this much before they are made, for clients whose clock is a little slow.
BACKDATE = timedelta(hours=1)

_ORGANISATION = "wsrouter demonstration"
_NAME = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_LOOPBACK = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))


@dataclass(frozen=True, slots=True)
class DemoCertificates:
    """The certificate files of one run. Make it with :meth:`load`."""

    folder: Path
    names: frozenset[str]
    #: The folder is private to this run and goes with it.
    temporary: bool

    @classmethod
    def load(cls, names: Sequence[str], folder: Path | None = None, *, now: datetime) -> DemoCertificates:
        """Certificates for ``names`` (host names, lower case, ``*.`` allowed in front), made where they are missing.

        ``folder`` is the cache; None stands for ``wsrouter/demo`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. What lies
        there is used while it holds every name and has a week to live at ``now`` (an aware time). A folder that
        cannot be written is replaced by a temporary one. Raises ValueError for a name that is no host name.
        """
        wanted = frozenset(names)
        for name in sorted(wanted):
            if len(name) > 253 or not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a host name for which a certificate can be made")
        try:
            kept = folder if folder is not None else _cache_folder()
            with _locked(kept):
                if not _usable(kept, wanted, now):
                    _write_all(kept, _issue(sorted(wanted), now))
            return cls(kept, wanted, temporary=False)
        except (OSError, RuntimeError):  # no home, a read-only or foreign folder, a full disk
            private = Path(tempfile.mkdtemp(prefix="wsrouter-demo-"))
            atexit.register(_remove, private)
            _write_all(private, _issue(sorted(wanted), now))
            return cls(private, wanted, temporary=True)

    @property
    def ca(self) -> Path:
        """The CA's certificate (PEM), for clients to trust."""
        return self.folder / "ca.pem"

    def file_for(self, name: str) -> Path:
        """The PEM file with the private key and the certificate of ``name``; KeyError for a name not asked for."""
        if name not in self.names:
            raise KeyError(name)
        return self.folder / _file_name(name)

    def cleanup(self) -> None:
        """Remove a temporary folder; a cache folder stays. May be called again; happens by itself at exit."""
        if self.temporary:
            _remove(self.folder)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _cache_folder() -> Path:
    """Where caches belong (XDG Base Directory Specification); RuntimeError when the user has no home."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the specification says to ignore it then
        base = Path.home() / ".cache"
    return base / "wsrouter" / "demo"


def _file_name(name: str) -> str:
    return f"server-{name.replace('*', '_')}.pem"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other routers out of ``folder``, which is made if need be, while two could mix their files."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _usable(folder: Path, names: frozenset[str], now: datetime) -> bool:
    """Whether ``folder`` holds a CA and, signed by it, a private file for every name, with enough life left."""
    try:
        ca = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        for name in names:
            file = folder / _file_name(name)
            if file.stat().st_mode & 0o077:
                return False
            pem = file.read_bytes()
            certificate = x509.load_pem_x509_certificate(pem)
            key = serialization.load_pem_private_key(pem, password=None)
            alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            certificate.verify_directly_issued_by(ca)
            if name not in alternatives.get_values_for_type(x509.DNSName):
                return False
            if key.public_key() != certificate.public_key() or not _lives(certificate, now):
                return False
    except (FileNotFoundError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return _lives(ca, now)


def _lives(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc - RENEW_BEFORE


def _write_all(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=folder)  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.replace(temporary, folder / name)
        except OSError:
            os.unlink(temporary)
            raise


def _issue(names: Sequence[str], now: datetime) -> dict[str, bytes]:
    """File name -> PEM of a new CA and of one certificate, with its key, for each name."""
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _make_ca(ca_key, names, now)
    files = {"ca.pem": ca.public_bytes(serialization.Encoding.PEM)}
    for name in names:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _make_leaf(ca, ca_key, key.public_key(), name, now)
        files[_file_name(name)] = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ) + certificate.public_bytes(serialization.Encoding.PEM)
    return files


def _make_ca(key: ec.EllipticCurvePrivateKey, names: Sequence[str], now: datetime) -> x509.Certificate:
    serial = x509.random_serial_number()
    # A name of its own for each CA: a browser that still has the last one imported must not mistake it for this one.
    subject = _subject(f"wsrouter demonstration CA {serial & 0xFFFFFFFF:08x}")
    permitted: list[x509.GeneralName] = [x509.DNSName(name.removeprefix("*.")) for name in names]
    permitted += [x509.IPAddress(ipaddress.ip_network(address)) for address in _LOOPBACK]
    return (
        x509.CertificateBuilder(subject_name=subject, issuer_name=subject, public_key=key.public_key())
        .serial_number(serial)
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.NameConstraints(permitted, None), critical=True)  # RFC 5280 4.2.1.10
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _make_leaf(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePublicKey,
    name: str,
    now: datetime,
) -> x509.Certificate:
    alternatives: list[x509.GeneralName] = [x509.DNSName(name)]
    if name == "localhost":
        alternatives += [x509.IPAddress(address) for address in _LOOPBACK]
    ca_identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        x509.CertificateBuilder(subject_name=_subject(name[:64]), issuer_name=ca.subject, public_key=key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_identifier), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _subject(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, _ORGANISATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
