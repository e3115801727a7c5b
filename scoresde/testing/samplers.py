r"""The mathematical properties of samplers: convergence, at the declared order, to the data.

On Gaussian data a run is an affine map of the start and of its noises, so that mean and variance
are propagated exactly; on a mixture the end of the probability flow is computed by scipy. Both give
orders of convergence without statistics. A corrector leaves the distribution at its time invariant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import Tensor

from scoresde._core.random import normal
from scoresde.samplers import Sampler, encode, iterate, sample
from scoresde.sdes import GaussianSDE
from scoresde.testing.properties import Report, close, documents, finite, holds
from scoresde.testing.sampler_contract import (
    MEANS,
    SAMPLERS,
    VARIANCE,
    WEIGHTS,
    diffusions,
    logsnr_times,
    one_gaussian,
    source,
    two_modes,
)
from scoresde.testing.strategies import seeds

_ENDS = (-3.9, 2.5)
"""The half log-SNRs between which orders are measured: from noise to separated modes."""

_ORDER_TOLERANCE = 0.35
"""How much smaller than the declared order an observed one may be."""

_ROUNDING = 1e-8
"""Errors below this may be rounding errors."""

_MEAN, _WIDTH = 0.5, 0.3


@documents(sampler="the sampler, or a strategy that draws some.")
def check_sampler(
    sampler: Sampler | st.SearchStrategy[Sampler],
    *,
    seed: int = 0,
    examples: int | None = None,
    only: str | Sequence[str] | None = None,
) -> Report:
    """Check that a sampler has the properties of samplers.

    It must have what it declares: ``convergence_order`` (of the end of the flow if it is
    ``deterministic``, of mean and variance otherwise) and ``corrects``. The report contains the
    observed order.

    Example:
        >>> from scoresde.samplers import Exponential
        >>> check_sampler(Exponential(order=1), only="generator")
        <Report: 1 of 1 hold>
    """  # noqa: DOC201 - see the decorator
    return SAMPLERS.check(sampler, seed=seed, examples=examples, only=only)


# --- which properties apply


def _moves_in_time(sampler: Any) -> bool:
    return not sampler.corrects


def _solves_the_flow(sampler: Any) -> bool:
    return sampler.deterministic and not sampler.corrects


def _declares_order(sampler: Any) -> bool:
    return sampler.convergence_order is not None and not sampler.corrects


# --- deterministic samplers: the flow


@lru_cache(maxsize=16)
def _flow(seed: int) -> tuple[Tensor, Tensor]:
    """Return starts and ends of the flow of two modes in y = x/α, the same for all Gaussian SDEs.

    dy/dλ = x̂ − y with x̂ in closed form, by scipy's DOP853 at a tolerance of 1e-11.
    """
    weights, means, variance = (v.numpy() for v in (WEIGHTS, MEANS, VARIANCE))
    random = np.random.default_rng(seed)
    modes = random.choice(2, size=16, p=weights)
    wide = np.sqrt(variance + math.exp(-2 * _ENDS[0]))
    start = means[modes] + wide * random.standard_normal((16, 2))

    def field(half_logsnr: float, flat: np.ndarray) -> np.ndarray:
        y, ratio2 = flat.reshape(-1, 1, 2), math.exp(-2 * half_logsnr)
        offset = y - means
        log_weights = np.log(weights) - 0.5 * (offset**2).sum(2) / (variance + ratio2)
        weights_at = np.exp(log_weights - log_weights.max(1, keepdims=True))
        weights_at /= weights_at.sum(1, keepdims=True)
        centers = means + variance / (variance + ratio2) * offset
        denoised = (weights_at[:, :, None] * centers).sum(1)
        slope: np.ndarray = (denoised - flat.reshape(-1, 2)).reshape(-1)
        return slope

    solution = solve_ivp(field, _ENDS, start.reshape(-1), method="DOP853", rtol=1e-11, atol=1e-11)
    return torch.as_tensor(start), torch.as_tensor(solution.y[:, -1]).reshape(16, 2)


def _flow_error(sampler: Any, sde: GaussianSDE, seed: int, steps: int) -> float:
    """Return the root mean square distance from the end of the flow, in units of the data."""
    start, end = _flow(seed)
    times = logsnr_times(sampler, sde, steps, _ENDS)
    first, last = sde.alpha(times[[0, -1]])
    *_, (found, _) = iterate(two_modes(sde), first * start, times, sampler, torch.zeros_like)
    return float((found / last - end).square().mean().sqrt())


def _observed_order(
    declared: float, measure: Callable[[int], float], counts: Sequence[int]
) -> float | None:
    """Halve the steps up to rounding, or until the declared order shows; three times more if not.

    The observed order is the mean of the last two halvings of ``counts``, unless the last alone
    shows much less: in the pre-asymptotic regime a single halving may look better by chance.

    Returns:
        The observed order; None if all errors are rounding errors.

    Raises:
        AssertionError: if it is less than the declared one, to within 0.35.
    """
    table: dict[int, float] = {}
    observed, enough = math.inf, declared - _ORDER_TOLERANCE
    for steps in (*counts, *(more * counts[-1] for more in (2, 4, 8))):
        if steps > counts[-1] and observed >= enough:
            break
        table[steps] = measure(steps)
        finite(f"the error after {steps} steps", table[steps])
        if table[steps] < _ROUNDING:
            return None if math.isinf(observed) else observed
        orders = [math.log2(coarse / fine) for coarse, fine in pairwise(table.values())]
        if orders:
            observed = min(sum(orders[-2:]) / len(orders[-2:]), orders[-1] + _ORDER_TOLERANCE)
    errors = ", ".join(f"{error:.3g} ({steps} steps)" for steps, error in table.items())
    holds(
        observed >= enough,
        f"the order of convergence is {observed:.2f}, declared is {declared:g}; errors: {errors}",
    )
    return observed


@SAMPLERS.property(
    "convergence order",
    "a deterministic sampler ends at the end of the probability flow up to O(N⁻ᵖ), p as declared",
    "a wrong weight of the highest difference (a missing factor 2: order 2 instead of 3); slopes "
    "at the wrong times; a step to the wrong side of a time; float32 coefficients",
    applies=lambda sampler: _solves_the_flow(sampler) and _declares_order(sampler),
    examples=2,
    sde=diffusions,
    seed=lambda sampler: st.just(0),
)
def convergence_order(sampler: Any, sde: GaussianSDE, seed: int) -> float | None:
    """Errors decrease as declared when the steps are halved, to within 0.35."""
    measure = partial(_flow_error, sampler, sde, seed)
    return _observed_order(sampler.convergence_order, measure, (20, 40, 80))


@SAMPLERS.property(
    "convergence",
    "with many steps a deterministic sampler ends where the probability flow does",
    "a sign or factor in the weight of the score (1 where the flow has ½); noise that was left in",
    applies=_solves_the_flow,
    examples=2,
    sde=diffusions,
    seed=lambda sampler: st.just(0),
)
def convergence(sampler: Any, sde: GaussianSDE, seed: int) -> None:
    """80 steps end within 0.3 of the flow's end, the width of the modes, which are 2.7 apart."""
    error = _flow_error(sampler, sde, seed, 80)
    close("the distance from the end of the flow", error, 0.0, atol=0.3)


