"""Strong orders: steps of every length driven by one Brownian path, refined.

All diffusions are written as y = x/α with time v = ρ² = (σ/α)², where the noise of the reverse SDE
(η = 1) is a Brownian motion B(v). The z of a sampler is the functional of B that its step
approximates.
"""

import math

import pytest
import torch

from scoresde import VESDE, VPSDE, GaussianMixture, SubVPSDE
from scoresde.samplers import Ancestral, EulerMaruyama, Exponential, Heun, ReverseDiffusion, iterate

FINE, PATHS = 2048, 256
ENDS = (-2.0, 1.5)
SDES = [VPSDE(), SubVPSDE(), VESDE()]


def mixture(sde):
    means = torch.tensor([[-1.0, -1.0], [1.0, 0.8]], dtype=torch.float64)
    covariances = 0.09 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    return GaussianMixture(torch.tensor([0.6, 0.4]), means, covariances, sde)


def unit_weights(ratios):
    """z is proportional to the increment of B."""
    return torch.ones_like(ratios[1:])


def decaying_weights(ratios):
    """In the exact step, earlier noise decays by (ρ_s/ρ)² until s."""
    return (ratios[-1] / ratios[1:]) ** 2


class Path:
    """One Brownian path on a fine grid, and its increments on coarser grids."""

    def __init__(self):
        lambdas = torch.linspace(*ENDS, FINE + 1, dtype=torch.float64)
        self.ratios = torch.exp(-lambdas)
        self.scales = (-(self.ratios**2).diff()).sqrt()
        source = torch.Generator().manual_seed(1)
        z = torch.randn(FINE, PATHS, 2, generator=source, dtype=torch.float64)
        self.increments = self.scales[:, None, None] * z

    def noise(self, steps, weigh):
        """Return a noise function with the z of each of ``steps`` equal steps, of unit variance."""
        stride, normals = FINE // steps, []
        for k in range(0, FINE, stride):
            weights = weigh(self.ratios[k : k + stride + 1])
            total = torch.einsum("i,ijk->jk", weights, self.increments[k : k + stride])
            normals.append(total / (weights * self.scales[k : k + stride]).norm())
        pending = iter(normals)
        return lambda x: next(pending)


def run(sampler, score, start, path, steps, weigh):
    times = score.sde.time_at(torch.linspace(*ENDS, steps + 1, dtype=torch.float64))
    *_, (x, _) = iterate(score, start, times, sampler, path.noise(steps, weigh))
    return x


@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_strong_order_one(sde):
    """The diffusion does not depend on the state, so that the order is one instead of one half.

    Of the median path, since a mean is dominated by the few paths that change to another mode.
    """
    score, path = mixture(sde), Path()
    t = float(sde.time_at(torch.tensor(ENDS[0], dtype=torch.float64)))
    start = score.sample(PATHS, t, torch.Generator().manual_seed(0), torch.float64)
    exact = run(Exponential(2, eta=1.0), score, start, path, FINE, decaying_weights)
    for sampler, weigh in (
        (EulerMaruyama(), unit_weights),
        (ReverseDiffusion(), unit_weights),
        (Ancestral(), decaying_weights),
        (Exponential(2, eta=1.0), decaying_weights),
        (Heun(eta=1.0), unit_weights),
    ):
        errors = [
            float((run(sampler, score, start, path, n, weigh) - exact).norm(dim=1).median())
            for n in (64, 128)
        ]
        assert abs(math.log2(errors[0] / errors[1]) - 1) <= 0.25, sampler
