"""The variational bound of chains: closed forms, published arithmetic, and its limit."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from scipy.special import ndtr
from torch import Tensor, nn

from scoresde import (
    DATA,
    DDPM,
    NCSN,
    NOISE,
    SDE,
    VESDE,
    VPSDE,
    FunctionScore,
    GaussianMixture,
    ScoreModel,
    SubVPSDE,
)
from scoresde._core.counter_rng import CounterRNG
from scoresde.likelihood import discrete_bound, variational_bound

MEAN, VARIANCE = 0.3, 0.4
POINT = 0.9
TABLES = {
    "linear": DDPM.linear(1e-3, 0.3, 20),
    "cosine": DDPM.cosine(20),
    "zero terminal": DDPM.linear(1e-3, 0.3, 20).zero_terminal_snr(),
    "user's": DDPM(torch.tensor([0.05, 0.01, 0.4, 0.2, 0.9])),
    "geometric": NCSN.geometric(0.05, 20.0, 20),
}
EVERY = pytest.mark.parametrize("sde", TABLES.values(), ids=TABLES)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(sde, mean: float = MEAN, variance: float = VARIANCE) -> FunctionScore:
    """The score of N(mean, variance) data of any shape."""

    def denoised(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (c(t).reshape(-1, *(1,) * (x.ndim - 1)) for c in (sde.alpha, sde.sigma))
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return mean + gain * (x - alpha * mean)

    return FunctionScore(denoised, sde, DATA)


@pytest.fixture
def expectations(monkeypatch):
    """Terms of a scalar point without noise: an affine denoiser makes them quadratic in ε, and
    ε = ±1 integrates a quadratic exactly."""

    def signs(rng: CounterRNG, shape: tuple[int, ...]) -> Tensor:
        return 1.0 - 2.0 * (torch.arange(len(rng.seeds)) % 2).double().reshape(-1, *shape)

    monkeypatch.setattr(CounterRNG, "normals", signs)

    def terms(score, point: float = POINT, **options) -> np.ndarray:
        x = torch.full((2,), point, dtype=torch.float64)
        return discrete_bound(score, x, batch_size=10_000, **options).terms.mean(0).numpy()

    return terms


def chain(sde) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """From the table alone: variance of every step, α_i, σ_i², and the prior's scale."""
    if isinstance(sde, DDPM):
        betas = sde.betas.numpy()
        alpha = np.sqrt(np.cumprod(1 - betas)).clip(min=2.0**-24)  # of a last β of 1
        return betas, alpha, 1 - alpha**2, 1.0
    squares = sde.sigmas.numpy() ** 2
    steps = np.diff(np.append(0, squares))
    return steps, np.ones(len(squares)), squares, math.sqrt(squares[-1])


# --- closed forms


@EVERY
@pytest.mark.parametrize("v", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("off", [0.0, 0.5], ids=["true score", "wrong score"])
def test_every_term_is_its_closed_form(sde, v, off, expectations):
    mean, variance = MEAN + off, VARIANCE * (1 + off)
    b, alpha, squares, scale = chain(sde)
    before = np.append(0, squares[:-1])
    small = before * b / squares
    small[0] = small[1]
    large = b.copy()
    std2 = small ** (1 - v) * large**v
    gain = alpha * variance / (alpha**2 * variance + squares)
    error2 = ((POINT - mean) * (1 - gain * alpha)) ** 2 + gain**2 * squares
    weight = np.append(1, alpha[:-1])[1:] * b[1:] / squares[1:]  # of x_0 in the posterior's mean
    steps = 0.5 * (np.log(std2 / small) + small / std2 - 1)[1:]
    steps = steps + 0.5 * weight**2 * error2[1:] / std2[1:]
    decoder = 0.5 * np.log(2 * np.pi * std2[0]) + 0.5 * error2[0] / std2[0]
    ratio = squares[-1] / scale**2
    prior = 0.5 * (ratio + (alpha[-1] * POINT / scale) ** 2 - 1 - np.log(ratio))
    expected = np.array([decoder, *steps, prior])
    ours = expectations(gaussian(sde, mean, variance), variance=v)
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-9)