@SAMPLERS.property(
    "inverse",
    "sampling from the encoded state returns the state, up to the error of the steps",
    "coefficients that presume s < t; a history that is not reversed; noise",
    applies=_solves_the_flow,
    examples=2,
    sde=diffusions,
    seed=seeds,
)
def inverse(sampler: Any, sde: GaussianSDE, seed: int) -> None:
    """80 steps in each direction: the median within 0.3, the width of the modes.

    A path between the modes may end in the other one, however small the errors.
    """
    score, times = two_modes(sde), logsnr_times(sampler, sde, 80, _ENDS)
    x = score.sample(8, float(times[-1]), source(seed), torch.float64)
    latent = encode(score, x, sampler, times=times)
    decoded = sample(score, None, sampler, times=times, start=latent, denoise=False)
    error = (decoded - x).flatten(1).square().mean(1).sqrt()
    close("the median error of encoding and sampling", error.median(), 0.0, atol=0.3)


# --- Gaussian data: mean and variance, exactly


def _moments(sampler: Any, sde: GaussianSDE, steps: int) -> tuple[float, float] | None:
    """Return the errors of mean and variance after a run on Gaussian data, or None.

    x_N = A x_0 + b + Σ c_k z_k: rows of one batch start at 0, 1 and 2 without noise, and at 0 with
    one noise each that is 1. None if the sampler is not affine.
    """
    score = one_gaussian(sde, (1,), _WIDTH)
    times = logsnr_times(sampler, sde, steps, (-2.0, 1.5))
    probe = torch.zeros(1, 1, dtype=torch.float64)
    calls: list[int] = []

    def count(x: Tensor) -> Tensor:
        calls.append(1)
        return torch.zeros_like(x)

    if not sampler.deterministic:
        list(iterate(score, probe, times, sampler, count))
    start = torch.zeros(3 + len(calls), 1, dtype=torch.float64)
    start[1:3, 0] = torch.tensor([1.0, 2.0])

    def run() -> Tensor:
        units = iter(torch.eye(len(start), dtype=torch.float64)[3:, :, None])
        *_, (end, _) = iterate(score, start, times, sampler, lambda x: next(units))
        return end

    end = run()
    base, effect = end[0, 0], end[1:, 0] - end[0, 0]
    if not math.isclose(effect[1], 2 * effect[0], rel_tol=1e-6, abs_tol=1e-9):
        holds(
            torch.equal(run(), end),
            "a second run with the same noise ends elsewhere: noise is not drawn by noise(x) alone",
        )
        return None
    (alpha, alpha_end), (sigma, sigma_end) = sde.alpha(times[[0, -1]]), sde.sigma(times[[0, -1]])
    mean = effect[0] * alpha * _MEAN + base
    variance = effect[0] ** 2 * (alpha**2 * _WIDTH**2 + sigma**2) + effect[2:].square().sum()
    exact = alpha_end**2 * _WIDTH**2 + sigma_end**2
    return float((mean - alpha_end * _MEAN) / exact.sqrt()), float(variance / exact - 1)


