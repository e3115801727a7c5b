r"""Restoration with one call: from an observation to samples of p(x_0|y).

:func:`inpaint`, :func:`super_resolve` and :func:`colorize` are :func:`restore` with a given
operator. The ``method`` is a small frozen object, one of

:class:`PosteriorScoreSampling`
    a posterior score (MMPS, ΠGDM, DPS, …) and any sampler;
:class:`ConstrainedSampling`
    the prior's score and a sampler built from the measurement (Imputation, RePaint, …);
:class:`ParticleSampling`
    particles with a posterior score as proposal: exact as their number grows, needs σ_y > 0;

or any other :class:`PosteriorSampler`.

All of them, and :func:`~scoresde.inverse_problems.denoise`, follow one rule. ``n`` samples per
observation have shape ``(batch, n, *event)``; ``n=None`` gives a single one without that axis,
``(batch, *event)``; and so does ``mean=True``, which gives the posterior mean instead. The default
is one sample, except where the exact mean costs one evaluation (``denoise``): there it is the mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scoresde._core.checks import (
    check_finite,
    check_floating,
    check_instance,
    check_integer,
    check_integers,
    check_state,
    check_tensor,
    summarize,
)
from scoresde.inverse_problems.constrained import RePaint
from scoresde.inverse_problems.gaussian_approximation import MMPS
from scoresde.inverse_problems.measurement import Measurement, Observation, check_measurement
from scoresde.inverse_problems.particles import Particles, twisted_smc
from scoresde.inverse_problems.posterior import PosteriorScore
from scoresde.operators import AveragePool, Grayscale, LinearOperator, Mask
from scoresde.samplers import Ancestral, Exponential, Sampler, sample
from scoresde.scores import Score
from scoresde.scores.base import require_score

_SAMPLES_PER_MEAN = 32
"""Number of samples that a mean averages by default."""

_REVERSE_SDE = Exponential(order=1, eta=1.0)
_REPAINT = partial(RePaint, Ancestral())


@dataclass(frozen=True)
class PosteriorProblem:
    """What a :class:`PosteriorSampler` draws: ``n`` samples of p(x_0|y) for each observation.

    Args:
        score: the prior; if it has a condition, one row per observation.
        measurement: the likelihood, of ``measurement.batch`` observations.
        event_shape: the shape of one sample.
        n: number of samples for each observation.
        generator: source of all randomness; None for PyTorch's global one.
        batch_size: number of rows in one call of the network; all if None.
        progress: show a progress bar.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if ``n`` is below 1, or the shapes do not fit each other.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I)
        >>> first = Observation(Mask(torch.tensor([True, False])), torch.ones(3, 1), noise_std=0.1)
        >>> problem = PosteriorProblem(prior, first, (2,), n=4)
        >>> PosteriorScoreSampling(steps=10).draw(problem).shape
        torch.Size([3, 4, 2])
    """

    score: Score
    measurement: Measurement
    event_shape: Sequence[int]
    n: int = 1
    generator: torch.Generator | None = None
    batch_size: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        require_score(self.score)
        check_measurement(self.measurement)
        event = check_integers("event_shape", self.event_shape, minimum=1)
        self.score.moments.check_event("event_shape", event)
        self.measurement.check_event(event)
        check_integer("n", self.n, minimum=1)

    @property
    def rows(self) -> Tensor:
        """For each sample the index of its observation, ``(observations · n,)``."""
        return torch.arange(self.measurement.batch).repeat_interleave(self.n)

    def sample(self, score: Score, sampler: Sampler, steps: int) -> Tensor:
        """Return samples of a score, one for each of :attr:`rows`: ``(observations, n, *event)``.

        Args:
            score: the score of all ``observations · n`` samples.
            sampler: any sampler.
            steps: number of its steps.
        """
        x = sample(
            score, (len(self.rows), *self.event_shape), sampler, steps=steps,
            generator=self.generator, batch_size=self.batch_size, progress=self.progress,
        )  # fmt: skip
        return x.reshape(-1, self.n, *self.event_shape)


class PosteriorSampler(ABC):
    """A method that samples from p(x_0|y): define :meth:`draw`."""

    @abstractmethod
    def draw(self, problem: PosteriorProblem) -> Tensor:
        """Return ``n`` samples for each observation, ``(observations, n, *event)``.

        Args:
            problem: prior, measurement and number of samples.
        """

    def mean(self, problem: PosteriorProblem) -> Tensor:
        """Return the posterior mean ``(observations, *event)``, here of ``n`` samples each.

        Args:
            problem: prior, measurement and number of samples.
        """
        return self.draw(problem).mean(1)


def _check_factory(name: str, factory: object, example: str) -> None:
    if not callable(factory):
        raise TypeError(
            f"{name}: expected a class or function such as {example}, got {summarize(factory)}; "
            f"pass {example}"
        )


@dataclass(frozen=True)
class PosteriorScoreSampling(PosteriorSampler):
    """Sample from a posterior score.

    Args:
        posterior: a function ``(score, measurement) -> PosteriorScore``: ``MMPS``, ``PiGDM``,
            ``DPS``, ``ddnm``, or with settings ``partial(DiffPIR, weight=0.5)``.
        sampler: any sampler. Stochastic ones tolerate errors of a posterior score; those of high
            order need one that is smooth in t.
        steps: number of steps.

    Raises:
        TypeError: if ``posterior`` is not callable, or ``sampler`` not a Sampler.
        ValueError: if ``steps`` is below 1.

    Example:
        >>> from scoresde.inverse_problems import PiGDM
        >>> from scoresde.samplers import ddim
        >>> PosteriorScoreSampling(PiGDM, ddim(), steps=30).steps
        30
    """

    posterior: Callable[[Score, Any], Score] = MMPS
    sampler: Sampler = _REVERSE_SDE
    steps: int = 100

    def __post_init__(self) -> None:
        _check_factory("posterior", self.posterior, "MMPS")
        check_instance("sampler", self.sampler, Sampler, "Ancestral()")
        check_integer("steps", self.steps, minimum=1)

    def draw(self, problem: PosteriorProblem) -> Tensor:
        posterior = self.posterior(problem.score, problem.measurement)
        return problem.sample(posterior.select(problem.rows), self.sampler, self.steps)


@dataclass(frozen=True)
class ConstrainedSampling(PosteriorSampler):
    """Sample from the prior's score with a sampler that is built from the measurement.

    Args:
        sampler: a function ``measurement -> Sampler``, such as ``partial(RePaint, Ancestral())``.
        steps: number of steps.

    Raises:
        TypeError: if ``sampler`` is not callable.
        ValueError: if ``steps`` is below 1.

    Example:
        >>> from scoresde.inverse_problems import Imputation
        >>> ConstrainedSampling(partial(Imputation, Ancestral()), steps=200).steps
        200
    """

    sampler: Callable[[Any], Sampler] = _REPAINT
    steps: int = 100

    def __post_init__(self) -> None:
        _check_factory("sampler", self.sampler, "partial(RePaint, Ancestral())")
        check_integer("steps", self.steps, minimum=1)

    def draw(self, problem: PosteriorProblem) -> Tensor:
        rows = problem.rows
        sampler = self.sampler(problem.measurement.select(rows))
        return problem.sample(problem.score.select(rows), sampler, self.steps)


@dataclass(frozen=True)
class ParticleSampling(PosteriorSampler):
    """Run particles and resample them by their weights (:func:`twisted_smc`).

    Exact as the number of particles grows. The samples of one observation come from one run: where
    its effective sample size is small, they are copies of a few particles.

    Args:
        posterior: a function ``(score, measurement) -> PosteriorScore``: proposal and twist.
        particles: number of particles for each observation.
        steps: number of steps.

    Raises:
        TypeError: if ``posterior`` is not callable.
        ValueError: if a number is below 1.

    Example:
        >>> ParticleSampling(particles=1000).particles
        1000
    """

    posterior: Callable[[Score, Any], PosteriorScore] = MMPS
    particles: int = 256
    steps: int = 100

    def __post_init__(self) -> None:
        _check_factory("posterior", self.posterior, "MMPS")
        check_integer("particles", self.particles, minimum=1)
        check_integer("steps", self.steps, minimum=1)

    def run(self, problem: PosteriorProblem) -> Particles:
        """Return the weighted particles; ``n`` is not used."""
        return twisted_smc(
            self.posterior(problem.score, problem.measurement),
            (self.particles, *problem.event_shape),
            steps=self.steps,
            generator=problem.generator,
            batch_size=problem.batch_size,
            progress=problem.progress,
        )

    def draw(self, problem: PosteriorProblem) -> Tensor:
        return self.run(problem).draw(problem.n, problem.generator)

    def mean(self, problem: PosteriorProblem) -> Tensor:
        """Return the weighted mean of all particles; ``n`` is not used."""
        return self.run(problem).mean()


def restore(
    score: Score,
    measurement: Measurement,
    event_shape: Sequence[int],
    *,
    n: int | None = None,
    mean: bool = False,
    method: PosteriorSampler = PosteriorScoreSampling(),
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Sample from the posterior p(x_0|y) of any measurement.

    If y is a linear observation without noise, samples and means satisfy A x = y.

    Args:
        score: the prior.
        measurement: such as ``Observation(Blur.gaussian(1.0), y, noise_std=0.1)``.
        event_shape: the shape of one sample of the prior.
        n: number of samples for each observation; None for one, without an axis of its own.
        mean: return the posterior mean, estimated from ``n`` samples (32 if None), instead.
        method: the default ``PosteriorScoreSampling()`` is MMPS in 100 steps: among the most
            accurate methods at this cost, for any σ_y. ``ParticleSampling()`` is the most accurate
            where the exact posterior is known; ``benchmarks/results/posterior.md`` has the figures.
        generator: source of all randomness; None for PyTorch's global one.
        batch_size: number of rows in one call of the network; all if None.
        progress: show a progress bar.

    Returns:
        ``(observations, n, *event)``, or ``(observations, *event)`` if ``n`` is None or for a mean.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if shapes do not fit, or the method does not take σ_y = 0.
        SamplingError: if something is not finite.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> from scoresde.inverse_problems import LogLikelihood, DPS
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I)
        >>> ring = LogLikelihood(lambda x: -50 * (x.norm(dim=1) - 2) ** 2)
        >>> method = PosteriorScoreSampling(partial(DPS, curvature=100.0))
        >>> x = restore(prior, ring, (2,), n=100, method=method)
        >>> x.shape, bool(((x.norm(dim=2) - 2).abs() < 0.5).all())
        (torch.Size([1, 100, 2]), True)
    """
    check_instance(
        "method",
        method,
        PosteriorSampler,
        "PosteriorScoreSampling()",
        "wrap a posterior score as PosteriorScoreSampling(MMPS), a sampler as "
        "ConstrainedSampling(partial(RePaint, Ancestral()))",
    )
    count = n if n is not None else _SAMPLES_PER_MEAN if mean else 1
    problem = PosteriorProblem(
        score, measurement, event_shape, count, generator, batch_size, progress
    )
    x = method.mean(problem) if mean else method.draw(problem)
    flat = x.reshape(-1, *event_shape)
    rows = torch.arange(measurement.batch) if mean else problem.rows
    x = measurement.select(rows).project(flat).reshape(x.shape)
    return x.squeeze(1) if n is None and not mean else x


