"""Heun's method for the reverse SDEs, in variance-exploding coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from scoresde._core.checks import check_nonnegative
from scoresde.samplers.base import Noise, Sampler, noise_level_at
from scoresde.samplers.grids import Karras
from scoresde.scores import Score
from scoresde.sdes import SDE


@dataclass(frozen=True)
class Heun(Sampler):
    r"""Heun's method for y = x/α in ρ = σ/α; EDM's sampler if η = 0, stochastic Heun if η > 0.

    It integrates ::

        dy = (1 + η²) ε̂ dρ + η √(2ρ) dw̄

    by ::

        y' = y + (1 + η²) Δ ε̂ + η ξ,      y_s = y + ½ (1 + η²) Δ (ε̂ + ε̂') + η ξ,

    with Δ = ρ_s − ρ_t < 0 and ξ ~ N(0, ρ_t² − ρ_s²). The order is 2, for η > 0 that of mean and
    variance.

    Args:
        eta: η >= 0; 0 is the probability flow, 1 the reverse SDE.

    Example:
        >>> Heun()
        Heun(eta=0.0)

    References:
        Karras et al. 2022, arXiv:2206.00364, algorithm 1; Kloeden & Platen 1992, section 14.1.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        check_nonnegative("eta", self.eta)

    @property
    def default_steps(self) -> int:
        return 50

    @property
    def deterministic(self) -> bool:
        return self.eta == 0

    @property
    def convergence_order(self) -> float:
        return 2.0

    def times(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        """Return times ``(N+1,)`` on the grid of EDM."""
        return Karras()(sde, steps, std)

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        """Two evaluations of the score (see :meth:`Sampler.step`)."""
        start, end = noise_level_at(score.sde, t), noise_level_at(score.sde, s)
        h = (1 + self.eta**2) * end.alpha * (end.ratio - start.ratio)
        result = x * math.exp(end.log_alpha - start.log_alpha)
        if self.eta:
            std = self.eta * end.alpha * math.sqrt(start.ratio**2 - end.ratio**2)
            result.add_(noise(x), alpha=std)
        slope = score.noise(x, t)
        end_slope = score.noise(result.add(slope, alpha=h), s)
        return result.add_(slope, alpha=0.5 * h).add_(end_slope, alpha=0.5 * h), None
