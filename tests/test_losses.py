"""Denoising score matching: the formula, its weightings, the distributions of the time."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from helpers import generator, mixture
from hypothesis import given
from hypothesis import strategies as st
from naming import named
from scipy import stats
from scipy.integrate import quad, solve_ivp

from scoresde import (
    DATA,
    DDPM,
    EDMSDE,
    FLOW,
    MLP,
    NCSN,
    NOISE,
    SCORE,
    VELOCITY,
    VESDE,
    VPSDE,
    CosineSDE,
    FunctionScore,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    UNet,
    edm,
    sdes,
)
from scoresde.training.losses import (
    EDMWeighting,
    ImportanceSampled,
    LikelihoodWeighting,
    LogNormal,
    MinSNR,
    PredictionWeighting,
    Simple,
    Stratified,
    TableTimes,
    Uniform,
    dsm_loss,
    noise_errors,
)

SHAPES = [(), (5,), (1, 8, 8), (3, 4, 4, 4)]
WEIGHTINGS = [
    Simple(),
    LikelihoodWeighting(),
    EDMWeighting(0.5),
    MinSNR(5.0),
    PredictionWeighting(DATA),
    PredictionWeighting(FLOW),
]
TIME_SAMPLERS = [
    Uniform(),
    Stratified(),
    ImportanceSampled(),
    Stratified(ImportanceSampled()),
    LogNormal(),
    Stratified(LogNormal(0.0, 1.0)),
    TableTimes(torch.tensor([0.1, 0.5, 0.9])),
]
TIME_SAMPLER_IDS = [repr(time_sampler) for time_sampler in TIME_SAMPLERS]


def times(sde, n=8):
    """Times from one end to the other, evenly spaced in log t."""
    ends = torch.tensor([sde.t_min, sde.T], dtype=torch.float64).log()
    return torch.linspace(ends[0], ends[1], n, dtype=torch.float64).exp()


def curve(function, t):
    """A schedule's value and slope at t, by central differences."""
    h = 1e-6 * t
    return function(t), (function(t + h) - function(t - h)) / (2 * h)


# --- one formula


def targets(sde, x0, t, noise):
    """The exact value of each prediction, by its definition."""
    alpha, sigma = (c(t).reshape(-1, 1) for c in (sde.alpha, sde.sigma))
    ratio, sigma_data = sigma / alpha, 0.7
    inner = t * (1 - 1e-5)  # so that the difference at T stays below T
    slopes = [curve(c, inner)[1].reshape(-1, 1) for c in (sde.alpha, sde.sigma)]
    total = sigma_data**2 + ratio**2
    skip, out = sigma_data**2 / total, sigma_data * ratio / total.sqrt()
    return {
        NOISE: noise,
        DATA: x0,
        SCORE: -noise / sigma,
        VELOCITY: alpha * noise - sigma * x0,
        FLOW: slopes[0] * x0 + slopes[1] * noise,
        edm(sigma_data): (x0 - skip * (x0 + ratio * noise)) / out,
    }


@pytest.mark.parametrize("sde", [family() for family in sdes.MEMBERS], ids=repr)
@pytest.mark.parametrize("prediction", [NOISE, DATA, SCORE, VELOCITY, FLOW, edm(0.7)], ids=repr)
def test_prediction_weighting_is_the_squared_error_of_the_prediction(sde, prediction):
    t = times(sde)[1:]
    x0, noise, y = torch.randn(3, len(t), 4, generator=generator(), dtype=torch.float64)
    inner = t * (1 - 1e-5) if prediction == FLOW else t
    target = targets(sde, x0, t, noise)[prediction]
    expected = (y - target).square().sum(1)
    score = FunctionScore(lambda x, t: y, sde, prediction)
    value = PredictionWeighting(prediction)(sde, inner) * noise_errors(score, x0, inner, noise)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("sde", [family() for family in sdes.MEMBERS], ids=repr)
