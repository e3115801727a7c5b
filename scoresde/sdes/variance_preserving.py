"""The two SDEs of Song et al. whose signal decays at a linear rate β(t): VP and sub-VP."""

from __future__ import annotations

from torch import Tensor

from scoresde._core.shapes import Time, as_time
from scoresde.sdes.discrete import DDPM
from scoresde.sdes.gaussian import GaussianSDE, log_complement


class _LinearRate(GaussianSDE):
    """α(t) = exp(−B(t)/2) with B(t) = ∫₀ᵗ β = β_min t + ½ (β_max − β_min) t²."""

    def __init__(
        self, beta_min: float = 0.1, beta_max: float = 20.0, T: float = 1.0, t_min: float = 1e-5
    ) -> None:
        super().__init__(T, t_min)
        if not 0 <= beta_min <= beta_max or not 0 < beta_max < float("inf"):
            raise ValueError(
                "beta_min, beta_max: expected 0 <= beta_min <= beta_max, beta_max > 0 and finite, "
                f"got beta_min={beta_min!r}, beta_max={beta_max!r}; they are rates per unit of "
                "time (N times the first and last beta of a table with N steps)"
            )
        self.beta_min = float(beta_min)
        self.beta_max = float(beta_max)

    def beta(self, t: Time) -> Tensor:
        """Return the rate β(t) = β_min + (β_max − β_min) t, in float64, shaped like ``t``."""
        return self.beta_min + (self.beta_max - self.beta_min) * as_time(t, self.T)

    def log_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def prior_scale(self) -> float:
        return 1.0

    def extra_repr(self) -> str:
        return f"beta_min={self.beta_min:g}, beta_max={self.beta_max:g}"


class VPSDE(_LinearRate):
    r"""The variance-preserving SDE, the continuous limit of DDPM.

    ::

        dx = −½ β(t) x dt + √β(t) dw,      α = e^{−B/2},   σ² = 1 − e^{−B},
        β(t) = β_min + (β_max − β_min) t,  B(t) = ∫₀ᵗ β.

    Args:
        beta_min: rate at t = 0, per unit of time.
        beta_max: rate at t = 1, per unit of time.
        T: noise end of time.
        t_min: data end of numerical work.

    Raises:
        ValueError: unless 0 <= beta_min <= beta_max < ∞, beta_max > 0 and 0 <= t_min < T.

    Example:
        >>> import torch
        >>> sde = VPSDE()
        >>> sde.diffusion(0.0) ** 2, sde.diffusion(1.0) ** 2
        (tensor(0.1000, dtype=torch.float64), tensor(20., dtype=torch.float64))
        >>> mean, std = sde.marginal(torch.ones(3, 2), 1.0)
        >>> round(float(mean[0, 0]), 5), round(float(std), 5)
        (0.00657, 0.99998)

    References:
        Song et al. 2021, arXiv:2011.13456, eqs. 11, 25, 29 and 32.
    """

    def log_sigma(self, t: Tensor) -> Tensor:
        return log_complement(self.log_alpha(t))

    def discretize(self, N: int) -> DDPM:
        """Return the DDPM with N steps whose β_i rise linearly from β(0) T/N to β(T) T/N.

        Its α and σ at the timesteps differ from this diffusion's by O(1/N).

        Raises:
            ValueError: if N is so small that some β_i would exceed 1, or β(0) = 0.

        References:
            Song et al. 2021, arXiv:2011.13456, appendix B and E.
        """
        first, last = (float(self.beta(t)) / N for t in (0.0, self.T))
        return DDPM.linear(first * self.T, last * self.T, N, self.T)


class SubVPSDE(_LinearRate):
    r"""The sub-VP SDE: the mean of VP with a smaller variance, made for likelihoods.

    ::

        dx = −½ β(t) x dt + √(β(t)(1 − e^{−2B})) dw,      α = e^{−B/2},   σ = 1 − e^{−B}.

    Args:
        beta_min: rate at t = 0, per unit of time.
        beta_max: rate at t = 1, per unit of time.
        T: noise end of time.
        t_min: data end of numerical work.

    Raises:
        ValueError: unless 0 <= beta_min <= beta_max < ∞, beta_max > 0 and 0 <= t_min < T.

    Example:
        >>> import torch
        >>> t = torch.tensor([0.1, 0.5, 1.0])
        >>> bool((SubVPSDE().sigma(t) < VPSDE().sigma(t)).all())
        True

    References:
        Song et al. 2021, arXiv:2011.13456, eqs. 12, 27, 29 and 33.
    """

    def log_sigma(self, t: Tensor) -> Tensor:
        return 2 * log_complement(self.log_alpha(t))
