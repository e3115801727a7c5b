"""Laws of the noise within a bin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from scoresde._core.checks import check_positive
from scoresde._core.random import uniform_like
from scoresde._core.shapes import flatten


@runtime_checkable
class Dequantization(Protocol):
    """A law q(u | k) of the position u ∈ [-½, ½]^d within a bin, in bin widths from its centre.

    Both methods see the centre of the bin, ``(batch, *event)``, and its width, shaped ``event``, in
    the model's coordinates and in float64, so that a learned law may depend on the data.
    """

    def sample(
        self, centre: Tensor, width: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Positions u, shaped like ``centre``."""
        ...

    def log_prob(self, u: Tensor, centre: Tensor, width: Tensor) -> Tensor:
        """Log q(u | k) in nats, ``(batch,)``, with respect to du: 0 for the uniform law."""
        ...


def _inside(u: Tensor) -> Tensor:
    """0 within the bin, -inf outside."""
    return torch.where(u.abs() <= 0.5, 0.0, -math.inf).to(u)


@dataclass(frozen=True)
class UniformDequantization:
    """Uniform noise over the bin, q(u | k) = 1: the published convention (Theis et al. 2016)."""

    def sample(
        self, centre: Tensor, width: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Positions u, uniform on [-½, ½), shaped like ``centre``."""
        return uniform_like(centre, generator) - 0.5

    def log_prob(self, u: Tensor, centre: Tensor, width: Tensor) -> Tensor:
        """0 nats within the bin, -inf outside, ``(batch,)``."""
        return flatten(_inside(u)).sum(1)


@dataclass(frozen=True)
class TruncatedNormalDequantization:
    r"""Normal noise around the centre of the bin, truncated to the bin: training-free.

    With s = ``std`` / width and τ = 1/(2s), the bin's half-width in standard deviations,

        log q(u | k) = Σ_i −u_i²/(2s²) − log(s √(2π)) − log erf(τ/√2),    |u_i| ≤ ½.

    A diffusion model has seen the data with noise of standard deviation σ(t)/α(t) (in the data's
    coordinates) and nothing sharper than that of its first time ``t_min``.  With
    ``std = σ(t_min)/α(t_min)`` the dequantized points have the law that the model was trained on,
    cut off at the bin's edges; uniform noise has not.  A very large ``std`` is the uniform law.

    Args:
        std: Standard deviation of the noise before truncation, in the model's coordinates.

    References:
        Zheng et al., "Improved techniques for maximum likelihood estimation for diffusion ODEs",
        ICML 2023, truncated-normal dequantization.

    Example:
        >>> TruncatedNormalDequantization(std=0.0013)
        TruncatedNormalDequantization(std=0.0013)
    """

    std: float

    def __post_init__(self) -> None:
        """Check the standard deviation."""
        hint = "pass σ(t_min)/α(t_min) of the diffusion, exp(-sde.half_logsnr(t_min))"
        object.__setattr__(self, "std", check_positive("std", self.std, hint))

    def sample(
        self, centre: Tensor, width: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Positions u by inversion of the distribution function, shaped like ``centre``."""
        s = self.std / width
        mass = torch.erf(0.5 / (s * math.sqrt(2)))
        quantile = torch.erfinv(mass * uniform_like(centre, generator, lower=-1.0, upper=1.0))
        return (math.sqrt(2) * s * quantile).clamp(-0.5, 0.5)

    def log_prob(self, u: Tensor, centre: Tensor, width: Tensor) -> Tensor:
        """Log q(u | k) in nats, ``(batch,)``; -inf outside of the bin."""
        s = self.std / width
        mass = torch.erf(0.5 / (s * math.sqrt(2)))
        normaliser = torch.log(s * math.sqrt(2 * math.pi) * mass)
        return flatten(_inside(u) - 0.5 * (u / s) ** 2 - normaliser).sum(1)


UNIFORM = UniformDequantization()
