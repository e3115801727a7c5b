r"""Grids of times, decreasing from T to t_min.

Most are equidistant in a function of the noise ratio ρ = σ/α, in which all Gaussian SDEs are the
same; the times follow from ρ = e^{−λ(t)}. Ratios are in units of the standard deviation of the data
where a model has it.
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

_MIN_LAST_STEP = 0.25
"""Bound of the last step of :meth:`RatioGrid.times_to_data`, in steps from t_min to ρ = 0."""


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
            std: standard deviation of the data, 1 if unknown.

        Returns:
            Float64 times ``(N+1,)`` on the CPU, strictly decreasing.
        """


@dataclass(frozen=True)
class UniformTime(Grid):
    """Equidistant in t^{1/power}, from T to ``end``; for any SDE.

    Args:
        power: 1 for equidistant times; 2 for DDIM's and DEIS's quadratic grid.
        end: last time, the SDE's ``t_min`` if None; Song et al. sample VP and sub-VP to 1e-3.

    Raises:
        ValueError: unless ``power`` is positive, and ``end`` in [0, T) when called.

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
        """Return the increasing function of ρ in which the grid is equidistant."""

    @abstractmethod
    def unwarp(self, value: Tensor) -> Tensor:
        """Return the ρ at which :meth:`warp` has this value."""

    def __call__(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        high, low = self._ends(sde, std)
        return self._times(sde, _equidistant(high, low, steps), std)

    def times_to_data(self, sde: SDE, steps: int, std: float = 1.0, first: float = 1.0) -> Tensor:
        """Return times ``(N+1,)`` for a method that continues from t_min to ρ = 0.

        They are equidistant down to ρ = 0, with t_min in place of ρ = 0. If the last step would
        then be too short, because there are many steps, they are equidistant down to t_min.

        Args:
            sde: the diffusion.
            steps: N >= 1.
            std: standard deviation of the data, 1 if unknown.
            first: length of the first step, relative to the others.

        Returns:
            Float64 times on the CPU, strictly decreasing.
        """
        fraction = torch.arange(check_integer("steps", steps, minimum=1) + 1, dtype=torch.float64)
        fraction[1:] += first - 1
        fraction /= float(fraction[-1])
        high, low = self._ends(sde, std)
        zero = float(self.warp(torch.zeros((), dtype=torch.float64)))
        values = high + (zero - high) * fraction
        if not values[-2] - low > _MIN_LAST_STEP * (low - zero):
            values = high + (low - high) * fraction
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
    """Equidistant in the half log-SNR λ = −ln ρ: the grid of DPM-Solver, or "Lu" spacing.

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
    """Equidistant in ρ^{1/rho}: dense near the data.

    Args:
        rho: the exponent, 7 in EDM.

    Raises:
        ValueError: unless ``rho`` is positive.

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
    """Equidistant in the angle atan(ρ/b), which is 0 at the data and π/2 at pure noise.

    Args:
        pivot: b > 0, in units of the standard deviation of the data.

    Raises:
        ValueError: unless ``pivot`` is positive.

    Example:
        >>> from scoresde import VESDE
        >>> grid = Angle(pivot=0.5)(VESDE(), 2)
        >>> round(float(VESDE().sigma(grid[1])), 2)  # the middle time has ρ ≈ b
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
    """Equidistant in ln((ρ + lower b)/(ρ + upper b)): dense for ρ between lower b and upper b.

    Args:
        pivot: b > 0, in units of the standard deviation of the data.
        lower: the smallest ratio of interest, in units of b.
        upper: the largest.

    Raises:
        ValueError: unless ``pivot`` is positive and 0 <= lower < upper.

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
        quotient = torch.exp(value)
        return (quotient * high - low) / (1 - quotient)


@dataclass(frozen=True)
class Timesteps(Grid):
    """The timesteps of a discrete diffusion such as DDPM: all, or a subset with even spacing.

    N steps use N + 1 timesteps, the first and the last included; indices are rounded.

    Raises:
        TypeError: when called, if the diffusion has no table of timesteps.
        ValueError: when called, if it has fewer than N + 1 timesteps.

    Example:
        >>> from scoresde import DDPM
        >>> Timesteps()(DDPM.linear(), 999)[:3]
        tensor([1.0000, 0.9990, 0.9980], dtype=torch.float64)
    """

    def __call__(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        timesteps = getattr(sde, "times", None)
        if not isinstance(timesteps, Tensor):
            raise TypeError(
                f"sde: expected a discrete diffusion such as DDPM, got {type(sde).__name__}; "
                "use UniformTime()"
            )
        if check_integer("steps", steps, minimum=1) >= len(timesteps):
            raise ValueError(
                f"steps: expected at most {len(timesteps) - 1} for {len(timesteps)} timesteps, got "
                f"{steps}; use UniformTime(), whose times may lie between them"
            )
        index = torch.linspace(len(timesteps) - 1, 0, steps + 1, dtype=torch.float64).round().long()
        return timesteps.cpu()[index].to(torch.float64)


def _equidistant(first: float, last: float, steps: int) -> Tensor:
    return torch.linspace(
        first, last, check_integer("steps", steps, minimum=1) + 1, dtype=torch.float64
    )
