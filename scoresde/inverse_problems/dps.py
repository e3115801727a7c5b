"""Diffusion posterior sampling: the likelihood of x̂, differentiated through the denoiser."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde._core.checks import check_nonnegative, check_positive
from scoresde._core.shapes import expand
from scoresde.inverse_problems.measurement import Measurement
from scoresde.inverse_problems.posterior import (
    LinearizedDenoiser,
    TweediePosterior,
    conditional_variance,
)
from scoresde.scores import Score


class DPS(TweediePosterior):
    r"""Diffusion posterior sampling: p(y|x_t) ≈ p(y|x_0 = x̂), for any likelihood.

    ::

        x̂_y = x̂ + ζ (σ²/α) Jᵀ ∇ log p(y|x̂),    ζ = scale / (1 + κ r²).

    The paper has κ = 0, which ignores the variance r² = cσ²/(α²c + σ²) of x_0 given x_t (for data
    of variance c): at high noise the guidance term is too large, by a factor of about κ r² with κ
    the curvature of −log p(y|x_0). The equation becomes stiff, the samples too narrow, and the
    effective sample size of :func:`twisted_smc` small. Pass κ where it is about known.

    Args:
        score: the prior.
        measurement: an Observation or a NonlinearObservation with σ_y > 0, or any LogLikelihood.
        scale: > 0, 1 for Bayes' theorem. (The paper divides by ‖y − A x̂‖ instead, step by step: see
            :class:`NormalizedDPS`.)
        curvature: κ >= 0, in 1/unit² of x; ‖A‖²/σ_y² for an Observation.

    Raises:
        ValueError: if the observation has σ_y = 0, or a number is out of range.

    Example:
        >>> import torch
        >>> from scoresde import FunctionScore, VPSDE
        >>> from scoresde.inverse_problems import LogLikelihood
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I)
        >>> on_ring = LogLikelihood(lambda x: -50 * (x.norm(dim=1) - 1) ** 2)
        >>> DPS(prior, on_ring).denoised(torch.tensor([[1.0, 0.0]]), 0.1)
        tensor([[1.4993, 0.0000]])
        >>> DPS(prior, on_ring, curvature=100.0).denoised(torch.tensor([[1.0, 0.0]]), 0.1)
        tensor([[0.9953, 0.0000]])

    References:
        Chung et al., *Diffusion posterior sampling for general noisy inverse problems*, 2023,
        arXiv:2209.14687, theorem 1 and eq. 16.
    """

    def __init__(
        self,
        score: Score,
        measurement: Measurement,
        scale: float = 1.0,
        curvature: float = 0.0,
    ) -> None:
        super().__init__(score, measurement)
        self.scale = check_positive("scale", scale)
        self.curvature = check_nonnegative("curvature", curvature)
        measurement.check_density()

    def guidance_gradient(self, denoiser: LinearizedDenoiser) -> tuple[Tensor, Tensor]:
        """Return ζ ∇ log p(y|x̂) and ζ log p(y|x̂)."""
        differentiable = denoiser.denoised.requires_grad
        with torch.enable_grad():
            x = denoiser.denoised
            clean = x if differentiable else x.detach().requires_grad_()
            value = self.measurement.log_prob(clean)
            (g,) = torch.autograd.grad(value.sum(), clean, create_graph=differentiable)
        variance = conditional_variance(self.moments.variance, denoiser).mean(-1)
        zeta = self.scale / (1 + self.curvature * variance)
        value = expand(zeta, value) * value
        return expand(zeta, g) * g, value if differentiable else value.detach()

    def with_parts(self, score: Score, measurement: Measurement) -> DPS:
        return DPS(score, measurement, self.scale, self.curvature)