def test_named_weightings_are_special_cases_of_prediction_weighting(sde):
    t = times(sde)
    torch.testing.assert_close(
        Simple()(sde, t), PredictionWeighting(NOISE)(sde, t), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(
        EDMWeighting(0.3)(sde, t), PredictionWeighting(edm(0.3))(sde, t), rtol=1e-10, atol=0
    )
    noise_to_data = torch.minimum(1 / PredictionWeighting(DATA)(sde, t), torch.tensor(5.0).double())
    expected = noise_to_data * PredictionWeighting(DATA)(sde, t)  # min(SNR, γ) ‖x̂ − x_0‖²
    torch.testing.assert_close(MinSNR(5.0)(sde, t), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("sde", "g2"),
    [
        (VPSDE(), lambda t: 0.1 + 19.9 * t),
        (
            SubVPSDE(),
            lambda t: (0.1 + 19.9 * t) * -torch.expm1(-2 * (0.1 * t + 9.95 * t**2)),
        ),
        (VESDE(), lambda t: (0.01 * 5000**t) ** 2 * 2 * math.log(5000)),
        (EDMSDE(), lambda t: 2 * t),
    ],
    ids=named,
)
def test_likelihood_weighting_is_g_squared_on_the_error_of_the_score(sde, g2):
    t = times(sde)
    x0, noise, s = torch.randn(3, len(t), 4, generator=generator(), dtype=torch.float64)
    expected = g2(t) * (s + noise / sde.sigma(t).unsqueeze(1)).square().sum(1)
    errors = noise_errors(FunctionScore(lambda x, t: s, sde), x0, t, noise)
    torch.testing.assert_close(LikelihoodWeighting()(sde, t) * errors, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("sde", "mean"), [(VPSDE(), True), (SubVPSDE(), True), (VESDE(), False)])
@pytest.mark.parametrize("likelihood", [False, True])
def test_the_losses_of_song_et_al_are_arguments(sde, mean, likelihood):
    """A transcription of the published loss, on the draws that dsm_loss makes from its seed."""
    score = FunctionScore(lambda x, t: torch.sin(x), sde)
    x0 = torch.randn(6, 3, 4, 4, generator=generator(1), dtype=torch.float64)
    weighting = LikelihoodWeighting() if likelihood else Simple()
    reduction = "mean" if mean else "sum"
    ours = dsm_loss(score, x0, weighting=weighting, generator=generator(2), reduction=reduction)

    g = generator(2)
    t = torch.rand(6, generator=g, dtype=torch.float64) * (1 - 1e-5) + 1e-5
    z = torch.randn(x0.shape, generator=g, dtype=torch.float64)
    mu, std = sde.marginal(x0, t)
    s = torch.sin(mu + std[:, None, None, None] * z)
    reduce = torch.mean if mean else lambda *a, **k: 0.5 * torch.sum(*a, **k)
    if likelihood:
        losses = torch.square(s + z / std[:, None, None, None])
        losses = reduce(losses.reshape(6, -1), dim=-1) * sde.diffusion(t) ** 2
    else:
        losses = torch.square(s * std[:, None, None, None] + z)
        losses = reduce(losses.reshape(6, -1), dim=-1)
    factor = 1.0 if mean else 0.5
    torch.testing.assert_close(factor * ours, torch.mean(losses), rtol=1e-9, atol=0)


def drawn_labels(n, numbers):
    """The entries of a table of 100 that TableTimes draws from a seed, and the noise after them."""
    labels = (100 * torch.rand(n, generator=numbers, dtype=torch.float64)).long()
    return labels, torch.randn(n, 3, 4, 4, generator=numbers, dtype=torch.float64)


def test_the_loss_of_ddpm_is_that_of_its_sde_at_the_timesteps():
    """A transcription of get_ddpm_loss_fn, on the draws that dsm_loss makes from its seed."""
    sde = DDPM.linear(N=100, beta_start=1e-3, beta_end=0.2)
    score = FunctionScore(
        lambda x, t: torch.sin(x) * sde.index_at(t)[:, None, None, None], sde, NOISE
    )
    x0 = torch.randn(6, 3, 4, 4, generator=generator(1), dtype=torch.float64)
    ours = dsm_loss(score, x0, time_sampler=TableTimes(sde.times), generator=generator(2))

    labels, noise = drawn_labels(6, generator(2))
    remaining = torch.cumprod(1 - torch.linspace(1e-3, 0.2, 100, dtype=torch.float64), 0)
    x = remaining.sqrt()[labels, None, None, None] * x0
    x = x + (1 - remaining).sqrt()[labels, None, None, None] * noise
    predicted = torch.sin(x) * labels[:, None, None, None]
    expected = torch.square(predicted - noise).reshape(6, -1).mean(dim=-1).mean()
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=0)


