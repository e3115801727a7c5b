"""The cosine schedule as a diffusion."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde._core.shapes import Time, as_time
from scoresde.sdes.gaussian import GaussianSDE, log_complement


class CosineSDE(GaussianSDE):
    r"""The variance-preserving diffusion with the cosine schedule.

        α(t) = cos(θ_t) / cos(θ_0),   θ_t = (π/2)(t + s)/(1 + s),   σ² = 1 − α².

    At t = 1 nothing is left of the data and log α = −∞; the diffusion therefore ends a little
    earlier, at T, where the default leaves as much signal as the VP SDE does (α ≈ 0.008).

    Args:
        s: offset that keeps the noise from starting too slowly.
        T: noise end of time, below 1.
        t_min: data end of numerical work.

    Raises:
        ValueError: unless s >= 0 and 0 <= t_min < T < 1.

    Example:
        >>> sde = CosineSDE()
        >>> bool(
        ...     torch.isclose(sde.alpha(0.5) ** 2 + sde.sigma(0.5) ** 2, torch.tensor(1.0).double())
        ... )
        True

    References:
        Nichol & Dhariwal, *Improved denoising diffusion probabilistic models*, 2021,
        arXiv:2102.09672, eq. 17.
    """

    def __init__(self, s: float = 0.008, T: float = 0.995, t_min: float = 1e-5) -> None:
        super().__init__(T, t_min)
        if not s >= 0 or not T < 1:
            raise ValueError(f"s, T: expected s >= 0 and T < 1, got s={s!r}, T={T!r}; α(1) = 0")
        self.s = float(s)

    def log_alpha(self, t: Time) -> Tensor:
        """Return log α(t), in float64, shaped like ``t``."""
        time = as_time(t, self.T)
        rate = 0.5 * math.pi / (1 + self.s)
        # cos a / cos b = 1 − 2 sin((a+b)/2) sin((a−b)/2) / cos b keeps its digits near t = 0.
        loss = torch.sin(rate * (0.5 * time + self.s)) * torch.sin(0.5 * rate * time)
        return torch.log1p(-2 * loss / math.cos(rate * self.s))

    def log_sigma(self, t: Time) -> Tensor:
        """Return log σ(t) = ½ log(1 − α²), in float64, shaped like ``t``."""
        return log_complement(self.log_alpha(t))

    def prior_scale(self) -> float:
        """Return 1, the standard deviation of the law that x_t tends to."""
        return 1.0

    def extra_repr(self) -> str:
        """Show the offset and the end."""
        return f"s={self.s:g}, T={self.T:g}"
