"""Labels: the functions of time that are inputs of networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.sdes.gaussian import GaussianSDE

__all__ = [
    "IndexLabel",
    "Label",
    "LogSNRLabel",
    "RatioLabel",
    "SigmaLabel",
    "TimeLabel",
    "by_half_logsnr",
    "by_index",
    "by_ratio",
    "by_sigma",
    "by_time",
]


@dataclass(frozen=True)
class Label(ABC):
    """The time input of a network: a function ``(sde, t) -> label``, shaped like ``t``."""

    @abstractmethod
    def __call__(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        """Return the label for float64 times, shaped like ``t``."""


@dataclass(frozen=True)
class TimeLabel(Label):
    """The label is scale · t (999 t for the published continuous VP networks)."""

    scale: float = 1.0

    def __call__(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        """Return scale · t."""
        return self.scale * t


@dataclass(frozen=True)
class SigmaLabel(Label):
    """The label is σ(t), as in the published continuous VE networks."""

    def __call__(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        """Return σ(t)."""
        return torch.exp(sde.log_sigma(t))


@dataclass(frozen=True)
class RatioLabel(Label):
    """The label is ρ = σ/α, the noise level that EDM's and k-diffusion's denoisers take."""

    def __call__(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        """Return ρ(t)."""
        return torch.exp(-sde.half_logsnr(t))


@dataclass(frozen=True)
class LogSNRLabel(Label):
    """The label is scale · λ(t), λ = log α − log σ; EDM's c_noise = ¼ ln ρ is scale = −¼."""

    scale: float = 1.0

    def __call__(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        """Return scale · λ(t)."""
        return self.scale * sde.half_logsnr(t)


@dataclass(frozen=True)
class IndexLabel(Label):
    """The label is the index 0 … N−1 of the SDE's table, linearly interpolated."""

    def __call__(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        """Return the table's index at ``t``."""
        return sde.index_at(t)


by_time = TimeLabel()
by_sigma = SigmaLabel()
by_ratio = RatioLabel()
by_half_logsnr = LogSNRLabel()
by_index = IndexLabel()