def test_the_loss_of_ncsn_is_that_of_its_sde_at_the_timesteps():
    """A transcription of get_smld_loss_fn (its noise levels descend), on the same draws."""
    sde = NCSN.geometric(sigma_min=0.01, sigma_max=50.0, N=100)
    score = FunctionScore(lambda x, t: torch.sin(x), sde)
    x0 = torch.randn(6, 3, 4, 4, generator=generator(1), dtype=torch.float64)
    table = TableTimes(sde.times)
    ours = 0.5 * dsm_loss(score, x0, time_sampler=table, generator=generator(2), reduction="sum")

    labels, noise = drawn_labels(6, generator(2))
    levels = torch.linspace(math.log(50.0), math.log(0.01), 100, dtype=torch.float64).exp()
    sigmas = levels[99 - labels]
    noise = noise * sigmas[:, None, None, None]
    target = -noise / (sigmas**2)[:, None, None, None]
    losses = torch.square(torch.sin(noise + x0) - target)
    losses = 0.5 * torch.sum(losses.reshape(6, -1), dim=-1) * sigmas**2
    torch.testing.assert_close(ours, torch.mean(losses), rtol=1e-9, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=repr)
def test_reductions_agree_on_any_event_shape(shape, dtype, weighting, device):
    score = ScoreModel(Linear(), VPSDE()).to(device)
    x0 = torch.randn(8, *shape, generator=generator(), dtype=dtype).to(device)

    def loss(reduction):
        return dsm_loss(score, x0, weighting=weighting, generator=generator(1), reduction=reduction)

    each = loss("none")
    assert each.shape == (8,)
    assert each.dtype == dtype
    assert each.device.type == device.type
    torch.testing.assert_close(loss("sum"), each.mean())
    torch.testing.assert_close(loss("mean"), each.mean() / max(1, math.prod(shape)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_data_are_computed_in_single_precision(dtype):
    score = ScoreModel(Linear(), VPSDE())
    x0 = torch.randn(8, 5, generator=generator()).to(dtype)
    loss = dsm_loss(score, x0, generator=generator(1))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, dsm_loss(score, x0.float(), generator=generator(1)))


class Linear(torch.nn.Module):
    """A network for any event shape, with two parameters."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.5))
        self.bias = torch.nn.Parameter(torch.tensor(0.1))

    def forward(self, x, label):
        return self.gain * x + self.bias


# --- the exact score minimizes the loss


MEANS, VARIANCES, WEIGHTS = [-1.0, 0.5, 2.0], [0.04, 0.25, 0.01], [0.3, 0.5, 0.2]


def irreducible(sde, t):
    """E‖ε̂ − ε‖² = 1 − σ² E[s²] of this mixture, by quadrature with SciPy's densities."""
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    parts = [
        (w, stats.norm(alpha * m, math.sqrt(alpha**2 * v + sigma**2)))
        for w, m, v in zip(WEIGHTS, MEANS, VARIANCES, strict=True)
    ]

    def integrand(x):
        density = sum(w * p.pdf(x) for w, p in parts)
        slope = sum(-w * p.pdf(x) * (x - p.mean()) / p.var() for w, p in parts)
        return slope**2 / max(density, 1e-300)

    edge = 12 * math.sqrt(alpha**2 + sigma**2)
    peaks = [float(p.mean()) for _, p in parts]
    fisher = quad(integrand, -edge, edge, points=peaks, limit=500)[0]
    return 1 - sigma**2 * fisher


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("t", [0.05, 0.3, 0.8])
def test_the_exact_score_leaves_the_irreducible_error_and_any_other_more(sde, t):
    """Bounds of 5 standard errors: false alarms one in 10⁶ each."""
    score = mixture(sde, [[mean] for mean in MEANS], VARIANCES, WEIGHTS)
    x0 = score.sample(40_000, generator=generator(3), dtype=torch.float64)

    def errors(score):
        time = TableTimes(torch.tensor([t], dtype=torch.float64))
        return dsm_loss(score, x0, time_sampler=time, generator=generator(4), reduction="none")

    exact = errors(score)
    standard_error = float(exact.std()) / math.sqrt(len(exact))
    assert abs(float(exact.mean()) - irreducible(sde, t)) < 5 * standard_error

    bump = 0.3
    for change in (lambda x: torch.ones_like(x), torch.tanh, lambda x: -x / (1 + x**2)):
        perturbed = FunctionScore(
            lambda x, t, c=change: score.noise(x, t) + bump * c(x), sde, NOISE
        )
        excess = errors(perturbed) - exact  # = ‖δ‖² + 2 ⟨ε̂ − ε, δ⟩, and the cross term has mean 0
        assert float(excess.mean()) > 5 * float(excess.std()) / math.sqrt(len(excess))


# --- distributions of the time


@pytest.mark.parametrize("sde", [family() for family in sdes.MEMBERS], ids=repr)
@pytest.mark.parametrize("time_sampler", [Uniform(), ImportanceSampled(), Stratified()], ids=repr)
def test_the_importance_weight_restores_the_uniform_expectation(sde, time_sampler):
    """A midpoint rule in the levels, so no chance is involved."""
    level = (torch.arange(50_000, dtype=torch.float64) + 0.5) / 50_000
    t, weight = time_sampler.at(sde, level)
    for h in (lambda u: torch.ones_like(u), lambda u: u, lambda u: torch.cos(5 * u)):
        fine = torch.linspace(0, 1, 200_001, dtype=torch.float64)
        expected = torch.trapezoid(h(fine), fine)
        fraction = (t - sde.t_min) / (sde.T - sde.t_min)
        assert abs(float((weight * h(fraction)).mean() - expected)) < 2e-3


@pytest.mark.parametrize("time_sampler", TIME_SAMPLERS, ids=TIME_SAMPLER_IDS)
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), CosineSDE(), RectifiedFlow()], ids=repr)
def test_draws_are_in_range_and_in_double_precision(time_sampler, sde, device):
    t, weight = time_sampler.draw(sde, 257, generator(), device)
    for value in (t, weight):
        assert value.shape == (257,)
        assert value.dtype == torch.float64
        assert value.device.type == device.type
    assert float(t.min()) >= sde.t_min
    assert float(t.max()) <= sde.T
    assert bool((weight > 0).all())
    assert bool(weight.isfinite().all())


