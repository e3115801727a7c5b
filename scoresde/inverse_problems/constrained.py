r"""Constrained sampling: samplers that impose the observation between another sampler's steps.

They wrap any :class:`~scoresde.samplers.Sampler` and are Samplers. For an observation without noise
the distribution of A x_t is known at every time::

    A x_t = α y + σ A z,        z ~ N(0, 1),

so that the component A⁺A x_t can be drawn (imputed) rather than generated. That draw is independent
of the other component, which biases the samples; resampling reduces the bias (:class:`RePaint`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde._core.checks import check_instance, check_integer, check_nonnegative
from scoresde._core.shapes import expand, flatten
from scoresde.inverse_problems.measurement import (
    GaussianMeasurement,
    Observation,
    check_gaussian_measurement,
    check_observation,
)
from scoresde.samplers import Noise, Sampler
from scoresde.samplers.base import check_gaussian, noise_level_at
from scoresde.scores import Score
from scoresde.sdes import SDE


@dataclass(frozen=True)
class WrappedSampler(Sampler):
    """A sampler that wraps another: its grid, state and final step are the other's."""

    sampler: Sampler

    def __post_init__(self) -> None:
        check_instance("sampler", self.sampler, Sampler, "Ancestral()")

    @property
    def default_steps(self) -> int:
        return self.sampler.default_steps

    def times(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        return self.sampler.times(sde, steps, std)

    @property
    def corrects(self) -> bool:
        return self.sampler.corrects

    def init(self, score: Score, x: Tensor, times: Tensor) -> Any:
        return self.sampler.init(score, x, times)

    def end(self, score: Score, x: Tensor, t: Tensor, state: Any) -> Tensor:
        return self.sampler.end(score, x, t, state)


@dataclass(frozen=True)
class ImputingSampler(WrappedSampler):
    """A sampler that imputes the observation before steps, and projects onto A x = y at the end."""

    observation: Observation

    def __post_init__(self) -> None:
        super().__post_init__()
        check_observation(self.observation).check_noiseless()

    def end(self, score: Score, x: Tensor, t: Tensor, state: Any) -> Tensor:
        """Return x + A⁺ (y − A x) for the wrapped sampler's result x."""
        return self.observation.project(super().end(score, x, t, state))


@dataclass(frozen=True)
class Imputation(ImputingSampler):
    r"""Impute the observation before every step: inpainting and colorization of Song et al.

    ::

        x_t ← x_t + A⁺ (α y + σ A z − A x_t),    then the step.

    A :class:`~scoresde.operators.Mask` makes it inpainting, :class:`~scoresde.operators.Grayscale`
    colorization (its A⁺A projects onto the gray axis of decoupled colors). Correctors are
    wrapped as well: ``PredictorCorrector(Imputation(p, observation), Imputation(c, observation))``.

    Args:
        sampler: the sampler of the steps.
        observation: y = A x_0, with σ_y = 0.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if the observation has noise.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> from scoresde.operators import Mask
        >>> from scoresde.samplers import Ancestral, sample
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I)
        >>> observation = Observation(Mask(torch.tensor([True, False])), torch.full((1, 1), 3.0))
        >>> x = sample(prior, (4, 2), Imputation(Ancestral(), observation), steps=20)
        >>> x[:, 0]
        tensor([3., 3., 3., 3.])

    References:
        Song et al. 2021, arXiv:2011.13456, appendix I.2 and I.3, eqs. 52 and 53.
    """

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        x = impute(self.observation, score.sde, x, t, noise)
        return self.sampler.step(score, x, t, s, state, noise)


@dataclass(frozen=True)
class RePaint(ImputingSampler):
    r"""Imputation with every step made ``repeats`` times, with forward noise in between.

    ::

        x_t ← imputed,    x_s ← the step,    x_t ← (α_t/α_s) x_s + √(σ_t² − (α_t/α_s)² σ_s²) z,  …

    Each repetition conditions the generated component on the imputed one: a Gibbs sampler between
    the two times. (In the paper a jump may cover several steps; here it is one step, longer on
    coarser grids.) The error of the step's variance accumulates over repetitions: with few steps
    the samples are too narrow.

    Args:
        sampler: the sampler of the steps; each repetition starts from its state before the step.
        observation: y = A x_0, with σ_y = 0.
        repeats: number of times that each step is made; 1 is :class:`Imputation`.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if the observation has noise, or ``repeats`` is below 1.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> from scoresde.operators import Mask
        >>> from scoresde.samplers import Ancestral, sample
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I)
        >>> observation = Observation(Mask(torch.tensor([True, False])), torch.full((1, 1), 3.0))
        >>> x = sample(prior, (4, 2), RePaint(Ancestral(), observation, repeats=2), steps=20)
        >>> x[:, 0]
        tensor([3., 3., 3., 3.])

    References:
        Lugmayr et al., *RePaint: inpainting using denoising diffusion probabilistic models*, 2022,
        arXiv:2201.09865, algorithm 1.
    """

    repeats: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("repeats", self.repeats, minimum=1)

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        scale, std = check_gaussian(score.sde).transition(s, t)
        new_state = state
        for left in reversed(range(self.repeats)):
            x = impute(self.observation, score.sde, x, t, noise)
            x, new_state = self.sampler.step(score, x, t, s, state, noise)
            if left > 0:
                x = expand(scale, x) * x + expand(std, x) * noise(x)
        return x, new_state


@dataclass(frozen=True)
class NormalizedDPS(WrappedSampler):
    r"""Diffusion posterior sampling as published, with steps of fixed length.

    ::

        x_s ← the step from x_t,    then    x_s ← x_s − ζ ∇_{x_t} ‖y − A x̂(x_t)‖.

    Only the direction of the likelihood's gradient is used, whatever σ_y, so that the distribution
    of the samples depends on ζ and on the number of steps: it is not the posterior. For that, use
    :class:`DPS`, :class:`PiGDM` or :class:`MMPS`.

    Args:
        sampler: the sampler of the steps; the paper's is ``Ancestral()`` in 1000 steps.
        observation: y = A x_0 + σ_y n, or y = F(x_0) + σ_y n; its σ_y is not used.
        step_size: ζ >= 0, in the unit of x.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if ζ is negative.

    Example:
        >>> from scoresde.operators import Mask
        >>> from scoresde.samplers import Ancestral
        >>> observation = Observation(Mask(torch.tensor([True, False])), torch.ones(1, 1))
        >>> NormalizedDPS(Ancestral(), observation, step_size=0.3).default_steps
        1000

    References:
        Chung et al. 2023, arXiv:2209.14687, algorithm 1 and appendix C.2.
    """

    observation: GaussianMeasurement
    step_size: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gaussian_measurement(self.observation)
        check_nonnegative("step_size", self.step_size)

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            residual = self.observation.residual(score.denoised(point, t))
            (gradient,) = torch.autograd.grad(flatten(residual).norm(dim=1).sum(), point)
        x, state = self.sampler.step(score, x, t, s, state, noise)
        return x - self.step_size * gradient, state


def impute(observation: Observation, sde: SDE, x: Tensor, t: Tensor, noise: Noise) -> Tensor:
    """Return ``x`` with its component A⁺A x drawn from p(A x_t|y), shaped like ``x``."""
    level, operator = noise_level_at(sde, t), observation.operator
    residual = level.alpha * observation.residual(x / level.alpha) + level.sigma * operator(
        noise(x)
    )
    return x + operator.pseudo_inverse(residual)
