"""Distributions of the noise within a bin."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde._core.checks import check_positive
from scoresde._core.random import uniform_like
from scoresde._core.shapes import flatten


class Dequantization(ABC):
    """A distribution q(u | k) of the position u ∈ [-½, ½]^d in a bin, in widths from its center.

    Both methods take the center of the bin, ``(batch, *event)``, and its width, shaped ``event``,
    in the model's coordinates and in float64, so that a learned distribution may depend on the
    data.
    """

    @abstractmethod
    def sample(
        self, center: Tensor, width: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw positions u, shaped like ``center``."""

    @abstractmethod
    def log_prob(self, u: Tensor, center: Tensor, width: Tensor) -> Tensor:
        """Return log q(u | k) in nats with respect to du, ``(batch,)``; -inf outside the bin."""


def _log_indicator(u: Tensor) -> Tensor:
    """Return 0 within the bin, -inf outside."""
    return torch.where(u.abs() <= 0.5, 0.0, -math.inf).to(u)


@dataclass(frozen=True)
class UniformDequantization(Dequantization):
    """Uniform noise over the bin, q(u | k) = 1: the published convention (Theis et al. 2016)."""

    def sample(
        self, center: Tensor, width: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        return uniform_like(center, generator) - 0.5

    def log_prob(self, u: Tensor, center: Tensor, width: Tensor) -> Tensor:
        return flatten(_log_indicator(u)).sum(1)


@dataclass(frozen=True)
class TruncatedNormalDequantization(Dequantization):
    r"""Normal noise around the center of the bin, truncated to the bin; nothing to train.

    With s = ``std`` / width and τ = 1/(2s), the bin's half-width in standard deviations::

        log q(u | k) = Σ_i −u_i²/(2s²) − log(s √(2π)) − log erf(τ/√2),    |u_i| ≤ ½.

    A diffusion model is trained on data with noise of standard deviation σ(t)/α(t) (in the data's
    coordinates), at least that of its first time ``t_min``. With ``std = σ(t_min)/α(t_min)`` the
    dequantized points have the distribution that the model was trained on, except that the bin's
    edges truncate it; uniform noise does not match it. As ``std`` grows, the noise tends to the
    uniform one.

    Args:
        std: Standard deviation of the noise before truncation, in the model's coordinates.

    Raises:
        TypeError: If ``std`` is not a number.
        ValueError: If it is not positive and finite.

    References:
        Zheng et al., "Improved techniques for maximum likelihood estimation for diffusion ODEs",
        ICML 2023, truncated-normal dequantization.

    Example:
        >>> TruncatedNormalDequantization(std=0.0013)
        TruncatedNormalDequantization(std=0.0013)
    """

    std: float

    def __post_init__(self) -> None:
        hint = "pass σ(t_min)/α(t_min) of the diffusion, exp(-sde.half_logsnr(t_min))"
        object.__setattr__(self, "std", check_positive("std", self.std, hint))

    def sample(
        self, center: Tensor, width: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw positions u by inversion of the distribution function."""
        s = self.std / width
        mass = torch.erf(0.5 / (s * math.sqrt(2)))
        quantile = torch.erfinv(mass * uniform_like(center, generator, lower=-1.0, upper=1.0))
        return (math.sqrt(2) * s * quantile).clamp(-0.5, 0.5)

    def log_prob(self, u: Tensor, center: Tensor, width: Tensor) -> Tensor:
        s = self.std / width
        mass = torch.erf(0.5 / (s * math.sqrt(2)))
        normalizer = torch.log(s * math.sqrt(2 * math.pi) * mass)
        return flatten(_log_indicator(u) - 0.5 * (u / s) ** 2 - normalizer).sum(1)


UNIFORM = UniformDequantization()
