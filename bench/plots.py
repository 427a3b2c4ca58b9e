"""The readings as pictures: who needs how much, what a message's size and the number of sessions do to it."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot
from matplotlib.ticker import FixedLocator, FuncFormatter

from bench import report, targets
from bench.measure import FEW
from bench.report import Taken
from bench.settings import Settings
from bench.setups import MESSAGE, RELAY, TUNNEL, WSS
from bench.workloads import bytes_text

INK, SOFT, FAINT, OURS = "#1b2333", "#566072", "#d9d9d4", "#0f766e"
OTHERS = {
    "nginx": "#3f4757",
    "nginx-tuned": "#8b92a0",
    "haproxy": "#b45309",
    "caddy": "#7c3aed",
    "http-proxy": "#be185d",
    "mitmproxy": "#be185d",
    "autobahn": "#3f4757",
    "wsrouter-policed": "#5eaaa2",
    "wsrouter-compiled": "#0b5a54",
}
STYLE = {
    # The same bytes each time, and text that stays text.
    "svg.hashsalt": "wsrouter",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
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
WORKS = {TUNNEL: "tunnel", RELAY: "relay session (ws)", WSS: "wss ended at the proxy", MESSAGE: "message session"}

MEASURES = (
    ("cpu", "round_trip_us.125", "CPU, 125 B\nround trip", "us"),
    ("cpu", "round_trip_us.65536", "CPU, 64 KB\nround trip", "us"),
    ("cpu", "opened_us", "CPU, opened\nsession", "us"),
    ("idle", "idle_kb", "memory, idle\nsession", "KB"),
    ("latency", "added_p99_us", "added latency,\np99", "us"),
)
"""Workload, metric, what it is called, its unit."""


def draw(folder: Path, caption: str, settings: Settings, taken: Sequence[Taken]) -> list[Path]:
    """Write one SVG for each picture of which there are readings, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    pyplot.rcParams.update(STYLE)
    drawn = []
    for name, figure in (
        ("bench-ratios", _ratios(taken)),
        ("bench-sizes", _sizes(settings, taken)),
        ("bench-sessions", _sessions(settings, taken)),
    ):
        if figure is not None:
            path = folder / f"{name}.svg"
            _save(figure, path, caption)
            drawn.append(path)
    return drawn


