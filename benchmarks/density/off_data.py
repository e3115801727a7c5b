"""Points off the data, where the flow is stiff: convergence, errors and evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from common import geometric_mean, number, table
from density import problems
from density.libraries import OURS, OtherLibrary, ScoreSDE, TorchDiffEq
from density.problems import Problem
from torch import Tensor

from scoresde import VESDE, VPSDE

OURS_AT_MOST, OTHERS_AT_MOST, FEW = 2000, 4000, 2
ACCURATE = 1e-3
"""Relative error, to the larger of |log p| and one bit per dimension, that counts as accurate."""

OTHERS: tuple[OtherLibrary, ...] = (TorchDiffEq(), ScoreSDE())
"""The cheapest here: zuko takes more evaluations than either, torchode as many."""

MIXTURES = {"hard": {2: 12, 16: 12, 64: 12}, "aniso": {16: 12, 64: 12, 128: 6}}
"""Number of points, by kind and dimension."""


def cases(quick: bool) -> Iterator[Problem]:
    """Yield mixtures and trained networks at points off the data."""
    kinds = {"hard": {2: 2}} if quick else MIXTURES
    for sde, (kind, sizes) in product((VPSDE(),) if quick else (VPSDE(), VESDE()), kinds.items()):
        for d, count in sizes.items():
            base = problems.mixture(kind, d, sde, count)
            for name, x in points(base.x):
                yield replace(base.at(x), name=f"{base.name}, {name}")
    for d in (2,) if quick else (2, 16):
        network, data = problems.perceptron(d, quick), problems.mixture("aniso", d, VPSDE(), 12).x
        for name, x in points(data[: 2 if quick else 12]):
            copy = problems.perceptron(d, quick)
            yield problems.converged(f"MLP d={d}, {name}", network, copy, x.float().double(), quick)


def points(data: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield data with added noise, and points of a cube."""
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    cube = torch.rand(data.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for scale in (0.1, 0.5):
        yield f"data + {scale} noise", data + scale * noise
    yield "uniform in [-3, 3]^d", 6 * cube - 3


def relative(problem: Problem, log_prob: Tensor) -> Tensor:
    """Return errors relative to the larger of |log p| and one bit per dimension."""
    bits = problem.truth.abs() / (problem.dimension * math.log(2))
    return problem.bits_off(log_prob) / bits.clamp(min=1.0)


def one_by_one(problem: Problem, library: OtherLibrary) -> tuple[float, float]:
    """Return mean evaluations and largest error at the first accurate tolerance, point by point.

    A point that exceeds the limit counts as the limit, and no smaller tolerance is tried.
    """
    cost = error = math.nan
    for tolerance in (1e-4, 1e-5, 1e-6):
        counts, errors = [], []
        for i in range(len(problem.x)):
            point = problem.part(slice(i, i + 1))
            outcome = library.solve(point, tolerance, limit=OTHERS_AT_MOST)
            counts.append(outcome.evaluations)
            errors.append(float(relative(point, outcome.log_prob)))
        cost, error = sum(counts) / len(counts), max(errors)
        if error <= ACCURATE or max(counts) >= OTHERS_AT_MOST:
            break
    return cost, error


def run(quick: bool, _: Path | None) -> str:
    """Integrate stiff flows."""
    rows, ratios, sums = [], [], torch.zeros(4, dtype=torch.int64)
    for problem in cases(quick):
        ours = OURS.solve(problem, 1e-3)
        result = ours.likelihood
        assert result is not None
        count = len(problem.x)
        off = relative(problem, ours.log_prob)
        error = (ours.log_prob.double() - problem.truth).abs()
        correct = (error <= result.error) | ~result.converged
        sums += torch.tensor(
            [
                count,
                int(correct.sum()),
                int(result.converged.sum()),
                int((result.evaluations <= OURS_AT_MOST).sum()),
            ]
        )
        few = problem.part(slice(1 if quick else FEW))
        theirs = {library: one_by_one(few, library) for library in OTHERS}
        accurate = [n for n, error in theirs.values() if error <= ACCURATE]
        own = float(result.evaluations[: len(few.x)].double().mean())
        ratios.append(own / min(accurate) if accurate else math.nan)
        rows.append(
            (
                problem.name,
                f"{int(correct.sum())} / {int(result.converged.sum())} of {count}",
                f"{ours.evaluations:.0f} (at most {int(result.evaluations.max())})",
                f"{float(off.max()):.0e}",
                *(f"{n:.0f}, {error:.0e}" for n, error in theirs.values()),
                number(ratios[-1], 2),
            )
        )
        print(*rows[-1], sep=" | ", flush=True)
    total, correct_points, converged, within = sums.tolist()
    heads = (
        "points",
        "within budget or flagged / converged",
        "evaluations",
        "largest error",
        *(f"{library.name}: evaluations, largest error" for library in OTHERS),
        "ours / best accurate one, on those",
    )
    return (
        "Mixtures with an exact trace, and trained MLPs, whose reference is SciPy's DOP853 at "
        "1e-9. Errors are relative to the larger of |log p| and one bit per dimension; accurate is "
        f"below {ACCURATE:g}. The others integrate the first {FEW} points, one by one, with "
        "tolerances from 1e-4 downwards until all are accurate or one exceeds "
        f"{OTHERS_AT_MOST} evaluations.\n\n"
        f"Of {total} points, {correct_points} are within the reported budget or flagged, "
        f"{converged} converged, {within} took at most {OURS_AT_MOST} evaluations. Geometric mean "
        "of evaluations, ours over the best accurate one of the others: "
        f"{geometric_mean(ratios):.2f}, over {sum(map(math.isfinite, ratios))} of {len(ratios)} "
        "cases; in the others none is accurate.\n\n" + table(heads, rows)
    )
