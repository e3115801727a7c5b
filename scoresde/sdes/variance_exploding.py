"""Variance-exploding SDEs: α = 1, σ increasing."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.sdes.discrete import NCSN
from scoresde.sdes.gaussian import GaussianSDE


def _check_noise_levels(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            "sigma_min, sigma_max: expected 0 < sigma_min < sigma_max < inf, got "
            f"sigma_min={sigma_min!r}, sigma_max={sigma_max!r}; they are the smallest and the "
            "largest noise level, in units of the data"
        )


class VESDE(GaussianSDE):
    r"""The variance-exploding SDE, the continuous limit of NCSN (SMLD).

    ::

        dx = σ(t) √(2 ln(σ_max/σ_min)) dw,      α = 1,   σ(t) = σ_min (σ_max/σ_min)^t.

    Time 0 is the noise level σ_min, small enough to be negligible in the data.

    Args:
        sigma_min: noise level at t = 0, in units of the data.
        sigma_max: noise level at t = 1; of the order of the largest distance between two data.
        T: noise end of time.
        t_min: data end of numerical work.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max < ∞ and 0 <= t_min < T.

    Example:
        >>> VESDE().sigma(torch.tensor([0.0, 0.5, 1.0]))
        tensor([1.0000e-02, 7.0711e-01, 5.0000e+01])
        >>> scale, std = VESDE().transition(0.0, 1.0)  # σ_max² − σ_min²
        >>> round(float(scale), 5), round(float(std), 4)
        (1.0, 50.0)

    References:
        Song et al. 2021, arXiv:2011.13456, eqs. 9, 30 and 31 (the kernel from x_0 at time 0 has
        variance σ(t)² − σ_min²; ``marginal`` includes σ_min² in the noise, as the paper does).
    """

    def __init__(
        self, sigma_min: float = 0.01, sigma_max: float = 50.0, T: float = 1.0, t_min: float = 1e-5
    ) -> None:
        super().__init__(T, t_min)
        _check_noise_levels(sigma_min, sigma_max)
        self.sigma_min = float(sigma_min)
        self.sigma_max = float(sigma_max)

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def log_sigma(self, t: Tensor) -> Tensor:
        growth = math.log(self.sigma_max / self.sigma_min)
        return math.log(self.sigma_min) + growth * t

    def discretize(self, N: int) -> NCSN:
        """Return the NCSN with N levels, geometric from σ(0) to σ(T).

        Its noise levels are those of this diffusion, at times that differ by O(1/N).

        References:
            Song et al. 2021, arXiv:2011.13456, appendix B.
        """
        return NCSN.geometric(float(self.sigma(0.0)), float(self.sigma(self.T)), N, self.T)

    def extra_repr(self) -> str:
        return f"sigma_min={self.sigma_min:g}, sigma_max={self.sigma_max:g}"


class EDMSDE(GaussianSDE):
    r"""The diffusion of EDM, whose time is the noise level: dx = √(2t) dw, α = 1, σ(t) = t.

    Args:
        sigma_min: the data end of numerical work, ``t_min``, in units of the data.
        sigma_max: the noise end of time, ``T``.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max < ∞.

    Example:
        >>> sde = EDMSDE()
        >>> sde.T, sde.t_min, float(sde.sigma(3.0))
        (80.0, 0.002, 3.0)

    References:
        Karras et al., *Elucidating the design space of diffusion-based generative models*, 2022,
        arXiv:2206.00364, eq. 1 with σ(t) = t and s(t) = 1.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        _check_noise_levels(sigma_min, sigma_max)
        super().__init__(T=sigma_max, t_min=sigma_min)
        self.sigma_min = float(sigma_min)
        self.sigma_max = float(sigma_max)

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(t)

    def extra_repr(self) -> str:
        return f"sigma_min={self.sigma_min:g}, sigma_max={self.sigma_max:g}"
