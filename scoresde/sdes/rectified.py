"""The straight path between data and noise."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.sdes.gaussian import GaussianSDE


class RectifiedFlow(GaussianSDE):
    r"""The diffusion whose probability flow is the rectified flow: x_t = (1 − t) x_0 + t ε.

    As for every diffusion here, data are at time 0 and noise at T; at t = 1 the drift x/(t − 1) is
    infinite, so the diffusion ends a little earlier.

    Args:
        T: noise end of time, below 1; the signal scale there is α(T) = 1 − T.
        t_min: data end of numerical work.

    Raises:
        ValueError: unless 0 <= t_min < T < 1.

    Example:
        >>> sde = RectifiedFlow()
        >>> float(sde.alpha(0.25)), float(sde.sigma(0.25))
        (0.75, 0.25)

    References:
        Liu et al., *Flow straight and fast*, 2022, arXiv:2209.03003; Lipman et al., *Flow matching
        for generative modeling*, 2022, arXiv:2210.02747, example II (with time reversed).
    """

    def __init__(self, T: float = 0.999, t_min: float = 1e-5) -> None:
        super().__init__(T, t_min)
        if not T < 1:
            raise ValueError(
                f"T: expected T < 1, got {T!r}; α(1) = 0 and the drift is infinite there"
            )

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log1p(-t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(t)

    def extra_repr(self) -> str:
        return f"T={self.T:g}"
