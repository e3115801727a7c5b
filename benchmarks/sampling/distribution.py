"""How many evaluations until samples are indistinguishable from exact ones.

Two measures detect different errors: the sliced W2 (64 directions) to a fixed set of exact samples,
relative to its 95 % quantile for other exact sets of the same size; and the mean of −log p_0 over
the samples minus the entropy H of the data, relative to max(0.05 nat, 3 standard deviations). The
**excess** is the larger of the two ratios; at most 1 if neither measure finds a difference. The
table gives the smallest number of evaluations from which on the median excess over the seeds is at
most 1, for all larger numbers too, and there the mean squared Mahalanobis distance of the samples
to their mode, relative to exact samples. N = 20 000 samples in float32, as each method returns
them, ours by `sample`. Five seeds; the page "distribution of the samples, from many starts"
separates the error of the sampler from that of the draw.
"""

from __future__ import annotations

import json
import math
import statistics
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sampling.lineup import SDES, default_on, presets
from sampling.methods import Method
from sampling.peers import PEERS
from sampling.problems import PROBLEMS, Problem
from sampling.tables import table

EVALUATIONS = (8, 10, 11, 12, 16, 20, 30, 50)
SEEDS = (11, 12, 13, 14, 15)
DIRECTIONS = 64
REPLICATES = 20
RAW = "samplers_distribution.json"


class Discrepancy(NamedTuple):
    """How far a set of samples is from the distribution of the data."""

    sliced: float
    """Sliced W2, relative to its 95 % quantile for exact sets."""
    nll: float
    """NLL − H in nats, relative to its limit; signed."""
    mahalanobis: float
    """Mean squared distance of the samples to their mode, relative to exact samples."""

    @property
    def excess(self) -> float:
        """The larger ratio; at most 1 if neither measure finds a difference."""
        worst = max(self.sliced, abs(self.nll))
        return worst if math.isfinite(worst) else math.inf


class Comparison:
    """Measures the discrepancy of samples of a problem from exact ones.

    Args:
        problem: the problem.
        samples: N.
        replicates: number of exact sets for the quantile.
    """

    def __init__(self, problem: Problem, samples: int, replicates: int = REPLICATES) -> None:
        self.problem, self.samples = problem, samples
        generator = torch.Generator().manual_seed(1000)
        shape = (problem.dimension, DIRECTIONS)
        directions = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.directions = directions / directions.norm(dim=0)
        self.target = self._projected(self._exact(generator))
        exact = [self._exact(generator) for _ in range(replicates)]
        distances = torch.tensor([self._sliced(x) for x in exact])
        values = torch.cat([self._nll(x) for x in exact])
        self.quantile = float(torch.quantile(distances, 0.95))
        self.entropy = float(values.mean())
        self.limit = max(0.05, 3 * float(values.std()) / math.sqrt(samples))
        self.distance = float(torch.cat([self._distances(x) for x in exact]).mean())

    def __call__(self, x: Tensor) -> Discrepancy:
        """Compare samples ``(N, d)`` with exact ones."""
        if not bool(x.isfinite().all()):
            return Discrepancy(math.inf, math.inf, math.nan)
        nll = (float(self._nll(x).mean()) - self.entropy) / self.limit
        distance = float(self._distances(x).mean()) / self.distance
        return Discrepancy(self._sliced(x) / self.quantile, nll, distance)

    def _exact(self, generator: torch.Generator) -> Tensor:
        return self.problem.data.sample(self.samples, generator=generator, dtype=torch.float64)

    def _projected(self, x: Tensor) -> Tensor:
        return (x.double() @ self.directions).float().sort(dim=0).values

    def _sliced(self, x: Tensor) -> float:
        return float((self._projected(x) - self.target).square().mean().sqrt())

    def _nll(self, x: Tensor) -> Tensor:
        return -self.problem.data.log_prob(x.double())

    def _distances(self, x: Tensor) -> Tensor:
        """Return (x − m)ᵀ C⁻¹ (x − m)/d with the most probable component of each sample."""
        x, (weights, means, covariances) = x.double(), self.problem.parts
        factors = torch.linalg.cholesky(covariances)
        white = torch.stack(
            [
                torch.linalg.solve_triangular(factor, (x - mean).T, upper=False).T
                for factor, mean in zip(factors, means, strict=True)
            ]
        )  # (K, n, d)
        squares = white.square().sum(2)
        heights = torch.log(weights) - factors.diagonal(dim1=1, dim2=2).log().sum(1)
        component = (heights.unsqueeze(1) - 0.5 * squares).argmax(dim=0)
        return squares.gather(0, component.unsqueeze(0)).squeeze(0) / x.shape[1]


