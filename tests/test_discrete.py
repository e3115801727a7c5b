"""DDPM and NCSN: their chains at the timesteps, the published tables, convergence to VP and VE."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from families import STRATEGIES
from hypothesis import given

from scoresde import (
    DATA,
    DDPM,
    NCSN,
    VESDE,
    VPSDE,
    FunctionScore,
    GaussianMixture,
    PredictorCorrector,
    ScoreModel,
    by_index,
    sample,
)
from scoresde.samplers import Ancestral, AnnealedLangevin, NoPredictor, Timesteps, ddpm
from scoresde.training.losses import TableTimes

TABLES = [
    DDPM.linear(),
    DDPM.linear(N=10),
    DDPM.scaled_linear(),
    DDPM.sigmoid(),
    DDPM.cosine(),
    DDPM(torch.tensor([0.1, 0.5, 0.01]).double()),
    DDPM.linear().zero_terminal_snr(),
    NCSN.geometric(),
    NCSN.geometric(0.01, 1.0, 10),
    NCSN(torch.tensor([0.1, 0.2, 5.0])),
]
EVERY = pytest.mark.parametrize("sde", TABLES, ids=str)


def before(sde) -> torch.Tensor:
    """The timestep before each timestep; 0 before the first."""
    return torch.cat([torch.zeros(1, dtype=torch.float64), sde.times[:-1]])


# --- the chains


def test_the_alpha_bar_table_is_exact_at_the_timesteps():
    sde = DDPM.linear(1e-4, 0.02, 1000)
    betas = np.linspace(1e-4, 0.02, 1000)
    bar = np.cumprod(1 - betas)
    np.testing.assert_allclose(sde.betas.numpy(), betas, rtol=1e-14)
    np.testing.assert_allclose(sde.alphas_cumprod.numpy(), bar, rtol=1e-12)
    np.testing.assert_allclose(sde.alpha(sde.times).numpy() ** 2, bar, rtol=1e-12)
    np.testing.assert_allclose(sde.sigma(sde.times).numpy() ** 2, 1 - bar, rtol=1e-11)
    assert bar[-1] == pytest.approx(4.036e-5, rel=1e-3)  # the published end of DDPM


@given(STRATEGIES["DDPM"])
def test_one_step_of_ddpm_is_a_transition_between_timesteps(sde):
    scale, std = sde.transition(before(sde), sde.times)
    torch.testing.assert_close(scale, (1 - sde.betas).sqrt(), rtol=1e-11, atol=0)
    torch.testing.assert_close(std, sde.betas.sqrt(), rtol=1e-9, atol=0)


@given(STRATEGIES["NCSN"])
def test_one_step_of_ncsn_is_a_transition_between_timesteps(sde):
    scale, std = sde.transition(sde.times[:-1], sde.times[1:])
    assert (scale == 1).all()
    torch.testing.assert_close(std**2, sde.sigmas.square().diff(), rtol=1e-9, atol=0)
    torch.testing.assert_close(sde.sigma(sde.times), sde.sigmas, rtol=1e-13, atol=0)
    below = sde.sigmas[0] ** 2 / sde.sigmas[1]
    torch.testing.assert_close(sde.sigma(0.0), below, rtol=1e-13, atol=0)


@EVERY
def test_times_and_index(sde):
    N = len(sde.times)
    expected = torch.arange(1, N + 1, dtype=torch.float64) * sde.T / N
    torch.testing.assert_close(sde.times, expected, rtol=1e-15, atol=0)
    assert sde.t_min == float(sde.times[0])
    assert sde.times[-1] == sde.T
    assert torch.equal(sde.index_at(sde.times), torch.arange(N, dtype=torch.float64))
    halfway = 0.5 * (sde.times[1:] + sde.times[:-1])
    torch.testing.assert_close(sde.index_at(halfway), torch.arange(N - 1).double() + 0.5)
    assert sde.index_at(0.0) == sde.index_at(0.3 * sde.t_min) == 0
    single = sde.index_at(sde.times.float())
    assert single.dtype == torch.float32
    assert torch.equal(single.round(), torch.arange(N).float())
    assert sde.index_at(0.5 * sde.T).shape == ()


@EVERY
def test_drift_and_diffusion_are_continuous_and_positive(sde):
    """No jump at a timestep, for the solvers; and λ decreases strictly everywhere."""
    times = sde.times[:-1]
    left, right = times * (1 - 1e-9), times * (1 + 1e-9)
    torch.testing.assert_close(sde.diffusion(left), sde.diffusion(right), rtol=1e-4, atol=0)
    fine = torch.linspace(0, sde.T, 20 * len(sde.times) + 1, dtype=torch.float64)
    assert (sde.half_logsnr(fine).diff() < 0).all()
    assert (sde.diffusion(fine) > 0).all()
    assert torch.isfinite(sde.drift(torch.ones(len(fine)), fine)).all()


def test_the_index_is_a_label():
    seen = []

    class Network(torch.nn.Module):
        def forward(self, x, label):
            seen.append(label)
            return x

    sde = DDPM.linear()
    model = ScoreModel(Network(), sde, label=by_index)
    model(torch.randn(3, 2), sde.times[[0, 500, 999]])
    model(torch.randn(2, 2), 1.0)
    assert seen[0].tolist() == [0.0, 500.0, 999.0]
    assert seen[1].tolist() == [999.0, 999.0]


# --- published tables, transcribed

LATENT = {"beta_start": 0.00085, "beta_end": 0.012}


def test_linear_and_scaled_linear():
    torch.testing.assert_close(
        DDPM.scaled_linear(0.00085, 0.012, 1000).betas,
        torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2,
    )
    assert DDPM.linear(N=5).betas.tolist() == pytest.approx(np.linspace(1e-4, 0.02, 5))


def test_cosine_is_nichols_and_dhariwals():
    N = 1000
    bar = [math.cos((i / N + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(N + 1)]
    betas = [min(1 - bar[i + 1] / bar[i], 0.999) for i in range(N)]
    np.testing.assert_allclose(DDPM.cosine(N).betas.numpy(), betas, rtol=1e-9)
    assert DDPM.cosine(N).betas[-1] == 0.999


def test_sigmoid_is_the_logistic_curve():
    u = np.linspace(-6, 6, 1000)
    betas = 1 / (1 + np.exp(-u)) * (0.02 - 1e-4) + 1e-4
    np.testing.assert_allclose(DDPM.sigmoid().betas.numpy(), betas, rtol=1e-12)


@pytest.mark.parametrize(
    ("ours", "settings"),
    [
        (DDPM.linear(), {"beta_schedule": "linear"}),
        (DDPM.scaled_linear(), {"beta_schedule": "scaled_linear"} | LATENT),
        (DDPM.cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
        (DDPM.sigmoid(), {"beta_schedule": "sigmoid"}),
        (DDPM(torch.linspace(0.01, 0.3, 7)), {"trained_betas": np.linspace(0.01, 0.3, 7)}),
        (
            DDPM.scaled_linear().zero_terminal_snr(),
            {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True} | LATENT,
        ),
    ],
    ids=str,
)
def test_tables_are_those_of_diffusers(ours, settings):
    """diffusers has them in float32, and sets ᾱ = 2⁻²⁴ at zero terminal SNR."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(**settings)
    np.testing.assert_allclose(ours.betas.numpy(), theirs.betas.numpy(), rtol=2e-4, atol=1e-7)
    bar = theirs.alphas_cumprod.numpy()
    np.testing.assert_allclose(ours.alphas_cumprod.numpy(), bar, rtol=2e-3, atol=1e-7)


