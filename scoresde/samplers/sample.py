"""Noise to data: the one loop that every sampler runs in.

:func:`walk` is the loop itself, an iterator over the states; :func:`sample` is its front door,
which checks, draws the start, keeps an eye on the numbers and denoises at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde._core.checks import check_integer, check_state
from scoresde._core.modules import dtype_and_device, evaluation_mode
from scoresde._core.random import normal_like, temporarily_seeded
from scoresde._core.shapes import as_time
from scoresde.samplers.adams_bashforth import AdamsBashforth
from scoresde.samplers.base import Noise, Sampler
from scoresde.samplers.grids import Grid
from scoresde.scores import Score
from scoresde.scores.chunked import ChunkedScore


@dataclass(frozen=True)
class SamplingStep:
    """One moment of a run, as a callback sees it.

    Attributes:
        step: how many steps have been made, 0 … ``steps``.
        steps: how many there will be.
        t: the time reached, ``()``.
        x: the state there, ``(batch, *event)``.
        score: the score.
    """

    step: int
    steps: int
    t: Tensor
    x: Tensor
    score: Score

    @property
    def denoised(self) -> Tensor:
        """The preview x̂(x, t), shaped like ``x``; every look costs one evaluation."""
        return self.score.denoised(self.x, self.t)


class SamplingError(RuntimeError):
    """Some samples are not finite; what there is comes along.

    Attributes:
        samples: the result ``(n, *event)`` with all rows, good and bad.
        finite: which rows are good, bool ``(n,)``.
    """

    def __init__(self, message: str, samples: Tensor, finite: Tensor) -> None:
        super().__init__(message)
        self.samples = samples
        self.finite = finite


@dataclass
class Walk:
    """A sampler on its way: iterate over it for the state after every step.

    Attributes:
        score: the score.
        x: the state reached, ``(batch, *event)``.
        times: falling times ``(N+1,)``.
        sampler: which steps are made.
        noise: where they draw from.
    """

    score: Score
    x: Tensor
    times: Tensor
    sampler: Sampler
    noise: Noise

    def __iter__(self) -> Iterator[Tensor]:
        """Make the steps."""
        self._state = self.sampler.init(self.score, self.x, self.times)
        for t, s in pairwise(self.times.unbind()):
            self.x, self._state = self.sampler.step(
                self.score, self.x, t, s, self._state, self.noise
            )
            yield self.x

    def end(self) -> Tensor:
        """Return the sample that the sampler makes of the last state, once all steps are made."""
        return self.sampler.end(self.score, self.x, self.times[-1], self._state)


def walk(score: Score, x: Tensor, times: Tensor, sampler: Sampler, noise: Noise) -> Walk:
    """Run a sampler from ``times[0]`` to ``times[-1]``, step by step.

    This is the loop behind :func:`sample`, without checks; gradients flow through it where they are
    enabled.

    Args:
        score: the score.
        x: the state at ``times[0]``, ``(batch, *event)``.
        times: falling times ``(N+1,)``, float64 on the CPU.
        sampler: which steps to make.
        noise: ``noise(x)`` draws independent N(0, 1) like ``x``; recorded noise can be replayed.

    Returns:
        An iterable of N states, shaped like ``x``, whose ``end()`` makes the sample of the last.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> score = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I) stay in noise_level_at
        >>> times = torch.linspace(1.0, 1e-3, 4, dtype=torch.float64)
        >>> way = walk(score, torch.ones(1, 2), times, AdamsBashforth(), torch.randn_like)
        >>> [tuple(x.shape) for x in way], way.end()
        ([(1, 2), (1, 2), (1, 2)], tensor([[1., 1.]]))
    """
    return Walk(score, x, times, sampler, noise)


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
    r"""Draw samples: start from the prior at T and follow the sampler down to t_min.

    Runs without gradients and with the network in evaluation mode. The state is kept in the dtype
    of ``start`` or, without one, of the network's parameters, at least in float32 while it runs.

    Args:
        score: the score, which knows its diffusion.
        shape: ``(n, *event)``; None if ``start`` is given.
        sampler: which steps to make, such as ``Ancestral()``; by default an Adams method for the
            probability flow, accurate in few steps.
        steps: how many, on the sampler's own grid; the sampler's ``default_steps`` if None.
        times: a grid of one's own: strictly falling times ``(N+1,)`` inside [0, T] instead of
            ``steps``, or a :class:`Grid` such as ``Karras()`` for that many steps.
        start: the state at the first time ``(n, *event)``, instead of a draw from the prior.
        denoise: what is made of the last state x, where a little noise is left. True: x̂(x, t_N),
            the mean of the data given x. False: x itself, at t_N, as :func:`log_likelihood` and
            :func:`encode` take it. None: the sampler's own end (:meth:`Sampler.end`), x̂ of most;
            integrators of the flow follow it to the data, which keeps the law.
        generator: source of all randomness, of any device; None for PyTorch's global one.
        progress: show a progress bar.
        callback: called with a :class:`SamplingStep` at the start and after every step.
        batch_size: how many rows the network sees at once; the samples are those of the whole
            batch.

    Returns:
        The samples ``(n, *event)``.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if shapes disagree or times do not fall inside [0, T].
        SamplingError: if some result is not finite; it names the step and carries the samples.

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
    check_kinds(score, sampler)
    knots = sampling_times(sampler, score, steps, times)
    x = _start(score, shape, start, generator)
    noise = partial(normal_like, generator=generator)
    return run(
        score, x, knots, sampler, noise, denoise=denoise, progress=progress, callback=callback,
        batch_size=batch_size,
    )  # fmt: skip