def time_samplers_with_cdf():
    vp, ve = VPSDE(), EDMSDE()
    high, low = (float(vp.half_logsnr(end)) for end in (vp.t_min, vp.T))
    edges = [(math.log(end) + 1.2) / 1.2 for end in (0.002, 80.0)]
    cut = stats.truncnorm(*edges, loc=-1.2, scale=1.2)
    return [
        (Uniform(), vp, lambda t: (t - 1e-5) / (1 - 1e-5)),
        (ImportanceSampled(), vp, lambda t: (high - vp.half_logsnr(t)) / (high - low)),
        (LogNormal(), ve, lambda t: torch.as_tensor(cut.cdf(t.log().numpy()))),
    ]


@pytest.mark.parametrize(
    ("time_sampler", "sde", "cdf"),
    time_samplers_with_cdf(),
    ids=["uniform", "importance", "lognormal"],
)
def test_draws_have_the_distribution(time_sampler, sde, cdf):
    """Kolmogorov–Smirnov on 5000 draws; false alarms one in 10⁶."""
    t, _ = time_sampler.draw(sde, 5000, generator(5))
    assert stats.kstest(cdf(t).numpy(), "uniform").pvalue > 1e-6


def test_every_single_stratified_draw_has_the_distribution():
    """Kolmogorov–Smirnov on the first of 4 draws of 500 batches; false alarms one in 10⁶."""
    numbers = generator(5)
    t = torch.stack([Stratified().draw(VPSDE(), 4, numbers)[0][0] for _ in range(500)])
    assert stats.kstest(t.numpy(), "uniform").pvalue > 1e-6


def test_times_of_a_table_are_drawn_equally_often():
    """χ² of 10⁴ draws over 10 times; false alarms one in 10⁶."""
    times = torch.linspace(0.1, 1.0, 10)
    t, weight = TableTimes(times).draw(VPSDE(), 10_000, generator())
    counts = np.unique(t.numpy(), return_counts=True)[1]
    assert len(counts) == 10
    assert stats.chisquare(counts).pvalue > 1e-6
    assert bool((weight == 1).all())


