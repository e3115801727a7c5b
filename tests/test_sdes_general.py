"""SDEs that are not Gaussian: a drift and a diffusion are enough for all but a denoiser."""

from __future__ import annotations

import math

import pytest
import torch
import torchdiffeq
import torchsde
from scipy.integrate import quad
from torch.distributions import Independent, Normal

from scoresde import SDE, FunctionScore
from scoresde._core.shapes import as_time, like_time


class OrnsteinUhlenbeck(SDE):
    """dx = θ (μ − x) dt + √(2D) dw: Gaussian, but its drift is not f(t) x."""

    def __init__(self, theta: float = 1.5, mu: float = 2.0, D: float = 0.7, T: float = 2.0) -> None:
        super().__init__(T)
        self.theta, self.mu, self.D = theta, mu, D

    def drift(self, x, t):
        return self.theta * (self.mu - x)

    def diffusion(self, t):
        return like_time(torch.full_like(as_time(t, self.T), math.sqrt(2 * self.D)), t)

    def marginal_at(self, t, mean: float, variance: float):
        """Mean and variance at t from those at 0."""
        fade = torch.exp(-self.theta * torch.as_tensor(t, dtype=torch.float64))
        std = self.D / self.theta
        return self.mu + fade * (mean - self.mu), std + fade**2 * (variance - std)

    def prior(self, event_shape, *, dtype=None, device=None):
        mean = torch.full(tuple(event_shape), self.mu, dtype=dtype, device=device)
        scale = torch.full_like(mean, math.sqrt(self.D / self.theta))
        return Independent(Normal(mean, scale), mean.ndim)


class DoubleWell(SDE):
    """dx = (x − x³) dt + g dw with the stationary density p(x) ∝ exp((x² − x⁴/2)/g²)."""

    def drift(self, x, t):
        return x - x**3

    def diffusion(self, t):
        return like_time(torch.full_like(as_time(t, self.T), 0.8), t)

    def score(self, x, t):
        return (2 * x - 2 * x**3) / 0.64


class Accelerating(SDE):
    """A time-dependent g and a drift that mixes coordinates."""

    def drift(self, x, t):
        return torch.roll(x, 1, dims=-1) - x

    def diffusion(self, t):
        return like_time(0.1 + as_time(t, self.T), t)


def ou_score(sde: OrnsteinUhlenbeck, mean: float, variance: float):
    def score(x, t):
        m, v = sde.marginal_at(t, mean, variance)
        m, v = (c.reshape(-1, *(1,) * (x.ndim - 1)).to(x.dtype) for c in (m, v))
        return (m - x) / v

    return score


EVENTS = [(), (5,), (1, 8, 8), (3, 4, 4, 4)]


@pytest.mark.parametrize("sde", [OrnsteinUhlenbeck(), DoubleWell()], ids=["ou", "well"])
@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_the_reverse_family_of_any_sde(sde, event):
    x = torch.randn(3, *event, dtype=torch.float64)
    score = torch.cos
    for eta in (0.0, 0.5, 1.0):
        reverse = sde.reverse(lambda y, t: score(y), eta)
        for t in (0.4, torch.tensor(0.4), torch.full((3,), 0.4, dtype=torch.float64)):
            g2 = float(sde.diffusion(0.4)) ** 2
            expected = sde.drift(x, t) - 0.5 * (1 + eta**2) * g2 * score(x)
            torch.testing.assert_close(reverse.drift(x, t), expected)
            torch.testing.assert_close(reverse.diffusion(t), eta * sde.diffusion(t))
    twice = sde.reverse(lambda y, t: score(y)).reverse(lambda y, t: score(y))
    torch.testing.assert_close(twice.drift(x, 0.4), sde.drift(x, 0.4))


def test_a_stationary_distribution_has_no_flow_and_is_its_own_reversal():
    """In equilibrium the probability flow is zero, and the reverse SDE is the forward one."""
    well, x = DoubleWell(), torch.randn(6, 2, dtype=torch.float64)
    flow = well.reverse(well.score, 0.0)
    torch.testing.assert_close(flow.drift(x, 0.5), torch.zeros_like(x), rtol=0, atol=1e-14)
    torch.testing.assert_close(well.reverse(well.score).drift(x, 0.5), -well.drift(x, 0.5))


