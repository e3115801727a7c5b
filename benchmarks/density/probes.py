"""The noise of random probes: new ones at every evaluation, and one fixed probe as usual."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

from common import geometric_mean, number, table
from density import problems
from density.libraries import OURS, TorchDiffEq
from density.problems import KINDS, Problem

from scoresde import VESDE, VPSDE, log_likelihood
from scoresde.traces import Hutchinson


def repeat(problem: Problem, repeats: int) -> Problem:
    """Return one point, repeated."""
    x, truth = (v[:1].repeat_interleave(repeats, 0) for v in (problem.x, problem.truth))
    return Problem(problem.name, problem.score, problem.traced, None, problem.prior, x, truth)


def run(quick: bool, _: Path | None) -> str:
    """Measure deviations and coverage over repeats."""
    rows, ratios, repeats = [], [], 50 if quick else 300
    for sde, kind, d in product(
        (VPSDE(),) if quick else (VPSDE(), VESDE()),
        KINDS[:1] if quick else KINDS,
        (16,) if quick else (16, 64),
    ):
        problem = repeat(problems.mixture(kind, d, sde, 1), repeats)
        bit = d * math.log(2)
        fixed = TorchDiffEq().solve(problem, 1e-4, trace=Hutchinson())
        nodes = OURS.solve(problem, 1e-3, trace=Hutchinson()).evaluations
        probes = max(2, round(fixed.evaluations / nodes))
        fresh = OURS.solve(problem, 1e-3, trace=Hutchinson(probes))
        assert fresh.likelihood is not None
        exact = log_likelihood(problem.score, problem.x[:1], tolerance=1e-5, prior=problem.prior)
        error = (fresh.log_prob - exact.log_prob).abs()
        coverage = float((error <= 2 * fresh.likelihood.standard_error).double().mean())
        deviations = [float(o.log_prob.std()) / bit for o in (fresh, fixed)]
        ratios.append(deviations[0] / deviations[1])
        rows.append(
            (
                problem.name,
                f"{probes} × {fresh.evaluations:.0f}",
                f"{deviations[0]:.1e}",
                f"1 × {fixed.evaluations:.0f}",
                f"{deviations[1]:.1e}",
                number(ratios[-1], 2),
                f"{100 * coverage:.0f} %",
            )
        )
        print(*rows[-1], flush=True)
    heads = ("problem", "ours: products", "std, bits/dim", "fixed probe: products")
    more = ("std, bits/dim", "ratio", "±2 standard errors cover")
    return (
        f"One point, {repeats} repeats. The fixed Rademacher probe is integrated with "
        "torchdiffeq's dopri5 at 1e-4; ours has as many probes at each evaluation as make about as "
        "many products in all. Coverage is that of the exact value.\n\n"
        f"Geometric mean of the ratios: {geometric_mean(ratios):.2f}.\n\n"
        + table((*heads, *more), rows)
    )
