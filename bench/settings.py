"""What every reading of a run has in common."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

from bench.setups import Tools


@dataclass(frozen=True, slots=True)
class Settings:
    """Times in seconds, sizes in bytes, rates per second; ``live``, ``idle`` and the rest are counts of sessions."""

    tools: Tools
    proxy_cpu: int
    load_cpu: int
    seconds: float = 0.7
    warm: float = 0.2
    connections: int = 100
    opening: int = 32
    sizes: tuple[int, ...] = (125, 16_384, 65_536, 1_048_576)
    idle: tuple[int, ...] = (1000, 9000)
    rate: float = 1000.0
    rate_seconds: float = 2.0
    crowd: int = 5000
    live: tuple[int, ...] = (10, 100, 1000, 9000)
    storm: int = 5000
    storm_seconds: float = 1.0
    chatty: int = 200
    transfer: int = 4_000_000_000
    slow: int = 100
    slow_bytes: int = 1_000_000_000
    slow_rate: int = 1000
    slow_seconds: float = 10.0
    patience: float = 2.0

    def most_sessions(self) -> int:
        """The most that live at once: of a storm, the old ones may still be there when the new ones come."""
        return max(
            self.connections,
            self.opening,
            self.crowd,
            2 * self.storm,
            self.chatty + self.slow + 1,
            *self.idle,
            *self.live,
        )

    def within(self, descriptors: int) -> Self:
        """The same, with no more sessions than processes with so many descriptors can have.

        Each process has two for a session; in a storm the generator has a third, of an old one that is still ending.
        """
        most = descriptors // 2 - 200
        return dataclasses.replace(
            self,
            crowd=min(self.crowd, most),
            storm=min(self.storm, (descriptors - 200) // 3),
            idle=tuple(sorted({min(count, most) for count in self.idle})),
            live=tuple(sorted({min(count, most) for count in self.live})),
        )
