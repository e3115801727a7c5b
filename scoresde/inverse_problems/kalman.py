"""Posterior scores that take x_0 given x_t for Gaussian: ΠGDM and MMPS."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from scoresde._core.checks import check_integer, check_positive
from scoresde._core.conjugate_gradients import Map, conjugate_gradients, inner
from scoresde._core.shapes import expand, flatten
from scoresde.inverse_problems.measurement import (
    GaussianMeasurement,
    Measurement,
    check_gaussian,
)
from scoresde.inverse_problems.posterior import Look, TweediePosterior, remaining
from scoresde.scores import Score
from scoresde.scores.moments import Moments


class KalmanPosterior(TweediePosterior):
    """x_0 given x_t taken for N(x̂, V): g = Aᵀ (A V Aᵀ + σ_y²)^{-1} (y − A x̂)."""

    measurement: GaussianMeasurement

    def __init__(
        self,
        score: Score,
        observation: GaussianMeasurement,
        moments: Moments | None,
        iterations: int,
        tolerance: float,
    ) -> None:
        super().__init__(score, check_gaussian(observation))
        self.stand_in = score.moments if moments is None else moments
        self.iterations = check_integer("iterations", iterations, minimum=1)
        self.tolerance = check_positive("tolerance", tolerance)

    @abstractmethod
    def std(self, look: Look) -> Map:
        """Return v -> V v."""

    def pull(self, look: Look) -> tuple[Tensor, Tensor]:
        """Return g and −½ (y − A x̂)ᵀ (A V Aᵀ + σ_y²)^{-1} (y − A x̂)."""
        operator, noise = self.measurement.linearised(look.clean), self.measurement.variance
        residual, std = self.measurement.residual(look.clean), self.std(look)
        variance = remaining(self.stand_in.variance, look).mean(-1)
        w = conjugate_gradients(
            lambda v: operator(std(operator.adjoint(v))) + noise * v,
            residual,
            iterations=self.iterations,
            tolerance=self.tolerance,
            precondition=lambda v: operator.solve(v, noise / variance) / expand(variance, v),
        )
        return operator.adjoint(w), -0.5 * inner(residual, w)


class PiGDM(KalmanPosterior):
    r"""Pseudoinverse-guided diffusion: V is what it is for Gaussian data of known moments.

        V = E diag(c σ²/(α² c + σ²)) Eᵀ    for data N(m, E diag(c) Eᵀ);

    the paper has c = 1. One evaluation and one product with its Jacobian.

    Args:
        score: the prior.
        observation: y = A x_0 + σ_y n, or y = F(x_0) + σ_y n with A = ∂F/∂x at x̂; σ_y = 0 is
            welcome.
        moments: of the data; those the score knows if None, and variance 1 if it knows none.
        iterations: how many steps of conjugate gradients are made at most; one is enough where V is
            a multiple of 1.
        tolerance: relative error at which they stop.

    Example:
        >>> import torch
        >>> from scoresde import FunctionScore, VPSDE
        >>> from scoresde.inverse_problems import Observation
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
        observation: GaussianMeasurement,
        moments: Moments | None = None,
        iterations: int = 20,
        tolerance: float = 1e-6,
    ) -> None:
        super().__init__(score, observation, moments, iterations, tolerance)

    def std(self, look: Look) -> Map:
        """Return v -> V v of Gaussian data."""
        variance, moments = remaining(self.stand_in.variance, look).to(look.clean), self.stand_in

        def apply(v: Tensor) -> Tensor:
            return moments.rotate_back(moments.rotate(flatten(v)) * variance).reshape(v.shape)

        return apply

    def with_parts(self, score: Score, measurement: Measurement) -> PiGDM:
        """Return ΠGDM on another prior and observation."""
        observation = check_gaussian(measurement)
        return PiGDM(score, observation, self.stand_in, self.iterations, self.tolerance)


class MMPS(KalmanPosterior):
    r"""Moment-matching posterior sampling: V = (σ²/α) Jᵀ, the covariance as the score knows it.

    Nothing needs to be known of the data, and the mean and covariance of p(x_0|x_t) are right
    wherever the score is; its shape is still taken for Gaussian. One evaluation, and a product
    with its Jacobian for every step of conjugate gradients and one more.

    Args:
        score: the prior.
        observation: y = A x_0 + σ_y n, or y = F(x_0) + σ_y n with A = ∂F/∂x at x̂; σ_y = 0 is
            welcome.
        iterations: how many steps of conjugate gradients are made at most.
        tolerance: relative error at which they stop.
        moments: of the data, for the preconditioner alone; those the score knows if None.

    Example:
        >>> import torch
        >>> from scoresde import FunctionScore, VPSDE
        >>> from scoresde.inverse_problems import Observation
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
        observation: GaussianMeasurement,
        iterations: int = 5,
        tolerance: float = 1e-3,
        moments: Moments | None = None,
    ) -> None:
        super().__init__(score, observation, moments, iterations, tolerance)

    def std(self, look: Look) -> Map:
        """Return v -> (σ²/α) Jᵀ v."""
        return look.covariance

    def with_parts(self, score: Score, measurement: Measurement) -> MMPS:
        """Return MMPS on another prior and observation."""
        observation = check_gaussian(measurement)
        return MMPS(score, observation, self.iterations, self.tolerance, self.stand_in)