def curve(
    method: Method,
    comparison: Comparison,
    numbers: tuple[int, ...],
    seeds: tuple[int, ...],
    complete: bool,
) -> list[list]:
    """Return [evaluations, median excess, median Mahalanobis ratio] for numbers of evaluations.

    From the largest down to the first excess above 1, or all if ``complete``.
    """
    points: list[list] = []
    for evaluations in reversed(numbers):
        if points and points[0][1] > 1 and not complete:
            break
        found, made = [], evaluations
        for noise in noises(comparison.samples, comparison.problem.dimension, seeds):
            outcome = method(comparison.problem, noise, evaluations)
            if outcome is not None:
                made = outcome.evaluations
                found.append(comparison(outcome.y))
        if found:
            excess = statistics.median(d.excess for d in found)
            points.insert(0, [made, excess, statistics.median(d.mahalanobis for d in found)])
    return points


@cache
def noises(samples: int, dimension: int, seeds: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Return a start of N(0, I) for each seed."""
    return tuple(
        torch.randn(samples, dimension, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    )


def reached(points: list[list]) -> str:
    """Return the first point from which on no excess is above 1, and its Mahalanobis ratio."""
    best = None
    for point in reversed(points):
        if point[1] > 1:
            break
        best = point
    if best is not None:
        return f"{best[0]} ({best[2]:.3f})"
    last = points[-1]
    return f">{last[0]} (excess {last[1]:.2g})" if math.isfinite(last[1]) else f">{last[0]} (NaN)"


def methods() -> tuple[Method, ...]:
    """Return our default under each diffusion, our presets under VP, and the peers."""
    others = tuple(default_on(sde, denoise=None) for sde in SDES[1:])
    blind = default_on(SDES[0], moments=False, denoise=None)
    return (*presets(SDES[0], denoise=None), *others, blind, *PEERS)


def run(quick: bool, out: Path | None) -> str:
    """Measure, and return the report; the curves go to ``out`` for the figure."""
    problems = PROBLEMS[: 1 if quick else 2]
    numbers = (8, 16) if quick else EVALUATIONS
    seeds = SEEDS[:1] if quick else SEEDS
    chosen = methods()
    cells: dict[str, list[str]] = {method.name: [] for method in chosen}
    raw: dict[str, dict[str, list]] = {}
    limits = []
    for problem in problems:
        comparison = Comparison(
            problem, 500 if quick else problem.samples, 5 if quick else REPLICATES
        )
        limits.append(f"{problem.name} {comparison.quantile:.4f} / {comparison.limit:.3f} nat")
        raw[problem.name] = {}
        for method in chosen:
            points = curve(
                method, comparison, numbers, seeds, complete=method.name.startswith("ours")
            )
            raw[problem.name][method.name] = points
            cells[method.name].append(reached(points))
            print(problem.name, method.name, cells[method.name][-1], flush=True)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / RAW).write_text(json.dumps(raw), encoding="utf-8")
    head = ["method", *(f"{p.name}: evaluations (Mahalanobis ratio)" for p in problems)]
    rows = [[name, *values] for name, values in cells.items()]
    title = "95 % quantile of sliced W2 / limit of NLL − H"
    return f"{title}: {'; '.join(limits)}.\n\n{table(head, rows)}"
