"""Sampling methods at a given number of evaluations: ours and a literal DPM-Solver++(2M).

A method starts at y = ρ_T · noise, and returns its last state and the ρ there. Evaluations of the
denoiser are counted during the run, the one of the final denoising included.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sampling.problems import Problem
from scoresde import DATA, FunctionScore, GaussianSDE, Moments
from scoresde.samplers import Sampler, sample


class Outcome(NamedTuple):
    """The result of a method."""

    start: float
    """ρ_T"""
    end: float
    """The last ρ; 0 if the result is a sample of the data."""
    y: Tensor
    """The last state, in VE coordinates."""
    evaluations: int


Spacing = Callable[[float, float, int], list[float]]
"""Start, end and number of steps to falling ρ."""


class Counted:
    """A denoiser D(y; ρ) that counts its evaluations."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.count = 0

    def __call__(self, y: Tensor, ratio: float | Tensor) -> Tensor:
        """Return D(y; ρ)."""
        self.count += 1
        return self.problem.denoised(y, ratio)


class Method(ABC):
    """A method with its settings; ``random`` if it draws noise, so that it has no strong error."""

    name: str
    random: bool = False

    @abstractmethod
    def __call__(self, problem: Problem, noise: Tensor, evaluations: int) -> Outcome | None:
        """Run with at most so many evaluations; None if it cannot."""


def counted_score(problem: Problem, sde: GaussianSDE, moments: bool = True) -> FunctionScore:
    """Return the exact score with a ``calls`` list that grows by one per evaluation."""
    calls = []

    def denoised(x: Tensor, t: Tensor) -> Tensor:
        calls.append(1)
        return problem.denoised(x / float(sde.alpha(t)), math.exp(-float(sde.half_logsnr(t))))

    score = FunctionScore(denoised, sde, DATA, problem.data.moments if moments else Moments())
    score.calls = calls  # type: ignore[assignment]
    return score


@dataclass(frozen=True)
class Ours(Method):
    """A sampler of this library, run by `sample` under a diffusion, on its own grid.

    Args:
        name: its name in tables.
        sampler: the sampler.
        sde: the diffusion.
        denoise: as of `sample`.
        moments: whether the score has the mean and covariance of the data.
    """

    name: str
    sampler: Sampler
    sde: GaussianSDE = field(hash=False, compare=False)
    denoise: bool | None = False
    moments: bool = True

    @property
    def random(self) -> bool:  # type: ignore[override]
        """Whether it draws noise."""
        return not self.sampler.deterministic

    def __call__(self, problem: Problem, noise: Tensor, evaluations: int) -> Outcome | None:
        """Make as many steps as the evaluations allow."""
        fixed, each = self._cost(problem)
        steps = (evaluations - fixed) // each
        while steps > 0 and self._count(problem, steps) > evaluations:
            steps -= 1  # the end may need one more evaluation with many steps than with few
        if steps < 1:
            return None
        score = counted_score(problem, self.sde, self.moments)
        alpha, sigma = (float(v(self.sde.T)) for v in (self.sde.alpha, self.sde.sigma))
        x = sample(
            score, None, self.sampler, steps=steps, start=sigma * noise, denoise=self.denoise,
            generator=torch.Generator().manual_seed(5),
        )  # fmt: skip
        low = self.sde.t_min
        if self.denoise is not False:
            return Outcome(sigma / alpha, 0.0, x, len(score.calls))
        end, y = math.exp(-float(self.sde.half_logsnr(low))), x / float(self.sde.alpha(low))
        return Outcome(sigma / alpha, end, y, len(score.calls))

    def _cost(self, problem: Problem) -> tuple[int, int]:
        """Return the evaluations of no step and of one more, by counting those of two and three."""
        two, three = (self._count(problem, steps) for steps in (2, 3))
        return 3 * two - 2 * three, three - two

    def _count(self, problem: Problem, steps: int) -> int:
        """Count the evaluations of a single sample."""
        score = counted_score(problem, self.sde, self.moments)
        sample(
            score, None, self.sampler, steps=steps, denoise=self.denoise,
            start=torch.ones(1, problem.dimension, dtype=torch.float64),
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return len(score.calls)


@dataclass(frozen=True)
class DPMSolver2M(Method):
    """The recursion of DPM-Solver++(2M), literally, on any grid of falling ρ.

        y' = (ρ'/ρ) y − (e^{−h} − 1) ((1 + 1/2r) D − D₋/2r),      h = ln ρ/ρ',   r = h₋/h

    References:
        Lu et al. 2022, arXiv:2211.01095, algorithm 2; `sample_dpmpp_2m` of k-diffusion.
    """

    name: str
    spacing: Spacing
    start: float
    end: float

    def __call__(self, problem: Problem, noise: Tensor, evaluations: int) -> Outcome:
        """Make one step per evaluation."""
        ratios = self.spacing(self.start, self.end, evaluations)
        denoised = Counted(problem)
        y = multistep_2m(denoised, ratios[0] * noise, ratios)
        return Outcome(self.start, ratios[-1], y, denoised.count)


def multistep_2m(denoised: Counted, y: Tensor, ratios: Sequence[float]) -> Tensor:
    """Run DPM-Solver++(2M) down ``ratios``; a last ratio of 0 is a step of first order."""
    previous = None
    for i in range(len(ratios) - 1):
        start, end = ratios[i], ratios[i + 1]
        now = value = denoised(y, start)
        if previous is not None and end > 0:
            r = math.log(ratios[i - 1] / start) / math.log(start / end)
            value = (1 + 1 / (2 * r)) * now - previous / (2 * r)
        y = end / start * y + (1 - end / start) * value
        previous = now
    return y


def uniform_logsnr(start: float, end: float, steps: int) -> list[float]:
    """Return ``steps + 1`` ratios falling from ``start`` to ``end``, equidistant in log ρ."""
    return [start * (end / start) ** (i / steps) for i in range(steps)] + [end]


def karras(start: float, end: float, steps: int) -> list[float]:
    """Return ratios equidistant in ρ^{1/7}."""
    high, low = start ** (1 / 7), end ** (1 / 7)
    return [(high + i / steps * (low - high)) ** 7 for i in range(steps)] + [end]


def uniform_time(start: float, end: float, steps: int) -> list[float]:
    """Return ratios equidistant in the time of VP(0.1, 20), ρ² = e^{0.1 t + 9.95 t²} − 1."""
    first, last = (
        (math.sqrt(0.01 + 39.8 * math.log1p(ratio**2)) - 0.1) / 19.9 for ratio in (start, end)
    )
    times = [first + i / steps * (last - first) for i in range(1, steps)]
    return [start, *(math.sqrt(math.expm1(0.1 * t + 9.95 * t**2)) for t in times), end]
