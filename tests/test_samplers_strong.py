"""Strong orders: steps of every length driven by one Brownian path, refined.

All diffusions are told as y = x/α in v = ρ² = (σ/α)², where the noise of the reversed SDE (η = 1)
is a Brownian motion B(v) and nothing else. A sampler's z is the part of B that its own noise stands
for.
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


def flat(ratios):
    """The weights of plain increments: z is the increment of B itself."""
    return torch.ones_like(ratios[1:])


def faded(ratios):
    """The exact step lets earlier noise fade by (ρ_s/ρ)² on its way to s."""
    return (ratios[-1] / ratios[1:]) ** 2


class Path:
    """One Brownian path on the fine grid, summed up for coarser ones."""

    def __init__(self):
        lambdas = torch.linspace(*ENDS, FINE + 1, dtype=torch.float64)
        self.ratios = torch.exp(-lambdas)
        self.scales = (-(self.ratios**2).diff()).sqrt()
        source = torch.Generator().manual_seed(1)
        z = torch.randn(FINE, PATHS, 2, generator=source, dtype=torch.float64)
        self.increments = self.scales[:, None, None] * z

    def noise(self, steps, weigh):
        """The z of each of ``steps`` equal steps, of unit variance."""
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
    """The noise does not depend on the state, so that all of them have order one, not one half.

    Of the median path: a few that change over to another mode would drown a mean.
    """
    score, path = mixture(sde), Path()
    t = float(sde.time_at(torch.tensor(ENDS[0], dtype=torch.float64)))
    start = score.sample(PATHS, t, torch.Generator().manual_seed(0), torch.float64)
    exact = run(Exponential(2, eta=1.0), score, start, path, FINE, faded)
    for sampler, weigh in (
        (EulerMaruyama(), flat),
        (ReverseDiffusion(), flat),
        (Ancestral(), faded),
        (Exponential(2, eta=1.0), faded),
        (Heun(eta=1.0), flat),
    ):
        errors = [
            float((run(sampler, score, start, path, n, weigh) - exact).norm(dim=1).median())
            for n in (64, 128)
        ]
        assert abs(math.log2(errors[0] / errors[1]) - 1) <= 0.25, sampler
