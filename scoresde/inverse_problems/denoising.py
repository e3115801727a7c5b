r"""Denoising: an observation y = x_0 + σ_y n is a state of the diffusion itself.

Scaled by α it is x_t at the time with σ(t)/α(t) = σ_y, so that no approximation is needed: x̂ is
the posterior mean, and any sampler started there draws from p(x_0|y).

If σ_y is unknown, its maximum-likelihood estimate is the maximum of log p_σ(y), whose derivative
is, by the heat equation::

    ∂ log p_σ(y)/∂ log σ = ‖y − x̂‖²/σ² − d + tr ∂x̂/∂y.

It needs the denoiser and an estimator of the trace.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde._core.checks import check_floating, check_integer, check_state
from scoresde._core.counter_rng import CounterRNG
from scoresde._core.modules import evaluation_mode
from scoresde._core.shapes import expand, flatten, per_sample
from scoresde.samplers import Exponential, Sampler, sample
from scoresde.samplers.base import check_gaussian
from scoresde.scores import ChunkedScore, Score
from scoresde.scores.base import require_score
from scoresde.sdes import SDE
from scoresde.traces import ExactTrace, Hutchinson, Trace

_EXACT_UP_TO = 64
"""Largest dimension at which the default trace is exact."""


def as_state(sde: SDE, y: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return a noisy observation as a state of the diffusion, and the time of that state.

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
    diffusion = check_gaussian(sde)
    level = torch.as_tensor(sigma, dtype=torch.float64, device=check_state("y", y).device)
    if level.ndim:
        per_sample(level, y)
    largest = math.exp(-float(diffusion.half_logsnr(diffusion.T)))
    if not bool(((level > 0) & (level <= largest)).all()):
        raise ValueError(
            f"sigma: expected noise levels in (0, {largest:g}], those of the diffusion, got "
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
    n: int | None = None,
    mean: bool | None = None,
    sampler: Sampler = Exponential(order=3, eta=1.0),
    steps: int = 50,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Return the posterior mean E[x_0|y] of y = x_0 + sigma · noise, or posterior samples.

    Results follow the rule of :func:`~scoresde.inverse_problems.restore`: ``n`` samples with an
    axis of their own, one without, or the mean. Here the mean is exact and one evaluation of the
    score, hence the default if ``n`` is None.

    Args:
        score: the prior.
        y: noisy data ``(batch, *event)``.
        sigma: the noise's standard deviation, a number or ``(batch,)``; estimated if None.
        n: number of samples of p(x_0|y) for each row; None for one, without an axis of its own.
        mean: True for the posterior mean (``n`` is not used), False for samples; None for the mean
            if ``n`` is None, else samples.
        sampler: any sampler; samples are exact up to its error.
        steps: number of its steps, equidistant in log-SNR from sigma on.
        generator: source of all randomness, including the trace probes of an estimated sigma;
            None for PyTorch's global one.
        batch_size: number of rows in one call of the network; all if None.
        progress: show a progress bar.

    Returns:
        ``(batch, n, *event)``, or ``(batch, *event)`` if ``n`` is None or for a mean.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if ``y`` is not finite, or ``sigma`` not among the diffusion's noise levels.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I)
        >>> denoise(prior, torch.full((1, 2), 2.0), sigma=1.0)
        tensor([[1., 1.]])
        >>> denoise(prior, torch.full((1, 2), 2.0), sigma=1.0, n=10).shape
        torch.Size([1, 10, 2])
        >>> denoise(prior, torch.full((1, 2), 2.0), sigma=1.0, mean=False).shape
        torch.Size([1, 2])

    References:
        Robbins, *An empirical Bayes approach to statistics*, 1956; Efron, *Tweedie's formula and
        selection bias*, 2011.
    """
    require_score(score).moments.check_event("y", check_state("y", y).shape[1:])
    count = 1 if n is None else check_integer("n", n, minimum=1)
    grid = check_integer("steps", steps, minimum=1) + 1
    level = noise_level(score, y, generator=generator) if sigma is None else sigma
    x, t = as_state(score.sde, y, level)
    chunked = score if batch_size is None else ChunkedScore(score, batch_size)
    with evaluation_mode(score):
        denoised = chunked.denoised(x, t)
    if mean or (mean is None and n is None):
        return denoised
    drawn = denoised.unsqueeze(1).repeat_interleave(count, 1)  # at t <= t_min: x̂ itself
    t = t.expand(len(x))
    for begin in t[t > score.sde.t_min].unique():  # rows of one noise level share a time grid
        rows = (t == begin).nonzero().squeeze(1)
        index = rows.repeat_interleave(count)
        drawn[rows] = sample(
            score.select(index), None, sampler,
            start=x[index], times=_times(score.sde, begin, grid),
            generator=generator, batch_size=batch_size, progress=progress,
        ).unflatten(0, (-1, count))  # fmt: skip
    drawn = drawn.to(y)
    return drawn.squeeze(1) if n is None else drawn


