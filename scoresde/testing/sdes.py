r"""The mathematical properties of SDEs: relations between drift, noise, kernels and prior.

A Gaussian SDE has two descriptions, dx = f x dt + g dw and x_t = α x_0 + σ ε. The properties state
that they agree, that the process starts at the data and ends in its prior, and that it can be
evaluated at both ends.
"""

# ruff: noqa: ARG001 - tests, fields and strategies take the arguments of their family

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from scoresde._core.random import normal
from scoresde.sdes import SDE
from scoresde.testing.differences import slope
from scoresde.testing.properties import Report, close, documents, finite, holds
from scoresde.testing.sde_contract import SDES, double, gaussian, states
from scoresde.testing.strategies import (
    ascending,
    closed_times,
    dtypes,
    event_shapes,
    seeds,
    times,
)


@documents(sde="the SDE, or a strategy that draws some.")
def check_sde(
    sde: SDE | st.SearchStrategy[SDE],
    *,
    seed: int = 0,
    examples: int | None = None,
    only: str | Sequence[str] | None = None,
) -> Report:
    """Check that an SDE has the properties of SDEs.

    Example:
        >>> from scoresde import VPSDE
        >>> check_sde(VPSDE(), only="moment equations")
        <Report: 1 of 1 hold>
        >>> class Wrong(VPSDE):
        ...     def diffusion(self, t):  # g² instead of g
        ...         return super().diffusion(t) ** 2
        >>> check_sde(Wrong(), only="moment equations")
        Traceback (most recent call last):
        ...
        scoresde.testing.properties.BrokenPropertyError: ...
    """  # noqa: DOC201 - see the decorator
    return SDES.check(sde, seed=seed, examples=examples, only=only)


@SDES.property(
    "moment equations",
    "(log α)′ = f  and  2 (log σ)′ = 2 f + g²/σ²: mean and variance of dx = f x dt + g dw",
    "g instead of g² or the reverse; a factor 2 or ½; the sign of the drift; β(t) instead of ∫β; "
    "α or σ that are not differentiable",
    applies=gaussian,
    examples=25,
    t=times,
)
def moment_equations(sde: Any, t: float) -> None:
    """α and σ of the kernel solve the moment equations of drift and diffusion."""
    x = double([1.0, -2.0, 0.0, 30.0])
    f, g = sde.drift(x, t)[0], double(sde.diffusion(t))
    close("drift(x, t), linear in x,", sde.drift(x, t), f * x, rtol=1e-10)
    rate, error = slope(lambda u: sde.alpha(u).log(), t, sde.T)
    close("f = drift(x, t)/x", f, rate, rtol=1e-6, atol=error)
    rate, error = slope(lambda u: 2 * sde.sigma(u).log(), t, sde.T)
    growth = 2 * f + (g / sde.sigma(t)) ** 2
    close("2 f + g²/σ²", growth, rate, rtol=1e-6, atol=error)


@SDES.property(
    "semigroup",
    "a_ts = a_tr a_rs,  b²_ts = a²_tr b²_rs + b²_tr  for x_t = a_ts x_s + b_ts ε and s < r < t",
    "variances added as standard deviations; a scale of the wrong pair of times; σ_t² − σ_s² "
    "although the scale is not 1",
    applies=gaussian,
    examples=25,
    srt=ascending(3),
)
def semigroup(sde: Any, srt: list[float]) -> None:
    """Kernels between three times compose, and map one marginal to the next."""
    s, r, t = srt
    (first, std1), (second, std2) = sde.transition(s, r), sde.transition(r, t)
    scale, std = sde.transition(s, t)
    close("a_tt, b_tt", torch.stack(sde.transition(t, t)), double([1.0, 0.0]))
    close("a_ts", scale, first * second, rtol=1e-10)
    close("b²_ts", std**2, second**2 * std1**2 + std2**2, rtol=1e-8)
    close("a_ts α_s", scale * sde.alpha(s), sde.alpha(t), rtol=1e-10)
    close("a²_ts σ_s² + b²_ts", scale**2 * sde.sigma(s) ** 2 + std**2, sde.sigma(t) ** 2, rtol=1e-8)