def test_geometric_sigmas():
    np.testing.assert_allclose(
        NCSN.geometric(0.01, 50.0, 232).sigmas.numpy(), np.geomspace(0.01, 50, 232), rtol=1e-13
    )
    descending = NCSN(torch.tensor([1.0, 0.5, 0.125]))
    assert descending.sigmas.tolist() == [0.125, 0.5, 1.0]


@pytest.mark.parametrize("parent", [DDPM.linear(), DDPM.scaled_linear(), DDPM.linear(N=20)])
def test_zero_terminal_snr(parent):
    """Lin et al. 2023, algorithm 1; where ᾱ_N = 0, all values are finite."""
    sde = parent.zero_terminal_snr()
    root = np.sqrt(np.cumprod(1 - parent.betas.numpy()))
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    np.testing.assert_allclose(sde.alpha(sde.times)[:-1].numpy(), expected[:-1], rtol=1e-9)
    assert sde.betas[-1] == 1
    assert 0 < sde.alpha(1.0) <= 2**-24 * (1 + 1e-9)
    assert sde.sigma(1.0).float() == 1
    x = torch.randn(2, 3)
    for t in (0.0, float(sde.times[-2]), 0.9999, 1.0):
        assert torch.isfinite(sde.drift(x, t)).all()
        assert torch.isfinite(sde.diffusion(t))
        assert torch.isfinite(sde.half_logsnr(t)) or t == 0
    assert torch.isfinite(torch.stack(sde.transition(sde.times[-2], 1.0))).all()
    tail = DDPM(
        torch.tensor([0.1, 1 - 1e-15, 1.0], dtype=torch.float64)
    )  # ᾱ is below the minimum before the end
    assert (tail.half_logsnr(tail.times).diff() < 0).all()