def _save(figure: Any, path: Path, caption: str) -> None:
    text = "\n".join(textwrap.wrap(caption.replace("`", ""), round(figure.get_figwidth() * 17)))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=7, color=SOFT)
    figure.savefig(path, facecolor="white", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def _color(contender: str) -> str:
    return OURS if contender == "wsrouter" else OTHERS.get(contender, SOFT)


def _ratios(taken: Sequence[Taken]) -> Any:
    """Dots on a ratio scale, one panel for each measure and kind of work; the whiskers are the rounds."""
    rows = [one for one in MEASURES if any(t.workload == one[0] and one[1] in t.reading for t in taken)]
    works = [work for work in WORKS if any(t.work == work and t.contender != "floor" for t in taken)]
    if not rows or not works:
        return None
    figure, axes = pyplot.subplots(
        len(rows),
        len(works),
        figsize=(3.2 * len(works) + 1, 1.75 * len(rows) + 1.1),
        squeeze=False,
        layout="constrained",
    )
    figure.suptitle(
        "What each proxy needs, as a ratio to nginx (message sessions: to a bare pair of Autobahn's)\n"
        "left is less; the dashed line is what wsrouter is to reach; whiskers show the rounds",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    for at, (workload, metric, title, unit) in enumerate(rows):
        for column, work in enumerate(works):
            axis = axes[at][column]
            if not at:
                axis.set_title(WORKS[work], loc="left", fontsize=10, fontweight="bold")
            if not column:
                axis.set_ylabel(title, rotation=0, ha="right", va="center", color=INK, labelpad=16)
            if not _dots(axis, taken, workload, work, metric, unit):
                axis.set_axis_off()
    return figure


def _dots(axis: Any, taken: Sequence[Taken], workload: str, work: str, metric: str, unit: str) -> bool:
    """One panel; false where there is nothing to show."""
    reference = report.reference_for(work, "nginx")
    base = report.values(taken, workload, work, reference, metric)
    names = [
        name
        for name in dict.fromkeys(one.contender for one in taken if (one.workload, one.work) == (workload, work))
        if report.ratios(report.values(taken, workload, work, name, metric), base)
    ]
    if not names:
        return False
    for row, name in enumerate(reversed(names)):
        own = report.values(taken, workload, work, name, metric)
        paired = report.ratios(own, base)
        middle = statistics.median(paired)
        axis.plot([min(paired), max(paired)], [row, row], color=_color(name), lw=1.6, alpha=0.5)
        axis.plot([middle], [row], "o", color=_color(name), ms=6, zorder=3)
        value = statistics.median(own.values())
        axis.text(
            1.02,
            row,
            f"{value:.{0 if value >= 100 else 1}f} {unit}",
            transform=axis.get_yaxis_transform(),
            va="center",
            color=SOFT,
            fontsize=7.5,
        )
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    steps = (1,) if high > 100 * low else (1, 2, 5)  # or they would touch each other
    axis.xaxis.set_major_locator(FixedLocator([step * 10.0**power for power in range(-4, 4) for step in steps]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _at: f"{value:g}"))
    axis.minorticks_off()
    axis.axvline(1, color=FAINT, lw=1.4)
    for target in targets.TARGETS:
        if (target.workload, target.work, target.metric, target.reference) == (workload, work, metric, reference):
            axis.axvline(target.most, color=OURS, lw=1, ls=(0, (3, 2)))
    axis.set_yticks(range(len(names)), list(reversed(names)))
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.tick_params(length=0)
    axis.set_xlim(min(low, 0.45), max(high, 2.2))
    return True


def _sizes(settings: Settings, taken: Sequence[Taken]) -> Any:
    """CPU by size of message."""
    works = [work for work in WORKS if any(t.work == work and t.workload == "cpu" for t in taken)]
    if len(settings.sizes) < 2 or not works:
        return None
    figure, axes = pyplot.subplots(
        1, len(works), figsize=(3.2 * len(works) + 1, 3.9), squeeze=False, layout="constrained"
    )
    figure.suptitle("CPU time of the proxy for a round trip, by size of the message", x=0.01, ha="left", fontsize=11)
    for axis, work in zip(axes[0], works, strict=True):
        _lines(axis, taken, "cpu", work, "round_trip_us", settings.sizes)
        axis.set_title(WORKS[work], loc="left", fontsize=10, fontweight="bold")
        axis.set_xticks(settings.sizes, [bytes_text(size) for size in settings.sizes])
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _at: f"{value:g}"))
    axes[0][0].set_ylabel("us")
    return figure


def _sessions(settings: Settings, taken: Sequence[Taken]) -> Any:
    """CPU by number of live sessions."""
    shown = {
        "all_busy_us": "round trip, all busy",
        "few_busy_us": f"round trip, {FEW} busy",
        "beside_us": "opened beside them",
    }
    works = [work for work in WORKS if any(t.work == work and t.workload == "flat" and t.reading for t in taken)]
    if len(settings.live) < 2 or not works:
        return None
    figure, axes = pyplot.subplots(
        len(works), len(shown), figsize=(10.6, 3.3 * len(works) + 0.6), squeeze=False, layout="constrained"
    )
    figure.suptitle("CPU time of the proxy, by number of live sessions", x=0.01, ha="left", fontsize=11)
    for row, work in enumerate(works):
        for axis, (metric, title) in zip(axes[row], shown.items(), strict=True):
            _lines(axis, taken, "flat", work, metric, settings.live)
            axis.set_title(f"{work}: {title}", loc="left", fontsize=9, fontweight="bold")
            axis.set_xticks(settings.live, [f"{live:,}" for live in settings.live])
            axis.set_ylim(bottom=0)
        axes[row][0].set_ylabel("us")
    return figure


def _lines(axis: Any, taken: Sequence[Taken], workload: str, work: str, metric: str, steps: Sequence[int]) -> None:
    """A line for each contender through its medians, the lowest and highest shaded."""
    for name in dict.fromkeys(one.contender for one in taken if (one.workload, one.work) == (workload, work)):
        found = {step: list(report.values(taken, workload, work, name, f"{metric}.{step}").values()) for step in steps}
        there = [step for step in steps if found[step]]
        if not there:
            continue
        middles = [statistics.median(found[step]) for step in there]
        axis.fill_between(
            there,
            [min(found[step]) for step in there],
            [max(found[step]) for step in there],
            color=_color(name),
            alpha=0.1,
            lw=0,
        )
        axis.plot(there, middles, "o-", color=_color(name), lw=2.2 if name == "wsrouter" else 1.3, ms=3.5, label=name)
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=7.5, labelcolor=INK)