@given(n=st.integers(1, 50), seed=st.integers(0, 2**31))
def test_strata_hold_one_draw_each(n, seed):
    t, _ = Stratified().draw(VPSDE(), n, generator(seed))
    fraction = (t - 1e-5) / (1 - 1e-5)
    assert sorted((fraction * n).long().tolist()) == list(range(n))


def test_log_normal_under_rectified_flow_is_logit_normal():
    """Kolmogorov–Smirnov of 5000 draws; false alarms one in 10⁶."""
    t, _ = LogNormal(0.0, 1.0).draw(RectifiedFlow(T=1 - 1e-9, t_min=1e-9), 5000, generator())
    assert stats.kstest(torch.logit(t).numpy(), "norm").pvalue > 1e-6


# --- the likelihood weighting on Gaussian data, in closed form


def second_moments(variance, sde):
    """Data N(0, variance), exact score: the loss, its variance under Uniform and under IS."""
    low, high = sde.t_min, sde.T

    def weight(t):
        return float(LikelihoodWeighting()(sde, torch.tensor([t], dtype=torch.float64)))

    def error(t):
        signal = float(sde.alpha(t)) ** 2 * variance
        return signal / (signal + float(sde.sigma(t)) ** 2)

    def mean(h):
        value = quad(lambda u: h(math.exp(u)) * math.exp(u), math.log(low), math.log(high))[0]
        return value / (high - low)

    loss = mean(lambda t: weight(t) * error(t))
    constant = 2 * float(sde.half_logsnr(low) - sde.half_logsnr(high)) / (high - low)
    uniform = 3 * mean(lambda t: (weight(t) * error(t)) ** 2)
    sampled = 3 * constant * mean(lambda t: weight(t) * error(t) ** 2)
    return loss, uniform - loss**2, sampled - loss**2


def test_importance_sampling_cuts_the_variance_of_the_likelihood_loss():
    """Data N(0, 1), exact score, t_min = 10⁻⁵: a factor of 400 (10 at t_min = 10⁻³)."""
    sde = VPSDE()
    loss, uniform, sampled = second_moments(1.0, sde)
    assert uniform / sampled > 400
    score = mixture(sde, [[0.0]], 1.0)
    x0 = score.sample(200_000, generator=generator(1), dtype=torch.float64)

    def losses(time_sampler, seed):
        return dsm_loss(
            score,
            x0,
            weighting=LikelihoodWeighting(),
            time_sampler=time_sampler,
            generator=generator(seed),
            reduction="none",
        )

    # 5 standard errors of a mean and of a variance (kurtosis below 20): false alarms one in 10⁶
    own = losses(ImportanceSampled(), 2)
    assert abs(float(own.mean()) - loss) < 5 * math.sqrt(sampled / len(x0))
    assert abs(float(own.var()) / sampled - 1) < 5 * math.sqrt(20 / len(x0))
    assert float(losses(Uniform(), 3).var()) > 30 * float(own.var())


@pytest.mark.parametrize(
    "time_sampler",
    [Stratified(), ImportanceSampled(), Stratified(ImportanceSampled())],
    ids=repr,
)
def test_time_samplers_agree_on_the_loss(time_sampler):
    """Bound of 5 standard errors of independent draws: false alarms one in 10⁶."""
    sde = VPSDE(t_min=1e-2)
    loss, uniform, _ = second_moments(0.25, sde)
    score = mixture(sde, [[0.0]], 0.25)
    x0 = score.sample(50_000, generator=generator(1), dtype=torch.float64)
    options = {"weighting": LikelihoodWeighting(), "time_sampler": time_sampler}
    value = dsm_loss(score, x0, **options, generator=generator(2))
    assert abs(float(value) - loss) < 5 * math.sqrt(uniform / len(x0))


def gaussian_kl(variance, other):
    return 0.5 * (variance / other - 1 - math.log(variance / other))


