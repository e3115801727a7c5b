"""Denoise, then a proximal step to the observation: DiffPIR and DDNM, without derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde._core.checks import check_nonnegative
from scoresde._core.conjugate_gradients import inner
from scoresde._core.shapes import Time
from scoresde.inverse_problems.measurement import (
    GaussianMeasurement,
    Measurement,
    Observation,
    check_gaussian_measurement,
    check_observation,
)
from scoresde.inverse_problems.posterior import PosteriorScore, Update
from scoresde.scores import Score


class DiffPIR(PosteriorScore):
    r"""Denoise, then solve a regularized least-squares problem; no derivative of the score.

    ::

        x̂_y = argmin_u ‖y − A u‖² + λ σ_y² (α²/σ²) ‖u − x̂‖² = x̂ + Aᵀ (A Aᵀ + c)^{-1} (y − A x̂),

    c = λ σ_y² α²/σ². For c = 0 (no noise, or λ = 0) the component A⁺A x̂ is replaced by A⁺ y:
    that is DDNM (:func:`ddnm`).

    Args:
        score: the prior.
        observation: y = A x_0 + σ_y n, or y = F(x_0) + σ_y n with A = ∂F/∂x at x̂ (one
            Gauss–Newton step); σ_y >= 0.
        weight: λ >= 0; with 0 the noise of y is ignored.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> from scoresde.inverse_problems import Observation
        >>> from scoresde.operators import Mask
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())
        >>> first = Observation(Mask(torch.tensor([True, False])), torch.ones(1, 1))
        >>> DiffPIR(prior, first).denoised(torch.zeros(1, 2), 0.5)
        tensor([[1., 0.]])

    References:
        Zhu et al., *Denoising diffusion models for plug-and-play image restoration*, 2023,
        arXiv:2305.08995, eqs. 12 and 13; Wang et al., *Zero-shot image restoration using denoising
        diffusion null-space model*, 2022, arXiv:2212.00490, eq. 13.
    """

    measurement: GaussianMeasurement

    def __init__(self, score: Score, observation: GaussianMeasurement, weight: float = 1.0) -> None:
        super().__init__(score, check_gaussian_measurement(observation))
        self.weight = check_nonnegative("weight", weight)

    def update(self, x: Tensor, t: Time) -> Update:
        """Return x̂, x̂_y and log p(y|x_t) for p(x_0|x_t) = N(x̂, σ²/(λα²)); one evaluation."""
        time = self.sde.interior(t)
        clean = self.score.denoised(x, time)
        precision = self.weight * torch.exp(2 * self.sde.half_logsnr(time))
        operator, residual = self.measurement.linearize(clean), self.measurement.residual(clean)
        w = operator.solve(residual, precision * self.measurement.variance)
        value = -0.5 * precision.to(x) * inner(residual, w)
        return Update(clean, clean + operator.adjoint(w), value)

    def with_parts(self, score: Score, measurement: Measurement) -> DiffPIR:
        return DiffPIR(score, check_gaussian_measurement(measurement), self.weight)


def ddnm(score: Score, observation: Observation) -> DiffPIR:
    r"""Return DDNM, null-space denoising: x̂_y = x̂ + A⁺ (y − A x̂), which ignores σ_y.

    Args:
        score: the prior.
        observation: y = A x_0, linear.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> from scoresde.operators import Grayscale
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())
        >>> gray = Observation(Grayscale((0.5, 0.5)), torch.ones(1, 1))
        >>> ddnm(prior, gray).denoised(torch.tensor([[0.0, 0.0]]), 0.5)
        tensor([[1., 1.]])

    References:
        Wang et al. 2022, arXiv:2212.00490, eq. 13.
    """
    return DiffPIR(score, check_observation(observation), weight=0.0)
