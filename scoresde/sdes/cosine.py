"""The cosine schedule as a diffusion."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.sdes.gaussian import GaussianSDE, log_complement


class CosineSDE(GaussianSDE):
    r"""The variance-preserving diffusion with the cosine schedule.

    ::

        α(t) = cos(θ_t) / cos(θ_0),   θ_t = (π/2)(t + s)/(1 + s),   σ² = 1 − α².

    At t = 1 the signal is zero and log α = −∞; the diffusion therefore ends a little earlier, at
    the default T with the signal scale of the VP SDE (α ≈ 0.008).

    Args:
        s: offset of the schedule; without it σ grows too slowly near t = 0.
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

    def log_alpha(self, t: Tensor) -> Tensor:
        rate = 0.5 * math.pi / (1 + self.s)
        # cos a / cos b = 1 − 2 sin((a+b)/2) sin((a−b)/2) / cos b does not cancel near t = 0
        loss = torch.sin(rate * (0.5 * t + self.s)) * torch.sin(0.5 * rate * t)
        return torch.log1p(-2 * loss / math.cos(rate * self.s))

    def log_sigma(self, t: Tensor) -> Tensor:
        return log_complement(self.log_alpha(t))

    def prior_scale(self) -> float:
        return 1.0

    def extra_repr(self) -> str:
        return f"s={self.s:g}, T={self.T:g}"
