r"""Coordinates of the probability flow: a scale of the state and a time variable.

With y = x/α, ρ = σ/α and D(y; ρ) = E[x_0 | y], all Gaussian SDEs have the same probability flow,
dy/d ln ρ = y − D. Let the data have mean m and covariance E diag(c) Eᵀ, and w = Eᵀ(y − m). In the
coordinates

    z = w/S(ρ)    and    τ(ρ)

the flow is

    dz/dτ = (A w − Eᵀ(D − m))/S · d ln ρ/dτ,        A = 1 − d ln S/d ln ρ.

With the noise prediction ε̂ = (y − D)/ρ and u = α w = Eᵀ(x − αm) this becomes

    dz/dτ = g (Eᵀε̂ + b u),        g = (ρ/S) d ln ρ/dτ,        b = (A − 1)/σ,

which loses no digits near the data, where y − D is a small difference (:class:`FlowCoefficients`).

S and τ are free. Coordinates in which paths are nearly straight leave less error to an integrator
with few steps. Noise ratios are measured in units of the standard deviation of the data (the root
of their mean variance) wherever that is known (:class:`DataCoordinates`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from scoresde._core.checks import check_ordered, check_positive

__all__ = [
    "Coordinates",
    "DataCoordinates",
    "FlowCoefficients",
    "LogSNR",
    "Rectified",
    "Standardized",
    "VarianceExploding",
    "Windowed",
]


@dataclass(frozen=True)
class Coordinates(ABC):
    """A scale S of the state and a time τ, as functions of the noise ratio ρ = σ/α.

    All methods take float64 tensors: ρ of any shape ``(…)``, and the variances c ``(d,)`` or
    ``()`` that broadcast against it.

    Attributes:
        stationary_above: noise ratio above which z is constant for Gaussian data.
    """

    stationary_above: ClassVar[float] = math.inf

    @abstractmethod
    def scale(self, ratio: Tensor, variance: Tensor) -> Tensor:
        """Return S."""

    @abstractmethod
    def drift(self, ratio: Tensor, variance: Tensor) -> Tensor:
        """Return A = 1 − d ln S/d ln ρ, the coefficient of w in the flow."""

    @abstractmethod
    def time(self, ratio: Tensor) -> Tensor:
        """Return τ."""

    @abstractmethod
    def ratio(self, time: Tensor) -> Tensor:
        """Return the ρ at which :meth:`time` has this value."""

    @abstractmethod
    def rate(self, ratio: Tensor) -> Tensor:
        """Return d ln ρ/dτ."""


class FlowCoefficients(NamedTuple):
    """The flow dz/dτ = g (Eᵀε̂ + b u), u = scale · z, at noise levels ``(n,)``.

    Each is ``(n, 1)`` or ``(n, d)``.
    """

    scale: Tensor
    """αS, so that u = αS z"""
    gain: Tensor
    """g = (ρ/S) d ln ρ/dτ"""
    lead: Tensor
    """b = (A − 1)/σ"""
    rate: Tensor
    """d ln ρ/dτ"""


@dataclass(frozen=True)
class DataCoordinates:
    """Coordinates for given data: noise ratios and variances in the unit of the data.

    Args:
        coordinates: S and τ for data of unit variance.
        std: root of the mean variance of the data.
        variance: c, ``(d,)`` or ``()``, float64.
    """

    coordinates: Coordinates
    std: float
    variance: Tensor

    def time(self, ratio: Tensor) -> Tensor:
        """Return τ at ρ."""
        return self.coordinates.time(ratio / self.std)

    def ratio(self, time: Tensor) -> Tensor:
        """Return ρ at τ."""
        return self.std * self.coordinates.ratio(time)

    def scale(self, ratio: Tensor) -> Tensor:
        """Return S at ρ ``(n, 1)``."""
        unit = self.std
        return unit * self.coordinates.scale(ratio / unit, self.variance / unit**2)

    def drift(self, ratio: Tensor) -> Tensor:
        """Return A at ρ ``(n, 1)``."""
        return self.coordinates.drift(ratio / self.std, self.variance / self.std**2)

    def rate(self, ratio: Tensor) -> Tensor:
        """Return d ln ρ/dτ at ρ."""
        return self.coordinates.rate(ratio / self.std)

    def coefficients(self, alpha: Tensor, sigma: Tensor, ratio: Tensor) -> FlowCoefficients:
        """Return the coefficients of the flow for α, σ and ρ = σ/α, each ``(n,)``."""
        alpha, sigma, ratio = (
            v.unsqueeze(1).to(self.variance.device) for v in (alpha, sigma, ratio)
        )
        scale, rate = self.scale(ratio), self.rate(ratio)
        lead = (self.drift(ratio) - 1) / sigma
        return FlowCoefficients(alpha * scale, rate * ratio / scale, lead, rate)


class _UnitVariance(Coordinates):
    """S = √(c + ρ²): z has unit variance, and the flow of Gaussian data is constant."""

    stationary_above = 5.0

    def scale(self, ratio: Tensor, variance: Tensor) -> Tensor:
        return torch.sqrt(variance + ratio**2)

    def drift(self, ratio: Tensor, variance: Tensor) -> Tensor:
        return variance / (variance + ratio**2)


@dataclass(frozen=True)
class Standardized(_UnitVariance):
    r"""Unit variance in every direction, and the angle: S = √(c + ρ²), τ = atan(ρ/b).

    The flow of Gaussian data stands still, and the whole way from ρ = 0 to ρ = ∞ is π/2 long. For
    c = b = 1 the slope is the velocity of v-prediction.

    Args:
        pivot: b > 0, where the angle is π/4, in units of the data's spread.

    Example:
        >>> ratio = torch.tensor([0.0, 1.0, torch.inf])
        >>> Standardized().time(ratio) / torch.pi
        tensor([0.0000, 0.2500, 0.5000])

    References:
        Salimans & Ho, *Progressive distillation for fast sampling of diffusion models*, 2022,
        arXiv:2202.00512, appendix D (the angle).
    """

    pivot: float = 1.0

    def __post_init__(self) -> None:
        check_positive("pivot", self.pivot)

    def time(self, ratio: Tensor) -> Tensor:
        return torch.atan(ratio / self.pivot)

    def ratio(self, time: Tensor) -> Tensor:
        return self.pivot * torch.tan(time)

    def rate(self, ratio: Tensor) -> Tensor:
        return (ratio**2 + self.pivot**2) / (self.pivot * ratio)


@dataclass(frozen=True)
class Windowed(_UnitVariance):
    r"""Unit variance in every direction, and the log-SNR between the scales of the data.

        S = √(c + ρ²),      τ = ln(ρ + u) − ½ ln(ρ² + 2κρ + l²),      κ = 3l²/2u.

    Between the smallest scale l and the largest u, τ ≈ −ln ρ + ln u. Outside, where none of the
    noise is left or where all is noise, nothing happens to the data, and time stands still. D is a
    smooth function of ρ² near the data, where τ is almost one too: κ only keeps the slope finite at
    ρ = 0, where a network's ε̂ does not vanish. Near ρ = ∞ it is one of 1/ρ, as τ is.

    Args:
        lower: l > 0, in units of the data's spread.
        upper: u > l, likewise.

    Example:
        >>> ratio = torch.tensor([1e4, 1.0, 0.5, 0.0])
        >>> Windowed().time(ratio)
        tensor([1.8581e-04, 1.0008e+00, 1.4081e+00, 2.1115e+00])
    """

    lower: float = 0.23
    upper: float = 1.9

    def __post_init__(self) -> None:
        check_positive("lower", self.lower)
        check_ordered("lower", self.lower, "upper", self.upper)

    def time(self, ratio: Tensor) -> Tensor:
        upper, linear = self.upper, self._linear
        # both logarithms in one, of 1 + what is small where all is noise
        more = 2 * (upper - linear) * ratio + upper**2 - self.lower**2
        return 0.5 * torch.log1p(more / self._square(ratio))

    def ratio(self, time: Tensor) -> Tensor:
        # (ρ + u)² = e^{2τ} (ρ² + 2κρ + l²)
        more, growth = torch.expm1(2 * time), torch.exp(2 * time)
        half = self.upper - self._linear * growth
        rest = self.upper**2 - self.lower**2 * growth
        root = torch.sqrt(half**2 + more * rest)
        return torch.where(half < 0, rest / (root - half), (root + half) / more)

    def rate(self, ratio: Tensor) -> Tensor:
        low = (ratio + self._linear) / self._square(ratio)
        return 1 / (ratio * (1 / (ratio + self.upper) - low))

    @property
    def _linear(self) -> float:
        return 1.5 * self.lower**2 / self.upper

    def _square(self, ratio: Tensor) -> Tensor:
        return ratio**2 + 2 * self._linear * ratio + self.lower**2


@dataclass(frozen=True)
class VarianceExploding(Coordinates):
    """EDM's: z = y and τ = ρ, as if all diffusions exploded in variance; the slope is ε̂.

    Example:
        >>> float(VarianceExploding().time(torch.tensor(0.5)))
        0.5

    References:
        Karras et al. 2022, arXiv:2206.00364, eq. 3.
    """

    def scale(self, ratio: Tensor, variance: Tensor) -> Tensor:
        return torch.ones_like(ratio)

    def drift(self, ratio: Tensor, variance: Tensor) -> Tensor:
        return torch.ones_like(ratio)

    def time(self, ratio: Tensor) -> Tensor:
        return ratio

    def ratio(self, time: Tensor) -> Tensor:
        return time

    def rate(self, ratio: Tensor) -> Tensor:
        return 1 / ratio


@dataclass(frozen=True)
class LogSNR(Coordinates):
    """Variance preserving in the half log-SNR: S = √(1 + ρ²), τ = −ln ρ.

    Example:
        >>> round(float(LogSNR().time(torch.tensor(0.5))), 4)  # twice as much signal as noise
        0.6931

    References:
        Kingma et al., *Variational diffusion models*, 2021, arXiv:2107.00630, section 5.1.
    """

    def scale(self, ratio: Tensor, variance: Tensor) -> Tensor:
        return torch.sqrt(1 + ratio**2)

    def drift(self, ratio: Tensor, variance: Tensor) -> Tensor:
        return 1 / (1 + ratio**2)

    def time(self, ratio: Tensor) -> Tensor:
        return -torch.log(ratio)

    def ratio(self, time: Tensor) -> Tensor:
        return torch.exp(-time)

    def rate(self, ratio: Tensor) -> Tensor:
        return -torch.ones_like(ratio)


@dataclass(frozen=True)
class Rectified(Coordinates):
    """Those of rectified flows: S = b + ρ, τ = ρ/(b + ρ); with b = 1, α = 1 − τ and σ = τ.

    Args:
        pivot: b > 0, in units of the data's spread; the noise's share is one half there.

    Example:
        >>> float(Rectified().time(torch.tensor(1.0)))
        0.5

    References:
        Liu et al., *Flow straight and fast*, 2022, arXiv:2209.03003, eq. 1.
    """

    pivot: float = 1.0

    def __post_init__(self) -> None:
        check_positive("pivot", self.pivot)

    def scale(self, ratio: Tensor, variance: Tensor) -> Tensor:
        return self.pivot + ratio

    def drift(self, ratio: Tensor, variance: Tensor) -> Tensor:
        return self.pivot / (self.pivot + ratio)

    def time(self, ratio: Tensor) -> Tensor:
        return ratio / (self.pivot + ratio)

    def ratio(self, time: Tensor) -> Tensor:
        return self.pivot * time / (1 - time)

    def rate(self, ratio: Tensor) -> Tensor:
        return (self.pivot + ratio) ** 2 / (self.pivot * ratio)