def test_the_decoder_of_levels_by_quadrature():
    """Mean over ε of −log of the bin's mass, by Gauss–Hermite and by 20 000 samples (5 σ)."""
    sde, levels, scale, shift = TABLES["linear"], 17, 3.0, -1.5
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    alpha, sigma = (float(c(sde.times[0])) for c in (sde.alpha, sde.sigma))
    for k in (0, 9, 16):
        center = shift + scale / levels * (k + 0.5)
        gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
        guess = MEAN + gain * (alpha * center + sigma * nodes - alpha * MEAN)
        low = -np.inf if k == 0 else center - scale / levels / 2
        high = np.inf if k == 16 else center + scale / levels / 2
        nats = -np.log(ndtr((high - guess) / 0.2) - ndtr((low - guess) / 0.2))
        expected = (weights * nats).sum() / weights.sum()
        x = torch.full((20_000,), k)
        options = {"levels": levels, "scale": scale, "shift": shift, "decoder": 0.2}
        options["times"] = sde.times[:2]
        found = discrete_bound(gaussian(sde), x, generator=seeded(), **options).decoder
        assert abs(float(found.mean()) - expected) < 5 * float(found.std()) / math.sqrt(len(x))


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("guess", [0.0, 0.97, -3.0])
def test_the_masses_of_all_levels_sum_to_one(levels, guess):
    score = FunctionScore(lambda x, t: torch.full_like(x, guess), TABLES["linear"], DATA)
    every = torch.arange(levels)
    found = discrete_bound(score, every, levels=levels, scale=2.0, shift=-1.0, decoder=0.01)
    assert float((-found.decoder).exp().sum()) == pytest.approx(1, abs=1e-12)
    assert bool(found.decoder.isfinite().all())


def test_masses_are_accurate_far_from_the_mean():
    """Against mpmath, bins 1e-3 and 3 wide at −40 … 40 standard deviations from the mean."""
    mpmath.mp.dps = 1000
    centers = torch.tensor([-40.0, -8.0, -0.5, 0.0, 0.2, 8.0, 40.0], dtype=torch.float64)
    score = FunctionScore(lambda x, t: torch.zeros_like(x), TABLES["linear"], DATA)
    for width in (1e-3, 3.0):
        for center in centers.tolist():
            options = {"scale": 3 * width, "shift": center - 1.5 * width, "decoder": 1.0}
            found = discrete_bound(score, torch.tensor([1]), levels=3, **options).decoder
            low, high = (mpmath.mpf(center) + sign * mpmath.mpf(width) / 2 for sign in (-1, 1))
            exact = -mpmath.log(mpmath.ncdf(high) - mpmath.ncdf(low))
            assert float(found) == pytest.approx(float(exact), rel=1e-10)


def test_narrow_bins_are_densities():
    score, levels, scale = gaussian(TABLES["linear"]), 100_000, 4.0
    x = torch.tensor([40_000, 55_555, 99_998])
    points = scale * (x.double() + 0.5) / levels - 2.0
    mass = discrete_bound(
        score, x, levels=levels, scale=scale, shift=-2.0, generator=seeded()
    ).terms
    density = discrete_bound(score, points, generator=seeded()).terms
    torch.testing.assert_close(mass[:, 1:], density[:, 1:], rtol=1e-9, atol=1e-12)
    per_level = density[:, 0] - math.log(scale / levels)
    torch.testing.assert_close(mass[:, 0], per_level, rtol=0, atol=1e-6)


def test_bits_of_a_density_count_in_the_unit_of_the_levels():
    x = torch.rand(64, 3, generator=seeded())
    bound = discrete_bound(gaussian(TABLES["linear"]), x, generator=seeded(1))
    nats = -bound.log_prob / (3 * math.log(2))
    torch.testing.assert_close(bound.bits_per_dim(), nats)
    torch.testing.assert_close(bound.bits_per_dim(levels=256, scale=2.0), nats + 7)
    quantized = discrete_bound(gaussian(TABLES["linear"]), (8 * x).trunc() / 8)
    with pytest.raises(ValueError, match="x: expected continuous data"):
        quantized.bits_per_dim(levels=8, scale=1.0)


# --- published arithmetic