@SAMPLERS.property(
    "Gaussian data",
    "on data N(m, c) a run of 60 steps ends in N(α m, α² c + σ²), by exact propagation, or by "
    "statistics if the sampler is not affine",
    "a factor √2 or ½ in the noise; g instead of g²; a coefficient of another time; x̂ and ε̂ mixed "
    "up",
    applies=_moves_in_time,
    examples=2,
    sde=diffusions,
)
def gaussian_data(sampler: Any, sde: GaussianSDE) -> None:
    """Mean within 0.25 standard deviations, variance within 25 %.

    Of an affine sampler they are exact. For others 20 000 samples are drawn, and 6.5 standard
    errors are allowed in addition (false alarms: 1e-9): 5 % of the standard deviation in the mean,
    7 % in the variance.
    """
    errors, mean_noise, variance_noise = _moments(sampler, sde, 60), 0.0, 0.0
    if errors is None:
        n = 20_000
        errors = _sampled_moments(sampler, sde, 60, n)
        mean_noise, variance_noise = 6.5 / n**0.5, 6.5 * (2 / n) ** 0.5
    what = "the error of the mean, in standard deviations,"
    close(what, errors[0], 0.0, atol=0.25 + mean_noise)
    close("the relative error of the variance", errors[1], 0.0, atol=0.25 + variance_noise)


def _sampled_moments(sampler: Any, sde: GaussianSDE, steps: int, n: int) -> tuple[float, float]:
    """Return the errors of mean and variance of samples on Gaussian data."""
    score = one_gaussian(sde, (1,), _WIDTH)
    times = logsnr_times(sampler, sde, steps, (-2.0, 1.5))
    start = score.sample(n, float(times[0]), source(0), torch.float64)
    noise = source(1)
    *_, (end, _) = iterate(
        score,
        start,
        times,
        sampler,
        lambda x: normal(x.shape, generator=noise, dtype=x.dtype),
    )
    alpha, sigma = sde.alpha(times[-1]), sde.sigma(times[-1])
    exact = alpha**2 * _WIDTH**2 + sigma**2
    return float((end.mean() - alpha * _MEAN) / exact.sqrt()), float(end.var() / exact - 1)


