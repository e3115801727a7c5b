"""The cost of an error: evaluations of every library at every tolerance, and their cost."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import torch
from common import geometric_mean, number, table
from density import problems
from density.libraries import LIBRARIES, OURS, Library, ScoreSDE
from density.problems import CACHE, KINDS, POINTS, SDES, Problem

from scoresde.networks import UNet
from scoresde.plots import COLORS, figure, style

THRESHOLDS = (1e-2, 1e-3, 1e-4)
Sweeps = dict[str, dict[str, list[tuple[float, float]]]]
"""(evaluations, largest error in bits/dim) by problem and library."""


def all_problems(quick: bool) -> Iterator[Problem]:
    """Yield all problems."""
    for sde, kind, d in product(
        SDES[:1] if quick else SDES, KINDS[:1] if quick else KINDS, (2,) if quick else POINTS
    ):
        yield problems.mixture(kind, d, sde, 4 if quick else POINTS[d])
    yield problems.network(2 if quick else 4, quick)


def sweep(library: Library, problem: Problem, settings: int) -> list[tuple[float, float]]:
    """Return `fresh_sweep`, from a cache for other libraries on mixtures."""
    if library is OURS or problem.prior is None:
        return fresh_sweep(library, problem, settings)
    path = CACHE / f"{problem.name} {len(problem.x)} {settings} {library.name}.json".replace(
        " ", "_"
    )
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(fresh_sweep(library, problem, settings)), encoding="utf-8")
    return [(cost, error) for cost, error in json.loads(path.read_text(encoding="utf-8"))]


def fresh_sweep(library: Library, problem: Problem, settings: int) -> list[tuple[float, float]]:
    """Return evaluations and largest error, by tolerance, until the smallest threshold."""
    points: list[tuple[float, float]] = []
    for tolerance in library.tolerances[:settings]:
        outcome = library.solve(problem, tolerance)
        points.append((outcome.evaluations, float(problem.bits_off(outcome.log_prob).max())))
        if points[-1][1] < THRESHOLDS[-1]:
            break
    return points


def cheapest(sweep: Iterable[tuple[float, float]], threshold: float) -> float:
    """Return the least cost from which on all errors are below a threshold, or infinity."""
    best = math.inf
    for cost, error in sorted(sweep, reverse=True):
        if not error <= threshold:
            break
        best = cost
    return best


def product_cost(repeats: int = 20) -> float:
    """Time a forward pass with one product vᵀJ of a small U-Net, in forward passes, less one."""
    network = UNet(3, width=32)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    x, label = torch.randn(16, 3, 16, 16), torch.rand(16)
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(repeats):
        for backward in (False, True):
            began = time.perf_counter()
            with torch.set_grad_enabled(backward):
                y = network(x.requires_grad_(backward), label)
                if backward:
                    torch.autograd.grad(y, x, torch.ones_like(y))
            times[backward].append(time.perf_counter() - began)
    return min(times[True]) / min(times[False]) - 1


def run(quick: bool, out: Path | None) -> str:
    """Return the tables of all sweeps."""
    sweeps: Sweeps = {}
    for problem in all_problems(quick):
        began = time.perf_counter()
        sweeps[problem.name] = {
            library.name: sweep(library, problem, 2 if quick else 9) for library in LIBRARIES
        }
        print(f"{problem.name}: {time.perf_counter() - began:.0f} s", flush=True)
        print(*sweeps[problem.name].items(), sep="\n", flush=True)
    cost = product_cost(3 if quick else 20)
    if out:
        draw(sweeps, cost).savefig(out / "likelihood_work.png")
    return "\n\n".join((introduction(cost), summary(sweeps, cost), details(sweeps)))


def introduction(cost: float) -> str:
    """Return the definition of the cost."""
    return (
        "Evaluations until the largest error of the batch stays below 1e-2 / 1e-3 / 1e-4 bits/dim, "
        "with the exact divergence and the exact distribution at T: every error is the solver's. "
        "Ours are the mean over samples. One forward pass costs 1, one product vᵀJ "
        f"{cost:.2f} (measured in this run on a small U-Net); an evaluation costs "
        f"{1 + cost:.2f}, that of the score_sde recipe, with two forward passes, "
        f"{2 + cost:.2f}. Tolerances change by half decades for ours, by decades for the "
        "others; results of the others are computed once and cached.\n\n"
        "![error against cost](likelihood_work.png)"
    )


def evaluations(sweeps: Sweeps, library: Library, threshold: float) -> list[float]:
    """Return the evaluations of a library on every problem."""
    return [cheapest(found[library.name], threshold) for found in sweeps.values()]


def summary(sweeps: Sweeps, cost: float) -> str:
    """Compare geometric means, and costs problem by problem."""
    rows = []
    for library in LIBRARIES:
        cells = []
        for threshold in THRESHOLDS:
            costs = evaluations(sweeps, library, threshold)
            reached = sum(map(math.isfinite, costs))
            cells.append(f"{geometric_mean(costs):.0f} ({reached} of {len(costs)})")
        rows.append((library.name, *cells))
    ratios = []
    for threshold in THRESHOLDS:
        costs = {
            library: [c * library.weight(cost) for c in evaluations(sweeps, library, threshold)]
            for library in LIBRARIES
        }
        others = [costs[library] for library in LIBRARIES if library is not OURS]
        recipe = next(costs[library] for library in LIBRARIES if isinstance(library, ScoreSDE))
        complete = [geometric_mean(c) for c in others if all(map(math.isfinite, c))]
        mean = min(complete, default=math.nan)
        best = [min(c) for c in zip(*others, strict=True)]
        ratios.append(
            (
                f"{threshold:g}",
                number(geometric_mean(costs[OURS]) / mean, 2),
                number(ratio(costs[OURS], best), 2),
                number(ratio(costs[OURS], recipe), 2),
            )
        )
    heads = ("geometric mean of evaluations (problems reached)", *(f"{t:g}" for t in THRESHOLDS))
    versus = (
        "weighted cost, ours over",
        "the best library that reaches all problems",
        "the best on each problem",
        "the score_sde recipe",
    )
    return table(heads, rows) + "\n\n" + table(versus, ratios)


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the geometric mean of ratios where both are finite."""
    return geometric_mean(a / b for a, b in zip(ours, theirs, strict=True) if a + b < math.inf)


