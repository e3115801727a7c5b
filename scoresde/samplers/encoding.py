"""Trajectories from noise to data, latents of data, and interpolation between data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde._core.checks import check_instance, check_state
from scoresde._core.modules import evaluation_mode
from scoresde._core.shapes import expand, flatten
from scoresde.samplers.adams_bashforth import AdamsBashforth
from scoresde.samplers.base import Sampler
from scoresde.samplers.grids import Grid
from scoresde.samplers.probability_flow import ProbabilityFlow
from scoresde.samplers.sample import (
    SamplingStep,
    check_samples,
    in_chunks,
    in_working_precision,
    iterate,
    sample,
    sampling_times,
)
from scoresde.scores import Score
from scoresde.scores.base import require_score


class Trajectory(NamedTuple):
    """All states of a run.

    Attributes:
        times: ``(N+1,)``, decreasing.
        states: ``(N+1, n, *event)``.
    """

    times: Tensor
    states: Tensor


def trajectory(
    score: Score,
    shape: Sequence[int] | None,
    sampler: Sampler = AdamsBashforth(),
    *,
    steps: int | None = None,
    times: Tensor | Sequence[float] | Grid | None = None,
    start: Tensor | None = None,
    previews: bool = False,
    generator: torch.Generator | None = None,
    progress: bool = False,
    batch_size: int | None = None,
) -> Trajectory:
    """Sample, and return all states from the start to the end.

    Args:
        score: the score.
        shape: ``(n, *event)``; None if ``start`` is given.
        sampler: the sampler.
        steps: number of steps.
        times: the times of the steps (see :func:`sample`).
        start: the state at the first time, instead of a draw from the prior.
        previews: return the denoised x̂ instead of the states, for one more evaluation a step.
        generator: source of all randomness.
        progress: show a progress bar.
        batch_size: number of rows the network evaluates at once.

    Returns:
        The N + 1 times and the states there, not denoised, ``(N+1, n, *event)``.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> from scoresde.samplers import Ancestral
        >>> score = FunctionScore(lambda x, t: -x, VPSDE())
        >>> times, states = trajectory(score, (2, 3), Ancestral(), steps=4)
        >>> times.shape, states.shape
        (torch.Size([5]), torch.Size([5, 2, 3]))
    """
    times_reached: list[Tensor] = []
    states: list[Tensor] = []

    def record(step: SamplingStep) -> None:
        times_reached.append(step.t)
        states.append(step.denoised if previews else step.x)

    sample(
        score, shape, sampler, steps=steps, times=times, start=start, denoise=False,
        generator=generator, progress=progress, callback=record, batch_size=batch_size,
    )  # fmt: skip
    return Trajectory(torch.stack(times_reached), torch.stack(states))


@torch.no_grad()
def encode(
    score: Score,
    x: Tensor,
    sampler: Sampler = ProbabilityFlow(),
    *,
    steps: int | None = None,
    times: Tensor | Sequence[float] | Grid | None = None,
    progress: bool = False,
    batch_size: int | None = None,
) -> Tensor:
    """Integrate the probability flow from data to noise: the latent from which ``x`` is sampled.

    The sampler runs on its times in reverse; ``sample(score, None, sampler, start=latent,
    denoise=False)`` on the same times returns to ``x``, up to the discretization error.

    Args:
        score: the score.
        x: data, taken as the state at t_min, ``(n, *event)``.
        sampler: a deterministic one (η = 0).
        steps: number of steps; the sampler's ``default_steps`` if None.
        times: decreasing times as for :func:`sample`.
        progress: show a progress bar.
        batch_size: number of rows the network evaluates at once.

    Returns:
        The latent at T, shaped like ``x``.

    Raises:
        ValueError: if the sampler draws noise.
        SamplingError: if a latent is not finite.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> score = FunctionScore(lambda x, t: -x, VPSDE())  # the score of data N(0, I)
        >>> x = torch.ones(2, 3)
        >>> torch.allclose(encode(score, x), x, atol=1e-3)
        True

    References:
        Song et al. 2021, arXiv:2011.13456, section 4.3; Song et al. 2021, arXiv:2010.02502, section
        5.4.
    """
    require_score(score)
    check_instance("sampler", sampler, Sampler, "ProbabilityFlow()")
    if not sampler.deterministic:
        raise ValueError(
            f"sampler: expected a deterministic one, which can be reversed, got {sampler!r}; set "
            "eta=0 or use ProbabilityFlow()"
        )
    grid = sampling_times(sampler, score, steps, times).flip(0)
    latent, score = in_working_precision(check_state("x", x)), in_chunks(score, batch_size)
    sums = []
    with evaluation_mode(score):
        run = iterate(score, latent, grid, sampler, torch.zeros_like)
        for latent, _ in tqdm(run, total=len(grid) - 1, disable=not progress, unit="step"):
            sums.append(latent.sum())
    return check_samples(latent, torch.stack(sums), grid).to(x.dtype)


def interpolate(
    score: Score,
    x0: Tensor,
    x1: Tensor,
    weights: Tensor | Sequence[float],
    sampler: Sampler = ProbabilityFlow(),
    *,
    steps: int | None = None,
    progress: bool = False,
    batch_size: int | None = None,
) -> Tensor:
    r"""Interpolate between data through their latents.

    Both are encoded, the latents are interpolated along the great circle

        z_w = sin((1−w)θ)/sin θ · z_0 + sin(wθ)/sin θ · z_1,      θ = ∠(z_0, z_1),

    and the result is decoded.

    Args:
        score: the score.
        x0: data at weight 0, ``(n, *event)``.
        x1: data at weight 1, shaped like ``x0``.
        weights: w, ``(m,)``.
        sampler: a deterministic one (η = 0).
        steps: number of steps in each direction; the sampler's ``default_steps`` if None.
        progress: show progress bars.
        batch_size: number of rows the network evaluates at once.

    Returns:
        The interpolated data, ``(m, n, *event)``.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> score = FunctionScore(lambda x, t: -x, VPSDE())
        >>> interpolate(score, torch.randn(2, 3), torch.randn(2, 3), [0.0, 0.5, 1.0]).shape
        torch.Size([3, 2, 3])

    References:
        Shoemake, *Animating rotation with quaternion curves*, 1985 (spherical interpolation); Song
        et al. 2021, arXiv:2010.02502, section 5.3.
    """
    if check_state("x0", x0).shape != check_state("x1", x1).shape:
        raise ValueError(
            f"x0, x1: expected the same shape, got {tuple(x0.shape)} and {tuple(x1.shape)}; give "
            "one datum of x1 for each of x0"
        )
    w = torch.as_tensor(weights, dtype=x0.dtype, device=x0.device)
    if w.ndim != 1 or not len(w):
        raise ValueError(f"weights: expected shape (m,), got {tuple(w.shape)}; such as [0, 0.5, 1]")
    z0, z1 = (
        encode(score, x, sampler, steps=steps, progress=progress, batch_size=batch_size)
        for x in (x0, x1)
    )

    def decode(start: Tensor) -> Tensor:
        return sample(
            score, None, sampler, steps=steps, start=start, denoise=False, progress=progress,
            batch_size=batch_size,
        )  # fmt: skip

    return torch.stack([decode(_slerp(z0, z1, weight)) for weight in w])


def _slerp(z0: Tensor, z1: Tensor, weight: Tensor) -> Tensor:
    """Interpolate two batches along great circles; along a line where they are parallel."""
    cosine = torch.nn.functional.cosine_similarity(flatten(z0), flatten(z1), dim=1)
    angle = torch.acos(cosine.clamp(-1, 1)).clamp(1e-4, torch.pi - 1e-4)
    first, second = torch.sin((1 - weight) * angle), torch.sin(weight * angle)
    return expand(first / angle.sin(), z0) * z0 + expand(second / angle.sin(), z1) * z1