@SAMPLERS.property(
    "weak order",
    "on Gaussian data mean and variance are exact up to O(N⁻ᵖ), p as declared",
    "a second-order step with first-order noise; coefficients at the wrong end of a step",
    applies=lambda sampler: _declares_order(sampler) and not sampler.deterministic,
    examples=2,
    sde=diffusions,
)
def weak_order(sampler: Any, sde: GaussianSDE) -> float | None:
    """Errors of mean and variance decrease as declared; nothing is measured if not affine."""

    def measure(steps: int) -> float:
        errors = _moments(sampler, sde, steps)
        return 0.0 if errors is None else max(map(abs, errors))

    return _observed_order(sampler.convergence_order, measure, (20, 40, 80))


# --- mixtures: the distribution, by statistics


def _check_distribution(what: str, x: Tensor, score: Any, t: float, seed: int, bias: float) -> None:
    """Compare samples with p_t: mean, covariance, weights of the modes and mean of log p.

    Each within 6.5 standard errors (false alarms: 1e-9) and a bias due to discretization.
    """
    finite(f"a sample {what}", x)
    exact = score.sample(40_000, t, source(seed + 1), torch.float64)
    center, scale = exact.mean(0), exact.std(0)

    def features(v: Tensor) -> Tensor:
        z = (v - center) / scale
        log_prob = score.log_prob(v, t)[:, None]
        return torch.cat([z, z**2, z[:, :1] * z[:, 1:], (z[:, :1] > 0).double(), log_prob], dim=1)

    observed, wanted = features(x), features(exact)
    error = 6.5 * (observed.var(0) / len(x) + wanted.var(0) / len(exact)).sqrt()
    names = ("mean of x", "mean of y", "E x²", "E y²", "E xy", "weight of a mode", "E log p")
    for name, found, right, most in zip(
        names, observed.mean(0), wanted.mean(0), error + bias * (1 + wanted.std(0)), strict=True
    ):
        close(f"{name} {what} (in standard deviations)", found, right, atol=most)


@SAMPLERS.property(
    "data distribution",
    "samples of a mixture of two modes have its mean, covariance, weights and mean log-density",
    "too much or too little noise; a missing mode; a last step that is left out",
    applies=lambda sampler: _moves_in_time(sampler) and not sampler.deterministic,
    examples=2,
    sde=diffusions,
    seed=seeds,
)
def data_distribution(sampler: Any, sde: GaussianSDE, seed: int) -> None:
    """3000 samples of 100 steps; 6.5 standard errors (false alarms: 1e-9) and 8 % are allowed."""
    score = two_modes(sde)
    times = logsnr_times(sampler, sde, 100, (float(sde.half_logsnr(sde.T)), 2.5))
    start = score.sample(3000, float(times[0]), source(seed), torch.float64)
    x = sample(
        score, None, sampler, times=times, start=start, denoise=False, generator=source(seed + 7)
    )
    _check_distribution("of the samples", x, score, float(times[-1]), seed, bias=0.08)


@SAMPLERS.property(
    "invariance",
    "a corrector leaves p_t invariant: exact samples have this distribution after 150 corrections",
    "√ε instead of √(2ε); the score of another time; steps that depend on the state; a "
    "signal-to-noise ratio that is too large",
    applies=lambda sampler: sampler.corrects,
    examples=2,
    sde=diffusions,
    seed=seeds,
)
def invariance(sampler: Any, sde: GaussianSDE, seed: int) -> None:
    """3000 exact samples, corrected at one time; 6.5 standard errors and 8 % are allowed."""
    score, noise = two_modes(sde), source(seed + 7)
    t = sde.time_at(torch.tensor(1.2, dtype=torch.float64))
    x = score.sample(3000, float(t), source(seed), torch.float64)
    state = sampler.init(score, x, t[None])

    def draw(v: Tensor) -> Tensor:
        return torch.randn(v.shape, generator=noise, dtype=v.dtype)

    for _ in range(150):
        x, state = sampler.step(score, x, t, t, state, draw)
    _check_distribution("of corrected samples", x, score, float(t), seed, bias=0.08)
