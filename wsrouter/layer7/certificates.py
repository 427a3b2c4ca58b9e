"""The certificates of one listener, and the choice among them by the server name that was sniffed.

A context is chosen before the handshake starts, never inside OpenSSL's callback for server names: a switch there loses
the protocol of ALPN and lets a client without a certificate into a context that demands one.

Every name has its own choice: the chains that hold the name (one for each type of key; OpenSSL shows the one that the
client can use) and what is demanded of the client's certificate. That demand belongs to the name: a ``[certificate]``
section holds for every name in its file, even where another file with the same name is the one that is shown.
Names with the same chains and the same demand share one context. A ticket of one context is worth nothing in another,
so that a resumed session never slips past a demand; and none outlives the process or a reload.

ALPN: a client that offers ``http/1.1`` gets it, whatever else it offers. One that offers only others goes on without an
agreed protocol: the standard library answers so where RFC 7301 3.2 would have it refused. The standard library sends
no list of acceptable CAs to the client either.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from wsrouter.backends.tls import load_chain
from wsrouter.config.faults import BadValue
from wsrouter.config.pem import Chain, read_authorities, read_chain
from wsrouter.config.values import Certificate, ClientAuth, Listener
from wsrouter.errors import ConfigError

_TLS_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_VERIFY = {ClientAuth.REQUIRED: ssl.CERT_REQUIRED, ClientAuth.OPTIONAL: ssl.CERT_OPTIONAL}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What one connection gets. ``name`` is that of the certificate's section, or its file: it is for the log.

    ``names`` are the DNS names, wildcards included, that the certificate vouches for (with several, all of them do).
    ``client_auth`` tells whether the client is asked for a certificate, required or not.
    """

    context: ssl.SSLContext
    name: str
    names: frozenset[str]
    client_auth: bool


@dataclass(frozen=True, slots=True)
class _Demand:
    """Who must have signed a client's certificate (PEM), and whether there must be one."""

    authorities: str
    auth: ClientAuth


@dataclass(frozen=True, slots=True)
class _Served:
    choice: Choice
    demand: _Demand | None


