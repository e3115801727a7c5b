"""The solver libraries take diffusions and their reversals as they are."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torchdiffeq
import torchsde

from scoresde import VESDE, VPSDE, GaussianSDE, SubVPSDE
from scoresde.sdes import MEMBERS

MEMBERS = pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.__qualname__)


def gaussian_score(sde: GaussianSDE, variance: float) -> Callable:
    """The score of data N(0, variance)."""
    return lambda x, t: -x / (sde.alpha(t) ** 2 * variance + sde.sigma(t) ** 2).to(x.dtype)


@MEMBERS
def test_torchdiffeq_carries_gaussian_data_both_ways(member):
    """The flow of N(0, c) is x ∝ √(α²c + σ²)."""
    sde, c = member(), 0.3
    flow = sde.reverse(gaussian_score(sde, c), eta=0.0)

    def size(t):
        return torch.sqrt(sde.alpha(t) ** 2 * c + sde.sigma(t) ** 2)

    x = torch.randn(4, 2, dtype=torch.float64)
    low, high = max(sde.t_min, 1e-3 * sde.T), sde.T
    for start, end in ((low, high), (high, low)):
        times = torch.tensor([start, end], dtype=torch.float64)
        moved = torchdiffeq.odeint(flow, x, times, rtol=1e-7, atol=1e-8)[-1]
        exact = x * size(end) / size(start)
        torch.testing.assert_close(moved, exact, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=str)
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_torchsde_samples_gaussian_data(sde, eta):
    """Variance of 4000 paths against the data's, allowing 5 standard errors and Euler's bias."""
    c, n, steps = 0.5, 4000, 200
    reverse = sde.reverse(gaussian_score(sde, c), eta)
    start = math.sqrt(float(sde.alpha(1.0) ** 2 * c + sde.sigma(1.0) ** 2))
    x = start * torch.randn(n, 1, dtype=torch.float64)
    times = torch.tensor([0.0, 1.0 - 1e-3], dtype=torch.float64)
    motion = torchsde.BrownianInterval(0.0, 1.0, size=x.shape, dtype=x.dtype, entropy=7)
    with torch.no_grad():
        y = torchsde.sdeint(reverse, x, times, bm=motion, method="euler", dt=1 / steps)[-1]
    assert abs(float(y.var()) / c - 1) < 5 * math.sqrt(2 / n) + 0.08
    assert abs(float(y.mean())) < 5 * math.sqrt(c / n)


def test_torchsde_runs_the_forward_diffusion_too():
    sde, n = VPSDE(), 4000
    x0 = torch.full((n, 1), 2.0, dtype=torch.float64)
    motion = torchsde.BrownianInterval(0.0, 1.0, size=x0.shape, dtype=x0.dtype, entropy=3)
    times = torch.tensor([0.0, 0.4], dtype=torch.float64)
    y = torchsde.sdeint(sde, x0, times, bm=motion, method="euler", dt=2e-3)[-1]
    scale, std = sde.transition(0.0, 0.4)
    assert abs(float(y.mean()) - 2 * float(scale)) < 5 * float(std) / math.sqrt(n) + 0.01
    assert abs(float(y.var() / std**2) - 1) < 5 * math.sqrt(2 / n) + 0.01


def test_event_shapes_are_flattened_for_torchsde():
    sde, event = VPSDE(), (2, 3)
    seen = []

    def score(x, t):
        seen.append(x.shape)
        return -x

    x = torch.randn(4, 6)
    flat, whole = sde.reverse(score, event_shape=event), sde.reverse(score)
    s = torch.tensor(0.25)
    torch.testing.assert_close(
        flat.f(s, x).reshape(4, *event), -whole.drift(x.reshape(4, *event), 0.75)
    )
    assert flat.g(s, x).shape == x.shape
    y = torchsde.sdeint(flat, x, torch.tensor([0.0, 0.9]), dt=0.1, method="euler")
    assert y.shape == (2, 4, 6)
    assert set(seen) == {(4, *event)}


def test_solvers_may_look_past_the_ends():
    sde = VPSDE()
    flow = sde.reverse(lambda x, t: torch.sin(x) - x, 0.0)
    x = torch.randn(2, 3)
    assert torch.equal(flow(torch.tensor(-0.1), x), flow.drift(x, 0.0))
    assert torch.equal(flow(torch.tensor(1.2), x), flow.drift(x, 1.0))
    assert torch.equal(sde(torch.tensor(-0.1), x), sde.drift(x, 0.0))
    assert torch.equal(sde.g(torch.tensor(1.3), x), sde.diffusion(torch.ones(())).expand(2, 3))