def details(sweeps: Sweeps) -> str:
    """Return evaluations, problem by problem."""
    rows = [
        (
            name,
            *(
                " / ".join(number(cheapest(found[w.name], t), 0) for t in THRESHOLDS)
                for w in LIBRARIES
            ),
        )
        for name, found in sweeps.items()
    ]
    return table(("problem", *(library.name for library in LIBRARIES)), rows)


def draw(sweeps: Sweeps, cost: float) -> object:
    """Draw error against cost, one panel per SDE and kind, at the largest dimension."""
    with style():
        canvas = figure(9.5, 8.0)
        panels = canvas.subplots(len(KINDS), len(SDES), sharex=True, sharey=True, squeeze=False)
        for (row, kind), (column, sde) in product(enumerate(KINDS), enumerate(SDES)):
            names = [n for n in sweeps if n.startswith(f"{type(sde).__name__} {kind} ")]
            if not names:
                continue
            axes = panels[row][column]
            for library, color in zip(LIBRARIES, (*COLORS, "#888888"), strict=True):
                points = sorted(sweeps[names[-1]][library.name])
                costs = [n * library.weight(cost) for n, _ in points]
                errors = [error if math.isfinite(error) else math.nan for _, error in points]
                width = 2.4 if library is OURS else 1.2
                axes.loglog(costs, errors, ".-", color=color, lw=width, label=library.name)
            axes.axhline(1e-3, color="#bbbbbb", lw=0.8, zorder=0)
            axes.set(title=names[-1], ylim=(1e-6, 1e1), xlim=(15, 1000))
            axes.set_xticks((20, 50, 100, 200, 500), labels=("20", "50", "100", "200", "500"))
            axes.minorticks_off()
        for axes in panels[-1]:
            axes.set_xlabel("cost in forward passes")
        for axes in panels[:, 0]:
            axes.set_ylabel("largest error, bits/dim")
        canvas.legend(
            *panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=6
        )
    return canvas
