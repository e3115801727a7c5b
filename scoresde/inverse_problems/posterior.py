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

from scoresde._core.conjugate_gradients import Map
from scoresde._core.shapes import Time, check_batch, expand, flatten
from scoresde.inverse_problems.measurement import Measurement
from scoresde.scores import Score
from scoresde.scores.moments import Moments
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
        data = score.moments  # of the prior: a guess at the posterior's
        super().__init__(score.sde, Moments(data.mean, data.variance, data.basis, known=False))
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
    def select(self, index: Tensor | slice) -> PosteriorScore:
        """Return the posterior of a part of the batch, with its rows of the measurement."""
        return self.with_parts(self.score.select(index), self.measurement.select(index))


class Look(NamedTuple):
    """The prior's denoiser at a state, ready to be differentiated."""

    clean: Tensor
    """x̂ ``(batch, *event)``"""
    covariance: Map
    """v -> (σ²/α) Jᵀ v, the covariance of x_0 given x_t; one backward pass each."""
    alpha: Tensor
    sigma: Tensor


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


def remaining(variance: Tensor, look: Look) -> Tensor:
    """Return c σ²/(α² c + σ²), the variances of Gaussian data given x_t: ``(…, 1 or d)``.

    Args:
        variance: c of the data, ``()`` or ``(d,)``.
        look: α and σ, ``()`` or ``(batch,)``.
    """
    c = variance.reshape(-1)
    alpha, sigma = (v.unsqueeze(-1).to(c.device) for v in (look.alpha, look.sigma))
    return c * sigma**2 / (alpha**2 * c + sigma**2)
