"""What comes out by default: errors in both precisions, and whether the budget covers them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from density import problems
from density.problems import Problem
from density.tables import table
from density.work import lineup

from scoresde import Likelihood, log_likelihood

FEW, MANY = 4, 128
"""How many points trained MLPs get."""


def problems_of(quick: bool) -> Iterator[Problem]:
    """Yield those whose costs are compared, and networks at many points."""
    yield from lineup(quick)
    for d in (2,) if quick else (2, 16):
        yield problems.learnt(d, FEW if quick else MANY, quick)


def run(quick: bool, out: Path | None) -> str:
    """Evaluate every problem as it comes."""
    rows, covered, total, worst = [], 0, 0, {torch.float64: 0.0, torch.float32: 0.0}
    for problem in problems_of(quick):
        cells: list[object] = []
        for dtype in worst:
            result = log_likelihood(
                problem.score, problem.x.to(dtype), trace=problem.trace, prior=problem.prior
            )
            error = float(problem.bits_off(result.log_prob).max())
            worst[dtype] = max(worst[dtype], error)
            inside = within_budget(problem, result)
            cells += [f"{error:.1e}", f"{inside} of {len(result)}"]
            covered, total = covered + inside, total + len(result)
        cells.append(f"{result.evaluations.double().mean():.0f}")
        rows.append((problem.name, *cells))
        print(*rows[-1], flush=True)
    heads = ("problem", "float64: largest error, bits/dim", "within the budget")
    more = ("float32: largest error", "within the budget", "evaluations")
    double, single = worst.values()
    return (
        "`log_likelihood(score, x)` with its default tolerance of 1e-3 bits/dim, the true law at T "
        "and an exact trace; at d = 784 by one product, which the score makes exact. Networks "
        "are trained; their truth is SciPy's DOP853 at 1e-9 in float64. The budget is "
        "`Likelihood.error`, and the resolution of the dtype of "
        "log p.\n\n"
        f"Largest error of all: {double:.1e} bits/dim in float64, {single:.1e} in float32; "
        f"within the budget: {covered} of {total} ({100 * covered / total:.1f} %).\n\n"
        + table((*heads, *more), rows)
    )


def within_budget(problem: Problem, result: Likelihood) -> int:
    """Count the points whose error the budget covers."""
    error = (result.log_prob.double() - problem.truth).abs()
    resolution = torch.finfo(result.log_prob.dtype).eps * problem.truth.abs()
    return int((error <= result.error.double() + resolution).sum())