# --- convergence to the parents


def error_of_ddpm(N: int) -> float:
    parent = VPSDE()
    sde = parent.discretize(N)
    alpha = (sde.alpha(sde.times) - parent.alpha(sde.times)).abs().max()
    return float(torch.maximum(alpha, (sde.sigma(sde.times) - parent.sigma(sde.times)).abs().max()))


def test_ddpm_converges_to_vp():
    errors = [error_of_ddpm(N) for N in (250, 500, 1000, 2000)]
    for coarse, fine in pairwise(errors):
        assert 1.8 < coarse / fine < 2.2
    sde, parent = VPSDE().discretize(1000), VPSDE()
    gap = (sde.alpha(sde.times) - parent.alpha(sde.times)).abs().max()
    assert float(gap) == pytest.approx(9.9e-4, rel=0.02)  # as measured on the official code
    bar = (sde.alphas_cumprod - parent.alpha(sde.times) ** 2).abs().max()
    assert float(bar) == pytest.approx(8.1e-4, rel=0.02)


def test_ncsn_converges_to_ve():
    parent, errors, t = VESDE(), [], torch.linspace(0.1, 0.95, 50, dtype=torch.float64)
    for N in (250, 500, 1000, 2000):
        sde = parent.discretize(N)
        errors.append(float((sde.sigma(t) / parent.sigma(t)).log().abs().max()))
    for coarse, fine in pairwise(errors):
        assert 1.8 < coarse / fine < 2.2


@pytest.mark.parametrize("T", [1.0, 2.5])
def test_rates_converge_for_every_final_time(T):
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64) * T
    for parent in (VPSDE(0.1, 4.0, T=T), VESDE(T=T)):
        coarse, fine = (parent.discretize(N) for N in (500, 1000))
        assert coarse.T == T
        worst = [
            float((sde.diffusion(t) / parent.diffusion(t) - 1).abs().max())
            for sde in (coarse, fine)
        ]
        assert worst[1] < 0.03
        assert 1.7 < worst[0] / worst[1] < 2.3


def test_geometric_ncsn_is_ve_at_other_times():
    """σ(t) = σ_min (σ_max/σ_min)^((N t − 1)/(N − 1)), between the timesteps too."""
    sde = NCSN.geometric(0.01, 50.0, 20)
    t = torch.linspace(0.0, 1.0, 333, dtype=torch.float64)
    torch.testing.assert_close(sde.sigma(t), 0.01 * 5000 ** ((20 * t - 1) / 19))


