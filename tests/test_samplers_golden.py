"""Recorded runs of the official samplers: recorded noise in, recorded states and samples out.

The official code evaluates tables at trunc(t (N − 1)) and passes t itself to networks; here a
discrete diffusion has entry i at its timestep (i + 1)/N. The steps are therefore made on the
timesteps, and the network is evaluated at the official times. Bounds are about ten times the change
of the reference after one float32 rounding of the weights.
"""

import json

import numpy as np
import pytest
import torch

from scoresde import VESDE, VPSDE, FunctionScore, SubVPSDE
from scoresde.interop import score_sde
from scoresde.samplers import (
    Ancestral,
    AnnealedLangevin,
    EulerMaruyama,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    Timesteps,
    UniformTime,
    iterate,
)


class Recorded:
    def __init__(self, draws):
        self.draws = iter(draws)

    def __call__(self, x):
        return next(self.draws).to(x.dtype)


def case(golden, name):
    folder = golden / name
    config = json.loads((folder / "config.json").read_text())["flat"]
    model = score_sde.load(folder / "checkpoint_1.pth", config).requires_grad_(False)
    arrays = np.load(folder / "expected.npz")
    return model, {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays}


def relative(out, expected):
    return float((out - expected).abs().max() / expected.abs().max())


def on_timesteps(model, sde, times):
    """The score of the model on the timesteps of a table, evaluated at the official times."""

    def score(x, t):
        return model(x, times[len(times) - 1 - round(float(sde.index_at(t)))])

    return FunctionScore(score, sde)


def test_annealed_langevin_with_euler_maruyama(golden):
    """VE, two corrections a time; Euler–Maruyama steps of 1/N on a grid of another spacing."""
    model, arrays = case(golden, "ve_cifar10_ncsnpp_continuous")
    times = torch.linspace(1.0, 1e-5, 10, dtype=torch.float64)
    draws = arrays["pc_ald_draws"]
    noise = Recorded([*draws[1:-1], torch.zeros_like(draws[0])])  # the last step is its mean
    sampler = PredictorCorrector(EulerMaruyama(), AnnealedLangevin(0.16), corrections=2)
    x = draws[0] * model.sde.sigma_max
    state = sampler.init(model, x, times)
    for t in times:
        x, state = sampler.step(model, x, t, t - 0.1, state, noise)
    assert relative(x, arrays["pc_ald_sample"]) < 1e-4


def test_langevin_with_reverse_diffusion(golden):
    """VP, 25 scales: batch-mean norms and alpha = 1 − β_i, which is (α_t/α_s)² on the table."""
    model, arrays = case(golden, "vp_cifar10_ddpmpp_continuous")
    table = VPSDE().discretize(25)
    score = on_timesteps(model, table, torch.linspace(1.0, 1e-3, 25, dtype=torch.float64))
    draws = arrays["pc_rdl_draws"]
    noise = Recorded([*draws[1:-1], torch.zeros_like(draws[0])])
    sampler = PredictorCorrector(ReverseDiffusion(), Langevin(0.16, published=True))
    times = torch.cat([table.times.flip(0), torch.zeros(1, dtype=torch.float64)])
    *_, (x, _) = iterate(score, draws[0], times, sampler, noise)
    assert relative((x + 1) / 2, arrays["pc_rdl_sample"]) < 1e-4


def with_official_labels(model, table):
    """The score of a discrete VP network on a table, with the label t (N − 1), not rounded."""
    N = len(table.times)
    official = torch.linspace(1.0, 1e-3, N, dtype=torch.float64)

    def score(x, t):
        label = official[N - 1 - round(float(table.index_at(t)))] * (N - 1)
        return -model.network(x, label.expand(len(x)).float()) / float(table.sigma(t))

    return FunctionScore(score, table)


OFFICIAL = {
    "subvp_cifar10_ncsnpp_continuous": (SubVPSDE(), 1e-3),
    "ve_cifar10_ncsnpp_continuous": (VESDE(), 1e-5),
    "vp_cifar10_ddpmpp_continuous": (VPSDE(), 1e-3),
    "vp_ddpm_cifar10": (VPSDE(), 1e-3),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_grids_and_tables(name, golden):
    """Equal steps to the published ends; tables, and the indices of their timesteps."""
    arrays, (sde, end) = np.load(golden / name / "expected.npz"), OFFICIAL[name]
    N = len(arrays["grid_t"])
    times = UniformTime(end=end)(sde, N - 1)
    np.testing.assert_allclose(times, arrays["grid_t"], rtol=1e-5)
    assert (times.float() * (N - 1)).int().tolist() == arrays["grid_index"].tolist()
    for sigmas in (arrays[key] for key in arrays if key.startswith("grid_sigma")):
        np.testing.assert_allclose(sde.discretize(N).sigmas, sigmas, rtol=1e-5)
    for betas in (arrays[key] for key in arrays if key.startswith("grid_beta")):
        table = sde.discretize(N)
        np.testing.assert_allclose(table.betas, betas, rtol=1e-5)
        indices = table.index_at(Timesteps()(table, N - 1)).round().int()
        assert indices.tolist() == arrays["grid_index"].tolist()


def test_short_ddpm_chain(golden):
    """25 ancestral steps of a table of its own, whose labels are 0 … 24."""
    model, arrays = case(golden, "vp_ddpm_cifar10")
    table, draws = VPSDE().discretize(25), arrays["pc_draws"]
    noise = Recorded([*draws[1:-1], torch.zeros_like(draws[0])])
    times = torch.cat([table.times.flip(0), torch.zeros(1, dtype=torch.float64)])
    steps = iterate(
        with_official_labels(model, table), draws[0], times, Ancestral(variance=1.0), noise
    )
    x = draws[0]
    for k, (end, _) in enumerate(steps):
        assert relative(x, arrays["pc_trace_in"][k]) < 1e-5
        x = end
        if k < 24:
            assert relative(x, arrays["pc_trace"][k]) < 1e-5
    assert relative((x + 1) / 2, arrays["pc_sample"]) < 1e-5
    last = x + float(table.betas[0].sqrt()) * draws[-1]
    assert relative((last + 1) / 2, arrays["pc_sample_nodenoise"]) < 1e-5


@pytest.mark.slow
def test_full_ddpm_chain(golden):
    """1000 ancestral steps, with the noise of the forward kernel."""
    model, arrays = case(golden, "vp_ddpm_cifar10")
    table = model.sde
    N = len(table.times)
    source = np.random.RandomState(int(arrays["full_seed"]))
    shape = (int(arrays["full_ndraws"]), *arrays["full_first_draw"].shape)
    draws = torch.from_numpy(source.standard_normal(shape).astype(np.float32))
    assert torch.equal(draws[0], arrays["full_first_draw"])
    noise = Recorded([*draws[1:-1], torch.zeros_like(draws[0])])
    times = torch.cat([table.times.flip(0), torch.zeros(1, dtype=torch.float64)])
    steps = iterate(
        with_official_labels(model, table), draws[0], times, Ancestral(variance=1.0), noise
    )
    recorded = dict(zip(arrays["full_steps"].tolist(), arrays["full_x_out"], strict=True))
    for k, (x, _) in enumerate(steps):
        if k in recorded and k < N - 1:
            assert relative(x, recorded[k]) < 1e-5
    assert relative((x + 1) / 2, arrays["full_sample"]) < 1e-5
