r"""Posterior scores: Bayes' theorem at every noise level.

By Tweedie's formula the denoiser of the posterior p(x_0|y) is that of the prior, and a push,

    x̂_y = E[x_0|x_t, y] = x̂ + (σ²/α) ∇ log p(y|x_t),    p(y|x_t) = ∫ p(y|x_0) p(x_0|x_t) dx_0.

The integral is not known. If p(x_0|x_t) is taken for N(x̂, V) and y = A x_0 + σ_y n, then

    x̂_y = x̂ + G Aᵀ (A V Aᵀ + σ_y²)^{-1} (y − A x̂),

one Kalman update, where G = (σ²/α) Jᵀ with the denoiser's Jacobian J = ∂x̂/∂x. At the truth
Cov[x_0|x_t] = (σ²/α) J = G as well. The published methods differ by what they take for V and G:

| method | V | G | exact if the data are |
|---|---|---|---|
| DPS | 0 | (σ²/α) Jᵀ | one point |
| ΠGDM | that of Gaussian data, known in advance | (σ²/α) Jᵀ | Gaussian with the moments given |
| MMPS | (σ²/α) Jᵀ | (σ²/α) Jᵀ | Gaussian |
| DiffPIR | r² 1, r² = σ²/(λα²) | r² 1 | – |
| DDNM | DiffPIR for λ → 0 | | – |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, final

import torch
from torch import Tensor

from scoresde._checks import check_integer, check_nonnegative, check_positive
from scoresde._linalg import Map, conjugate_gradients, inner
from scoresde._shapes import Time, check_batch, expand, flatten
from scoresde.guidance.measurement import Measurement, Observation
from scoresde.moments import Moments
from scoresde.score import Score
from scoresde.traces.base import Tape


class Update(NamedTuple):
    """What a measurement makes of a state."""

    prior: Tensor
    """x̂ ``(batch, *event)``"""
    posterior: Tensor
    """x̂_y ``(batch, *event)``"""
    log_likelihood: Tensor
    """The method's own log p(y|x_t) ``(batch,)``, up to a constant of t."""


class PosteriorScore(Score, ABC):
    """The score of p(x_t|y), or what a method takes for it: define :meth:`update`.

    It is a Score again: sample from it with any sampler, or ask for log p(x|y).

    Args:
        score: the prior.
        measurement: the likelihood.

    Raises:
        TypeError: if the arguments are of the wrong kind.
    """

    def __init__(self, score: Score, measurement: Measurement) -> None:
        if not isinstance(score, Score):
            raise TypeError(
                f"score: expected a Score such as ScoreModel(…), got {type(score).__name__}"
            )
        if not isinstance(measurement, Measurement):
            raise TypeError(
                f"measurement: expected an Observation or a LogLikelihood, got {measurement!r}"
            )
        super().__init__(score.sde)
        self.score = score
        self.measurement = measurement

    @abstractmethod
    def update(self, x: Tensor, t: Time) -> Update:
        """Return x̂, x̂_y and log p(y|x_t) for ``x`` ``(batch, *event)`` at ``t``."""

    @abstractmethod
    def with_parts(self, score: Score, measurement: Measurement) -> PosteriorScore:
        """Return the same method on another prior and measurement."""

    @final
    def denoised(self, x: Tensor, t: Time) -> Tensor:
        """Return x̂_y, shaped like ``x`` ``(batch, *event)``."""
        return self.update(x, t).posterior

    @final
    def rows(self, index: Tensor | slice) -> PosteriorScore:
        """Return the posterior of a part of the batch, with its rows of the measurement."""
        return self.with_parts(self.score.rows(index), self.measurement.rows(index))


class Look(NamedTuple):
    """The prior's denoiser at a state, ready to be differentiated."""

    clean: Tensor
    """x̂ ``(batch, *event)``"""
    covariance: Map
    """v -> (σ²/α) Jᵀ v, the covariance of x_0 given x_t; one backward pass each."""
    alpha: Tensor
    sigma: Tensor


def check_observation(measurement: Measurement) -> Observation:
    """Return what is a linear observation, and refuse what is not."""
    if not isinstance(measurement, Observation):
        raise TypeError(
            f"observation: expected an Observation, which is linear, got {measurement!r}; for "
            "other likelihoods take DPS"
        )
    return measurement


class TweediePosterior(PosteriorScore):
    """x̂_y = x̂ + (σ²/α) Jᵀ g, for a gradient g in the space of clean data."""

    @abstractmethod
    def pull(self, look: Look) -> tuple[Tensor, Tensor]:
        """Return g, shaped like x, and log p(y|x_t) ``(batch,)``."""

    def update(self, x: Tensor, t: Time) -> Update:
        """Return x̂, x̂_y and log p(y|x_t); one evaluation and its derivatives."""
        time = self.sde.interior(t)
        check_batch(time, x)
        log_alpha, log_sigma = self.sde.log_alpha(time), self.sde.log_sigma(time)
        gain = expand((2 * log_sigma - log_alpha).exp(), x)
        tape = Tape(
            lambda flat: flatten(self.score.denoised(flat.reshape(x.shape), time)),
            flatten(x),
            torch.is_grad_enabled() and x.requires_grad,
            batched=False,
        )

        def covariance(v: Tensor) -> Tensor:
            return gain * tape.product(flatten(v).unsqueeze(0)).reshape(x.shape)

        clean = tape.value.reshape(x.shape)
        g, value = self.pull(Look(clean, covariance, log_alpha.exp(), log_sigma.exp()))
        return Update(clean, clean + covariance(g), value)


