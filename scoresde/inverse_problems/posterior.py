r"""Posterior scores: Bayes' theorem at every noise level.

By Tweedie's formula the denoiser of the posterior p(x_0|y) is that of the prior plus a guidance
term::

    x̂_y = E[x_0|x_t, y] = x̂ + (σ²/α) ∇ log p(y|x_t),    p(y|x_t) = ∫ p(y|x_0) p(x_0|x_t) dx_0.

The integral is intractable. If p(x_0|x_t) is approximated by N(x̂, V) and y = A x_0 + σ_y n, then::

    x̂_y = x̂ + G Aᵀ (A V Aᵀ + σ_y²)^{-1} (y − A x̂),

one Kalman update, where G = (σ²/α) Jᵀ with the denoiser's Jacobian J = ∂x̂/∂x. For the exact score
Cov[x_0|x_t] = (σ²/α) J = G as well. The published methods differ by their choice of V and G:

======= ================================== ========== ============================
method  V                                  G          exact if the data are
======= ================================== ========== ============================
DPS     0                                  (σ²/α) Jᵀ  one point
ΠGDM    of Gaussian data of given moments  (σ²/α) Jᵀ  Gaussian with these moments
MMPS    (σ²/α) Jᵀ                          (σ²/α) Jᵀ  Gaussian
DiffPIR r² 1, r² = σ²/(λα²)                r² 1       never
DDNM    DiffPIR for λ → 0                  r² 1       never
======= ================================== ========== ============================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, final

import torch
from torch import Tensor

from scoresde._core.conjugate_gradients import Map
from scoresde._core.shapes import Time, check_batch, expand, flatten
from scoresde.inverse_problems.measurement import Measurement, check_measurement
from scoresde.scores import Moments, Score
from scoresde.scores.base import require_score
from scoresde.traces import Tape


class Update(NamedTuple):
    """The denoisers of prior and posterior at a state, and its likelihood."""

    prior: Tensor
    """x̂ ``(batch, *event)``"""
    posterior: Tensor
    """x̂_y ``(batch, *event)``"""
    log_likelihood: Tensor
    """The method's approximation of log p(y|x_t) ``(batch,)``, up to a function of t."""


class PosteriorScore(Score, ABC):
    """An approximation of the score of p(x_t|y): define :meth:`update` and :meth:`with_parts`.

    It is a Score: sample from it with any sampler, compute log p(x|y) with
    :func:`~scoresde.log_likelihood`, use it as the proposal of :func:`twisted_smc`.

    Args:
        score: the prior.
        measurement: the likelihood.

    Raises:
        TypeError: if the arguments are of the wrong kind.
    """

    def __init__(self, score: Score, measurement: Measurement) -> None:
        data = require_score(score).moments  # an estimate of the posterior's, hence not known
        check_measurement(measurement)
        super().__init__(score.sde, Moments(data.mean, data.variance, data.basis, known=False))
        self.score = score
        self.measurement = measurement

    @abstractmethod
    def update(self, x: Tensor, t: Time) -> Update:
        """Return x̂, x̂_y and log p(y|x_t).

        Args:
            x: states ``(batch, *event)``.
            t: time, a float, ``()`` or ``(batch,)``.
        """

    @abstractmethod
    def with_parts(self, score: Score, measurement: Measurement) -> PosteriorScore:
        """Return the same method with another prior and measurement.

        Args:
            score: the prior.
            measurement: the likelihood.
        """

    @final
    def denoised(self, x: Tensor, t: Time) -> Tensor:
        return self.update(x, t).posterior

    @final
    def select(self, index: Tensor | slice) -> PosteriorScore:
        return self.with_parts(self.score.select(index), self.measurement.select(index))


class LinearizedDenoiser(NamedTuple):
    """The prior's denoiser at a state, with products of its Jacobian."""

    denoised: Tensor
    """x̂ ``(batch, *event)``"""
    covariance: Map
    """v -> (σ²/α) Jᵀ v, Cov[x_0|x_t] for the exact score; one backward pass for each product."""
    alpha: Tensor
    sigma: Tensor


class TweediePosterior(PosteriorScore):
    """x̂_y = x̂ + (σ²/α) Jᵀ g with a gradient g at x̂: define :meth:`guidance_gradient`."""

    @abstractmethod
    def guidance_gradient(self, denoiser: LinearizedDenoiser) -> tuple[Tensor, Tensor]:
        """Return g, shaped like x, and log p(y|x_t) ``(batch,)``.

        Args:
            denoiser: x̂ and its Jacobian at the state.
        """

    def update(self, x: Tensor, t: Time) -> Update:
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

        denoised = tape.value.reshape(x.shape)
        denoiser = LinearizedDenoiser(denoised, covariance, log_alpha.exp(), log_sigma.exp())
        g, log_likelihood = self.guidance_gradient(denoiser)
        return Update(denoised, denoised + covariance(g), log_likelihood)


def conditional_variance(variance: Tensor, denoiser: LinearizedDenoiser) -> Tensor:
    """Return c σ²/(α² c + σ²), the variances of Gaussian data given x_t: ``(…, 1 or d)``.

    Args:
        variance: c of the data, ``()`` or ``(d,)``.
        denoiser: has α and σ, ``()`` or ``(batch,)``.
    """
    c = variance.reshape(-1)
    alpha, sigma = (v.unsqueeze(-1).to(c.device) for v in (denoiser.alpha, denoiser.sigma))
    return c * sigma**2 / (alpha**2 * c + sigma**2)