@pytest.mark.parametrize("off", [0.0, 0.05, 0.2, -0.1])
def test_the_likelihood_loss_bounds_the_divergence_of_the_reverse_sde(off):
    """KL(p ‖ SDE) <= ½ (T − t_min)(L − L*) + KL(p_T ‖ N(0, 1)) for a score that is off by 1 + d.

    Both sides have closed forms on Gaussian data; the loss is within 5 standard errors of its own.
    """
    sde, variance = VPSDE(t_min=1e-3), 0.25
    exact = mixture(sde, [[0.0]], variance)
    wrong = FunctionScore(lambda x, t: (1 + off) * exact(x, t), sde)
    x0 = exact.sample(100_000, generator=generator(1), dtype=torch.float64)

    def losses(score):
        return dsm_loss(
            score,
            x0,
            weighting=LikelihoodWeighting(),
            time_sampler=ImportanceSampled(),
            generator=generator(2),
            reduction="none",
        )

    def marginal(t):
        return float(sde.alpha(t)) ** 2 * variance + float(sde.sigma(t)) ** 2

    def rate(t):
        return 0.1 + 19.9 * t

    matching = 0.5 * (1 - 1e-3) * (losses(wrong) - losses(exact))
    expected = 0.5 * off**2 * quad(lambda t: rate(t) / marginal(t), 1e-3, 1.0)[0]
    error = float(matching.std()) / math.sqrt(len(x0))
    assert abs(float(matching.mean()) - expected) <= 5 * error + 1e-12

    def std(s, v):  # dV/ds of the reverse SDE, s = 1 − t
        t = 1 - s
        return rate(t) * v - 2 * rate(t) * (1 + off) / marginal(t) * v + rate(t)

    final = solve_ivp(std, (0, 1 - 1e-3), [1.0], rtol=1e-10, atol=1e-12, method="LSODA").y[0, -1]
    divergence = gaussian_kl(marginal(1e-3), final)
    bound = float(matching.mean()) + 5 * error + gaussian_kl(marginal(1.0), 1.0)
    assert divergence <= bound + 1e-9
    if off:
        assert divergence > 1e-4


# --- training needs


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (MLP((3,), width=8, depth=2, classes=4), (3,)),
        (UNet(channels=1, width=8, blocks=1, classes=4), (1, 8, 8)),
    ],
    ids=["MLP", "UNet"],
)
@pytest.mark.parametrize("prediction", [NOISE, VELOCITY, edm(0.5)], ids=repr)
def test_gradients_reach_every_parameter(network, shape, prediction):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator()) * 0.1)
    network.zero_grad()
    model = ScoreModel(network, VPSDE(), prediction)
    x0 = torch.randn(16, *shape, generator=generator())
    classes = torch.arange(16) % 5  # the null class included
    dsm_loss(model.given(classes=classes), x0, generator=generator(1)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("time_sampler", TIME_SAMPLERS, ids=TIME_SAMPLER_IDS)
def test_only_the_given_generator_is_used(time_sampler, device):
    score = ScoreModel(Linear(), VPSDE()).to(device)
    x0 = torch.randn(8, 5, generator=generator()).to(device)
    before = torch.random.get_rng_state()
    losses = [
        dsm_loss(score, x0, time_sampler=time_sampler, generator=generator(s)) for s in (1, 1, 2)
    ]
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    numbers = generator(1, device)
    on_device = dsm_loss(score, x0, time_sampler=time_sampler, generator=numbers)
    assert bool(on_device.isfinite())


def test_without_a_generator_the_global_seed_decides():
    score, x0 = ScoreModel(Linear(), VPSDE()), torch.ones(4, 2)
    torch.manual_seed(3)
    first = dsm_loss(score, x0)
    torch.manual_seed(3)
    assert torch.equal(first, dsm_loss(score, x0))


def test_a_function_can_be_a_weighting():
    score, x0 = ScoreModel(Linear(), VPSDE()), torch.ones(4, 2)
    twice = dsm_loss(score, x0, weighting=lambda sde, t: 2 + 0 * t, generator=generator())
    torch.testing.assert_close(twice, 2 * dsm_loss(score, x0, generator=generator()))
    column = dsm_loss(score, x0, weighting=lambda sde, t: 2 + 0 * t[:, None], generator=generator())
    assert torch.equal(column, twice)


@pytest.mark.parametrize("value", [*WEIGHTINGS, *TIME_SAMPLERS], ids=repr)
def test_weightings_and_time_samplers_are_frozen_and_have_a_repr(value):
    assert repr(value).startswith(type(value).__name__)
    fields = dataclasses.fields(value)
    if fields:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, fields[0].name, 1)