def inpaint(
    score: Score,
    x: Tensor,
    mask: Tensor,
    *,
    noise_std: float = 0.0,
    n: int | None = None,
    mean: bool = False,
    method: PosteriorSampler = PosteriorScoreSampling(),
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Sample the missing entries of data given the known ones.

    Args:
        score: the prior.
        x: data ``(batch, *event)``; entries where the mask is false are ignored, NaN included.
        mask: bool, true where ``x`` is known; of the shape of a sample, or one that expands to it,
            such as ``(height, width)``.
        noise_std: standard deviation of the noise on the known entries; if 0, samples equal them.
        n: number of samples for each row; None for one, without an axis of its own.
        mean: return the posterior mean, estimated from ``n`` samples (32 if None), instead.
        method: see :func:`restore`.
        generator: source of all randomness; None for PyTorch's global one.
        batch_size: number of rows in one call of the network; all if None.
        progress: show a progress bar.

    Returns:
        ``(batch, n, *event)``, or ``(batch, *event)`` if ``n`` is None or for a mean; in the dtype
        of ``x``.

    Raises:
        TypeError: if the mask is not boolean, or ``x`` not floating point.
        ValueError: if no entry is known or none is missing, or shapes do not fit.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I)
        >>> x = torch.tensor([[3.0, torch.nan]])
        >>> inpaint(prior, x, ~x[0].isnan(), n=5)[0, :, 0]
        tensor([3., 3., 3., 3., 3.])
    """
    event = _event_of("x", x)
    known = check_tensor("mask", mask)
    try:
        known = known.to(x.device).expand(event)
    except RuntimeError:
        raise ValueError(
            f"mask: expected the shape of one sample, {tuple(event)}, or one that expands to it, "
            f"got {tuple(mask.shape)}; all rows share one mask"
        ) from None
    operator = Mask(known)
    if bool(known.all()):
        raise ValueError(
            f"mask: expected at least one false entry, got none in shape {tuple(mask.shape)}: "
            "nothing is missing; for noisy data use denoise(score, y, sigma)"
        )
    observation = Observation(operator, check_finite("x", x[:, known]), noise_std)
    filled = restore(
        score, observation, event, n=n, mean=mean, method=method,
        generator=generator, batch_size=batch_size, progress=progress,
    ).to(x)  # fmt: skip
    if noise_std > 0:
        return filled
    return torch.where(known, x if filled.ndim == x.ndim else x.unsqueeze(1), filled)


def super_resolve(
    score: Score,
    y: Tensor,
    factor: int,
    *,
    downsampling: Callable[[int, int], LinearOperator] = AveragePool,
    dimensions: int = 2,
    noise_std: float = 0.0,
    n: int | None = None,
    mean: bool = False,
    method: PosteriorSampler = PosteriorScoreSampling(),
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Sample data of higher resolution: the last axes enlarged by a factor.

    Args:
        score: the prior, of large samples.
        y: small samples ``(batch, *event)``, such as ``(batch, channels, height, width)``.
        factor: k >= 1, by which each axis is enlarged.
        downsampling: the observation operator: ``AveragePool``, ``Bicubic`` or a function
            ``(factor, dimensions) -> LinearOperator``.
        dimensions: number of axes to enlarge, counted from the last: 2 for images, 1 for signals.
        noise_std: standard deviation of the noise on ``y``; if 0, samples satisfy A x = y.
        n: number of samples for each row; None for one, without an axis of its own.
        mean: return the posterior mean, estimated from ``n`` samples (32 if None), instead.
        method: see :func:`restore`.
        generator: source of all randomness; None for PyTorch's global one.
        batch_size: number of rows in one call of the network; all if None.
        progress: show a progress bar.

    Returns:
        ``(batch, n, *large)``, or ``(batch, *large)`` if ``n`` is None or for a mean; in the dtype
        of ``y``.

    Raises:
        TypeError: if ``y`` is not floating point or the factor no integer.
        ValueError: if ``y`` has too few axes, or the prior is one of other shapes.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I)
        >>> x = super_resolve(prior, torch.ones(1, 3, 2, 2), 2)
        >>> x.shape, AveragePool(2)(x)[0, 0]
        (torch.Size([1, 3, 4, 4]), tensor([[1.0000, 1.0000],
                [1.0000, 1.0000]]))
    """
    require_score(score)
    small = _event_of("y", check_state("y", y))
    k = check_integer("factor", factor, minimum=1)
    if len(small) < check_integer("dimensions", dimensions, minimum=1):
        raise ValueError(
            f"y: expected samples with at least {dimensions} axes to enlarge, got {tuple(small)}; "
            "pass dimensions=1 for signals"
        )
    event = (*small[:-dimensions], *(k * size for size in small[-dimensions:]))
    score.moments.check_event(f"y of {tuple(small)} enlarged by factor={k}", event)
    observation = Observation(downsampling(k, dimensions), y, noise_std)
    return restore(
        score, observation, event, n=n, mean=mean, method=method,
        generator=generator, batch_size=batch_size, progress=progress,
    ).to(y)  # fmt: skip