class CertificateStore:
    """The choices of one listener. It never changes: a reload makes another; a connection keeps the one it began with.

    ``warnings`` holds one line for each thing that is served but hardly meant: a certificate out of its term, two for
    the same name, one that no name can reach.
    """

    __slots__ = ("_default", "_exact", "_wild", "warnings")

    def __init__(self, served: dict[str, _Served], default: _Served | None, warnings: tuple[str, ...]) -> None:
        self._exact = {name: one for name, one in served.items() if not name.startswith("*.")}
        self._wild = {name[2:]: one for name, one in served.items() if name.startswith("*.")}
        self._default = default
        self.warnings = warnings

    @classmethod
    def load(
        cls, listener: Listener, certificates: Sequence[Certificate], extra: Sequence[Path] = ()
    ) -> CertificateStore:
        """Read every file that the listener can show: its own, the sections' and ``extra`` (demonstration) ones.

        Raises ConfigError with a line for every file that cannot be used and every contradiction between sections. A
        certificate that has expired, or is not valid yet, is a warning: the router must start on a wrong clock too.
        """
        build = _Build(listener, datetime.now(UTC))
        title = f"[listener {listener.name}]"
        for section in certificates:
            build.add(section.file, f"[certificate {section.name}] file", section)
        for path in listener.certificates:
            build.add(path, f"{title} certificates")
        for path in extra:
            build.add(path, f"{title} demo_certificates")
        if listener.default_certificate is not None:
            build.add(listener.default_certificate, f"{title} default_certificate")
        served, default = build.choices()
        if build.faults:
            raise ConfigError(list(dict.fromkeys(build.faults)))
        return cls(served, default, tuple(build.warnings))

    @property
    def demands(self) -> dict[str | None, object]:
        """What is demanded of clients, for each name where anything is; None stands for the default."""
        served: dict[str | None, _Served | None] = {None: self._default}
        served.update(self._exact)
        served.update({f"*.{name}": one for name, one in self._wild.items()})
        return {name: one.demand for name, one in served.items() if one is not None and one.demand is not None}

    def choose(self, sni: str | None) -> Choice | None:
        """The choice for a ClientHello with this server name (lower case, no final dot), None for a hello without one.

        An exact name comes before a wildcard, that before the default certificate; an IP literal is a name that nobody
        has. None: the handshake is refused, with unrecognized_name (112; RFC 6066 3) where a name was given, and
        missing_extension (109; RFC 8446 9.2) where none was.
        """
        served = self._served(sni)
        return None if served is None else served.choice

    def allows_host(self, sni: str | None, host: str) -> bool:
        """Whether a request for ``host`` may come on a connection made with ``sni``; else 421 (RFC 9110 15.5.20).

        ``host`` is the request's host without its port; case and a final dot do not matter. In this order:

        - no, when a connection made for that host would have been asked for a client certificate that this connection
          was not asked for. A host that no certificate names, an IP literal too, counts as the default certificate's;
        - yes, when no certificate names the host, or this connection's own certificate does;
        - yes, when the client gave no name: it said nothing that the host could contradict, and old clients and health
          checkers live so on the default certificate;
        - no: the host is another certificate's name.
        """
        own = self._served(sni)
        if own is None:
            return False
        name = host.lower().removesuffix(".")
        named = self._named(name)
        other = named or self._default
        if other is not None and other.demand is not None and other.demand != own.demand:
            return False
        if named is None or named is own or sni is None:
            return True
        return name in own.choice.names or f"*.{name.partition('.')[2]}" in own.choice.names

    def _served(self, sni: str | None) -> _Served | None:
        found = None if sni is None else self._named(sni)
        return self._default if found is None else found

    def _named(self, name: str) -> _Served | None:
        found = self._exact.get(name)
        if found is None:
            # A wildcard stands for exactly one label (RFC 9525 6.3).
            label, _, rest = name.partition(".")
            found = self._wild.get(rest) if label else None
        return found


def client_subject(ssl_object: ssl.SSLObject) -> str:
    """The subject of the client's verified certificate as RFC 4514 text, "" for none; ask after the handshake.

    Control characters, which a careless CA may have signed, come as RFC 4514's ``\\0A``: the text fits a header line.
    """
    der = ssl_object.getpeercert(binary_form=True)
    if not der:
        return ""
    try:
        subject = x509.load_der_x509_certificate(der).subject.rfc4514_string()
    except ValueError:
        # OpenSSL is more lenient than the reader here; a subject that cannot be told is nobody's.
        return ""
    return _CONTROL.sub(lambda found: f"\\{ord(found[0]):02X}", subject)


@dataclass(frozen=True, slots=True)
class _Held:
    """A chain and the section that it came with."""

    chain: Chain
    section: Certificate | None
    demand: _Demand | None


_Group = tuple[tuple[_Held, ...], _Demand | None]