class DPS(TweediePosterior):
    r"""Diffusion posterior sampling: p(y|x_t) ≈ p(y|x_0 = x̂), for any likelihood.

        x̂_y = x̂ + ζ (σ²/α) Jᵀ ∇ log p(y|x̂).

    It ignores the spread of x_0 given x_t: at high noise the push is too strong, by a factor of
    Var(A x_0|x_t)/σ_y². That makes it stiff for small σ_y, and its samples too narrow.

    Args:
        score: the prior.
        measurement: an Observation with σ_y > 0, or any LogLikelihood.
        scale: ζ > 0, 1 for Bayes' theorem. (The paper divides by ‖y − A x̂‖ instead, step by step.)

    Raises:
        ValueError: if the observation has σ_y = 0, or ``scale`` is not positive.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> from scoresde.guidance import LogLikelihood
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I)
        >>> on_ring = LogLikelihood(lambda x: -50 * (x.norm(dim=1) - 1) ** 2)
        >>> DPS(prior, on_ring).denoised(torch.tensor([[1.0, 0.0]]), 0.1)
        tensor([[1.4993, 0.0000]])

    References:
        Chung et al., *Diffusion posterior sampling for general noisy inverse problems*, 2023,
        arXiv:2209.14687, theorem 1 and eq. 16.
    """

    def __init__(self, score: Score, measurement: Measurement, scale: float = 1.0) -> None:
        super().__init__(score, measurement)
        self.scale = check_positive("scale", scale)
        measurement.check_density()

    def pull(self, look: Look) -> tuple[Tensor, Tensor]:
        """Return ζ ∇ log p(y|x̂) and log p(y|x̂)."""
        differentiable = look.clean.requires_grad
        with torch.enable_grad():
            clean = look.clean if differentiable else look.clean.detach().requires_grad_()
            value = self.measurement.log_prob(clean)
            (g,) = torch.autograd.grad(value.sum(), clean, create_graph=differentiable)
        return self.scale * g, value if differentiable else value.detach()

    def with_parts(self, score: Score, measurement: Measurement) -> DPS:
        """Return DPS on another prior and measurement."""
        return DPS(score, measurement, self.scale)


class KalmanPosterior(TweediePosterior):
    """x_0 given x_t taken for N(x̂, V): g = Aᵀ (A V Aᵀ + σ_y²)^{-1} (y − A x̂)."""

    measurement: Observation

    def __init__(
        self,
        score: Score,
        observation: Observation,
        moments: Moments | None,
        iterations: int,
        tolerance: float,
    ) -> None:
        super().__init__(score, check_observation(observation))
        self.stand_in = score.moments if moments is None else moments
        self.iterations = check_integer("iterations", iterations, minimum=1)
        self.tolerance = check_positive("tolerance", tolerance)

    @abstractmethod
    def spread(self, look: Look) -> Map:
        """Return v -> V v."""

    def pull(self, look: Look) -> tuple[Tensor, Tensor]:
        """Return g and −½ (y − A x̂)ᵀ (A V Aᵀ + σ_y²)^{-1} (y − A x̂)."""
        operator, noise = self.measurement.operator, self.measurement.variance
        residual, spread = self.measurement.residual(look.clean), self.spread(look)
        variance = self.remaining(look).mean(-1)
        w = conjugate_gradients(
            lambda v: operator(spread(operator.adjoint(v))) + noise * v,
            residual,
            iterations=self.iterations,
            tolerance=self.tolerance,
            precondition=lambda v: operator.solve(v, noise / variance) / expand(variance, v),
        )
        return operator.adjoint(w), -0.5 * inner(residual, w)

    def remaining(self, look: Look) -> Tensor:
        """Return c σ²/(α² c + σ²), the variances of Gaussian data given x_t: ``(…, 1 or d)``."""
        c = self.stand_in.variance.reshape(-1)
        alpha, sigma = (v.unsqueeze(-1).to(c.device) for v in (look.alpha, look.sigma))
        return c * sigma**2 / (alpha**2 * c + sigma**2)


