r"""Steps towards a posterior: samplers that work on the state between another's steps.

They wrap any :class:`~scoresde.samplers.Sampler` and are Samplers again. What is seen without noise
is known at every time,

    A x_t = α y + σ A z,        z ~ N(0, 1),

so that the part A⁺A of the state can be drawn rather than generated. That draw is independent of
the rest of the state, which biases the samples; repetition lessens the bias (:class:`RePaint`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde._core.checks import check_integer, check_nonnegative
from scoresde._core.shapes import expand, flatten
from scoresde.inverse_problems.measurement import (
    GaussianMeasurement,
    Observation,
    check_gaussian,
    check_observation,
)
from scoresde.samplers import Noise, Sampler
from scoresde.samplers.base import check_gaussian, noise_level_at
from scoresde.scores import Score
from scoresde.sdes import SDE


@dataclass(frozen=True)
class Wrapped(Sampler):
    """A sampler around another: grid and memory are the other's."""

    sampler: Sampler

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, Sampler):
            raise TypeError(f"sampler: expected a Sampler such as Ancestral(), got {self.sampler}")

    @property
    def default_steps(self) -> int:
        """How many steps the other would make."""
        return self.sampler.default_steps

    def times(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        """Return the other's grid ``(N+1,)``."""
        return self.sampler.times(sde, steps, std)

    @property
    def corrects(self) -> bool:
        """Whether the other stays at its time."""
        return self.sampler.corrects

    def init(self, score: Score, x: Tensor, times: Tensor) -> Any:
        """Return what the other starts with."""
        return self.sampler.init(score, x, times)

    def end(self, score: Score, x: Tensor, t: Tensor, state: Any) -> Tensor:
        """Return the other's sample of the last state."""
        return self.sampler.end(score, x, t, state)


@dataclass(frozen=True)
class Imputed(Wrapped):
    """Steps between which what is seen without noise is drawn, and which end in what was seen."""

    observation: Observation

    def __post_init__(self) -> None:
        super().__post_init__()
        check_observation(self.observation).check_noiseless()

    def end(self, score: Score, x: Tensor, t: Tensor, state: Any) -> Tensor:
        """Return the other's sample x, with y in it: x + A⁺ (y − A x)."""
        return self.observation.project(super().end(score, x, t, state))


@dataclass(frozen=True)
class Imputation(Imputed):
    r"""Draw what is seen anew before every step: inpainting and colorization of Song et al.

        x_t ← x_t + A⁺ (α y + σ A z − A x_t),    then the step.

    A :class:`~scoresde.operators.Mask` makes it inpainting, :class:`~scoresde.operators.Grayscale`
    colorization (its A⁺A is the projection on the grey axis of decoupled colours). Correctors are
    wrapped as well: ``PredictorCorrector(Imputation(p, seen), Imputation(c, seen))``.

    Args:
        sampler: makes the steps.
        observation: y = A x_0, with σ_y = 0.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if the observation has noise.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> from scoresde.operators import Mask
        >>> from scoresde.samplers import Ancestral, sample
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I)
        >>> seen = Observation(Mask(torch.tensor([True, False])), torch.full((1, 1), 3.0))
        >>> x = sample(prior, (4, 2), Imputation(Ancestral(), seen), steps=20)
        >>> x[:, 0]
        tensor([3., 3., 3., 3.])

    References:
        Song et al. 2021, arXiv:2011.13456, appendix I.2 and I.3, eqs. 52 and 53.
    """

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        """Draw what is seen at t, then go from t to s; the evaluations of the sampler."""
        x = impute(self.observation, score.sde, x, t, noise)
        return self.sampler.step(score, x, t, s, state, noise)


@dataclass(frozen=True)
class RePaint(Imputed):
    r"""Imputation with every step made ``repeats`` times, going back in between.

        x_t ← imputed,    x_s ← the step,    x_t ← (α_t/α_s) x_s + √(σ_t² − (α_t/α_s)² σ_s²) z,  …

    Each round lets the generated part answer to the part that is seen: a Gibbs sampler between the
    two times. (The paper may also go back several steps at once; here a jump is one step, and
    coarser grids make longer ones.) Repetition draws from the step's own kernel again and again, so
    that what is wrong with its variance adds up: few steps make the samples too narrow.

    Args:
        sampler: makes the steps; one with a memory finds it as it was before the step.
        observation: y = A x_0, with σ_y = 0.
        repeats: how often each step is made; 1 is :class:`Imputation`.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if the observation has noise, or ``repeats`` is below 1.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> from scoresde.operators import Mask
        >>> from scoresde.samplers import Ancestral, sample
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I)
        >>> seen = Observation(Mask(torch.tensor([True, False])), torch.full((1, 1), 3.0))
        >>> x = sample(prior, (4, 2), RePaint(Ancestral(), seen, repeats=2), steps=20)
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
        """Go from t to s, and back, and again; ``repeats`` times the sampler's evaluations."""
        scale, std = check_gaussian(score.sde).transition(s, t)
        for again in range(self.repeats, 0, -1):
            x = impute(self.observation, score.sde, x, t, noise)
            x, after = self.sampler.step(score, x, t, s, state, noise)
            if again > 1:
                x = expand(scale, x) * x + expand(std, x) * noise(x)
        return x, after


@dataclass(frozen=True)
class NormalizedDPS(Wrapped):
    r"""Diffusion posterior sampling as published, with steps of fixed length.

        x_s ← the step from x_t,    then    x_s ← x_s − ζ ∇_{x_t} ‖y − A x̂(x_t)‖.

    What the likelihood says enters by its direction alone, whatever σ_y, so that the law of the
    samples depends on ζ and on the number of steps: it is a restoration, not a posterior. For the
    latter see :class:`DPS` and those after it.

    Args:
        sampler: makes the steps; the paper's is ``Ancestral()`` in 1000 steps.
        observation: y = A x_0 + σ_y n, or y = F(x_0) + σ_y n; its σ_y is not used.
        size: ζ >= 0, in the unit of x.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if ζ is negative.

    Example:
        >>> from scoresde.operators import Mask
        >>> from scoresde.samplers import Ancestral
        >>> seen = Observation(Mask(torch.tensor([True, False])), torch.ones(1, 1))
        >>> NormalizedDPS(Ancestral(), seen, size=0.3).default_steps
        1000

    References:
        Chung et al. 2023, arXiv:2209.14687, algorithm 1 and appendix C.2.
    """

    observation: GaussianMeasurement
    size: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gaussian(self.observation)
        check_nonnegative("size", self.size)

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        """Go from t to s; one more evaluation than the sampler's, and its derivative."""
        with torch.enable_grad():
            here = x.detach().requires_grad_()
            miss = flatten(self.observation.residual(score.denoised(here, t))).norm(dim=1)
            (slope,) = torch.autograd.grad(miss.sum(), here)
        x, state = self.sampler.step(score, x, t, s, state, noise)
        return x - self.size * slope, state


def impute(observation: Observation, sde: SDE, x: Tensor, t: Tensor, noise: Noise) -> Tensor:
    """Return ``x`` with what is seen drawn anew at time t, shaped like ``x``."""
    here, operator = noise_level_at(sde, t), observation.operator
    missed = here.alpha * observation.residual(x / here.alpha) + here.sigma * operator(noise(x))
    return x + operator.pseudo_inverse(missed)
