"""Reverse diffusion sampling, the predictor of Song et al."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scoresde.samplers.base import Noise, Sampler, check_gaussian
from scoresde.scores import Score


@dataclass(frozen=True)
class ReverseDiffusion(Sampler):
    r"""Discretize the reverse SDE like the forward one, with x_t = a x_s + b z between s and t.

    The step is ::

        x_s = x − (a − 1) x + b² s(x, t) + b z.

    On the timesteps of a discrete diffusion this is the published predictor. Between any two times
    it uses the exact forward kernel, and is of weak order 1. It is defined for every Gaussian SDE,
    sub-VP included.

    Example:
        >>> ReverseDiffusion()
        ReverseDiffusion()

    References:
        Song et al. 2021, arXiv:2011.13456, eq. 46 (appendix E).
    """

    @property
    def convergence_order(self) -> float:
        return 1.0

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        """One evaluation of the score (see :meth:`Sampler.step`)."""
        a, b = (float(value) for value in check_gaussian(score.sde).transition(s, t))
        mean = (x * (2 - a)).add_(score(x, t), alpha=b**2)
        return mean.add_(noise(x), alpha=b), None
