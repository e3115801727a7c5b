"""Ancestral sampling, the step of DDPM and SMLD."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from scoresde._core.checks import check_between
from scoresde.samplers.base import Noise, Sampler, noise_level_at
from scoresde.scores import Score


@dataclass(frozen=True)
class Ancestral(Sampler):
    r"""Draw x_s from q(x_s | x_t, x̂), the posterior of the forward chain.

    The denoised x̂ takes the place of the data.

    With h = λ_s − λ_t > 0 and the kernel x_t = a x_s + b z between s and t, ::

        x_s = (σ_s/σ_t) e^{−h} x_t + α_s (1 − e^{−2h}) x̂(x_t, t) + σ̃ z,

        σ̃ = (σ_s √(1 − e^{−2h}))^{1−v} b^v.

    For the timesteps of a DDPM this is its reverse chain, for geometric noise levels that of SMLD.
    For v = 0 it is the exact solution of the reverse SDE (η = 1) with x̂ constant over the step.

    Args:
        variance: v in [0, 1]. 0: the posterior's variance, exact if the data are one point ("fixed
            small"). 1: that of the forward kernel, exact if the data are N(0, I) under VP ("fixed
            large", the choice of Song et al.). Values between interpolate the logarithm, as for
            learned variances.

    Raises:
        ValueError: unless ``variance`` is in [0, 1].

    Example:
        >>> Ancestral(variance=1.0)
        Ancestral(variance=1.0)

    References:
        Ho et al. 2020, arXiv:2006.11239, eqs. 6, 7 and 11; Song et al. 2021, arXiv:2011.13456,
        appendix F; Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15 (v); Kingma et al. 2021, eq.
        32.
    """

    variance: float = 0.0

    def __post_init__(self) -> None:
        check_between("variance", self.variance, 0.0, 1.0)

    @property
    def convergence_order(self) -> float:
        return 1.0

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        """One evaluation of the score (see :meth:`Sampler.step`)."""
        start, end = noise_level_at(score.sde, t), noise_level_at(score.sde, s)
        h = end.half_logsnr - start.half_logsnr
        weight = -math.expm1(-2 * h)
        small, large = (level.sigma * math.sqrt(weight) for level in (end, start))
        std = small ** (1 - self.variance) * large**self.variance
        mean = x * math.exp(end.log_sigma - start.log_sigma - h)
        mean.add_(score.denoised(x, t), alpha=end.alpha * weight)
        return mean.add_(noise(x), alpha=std), None
