"""The probability flow by SciPy's DOP853 in ρ, where all Gaussian SDEs have one flow."""

from __future__ import annotations

import math

import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from scoresde import EDMSDE, GaussianMixture


def double(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def mixture(sde: object) -> GaussianMixture:
    """Three components of different widths in the plane."""
    means = double([-1.0, -1.0], [1.0, 0.8], [-0.8, 1.2])
    covariances = torch.stack([s * torch.eye(2, dtype=torch.float64) for s in (0.04, 0.09, 0.16)])
    return GaussianMixture(double(0.5, 0.3, 0.2), means, covariances, sde)


def flow_oracle(score: GaussianMixture, start: Tensor, times: Tensor) -> Tensor:
    """Return where dy/d ln ρ = ρ ε̂, y = x/α, takes ``start`` from ``times[0]`` to ``times[-1]``."""
    sde = score.sde
    plain = GaussianMixture(score.weights, score.means, score.covariances, EDMSDE(1e-6, 1e6))
    ends = [-float(sde.half_logsnr(t)) for t in (times[0], times[-1])]

    def slope(log_ratio, flat):
        y, ratio = torch.as_tensor(flat).reshape(start.shape), math.exp(log_ratio)
        return (ratio * plain.noise(y, ratio)).reshape(-1).numpy()

    alpha = sde.alpha(times[0]), sde.alpha(times[-1])
    solution = solve_ivp(
        slope, ends, (start / alpha[0]).reshape(-1).numpy(), method="DOP853", rtol=1e-11, atol=1e-12
    )
    return alpha[1] * torch.as_tensor(solution.y[:, -1]).reshape(start.shape)
