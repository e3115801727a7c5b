r"""What every diffusion owes: the laws that tie drift, noise, kernels and prior together.

A Gaussian diffusion is known twice: by dx = f x dt + g dw and by x_t = α x_0 + σ ε. The laws say
that both are the same one, that it starts at the data and ends in its prior, and that it can be
computed with, at both ends and in single precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from scoresde.sdes import SDE
from scoresde.testing.properties import Family, close
from scoresde.testing.strategies import ascending, times

SDES = Family("SDE")


def check_sde(
    sde: SDE | st.SearchStrategy[SDE],
    *,
    seed: int = 0,
    examples: int | None = None,
    only: str | Sequence[str] | None = None,
) -> None:
    """Look for laws of diffusions that an SDE breaks.

    Args:
        sde: the diffusion, or a strategy that draws some.
        seed: of the search, which is reproducible.
        examples: how many cases of each law are tried; if None, enough for a few seconds in all.
        only: the name of a law or some names; all if None.

    Raises:
        BrokenLawError: an ``AssertionError`` with, for every broken law, the formula, the simplest
            counterexample, the numbers there and the usual causes.

    Example:
        >>> from scoresde import VPSDE
        >>> check_sde(VPSDE(), only="moment equations")
        >>> class Wrong(VPSDE):
        ...     def diffusion(self, t):  # g² where g is meant
        ...         return super().diffusion(t) ** 2
        >>> check_sde(Wrong(), only="moment equations")
        Traceback (most recent call last):
        ...
        scoresde.testing.properties.BrokenLawError: ...
    """
    SDES.check(sde, seed=seed, examples=examples, only=only)


def gaussian(sde: SDE) -> bool:
    """Whether the diffusion has a Gaussian kernel that it tells."""
    return sde.gaussian


def _double(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _slope(curve: Callable[[Tensor], Tensor], t: float, T: float) -> tuple[Tensor, Tensor]:
    """Return the derivative of a curve by differences, and a bound of its error.

    Central, or one-sided near T. The difference to the slope over twice the distance bounds the
    error of the discretisation, kinks included; that of rounding is 1e-15/step.
    """
    step = 1e-4 * t
    ahead = 1.0 if t + 2 * step <= T else 0.0

    def difference(h: float) -> Tensor:
        return (curve(_double(t + ahead * h)) - curve(_double(t - h))) / ((1 + ahead) * h)

    near, far = difference(step), difference(2 * step)
    size = curve(_double(t)).abs() + 1
    return near, 2 * (near - far).abs() + 1e-15 * size / step


@SDES.owes(
    "moment equations",
    "(log α)′ = f  and  2 (log σ)′ = 2 f + g²/σ²: mean and variance of dx = f x dt + g dw",
    "g instead of g² or the reverse; a factor 2 or ½; the sign of the drift; β(t) where ∫β is "
    "meant; α or σ that are not differentiable",
    applies=gaussian,
    examples=40,
    t=times,
)
def moment_equations(sde: Any, t: float) -> None:
    """The kernel's α and σ solve the moment equations of drift and diffusion."""
    f, g = _double(sde.drift(torch.ones(1, dtype=torch.float64), t)[0]), _double(sde.diffusion(t))
    slope, error = _slope(lambda u: sde.alpha(u).log(), t, sde.T)
    close("f = drift(x, t)/x", f, slope, rtol=1e-6, atol=error)
    slope, error = _slope(lambda u: 2 * sde.sigma(u).log(), t, sde.T)
    growth = 2 * f + (g / sde.sigma(t)) ** 2
    close("2 f + g²/σ²", growth, slope, rtol=1e-6, atol=error)


@SDES.owes(
    "semigroup",
    "a_ts = a_tr a_rs,  b²_ts = a²_tr b²_rs + b²_tr  for x_t = a_ts x_s + b_ts ε and s < r < t",
    "variances added as standard deviations; a scale of the wrong pair of times; σ_t² − σ_s² where "
    "the scale is not 1",
    applies=gaussian,
    examples=40,
    moments=ascending(3),
)
def semigroup(sde: Any, moments: list[float]) -> None:
    """Kernels between three times compose, and carry one marginal into the next."""
    s, r, t = moments
    (first, std1), (second, std2) = sde.transition(s, r), sde.transition(r, t)
    whole, std = sde.transition(s, t)
    close("a_ts", whole, first * second, rtol=1e-10)
    close("b²_ts", std**2, second**2 * std1**2 + std2**2, rtol=1e-8)
    close("a_ts α_s", whole * sde.alpha(s), sde.alpha(t), rtol=1e-10)
    close("a²_ts σ_s² + b²_ts", whole**2 * sde.sigma(s) ** 2 + std**2, sde.sigma(t) ** 2, rtol=1e-8)
