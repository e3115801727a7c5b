"""The simplest step, for any SDE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from scoresde._checks import check_nonnegative
from scoresde._shapes import expand
from scoresde.samplers.base import Noise, Sampler
from scoresde.score import Score
from scoresde.sdes import Reverse


@dataclass(frozen=True)
class EulerMaruyama(Sampler):
    r"""Euler–Maruyama on the reverse family; the one step that any SDE has.

        x_s = x − (t − s) [f(x, t) − ½(1+η²) g² s(x, t)] + η g √(t − s) z

    Weak order 1, strong order 1 (the noise does not depend on the state).

    Args:
        eta: η >= 0, a number or a function of t; 1 is the reverse SDE, 0 the probability flow.

    Example:
        >>> EulerMaruyama()
        EulerMaruyama(eta=1.0)

    References:
        Song et al. 2021, arXiv:2011.13456, eq. 6 and appendix D; Kloeden & Platen, *Numerical
        solution of stochastic differential equations*, 1992, section 10.2.
    """

    eta: float | Callable[[Tensor], Tensor] = 1.0

    def __post_init__(self) -> None:
        if not callable(self.eta):
            check_nonnegative("eta", self.eta)

    @property
    def deterministic(self) -> bool:
        """Whether no noise is drawn."""
        return self.eta == 0

    def init(self, score: Score, x: Tensor, t: Tensor) -> Reverse:
        """Return the reversed SDE."""
        return score.sde.reverse(score, self.eta)

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Reverse, noise: Noise
    ) -> tuple[Tensor, Reverse]:
        """Go from t to s < t; one evaluation of the score."""
        mean = x - expand(t - s, x) * state.drift(x, t)
        if self.deterministic:
            return mean, state
        spread = state.diffusion(t) * (t - s).sqrt()
        return mean + expand(spread, x) * noise(x), state
