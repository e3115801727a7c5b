"""Points off the data, where the flow is stiff: who arrives, how right, and what it takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from density import problems
from density.problems import Problem
from density.tables import geometric_mean, number, table
from density.ways import OURS, Peer, ScoreSDE, TorchDiffEq
from torch import Tensor

from scoresde import VESDE, VPSDE

CAP, PATIENCE, FEW = 2000, 4000, 2
RIGHT = 1e-3
"""What counts as right: error over the larger of |log p| and one bit per dimension."""

PEERS: tuple[Peer, ...] = (TorchDiffEq(), ScoreSDE())
"""The cheapest here: zuko takes more evaluations than either, torchode as many."""


MIXTURES = {"hard": {2: 12, 16: 12, 64: 12}, "aniso": {16: 12, 64: 12, 128: 6}}
"""How many points, by kind and dimension."""


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
    """Yield data moved by noise, and points of a cube."""
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    cube = torch.rand(data.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for scale in (0.1, 0.5):
        yield f"data + {scale} noise", data + scale * noise
    yield "uniform in [-3, 3]^d", 6 * cube - 3


def relative(problem: Problem, log_prob: Tensor) -> Tensor:
    """Return errors relative to the larger of |log p| and one bit per dimension."""
    bits = problem.truth.abs() / (problem.dimension * math.log(2))
    return problem.bits_off(log_prob) / bits.clamp(min=1.0)


def alone(problem: Problem, peer: Peer) -> tuple[float, float]:
    """Return mean evaluations and largest error, points one by one, at the first tolerance right.

    A point that spends its patience counts as that much; no tolerance beyond it is tried.
    """
    cost = error = math.nan
    for tolerance in (1e-4, 1e-5, 1e-6):
        counts, found = [], []
        for i in range(len(problem.x)):
            point = problem.part(slice(i, i + 1))
            outcome = peer.solve(point, tolerance, cap=PATIENCE)
            counts.append(outcome.evaluations)
            found.append(float(relative(point, outcome.log_prob)))
        cost, error = sum(counts) / len(counts), max(found)
        if error <= RIGHT or max(counts) >= PATIENCE:
            break
    return cost, error


def run(quick: bool, out: Path | None) -> str:
    """Follow stiff flows."""
    rows, ratios, sums = [], [], torch.zeros(4, dtype=torch.int64)
    for problem in cases(quick):
        ours = OURS.solve(problem, 1e-3)
        result = ours.likelihood
        assert result is not None
        count = len(problem.x)
        off = relative(problem, ours.log_prob)
        missed = (ours.log_prob.double() - problem.truth).abs()
        honest = (missed <= result.error) | ~result.converged
        sums += torch.tensor(
            [
                count,
                int(honest.sum()),
                int(result.converged.sum()),
                int((result.evaluations <= CAP).sum()),
            ]
        )
        few = problem.part(slice(1 if quick else FEW))
        theirs = {peer: alone(few, peer) for peer in PEERS}
        right = [n for n, error in theirs.values() if error <= RIGHT]
        own = float(result.evaluations[: len(few.x)].double().mean())
        ratios.append(own / min(right) if right else math.nan)
        rows.append(
            (
                problem.name,
                f"{int(honest.sum())} / {int(result.converged.sum())} of {count}",
                f"{ours.evaluations:.0f} (at most {int(result.evaluations.max())})",
                f"{float(off.max()):.0e}",
                *(f"{n:.0f}, {error:.0e}" for n, error in theirs.values()),
                number(ratios[-1], 2),
            )
        )
        print(*rows[-1], sep=" | ", flush=True)
    total, honest_points, converged, within = sums.tolist()
    heads = (
        "points",
        "within budget or flagged / converged",
        "evaluations",
        "largest error",
        *(f"{peer.name}: evaluations, largest error" for peer in PEERS),
        "ours / best that is right, on those",
    )
    return (
        "Mixtures with an exact trace, and trained MLPs, whose truth is SciPy's DOP853 at 1e-9. "
        f"Errors are relative to the larger of |log p| and one bit per dimension; right is below "
        f"{RIGHT:g}. The others go through the first {FEW} points, one by one, and tighten their "
        f"tolerance from 1e-4 until all are right or one has spent {PATIENCE} evaluations.\n\n"
        f"Of {total} points, {honest_points} are within the reported budget or flagged, "
        f"{converged} converged, {within} took at most {CAP} evaluations. Geometric mean of "
        "evaluations, ours over the best of the others that is right: "
        f"{geometric_mean(ratios):.2f}, over {sum(map(math.isfinite, ratios))} of {len(ratios)} "
        "cases; in the rest none is right.\n\n" + table(heads, rows)
    )