def colorize(
    score: Score,
    gray: Tensor,
    *,
    weights: Sequence[float] = (1 / 3, 1 / 3, 1 / 3),
    noise_std: float = 0.0,
    n: int | None = None,
    mean: bool = False,
    method: PosteriorSampler = PosteriorScoreSampling(),
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Sample the channels of data given a weighted sum of them, such as a gray image.

    Args:
        score: the prior, of samples with channels.
        gray: weighted sums of the channels ``(batch, 1, *spatial)``.
        weights: one per channel; the mean of three by default, (0.299, 0.587, 0.114) for luma.
        noise_std: standard deviation of the noise on ``gray``; if 0, samples satisfy A x = y.
        n: number of samples for each row; None for one, without an axis of its own.
        mean: return the posterior mean, estimated from ``n`` samples (32 if None), instead.
        method: see :func:`restore`.
        generator: source of all randomness; None for PyTorch's global one.
        batch_size: number of rows in one call of the network; all if None.
        progress: show a progress bar.

    Returns:
        ``(batch, n, channels, *spatial)``, or ``(batch, channels, *spatial)`` if ``n`` is None or
        for a mean; in the dtype of ``gray``.

    Raises:
        TypeError: if ``gray`` is not floating point.
        ValueError: if it does not have one channel, or the prior is one of other shapes.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I)
        >>> x = colorize(prior, torch.full((2, 1, 4, 4), 0.5))
        >>> x.shape, bool(torch.allclose(x.mean(1), torch.tensor(0.5)))
        (torch.Size([2, 3, 4, 4]), True)
    """
    require_score(score)
    shape = _event_of("gray", check_state("gray", gray))
    if len(shape) == 0 or shape[0] != 1:
        raise ValueError(
            f"gray: expected shape (batch, 1, …), one channel, got {tuple(gray.shape)}; add the "
            "axis with gray.unsqueeze(1)"
        )
    event = (len(weights), *shape[1:])
    score.moments.check_event(f"gray with {len(weights)} weights", event)
    observation = Observation(Grayscale(weights), gray, noise_std)
    return restore(
        score, observation, event, n=n, mean=mean, method=method,
        generator=generator, batch_size=batch_size, progress=progress,
    ).to(gray)  # fmt: skip


def _event_of(name: str, x: Tensor) -> torch.Size:
    if check_floating(name, x).ndim == 0 or x.numel() == 0:
        raise ValueError(
            f"{name}: expected shape (batch, *event) and at least one row, got {tuple(x.shape)}; "
            f"add the batch dimension with {name}.unsqueeze(0)"
        )
    return x.shape[1:]
