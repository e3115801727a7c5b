"""SDEs for tests that are not Gaussian SDEs: a drift, a diffusion and no kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from scoresde._core.checks import check_positive
from scoresde._core.shapes import Time, as_time, like_time
from scoresde.sdes import SDE


class OrnsteinUhlenbeck(SDE):
    r"""The Ornstein–Uhlenbeck process dx = θ (μ − x) dt + √(2D) dw; its drift is affine in x.

    Args:
        theta: θ > 0, the rate of mean reversion.
        mu: μ, the mean.
        D: diffusion constant; the stationary distribution is N(μ, D/θ).
        T: noise end of time.

    Example:
        >>> OrnsteinUhlenbeck().drift(torch.zeros(1), 0.5)
        tensor([3.])
    """

    def __init__(self, theta: float = 1.5, mu: float = 2.0, D: float = 0.7, T: float = 2.0) -> None:
        super().__init__(T)
        self.theta = check_positive("theta", theta)
        self.mu = float(mu)
        self.D = check_positive("D", D)

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """Return θ (μ − x)."""
        return self.theta * (self.mu - x)

    def diffusion(self, t: Time) -> Tensor:
        """Return √(2D), shaped like ``t``."""
        return like_time(torch.full_like(as_time(t, self.T), math.sqrt(2 * self.D)), t)

    def score(self, x: Tensor, t: Time) -> Tensor:
        """Return the score of the stationary distribution."""
        return (self.mu - x) * (self.theta / self.D)

    def prior(
        self,
        event_shape: Sequence[int],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Distribution:
        """Return the stationary distribution."""
        mean = torch.full(tuple(event_shape), self.mu, dtype=dtype, device=device)
        scale = torch.full_like(mean, math.sqrt(self.D / self.theta))
        return Independent(Normal(mean, scale, validate_args=False), mean.ndim, validate_args=False)


class DoubleWell(SDE):
    r"""A double-well potential: dx = (x − x³) dt + g dw.

    Its stationary density is proportional to e^{(x² − x⁴/2)/g²}.

    Args:
        noise: g > 0.
        T: noise end of time.

    Example:
        >>> DoubleWell().drift(torch.tensor([0.5, 1.0]), 0.5)
        tensor([0.3750, 0.0000])
    """

    def __init__(self, noise: float = 0.8, T: float = 1.0) -> None:
        super().__init__(T)
        self.noise = check_positive("noise", noise)

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """Return x − x³."""
        return x - x**3

    def diffusion(self, t: Time) -> Tensor:
        """Return g, shaped like ``t``."""
        return like_time(torch.full_like(as_time(t, self.T), self.noise), t)

    def score(self, x: Tensor, t: Time) -> Tensor:
        """Return the score of the stationary distribution."""
        return (2 * x - 2 * x**3) / self.noise**2
