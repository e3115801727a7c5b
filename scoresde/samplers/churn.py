"""Noise added before each step: the stochastic sampler of EDM."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoresde._core.checks import check_instance, check_nonnegative, check_positive
from scoresde._core.shapes import expand
from scoresde.samplers.base import Noise, Sampler, check_gaussian
from scoresde.samplers.heun import Heun
from scoresde.scores import Score
from scoresde.sdes import SDE


@dataclass(frozen=True)
class Churn(Sampler):
    r"""Raise the noise level by the forward kernel, then make a step of another sampler.

    With ρ = σ/α, where lowest <= ρ_t <= highest, ::

        ρ̂ = min((1 + γ) ρ_t, ρ_T),     x ← (α_t̂/α_t) x + α_t̂ √(ρ̂² − ρ_t²) S z,     then t̂ → s,

    The forward kernel (S = 1) takes p_t to p_t̂ exactly, so that any single-step sampler can follow.

    Args:
        sampler: the sampler of the step; a single-step method.
        gamma: γ >= 0; EDM's min(S_churn/N, √2 − 1).
        lowest: S_min, the smallest ρ at which noise is added.
        highest: S_max, the largest.
        inflation: S = S_noise; above 1 compensates for a network that removes too much noise.

    Raises:
        TypeError: if ``sampler`` is not a Sampler.
        ValueError: if a number is out of range.

    Example:
        >>> Churn(Heun(), gamma=0.1)
        Churn(sampler=Heun(eta=0.0), gamma=0.1, lowest=0.0, highest=inf, inflation=1.0)

    References:
        Karras et al. 2022, arXiv:2206.00364, algorithm 2.
    """

    sampler: Sampler = field(default_factory=Heun)
    gamma: float = math.sqrt(2) - 1
    lowest: float = 0.0
    highest: float = math.inf
    inflation: float = 1.0

    def __post_init__(self) -> None:
        check_instance("sampler", self.sampler, Sampler, "Heun()")
        check_nonnegative("gamma", self.gamma)
        check_nonnegative("lowest", self.lowest)
        check_positive("inflation", self.inflation)

    @property
    def default_steps(self) -> int:
        return self.sampler.default_steps

    @property
    def deterministic(self) -> bool:
        """Whether no noise is added and the sampler draws none."""
        return not self.gamma and self.sampler.deterministic

    @property
    def convergence_order(self) -> float | None:
        """The sampler's if γ = 0; otherwise it depends on how γ changes with N, and is None."""
        return None if self.gamma else self.sampler.convergence_order

    def times(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        return self.sampler.times(sde, steps, std)

    def init(self, score: Score, x: Tensor, times: Tensor) -> Any:
        return self.sampler.init(score, x, times)

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        """Make the step from t to t̂ and on to s; the evaluations are the sampler's."""
        sde = check_gaussian(score.sde)
        half_logsnr = sde.half_logsnr(t)
        if self.gamma and self.lowest <= math.exp(-float(half_logsnr)) <= self.highest:
            raised = torch.maximum(sde.time_at(half_logsnr - math.log1p(self.gamma)), t)
            scale, std = sde.transition(t, raised)
            x = expand(scale, x) * x + expand(self.inflation * std, x) * noise(x)
            t = raised
        return self.sampler.step(score, x, t, s, state, noise)

    def end(self, score: Score, x: Tensor, t: Tensor, state: Any) -> Tensor:
        return self.sampler.end(score, x, t, state)