class Bare(torch.nn.Module):
    def forward(self, x, t):
        return x


def general_sde():
    class OrnsteinUhlenbeck(sdes.SDE):
        def drift(self, x, t):
            return -x

        def diffusion(self, t):
            return torch.ones_like(torch.as_tensor(t))

    return OrnsteinUhlenbeck()


def loss_on(x0=None, score=None, **arguments):
    score = ScoreModel(Linear(), VPSDE()) if score is None else score
    return dsm_loss(score, torch.ones(4, 2) if x0 is None else x0, **arguments)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: loss_on([1.0]), TypeError, "x0: expected a torch.Tensor"),
        (lambda: loss_on(torch.ones(4, 2, dtype=torch.int64)), TypeError, "x0: .*float"),
        (lambda: loss_on(torch.full((4, 2), math.nan)), ValueError, "x0: expected finite"),
        (lambda: loss_on(torch.ones(0, 2)), ValueError, "x0: expected at least one"),
        (lambda: loss_on(torch.tensor(1.0)), ValueError, "x0: .*batch"),
        (lambda: loss_on(reduction="avg"), ValueError, "reduction: expected 'mean'"),
        (lambda: loss_on(weighting=Simple), TypeError, "weighting: .*parentheses"),
        (lambda: loss_on(weighting="simple"), TypeError, "weighting: expected"),
        (lambda: loss_on(time_sampler=Uniform), TypeError, "time_sampler: .*not the class"),
        (lambda: loss_on(score=Bare()), TypeError, "score: .*ScoreModel"),
        (
            lambda: loss_on(score=FunctionScore(lambda x, t: x, general_sde())),
            TypeError,
            "GaussianSDE",
        ),
        (lambda: EDMWeighting(0.0), ValueError, "sigma_data"),
        (lambda: MinSNR(-1.0), ValueError, "gamma"),
        (
            lambda: PredictionWeighting("noise"),
            TypeError,
            "prediction: expected a Prediction such as NOISE",
        ),
        (lambda: LogNormal(std=0.0), ValueError, "std"),
        (lambda: LogNormal(mean=math.nan), ValueError, "mean"),
        (lambda: LogNormal(80.0).draw(EDMSDE(), 3), ValueError, "mean, std: .*-6.21 … 4.38"),
        (lambda: LogNormal(-80.0).draw(EDMSDE(), 3), ValueError, "mean, std: .*-6.21 … 4.38"),
        (lambda: Stratified(Uniform), TypeError, "base: .*not the class"),
        (lambda: TableTimes([0.5]), TypeError, "times: expected a torch.Tensor"),
        (lambda: TableTimes(torch.tensor([1, 2])), TypeError, "times"),
        (lambda: TableTimes(torch.tensor([])), ValueError, "times"),
        (lambda: TableTimes(torch.ones(2, 2)), ValueError, "times"),
        (lambda: TableTimes(torch.tensor([-0.1])), ValueError, "times"),
        (
            lambda: loss_on(time_sampler=TableTimes(torch.tensor([2.0]))),
            ValueError,
            "t: expected times in",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.5, 3.0), (-4.0, 0.4)])
def test_quantiles_of_log_normal_noise_levels_are_those_of_the_truncated_normal(
    mean: float, std: float
) -> None:
    ve = VESDE(0.01, 50.0)
    ends = (float(ve.sigma(t).log()) for t in (ve.t_min, ve.T))
    low, high = ((end - mean) / std for end in ends)
    level = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    t, _ = LogNormal(mean, std).at(ve, level)
    expected = stats.truncnorm(low, high, loc=mean, scale=std).ppf(level.numpy())
    torch.testing.assert_close(ve.sigma(t).log(), torch.as_tensor(expected), rtol=1e-6, atol=1e-6)


def test_the_last_time_of_a_table_is_drawn_at_level_one() -> None:
    times = torch.tensor([0.2, 0.5, 0.9])
    t, _ = TableTimes(times).at(VPSDE(), torch.tensor([0.0, 0.34, 1.0]))
    torch.testing.assert_close(t, times.double())
