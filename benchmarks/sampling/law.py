"""How many evaluations until samples cannot be told from exact ones.

Two measures that are blind to different faults: sliced W2 (64 directions) to a fixed set of exact
samples, against its 95 % quantile for other exact sets of the same size; and the mean of −log p_0
over the samples minus the entropy H of the data, against max(0.05 nat, 3 standard deviations).
Their **excess** is the larger of the two ratios, 1 where both hold. The number told is the smallest
of the ladder from which on, at every larger one too, the median excess over the seeds is at most 1;
with the mean squared Mahalanobis distance to the own mode there, relative to exact samples.
N = 20 000 samples in float32, as the way returns them: ours as `sample` does. Five seeds; how much
is the draw's and how much the sampler's is told by the page of the law from many starts.
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
from sampling.peers import PEERS
from sampling.problems import PROBLEMS, Problem
from sampling.tables import table
from sampling.ways import Way

LADDER = (8, 10, 11, 12, 16, 20, 30, 50)
SEEDS = (11, 12, 13, 14, 15)
DIRECTIONS = 64
REPLICATES = 20
RAW = "samplers_law.json"


class Law(NamedTuple):
    """How far a set of samples is from the law of the data."""

    sliced: float
    """Sliced W2 over its floor, the 95 % quantile of exact sets."""
    nll: float
    """NLL − H in nats, over its limit; signed."""
    mahalanobis: float
    """Mean squared distance to the own mode, over that of exact samples."""

    @property
    def excess(self) -> float:
        """The larger ratio; at most 1 where both criteria hold."""
        worst = max(self.sliced, abs(self.nll))
        return worst if math.isfinite(worst) else math.inf


class Judge:
    """Compares samples of a problem with exact ones.

    Args:
        problem: the problem.
        samples: N.
        replicates: exact sets that the floor is measured with.
    """

    def __init__(self, problem: Problem, samples: int, replicates: int = REPLICATES) -> None:
        self.problem, self.samples = problem, samples
        generator = torch.Generator().manual_seed(1000)
        shape = (problem.dimension, DIRECTIONS)
        directions = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.directions = directions / directions.norm(dim=0)
        self.target = self._projected(self._exact(generator))
        exact = [self._exact(generator) for _ in range(replicates)]
        floors = torch.tensor([self._sliced(x) for x in exact])
        values = torch.cat([self._nll(x) for x in exact])
        self.floor = float(torch.quantile(floors, 0.95))
        self.entropy = float(values.mean())
        self.limit = max(0.05, 3 * float(values.std()) / math.sqrt(samples))
        self.distance = float(torch.cat([self._distances(x) for x in exact]).mean())

    def __call__(self, x: Tensor) -> Law:
        """Judge samples ``(N, d)``."""
        if not bool(x.isfinite().all()):
            return Law(math.inf, math.inf, math.nan)
        nll = (float(self._nll(x).mean()) - self.entropy) / self.limit
        distance = float(self._distances(x).mean()) / self.distance
        return Law(self._sliced(x) / self.floor, nll, distance)

    def _exact(self, generator: torch.Generator) -> Tensor:
        return self.problem.data.sample(self.samples, generator=generator, dtype=torch.float64)

    def _projected(self, x: Tensor) -> Tensor:
        return (x.double() @ self.directions).float().sort(dim=0).values

    def _sliced(self, x: Tensor) -> float:
        return float((self._projected(x) - self.target).square().mean().sqrt())

    def _nll(self, x: Tensor) -> Tensor:
        return -self.problem.data.log_prob(x.double())

    def _distances(self, x: Tensor) -> Tensor:
        """Return (x − m)ᵀ C⁻¹ (x − m)/d with the likeliest component of each sample."""
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
    way: Way, judge: Judge, ladder: tuple[int, ...], seeds: tuple[int, ...], whole: bool
) -> list[list]:
    """Return [evaluations, median excess, median Mahalanobis ratio] along the ladder.

    From its top down; only as far as the law is right unless the ``whole`` is wanted.
    """
    points: list[list] = []
    for evaluations in reversed(ladder):
        if points and points[0][1] > 1 and not whole:
            break
        laws, made = [], evaluations
        for noise in _noises(judge.samples, judge.problem.dimension, seeds):
            outcome = way(judge.problem, noise, evaluations)
            if outcome is not None:
                made = outcome.evaluations
                laws.append(judge(outcome.y))
        if laws:
            excess = statistics.median(law.excess for law in laws)
            points.insert(0, [made, excess, statistics.median(law.mahalanobis for law in laws)])
    return points


@cache
def _noises(samples: int, dimension: int, seeds: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(
        torch.randn(samples, dimension, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    )


def reached(points: list[list]) -> str:
    """Tell the first point from which on all are good, and the Mahalanobis ratio there."""
    best = None
    for point in reversed(points):
        if point[1] > 1:
            break
        best = point
    if best is not None:
        return f"{best[0]} ({best[2]:.3f})"
    last = points[-1]
    return f">{last[0]} (excess {last[1]:.2g})" if math.isfinite(last[1]) else f">{last[0]} (NaN)"


def ways() -> tuple[Way, ...]:
    """Return our default under each diffusion, our presets under VP, and the peers."""
    others = tuple(default_on(sde, denoise=None) for sde in SDES[1:])
    blind = default_on(SDES[0], moments=False, denoise=None)
    return (*presets(SDES[0], denoise=None), *others, blind, *PEERS)


def run(quick: bool, out: Path | None) -> str:
    """Measure, and return the report; the curves go to ``out`` for the figure."""
    problems = PROBLEMS[: 1 if quick else 2]
    ladder = (8, 16) if quick else LADDER
    seeds = SEEDS[:1] if quick else SEEDS
    chosen = ways()
    cells: dict[str, list[str]] = {way.name: [] for way in chosen}
    raw: dict[str, dict[str, list]] = {}
    floors = []
    for problem in problems:
        judge = Judge(problem, 500 if quick else problem.samples, 5 if quick else REPLICATES)
        floors.append(f"{problem.name} {judge.floor:.4f} / {judge.limit:.3f} nat")
        raw[problem.name] = {}
        for way in chosen:
            points = curve(way, judge, ladder, seeds, whole=way.name.startswith("ours"))
            raw[problem.name][way.name] = points
            cells[way.name].append(reached(points))
            print(problem.name, way.name, cells[way.name][-1], flush=True)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / RAW).write_text(json.dumps(raw), encoding="utf-8")
    head = ["way", *(f"{p.name}: evaluations (Mahalanobis ratio)" for p in problems)]
    rows = [[name, *values] for name, values in cells.items()]
    return f"Floor of sliced W2 / limit of NLL − H: {'; '.join(floors)}.\n\n{table(head, rows)}"
