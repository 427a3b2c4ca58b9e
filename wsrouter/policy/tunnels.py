"""Which layer-4 rule takes a connection."""

from __future__ import annotations

from collections.abc import Sequence

from wsrouter.config.values import Match, Tunnel
from wsrouter.policy.networks import access_of

_KINDS = (Match.TLS, Match.HTTP, Match.OPAQUE, Match.SILENCE)


class _Rule:
    """A tunnel with its names in the shape in which they are looked up."""

    __slots__ = ("alpn", "names", "suffixes", "tunnel")

    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        tls = tunnel.match is Match.TLS
        self.names = frozenset(name for name in tunnel.sni if tls and not name.startswith("*."))
        self.suffixes = tuple(name[1:] for name in tunnel.sni if tls and name.startswith("*."))
        self.alpn = frozenset(tunnel.alpn if tls else ())

    def takes(self, sni: str | None, alpn: Sequence[str]) -> bool:
        if (self.names or self.suffixes) and (
            sni is None or (sni not in self.names and not sni.endswith(self.suffixes))
        ):
            return False
        return not self.alpn or not self.alpn.isdisjoint(alpn)


class TunnelTable:
    """The tunnel rules of a configuration, looked up by listener and by what sniffing found.

    Rules are tried in file order. ``Match.ANY`` takes every kind; ``Match.OPAQUE`` takes unknown bytes but not
    silence, which needs ``Match.SILENCE`` or ``Match.ANY``: a rule for a protocol whose server speaks first is
    written on purpose. Only a ``Match.TLS`` rule looks at names and protocols; where it lists both, both must match.
    """

    __slots__ = ("_access", "_elsewhere", "_listeners", "empty")

    def __init__(self, tunnels: Sequence[Tunnel]) -> None:
        #: Whether there are no rules at all.
        self.empty = not tunnels
        self._access = access_of(tunnels)
        named = {listener for tunnel in tunnels for listener in tunnel.listeners}
        self._listeners = {
            listener: _by_kind([t for t in tunnels if not t.listeners or listener in t.listeners]) for listener in named
        }
        self._elsewhere = _by_kind([tunnel for tunnel in tunnels if not tunnel.listeners])

    def choose(self, listener: str, kind: Match, sni: str | None = None, alpn: Sequence[str] = ()) -> Tunnel | None:
        """Return the first rule that takes a connection of ``kind``, or None.

        ``kind`` is what sniffing found, so never ``Match.ANY``. ``sni`` is in lower case without a final dot, None
        where the client sent none; a rule with names never takes None. A rule with protocols takes a client
        that offers any of them.
        """
        for rule in self._listeners.get(listener, self._elsewhere)[kind]:
            if rule.takes(sni, alpn):
                return rule.tunnel
        return None

    def admits(self, tunnel: Tunnel, ip: str) -> bool:
        """Whether ``tunnel`` serves the client with this address, by its ``allow`` and ``deny``.

        Who is not served is closed; it does not go on to the next rule.
        """
        access = self._access.get(tunnel.name)
        return access is None or access.admits(ip)


def _by_kind(tunnels: list[Tunnel]) -> dict[Match, tuple[_Rule, ...]]:
    rules = [_Rule(tunnel) for tunnel in tunnels]
    return {kind: tuple(rule for rule in rules if rule.tunnel.match in (kind, Match.ANY)) for kind in _KINDS}
