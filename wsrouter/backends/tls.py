"""TLS towards backends: the client's context of a pool, and the name that each backend must prove."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsrouter.backends.dial import TlsClient
from wsrouter.config.faults import BadValue
from wsrouter.config.memory import loadable
from wsrouter.config.pem import read_authorities, read_chain
from wsrouter.config.values import Backend, BackendTls, Pool
from wsrouter.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PoolTls:
    """How one pool speaks TLS to each of its backends, and its checks do; both are empty where they do not."""

    backends: Mapping[Backend, TlsClient]
    checks: Mapping[Backend, TlsClient]

    @classmethod
    def read(cls, pool: Pool) -> PoolTls:
        """Read the files that ``pool`` names. Raises ConfigError for those that cannot be used."""
        return cls(
            _clients(pool.tls, pool.backends),
            _clients(None if pool.check is None else pool.check.tls, pool.backends),
        )


def _clients(tls: BackendTls | None, backends: Sequence[Backend]) -> dict[Backend, TlsClient]:
    if tls is None:
        return {}
    context = backend_context(tls)
    return {backend: TlsClient(context, server_name(tls, backend)) for backend in backends}


def backend_context(tls: BackendTls) -> ssl.SSLContext:
    """The context for a pool's backend legs: TLS 1.2 or later, ALPN ``http/1.1``.

    Backends are verified against ``tls.ca`` (else the system's CAs) and their name, unless ``tls.verify`` is off.
    Raises ConfigError with a line for each file that cannot be used: ``tls_ca: PATH: reason``.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if not tls.verify:
        # In this order: the standard library refuses a checked name without a verified certificate.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    faults: list[str] = []
    if tls.ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        try:
            context.load_verify_locations(cadata=read_authorities(tls.ca))
        except BadValue as error:
            faults.append(f"tls_ca: {error}")
    if tls.certificate is not None:
        try:
            read_chain(tls.certificate)
            load_chain(context, tls.certificate)
        except BadValue as error:
            faults.append(f"tls_certificate: {error}")
    if faults:
        raise ConfigError(faults)
    return context


def load_chain(context: ssl.SSLContext, path: Path) -> None:
    """Put a chain and its key, which ``read_chain`` found good, into a context; BadValue when OpenSSL refuses them."""
    try:
        with loadable(path) as name:
            # A file that has changed since it was read must not make OpenSSL ask for a pass phrase.
            context.load_cert_chain(name, password="")
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        raise BadValue(f"{path}: refused by OpenSSL ({reason.replace('_', ' ').lower()})") from None


def server_name(tls: BackendTls, backend: Backend) -> str | None:
    """What to give ``SSLContext.wrap_bio`` as ``server_hostname``: ``tls_name``, else the backend's own host.

    A name is sent (SNI) and verified; an IP literal is verified as an address (RFC 9525 6.4) and not sent (RFC 6066 3).
    None only for a unix socket that need not be verified; ConfigError for one that must be and has no ``tls_name``.
    """
    if tls.name is not None:
        return tls.name
    if backend.unix is not None:
        if tls.verify:
            raise ConfigError([f"tls_name: {backend.label} has no name to verify: set tls_name, or tls_verify = no"])
        return None
    # A scope is this machine's own affair (RFC 4007 6), and a certificate knows no final dot.
    return backend.host.partition("%")[0].removesuffix(".")
