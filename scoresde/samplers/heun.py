"""Heun's method on the reverse family, told as if all diffusions exploded in variance."""

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
    r"""Heun's method for y = x/α in ρ = σ/α; EDM's sampler with η = 0, stochastic Heun with η > 0.

        dy = (1 + η²) ε̂ dρ + η √(2ρ) dw̄,

        y' = y + (1 + η²) Δ ε̂ + η ξ,      y_s = y + ½ (1 + η²) Δ (ε̂ + ε̂') + η ξ,

    with Δ = ρ_s − ρ_t < 0 and ξ ~ N(0, ρ_t² − ρ_s²). Order 2, of the mean and the variance too if η
    > 0.

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
        """How many steps are made where the user does not say."""
        return 50

    @property
    def deterministic(self) -> bool:
        """Whether no noise is drawn."""
        return self.eta == 0

    @property
    def convergence_order(self) -> float:
        """Two."""
        return 2.0

    def times(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        """Return times ``(N+1,)`` on EDM's grid."""
        return Karras()(sde, steps, std)

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        """Go from t to s; two evaluations of the score."""
        here, there = noise_level_at(score.sde, t), noise_level_at(score.sde, s)
        push = (1 + self.eta**2) * there.alpha * (there.ratio - here.ratio)
        base = x * math.exp(there.log_alpha - here.log_alpha)
        if self.eta:
            std = self.eta * there.alpha * math.sqrt(here.ratio**2 - there.ratio**2)
            base.add_(noise(x), alpha=std)
        slope = score.noise(x, t)
        later = score.noise(base.add(slope, alpha=push), s)
        return base.add_(slope, alpha=0.5 * push).add_(later, alpha=0.5 * push), None
