"""Default settings: errors in float64 and float32, and how often the budget covers them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from common import table
from density import problems
from density.problems import Problem
from density.work import all_problems

from scoresde import Likelihood, log_likelihood

FEW, MANY = 4, 128
"""Number of points for trained MLPs."""


def problems_of(quick: bool) -> Iterator[Problem]:
    """Yield the problems whose costs are compared, and trained MLPs at many points."""
    yield from all_problems(quick)
    for d in (2,) if quick else (2, 16):
        yield problems.trained(d, FEW if quick else MANY, quick)


def run(quick: bool, _: Path | None) -> str:
    """Evaluate every problem with the default settings."""
    rows, covered, total, worst = [], 0, 0, {torch.float64: 0.0, torch.float32: 0.0}
    for problem in problems_of(quick):
        cells: list[object] = []
        for dtype in worst:
            result = log_likelihood(
                problem.score, problem.x.to(dtype), trace=problem.trace, prior=problem.prior
            )
            error = float(problem.bits_off(result.log_prob).max())
            worst[dtype] = max(worst[dtype], error)
            within = within_budget(problem, result)
            cells += [f"{error:.1e}", f"{within} of {len(result)}"]
            covered, total = covered + within, total + len(result)
        cells.append(f"{result.evaluations.double().mean():.0f}")
        rows.append((problem.name, *cells))
        print(*rows[-1], flush=True)
    heads = ("problem", "float64: largest error, bits/dim", "within the budget")
    more = ("float32: largest error", "within the budget", "evaluations")
    double, single = worst.values()
    return (
        "`log_likelihood(score, x)` with its default tolerance of 1e-3 bits/dim, the exact "
        "distribution at T and an exact trace; at d = 784 by one product, exact for this score. "
        "Networks are trained; their reference is SciPy's DOP853 at 1e-9 in float64. The budget is "
        "`Likelihood.error` plus the resolution of the dtype of log p.\n\n"
        f"Largest error of all: {double:.1e} bits/dim in float64, {single:.1e} in float32; "
        f"within the budget: {covered} of {total} ({100 * covered / total:.1f} %).\n\n"
        + table((*heads, *more), rows)
    )


def within_budget(problem: Problem, result: Likelihood) -> int:
    """Count the points whose error the budget covers."""
    error = (result.log_prob.double() - problem.truth).abs()
    resolution = torch.finfo(result.log_prob.dtype).eps * problem.truth.abs()
    return int((error <= result.error.double() + resolution).sum())