class TwoHeads(nn.Module):
    """A network with a second output for the variance, as in improved DDPM."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        scaled = torch.tanh(label / 20).reshape(-1, 1, 1, 1)
        return torch.cat([torch.sin(2 * x) * scaled, torch.cos(3 * x + scaled)], 1)


def improved_diffusion(betas: np.ndarray, x0: Tensor, seen: list, kind: str) -> list[Tensor]:
    """The terms of bits/dim of gaussian_diffusion.py (Nichol & Dhariwal), but for its tanh in Φ."""
    bar = np.cumprod(1 - betas)
    bar_prev = np.append(1.0, bar[:-1])
    posterior = betas * (1 - bar_prev) / (1 - bar)
    clipped = np.log(np.append(posterior[1], posterior[1:]))
    coef1 = betas * np.sqrt(bar_prev) / (1 - bar)
    coef2 = (1 - bar_prev) * np.sqrt(1 - betas) / (1 - bar)
    found = []
    for t, x in enumerate(seen):
        out, values = TwoHeads()(x, torch.full((len(x),), float(t))).chunk(2, 1)
        frac = (values + 1) / 2
        log_variance = {
            "learned range": frac * np.log(betas)[t] + (1 - frac) * clipped[t],
            "fixed small": torch.full_like(x, clipped[t]),
            "fixed large": torch.full_like(x, np.log(np.append(posterior[1], betas[1:]))[t]),
        }[kind]
        start = math.sqrt(1 / bar[t]) * x - math.sqrt(1 / bar[t] - 1) * out
        mean, true_mean = (coef1[t] * guess + coef2[t] * x for guess in (start, x0))
        kl = 0.5 * (
            -1.0
            + log_variance
            - clipped[t]
            + torch.exp(clipped[t] - log_variance)
            + (true_mean - mean) ** 2 * torch.exp(-log_variance)
        )
        inv_stdv, centered = torch.exp(-0.5 * log_variance), x0 - mean
        plus = torch.special.ndtr(inv_stdv * (centered + 1.0 / 255.0))
        minus = torch.special.ndtr(inv_stdv * (centered - 1.0 / 255.0))
        log_probs = torch.where(
            x0 < -0.999,
            torch.log(plus.clamp(min=1e-12)),
            torch.where(
                x0 > 0.999,
                torch.log((1.0 - minus).clamp(min=1e-12)),
                torch.log((plus - minus).clamp(min=1e-12)),
            ),
        )
        found.append((kl if t else -log_probs).mean(dim=(1, 2, 3)) / math.log(2.0))
    variance = 1 - bar[-1]
    prior = 0.5 * (-1.0 - math.log(variance) + variance + bar[-1] * x0**2)
    return [*found, prior.mean(dim=(1, 2, 3)) / math.log(2.0)]


@pytest.mark.parametrize("kind", ["fixed small", "fixed large", "learned range"])
def test_it_is_the_arithmetic_of_improved_ddpm(kind):
    betas = np.linspace(1e-4, 0.02, 50)
    sde = DDPM(torch.from_numpy(betas))
    seen: list[Tensor] = []

    def head(x: Tensor, t: Tensor, part: int) -> Tensor:
        return TwoHeads()(x, sde.index_at(t)).chunk(2, 1)[part]

    def noise(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return head(x, t, 0)

    settings = {
        "fixed small": {"variance": 0.0},
        "fixed large": {
            "variance": 1.0,
            "decoder": math.sqrt(betas[1] * betas[0] / (1 - (1 - betas[0]) * (1 - betas[1]))),
        },
        "learned range": {"variance": lambda x, t: 0.5 * head(x, t, 1) + 0.5},
    }[kind]
    levels = torch.randint(256, (5, 3, 4, 4), generator=seeded())
    levels[:, 0, 0] = torch.tensor([0, 255, 0, 255])
    bound = discrete_bound(
        FunctionScore(noise, sde, NOISE),
        levels,
        levels=256,
        scale=512 / 255,
        shift=-256 / 255,
        generator=seeded(1),
        **settings,
    )
    expected = improved_diffusion(betas, levels / 127.5 - 1.0, seen, kind)
    bits = bound.terms / (levels[0].numel() * math.log(2))
    torch.testing.assert_close(bits, torch.stack(expected, 1).double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bound.bits_per_dim(), bits.sum(1))
    assert torch.equal(bound.bits_per_dim(levels=256, scale=512 / 255), bound.bits_per_dim())
    with pytest.raises(ValueError, match=r"levels: expected 256, .* got 255"):
        bound.bits_per_dim(levels=255)
    assert bound.evaluations.tolist() == [len(betas)] * 5


# --- the limit


def truth(point: float = POINT) -> float:
    return -0.5 * (point - MEAN) ** 2 / VARIANCE - 0.5 * math.log(2 * math.pi * VARIANCE)


@pytest.mark.parametrize(
    ("parent", "start"),
    [(VPSDE(), 1e-3), (SubVPSDE(), 1e-3), (VESDE(0.01, 20.0), 1e-3)],
    ids=repr,
)
def test_the_steps_converge_like_one_over_n(parent, start, expectations):
    """From a fixed t_1 on, the sum of all steps has a limit, and tends to it at that rate."""
    sums = []
    for n in (100, 200, 400, 800):
        times = torch.linspace(start, 1.0, n, dtype=torch.float64)
        sums.append(float(expectations(gaussian(parent), times=times)[1:-1].sum()))
    first, second, third = (coarse - fine for coarse, fine in pairwise(sums))
    assert first / second == pytest.approx(2, abs=0.25)
    assert second / third == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("off", [0.0, 0.5], ids=["true score", "wrong score"])
def test_ddpm_tends_to_the_bound_in_continuous_time(off, expectations, monkeypatch):
    """Like 1/N, to the closed form for the true score and to the estimated bound for a wrong one.

    The estimate is held within 5 of its standard errors: a false alarm in 10⁶.
    """
    mean, variance = MEAN + off, VARIANCE * (1 + off)
    parent, bounds = VPSDE(), []
    for n in (500, 1000, 2000):
        sde = parent.discretize(n)
        bounds.append(-float(expectations(gaussian(sde, mean, variance)).sum()))
    assert (bounds[1] - bounds[0]) / (bounds[2] - bounds[1]) == pytest.approx(2, abs=0.1)
    limit = 2 * bounds[2] - bounds[1]
    if off == 0:
        assert limit == pytest.approx(truth(), abs=1e-4)
        assert bounds[2] < truth()
    monkeypatch.undo()
    x = torch.full((5000, 1), POINT, dtype=torch.float64)
    score, own = gaussian(parent, mean, variance), parent.prior((1,), dtype=torch.float64)
    found = variational_bound(score, x, samples=64, prior=own, generator=seeded()).log_prob
    assert abs(float(found.mean()) - limit) < 5 * float(found.std()) / math.sqrt(len(x)) + 1e-4


def test_fixed_small_costs_a_constant_on_smooth_data(expectations):
    """Steps of equal length near t = 0 change σ by the same factors whatever N is."""

    def gap(n: int, v: float) -> float:
        score = gaussian(VPSDE().discretize(n))
        return truth() + float(expectations(score, variance=v).sum())

    assert gap(4000, 0.0) > 0.85 * gap(2000, 0.0) > 0.4
    assert gap(4000, 1.0) == pytest.approx(0.5 * gap(2000, 1.0), rel=0.05)
    assert gap(4000, 1.0) < 0.01


# --- samples


def mixture(sde) -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
    return GaussianMixture(torch.tensor([0.4, 0.6]), means, 0.1 * torch.eye(2).expand(2, 2, 2), sde)


@pytest.mark.parametrize("strata", [None, 1, 7])
def test_samples_are_unbiased_and_their_error_is_estimated(strata, expectations, monkeypatch):
    """4000 estimates: the mean within 5 σ, the standard deviation within 15 % of their own."""
    score, repeats = gaussian(TABLES["linear"]), 4000
    exact = float(expectations(score).sum())
    monkeypatch.undo()
    x = torch.full((repeats,), POINT, dtype=torch.float64)
    bound = discrete_bound(score, x, strata=strata, samples=2, generator=seeded())
    std = float(bound.log_prob.std())
    assert abs(float(bound.log_prob.mean()) + exact) < 5 * std / math.sqrt(repeats)
    reported = float(bound.standard_error.square().mean().sqrt())
    assert reported == pytest.approx(std, rel=0.15)
    assert bound.evaluations.dtype == torch.int64
    assert bound.evaluations.tolist() == [2 * (1 + (strata or 19))] * repeats
    assert bound.terms.shape == (repeats, 2 + (strata or 19))


@EVERY
def test_on_average_it_is_below_the_density_of_the_data(sde):
    """Gibbs' inequality for the chain's distribution, within 5 standard errors of 500 samples."""
    score = mixture(sde)
    x = score.sample(500, generator=seeded(), dtype=torch.float64)
    gap = (
        score.log_prob(x) - discrete_bound(score, x, batch_size=5000, generator=seeded(1)).log_prob
    )
    assert float(gap.mean()) > -5 * float(gap.std()) / math.sqrt(len(x))


def test_a_row_does_not_depend_on_the_batch():
    network = nn.Linear(2, 2, dtype=torch.float64)

    class Conditional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor, label: Tensor, shift: Tensor) -> Tensor:
            return self.network(x) + shift + label[:, None]

    shift = torch.randn(6, 2, generator=seeded(), dtype=torch.float64)
    model = ScoreModel(Conditional(), TABLES["user's"]).given(shift=shift)
    x = torch.randn(6, 2, generator=seeded(1), dtype=torch.float64)
    joint = discrete_bound(model, x, samples=2, generator=seeded(2)).terms
    for size in (1, 4, 100):
        parts = discrete_bound(model, x, samples=2, generator=seeded(2), batch_size=size).terms
        torch.testing.assert_close(parts, joint, rtol=1e-9, atol=1e-9)
    alone = discrete_bound(model.select(slice(0, 2)), x[:2], samples=2, generator=seeded(2)).terms
    torch.testing.assert_close(alone, joint[:2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(), (3,), (2, 4, 4)])
def test_any_event_shape_and_a_respaced_chain(shape, device):
    sde = VPSDE().to(device)
    score = gaussian(sde)
    x = torch.randint(8, (5, *shape), generator=seeded()).to(device)
    times = sde.discretize(100).times[::10].to(device)
    options = {"levels": 8, "scale": 2.0, "shift": -1.0, "times": times, "generator": None}
    bound = discrete_bound(score, x.to(torch.uint8), **options)
    assert bound.terms.shape == (5, 11)
    assert bound.terms.device.type == device.type
    assert bool(bound.terms.isfinite().all())
    assert bool(bound.standard_error.isnan().all())
    assert len(bound) == 5
    assert repr(bound).startswith("DiscreteBound(5 samples, mean ")


def test_a_generator_is_the_only_source_of_randomness():
    score, x = gaussian(TABLES["linear"]), torch.zeros(3)
    state = torch.get_rng_state()
    first = discrete_bound(score, x, generator=seeded(1)).terms
    torch.randn(10)
    assert torch.equal(first, discrete_bound(score, x, generator=seeded(1)).terms)
    assert not torch.equal(first, discrete_bound(score, x, generator=seeded(2)).terms)
    torch.set_rng_state(state)
    assert not torch.equal(first, discrete_bound(score, x).terms)


# --- representation


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_printed_terms_add_up(shape):
    score = gaussian(TABLES["linear"])
    text = repr(discrete_bound(score, torch.full((4, *shape), 0.5), generator=seeded()))
    numbers = r"mean (\S+) bits/dim = decoder (\S+) \+ steps (\S+) \+ prior ([^;]+); (\d+) eval"
    total, decoder, steps, prior, evaluations = map(float, re.search(numbers, text).groups())
    assert total == pytest.approx(decoder + steps + prior, abs=2e-4)
    assert evaluations == len(score.sde.betas)


def test_a_chain_may_end_at_the_final_time():
    score, times = gaussian(VPSDE()), torch.tensor([0.5, 1.0], dtype=torch.float64)
    assert discrete_bound(score, torch.zeros(2, 3), times=times).log_prob.isfinite().all()


# --- bad input


class Brownian(SDE):
    def drift(self, x, t):
        return torch.zeros_like(x)

    def diffusion(self, t):
        return torch.ones_like(torch.as_tensor(t))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"score": torch.sin}, TypeError, "score: expected a Score"),
        ({"score": FunctionScore(lambda x, t: x, Brownian())}, TypeError, "GaussianSDE"),
        ({"score": gaussian(VPSDE())}, TypeError, "times: expected the timesteps"),
        ({"x": torch.arange(3)}, TypeError, "x: expected a floating-point tensor"),
        ({"x": "digits", "levels": 4}, TypeError, "x: expected a torch.Tensor"),
        ({"x": torch.tensor([0.5]), "levels": 4}, ValueError, "integers from 0 to 3"),
        ({"x": torch.tensor([math.nan])}, ValueError, "x: expected finite"),
        ({"levels": 4, "scale": -1.0}, ValueError, "scale"),
        ({"variance": 1.5}, ValueError, r"variance: expected a number in \[0, 1\]"),
        ({"variance": lambda x, t: t[:1]}, ValueError, "variance: expected a result of the shape"),
        ({"decoder": 0.0}, ValueError, "decoder: expected a positive"),
        ({"times": torch.tensor([0.5])}, ValueError, "two increasing times"),
        ({"times": torch.tensor([0.5, 0.2])}, ValueError, "two increasing times"),
        ({"times": torch.tensor([0.0, 0.2])}, ValueError, "two increasing times"),
        ({"times": torch.tensor([0.5, 1.2])}, ValueError, "two increasing times"),
        ({"strata": 0}, ValueError, "strata"),
        ({"samples": 0}, ValueError, "samples"),
        ({"batch_size": 0}, ValueError, "batch_size"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_bad_input_is_named(change, error, message):
    arguments = {"score": gaussian(TABLES["linear"]), "x": torch.zeros(2, 3)} | change
    with pytest.raises(error, match=message):
        discrete_bound(arguments.pop("score"), arguments.pop("x"), **arguments)
