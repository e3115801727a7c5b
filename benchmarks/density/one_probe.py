"""One random probe: the cost of a total error, that of solver and probes together."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

from common import geometric_mean, number, table
from density import problems
from density.libraries import OURS, Library, ScoreSDE, TorchDiffEq, TorchODE, Zuko
from density.problems import KINDS, SDES, Problem
from density.work import product_cost
from torch import Tensor

from scoresde.traces import Hutchinson

LIBRARIES: tuple[Library, ...] = (OURS, TorchDiffEq(), Zuko(), TorchODE(), ScoreSDE())
POINTS, DIMENSIONS = 4, (64,)


def repeated(problem: Problem, repeats: int) -> Problem:
    """Return a few points, each repeated."""
    x, truth = (v[:POINTS].repeat_interleave(repeats, 0) for v in (problem.x, problem.truth))
    return Problem(problem.name, problem.score, problem.traced, None, problem.prior, x, truth)


def errors(problem: Problem, library: Library, tolerance: float) -> tuple[float, Tensor]:
    """Return evaluations and signed errors in bits/dim."""
    outcome = library.solve(problem, tolerance, trace=Hutchinson())
    bits = (outcome.log_prob.double() - problem.truth) / (problem.dimension * math.log(2))
    return outcome.evaluations, bits.reshape(POINTS, -1)


def cost(
    library: Library, error: Tensor, evaluations: float, target: float, product: float
) -> float:
    """Return the cost of averaging runs to a root mean square error of ``target``."""
    noise, bias = float(error.var(1).mean()), float(error.mean(1).square().mean())
    bias = max(0.0, bias - noise / error.shape[1])  # the mean of few runs has noise itself
    repeats = noise / (target**2 - bias) if bias < target**2 else math.inf
    return max(1.0, repeats) * evaluations * library.weight(product)


def run(quick: bool, _: Path | None) -> str:
    """Compare costs of the total error that ours has in one run of one probe."""
    vjp = product_cost(3 if quick else 20)
    rows, ratios = [], []
    for sde, kind, d in product(
        SDES[:1] if quick else SDES[::2],
        KINDS[:1] if quick else KINDS,
        (16,) if quick else DIMENSIONS,
    ):
        problem = repeated(problems.mixture(kind, d, sde, POINTS), 8 if quick else 25)
        cells, costs = [], []
        for library in LIBRARIES:
            settings = (1e-3,) if library is OURS else (1e-3, 1e-4, 1e-5)
            found = [errors(problem, library, tolerance) for tolerance in settings]
            if library is OURS:
                target = float(found[0][1].square().mean().sqrt())
            costs.append(min(cost(library, e, n, target, vjp) for n, e in found))
            n, e = min(found, key=lambda f: cost(library, f[1], f[0], target, vjp))
            cells.append(f"{n:.0f}, {float(e.square().mean().sqrt()):.1e}")
        ratios.append(costs[0] / min(costs[1:]))
        rows.append((problem.name, *cells, number(ratios[-1], 2)))
        print(*rows[-1], flush=True)
    heads = ("problem", *(f"{library.name}: evaluations, error" for library in LIBRARIES))
    return (
        f"One Rademacher probe for every library ({POINTS} points, each with many probes): a new "
        "one at every evaluation for ours, one fixed along the path for the others, at their best "
        "tolerance of 1e-3, 1e-4, 1e-5. The error is the root mean square in bits/dim. The last "
        "column is the cost of our error with ours over the cost with the best of the others, by "
        "averages over repeated runs; an evaluation costs one forward pass and "
        f"{vjp:.2f} for a product.\n\n"
        f"Geometric mean of the last column: {geometric_mean(ratios):.3f}.\n\n"
        + table((*heads, "ours / best"), rows)
    )
