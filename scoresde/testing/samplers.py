r"""What every sampler owes: the law of the data, at the speed that it declares.

On Gaussian data a run is an affine map of the start and of its noises, whose mean and variance are
propagated exactly; on a mixture the end of the flow is known from an integrator of scipy's. Both
give orders of convergence without statistics. A corrector leaves the law at its time as it is.
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

from scoresde.samplers import Sampler, encode, sample, iterate
from scoresde.sdes import GaussianSDE
from scoresde.testing.properties import close, holds
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

_WAY = (-3.9, 2.5)
"""From where all is noise, in λ, to where the modes are sharp: what orders are measured on."""

_SHORT = 0.35
"""By how much an observed order may miss the declared one."""

_ROUNDING = 1e-8
"""Errors from here on are those of floating-point numbers, too."""

_MEAN, _WIDTH = 0.5, 0.3


def check_sampler(
    sampler: Sampler | st.SearchStrategy[Sampler],
    *,
    seed: int = 0,
    examples: int | None = None,
    only: str | Sequence[str] | None = None,
) -> None:
    """Look for laws that a sampler breaks.

    It is held to what it declares: ``convergence_order`` (of the end of the flow if it is
    ``deterministic``, of mean and variance otherwise) and ``corrects``.

    Args:
        sampler: the sampler, or a strategy that draws some.
        seed: of the search, which is reproducible.
        examples: how many cases of each law are tried.
        only: the name of a law or some names; all if None.

    Raises:
        BrokenPropertyError: an ``AssertionError`` that tells of every broken law.

    Example:
        >>> from scoresde.samplers import Exponential
        >>> check_sampler(Exponential(order=1), only="generator")
    """
    SAMPLERS.check(sampler, seed=seed, examples=examples, only=only)


# --- which laws


def _goes(sampler: Any) -> bool:
    return not sampler.corrects


def _follows_the_flow(sampler: Any) -> bool:
    return sampler.deterministic and not sampler.corrects


def _declares(sampler: Any) -> bool:
    return sampler.convergence_order is not None and not sampler.corrects


# --- deterministic samplers: the flow


@lru_cache(maxsize=16)
def _flow(seed: int) -> tuple[Tensor, Tensor]:
    """Return starts and ends of the two modes' flow in y = x/α, where it is that of all diffusions.

    dy/dλ = x̂ − y with x̂ in closed form, by scipy's DOP853 at a tolerance of 1e-11.
    """
    weights, means, variance = (v.numpy() for v in (WEIGHTS, MEANS, VARIANCE))
    random = np.random.default_rng(seed)
    modes = random.choice(2, size=16, p=weights)
    wide = np.sqrt(variance + math.exp(-2 * _WAY[0]))
    start = means[modes] + wide * random.standard_normal((16, 2))

    def field(half_logsnr: float, flat: np.ndarray) -> np.ndarray:
        y, ratio2 = flat.reshape(-1, 1, 2), math.exp(-2 * half_logsnr)
        away = y - means
        log_weights = np.log(weights) - 0.5 * (away**2).sum(2) / (variance + ratio2)
        weights_at = np.exp(log_weights - log_weights.max(1, keepdims=True))
        weights_at /= weights_at.sum(1, keepdims=True)
        centres = means + variance / (variance + ratio2) * away
        denoised = (weights_at[:, :, None] * centres).sum(1)
        return (denoised - flat.reshape(-1, 2)).reshape(-1)

    solution = solve_ivp(field, _WAY, start.reshape(-1), method="DOP853", rtol=1e-11, atol=1e-11)
    return torch.as_tensor(start), torch.as_tensor(solution.y[:, -1]).reshape(16, 2)


def _miss(sampler: Any, sde: GaussianSDE, seed: int, steps: int) -> float:
    """Return the root of the mean square distance from the flow's end, in units of the data."""
    start, end = _flow(seed)
    times = logsnr_times(sampler, sde, steps, _WAY)
    first, last = sde.alpha(times[[0, -1]])
    *_, (found, _) = iterate(two_modes(sde), first * start, times, sampler, torch.zeros_like)
    return float((found / last - end).square().mean().sqrt())


