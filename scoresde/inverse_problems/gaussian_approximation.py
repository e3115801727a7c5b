"""Posterior scores by a Gaussian approximation of p(x_0|x_t): ΠGDM and MMPS."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from scoresde._core.checks import check_integer, check_positive
from scoresde._core.conjugate_gradients import Map, conjugate_gradients, inner
from scoresde._core.shapes import expand, flatten
from scoresde.inverse_problems.measurement import (
    GaussianMeasurement,
    Measurement,
    check_gaussian_measurement,
)
from scoresde.inverse_problems.posterior import (
    LinearizedDenoiser,
    TweediePosterior,
    conditional_variance,
)
from scoresde.scores import Moments, Score


class GaussianApproximation(TweediePosterior):
    """p(x_0|x_t) ≈ N(x̂, V), define :meth:`covariance`: g = Aᵀ (A V Aᵀ + σ_y²)^{-1} (y − A x̂)."""

    measurement: GaussianMeasurement

    def __init__(
        self,
        score: Score,
        observation: GaussianMeasurement,
        moments: Moments | None,
        iterations: int,
        tolerance: float,
    ) -> None:
        super().__init__(score, check_gaussian_measurement(observation))
        self.prior_moments = score.moments if moments is None else moments
        self.iterations = check_integer("iterations", iterations, minimum=1)
        self.tolerance = check_positive("tolerance", tolerance)

    @abstractmethod
    def covariance(self, denoiser: LinearizedDenoiser) -> Map:
        """Return the function v -> V v.

        Args:
            denoiser: x̂ and its Jacobian at the state.
        """

    def guidance_gradient(self, denoiser: LinearizedDenoiser) -> tuple[Tensor, Tensor]:
        """Return g and −½ (y − A x̂)ᵀ (A V Aᵀ + σ_y²)^{-1} (y − A x̂)."""
        operator, noise = self.measurement.linearize(denoiser.denoised), self.measurement.variance
        residual, covariance = (
            self.measurement.residual(denoiser.denoised),
            self.covariance(denoiser),
        )
        variance = conditional_variance(self.prior_moments.variance, denoiser).mean(-1)
        w = conjugate_gradients(
            lambda v: operator(covariance(operator.adjoint(v))) + noise * v,
            residual,
            iterations=self.iterations,
            tolerance=self.tolerance,
            precondition=lambda v: operator.solve(v, noise / variance) / expand(variance, v),
        )
        return operator.adjoint(w), -0.5 * inner(residual, w)


class PiGDM(GaussianApproximation):
    r"""Pseudoinverse-guided diffusion: V as for Gaussian data of given moments.

    ::

        V = E diag(c σ²/(α² c + σ²)) Eᵀ    for data N(m, E diag(c) Eᵀ),

    the paper has c = 1. One evaluation and one product with its Jacobian.

    Args:
        score: the prior.
        observation: y = A x_0 + σ_y n, or y = F(x_0) + σ_y n with A = ∂F/∂x at x̂;
            σ_y >= 0.
        moments: mean and covariance of the data; those of the score if None.
        iterations: maximal number of conjugate-gradient iterations; one is enough if V is a
            multiple of 1.
        tolerance: relative residual at which they stop.

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

    def covariance(self, denoiser: LinearizedDenoiser) -> Map:
        """Return v -> E diag(c σ²/(α² c + σ²)) Eᵀ v."""
        variance, moments = (
            conditional_variance(self.prior_moments.variance, denoiser).to(denoiser.denoised),
            self.prior_moments,
        )

        def apply(v: Tensor) -> Tensor:
            return moments.rotate_back(moments.rotate(flatten(v)) * variance).reshape(v.shape)

        return apply

    def with_parts(self, score: Score, measurement: Measurement) -> PiGDM:
        observation = check_gaussian_measurement(measurement)
        return PiGDM(score, observation, self.prior_moments, self.iterations, self.tolerance)


class MMPS(GaussianApproximation):
    r"""Moment-matching posterior sampling: V = (σ²/α) Jᵀ, the covariance by the score.

    No moments of the data are needed: mean and covariance of p(x_0|x_t) are exact if the score is;
    only its shape is approximated by a Gaussian. One evaluation, one product with its Jacobian for
    each conjugate-gradient iteration and one more.

    Args:
        score: the prior.
        observation: y = A x_0 + σ_y n, or y = F(x_0) + σ_y n with A = ∂F/∂x at x̂;
            σ_y >= 0.
        iterations: maximal number of conjugate-gradient iterations.
        tolerance: relative residual at which they stop.
        moments: of the data, used by the preconditioner only; those of the score if None.

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

    def covariance(self, denoiser: LinearizedDenoiser) -> Map:
        """Return v -> (σ²/α) Jᵀ v."""
        return denoiser.covariance

    def with_parts(self, score: Score, measurement: Measurement) -> MMPS:
        observation = check_gaussian_measurement(measurement)
        return MMPS(score, observation, self.iterations, self.tolerance, self.prior_moments)
