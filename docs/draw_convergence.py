"""Draws docs/convergence.svg: what happens when a third backend joins two loaded ones.

The router's own balancers choose, for made-up sessions; nothing is sent. Arrivals are steady, sessions end at random
after a minute on average, so that a thousand live at a time. Each balancer meets the same lives.

    pip install -e '.[docs]' && python docs/draw_convergence.py
"""

from __future__ import annotations

import heapq
import sys
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from wsrouter.config.values import Backend, Balance, Pool
from wsrouter.policy.balancing import balancer_for
from wsrouter.policy.members import Member

#: Sessions that each of the two loaded backends has at first.
LOADED = 500
#: How long a session lives on average, in seconds.
LIFE = 60.0
#: The third backend joins at 0; the picture begins and ends here.
BEGIN, END = -30.0, 240.0
#: How often the counts are noted, in seconds, and over how long new sessions are averaged.
STEP = 2.0
WINDOW = 6.0

INK, SOFT, FAINT, LOADED_COLOR, JOINED = "#1b2333", "#566072", "#d9d9d4", "#8b92a0", "#0f766e"
STYLE = {
    # The same bytes each time, and text that stays text.
    "svg.hashsalt": "wsrouter",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
}

RUNS = {
    "least-sessions": Pool("app", (), balance=Balance.LEAST_SESSIONS),
    "least-sessions, slow_start = 60s": Pool("app", (), balance=Balance.LEAST_SESSIONS, slow_start=60.0),
    "round-robin": Pool("app", (), balance=Balance.ROUND_ROBIN),
}


@dataclass
class Course:
    """What was seen at each time: the live sessions of each backend, the part of new ones that the third got."""

    times: list[float] = field(default_factory=list)
    live: tuple[list[int], list[int], list[int]] = field(default_factory=lambda: ([], [], []))
    part: list[float] = field(default_factory=list)

    def at(self, time: float) -> tuple[int, ...]:
        """The live sessions at ``time`` or shortly before."""
        found = max(index for index, noted in enumerate(self.times) if noted <= time)
        return tuple(counts[found] for counts in self.live)

    def level(self) -> float:
        """When the third first had 95 % of what the others have on average."""
        return next(
            time
            for time, one, two, three in zip(self.times, *self.live, strict=True)
            if time > 0 and three >= 0.95 * (one + two) / 2
        )


def simulate(pool: Pool, seed: int = 1) -> Course:
    """Let the balancer of ``pool`` place sessions on two loaded backends and a third that joins them at 0."""
    random = Random(seed)
    members = [Member(Backend(name, 80)) for name in ("one", "two", "three")]
    third = members[2]
    third.available = False
    balancer = balancer_for(pool, members, Random(seed))
    # (when, who) of each session's end. A life that has no memory has as much before it in the middle as at birth.
    ends: list[tuple[float, int]] = []
    for at in (0, 1):
        members[at].live = LOADED
        ends += [(BEGIN + random.expovariate(1 / LIFE), at) for _ in range(LOADED)]
    heapq.heapify(ends)

    course = Course()
    recent: list[tuple[float, bool]] = []
    arrivals = 2 * LOADED / LIFE
    for count in range(round((END - BEGIN) * arrivals) + 1):
        now = BEGIN + count / arrivals
        while ends[0][0] <= now:
            members[heapq.heappop(ends)[1]].live -= 1
        if now >= 0.0 and not third.available:
            third.available, third.since = True, now
        member = balancer.pick(now)
        assert member is not None
        member.live += 1
        heapq.heappush(ends, (now + random.expovariate(1 / LIFE), members.index(member)))
        recent.append((now, member is third))
        due = BEGIN + len(course.times) * STEP
        if now >= due - 1e-9:
            recent = [one for one in recent if one[0] > now - WINDOW]
            course.times.append(due)
            course.part.append(sum(chosen for _, chosen in recent) / len(recent))
            for counts, one in zip(course.live, members, strict=True):
                counts.append(one.live)
    return course


def draw(target: Path) -> None:
    """Write the picture; its kind follows from the name."""
    import matplotlib

    matplotlib.use("svg" if target.suffix == ".svg" else "agg")
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter

    pyplot.rcParams.update(STYLE)
    figure, axes = pyplot.subplots(
        2, len(RUNS), figsize=(12, 6.2), sharex=True, sharey="row", height_ratios=(2.1, 1), layout="constrained"
    )
    figure.suptitle(
        "A third backend joins two loaded ones: how fast sessions level out, and how hard the newcomer is hit",
        x=0.01, ha="left", fontsize=14, fontweight="bold",
    )  # fmt: skip
    for column, (name, pool) in enumerate(RUNS.items()):
        course = simulate(pool)
        above, below = axes[0][column], axes[1][column]
        above.set_title(name, loc="left", fontsize=11.5, fontweight="bold")
        if pool.slow_start:
            for axis in (above, below):
                axis.axvspan(0, pool.slow_start, color=JOINED, alpha=0.07, lw=0)
        for counts, color, width in zip(course.live, (LOADED_COLOR, SOFT, JOINED), (1.4, 1.4, 2.4), strict=True):
            above.plot(course.times, counts, color=color, lw=width)
        below.plot(course.times, course.part, color=JOINED, lw=2.0)
        even = course.level()
        above.axvline(even, color=INK, lw=0.9, ls=(0, (2, 3)))
        left = even > END / 2
        above.text(
            even + (-5 if left else 5), 40, f"level after {even:.0f} s", color=INK, ha="right" if left else "left"
        )
        below.axhline(1 / 3, color=SOFT, lw=0.9, ls=(0, (2, 3)))
        below.set_xlabel("seconds since the third joined")
        below.text(70, 0.75, f"at most {max(course.part):.0%}", color=JOINED)
    axes[0][0].text(34, 450, "the two loaded", color=SOFT)
    axes[0][0].text(34, 225, "the third", color=JOINED, fontweight="bold")
    axes[0][1].text(4, 575, "slow start", color=JOINED)
    axes[1][2].text(END, 0.29, "an even share", color=SOFT, ha="right", va="top")
    axes[0][0].set_ylabel("live sessions")
    axes[1][0].set_ylabel("new sessions that\nthe third gets")
    axes[0][0].set_ylim(0, 620)
    axes[0][0].set_xlim(BEGIN, END)
    axes[0][0].set_xticks(range(0, int(END) + 1, 60))
    axes[1][0].set_ylim(0, 1.18)
    axes[1][0].set_yticks([0, 0.5, 1.0])
    axes[1][0].yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.savefig(
        target,
        dpi=110,
        facecolor="white",
        metadata={"Date": None, "Creator": None} if target.suffix == ".svg" else None,
    )


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("convergence.svg"))
