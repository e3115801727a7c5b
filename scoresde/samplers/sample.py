"""Noise to data: the loop in which every sampler runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde._core.checks import check_instance, check_integer, check_state
from scoresde._core.modules import dtype_and_device, evaluation_mode
from scoresde._core.random import normal_like, temporarily_seeded
from scoresde._core.shapes import as_time
from scoresde.samplers.adams_bashforth import AdamsBashforth
from scoresde.samplers.base import Noise, Sampler
from scoresde.samplers.grids import Grid
from scoresde.scores import ChunkedScore, Score
from scoresde.scores.base import require_score

_SAMPLER_HINT = "pass an object, such as Ancestral() or a preset: ddim(), ddpm(), dpm_solver()"


@dataclass(frozen=True)
class SamplingStep:
    """The state of a run after a step, as a callback receives it.

    Attributes:
        step: number of steps made so far, 0 … ``steps``.
        steps: number of steps of the run.
        t: the current time, ``()``.
        x: the current state, ``(batch, *event)``.
        score: the score.
    """

    step: int
    steps: int
    t: Tensor
    x: Tensor
    score: Score

    @property
    def denoised(self) -> Tensor:
        """x̂(x, t), shaped like ``x``; each access costs one evaluation."""
        return self.score.denoised(self.x, self.t)


class SamplingError(RuntimeError):
    """Some samples are not finite; all samples are attached.

    Attributes:
        samples: the result ``(n, *event)``, finite or not.
        finite: which rows are finite, bool ``(n,)``.
    """

    def __init__(self, message: str, samples: Tensor, finite: Tensor) -> None:
        super().__init__(message)
        self.samples = samples
        self.finite = finite


def iterate(
    score: Score, x: Tensor, times: Tensor, sampler: Sampler, noise: Noise
) -> Iterator[tuple[Tensor, Any]]:
    """Yield the state after each step of a sampler, and what the sampler passes to the next step.

    This is the loop of :func:`sample` without checks; gradients flow through it where they are
    enabled.

    Args:
        score: the score.
        x: the state at ``times[0]``, ``(batch, *event)``.
        times: decreasing times ``(N+1,)``, float64 on the CPU.
        sampler: the sampler.
        noise: ``noise(x)`` draws independent N(0, 1) like ``x``; it may return recorded noise.

    Yields:
        N pairs of a state, shaped like ``x``, and the sampler's own state, as
        :meth:`Sampler.end` takes them.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> score = FunctionScore(lambda x, t: -x, VPSDE())  # the score of data N(0, I)
        >>> times = torch.linspace(1.0, 1e-3, 4, dtype=torch.float64)
        >>> sampler = AdamsBashforth()
        >>> for x, state in iterate(score, torch.ones(1, 2), times, sampler, torch.randn_like):
        ...     assert x.shape == (1, 2)
        >>> sampler.end(score, x, times[-1], state)
        tensor([[1., 1.]])
    """
    state = sampler.init(score, x, times)
    for t, s in pairwise(times.unbind()):
        x, state = sampler.step(score, x, t, s, state, noise)
        yield x, state


@torch.no_grad()
def sample(
    score: Score,
    shape: Sequence[int] | None,
    sampler: Sampler = AdamsBashforth(),
    *,
    steps: int | None = None,
    times: Tensor | Sequence[float] | Grid | None = None,
    start: Tensor | None = None,
    denoise: bool | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
    callback: Callable[[SamplingStep], object] | None = None,
    batch_size: int | None = None,
) -> Tensor:
    r"""Draw samples: start from the prior at T and make the sampler's steps down to t_min.

    Runs without gradients and with the network in evaluation mode. The state has the dtype of
    ``start`` or, without one, of the network's parameters, and at least float32 during the run.

    Args:
        score: the score.
        shape: ``(n, *event)``; None if ``start`` is given.
        sampler: the sampler, such as ``Ancestral()``; by default an Adams method for the
            probability flow, accurate in few steps.
        steps: number of steps on the sampler's own times; its ``default_steps`` if None.
        times: instead of ``steps``, strictly decreasing times ``(N+1,)`` inside [0, T]; or a
            :class:`Grid` such as ``Karras()`` for that number of steps.
        start: the state at the first time ``(n, *event)``, instead of a draw from the prior.
        denoise: how the result is made from the last state x, which has a little noise left. True:
            x̂(x, t_N), the mean of the data given x. False: x itself, at t_N, as
            :func:`log_likelihood` and :func:`encode` take it. None: by the sampler
            (:meth:`Sampler.end`): x̂ for most; integrators of the flow continue to t = 0, which
            preserves the distribution.
        generator: source of all randomness, of any device; None for PyTorch's global one.
        progress: show a progress bar.
        callback: called with a :class:`SamplingStep` at the start and after every step.
        batch_size: number of rows the network evaluates at once; it does not change the samples.

    Returns:
        The samples ``(n, *event)``.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if shapes disagree or times do not decrease inside [0, T].
        SamplingError: if a result is not finite; it names the step and holds the samples.

    Example:
        >>> from scoresde import GaussianMixture, VPSDE
        >>> from scoresde.samplers import Ancestral, sample
        >>> means, covariances = torch.tensor([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.01)
        >>> mixture = GaussianMixture(torch.ones(2), means, covariances, VPSDE())
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = sample(mixture, (500, 1), Ancestral(), steps=50, generator=generator)
        >>> x.shape, round(float(x.abs().mean()), 1)
        (torch.Size([500, 1]), 1.0)

    References:
        Song et al. 2021, arXiv:2011.13456, sections 4.1 to 4.3.
    """
    require_score(score)
    check_instance("sampler", sampler, Sampler, "Ancestral()", _SAMPLER_HINT)
    grid = sampling_times(sampler, score, steps, times)
    initial = _start(score, shape, start, generator)
    x, score = in_working_precision(initial), in_chunks(score, batch_size)
    noise, count = partial(normal_like, generator=generator), len(grid) - 1
    sums: list[Tensor] = []
    state: Any = None
    with evaluation_mode(score):
        if callback is not None:
            callback(SamplingStep(0, count, grid[0], x, score))
        run = iterate(score, x, grid, sampler, noise)
        for x, state in tqdm(run, total=count, disable=not progress, unit="step"):  # noqa: B007
            sums.append(x.sum())
            if callback is not None:
                callback(SamplingStep(len(sums), count, grid[len(sums)], x, score))
        if denoise is None:
            x = sampler.end(score, x, grid[-1], state)
        elif denoise:
            x = score.denoised(x, grid[-1])
    return check_samples(x, torch.stack(sums), grid).to(initial.dtype)


def in_working_precision(x: Tensor) -> Tensor:
    """Return a state in at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_chunks(score: Score, batch_size: int | None) -> Score:
    """Return a score that evaluates at most ``batch_size`` rows at once."""
    if batch_size is None:
        return score
    return ChunkedScore(score, check_integer("batch_size", batch_size, minimum=1))


def sampling_times(
    sampler: Sampler, score: Score, steps: int | None, times: Tensor | Sequence[float] | Grid | None
) -> Tensor:
    """Return the times ``(N+1,)`` of a run (see :func:`sample`)."""
    if times is None or callable(times):
        count = sampler.default_steps if steps is None else steps
        rule = sampler.times if times is None else times
        return rule(score.sde, check_integer("steps", count, minimum=1), score.moments.std)
    if steps is not None:
        raise ValueError(
            f"steps, times: expected one of them, got steps={steps} and times; a grid of N+1 times "
            "makes N steps"
        )
    if isinstance(times, str):
        raise TypeError(
            f"times: expected times or a Grid such as Karras(), got {times!r}; pass the object, "
            "not a name"
        )
    given = torch.as_tensor(times, device="cpu")
    if given.ndim != 1 or len(given) < 2:
        raise ValueError(
            f"times: expected shape (N+1,) with N >= 1, got {tuple(given.shape)}; all samples "
            "share one grid"
        )
    grid = torch.stack([as_time(t, score.sde.T, "times") for t in given.unbind()])
    if not bool((grid.diff() < 0).all()):
        first = int((grid.diff() >= 0).nonzero()[0])
        raise ValueError(
            f"times: expected strictly decreasing times, got {grid[first]:g} before "
            f"{grid[first + 1]:g}; samplers go from noise at T to data at 0 (times.flip(0)?)"
        )
    return grid


def _start(
    score: Score,
    shape: Sequence[int] | None,
    start: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    if start is not None:
        x = check_state("start", start)
        if shape is not None and tuple(shape) != tuple(x.shape):
            raise ValueError(
                f"shape, start: expected the same shape, got {tuple(shape)} and {tuple(x.shape)}; "
                "shape may be None where start is given"
            )
        return x
    n, *event_shape = _check_shape(shape)
    dtype, device = dtype_and_device(score)
    prior = score.sde.prior(tuple(event_shape), dtype=torch.promote_types(dtype, torch.float32))
    with temporarily_seeded(generator):
        drawn: Tensor = prior.sample(torch.Size((n,)))
    return drawn.to(dtype=dtype, device=device)


def _check_shape(shape: Sequence[int] | None) -> tuple[int, ...]:
    if not isinstance(shape, Sequence) or len(shape) == 0:
        raise TypeError(
            f"shape: expected (n, *event), got {shape!r}; 16 points of the plane are (16, 2), "
            "16 scalars are (16,); None goes with `start`"
        )
    return tuple(check_integer(f"shape[{i}]", size, minimum=1) for i, size in enumerate(shape))


def check_samples(x: Tensor, sums: Tensor, times: Tensor) -> Tensor:
    """Return ``x`` if it is finite; the sums of the states name the step that failed.

    Raises:
        SamplingError: if a row is not finite.
    """
    finite = x.isfinite().flatten(1).all(1) if x.ndim > 1 else x.isfinite()
    if bool(finite.all()):
        return x
    bad = (~sums.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        where = f"from step {step + 1} of {len(sums)} (t = {times[step]:g} to {times[step + 1]:g})"
    else:
        where = f"in the denoised x̂ at t = {times[-1]:g}"
    raise SamplingError(
        f"samples: {int((~finite).sum())} of {len(x)} are not finite, {where}; check the score "
        "there or try more steps; the others are this error's `samples[finite]`",
        x,
        finite,
    )
