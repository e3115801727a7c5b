"""The step of the paper's predictor: the forward kernel turned round."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scoresde.samplers.base import Noise, Sampler, check_gaussian
from scoresde.scores import Score


@dataclass(frozen=True)
class ReverseDiffusion(Sampler):
    r"""Discretise the reverse SDE as the forward one is, with x_t = a x_s + b z between s and t.

        x_s = x − (a − 1) x + b² s(x, t) + b z.

    On the knots of a discretised diffusion this is the published predictor; between any two times
    it is exact in the kernel and of weak order 1. All Gaussian diffusions have it, sub-VP included.

    Example:
        >>> ReverseDiffusion()
        ReverseDiffusion()

    References:
        Song et al. 2021, arXiv:2011.13456, eq. 46 (appendix E).
    """

    @property
    def convergence_order(self) -> float:
        """One."""
        return 1.0

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        """Go from t to s < t; one evaluation of the score."""
        a, b = (float(value) for value in check_gaussian(score.sde).transition(s, t))
        mean = (x * (2 - a)).add_(score(x, t), alpha=b**2)
        return mean.add_(noise(x), alpha=b), None