def test_torchdiffeq_transports_the_ornstein_uhlenbeck_marginals():
    sde, mean, variance = OrnsteinUhlenbeck(), -1.0, 0.2
    flow = sde.reverse(ou_score(sde, mean, variance), 0.0)
    x = torch.randn(5, 3, dtype=torch.float64)
    for start, end in ((0.0, 2.0), (2.0, 0.0)):
        times = torch.tensor([start, end], dtype=torch.float64)
        moved = torchdiffeq.odeint(flow, x, times, rtol=1e-8, atol=1e-9)[-1]
        (m0, v0), (m1, v1) = (sde.marginal_at(t, mean, variance) for t in (start, end))
        torch.testing.assert_close(moved, m1 + (x - m0) * torch.sqrt(v1 / v0), rtol=1e-5, atol=1e-5)


def test_torchsde_reverses_the_ornstein_uhlenbeck_process():
    """Mean and variance of 4000 paths within 5 standard errors and 2 % of Euler's bias."""
    sde, mean, variance, n = OrnsteinUhlenbeck(), -1.0, 0.2, 4000
    reverse = sde.reverse(ou_score(sde, mean, variance))
    m, v = sde.marginal_at(2.0, mean, variance)
    x = m + torch.sqrt(v) * torch.randn(n, 1, dtype=torch.float64)
    motion = torchsde.BrownianInterval(0.0, 2.0, size=x.shape, dtype=x.dtype, entropy=1)
    times = torch.tensor([0.0, 2.0], dtype=torch.float64)
    y = torchsde.sdeint(reverse, x, times, bm=motion, method="euler", dt=0.01)[-1]
    assert abs(float(y.mean()) - mean) < 5 * math.sqrt(variance / n) + 0.02
    assert abs(float(y.var()) / variance - 1) < 5 * math.sqrt(2 / n) + 0.05


def test_torchsde_preserves_the_stationary_double_well():
    """E x² and E x⁴ of 4000 paths; 5 standard errors and 2 % of Euler's bias."""
    well, n = DoubleWell(), 4000

    def density(x):
        return math.exp((x**2 - x**4 / 2) / 0.64)

    norm = quad(density, -4, 4)[0]
    moments = [quad(lambda x, k=k: x**k * density(x) / norm, -4, 4)[0] for k in (2, 4, 8)]
    grid = torch.linspace(-4, 4, 20_001, dtype=torch.float64)
    mass = torch.exp((grid**2 - grid**4 / 2) / 0.64).cumsum(0)
    x = grid[torch.searchsorted(mass / mass[-1], torch.rand(n, dtype=torch.float64))][:, None]
    motion = torchsde.BrownianInterval(0.0, 1.0, size=x.shape, dtype=x.dtype, entropy=5)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for sde in (well, well.reverse(well.score)):
        y = torchsde.sdeint(sde, x, times, bm=motion, method="euler", dt=0.01)[-1]
        second, fourth = float((y**2).mean()), float((y**4).mean())
        error2 = math.sqrt((moments[1] - moments[0] ** 2) / n)
        error4 = math.sqrt((moments[2] - moments[1] ** 2) / n)
        assert abs(second - moments[0]) < 5 * error2 + 0.02 * moments[0]
        assert abs(fourth - moments[1]) < 5 * error4 + 0.03 * moments[1]


def test_time_dependent_coefficients_reach_the_solvers():
    sde, y = Accelerating(), torch.randn(3, 4)
    s = torch.tensor(0.2)
    torch.testing.assert_close(sde.g(s, y), torch.full_like(y, 0.3))
    reverse = sde.reverse(lambda x, t: -x)
    torch.testing.assert_close(reverse.g(s, y), torch.full_like(y, 0.9))
    torch.testing.assert_close(reverse.f(s, y), -(sde.drift(y, 0.8) + 0.81 * y))
    torch.testing.assert_close(sde(s, y), sde.drift(y, 0.2))
    assert (sde.noise_type, sde.sde_type) == ("diagonal", "ito")
    assert (reverse.noise_type, reverse.sde_type) == ("diagonal", "ito")


def test_a_general_sde_has_a_score_but_no_denoiser():
    well = DoubleWell()
    score = FunctionScore(well.score, well)
    x = torch.randn(4, 2)
    torch.testing.assert_close(score(x, 0.3), well.score(x, 0.3))
    for quantity in (score.denoised, score.noise, score.velocity):
        with pytest.raises(TypeError, match="GaussianSDE"):
            quantity(x, 0.3)


def test_priors_are_the_users():
    with pytest.raises(NotImplementedError, match="DoubleWell has no prior"):
        DoubleWell().prior((2,))
    prior = OrnsteinUhlenbeck().reverse(lambda x, t: -x).prior((2, 3))
    assert prior.event_shape == (2, 3)
    assert prior.mean[0, 0] == 2.0


def test_an_sde_must_define_drift_and_diffusion():
    class Half(SDE):
        def drift(self, x, t):
            return x

    with pytest.raises(TypeError, match="abstract"):
        Half()
