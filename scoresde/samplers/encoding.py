"""More than the last state: whole ways from noise to data, the way back, and what lies between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde._core.checks import check_state
from scoresde._core.shapes import expand, flatten
from scoresde.samplers.adams_bashforth import AdamsBashforth
from scoresde.samplers.base import Sampler
from scoresde.samplers.grids import Grid
from scoresde.samplers.probability_flow import ProbabilityFlow
from scoresde.samplers.sample import SamplingStep, check_kinds, run, sample, sampling_times
from scoresde.scores import Score


class Trajectory(NamedTuple):
    """A run with all it passed.

    Attributes:
        times: ``(N+1,)``, falling.
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
    """Sample, and keep every state from the start to the end.

    Args:
        score: the score.
        shape: ``(n, *event)``; None if ``start`` is given.
        sampler: which steps to make.
        steps: how many.
        times: a grid of one's own (see :func:`sample`).
        start: the state at the first time, instead of a draw from the prior.
        previews: keep the denoised x̂ instead of the states; one more evaluation a step.
        generator: source of all randomness.
        progress: show a progress bar.
        batch_size: how many rows the network sees at once.

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
    passed: list[tuple[Tensor, Tensor]] = []

    def keep(frame: SamplingStep) -> None:
        passed.append((frame.t, frame.denoised if previews else frame.x))

    sample(
        score, shape, sampler, steps=steps, times=times, start=start, denoise=False,
        generator=generator, progress=progress, callback=keep, batch_size=batch_size,
    )  # fmt: skip
    moments, states = zip(*passed, strict=True)
    return Trajectory(torch.stack(moments), torch.stack(states))


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
    """Follow the probability flow from data to noise: the latent that would give ``x``.

    The sampler is run on its grid turned round; ``sample(score, None, sampler, start=latent,
    denoise=False)`` on the same grid is the way back, up to the error of the steps.

    Args:
        score: the score.
        x: data, taken for the state at t_min, ``(n, *event)``.
        sampler: a deterministic one (η = 0).
        steps: how many; the sampler's ``default_steps`` if None.
        times: a grid of one's own, falling, as for :func:`sample`.
        progress: show a progress bar.
        batch_size: how many rows the network sees at once.

    Returns:
        The latent at T, shaped like ``x``.

    Raises:
        ValueError: if the sampler draws noise.
        SamplingError: if a latent is not finite.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> score = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I) stay in noise_level_at
        >>> x = torch.ones(2, 3)
        >>> torch.allclose(encode(score, x), x, atol=1e-3)
        True

    References:
        Song et al. 2021, arXiv:2011.13456, section 4.3; Song et al. 2021, arXiv:2010.02502, section
        5.4.
    """
    check_kinds(score, sampler)
    if not sampler.deterministic:
        raise ValueError(
            f"sampler: expected a deterministic one, whose way can be gone back, got {sampler!r}; "
            "set eta=0 or use ProbabilityFlow()"
        )
    knots = sampling_times(sampler, score, steps, times).flip(0)
    return run(
        score, check_state("x", x), knots, sampler, torch.zeros_like, denoise=False,
        progress=progress, callback=None, batch_size=batch_size,
    )  # fmt: skip


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
    r"""Go from one datum to another through the latents.

    Both ends are encoded, their latents joined along the great circle

        z_w = sin((1−w)θ)/sin θ · z_0 + sin(wθ)/sin θ · z_1,      θ = ∠(z_0, z_1),

    and decoded again.

    Args:
        score: the score.
        x0: data at weight 0, ``(n, *event)``.
        x1: data at weight 1, shaped like ``x0``.
        weights: w, ``(m,)``.
        sampler: a deterministic one (η = 0).
        steps: how many, each way; the sampler's ``default_steps`` if None.
        progress: show progress bars.
        batch_size: how many rows the network sees at once.

    Returns:
        What lies between, ``(m, n, *event)``.

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
    """Join two batches along great circles; a straight line where they are parallel."""
    cosine = torch.nn.functional.cosine_similarity(flatten(z0), flatten(z1), dim=1)
    angle = torch.acos(cosine.clamp(-1, 1)).clamp(1e-4, torch.pi - 1e-4)
    first, second = torch.sin((1 - weight) * angle), torch.sin(weight * angle)
    return expand(first / angle.sin(), z0) * z0 + expand(second / angle.sin(), z1) * z1
