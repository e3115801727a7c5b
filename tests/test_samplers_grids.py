"""Grids of times against their formulas, on every diffusion."""

import math

import pytest
import torch
from families import STRATEGIES
from hypothesis import given
from hypothesis import strategies as st
from naming import named

from scoresde import DDPM, NCSN, SDE, VESDE, VPSDE
from scoresde.samplers import (
    Angle,
    Karras,
    LogMobius,
    ReverseDiffusion,
    Scheduled,
    Timesteps,
    UniformLogSNR,
    UniformTime,
    sample,
)

GRIDS = [
    UniformTime(),
    UniformTime(power=2.0),
    UniformLogSNR(),
    Karras(),
    Karras(rho=3.0),
    Angle(),
    Angle(pivot=0.3),
    LogMobius(),
]


class Brownian(SDE):
    def drift(self, x, t):
        return torch.zeros_like(x)

    def diffusion(self, t):
        return torch.ones_like(t)


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
@given(sde=st.one_of(*STRATEGIES.values()), steps=st.integers(1, 60))
def test_grids_decrease_from_one_end_to_the_other(grid, sde, steps):
    times = grid(sde, steps)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert (float(times[0]), float(times[-1])) == (sde.T, sde.t_min)
    assert bool((times.diff() < 0).all())


@pytest.mark.parametrize("grid", [LogMobius(0.3), Karras(), Angle(), UniformLogSNR()], ids=repr)
@given(
    sde=st.one_of(*STRATEGIES.values()),
    steps=st.integers(1, 60),
    first=st.floats(0.1, 4.0),
    std=st.floats(0.1, 10.0),
)
def test_grids_to_the_data_decrease_too(grid, sde, steps, first, std):
    times = grid.times_to_data(sde, steps, std, first)
    assert times.shape == (steps + 1,)
    assert (float(times[0]), float(times[-1])) == (sde.T, sde.t_min)
    assert bool((times.diff() < 0).all())


def test_grids_to_the_data_are_equidistant_down_to_zero():
    """In ln((ρ + 0.1)/(ρ + 2)), except for the first step; t_min replaces ρ = 0."""
    grid, sde = LogMobius(0.5), VESDE()

    def values(steps, first):
        rho = sde.sigma(grid.times_to_data(sde, steps, 2.0, first)) / 2.0
        return torch.log((rho + 0.1) / (rho + 2.0)), math.log(0.1 / 2.0)

    seen, zero = values(9, 1.7)
    each = float(seen[0] - zero) / 9.7
    want = [float(seen[0]) - each * (1.7 + i) for i in range(8)]
    torch.testing.assert_close(seen[1:-1].tolist(), want, rtol=1e-5, atol=1e-7)
    seen, zero = values(300, 1.0)  # too many steps: equidistant down to t_min
    steps = -seen.diff()
    torch.testing.assert_close(steps, steps[:1].expand(300), rtol=1e-4, atol=1e-7)


def test_karras_is_the_published_formula():
    sde, n, rho = VESDE(0.002, 80.0, t_min=0.0), 18, 7
    low, high = 0.002 ** (1 / rho), 80 ** (1 / rho)
    want = [(high + i / (n - 1) * (low - high)) ** rho for i in range(n)]
    torch.testing.assert_close(
        sde.sigma(Karras()(sde, n - 1)), torch.tensor(want, dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("grid", "function"),
    [
        (UniformLogSNR(), math.log),
        (Angle(0.3), lambda rho: math.atan(rho / 0.3)),
        (LogMobius(0.5), lambda rho: math.log((rho + 0.1) / (rho + 2.0))),
        (Karras(5.0), lambda rho: rho**0.2),
    ],
    ids=named,
)
@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=repr)
def test_ratio_grids_are_equidistant_in_their_function(grid, function, sde):
    times = grid(sde, 9)
    values = torch.tensor([function(math.exp(-float(sde.half_logsnr(t)))) for t in times])
    torch.testing.assert_close(values.diff(), values.diff()[:1].expand(9), rtol=1e-4, atol=1e-7)


def test_quadratic_times():
    times = UniformTime(power=2.0, end=0.01)(VPSDE(), 3)
    roots = torch.linspace(1.0, 0.1, 4, dtype=torch.float64)
    torch.testing.assert_close(times, roots**2)


@pytest.mark.parametrize("sde", [DDPM.linear(N=50), NCSN.geometric(0.01, 50.0, 50)], ids=repr)
def test_timesteps_are_those_of_the_table(sde):
    assert torch.equal(Timesteps()(sde, 49), sde.times.flip(0))
    seven = Timesteps()(sde, 7)
    assert torch.equal(seven, sde.times[[49, 42, 35, 28, 21, 14, 7, 0]])
    few = Timesteps()(sde, 11)
    assert bool(torch.isin(few, sde.times).all())
    assert (float(few[0]), float(few[-1])) == (1.0, float(sde.times[0]))


def test_a_sampler_with_another_grid():
    sde = DDPM.linear(N=50)
    assert torch.equal(
        Scheduled(ReverseDiffusion(), Timesteps(), 49).times(sde, 49), Timesteps()(sde, 49)
    )
    assert Scheduled(ReverseDiffusion(), Timesteps(), 49).default_steps == 49


def test_a_general_sde_has_uniform_times_only():
    assert UniformTime()(Brownian(), 4).shape == (5,)
    for grid in (Karras(), UniformLogSNR(), Angle(), LogMobius()):
        with pytest.raises(TypeError, match="general SDE"):
            grid(Brownian(), 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: UniformTime(power=0.0), ValueError, "power: expected a positive"),
        (lambda: UniformTime(end=1.0)(VPSDE(), 3), ValueError, r"end: expected a time in \[0, 1\)"),
        (
            lambda: UniformTime(end=-0.5)(VPSDE(), 3),
            ValueError,
            r"end: expected a time in \[0, 1\)",
        ),
        (lambda: Karras(rho=-1), ValueError, "rho: expected a positive"),
        (lambda: Angle(pivot=0), ValueError, "pivot: expected a positive"),
        (lambda: LogMobius(lower=4.0, upper=0.2), ValueError, "lower, upper: expected 0 <= lower"),
        (lambda: LogMobius(lower=-0.5), ValueError, "lower, upper: expected 0 <= lower"),
        (lambda: Timesteps()(VPSDE(), 3), TypeError, "sde: expected a discrete diffusion"),
        (lambda: Timesteps()(DDPM.linear(N=10), 10), ValueError, "steps: expected at most 9"),
        (lambda: Karras()(VPSDE(), 0), ValueError, "steps: expected an integer, at least 1"),
        (lambda: Scheduled(ReverseDiffusion(), None), TypeError, "grid: expected a Grid"),
        (lambda: Scheduled(None, Karras()), TypeError, "sampler: expected a Sampler"),
        (
            lambda: Scheduled(ReverseDiffusion(), Karras(), 0),
            ValueError,
            "steps: expected an integer",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_sample_takes_a_grid():
    from scoresde import FunctionScore

    score, steps = FunctionScore(lambda x, t: -x, VPSDE()), []
    sample(score, (2, 2), ReverseDiffusion(), times=Karras(), steps=4, callback=steps.append)
    assert [float(step.t) for step in steps] == Karras()(VPSDE(), 4).tolist()
