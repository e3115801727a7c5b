r"""Distributions of the time t in :func:`~scoresde.training.losses.dsm_loss`.

A distribution that is not uniform either has an importance weight that compensates for it, so that
only the variance of the loss changes (:class:`Stratified`, :class:`ImportanceSampled`), or it is
part of the objective, with weight 1 (:class:`LogNormal`, :class:`TableTimes`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde._core.checks import (
    check_floating,
    check_instance,
    check_number,
    check_positive,
    summarize,
)
from scoresde._core.random import uniform
from scoresde.sdes import GaussianSDE
from scoresde.training.weightings import LikelihoodWeighting

__all__ = [
    "ImportanceSampled",
    "LogNormal",
    "Stratified",
    "TableTimes",
    "TimeSampler",
    "Uniform",
]

_LEAST_MASS = 1e-6
"""A distribution of noise levels with less mass than this on the SDE's range is refused."""


@dataclass(frozen=True)
class TimeSampler(ABC):
    """A distribution of t on [t_min, T], as a map of uniform numbers to times, and its weight."""

    @abstractmethod
    def at(self, sde: GaussianSDE, level: Tensor) -> tuple[Tensor, Tensor]:
        """Map uniform numbers to times, by the inverse of the cumulative distribution function.

        Args:
            sde: the diffusion.
            level: numbers in [0, 1], float64 ``(n,)``.

        Returns:
            t ``(n,)`` and importance weight ``(n,)``, in float64.
        """

    def draw(
        self,
        sde: GaussianSDE,
        n: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw ``n`` times.

        Args:
            sde: the diffusion.
            n: number of times.
            generator: source of randomness; None for PyTorch's global one.
            device: device of the results, the CPU if None.

        Returns:
            t ``(n,)`` and importance weight ``(n,)``, in float64.
        """
        return self.at(sde, uniform((n,), generator=generator, dtype=torch.float64, device=device))


@dataclass(frozen=True)
class Uniform(TimeSampler):
    """Times uniform on [t_min, T], with weight 1.

    Example:
        >>> from scoresde import VPSDE
        >>> t, weight = Uniform().draw(VPSDE(), 1000, torch.Generator().manual_seed(0))
        >>> round(float(t.mean()), 1), float(weight.mean())
        (0.5, 1.0)
    """

    def at(self, sde: GaussianSDE, level: Tensor) -> tuple[Tensor, Tensor]:
        return sde.t_min + (sde.T - sde.t_min) * level, torch.ones_like(level)


@dataclass(frozen=True)
class Stratified(TimeSampler):
    """Stratified sampling: one draw in each of n strata of equal probability, in random order.

    Each time has the distribution ``base``; together they cover it evenly, so that means over a
    batch have a smaller variance. The expectation is unchanged.

    Args:
        base: the distribution to stratify.

    Example:
        >>> from scoresde import VPSDE
        >>> t, weight = Stratified().draw(VPSDE(), 4, torch.Generator().manual_seed(0))
        >>> sorted((4 * t).int().tolist())
        [0, 1, 2, 3]

    References:
        Kingma et al. 2021, arXiv:2107.00630, appendix I.1 (where one offset shifts all strata).
    """

    base: TimeSampler = Uniform()

    def __post_init__(self) -> None:
        check_instance("base", self.base, TimeSampler, "Uniform()")

    def at(self, sde: GaussianSDE, level: Tensor) -> tuple[Tensor, Tensor]:
        return self.base.at(sde, level)

    def draw(
        self,
        sde: GaussianSDE,
        n: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, Tensor]:
        within = uniform((n,), generator=generator, dtype=torch.float64, device=device)
        source = within.device if generator is None else generator.device
        strata = torch.randperm(n, generator=generator, device=source).to(within.device)
        return self.base.at(sde, (strata + within) / n)


@dataclass(frozen=True)
class ImportanceSampled(TimeSampler):
    r"""Times with density proportional to g²/σ² = −2 λ′, that is uniform in the half log-SNR λ.

    The importance weight is (λ(t_min) − λ(T)) / ((T − t_min) (−λ′)). Its product with
    :class:`LikelihoodWeighting` is constant, which removes the variance that this weighting causes
    near t = 0.

    Example:
        >>> from scoresde import VPSDE
        >>> sde = VPSDE()
        >>> t, weight = ImportanceSampled().draw(sde, 1000, torch.Generator().manual_seed(0))
        >>> product = weight * LikelihoodWeighting()(sde, t)
        >>> bool(torch.allclose(product, product[0]))
        True

    References:
        Song, Durkan, Murray & Ermon 2021, arXiv:2101.09258, on variance reduction; Kingma et al.
        2021, arXiv:2107.00630, section 5 (a loss that depends on λ alone).
    """

    def at(self, sde: GaussianSDE, level: Tensor) -> tuple[Tensor, Tensor]:
        high, low = _half_logsnr_range(sde)
        t = sde.time_at(high - (high - low) * level)
        slope = 0.5 * LikelihoodWeighting()(sde, t)
        return t, (high - low) / ((sde.T - sde.t_min) * slope)


@dataclass(frozen=True)
class LogNormal(TimeSampler):
    r"""Noise levels ρ = σ/α with ln ρ ~ N(mean, std²), truncated to those of [t_min, T]; weight 1.

    The distribution of EDM. It is part of EDM's objective and is not compensated by a weight. Under
    :class:`~scoresde.sdes.RectifiedFlow` ln ρ = logit t, so that ``LogNormal(0, 1)`` is the
    logit-normal distribution of flow matching.

    Args:
        mean: mean of ln ρ.
        std: standard deviation of ln ρ.

    Raises:
        ValueError: if ``std`` is not positive, or, when drawn, if the diffusion has none of these
            noise levels.

    Example:
        >>> from scoresde import EDMSDE
        >>> t, weight = LogNormal().draw(EDMSDE(), 10_000, torch.Generator().manual_seed(0))
        >>> round(float(t.log().mean()), 1), round(float(t.log().std()), 1)
        (-1.2, 1.2)

    References:
        Karras et al. 2022, arXiv:2206.00364, table 1; Esser et al., *Scaling rectified flow
        transformers*, 2024, arXiv:2403.03206, section 3.1.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        check_number("mean", self.mean)
        check_positive("std", self.std)

    def at(self, sde: GaussianSDE, level: Tensor) -> tuple[Tensor, Tensor]:
        high, low = _half_logsnr_range(sde)
        first, last = (self._cdf(-end) for end in (high, low))
        if last - first < _LEAST_MASS:
            raise ValueError(
                "mean, std: expected a distribution of ln(sigma/alpha) that overlaps the range "
                f"{-high:.3g} … {-low:.3g} of this SDE, got {self}; its mean is in natural "
                "logarithms"
            )
        normal = torch.special.ndtri(first + (last - first) * level)
        log_ratio = (self.mean + self.std * normal).clamp(-high, -low)
        return sde.time_at(-log_ratio), torch.ones_like(level)

    def _cdf(self, log_ratio: float) -> float:
        return 0.5 * math.erfc((self.mean - log_ratio) / (self.std * math.sqrt(2)))


@dataclass(frozen=True, eq=False, repr=False)
class TableTimes(TimeSampler):
    """Times of a table, each with the same probability; weight 1: the losses of DDPM and NCSN.

    Args:
        times: the timesteps ``(N,)``, such as those of a discretized diffusion.

    Raises:
        TypeError: if ``times`` is no floating-point tensor.
        ValueError: if it is empty, not finite, negative, or has more than one dimension.

    Example:
        >>> from scoresde import VPSDE
        >>> time_sampler = TableTimes(torch.tensor([0.25, 0.5, 1.0]))
        >>> t, weight = time_sampler.draw(VPSDE(), 100, torch.Generator().manual_seed(0))
        >>> t.unique().tolist()
        [0.25, 0.5, 1.0]
    """

    times: Tensor

    def __post_init__(self) -> None:
        times = check_floating("times", self.times)
        if times.ndim != 1 or times.numel() == 0 or not bool(times.isfinite().all()):
            raise ValueError(
                f"times: expected a tensor (N,) of finite times, N >= 1, got {summarize(times)}; "
                "pass the timesteps of the table, such as sde.times"
            )
        if bool((times < 0).any()):
            raise ValueError(
                f"times: expected times in [0, T], got {float(times.min()):g}; the data are at 0"
            )
        object.__setattr__(self, "times", times.detach().to(torch.float64).clone())

    def at(self, sde: GaussianSDE, level: Tensor) -> tuple[Tensor, Tensor]:
        times = self.times.to(level.device)
        index = (level * len(times)).long().clamp(max=len(times) - 1)
        return times[index], torch.ones_like(level)

    def __repr__(self) -> str:
        low, high = (float(end) for end in torch.aminmax(self.times))
        return f"TableTimes({len(self.times)} times in [{low:g}, {high:g}])"


def _half_logsnr_range(sde: GaussianSDE) -> tuple[float, float]:
    """λ at t_min, and at T."""
    ends = sde.half_logsnr(sde.interior(torch.tensor([sde.t_min, sde.T], dtype=torch.float64)))
    high, low = ends.tolist()
    return high, low