def _check_order(declared: float, measure: Callable[[int], float], counts: Sequence[int]) -> None:
    """Halve the steps up to rounding, or until the declared order shows; three times more if not.

    The observed order is the mean of the last two halvings of ``counts``, unless the last alone
    shows much less: where steps are too long, one lucky halving says nothing.
    """
    table: dict[int, float] = {}
    observed, enough = math.inf, declared - _SHORT
    for steps in (*counts, *(more * counts[-1] for more in (2, 4, 8))):
        if steps > counts[-1] and observed >= enough:
            return
        table[steps] = measure(steps)
        if table[steps] < _ROUNDING:
            return
        orders = [math.log2(coarse / fine) for coarse, fine in pairwise(table.values())]
        if orders:
            observed = min(sum(orders[-2:]) / len(orders[-2:]), orders[-1] + _SHORT)
    told = ", ".join(f"{error:.3g} ({steps} steps)" for steps, error in table.items())
    holds(
        observed >= enough,
        f"the order of convergence is {observed:.2f}, declared is {declared:g}; errors: {told}",
    )


@SAMPLERS.property(
    "order of the flow",
    "a deterministic sampler ends at the probability flow's end up to O(N⁻ᵖ), p as declared",
    "a wrong weight of the highest difference (a missing factor 2: order 2 instead of 3); slopes "
    "at the wrong times; a step to the wrong side of a time; float32 coefficients",
    applies=lambda sampler: _follows_the_flow(sampler) and _declares(sampler),
    examples=2,
    sde=diffusions,
    seed=lambda sampler: st.just(0),
)
def order_of_the_flow(sampler: Any, sde: GaussianSDE, seed: int) -> None:
    """Errors fall as declared when the steps are halved, to within 0.35."""
    counts = (20, 40, 80)
    _check_order(sampler.convergence_order, partial(_miss, sampler, sde, seed), counts)


@SAMPLERS.property(
    "limit",
    "with many steps a deterministic sampler ends where the probability flow does",
    "a sign or factor in the score's weight (1 where the flow has ½); noise that was left in",
    applies=_follows_the_flow,
    examples=2,
    sde=diffusions,
    seed=lambda sampler: st.just(0),
)
def limit(sampler: Any, sde: GaussianSDE, seed: int) -> None:
    """80 steps end within 0.3 of the flow's end, the width of the modes, which are 2.7 apart."""
    error = _miss(sampler, sde, seed, 80)
    close("the distance from the flow's end", error, 0.0, atol=0.3)


@SAMPLERS.property(
    "inverse",
    "encode, then sample: back where it began, up to the error of the steps",
    "coefficients that presume s < t; a memory that is not turned round; noise",
    applies=_follows_the_flow,
    examples=2,
    sde=diffusions,
    seed=seeds,
)
def inverse(sampler: Any, sde: GaussianSDE, seed: int) -> None:
    """There and back in 80 steps each: the median within 0.3, the width of the modes.

    A path between the modes may come back to the other one, with whatever small errors.
    """
    score, times = two_modes(sde), logsnr_times(sampler, sde, 80, _WAY)
    x = score.sample(8, float(times[-1]), source(seed), torch.float64)
    latent = encode(score, x, sampler, times=times)
    back = sample(score, None, sampler, times=times, start=latent, denoise=False)
    off = (back - x).flatten(1).square().mean(1).sqrt()
    close("the way back", off.median(), 0.0, atol=0.3)


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
        kicks = iter(torch.eye(len(start), dtype=torch.float64)[3:, :, None])
        *_, (end, _) = iterate(score, start, times, sampler, lambda x: next(kicks))
        return end

    end = run()
    base, moved = end[0, 0], end[1:, 0] - end[0, 0]
    if not math.isclose(moved[1], 2 * moved[0], rel_tol=1e-6, abs_tol=1e-9):
        again = torch.equal(run(), end)
        holds(
            again, "a second run with the same noise ends elsewhere: not all is drawn by noise(x)"
        )
        return None
    (alpha, alpha_end), (sigma, sigma_end) = sde.alpha(times[[0, -1]]), sde.sigma(times[[0, -1]])
    mean = moved[0] * alpha * _MEAN + base
    variance = moved[0] ** 2 * (alpha**2 * _WIDTH**2 + sigma**2) + moved[2:].square().sum()
    exact = alpha_end**2 * _WIDTH**2 + sigma_end**2
    return float((mean - alpha_end * _MEAN) / exact.sqrt()), float(variance / exact - 1)