@SDES.property(
    "perturbation",
    "marginal(x_0, t) = (α x_0, σ),  perturb(x_0, t, ε) = α x_0 + σ ε,  each sample at its own t",
    "σ² instead of σ; one time applied to all samples; a coefficient along the wrong axis",
    applies=gaussian,
    event_shape=event_shapes,
    t=ascending(3),
    seed=seeds,
)
def perturbation(sde: Any, event_shape: tuple[int, ...], t: list[float], seed: int) -> None:
    """Perturbed data are α x_0 + σ ε, sample by sample."""
    x0, noise = states(seed, 2, (3, *event_shape))
    mean, std = sde.marginal(x0, double(t))
    perturbed = sde.perturb(x0, double(t), noise)
    close("the standard deviation of marginal", std, sde.sigma(double(t)), rtol=1e-12)
    for i in range(3):
        alpha, sigma = sde.alpha(t[i]), sde.sigma(t[i])
        expected = alpha * x0[i] + sigma * noise[i]
        close(f"the mean of marginal of sample {i}", mean[i], alpha * x0[i], rtol=1e-10)
        close(f"perturb of sample {i}", perturbed[i], expected, rtol=1e-9, atol=1e-12)


@SDES.property(
    "log-SNR",
    "λ = log α − log σ decreases strictly in t, and λ(time_at(λ(t))) = λ(t)",
    "time running from noise to data; the full log-SNR 2λ instead of the half; a constant noise "
    "level",
    applies=gaussian,
    examples=25,
    t=ascending(3),
)
def log_snr(sde: Any, t: list[float]) -> None:
    """The log-SNR decreases and is inverted, endpoints included."""
    time = double(t)
    half = sde.half_logsnr(time)
    finite("λ", half)
    holds((half.diff() < 0).all(), f"λ is {half.tolist()} at these times, expected decreasing ones")
    close("λ", half, torch.log(sde.alpha(time)) - torch.log(sde.sigma(time)), rtol=1e-9, atol=1e-9)
    close("λ(time_at(λ))", sde.half_logsnr(sde.time_at(half)), half, rtol=1e-8, atol=1e-8)
    ends = sde.time_at(double([torch.inf, -torch.inf]))
    close("time_at(±∞)", ends, double([0.0, sde.T]), atol=1e-12 * sde.T)


def _kinds_of_times(t: float) -> list[Any]:
    """The same time as a float, as float64 and float32 tensors (), and as a tensor (2,)."""
    return [t, double(t), torch.tensor(t, dtype=torch.float32), double([t, t])]


@SDES.property(
    "endpoints",
    "1 − min(σ², 1 %) <= α² <= 1 at t = 0;  all coefficients are finite at t = 0, t_min and T, "
    "given as float, float64 or float32;  α, σ, g > 0 for t > 0",
    "1/t or log 0 at an end; 1 − ᾱ = 0; a noise level that is negative or zero; data scaled before "
    "the diffusion starts",
    examples=12,
    t=closed_times,
)
def endpoints(sde: Any, t: float) -> None:
    """Evaluated at t, 0, t_min and T, each as a number and as a tensor."""
    x = double([[1.0, -2.0], [0.5, 3.0]])
    if sde.gaussian:
        start, noise = float(sde.alpha(0.0)) ** 2, min(float(sde.sigma(0.0)) ** 2, 0.01)
        holds(
            1 - noise - 1e-12 <= start <= 1 + 1e-12,
            f"α² is {start:.6g} at t = 0, expected 1, or as much less as noise is added, {noise:g}",
        )
    for time in (t, 0.0, sde.t_min, sde.T):
        for kind in _kinds_of_times(time):
            values = {"g": sde.diffusion(kind), "drift": sde.drift(x, kind)}
            if sde.gaussian:
                values |= {"α": sde.alpha(kind), "σ": sde.sigma(kind)}
                values |= dict(zip(("a_t0", "b_t0"), sde.transition(0.0, kind), strict=True))
            for name, value in values.items():
                finite(f"{name} at t = {kind!r}", value)
            for name in values.keys() & {"α", "σ", "g"} if time > 0 else ():
                least = float(values[name].min())
                holds(least > 0, f"{name} is {least} at t = {kind!r}, expected more than 0")


