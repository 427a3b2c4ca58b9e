"""Which route takes a request.

The host decides first: an exact name, then wildcards from the longest to the shortest, then routes without
a host. Within one host the path decides: exact, then regexes in file order, then the longest prefix. Where two
routes are equal so far, one whose ``subprotocol`` the client offers comes before one without; file order
settles the rest.

A host whose routes do not match the path does not end the search: the next, less particular host is tried. So a route
without a host means what it says, any host, and a catch-all need not be repeated for each name.

Regexes search the path as they are written: one that should hold from the beginning says ``^``. They run on
Python's ``re``, which can take exponential time on patterns such as ``(a+)+$``: how a regex is written is in the
operator's hands, the path that it meets is in the client's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wsrouter.config.values import PathKind, Route
from wsrouter.policy.networks import access_of

#: Routes with one host and one path; those with a subprotocol first, in file order otherwise.
_Candidates = tuple[Route, ...]


class _Paths:
    """The routes of one host, looked up by path."""

    __slots__ = ("exact", "prefixes", "regexes", "sizes")

    def __init__(self, routes: Sequence[Route]) -> None:
        self.exact = _grouped(routes, PathKind.EXACT)
        self.prefixes = _grouped(routes, PathKind.PREFIX)
        #: One slice and one look-up for each length, however many prefixes there are and however long the path.
        self.sizes = tuple(sorted({len(prefix) for prefix in self.prefixes}, reverse=True))
        compiled = {route.path.text: route.path.regex for route in routes if route.path.regex is not None}
        self.regexes = tuple(
            (compiled[text], candidates) for text, candidates in _grouped(routes, PathKind.REGEX).items()
        )

    def choose(self, path: str, offered: Sequence[str]) -> Route | None:
        if self.exact and (candidates := self.exact.get(path)) and (route := _first(candidates, offered)):
            return route
        for regex, candidates in self.regexes:
            if regex.search(path) and (route := _first(candidates, offered)):
                return route
        length = len(path)
        for size in self.sizes:
            if (
                size <= length
                and (size == length or path[size] == "/" or path[size - 1] == "/")
                and (candidates := self.prefixes.get(path[:size]))
                and (route := _first(candidates, offered))
            ):
                return route
        return None


class _Hosts:
    """The routes of one listener, looked up by host."""

    __slots__ = ("anywhere", "exact", "sizes", "wildcards")

    def __init__(self, routes: Sequence[Route]) -> None:
        by_host: dict[str, list[Route]] = {}
        for route in routes:
            if route.host is not None:
                by_host.setdefault(route.host, []).append(route)
        self.anywhere = _Paths([route for route in routes if route.host is None])
        self.exact = {host: _Paths(group) for host, group in by_host.items() if not host.startswith("*.")}
        self.wildcards = {host[1:]: _Paths(group) for host, group in by_host.items() if host.startswith("*.")}
        self.sizes = tuple(sorted({len(suffix) for suffix in self.wildcards}, reverse=True))

    def groups(self, host: str) -> Iterable[_Paths]:
        """Yield the groups that this host belongs to, the most particular first."""
        if paths := self.exact.get(host):
            yield paths
        for size in self.sizes:
            if size < len(host) and (paths := self.wildcards.get(host[-size:])):
                yield paths
        yield self.anywhere


class RouteTable:
    """The routes of a configuration, looked up by listener and request."""

    __slots__ = ("_access", "_elsewhere", "_listeners", "guarded")

    def __init__(self, routes: Sequence[Route]) -> None:
        self._access = access_of(routes)
        #: Whether ``admits`` could turn anybody away.
        self.guarded = bool(self._access)
        named = {listener for route in routes for listener in route.listeners}
        self._listeners = {
            listener: _Hosts([r for r in routes if not r.listeners or listener in r.listeners]) for listener in named
        }
        self._elsewhere = _Hosts([route for route in routes if not route.listeners])

    def choose(self, listener: str, host: str, path: str, subprotocols: Sequence[str] = ()) -> Route | None:
        """Return the route of a request, or None.

        ``host`` is what ``host_name`` returns. ``path`` is the normalised path without its query. ``subprotocols`` are
        the names that the client offers, compared as they are (RFC 6455 section 11.3.4).
        """
        hosts = self._listeners.get(listener, self._elsewhere)
        if not hosts.exact and not hosts.sizes:
            return hosts.anywhere.choose(path, subprotocols)
        for paths in hosts.groups(host):
            if route := paths.choose(path, subprotocols):
                return route
        return None

    def admits(self, route: Route, ip: str) -> bool:
        """Whether ``route`` serves the client with this address, by its ``allow`` and ``deny``."""
        access = self._access.get(route.name)
        return access is None or access.admits(ip)


def host_name(authority: str) -> str:
    """Return the host of an authority (RFC 3986 section 3.2) as routes compare it.

    Lower case, without port and final dot; an IPv6 literal comes without its brackets: ``[::1]:80`` is ``::1``. The
    authority is one that was found well formed before.
    """
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.partition(":")[0].lower().removesuffix(".")


def strip(route: Route, path: str) -> str:
    """Return ``path`` as the backend is to see it: without the prefix of a route with ``strip_prefix``.

    ``path`` is one that this route was chosen for. The result begins with ``/``. Routes with another kind of path have
    no prefix to take away.
    """
    if not route.strip_prefix or route.path.kind is not PathKind.PREFIX:
        return path
    return path[len(route.path.text.removesuffix("/")) :] or "/"


def _grouped(routes: Sequence[Route], kind: PathKind) -> dict[str, _Candidates]:
    """Map each path text of this kind, in file order, to its routes."""
    groups: dict[str, list[Route]] = {}
    for route in routes:
        if route.path.kind is kind:
            groups.setdefault(route.path.text, []).append(route)
    return {text: tuple(sorted(group, key=lambda r: r.subprotocol is None)) for text, group in groups.items()}


def _first(candidates: _Candidates, offered: Sequence[str]) -> Route | None:
    for route in candidates:
        if route.subprotocol is None or route.subprotocol in offered:
            return route
    return None