def gaussian_error(sde, t: torch.Tensor, variance: float = 0.5) -> torch.Tensor:
    """E|ε̂ − ε|² of one dimension at given times, for the true score of N(0, variance) data."""
    signal = sde.alpha(t) ** 2 * variance
    return signal / (signal + sde.sigma(t) ** 2)


def test_the_loss_of_ddpm_converges_to_that_of_vp():
    parent, fine = VPSDE(), (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    exact, errors = float(gaussian_error(parent, fine).mean()), []
    for N in (250, 500, 1000, 2000):
        sde = parent.discretize(N)
        t, weight = TableTimes(sde.times).at(sde, (torch.arange(N, dtype=torch.float64) + 0.5) / N)
        errors.append(abs(float((weight * gaussian_error(sde, t)).mean()) - exact))
    for coarse, fine_error in pairwise(errors):
        assert 1.8 < coarse / fine_error < 2.2


def std_of_samples(sde, variance: float = 0.5) -> float:
    """The standard deviation of the chain's samples of N(0, variance) data, without sampling."""

    def denoised(x, t):
        signal = sde.alpha(t) * variance
        return signal / (signal * sde.alpha(t) + sde.sigma(t) ** 2) * x

    score, std = FunctionScore(denoised, sde, DATA), sde.prior_scale() ** 2
    unit = torch.eye(2, dtype=torch.float64)
    for t, s in pairwise(sde.times.flip(0)):
        parts, _ = Ancestral(1.0).step(score, unit[0].clone(), t, s, None, lambda x: unit[1])
        std = float(parts.square() @ torch.tensor([std, 1.0]).double())
    return math.sqrt(std)


@pytest.mark.parametrize("parent", [VPSDE(), VESDE(0.01, 50.0)], ids=repr)
def test_samples_of_the_chains_converge_to_the_data(parent):
    errors = []
    for N in (50, 100, 200):
        sde = parent.discretize(N)
        variance = float(sde.alpha(sde.t_min) ** 2 * 0.5 + sde.sigma(sde.t_min) ** 2)
        errors.append(abs(std_of_samples(sde) / math.sqrt(variance) - 1))
    for coarse, fine in pairwise(errors):
        assert 1.7 < coarse / fine < 2.3


# --- the published samplers


def some_score(sde) -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.3], [0.5, 1.0]])
    return GaussianMixture(torch.ones(2), means, 0.05 * torch.eye(2).expand(2, 2, 2), sde)


@pytest.mark.parametrize("large", [True, False], ids=["fixed large", "fixed small"])
def test_ancestral_sampling_of_ho_et_al(large):
    """Algorithm 2, transcribed for the table, with the noise of our run."""
    betas = np.linspace(1e-3, 0.2, 30)
    score = some_score(DDPM(torch.from_numpy(betas)))
    start = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sampler = ddpm(variance=float(large), grid=Timesteps(), steps=29)
    ours = sample(
        score, start.shape, sampler, start=start, generator=torch.Generator().manual_seed(1)
    )

    source, x, bars = torch.Generator().manual_seed(1), start.clone(), np.cumprod(1 - betas)
    for t in reversed(range(30)):
        noise = score.noise(x, score.sde.times[t])
        x = (x - betas[t] / math.sqrt(1 - bars[t]) * noise) / math.sqrt(1 - betas[t])
        if t > 0:
            variance = betas[t] * (1.0 if large else (1 - bars[t - 1]) / (1 - bars[t]))
            z = torch.randn(x.shape, generator=source, dtype=torch.float64)
            x = x + math.sqrt(variance) * z
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


