r"""Products of powers of densities: guidance, tempering, negation, composition.

::

    s(x, t) = Σ_i w_i s_i(x, t)    is the score of    Π_i p_{i,t}(x)^{w_i}

at every noise level. That is not the noised version of Π_i p_i(x_0)^{w_i}: noising and multiplying
do not commute, since::

    ∫ N(x_t; α x_0, σ²) Π_i p_i(x_0)^{w_i} dx_0  ≠  Π_i (∫ N(x_t; α x_0, σ²) p_i(x_0) dx_0)^{w_i},

unless one weight is 1 and the others 0. The sequence of products is not the diffusion of any data
distribution: samples of the reverse SDE or the flow with this score are near the product, not
distributed as it, and :func:`~scoresde.log_likelihood` returns the density of that flow. Only as
t → 0 does the score become that of Π_i p_i^{w_i}.

Weights that sum to one preserve the distribution at t = T. Others do not: the flow of a product of
Gaussians N(m_i, c_i) contracts distances, in units of α, by
Π_i ((c_i + ρ_0²)/(c_i + ρ_T²))^{w_i/2}, ρ = σ/α, so that an unweighted product of two collapses.
For several conditions at once, use s_∅ + Σ_i w_i (s_i − s_∅):
``Product([first, second, unconditional], [w_1, w_2, None])``.

To sample from the product itself, add corrector steps: Langevin steps
(:class:`~scoresde.samplers.AnnealedLangevin`, :class:`~scoresde.samplers.PredictorCorrector`) leave
the density of this score invariant at each level, and with enough of them the samples converge to
the product. :class:`~scoresde.samplers.MALA` has no bias if the densities of the parts are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde._core.checks import (
    check_finite,
    check_floating,
    check_nonnegative,
    check_number,
    check_positive,
)
from scoresde._core.shapes import has_concrete_value
from scoresde.scores import Combination, Moments, Score

Weight = float | Tensor | Callable[[Tensor], Tensor | float]
"""A number, one per sample ``(batch,)``, or a function of the noise level ρ = σ/α."""


@dataclass(frozen=True)
class GuidanceInterval:
    r"""A weight w at noise levels low < ρ <= high, and 1 (no guidance) at others.

    Guidance at high noise reduces diversity, at low noise it has little effect; outside of the
    interval only one score is evaluated. In half log-SNR, λ = −ln ρ.

    Args:
        weight: w.
        low: lower end, ρ = σ/α in the unit of the data, >= 0.
        high: upper end > low, ``math.inf`` for none.

    Raises:
        ValueError: if a number is not finite or the ends are not in order.

    Example:
        >>> weight = GuidanceInterval(3.0, low=0.2, high=5.0)
        >>> weight(torch.tensor([0.1, 1.0, 10.0]))
        tensor([1., 3., 1.])

    References:
        Kynkäänniemi et al., *Applying guidance in a limited interval improves sample and
        distribution quality in diffusion models*, 2024, arXiv:2404.07724, section 3.
    """

    weight: float
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        check_number("weight", self.weight)
        check_nonnegative("low", self.low)
        if not (self.high == math.inf or check_number("high", self.high) > self.low):
            raise ValueError(
                f"low, high: expected low < high, got {self.low:g} and {self.high:g}; both are "
                "noise levels σ/α in the unit of the data"
            )

    def __call__(self, ratio: Tensor) -> Tensor:
        """Return the weight at noise levels ρ, shaped like them."""
        inside = (ratio > self.low) & (ratio <= self.high)
        return torch.where(inside, self.weight, torch.ones_like(ratio))


class Product(Combination):
    r"""The score of Π_i p_{i,t}^{w_i}: a product of powers at every noise level.

    ::

        s = Σ_i w_i s_i.

    Weights above 1 sharpen, below 1 flatten (w = 1/temperature), negative ones negate. For the
    distribution of samples see :mod:`scoresde.guidance.product`.

    Args:
        scores: the parts, over one diffusion.
        weights: for each part a number, one per sample ``(batch,)``, a function of the noise level
            ρ = σ/α (float64, ``()`` or ``(batch,)``), or, for at most one, None: 1 − Σ of the
            others. All are 1 by default.
        moments: mean and covariance of the data, if known; by default those of the first part,
            marked as not known.

    Raises:
        TypeError: if a part is not a Score, a weight neither a number, a tensor nor callable, or a
            weight a function and the SDE not Gaussian.
        ValueError: if there is not one weight for each part, one is not finite, or diffusions
            differ.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> sde = VPSDE()
        >>> left = FunctionScore(lambda x, t: -(x + 1), sde)
        >>> right = FunctionScore(lambda x, t: -(x - 1), sde)
        >>> Product([left, right])(torch.ones(1, 2), 0.5)  # −2x
        tensor([[-2., -2.]])
        >>> Product([left, right], [3.0, None])(torch.ones(1, 2), 0.5)  # 3·(−2) − 2·0
        tensor([[-6., -6.]])

    References:
        Liu et al., *Compositional visual generation with composable diffusion models*, 2022,
        arXiv:2206.01714 (conjunction and negation); Du et al., *Reduce, reuse, recycle:
        compositional generation with energy-based diffusion models and MCMC*, 2023,
        arXiv:2302.11552 (why products need correctors).
    """

    def __init__(
        self,
        scores: Sequence[Score],
        weights: Sequence[Weight | None] | None = None,
        moments: Moments | None = None,
    ) -> None:
        super().__init__(scores, moments)
        self.weights = _check_weights(weights, len(self.scores))
        if any(callable(weight) for weight in self.weights) and not self.sde.gaussian:
            raise TypeError(
                "weights: expected numbers, since a general SDE has no noise level σ/α, "
                f"{type(self.sde).__name__}, got a function"
            )

    def weights_at(self, x: Tensor, t: Tensor) -> list[Tensor]:
        """Return the weights at ``t`` with 1 − Σ for None, or for the flat density without None."""
        given = [None if w is None else _value(w, self.sde, x, t) for w in self.weights]
        remainder = torch.ones((), dtype=torch.float64) - sum(w for w in given if w is not None)
        completed = given if any(w is None for w in given) else [*given, None]
        return [remainder if w is None else w for w in completed]

    def select(self, index: Tensor | slice) -> Product:
        scores = [part.select(index) for part in self.scores]  # type: ignore[operator]
        return Product(scores, [_select(weight, index) for weight in self.weights], self.moments)

    def extra_repr(self) -> str:
        return f"weights={self.weights}"


def autoguidance(score: Score, base: Score, weight: Weight) -> Product:
    r"""Return a score extrapolated from another: s_base + w (s − s_base).

    The density at each level is p_t (p_t/p_{base,t})^{w−1}. With w = 1 it is exactly
    ``score``, with w = 0 exactly ``base``, and only that one is evaluated. If ``base`` is a worse
    model of the same data (smaller, or trained for fewer steps), this is autoguidance; if it is the
    model without its condition, classifier-free guidance (:func:`classifier_free_guidance`).
    Samples are not distributed as p^w p_base^{1−w} of clean data: see
    :mod:`scoresde.guidance.product`.

    Args:
        score: s.
        base: s_base, over the same diffusion.
        weight: w, a number, one per sample ``(batch,)``, or a function of the noise level such as
            :class:`GuidanceInterval`.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> sde = VPSDE()
        >>> good, bad = (FunctionScore(lambda x, t, c=c: -c * x, sde) for c in (2.0, 1.0))
        >>> autoguidance(good, bad, weight=3.0)(torch.ones(1, 2), 0.5)
        tensor([[-4., -4.]])

    References:
        Karras et al., *Guiding a diffusion model with a bad version of itself*, 2024,
        arXiv:2406.02507, section 3.
    """
    return Product([score, base], [weight, None])


def tempered(score: Score, temperature: float) -> Product:
    r"""Return the score of p_t^{1/temperature}, s/temperature, at every noise level.

    It is a target for Langevin steps, not for the reverse SDE or the flow: for data
    N(0, c) the flow from x_T ~ N(0, σ_T²) ends in the variance ρ_T² (c/(c + ρ_T²))^{1/temperature},
    ρ = σ/α, which depends on ρ_T and is not c · temperature.

    Args:
        score: the score of p_t.
        temperature: > 0; below 1 concentrates on the modes, above 1 flattens.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> tempered(FunctionScore(lambda x, t: -x, VPSDE()), 0.5)(torch.ones(1, 2), 0.3)
        tensor([[-2., -2.]])
    """
    return Product([score], [1 / check_positive("temperature", temperature)])


def _check_weights(weights: Sequence[Weight | None] | None, count: int) -> list[Weight | None]:
    if weights is None:
        return [1.0] * count
    if not isinstance(weights, Sequence | Tensor) or len(weights) != count:
        raise ValueError(
            f"weights: expected a sequence with one weight for each of {count} scores, got "
            f"{weights!r}; None is 1 − Σ of the others"
        )
    if sum(weight is None for weight in weights) > 1:
        raise ValueError(
            f"weights: expected at most one None, got {weights!r}; only one weight may be None, "
            "1 − Σ of the others"
        )
    return [_check_weight(f"weights[{k}]", weight) for k, weight in enumerate(weights)]


def _check_weight(name: str, weight: Weight | None) -> Weight | None:
    if weight is None or callable(weight):
        return weight
    if not isinstance(weight, Tensor):
        return check_number(name, weight, "a finite number, one per sample, or a function of σ/α")
    if weight.ndim > 1:
        raise ValueError(
            f"{name}: expected shape () or (batch,), got {tuple(weight.shape)}; one per sample"
        )
    return check_finite(name, check_floating(name, weight))


def _value(weight: Weight, sde: Any, x: Tensor, t: Tensor) -> Tensor:
    """Return a weight at ``t``, float64, ``()`` or ``(batch,)``."""
    if callable(weight) and not isinstance(weight, Tensor):
        ratio = torch.exp(-sde.half_logsnr(sde.interior(t)))
        value = torch.as_tensor(weight(ratio), dtype=torch.float64)
        if has_concrete_value(value):
            check_finite("weights", value)
    else:
        value = torch.as_tensor(weight, dtype=torch.float64)
    if value.ndim == 0:
        return value
    if value.shape != x.shape[:1]:
        raise ValueError(
            f"weights: expected a number or one per sample, ({x.shape[0]},), got "
            f"{tuple(value.shape)}; functions get the noise levels and return as many weights"
        )
    return value.to(x.device)


def _select(weight: Weight | None, index: Tensor | slice) -> Weight | None:
    if not isinstance(weight, Tensor) or weight.ndim == 0:
        return weight
    return weight[index.to(weight.device) if isinstance(index, Tensor) else index]