@SAMPLERS.property(
    "Gaussian data",
    "on data N(m, c) a run of 60 steps ends in N(α m, α² c + σ²), by exact propagation",
    "a factor √2 or ½ in the noise; g for g²; a coefficient of another time; x̂ and ε̂ mixed up",
    applies=_goes,
    examples=2,
    sde=diffusions,
)
def gaussian_data(sampler: Any, sde: GaussianSDE) -> None:
    """Mean within 0.25 standard deviations, variance within 25 %; no statistics are involved."""
    errors = _moments(sampler, sde, 60)
    if errors is not None:
        close("the error of the mean, in standard deviations,", errors[0], 0.0, atol=0.25)
        close("the relative error of the variance", errors[1], 0.0, atol=0.25)


@SAMPLERS.property(
    "weak order",
    "on Gaussian data mean and variance are exact up to O(N⁻ᵖ), p as declared",
    "a second-order step with first-order noise; coefficients at the wrong end of a step",
    applies=lambda sampler: _declares(sampler) and not sampler.deterministic,
    examples=2,
    sde=diffusions,
)
def weak_order(sampler: Any, sde: GaussianSDE) -> None:
    """Errors of mean and variance fall as declared when the steps are halved, to within 0.35."""

    def measure(steps: int) -> float:
        errors = _moments(sampler, sde, steps)
        return 0.0 if errors is None else max(map(abs, errors))

    _check_order(sampler.convergence_order, measure, (20, 40, 80))


# --- mixtures: the law, by statistics


def _check_law(what: str, x: Tensor, score: Any, t: float, seed: int, bias: float) -> None:
    """Compare samples with the law at t: mean, covariance, share of modes and mean of log p.

    Each within 6.5 standard errors (false alarms: 1e-9) and a bias that discretisation may have.
    """
    exact = score.sample(40_000, t, source(seed + 1), torch.float64)
    centre, scale = exact.mean(0), exact.std(0)

    def features(v: Tensor) -> Tensor:
        z = (v - centre) / scale
        log_prob = score.log_prob(v, t)[:, None]
        return torch.cat([z, z**2, z[:, :1] * z[:, 1:], (z[:, :1] > 0).double(), log_prob], dim=1)

    told, wanted = features(x), features(exact)
    error = 6.5 * (told.var(0) / len(x) + wanted.var(0) / len(exact)).sqrt()
    names = ("mean of x", "mean of y", "E x²", "E y²", "E xy", "share of a mode", "E log p")
    for name, found, right, most in zip(
        names, told.mean(0), wanted.mean(0), error + bias * (1 + wanted.std(0)), strict=True
    ):
        close(f"{name} {what} (in standard deviations)", found, right, atol=most)


@SAMPLERS.property(
    "law of the data",
    "samples of a mixture of two modes have its mean, covariance, weights and mean log-density",
    "too much or too little noise; a mode that is lost; a last step that is left out",
    applies=lambda sampler: _goes(sampler) and not sampler.deterministic,
    examples=2,
    sde=diffusions,
    seed=seeds,
)
def law_of_the_data(sampler: Any, sde: GaussianSDE, seed: int) -> None:
    """3000 samples of 100 steps; 6.5 standard errors (false alarms: 1e-9) and 8 % are allowed."""
    score = two_modes(sde)
    times = logsnr_times(sampler, sde, 100, (float(sde.half_logsnr(sde.T)), 2.5))
    start = score.sample(3000, float(times[0]), source(seed), torch.float64)
    x = sample(
        score, None, sampler, times=times, start=start, denoise=False, generator=source(seed + 7)
    )
    _check_law("of the samples", x, score, float(times[-1]), seed, bias=0.08)


@SAMPLERS.property(
    "invariance",
    "a corrector leaves p_t as it is: 150 corrections of exact samples have its law",
    "√ε where √(2ε) is meant; the score of another time; steps that depend on the state; a "
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
    _check_law("of corrected samples", x, score, float(t), seed, bias=0.08)
