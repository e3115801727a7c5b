"""Strong error (above) and excess of the distribution (below) against evaluations, for all presets.

Above: the median strong error under VP of the deterministic samplers. Below: the larger of sliced
W2 relative to its 95 % quantile and |NLL − H| relative to its limit, as in
samplers_distribution.md; the dotted line is 1. Gray: the best of the other libraries at each number
of evaluations, below only down to an excess of 1.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from sampling import distribution
from sampling.lineup import SDES, deterministic
from sampling.methods import Method
from sampling.peers import PEERS
from sampling.problems import PROBLEMS
from sampling.strong import error, make_reference

EVALUATIONS = (4, 5, 6, 8, 10, 12, 15, 20, 30, 50, 100)
NAME = "samplers.png"
COLORS = (
    "#c1272d", "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#7b3294", "#8c564b", "#d55e00",
    "#5b7f95", "#b5699f", "#708238", "#404040", "#a0a000",
)  # fmt: skip

Curve = list[tuple[float, float]]


def strong_curves(methods: tuple[Method, ...], quick: bool) -> dict[str, dict[str, Curve]]:
    """Return (evaluations, error) by problem and method."""
    curves: dict[str, dict[str, Curve]] = {}
    for problem in PROBLEMS:
        reference = make_reference(problem, 16 if quick else 64)
        numbers = EVALUATIONS[:4] if quick else EVALUATIONS
        curves[problem.name] = {
            method.name: [error(method, reference, count) for count in numbers]
            for method in methods
        }
    return curves


def distribution_curves(out: Path) -> dict[str, dict[str, Curve]]:
    """Return (evaluations, excess) by problem and method, from the file of the distributions."""
    raw = json.loads((out / distribution.RAW).read_text(encoding="utf-8"))
    return {
        problem: {
            name: [(n, excess) for n, excess, _ in points] for name, points in methods.items()
        }
        for problem, methods in raw.items()
    }


def envelope(curves: dict[str, Curve], names: set[str]) -> Curve:
    """Return the lowest value any of ``names`` has with at most so many evaluations."""
    points = sorted(point for name in names & set(curves) for point in curves[name])
    lowest, best = [], math.inf
    for count, value in points:
        if value < best:
            best = value
            lowest.append((count, best))
    return [*lowest, (points[-1][0], best)]


def draw(
    axes: Any, curves: dict[str, Curve], names: list[str], bounds: tuple[float, float]
) -> None:
    """Draw one panel, with the names at the ends of their lines."""
    peers = envelope(curves, {method.name for method in PEERS})
    axes.fill_between(*zip(*peers, strict=True), bounds[1], step="post", color="0.93", lw=0)
    axes.step(*zip(*peers, strict=True), where="post", color="0.6", lw=1)
    ends = [("best of the others", peers[-1][1], "0.5")]
    for name, color in zip(names, COLORS, strict=False):
        points = [(n, v) for n, v in curves.get(name, []) if math.isfinite(v)]
        if not points:
            continue
        first = name == names[0]
        axes.plot(
            *zip(*points, strict=True), color=color, lw=2.4 if first else 1.2, zorder=2 + first
        )
        ends.append((short(name), points[-1][1], color))
    axes.set(xscale="log", yscale="log", ylim=bounds)
    right = max(n for points in curves.values() for n, _ in points)
    axes.set_xlim(right=right)
    place_labels(axes, ends, bounds)


def place_labels(
    axes: Any, ends: list[tuple[str, float, str]], bounds: tuple[float, float]
) -> None:
    """Write labels on the right of the panel, without overlap."""
    low, high = (math.log(v) for v in bounds)
    ends = sorted(ends, key=lambda end: end[1])
    heights = np.array([(math.log(min(max(v, bounds[0]), bounds[1])) - low) / (high - low)
                        for _, v, _ in ends])  # fmt: skip
    gap = 0.06
    for _ in range(500):  # move neighbors apart, and back into the panel
        for i in range(len(heights) - 1):
            lack = gap - (heights[i + 1] - heights[i])
            if lack > 0:
                heights[i] -= lack / 2
                heights[i + 1] += lack / 2
        heights = heights.clip(0.0, 1.0)
    for (text, _, color), height in zip(ends, heights, strict=True):
        axes.text(
            1.02, height, text, color=color, transform=axes.transAxes, va="center", fontsize=7.5,
            clip_on=False,
        )  # fmt: skip


def short(name: str) -> str:
    """Return the name without its owner."""
    return name.removeprefix("ours: ").removesuffix(", VP")


def run(quick: bool, out: Path | None) -> str:
    """Draw, and return the page's text."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if out is None:
        return "Give --out to have the figure drawn."
    ours = deterministic(SDES[0])
    names = [method.name for method in ours]
    strong = strong_curves((*ours, *(peer for peer in PEERS if not peer.random)), quick)
    rows = [("median strong error", strong, names, (1e-7, 3.0))]
    if (out / distribution.RAW).exists():
        excess = distribution_curves(out)
        all_names = [
            method.name for method in distribution.methods() if method.name.startswith("ours")
        ]
        rows.append(("excess of the distribution", excess, all_names[: len(COLORS)], (0.3, 300.0)))
    figure, grid = plt.subplots(
        len(rows), len(PROBLEMS), figsize=(14, 4.6 * len(rows)), squeeze=False, layout="constrained"
    )
    for axes_row, (title, curves, shown, bounds) in zip(grid, rows, strict=True):
        for axes, problem in zip(axes_row, PROBLEMS, strict=True):
            if problem.name not in curves:
                axes.axis("off")
                continue
            draw(axes, curves[problem.name], shown, bounds)
            axes.set_title(f"{problem.name} (d = {problem.dimension})", loc="left", fontsize=10)
            axes.set_xlabel("evaluations of the score")
            ticks = [n for n in (5, 10, 20, 50, 100, 200) if n <= axes.get_xlim()[1]]
            axes.set_xticks(ticks, [str(n) for n in ticks])
            axes.minorticks_off()
            axes.spines[["top", "right"]].set_visible(False)
            if bounds[0] > 0.1:
                axes.axhline(1.0, color="0.3", lw=0.8, ls=":")
        axes_row[0].set_ylabel(title)
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / NAME, dpi=130)
    return f"![Error against evaluations]({NAME})"
