"""Memory that all workers have in common, for limits that hold for all of them together.

It is a table of counts. An entry belongs to a name or to a client, has one column for each worker, and one time, for
rates. A worker writes its own column only, so what a worker had that dies stands in its column, which the supervisor
then clears. Entries are found by a keyed hash of 64 bits in sets of a few, so nobody can make others share an entry;
where a set is full, rates that have the least to say are forgotten first, and a client that finds no place is not
counted.

What reads and writes an entry of a client holds a lock on its set, which the kernel takes back when a process dies: so
these limits are exact. Gauges are read without one: when several workers take the last place in the same instant, a
limit may be exceeded, by as many as there are other workers.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import mmap
import os
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final

from twisted.logger import Logger

from wsrouter.config.values import Rate
from wsrouter.policy.limits import SLACK

#: A header (a secret, the number of columns and of sets, and of workers that serve), then sets of entries.
_HEADER: Final = struct.Struct("16sIII")
_SERVING: Final = 24 // 4
_BEGIN: Final = 64
SETS: Final = 8192
ENTRIES: Final = 8
#: The times of entries that are never used again for another: gauges.
_FOR_GOOD: Final = math.inf

_log = Logger()


class SharedMemory:
    """The table in ``descriptor``, which it closes, for the worker that has ``column``."""

    def __init__(self, descriptor: int, column: int) -> None:
        self.descriptor = descriptor
        self.column = column
        self._secret, self.columns, self._sets, _ = _HEADER.unpack(os.pread(descriptor, _HEADER.size, 0))
        if not 0 <= column < self.columns:
            raise ValueError(f"there is no column {column}")
        self._map = mmap.mmap(descriptor, _size(self.columns, self._sets))
        #: The same memory as numbers of 8 bytes, of 8 as floats, and of 4.
        self._bytes = memoryview(self._map)
        self._keys = self._bytes.cast("Q")
        self._times = self._bytes.cast("d")
        self._counts = self._bytes.cast("I")
        self._entry = _entry_size(self.columns)

    @classmethod
    def create(cls, columns: int, sets: int = SETS) -> SharedMemory:
        """New memory, for so many workers at a time."""
        descriptor = os.memfd_create("limits", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _size(columns, sets))
        os.pwrite(descriptor, _HEADER.pack(os.urandom(16), columns, sets, 1), 0)
        return cls(descriptor, 0)

    def close(self) -> None:
        """It is not used any more in this process, nor is what was made of it."""
        for view in (self._keys, self._times, self._counts, self._bytes):
            view.release()
        self._map.close()
        os.close(self.descriptor)

    def serve(self, workers: int) -> None:
        """So many workers take clients."""
        self._counts[_SERVING] = max(1, workers)

    def clear(self, column: int) -> None:
        """The worker of ``column`` has ended: what it had lives no more."""
        counts, width = self._counts, self._entry // 4
        first = _BEGIN // 4 + 4 + column
        for at in range(first, first + self._sets * ENTRIES * width, width):
            if counts[at]:
                counts[at] = 0

    def keep_gauges(self, names: Collection[str]) -> None:
        """Forget all gauges but these, and but those that count something."""
        keys = {self._gauge_key(name) for name in names}
        for entry in range(_BEGIN, _size(self.columns, self._sets), self._entry):
            if self._times[entry // 8 + 1] == _FOR_GOOD and self._keys[entry // 8] not in keys:
                with self._locked(self._keys[entry // 8]):
                    if not any(self._counts_of(entry)):
                        self._keys[entry // 8] = 0
                        self._times[entry // 8 + 1] = 0.0

    # What the router uses.

    def gauge(self, name: str) -> SharedGauge | None:
        """The gauge of this name; None where there is no room for one more."""
        key = self._gauge_key(name)
        with self._locked(key):
            entry = self._find(key) or self._take(key)
            if entry is None:
                _log.warn("there is no room for {name}: its limit holds for each worker", name=name)
                return None
            self._times[entry // 8 + 1] = _FOR_GOOD
        return SharedGauge(self._counts, entry // 4 + 4, self.columns, self.column)

    def counter(self, name: str) -> SharedCounter:
        """The counter of this name."""
        return SharedCounter(self, name)

    def limiter(self, name: str, rate: Rate) -> SharedLimiter:
        """The limiter of this name."""
        return SharedLimiter(self, name, rate)

    # What counters and limiters use.

    def _gauge_key(self, name: str) -> int:
        return self._hash(f"gauge {name}".encode())

    def _hash(self, data: bytes) -> int:
        digest = hashlib.blake2b(data, digest_size=8, key=self._secret).digest()
        return int.from_bytes(digest, "little") or 1  # 0 is a free entry

    @contextmanager
    def _locked(self, key: int) -> Iterator[None]:
        """Nobody else looks at the set of ``key``."""
        place = key % self._sets
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX, 1, place)
        try:
            yield
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, place)

    def _set(self, key: int) -> range:
        first = _BEGIN + (key % self._sets) * ENTRIES * self._entry
        return range(first, first + ENTRIES * self._entry, self._entry)

    def _find(self, key: int) -> int | None:
        """Where the entry of ``key`` begins."""
        keys = self._keys
        for entry in self._set(key):
            if keys[entry // 8] == key:
                return entry
        return None

    def _take(self, key: int) -> int | None:
        """An entry for ``key``, which has none: empty, or the one that is missed least; None: all are needed."""
        best, least = None, _FOR_GOOD
        for entry in self._set(key):
            time = self._times[entry // 8 + 1] if self._keys[entry // 8] else 0.0
            if time < least and not any(self._counts_of(entry)):
                best, least = entry, time
        if best is not None:
            self._keys[best // 8] = key
            self._times[best // 8 + 1] = 0.0
        return best

    def _counts_of(self, entry: int) -> memoryview:
        first = entry // 4 + 4
        return self._counts[first : first + self.columns]


class SharedGauge:
    """How many of one thing live in each worker; see ``policy.sharing.Gauge``."""

    __slots__ = ("_columns", "_counts", "_first", "_own")

    def __init__(self, counts: memoryview, first: int, columns: int, column: int) -> None:
        self._counts = counts
        self._first = first
        self._columns = columns
        self._own = first + column

    def add(self, count: int) -> None:
        """So many more live in this process."""
        self._counts[self._own] = max(0, self._counts[self._own] + count)

    def others(self) -> int:
        """How many live in the other processes."""
        return self._all() - int(self._counts[self._own])

    def fair(self) -> float:
        """How many would live in each process that serves if all had the same."""
        return self._all() / int(self._counts[_SERVING])

    def _all(self) -> int:
        return sum(self._counts[self._first : self._first + self._columns])


class SharedCounter:
    """How many connections each client has, in all workers; see ``policy.sharing.Counter``."""

    def __init__(self, memory: SharedMemory, name: str) -> None:
        self.limit: int | None = None
        self._memory = memory
        self._name = f"counter {name} ".encode()

    def enter(self, key: int) -> bool:
        """Count one more connection of ``key``, or refuse it: False, and nothing is counted."""
        memory = self._memory
        hashed = self._hash(key)
        with memory._locked(hashed):
            entry = memory._find(hashed) or memory._take(hashed)
            if entry is None:
                return True
            if self.limit is not None and sum(memory._counts_of(entry)) >= self.limit:
                return False
            memory._counts[entry // 4 + 4 + memory.column] += 1
        return True

    def leave(self, key: int) -> None:
        """A connection that ``enter`` let in has ended."""
        memory = self._memory
        hashed = self._hash(key)
        with memory._locked(hashed):
            entry = memory._find(hashed)
            if entry is not None:
                at = entry // 4 + 4 + memory.column
                memory._counts[at] = max(0, memory._counts[at] - 1)

    def _hash(self, key: int) -> int:
        return self._memory._hash(self._name + b"%d" % key)


class SharedLimiter:
    """A token bucket for each client, for all workers; see ``policy.limits.RateLimiter``, whose algorithm it is."""

    def __init__(self, memory: SharedMemory, name: str, rate: Rate) -> None:
        self._memory = memory
        self._name = f"limiter {name} ".encode()
        self.reconfigure(rate)

    def reconfigure(self, rate: Rate) -> None:
        """Hold this rate from now on; debts stay as they are."""
        self.rate = rate
        self._interval = 1.0 / rate.per_second
        self._full = rate.burst * self._interval
        self._room = self._full - self._interval + SLACK

    def take(self, key: int, now: float) -> float:
        """Take one token of ``key``: 0.0 when there is one, else the seconds until there will be."""
        memory = self._memory
        hashed = memory._hash(self._name + b"%d" % key)
        with memory._locked(hashed):
            entry = memory._find(hashed) or memory._take(hashed)
            if entry is None:
                return 0.0
            times, at = memory._times, entry // 8 + 1
            debt = min(max(times[at] - now, 0.0), self._full)
            taken = debt <= self._room
            times[at] = now + debt + (self._interval if taken else 0.0)
        return 0.0 if taken else debt - self._room + SLACK


def _entry_size(columns: int) -> int:
    """A key, a time, and the columns, in whole 8 bytes."""
    return 16 + (4 * columns + 7) // 8 * 8


def _size(columns: int, sets: int) -> int:
    return _BEGIN + sets * ENTRIES * _entry_size(columns)