@SDES.property(
    "prior",
    "|s/σ_T − 1| <= α_T/σ_T for the prior N(0, s² I): the distribution at T up to what is left of "
    "the data",
    "N(0, I) for a variance-exploding SDE; σ_T² instead of σ_T; event and batch axes mixed up",
    examples=6,
    event_shape=event_shapes,
    dtype=dtypes,
)
def prior(sde: Any, event_shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The prior has the event's shape and, for a Gaussian SDE, the variance at T."""
    try:
        found = sde.prior(event_shape, dtype=dtype)
    except NotImplementedError:
        return  # an SDE without prior can be neither sampled nor used for likelihoods
    shapes = tuple(found.event_shape), tuple(found.batch_shape)
    holds(
        shapes == (event_shape, ()),
        f"event and batch shape are {shapes}, expected {event_shape}, ()",
    )
    holds(found.mean.dtype == dtype, f"the prior has dtype {found.mean.dtype}, expected {dtype}")
    if sde.gaussian:
        sigma = float(sde.sigma(sde.T))
        left = float(sde.alpha(sde.T))
        close("the mean of the prior", found.mean, 0.0)
        close("the standard deviation of the prior", found.stddev, sigma, rtol=1e-5, atol=left)


@SDES.property(
    "simulation",
    "paths of dx = f dt + g dw from x_s have mean a_ts x_s and variance b²_ts at t",
    "a sign, a factor √2 or a rate that belongs to another time in drift or diffusion",
    applies=gaussian,
    examples=4,
    interval=ascending(2),
    seed=seeds,
)
def simulation(sde: Any, interval: list[float], seed: int) -> None:
    """Euler–Maruyama over a short interval has the mean and variance of the kernel.

    Mean and variance of 10 000 paths within 6.5 standard errors (false alarms: 1e-9) and 2 %.
    """
    s, t = interval
    while _change(sde, s, t) > 0.5:
        t = 0.5 * (s + t)
    n, steps, generator = 10_000, 64, torch.Generator().manual_seed(seed)
    h, x = (t - s) / steps, torch.ones(n, dtype=torch.float64)
    for k in range(steps):
        dw = h**0.5 * normal((n,), generator=generator, dtype=torch.float64)
        x = x + h * sde.drift(x, s + k * h) + sde.diffusion(s + k * h) * dw
    scale, std = (float(v) for v in sde.transition(s, t))
    close("the mean of paths", x.mean(), scale, rtol=0.02, atol=6.5 * std / n**0.5)
    close("the variance of paths", x.var(), std**2, rtol=0.02 + 6.5 * (2 / n) ** 0.5)


def _change(sde: Any, s: float, t: float) -> float:
    """How much log α and the kernel's variance change from s to t: small steps suffice below 1."""
    scale, std = (float(v) for v in sde.transition(s, t))
    return max(abs(1 - scale) / scale, std**2 / float(sde.sigma(s)) ** 2 / 4)


@SDES.property(
    "rate",
    "f = −½ β and g² <= β for an SDE with a method beta(t): VP has g² = β, sub-VP less, so that "
    "σ² <= 1 − α²",
    "the VP noise in a sub-VP diffusion; 1 − e^{−B} or its square root; e^{−B} for e^{−2B}",
    applies=lambda sde: gaussian(sde) and hasattr(sde, "beta"),
    examples=12,
    t=times,
)
def rate(sde: Any, t: float) -> None:
    """The rate is that of the drift, and the noise is at most that of VP."""
    beta, alpha2 = float(sde.beta(t)), float(sde.alpha(t)) ** 2
    close("f", sde.drift(double([1.0]), t), -0.5 * beta, rtol=1e-9)
    g2, variance = float(sde.diffusion(t)) ** 2, float(sde.sigma(t)) ** 2
    holds(g2 <= beta * (1 + 1e-9), f"g² is {g2:.6g}, expected at most β = {beta:.6g}")
    excess = variance + alpha2 - 1
    holds(excess <= 1e-12, f"σ² is {variance:.6g}, expected at most 1 − α² = {1 - alpha2:.6g}")


@SDES.property(
    "reversal",
    "reverse(s, η): dx = [f − ½(1+η²) g² s] dt + η g dw̄;  reversed again with 1/η: the diffusion",
    "the sign of the score; g instead of g²; ½ instead of 1 at η = 1; T − t mixed up with t",
    examples=12,
    t=times,
    eta=lambda sde: st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    seed=seeds,
)
def reversal(sde: Any, t: float, eta: float, seed: int) -> None:
    """The reverse SDE has Anderson's drift, in the library's time and in that of torchsde."""

    def score(x: Tensor, t: Any) -> Tensor:
        return torch.sin(x) - x

    (x,) = states(seed, 1, (3, 2))
    f, g = sde.drift(x, t), sde.diffusion(t)
    reverse = sde.reverse(score, eta)
    expected, size = f - 0.5 * (1 + eta**2) * g**2 * score(x, t), float(f.abs().max() + g**2)
    close("reverse(s, η).drift", reverse.drift(x, t), expected, rtol=1e-9, atol=1e-12 * size)
    close("reverse(s, η).diffusion", reverse.diffusion(t), eta * g, rtol=1e-9)
    s = double(sde.T - t)
    backward = -reverse.drift(x, sde.T - s)
    close("reverse(s, η).f(T − t)", reverse.f(s, x), backward, rtol=1e-9, atol=1e-12 * size)
    if eta:
        twice = reverse.reverse(score, 1 / eta)
        close("the drift, reversed twice,", twice.drift(x, t), f, rtol=1e-9, atol=1e-11 * size)
        close("the diffusion, reversed twice,", twice.diffusion(t), g, rtol=1e-9)
