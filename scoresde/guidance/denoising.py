r"""Denoising: an observation y = x_0 + σ_y n is a state of the diffusion itself.

Scaled by α it is x_t at the time with σ(t)/α(t) = σ_y, so that nothing is approximated: x̂ is the
posterior mean, and any sampler started there draws from p(x_0|y),

    x, t = as_state(score.sde, y, sigma)
    samples = sample(score, None, sampler, start=x, times=grid from t on).

If σ_y is not known, it is what makes y most likely. By the heat equation the profile's slope is

    ∂ log p_σ(y)/∂ log σ = ‖y − x̂‖²/σ² − d + tr ∂x̂/∂y,

which a score tells with a trace beside it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde._checks import check_floating, check_integer, check_state
from scoresde._modules import evaluating
from scoresde._shapes import expand, flatten, per_sample
from scoresde._streams import Streams
from scoresde.samplers.base import gaussian
from scoresde.score import Score
from scoresde.sdes import SDE
from scoresde.traces import ExactTrace, Hutchinson, Trace

_EXACT_UP_TO = 64
"""Dimensions up to which the trace is computed, not estimated."""


def as_state(sde: SDE, y: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return a noisy observation as a state of the diffusion, and the time it belongs to.

    Args:
        sde: a Gaussian diffusion.
        y: x_0 plus noise, ``(batch, *event)``.
        sigma: the noise's standard deviation > 0, a number or ``(batch,)``.

    Returns:
        α y, shaped like ``y``, and the float64 time ``()`` or ``(batch,)`` with σ(t)/α(t) = sigma.

    Raises:
        TypeError: if the diffusion is not Gaussian.
        ValueError: if ``sigma`` is not positive or beyond the diffusion's largest noise level.

    Example:
        >>> from scoresde import VESDE
        >>> x, t = as_state(VESDE(), torch.ones(1, 2), 0.5)
        >>> x, round(float(VESDE().sigma(t)), 6)
        (tensor([[1., 1.]]), 0.5)
    """
    diffusion = gaussian(sde)
    level = torch.as_tensor(sigma, dtype=torch.float64, device=check_state("y", y).device)
    if level.ndim:
        per_sample(level, y)
    largest = math.exp(-float(diffusion.half_logsnr(diffusion.T)))
    if not bool(((level > 0) & (level <= largest)).all()):
        raise ValueError(
            f"sigma: expected noise levels in (0, {largest:g}], what the diffusion reaches, got "
            f"{float(level.min()):g} … {float(level.max()):g}"
        )
    t = diffusion.time_at(-torch.log(level))
    return expand(diffusion.alpha(t), y) * y, t


@torch.no_grad()
def denoise(
    score: Score,
    y: Tensor,
    sigma: float | Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return E[x_0 | y], the best guess in the mean square, of y = x_0 + sigma · n.

    Args:
        score: the prior.
        y: noisy data ``(batch, *event)``.
        sigma: the noise's standard deviation, a number or ``(batch,)``; estimated if None.
        generator: source of the estimate's probes, where it needs some.

    Returns:
        The denoised data, shaped like ``y``; one evaluation if ``sigma`` is given.

    Raises:
        ValueError: if ``y`` is not finite, or ``sigma`` beyond the diffusion.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I)
        >>> denoise(prior, torch.full((1, 2), 2.0), sigma=1.0)
        tensor([[1., 1.]])

    References:
        Robbins, *An empirical Bayes approach to statistics*, 1956; Efron, *Tweedie's formula and
        selection bias*, 2011.
    """
    level = noise_level(score, y, generator=generator) if sigma is None else sigma
    x, t = as_state(score.sde, y, level)
    with evaluating(score):
        return score.denoised(x, t)


@torch.no_grad()
def noise_level(
    score: Score,
    y: Tensor,
    *,
    levels: int = 64,
    trace: Trace | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Return the σ under which each noisy observation is most likely, ``(batch,)``.

    The slope of log p_σ(y) is evaluated on a ladder of levels and integrated; the maximum is where
    it changes sign. An observation without noise gives the lowest level of the ladder.

    Args:
        score: the prior.
        y: noisy data ``(batch, *event)``.
        levels: how many rungs the ladder has, from the diffusion's lowest noise level to its
            highest, equidistant in log σ; each costs one evaluation with its trace.
        trace: how tr ∂x̂/∂y is told; exact up to 64 dimensions and by two probes above if None.
        generator: source of the probes.

    Raises:
        ValueError: if ``y`` is not finite, or ``levels`` below 2.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I)
        >>> noise_level(prior, torch.full((1, 3), 5.0))  # of N(0, 1 + σ²): σ² = 25 − 1
        tensor([4.9...])

    References:
        The slope is Stein's unbiased estimate of risk, seen as a likelihood: Stein 1981.
    """
    check_integer("levels", levels, minimum=2)
    flat = flatten(check_state("y", check_floating("y", y)))
    sde, (n, d) = gaussian(score.sde), flat.shape
    if trace is None:
        trace = ExactTrace() if d <= _EXACT_UP_TO else Hutchinson(probes=2)
    streams = Streams.draw(n, generator, y.device)
    low, high = (-float(sde.half_logsnr(t)) for t in (sde.t_min, sde.T))
    rungs = torch.linspace(low, high, levels, dtype=torch.float64, device=y.device)

    def slope(log_level: Tensor) -> Tensor:
        sigma = log_level.exp()
        alpha, t = sde.alpha(sde.time_at(-log_level)), sde.time_at(-log_level)

        def mean(v: Tensor) -> Tensor:
            return flatten(score.denoised((expand(alpha, v) * v).reshape(y.shape), t))

        clean, divergence = trace(mean, flat, streams)
        return ((flat - clean) / sigma).square().sum(1).double() - d + divergence.double().mean(1)

    with evaluating(score):
        slopes = torch.stack([slope(rung) for rung in rungs.unbind()], dim=1)
    return _peak(rungs, slopes).exp().to(y.dtype)


def _peak(nodes: Tensor, slopes: Tensor) -> Tensor:
    """Return where the functions with these slopes ``(batch, n)`` are largest, ``(batch,)``.

    They are integrated by the trapezoidal rule; beside the largest node, the zero of the line
    through the slopes is taken.
    """
    gains = 0.5 * (slopes[:, 1:] + slopes[:, :-1]) * nodes.diff()
    profile = torch.cat([torch.zeros_like(gains[:, :1]), gains.cumsum(1)], dim=1)
    best = profile.argmax(1, keepdim=True)
    here = slopes.gather(1, best)
    left = torch.where(here > 0, best, best - 1).clamp(0, len(nodes) - 2)
    rise, fall = slopes.gather(1, left), slopes.gather(1, left + 1)
    crossing = (rise > 0) & (fall < 0)
    part = torch.where(crossing, rise / torch.where(crossing, rise - fall, 1.0), 0.0)
    between = nodes[left] + part * (nodes[left + 1] - nodes[left])
    return torch.where(crossing, between, nodes[best]).squeeze(1)