@torch.no_grad()
def noise_level(
    score: Score,
    y: Tensor,
    *,
    levels: int = 64,
    trace: Trace | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Return the maximum-likelihood estimate of σ for each noisy observation, ``(batch,)``.

    The derivative of log p_σ(y) is evaluated at a sequence of noise levels and integrated; at the
    maximum it changes sign. An observation without noise gives the lowest level.

    Args:
        score: the prior.
        y: noisy data ``(batch, *event)``.
        levels: number of noise levels from the diffusion's lowest to its highest, equidistant in
            log σ; each costs one evaluation with its trace.
        trace: estimator of tr ∂x̂/∂y; None for an exact one up to 64 dimensions, two probes above.
        generator: source of the probes; None for PyTorch's global one.

    Raises:
        ValueError: if ``y`` is not finite, or ``levels`` below 2.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I)
        >>> noise_level(prior, torch.full((1, 3), 5.0))  # of N(0, 1 + σ²): σ² = 25 − 1
        tensor([4.9...])

    References:
        Stein, *Estimation of the mean of a multivariate normal distribution*, 1981: the derivative
        is Stein's unbiased risk estimate.
    """
    check_integer("levels", levels, minimum=2)
    flat = flatten(check_state("y", check_floating("y", y)))
    sde, (n, d) = check_gaussian(score.sde), flat.shape
    if trace is None:
        trace = ExactTrace() if d <= _EXACT_UP_TO else Hutchinson(probes=2)
    rng = CounterRNG.draw(n, generator, y.device)
    low, high = (-float(sde.half_logsnr(t)) for t in (sde.t_min, sde.T))
    log_levels = torch.linspace(low, high, levels, dtype=torch.float64, device=y.device)

    def slope(log_level: Tensor) -> Tensor:
        sigma = log_level.exp()
        t = sde.time_at(-log_level)
        alpha = sde.alpha(t)

        def denoised(v: Tensor) -> Tensor:
            return flatten(score.denoised((expand(alpha, v) * v).reshape(y.shape), t))

        clean, divergence = trace(denoised, flat, rng)
        return ((flat - clean) / sigma).square().sum(1).double() - d + divergence.double().mean(1)

    with evaluation_mode(score):
        slopes = torch.stack([slope(level) for level in log_levels.unbind()], dim=1)
    return _maximum(log_levels, slopes).exp().to(y.dtype)


def _times(sde: SDE, begin: Tensor, count: int) -> Tensor:
    """Return times ``(count,)`` equidistant in log-SNR from a time down to t_min."""
    diffusion = check_gaussian(sde)
    ends = torch.stack([begin.cpu(), torch.full((), diffusion.t_min, dtype=torch.float64)])
    low, high = diffusion.half_logsnr(ends).tolist()
    times = diffusion.time_at(torch.linspace(low, high, count, dtype=torch.float64))
    times[0], times[-1] = ends
    return times


def _maximum(nodes: Tensor, slopes: Tensor) -> Tensor:
    """Return the maxima ``(batch,)`` of functions with given derivatives ``(batch, n)`` at nodes.

    They are integrated by the trapezoidal rule; next to the best node, the maximum is the zero of
    the linear interpolant of the derivative.
    """
    gains = 0.5 * (slopes[:, 1:] + slopes[:, :-1]) * nodes.diff()
    profile = torch.cat([torch.zeros_like(gains[:, :1]), gains.cumsum(1)], dim=1)
    best = profile.argmax(1, keepdim=True)
    left = torch.where(slopes.gather(1, best) > 0, best, best - 1).clamp(0, len(nodes) - 2)
    rise, fall = slopes.gather(1, left), slopes.gather(1, left + 1)
    crossing = (rise > 0) & (fall < 0)
    fraction = torch.where(crossing, rise / torch.where(crossing, rise - fall, 1.0), 0.0)
    between = nodes[left] + fraction * (nodes[left + 1] - nodes[left])
    return torch.where(crossing, between, nodes[best]).squeeze(1)
