r"""Restoration in one line: what was seen → samples of what it may have been.

    inpaint(score, x, mask)    super_resolve(score, y, factor)    colorize(score, grey)

are :func:`restore` with an operator, and that is a *method*, a small object that draws from
p(x_0|y), in one of three ways:

| method | what it is made of |
|---|---|
| :class:`PosteriorScoreSampling` | a posterior score (MMPS, ΠGDM, DPS, …) and any sampler |
| :class:`ConstrainedSampling` | the prior, and a sampler that knows y (Imputation, RePaint, …) |
| :class:`ParticleSampling` | particles on a posterior score: exact as their number grows; σ_y > 0 |
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
    check_integer,
    check_integers,
    check_state,
    check_tensor,
)
from scoresde.inverse_problems.constrained import RePaint
from scoresde.inverse_problems.kalman import MMPS
from scoresde.inverse_problems.measurement import Measurement, Observation
from scoresde.inverse_problems.particles import twisted_smc
from scoresde.inverse_problems.posterior import PosteriorScore
from scoresde.operators import AveragePool, Grayscale, LinearOperator, Mask
from scoresde.samplers import Ancestral, Exponential, Sampler, sample
from scoresde.scores import Score

_FOR_A_MEAN = 32
"""How many samples a mean is taken of, where nobody says."""

_REVERSE_SDE = Exponential(order=1, eta=1.0)
_REPAINT = partial(RePaint, Ancestral())


def _check_maker(name: str, maker: object, example: str) -> None:
    if not callable(maker):
        raise TypeError(f"{name}: expected what makes one, such as {example}, got {maker!r}")


@dataclass(frozen=True)
class PosteriorSampler(ABC):
    """A way to draw from p(x_0|y): define :meth:`draw`."""

    @abstractmethod
    def draw(
        self,
        score: Score,
        measurement: Measurement,
        event_shape: Sequence[int],
        n: int,
        *,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Return ``n`` samples for each measurement, ``(measurements, n, *event)``.

        Args:
            score: the prior.
            measurement: the likelihood; its rows are its measurements, as are those of a condition
                of the score.
            event_shape: of one sample.
            n: how many samples, for each.
            generator: source of all randomness.
            batch_size: how many rows the network sees at once.
            progress: show a progress bar.
        """

    def mean(
        self,
        score: Score,
        measurement: Measurement,
        event_shape: Sequence[int],
        n: int,
        *,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Return the mean ``(measurements, *event)``, here of ``n`` samples each."""
        return self.draw(
            score, measurement, event_shape, n,
            generator=generator, batch_size=batch_size, progress=progress,
        ).mean(1)  # fmt: skip


@dataclass(frozen=True)
class PosteriorScoreSampling(PosteriorSampler):
    """Sample from a posterior score.

    Args:
        posterior: makes it of score and measurement: ``MMPS``, ``PiGDM``, ``DPS``, ``ddnm``, or
            with settings ``partial(DiffPIR, weight=0.5)``.
        sampler: any sampler. Those that add noise forgive a posterior score its errors; those of
            high order may not forgive how quickly it changes.
        steps: how many steps are made.

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
        _check_maker("posterior", self.posterior, "MMPS")
        if not isinstance(self.sampler, Sampler):
            raise TypeError(f"sampler: expected a Sampler such as Ancestral(), got {self.sampler}")
        check_integer("steps", self.steps, minimum=1)

    def draw(
        self,
        score: Score,
        measurement: Measurement,
        event_shape: Sequence[int],
        n: int,
        *,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Return samples by the sampler."""
        rows = torch.arange(measurement.batch).repeat_interleave(n)
        return sample(
            self.posterior(score, measurement).select(rows), (len(rows), *event_shape), self.sampler,
            steps=self.steps, generator=generator, batch_size=batch_size, progress=progress,
        ).unflatten(0, (-1, n))  # fmt: skip


@dataclass(frozen=True)
class ConstrainedSampling(PosteriorSampler):
    """Sample from the prior with a sampler that knows of the measurement.

    Args:
        sampler: makes it of the measurement: ``partial(RePaint, Ancestral())``, or any function.
        steps: how many steps are made.

    Example:
        >>> from scoresde.inverse_problems import Imputation
        >>> ConstrainedSampling(partial(Imputation, Ancestral()), steps=200).steps
        200
    """

    sampler: Callable[[Any], Sampler] = _REPAINT
    steps: int = 100

    def __post_init__(self) -> None:
        _check_maker("sampler", self.sampler, "partial(RePaint, Ancestral())")
        check_integer("steps", self.steps, minimum=1)

    def draw(
        self,
        score: Score,
        measurement: Measurement,
        event_shape: Sequence[int],
        n: int,
        *,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Return samples by the sampler that is made."""
        rows = torch.arange(measurement.batch).repeat_interleave(n)
        return sample(
            score.select(rows), (len(rows), *event_shape), self.sampler(measurement.select(rows)),
            steps=self.steps, generator=generator, batch_size=batch_size, progress=progress,
        ).unflatten(0, (-1, n))  # fmt: skip


@dataclass(frozen=True)
class ParticleSampling(PosteriorSampler):
    """Run particles and draw from them by their weights (:func:`twisted_smc`).

    Exact as the particles grow in number; the mean is the weighted one of all. The samples of one
    observation come from one run, and are alike where its effective sample size is small.

    Args:
        posterior: makes proposal and twist of score and measurement.
        particles: how many, for each measurement.
        steps: how many steps are made.

    Example:
        >>> ParticleSampling(particles=1000).particles
        1000
    """

    posterior: Callable[[Score, Any], PosteriorScore] = MMPS
    particles: int = 256
    steps: int = 100

    def __post_init__(self) -> None:
        _check_maker("posterior", self.posterior, "MMPS")
        check_integer("particles", self.particles, minimum=1)
        check_integer("steps", self.steps, minimum=1)

    def draw(
        self,
        score: Score,
        measurement: Measurement,
        event_shape: Sequence[int],
        n: int,
        *,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Return particles, drawn by their weights."""
        return twisted_smc(
            self.posterior(score, measurement), (self.particles, *event_shape), steps=self.steps,
            generator=generator, batch_size=batch_size, progress=progress,
        ).draw(n, generator)  # fmt: skip

    def mean(
        self,
        score: Score,
        measurement: Measurement,
        event_shape: Sequence[int],
        n: int,
        *,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Return the weighted mean of all particles; ``n`` is not used."""
        return twisted_smc(
            self.posterior(score, measurement), (self.particles, *event_shape), steps=self.steps,
            generator=generator, batch_size=batch_size, progress=progress,
        ).mean()  # fmt: skip


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
    """Draw from the posterior p(x_0|y) of any measurement.

    What was seen without noise through a linear operator is reproduced, A x = y.

    Args:
        score: the prior.
        measurement: what was seen, such as ``Observation(Blur.gaussian(1.0), y, noise_std=0.1)``.
        event_shape: of one sample of the prior.
        n: how many samples for each observation; None for one, without an axis of its own.
        mean: return the posterior mean instead, of ``n`` samples (32 if None).
        method: how. ``PosteriorScoreSampling()`` is MMPS in 100 steps: among the best of one chain in so few, and
            it takes any σ_y. ``ParticleSampling()`` is nearest to the exact posterior where that is known;
            ``benchmarks/results/posterior.md`` tells how near each comes.
        generator: source of all randomness; None for PyTorch's global one.
        batch_size: how many rows the network sees at once.
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
    _check_score(score)
    if not isinstance(measurement, Measurement):
        raise TypeError(
            "measurement: expected an Observation, a NonlinearObservation or a LogLikelihood, got "
            f"{measurement!r}"
        )
    if not isinstance(method, PosteriorSampler):
        raise TypeError(
            f"method: expected Guided(…), Stepwise(…) or Weighted(…), got {method!r}; wrap a "
            "posterior score as Guided(MMPS), a sampler as Stepwise(partial(RePaint, Ancestral()))"
        )
    event = check_integers("event_shape", event_shape, minimum=1)
    score.moments.check_event("event_shape", event)
    measurement.check_event(event)
    default = _FOR_A_MEAN if mean else 1
    count = default if n is None else check_integer("n", n, minimum=1)
    act = method.mean if mean else method.draw
    x = act(
        score, measurement, event, count,
        generator=generator, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    copies = x.reshape(-1, *event)
    rows = torch.arange(measurement.batch).repeat_interleave(len(copies) // measurement.batch)
    x = measurement.select(rows).project(copies).reshape(x.shape)
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
    """Fill in what is missing.

    Args:
        score: the prior.
        x: data ``(batch, *event)``; what they hold where the mask is false is never read.
        mask: bool, true where ``x`` is known; of the shape of a sample, or one that expands to it,
            such as ``(height, width)``.
        noise_std: of the noise on what is known; without noise, samples hold it to the letter.
        n: how many samples for each row; None for one, without an axis of its own.
        mean: return the posterior mean instead, of ``n`` samples (32 if None).
        method: how; see :func:`restore`.
        generator: source of all randomness; None for PyTorch's global one.
        batch_size: how many rows the network sees at once.
        progress: show a progress bar.

    Returns:
        ``(batch, n, *event)``, or ``(batch, *event)`` if ``n`` is None or for a mean; in the dtype
        of ``x``.

    Raises:
        TypeError: if the mask is not of booleans, or ``x`` not floating point.
        ValueError: if nothing is known or nothing missing, or shapes do not fit.

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
    seen = Observation(operator, check_finite("x", x[:, known]), noise_std)
    filled = restore(
        score, seen, event, n=n, mean=mean, method=method,
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
    """Enlarge the last axes by a factor.

    Args:
        score: the prior, of large samples.
        y: small samples ``(batch, *event)``, such as ``(batch, channels, height, width)``.
        factor: k >= 1, how many times larger each axis becomes.
        downsampling: how the small samples were made: ``AveragePool``, ``Bicubic`` or what makes an
            operator of ``(factor, dimensions)``.
        dimensions: how many axes are enlarged, counted from the last: 2 for images, 1 for signals.
        noise_std: of the noise on ``y``; without noise, samples reproduce ``y``.
        n: how many samples for each row; None for one, without an axis of its own.
        mean: return the posterior mean instead, of ``n`` samples (32 if None).
        method: how; see :func:`restore`.
        generator: source of all randomness; None for PyTorch's global one.
        batch_size: how many rows the network sees at once.
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
    _check_score(score)
    small = _event_of("y", check_state("y", y))
    k = check_integer("factor", factor, minimum=1)
    if len(small) < check_integer("dimensions", dimensions, minimum=1):
        raise ValueError(
            f"y: expected samples with at least {dimensions} axes to enlarge, got {tuple(small)}; "
            "pass dimensions=1 for signals"
        )
    event = (*small[:-dimensions], *(k * size for size in small[-dimensions:]))
    score.moments.check_event(f"y of {tuple(small)} enlarged by factor={k}", event)
    seen = Observation(downsampling(k, dimensions), y, noise_std)
    return restore(
        score, seen, event, n=n, mean=mean, method=method,
        generator=generator, batch_size=batch_size, progress=progress,
    ).to(y)  # fmt: skip


def colorize(
    score: Score,
    grey: Tensor,
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
    """Give channels to what was seen as one.

    Args:
        score: the prior, of samples with channels.
        grey: weighted sums of the channels ``(batch, 1, *rest)``.
        weights: one per channel; the mean of three by default, (0.299, 0.587, 0.114) is luma.
        noise_std: of the noise on ``grey``; without noise, samples reproduce it.
        n: how many samples for each row; None for one, without an axis of its own.
        mean: return the posterior mean instead, of ``n`` samples (32 if None).
        method: how; see :func:`restore`.
        generator: source of all randomness; None for PyTorch's global one.
        batch_size: how many rows the network sees at once.
        progress: show a progress bar.

    Returns:
        ``(batch, n, channels, *rest)``, or ``(batch, channels, *rest)`` if ``n`` is None or for a
        mean; in the dtype of ``grey``.

    Raises:
        TypeError: if ``grey`` is not floating point.
        ValueError: if it does not have one channel, or the prior is one of other shapes.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I)
        >>> x = colorize(prior, torch.full((2, 1, 4, 4), 0.5))
        >>> x.shape, bool(torch.allclose(x.mean(1), torch.tensor(0.5)))
        (torch.Size([2, 3, 4, 4]), True)
    """
    _check_score(score)
    shape = _event_of("grey", check_state("grey", grey))
    if len(shape) == 0 or shape[0] != 1:
        raise ValueError(
            f"grey: expected shape (batch, 1, …), one channel, got {tuple(grey.shape)}; add the "
            "axis with grey.unsqueeze(1)"
        )
    event = (len(weights), *shape[1:])
    score.moments.check_event(f"grey with {len(weights)} weights", event)
    seen = Observation(Grayscale(weights), grey, noise_std)
    return restore(
        score, seen, event, n=n, mean=mean, method=method,
        generator=generator, batch_size=batch_size, progress=progress,
    ).to(grey)  # fmt: skip


def _check_score(score: object) -> None:
    if not isinstance(score, Score):
        raise TypeError(
            f"score: expected a Score such as ScoreModel(…), got {type(score).__name__}"
        )


def _event_of(name: str, x: Tensor) -> torch.Size:
    if check_floating(name, x).ndim == 0 or x.numel() == 0:
        raise ValueError(
            f"{name}: expected shape (batch, *event) and at least one row, got {tuple(x.shape)}; "
            f"add the batch dimension with {name}.unsqueeze(0)"
        )
    return x.shape[1:]
