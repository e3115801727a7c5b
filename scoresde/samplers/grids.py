r"""Where the steps are made: grids of times, falling from T to t_min.

Most are equidistant in some function of the noise-to-signal ratio ρ = σ/α, in which every Gaussian
diffusion looks the same; the times follow from ρ = e^{−λ(t)}. Ratios are in units of the data's
spread where a model knows it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde._core.checks import check_integer, check_positive
from scoresde.samplers.base import check_gaussian
from scoresde.sdes import SDE

_ROOM = 0.25
"""The last step of a grid through t_min, over the way from there to ρ = 0, is longer than this."""


@dataclass(frozen=True)
class Grid(ABC):
    """A rule for the times of N steps; ``sample(…, steps=N, times=Karras())`` takes one.

    Example:
        >>> from scoresde import VPSDE
        >>> Karras()(VPSDE(), 4).shape
        torch.Size([5])
    """

    @abstractmethod
    def __call__(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        """Return the times of ``steps`` steps.

        Args:
            sde: the diffusion.
            steps: N >= 1.
            spread: root of the mean variance of the data, 1 if unknown.

        Returns:
            Float64 times ``(N+1,)`` on the CPU, strictly falling.
        """


@dataclass(frozen=True)
class UniformTime(Grid):
    """Equidistant in t^{1/power}, from T to ``end``; for any SDE.

    Args:
        power: 1 for equidistant times; 2 for DDIM's and DEIS's quadratic grid.
        end: last time, the SDE's ``t_min`` if None; Song et al. sample VP and sub-VP to 1e-3.

    Example:
        >>> from scoresde import VPSDE
        >>> UniformTime(end=0.2)(VPSDE(), 4)
        tensor([1.0000, 0.8000, 0.6000, 0.4000, 0.2000], dtype=torch.float64)
    """

    power: float = 1.0
    end: float | None = None

    def __post_init__(self) -> None:
        check_positive("power", self.power)

    def __call__(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        end = sde.t_min if self.end is None else self.end
        if not 0 <= end < sde.T:
            raise ValueError(f"end: expected a time in [0, {sde.T:g}), got {end:g}; T is the start")
        low, high = end ** (1 / self.power), sde.T ** (1 / self.power)
        times = _equidistant(high, low, steps) ** self.power
        times[0], times[-1] = sde.T, end
        return times


@dataclass(frozen=True)
class RatioGrid(Grid):
    """Equidistant in a function of ρ = σ/α: define :meth:`warp` and its inverse."""

    @abstractmethod
    def warp(self, ratio: Tensor) -> Tensor:
        """Return the rising function of ρ in which the grid is equidistant."""

    @abstractmethod
    def unwarp(self, value: Tensor) -> Tensor:
        """Return the ρ at which :meth:`warp` has this value."""

    def __call__(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        high, low = self._ends(sde, std)
        return self._times(sde, _equidistant(high, low, steps), std)

    def through(self, sde: SDE, steps: int, std: float = 1.0, first: float = 1.0) -> Tensor:
        """Return times ``(N+1,)`` for a method that goes on from t_min to ρ = 0.

        They are equidistant as far as ρ = 0, and the last one is t_min instead; where steps are so
        many that others would come near it, they are equidistant as far as t_min.

        Args:
            sde: the diffusion.
            steps: N >= 1.
            spread: root of the mean variance of the data, 1 if unknown.
            first: length of the first step, in that of the others.
        """
        part = torch.arange(check_integer("steps", steps, minimum=1) + 1, dtype=torch.float64)
        part[1:] += first - 1
        part /= float(part[-1])
        high, low = self._ends(sde, std)
        zero = float(self.warp(torch.zeros((), dtype=torch.float64)))
        values = high + (zero - high) * part
        if not values[-2] - low > _ROOM * (low - zero):
            values = high + (low - high) * part
        return self._times(sde, values, std)

    def _ends(self, sde: SDE, std: float) -> list[float]:
        """Return the warped ρ at T and at t_min."""
        ends = torch.tensor([sde.T, sde.t_min], dtype=torch.float64)
        return self.warp(torch.exp(-check_gaussian(sde).half_logsnr(ends)) / std).tolist()

    def _times(self, sde: SDE, values: Tensor, std: float) -> Tensor:
        """Return the times at warped ρ, the first being T, the last t_min."""
        times = torch.empty_like(values)
        times[0], times[-1] = sde.T, sde.t_min
        ratio = self.unwarp(values[1:-1]) * std
        times[1:-1] = check_gaussian(sde).time_at(-torch.log(ratio))
        return times


@dataclass(frozen=True)
class UniformLogSNR(RatioGrid):
    """Equidistant in the log-SNR λ = −ln ρ; DPM-Solver's, and what is called "Lu" spacing.

    Example:
        >>> from scoresde import VESDE
        >>> grid = UniformLogSNR()(VESDE(), 2)
        >>> round(float(VESDE().sigma(grid[1])), 3)  # the geometric mean of the ends
        0.707

    References:
        Lu et al., *DPM-Solver*, 2022, arXiv:2206.00927, section 3.4.
    """

    def warp(self, ratio: Tensor) -> Tensor:
        return torch.log(ratio)

    def unwarp(self, value: Tensor) -> Tensor:
        return torch.exp(value)


@dataclass(frozen=True)
class Karras(RatioGrid):
    """Equidistant in ρ^{1/rho}: denser towards the data.

    Args:
        rho: the exponent, 7 in EDM.

    Example:
        >>> from scoresde import EDMSDE
        >>> [round(t, 4) for t in Karras()(EDMSDE(), 3).tolist()]
        [80.0, 9.7232, 0.4699, 0.002]

    References:
        Karras et al. 2022, arXiv:2206.00364, eq. 5.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        check_positive("rho", self.rho)

    def warp(self, ratio: Tensor) -> Tensor:
        return ratio ** (1 / self.rho)

    def unwarp(self, value: Tensor) -> Tensor:
        return value**self.rho