@torch.no_grad()
def run(
    score: Score,
    x: Tensor,
    times: Tensor,
    sampler: Sampler,
    noise: Noise,
    *,
    denoise: bool | None,
    progress: bool,
    callback: Callable[[SamplingStep], object] | None,
    batch_size: int | None,
) -> Tensor:
    """Walk to the end, showing how it goes, and check what comes out (see :func:`sample`)."""
    dtype, steps = x.dtype, len(times) - 1
    x = x.to(torch.promote_types(dtype, torch.float32))
    if batch_size is not None:
        score = ChunkedScore(score, check_integer("batch_size", batch_size, minimum=1))
    sums = []
    with evaluation_mode(score):
        if callback is not None:
            callback(SamplingStep(0, steps, times[0], x, score))
        way = walk(score, x, times, sampler, noise)
        bar = tqdm(way, total=steps, disable=not progress, unit="step")
        for step, x in enumerate(bar, start=1):
            sums.append(x.sum())
            if callback is not None:
                callback(SamplingStep(step, steps, times[step], x, score))
        if denoise is None:
            x = way.end()
        elif denoise:
            x = score.denoised(x, times[-1])
    return _check_health(x, torch.stack(sums), times).to(dtype)


def check_kinds(score: object, sampler: object) -> None:
    """Refuse what is no score or no sampler."""
    if not isinstance(score, Score):
        raise TypeError(
            f"score: expected a Score such as ScoreModel(…), got {type(score).__name__}; "
            "wrap a plain function as FunctionScore(function, sde)"
        )
    if not isinstance(sampler, Sampler):
        raise TypeError(f"sampler: expected a Sampler such as Ancestral(), got {sampler!r}")


def sampling_times(
    sampler: Sampler, score: Score, steps: int | None, times: Tensor | Sequence[float] | Grid | None
) -> Tensor:
    """Return the times ``(N+1,)`` that ``steps`` and ``times`` ask for (see :func:`sample`)."""
    if times is None or callable(times):
        count = sampler.default_steps if steps is None else steps
        grid = sampler.times if times is None else times
        return grid(score.sde, check_integer("steps", count, minimum=1), score.moments.std)
    if steps is not None:
        raise ValueError(
            f"steps, times: expected one of them, got steps={steps} and times; a grid of N+1 times "
            "makes N steps"
        )
    knots = torch.as_tensor(times, device="cpu")
    if knots.ndim != 1 or len(knots) < 2:
        raise ValueError(
            f"times: expected shape (N+1,) with N >= 1, got {tuple(knots.shape)}; all samples "
            "share one grid"
        )
    unchecked = [as_time(t, score.sde.T, "times") for t in knots.unbind()]
    knots = torch.stack(unchecked)
    if not bool((knots.diff() < 0).all()):
        first = int((knots.diff() >= 0).nonzero()[0])
        raise ValueError(
            f"times: expected strictly falling times, got {knots[first]:g} before "
            f"{knots[first + 1]:g}; samplers go from noise at T to data at 0 (times.flip(0)?)"
        )
    return knots


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
        return prior.sample(torch.Size((n,))).to(dtype=dtype, device=device)


def _check_shape(shape: Sequence[int] | None) -> tuple[int, ...]:
    if not isinstance(shape, Sequence) or len(shape) == 0:
        raise TypeError(
            f"shape: expected (n, *event), got {shape!r}; 16 points of the plane are (16, 2), "
            "16 scalars are (16,); None goes with `start`"
        )
    return tuple(check_integer(f"shape[{i}]", size, minimum=1) for i, size in enumerate(shape))


def _check_health(x: Tensor, sums: Tensor, times: Tensor) -> Tensor:
    """Return ``x`` if it and the states on its way, told by their sums, are finite."""
    finite = x.isfinite().flatten(1).all(1) if x.ndim > 1 else x.isfinite()
    if bool(finite.all()):
        return x
    bad = (~sums.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        place = (
            f"from step {step + 1} of {len(sums)} on (t = {times[step]:g} to {times[step + 1]:g})"
        )
    else:
        place = f"in the denoised x̂ at t = {times[-1]:g}"
    raise SamplingError(
        f"samples: {int((~finite).sum())} of {len(x)} are not finite, {place}; check the score "
        "there or try more steps; the others are this error's `samples[finite]`",
        x,
        finite,
    )
