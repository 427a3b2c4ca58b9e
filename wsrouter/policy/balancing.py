"""Which backend of a pool takes the next session."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from wsrouter.config.values import Backend


class Balancer(Protocol):
    """Chooses among the backends of one pool."""

    def pick(self, excluded: Collection[Backend] = (), live: Mapping[Backend, int] | None = None) -> Backend | None:
        """Return the backend for one more session, or None when none can take it.

        ``excluded`` are those that must not be chosen, being down or already tried for this session. ``live`` counts
        the sessions of each backend, absent ones having none; a backend with ``max_sessions`` of them is full.
        Backups are chosen only while no other backend can be. A backend of weight 0 is never chosen.
        """
        ...


class RoundRobin:
    """Smooth weighted round robin, as nginx does it: heavy backends get their turns spread out, not in a row.

    Each pick gives every backend that can be chosen its weight in credit; the one with the most is chosen and pays the
    sum of what was given. Weights 5, 1, 1 make a a b a c a a. With equal weights that is a plain rotation, which is
    done as one, without credits.
    """

    __slots__ = ("_backups", "_primaries")

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._primaries = _turns([backend for backend in backends if not backend.backup])
        self._backups = _turns([backend for backend in backends if backend.backup])

    def pick(self, excluded: Collection[Backend] = (), live: Mapping[Backend, int] | None = None) -> Backend | None:
        """Return the backend whose turn it is; see ``Balancer``."""
        return self._primaries.next(excluded, live) or self._backups.next(excluded, live)


class _Rotation:
    """Backends of one weight, each in turn."""

    __slots__ = ("_at", "_backends")

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._backends = tuple(backends)
        self._at = 0

    def next(self, excluded: Collection[Backend], live: Mapping[Backend, int] | None) -> Backend | None:
        backends = self._backends
        at = self._at
        for _ in backends:
            backend = backends[at]
            at += 1
            if at == len(backends):
                at = 0
            if not (excluded and backend in excluded) and not (live and _is_full(backend, live)):
                self._at = at
                return backend
        return None


class _Credits:
    """Backends of different weights."""

    __slots__ = ("_backends", "_credits")

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._backends = tuple(backends)
        self._credits = [0] * len(backends)

    def next(self, excluded: Collection[Backend], live: Mapping[Backend, int] | None) -> Backend | None:
        credit = self._credits
        total = 0
        best = -1
        for at, backend in enumerate(self._backends):
            if (excluded and backend in excluded) or (live and _is_full(backend, live)):
                continue
            total += backend.weight
            credit[at] += backend.weight
            if best < 0 or credit[at] > credit[best]:
                best = at
        if best < 0:
            return None
        credit[best] -= total
        return self._backends[best]


def _turns(backends: Sequence[Backend]) -> _Rotation | _Credits:
    used = [backend for backend in backends if backend.weight > 0]
    return _Credits(used) if len({backend.weight for backend in used}) > 1 else _Rotation(used)


def _is_full(backend: Backend, live: Mapping[Backend, int]) -> bool:
    # The limit first: most backends have none, and hashing a backend costs more than the rest of the pick.
    return backend.max_sessions is not None and live.get(backend, 0) >= backend.max_sessions