class PiGDM(KalmanPosterior):
    r"""Pseudoinverse-guided diffusion: V is what it is for Gaussian data of known moments.

        V = E diag(c σ²/(α² c + σ²)) Eᵀ    for data N(m, E diag(c) Eᵀ);

    the paper has c = 1. One evaluation and one product with its Jacobian.

    Args:
        score: the prior.
        observation: y = A x_0 + σ_y n; σ_y = 0 is welcome.
        moments: of the data; those the score knows if None, and variance 1 if it knows none.
        iterations: how many steps of conjugate gradients are made at most; one is enough where V is
            a multiple of 1.
        tolerance: relative error at which they stop.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> from scoresde.operators import Matrix
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I)
        >>> both = Observation(Matrix(torch.ones(1, 2)), torch.ones(1, 1), noise_std=1.0)
        >>> PiGDM(prior, both).denoised(torch.zeros(1, 2), 1.0)  # nearly the posterior mean, 1/3
        tensor([[0.3333, 0.3333]])

    References:
        Song et al., *Pseudoinverse-guided diffusion models for inverse problems*, ICLR 2023, eqs. 7
        and 8; with the data's covariance: Peng et al. 2024, arXiv:2402.02149.
    """

    def __init__(
        self,
        score: Score,
        observation: Observation,
        moments: Moments | None = None,
        iterations: int = 20,
        tolerance: float = 1e-6,
    ) -> None:
        super().__init__(score, observation, moments, iterations, tolerance)

    def spread(self, look: Look) -> Map:
        """Return v -> V v of Gaussian data."""
        variance, moments = self.remaining(look).to(look.clean), self.stand_in

        def apply(v: Tensor) -> Tensor:
            return moments.rotate_back(moments.rotate(flatten(v)) * variance).reshape(v.shape)

        return apply

    def with_parts(self, score: Score, measurement: Measurement) -> PiGDM:
        """Return ΠGDM on another prior and observation."""
        observation = check_observation(measurement)
        return PiGDM(score, observation, self.stand_in, self.iterations, self.tolerance)


class MMPS(KalmanPosterior):
    r"""Moment-matching posterior sampling: V = (σ²/α) Jᵀ, the covariance as the score knows it.

    Nothing needs to be known of the data, and the mean and covariance of p(x_0|x_t) are right
    wherever the score is; its shape is still taken for Gaussian. One evaluation, and a product
    with its Jacobian for every step of conjugate gradients and one more.

    Args:
        score: the prior.
        observation: y = A x_0 + σ_y n; σ_y = 0 is welcome.
        iterations: how many steps of conjugate gradients are made at most.
        tolerance: relative error at which they stop.
        moments: of the data, for the preconditioner alone; those the score knows if None.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> from scoresde.operators import Matrix
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I)
        >>> both = Observation(Matrix(torch.ones(1, 2)), torch.ones(1, 1), noise_std=1.0)
        >>> MMPS(prior, both).denoised(torch.zeros(1, 2), 1.0)  # nearly the posterior mean, 1/3
        tensor([[0.3333, 0.3333]])

    References:
        Rozet et al., *Learning diffusion priors from observations by expectation maximization*,
        2024, arXiv:2405.13712, algorithm 2 and eq. 17; Boys et al., *Tweedie moment projected
        diffusions*, 2023, arXiv:2310.06721, eqs. 11 to 13 (TMPD, which keeps the diagonal of V).
    """

    def __init__(
        self,
        score: Score,
        observation: Observation,
        iterations: int = 5,
        tolerance: float = 1e-3,
        moments: Moments | None = None,
    ) -> None:
        super().__init__(score, observation, moments, iterations, tolerance)

    def spread(self, look: Look) -> Map:
        """Return v -> (σ²/α) Jᵀ v."""
        return look.covariance

    def with_parts(self, score: Score, measurement: Measurement) -> MMPS:
        """Return MMPS on another prior and observation."""
        observation = check_observation(measurement)
        return MMPS(score, observation, self.iterations, self.tolerance, self.stand_in)


class DiffPIR(PosteriorScore):
    r"""Denoise, then fit the observation: a step of least squares, with no derivative.

        x̂_y = argmin_u ‖y − A u‖² + λ σ_y² (α²/σ²) ‖u − x̂‖² = x̂ + Aᵀ (A Aᵀ + c)^{-1} (y − A x̂),

    c = λ σ_y² α²/σ². For c = 0 (no noise, or λ = 0) the part of x̂ that is seen is replaced by
    A⁺ y: that is DDNM.

    Args:
        score: the prior.
        observation: y = A x_0 + σ_y n; σ_y = 0 is welcome.
        weight: λ >= 0; 0 trusts y whatever its noise.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
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

    measurement: Observation

    def __init__(self, score: Score, observation: Observation, weight: float = 1.0) -> None:
        super().__init__(score, check_observation(observation))
        self.weight = check_nonnegative("weight", weight)

    def update(self, x: Tensor, t: Time) -> Update:
        """Return x̂, x̂_y and the log-likelihood of N(x̂, σ²/(λα²)); one evaluation."""
        time = self.sde.interior(t)
        clean = self.score.denoised(x, time)
        precision = self.weight * torch.exp(2 * self.sde.half_logsnr(time))
        operator, residual = self.measurement.operator, self.measurement.residual(clean)
        w = operator.solve(residual, precision * self.measurement.variance)
        value = -0.5 * precision.to(x) * inner(residual, w)
        return Update(clean, clean + operator.adjoint(w), value)

    def with_parts(self, score: Score, measurement: Measurement) -> DiffPIR:
        """Return DiffPIR on another prior and observation."""
        return DiffPIR(score, check_observation(measurement), self.weight)
