r"""Variables in which the probability flow is told: a scale of the state and a time.

With y = x/α, ρ = σ/α and D(y; ρ) = E[x_0 | y], every Gaussian diffusion has the same flow,
dy/d ln ρ = y − D. Let the data have mean m and covariance E diag(c) Eᵀ, and w = Eᵀ(y − m). In

    z = w/S(ρ)    and    τ(ρ)

the flow is

    dz/dτ = (A w − Eᵀ(D − m))/S · d ln ρ/dτ,        A = 1 − d ln S/d ln ρ.

S and τ are free, and the better they are chosen, the straighter the path: what an integrator with
few steps gets wrong is what bends. Ratios are in units of the data's spread (the root of their mean
variance) wherever that is known.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from scoresde._core.checks import check_ordered, check_positive

__all__ = ["Coordinates", "LogSNR", "Rectified", "Standardized", "VarianceExploding", "Windowed"]


@dataclass(frozen=True)
class Coordinates(ABC):
    """A scale S of the state and a time τ, as functions of ρ = σ/α.

    All take float64 tensors: ρ of any shape ``(…)``, and the variances c ``(d,)`` or ``()`` that
    broadcast against it.

    Attributes:
        rests: the ρ from which on z stands still, but for what data have beyond a Gaussian.
    """

    rests: ClassVar[float] = math.inf

    @abstractmethod
    def scale(self, ratio: Tensor, variance: Tensor) -> Tensor:
        """Return S."""

    @abstractmethod
    def kept(self, ratio: Tensor, variance: Tensor) -> Tensor:
        """Return A = 1 − d ln S/d ln ρ."""

    @abstractmethod
    def time(self, ratio: Tensor) -> Tensor:
        """Return τ."""

    @abstractmethod
    def ratio(self, time: Tensor) -> Tensor:
        """Return the ρ at which :meth:`time` has this value."""

    @abstractmethod
    def rate(self, ratio: Tensor) -> Tensor:
        """Return d ln ρ/dτ."""

    @final
    def slope(self, ratio: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Return p and q of the flow, S dz/dτ = p w − q Eᵀ(D − m)."""
        rate = self.rate(ratio)
        return self.kept(ratio, variance) * rate, rate


class _UnitVariance(Coordinates):
    """S = √(c + ρ²): z has unit variance in every direction, and that of Gaussian data rests."""

    rests = 5.0

    def scale(self, ratio: Tensor, variance: Tensor) -> Tensor:
        return torch.sqrt(variance + ratio**2)

    def kept(self, ratio: Tensor, variance: Tensor) -> Tensor:
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

    def kept(self, ratio: Tensor, variance: Tensor) -> Tensor:
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

    def kept(self, ratio: Tensor, variance: Tensor) -> Tensor:
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

    def kept(self, ratio: Tensor, variance: Tensor) -> Tensor:
        return self.pivot / (self.pivot + ratio)

    def time(self, ratio: Tensor) -> Tensor:
        return ratio / (self.pivot + ratio)

    def ratio(self, time: Tensor) -> Tensor:
        return self.pivot * time / (1 - time)

    def rate(self, ratio: Tensor) -> Tensor:
        return (self.pivot + ratio) ** 2 / (self.pivot * ratio)