@dataclass(frozen=True)
class Angle(RatioGrid):
    """Equidistant in the angle atan(ρ/b), in which the whole way from data to noise is π/2 long.

    Args:
        pivot: b > 0, in units of the data's spread.

    Example:
        >>> from scoresde import VESDE
        >>> grid = Angle(pivot=0.5)(VESDE(), 2)
        >>> round(float(VESDE().sigma(grid[1])), 2)  # half way is where ρ ≈ b
        0.5
    """

    pivot: float = 1.0

    def __post_init__(self) -> None:
        check_positive("pivot", self.pivot)

    def warp(self, ratio: Tensor) -> Tensor:
        return torch.atan(ratio / self.pivot)

    def unwarp(self, value: Tensor) -> Tensor:
        return self.pivot * torch.tan(value)


@dataclass(frozen=True)
class LogMobius(RatioGrid):
    """Equidistant in ln((ρ + lower b)/(ρ + upper b)): fine where ρ is about the data's scales.

    Args:
        pivot: b > 0, in units of the data's spread.
        lower: the smallest ratio of interest, in units of b.
        upper: the largest.

    Raises:
        ValueError: unless 0 <= lower < upper.

    Example:
        >>> from scoresde import VESDE
        >>> grid = LogMobius()(VESDE(), 4)
        >>> bool((grid.diff() < 0).all())
        True
    """

    pivot: float = 1.0
    lower: float = 0.2
    upper: float = 4.0

    def __post_init__(self) -> None:
        check_positive("pivot", self.pivot)
        if not 0 <= self.lower < self.upper < math.inf:
            raise ValueError(
                "lower, upper: expected 0 <= lower < upper < inf, got "
                f"lower={self.lower!r}, upper={self.upper!r}; they are ratios in units of pivot"
            )

    def warp(self, ratio: Tensor) -> Tensor:
        low, high = self.lower * self.pivot, self.upper * self.pivot
        return torch.log((ratio + low) / (ratio + high))

    def unwarp(self, value: Tensor) -> Tensor:
        low, high = self.lower * self.pivot, self.upper * self.pivot
        part = torch.exp(value)
        return (part * high - low) / (1 - part)


@dataclass(frozen=True)
class Timesteps(Grid):
    """The knots of a discretised diffusion: all, or as evenly spread as whole numbers allow.

    N steps take N + 1 of the table's times, the first and the last included.

    Raises:
        TypeError: if the diffusion has no table.
        ValueError: if it has fewer than N + 1 knots.

    Example:
        >>> from scoresde import DDPM
        >>> Timesteps()(DDPM.linear(), 999)[:3]
        tensor([1.0000, 0.9990, 0.9980], dtype=torch.float64)
    """

    def __call__(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        knots = getattr(sde, "times", None)
        if not isinstance(knots, Tensor):
            raise TypeError(
                f"sde: expected a discretised diffusion such as DDPM, got {type(sde).__name__}; "
                "use UniformTime()"
            )
        if check_integer("steps", steps, minimum=1) >= len(knots):
            raise ValueError(
                f"steps: expected at most {len(knots) - 1} for {len(knots)} knots, got {steps}; "
                "use UniformTime() to go between them"
            )
        index = torch.linspace(len(knots) - 1, 0, steps + 1, dtype=torch.float64).round().long()
        return knots.cpu()[index].to(torch.float64)


def _equidistant(first: float, last: float, steps: int) -> Tensor:
    return torch.linspace(
        first, last, check_integer("steps", steps, minimum=1) + 1, dtype=torch.float64
    )