class _Build:
    """Gathers files, then makes the choices; every fault on the way is kept, none stops the rest."""

    def __init__(self, listener: Listener, now: datetime) -> None:
        self.faults: list[str] = []
        self.warnings: list[str] = []
        self._listener = listener
        self._now = now
        self._held: dict[str, _Held | None] = {}
        self._made: dict[_Group, _Served] = {}

    def add(self, path: Path, where: str, section: Certificate | None = None) -> None:
        """Read one file; a file that came before, also under another name, is read once."""
        real = os.path.realpath(path)
        if real in self._held:
            if section is not None:
                self.faults.append(f"{where}: {path}: another section has this file already")
            return
        self._held[real] = None
        demand = None
        if section is not None and section.client_ca is not None:
            authorities = self._read_authorities(section.client_ca, f"[certificate {section.name}] client_ca")
            demand = _Demand(authorities, section.client_auth or ClientAuth.REQUIRED)
        try:
            chain = read_chain(path)
        except BadValue as error:
            self.faults.append(f"{where}: {error}")
            return
        self._held[real] = _Held(chain, section, demand)
        self._warn_of(chain, where)

    def _read_authorities(self, path: Path, where: str) -> str:
        try:
            return read_authorities(path)
        except BadValue as error:
            self.faults.append(f"{where}: {error}")
            return ""

    def choices(self) -> tuple[dict[str, _Served], _Served | None]:
        """The choice for each name, and for no name."""
        by_name: dict[str, list[_Held]] = {}
        for held in filter(None, self._held.values()):
            for name in held.chain.names:
                by_name.setdefault(name, []).append(held)
        groups = {name: self._group(name, by_name[name]) for name in sorted(by_name)}
        served = {name: self._serve(group) for name, group in groups.items()}
        default = None
        if self._listener.default_certificate is not None:
            chosen = self._held[os.path.realpath(self._listener.default_certificate)]
            if chosen is not None:
                of_its_names = (groups[name] for name in sorted(chosen.chain.names))
                # Where another file won all of its names, it is still the default that was asked for.
                alone = ((chosen,), chosen.demand)
                default = self._serve(next((one for one in of_its_names if chosen in one[0]), alone))
        return served, default

    def _warn_of(self, chain: Chain, where: str) -> None:
        if chain.not_after < self._now:
            self.warnings.append(f"{where}: {chain.path}: expired on {chain.not_after:%Y-%m-%d}")
        if chain.not_before > self._now:
            self.warnings.append(f"{where}: {chain.path}: not valid before {chain.not_before:%Y-%m-%d %H:%M} UTC")
        for name in chain.strange:
            self.warnings.append(f"{where}: {chain.path}: {name!r} is never served (a wildcard is a whole first label)")
        if not chain.names and chain.path != self._listener.default_certificate:
            self.warnings.append(f"{where}: {chain.path}: names no host and is not the default: never served")

    def _group(self, name: str, holders: list[_Held]) -> _Group:
        """The chains that are shown for a name, one for each type of key, and the demand that goes with the name."""
        best: dict[str, _Held] = {}
        for held in holders:
            kind = held.chain.kind
            rival = best.setdefault(kind, held)
            if rival is not held:
                winner, loser = sorted((rival, held), key=self._merit, reverse=True)
                best[kind] = winner
                self.warnings.append(
                    f"two {kind} certificates for {name}: {winner.chain.path} is served, {loser.chain.path} is not"
                )
        demands = list(dict.fromkeys(held.demand for held in holders if held.demand is not None))
        if len(demands) > 1:
            titles = " and ".join(f"[certificate {one.section.name}]" for one in holders if one.section and one.demand)
            self.faults.append(f"{titles}: client_ca and client_auth differ for the same name {name}")
        return tuple(best.values()), demands[0] if demands else None

    def _merit(self, held: _Held) -> tuple[bool, datetime]:
        return held.chain.not_before <= self._now <= held.chain.not_after, held.chain.not_after

    def _serve(self, group: _Group) -> _Served:
        made = self._made.get(group)
        if made is None:
            holders, demand = group
            context = self._context(holders, demand)
            name = next((one.section.name for one in holders if one.section), str(holders[0].chain.path))
            names = frozenset.intersection(*(one.chain.names for one in holders))
            made = self._made[group] = _Served(Choice(context, name, names, demand is not None), demand)
        return made

    def _context(self, holders: tuple[_Held, ...], demand: _Demand | None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _TLS_VERSIONS[self._listener.tls_min]
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
        context.set_alpn_protocols(["http/1.1"])
        for held in holders:
            try:
                load_chain(context, held.chain.path)
            except BadValue as error:
                self.faults.append(str(error))
        if demand is not None:
            context.verify_mode = _VERIFY[demand.auth]
            if demand.authorities:
                context.load_verify_locations(cadata=demand.authorities)
        return context