def test_annealed_langevin_dynamics_of_song_and_ermon():
    """Algorithm 1 on its noise levels, with ε = (2 σ_L r)², and the noise of our run."""
    sigmas, r, T = np.geomspace(1.0, 0.01, 10), 0.2, 3
    score = some_score(NCSN(torch.from_numpy(sigmas)))
    start = torch.rand(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = sample(
        score,
        start.shape,
        PredictorCorrector(NoPredictor(), AnnealedLangevin(snr=r), corrections=T),
        times=score.sde.times.flip(0),
        start=start,
        denoise=False,
        generator=torch.Generator().manual_seed(1),
    )
    source, x, epsilon = torch.Generator().manual_seed(1), start.clone(), (2 * sigmas[-1] * r) ** 2
    for i, sigma in enumerate(sigmas):
        step = epsilon * sigma**2 / sigmas[-1] ** 2
        for _ in range(T):
            z = torch.randn(x.shape, generator=source, dtype=torch.float64)
            x = x + step / 2 * score(x, score.sde.times[9 - i]) + math.sqrt(step) * z
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


# --- the chains of the official code


@pytest.mark.parametrize(
    ("folder", "sde"),
    [
        ("vp_ddpm_cifar10", VPSDE().discretize(1000)),
        ("vp_cifar10_ddpmpp_continuous", VPSDE().discretize(1000)),
        ("ve_cifar10_ncsnpp_continuous", None),
    ],
)
def test_official_discretization(folder, sde, golden):
    with np.load(golden / folder / "expected.npz") as file:
        arrays = dict(file)
    name = next(name for name in arrays if name.startswith(("grid_beta", "grid_sigma")))
    official = arrays[name]
    sde = sde or NCSN.geometric(0.01, 50.0, len(official))
    table = sde.betas if name.startswith("grid_beta") else sde.sigmas
    np.testing.assert_allclose(table.numpy(), official, rtol=2e-5)
    for suffix in "ab":
        t, x = arrays[f"t_{suffix}"], torch.tensor(arrays[f"x_{suffix}"])
        index = (t * np.float32(len(official) - 1)).astype(np.int64)
        scale, std = sde.transition(before(sde)[index], sde.times[index])
        first = torch.as_tensor(index == 0) & (scale == 1)  # that chain starts from σ = 0
        std = torch.where(first, sde.sigma(sde.times[index]), std)
        f = ((scale - 1)[:, None, None, None] * x).float()
        torch.testing.assert_close(
            f, torch.tensor(arrays[f"disc_f_{suffix}"]), rtol=1e-3, atol=1e-5
        )
        G = torch.tensor(arrays[f"disc_G_{suffix}"])
        torch.testing.assert_close(std.float(), G, rtol=1e-3, atol=1e-6)


def test_time_at_inverts_an_irregular_table():
    betas = [0.135, 0.0183, 0.00674, 0.223, 0.0821, 0.000335, 0.607, 0.0498, 0.368]
    sde = DDPM(torch.tensor(betas, dtype=torch.float64))
    t = sde.times[:-1] + torch.tensor([[-2e-4], [2e-5], [2.2e-4], [5e-4]], dtype=torch.float64)
    t = t.reshape(-1)
    torch.testing.assert_close(sde.time_at(sde.half_logsnr(t)), t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sde", [DDPM.linear(N=10), NCSN.geometric(N=10)], ids=["DDPM", "NCSN"])
def test_the_ends_of_a_table_have_the_slopes_of_its_last_steps(sde):
    curve = sde.log_alpha if isinstance(sde, DDPM) else sde.log_sigma
    times = torch.cat([torch.zeros(1, dtype=torch.float64), sde.times])
    values, small = curve(times), 1e-6
    for end, inner in ((0, small), (-1, -small)):
        slope = (curve(times[end] + inner) - values[end]) / inner
        step = 0 if end == 0 else -2
        secant = (values[step + 1] - values[step]) / (times[step + 1] - times[step])
        torch.testing.assert_close(slope, secant, rtol=1e-3, atol=0)
