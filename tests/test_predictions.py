"""Parametrizations: every target gives the same data, noise, score and velocity; labels."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from scoresde import (
    DATA,
    DDPM,
    FLOW,
    NOISE,
    SCORE,
    VELOCITY,
    VPSDE,
    FunctionScore,
    GaussianMixture,
    GaussianSDE,
    ScoreModel,
    by_half_logsnr,
    by_index,
    by_sigma,
    by_time,
    edm,
)
from scoresde.scores.labels import LogSNRLabel, TimeLabel, by_ratio
from scoresde.scores.predictions import DENOISER, Prediction
from scoresde.sdes import MEMBERS

EACH_SDE = pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.__qualname__)
SIGMA_DATA = 0.6
ROUNDING = 4e-15
"""Of x and αx̂, whose difference is σε: 4e-9 for sub-VP at t = 1e-5, below 1e-10 elsewhere."""


class Truth:
    """Clean data and noise, and the output of a perfect network in each parametrization.

    Written from the definitions in the papers, with no use of the library's coefficients.
    """

    def __init__(self, sde: GaussianSDE, t: Tensor, x: Tensor, data: Tensor, noise: Tensor) -> None:
        self.t, self.x, self.data, self.noise = t, x, data, noise
        self.alpha, self.sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        self.score = -self.noise / self.sigma
        self.velocity = self.alpha * self.noise - self.sigma * self.data
        ones = torch.ones(len(t), 1, dtype=torch.float64)
        f, g2 = sde.drift(ones, t), sde.diffusion(t)[:, None] ** 2
        self.flow = f * self.x - 0.5 * g2 * self.score
        # EDM, table 1: D(y) = c_skip y + c_out F at noise level ρ = σ/α, y = x/α
        ratio = self.sigma / self.alpha
        c_skip = SIGMA_DATA**2 / (ratio**2 + SIGMA_DATA**2)
        c_out = ratio * SIGMA_DATA / torch.sqrt(SIGMA_DATA**2 + ratio**2)
        # x_0 − c_skip (x_0 + ρ ε), with 1 − c_skip written without cancellation
        missing = ratio**2 / (ratio**2 + SIGMA_DATA**2) * self.data - c_skip * ratio * self.noise
        self.inner = missing / c_out


TARGETS: list[tuple[Prediction, Callable[[Truth], Tensor]]] = [
    (NOISE, lambda truth: truth.noise),
    (DATA, lambda truth: truth.data),
    (SCORE, lambda truth: truth.score),
    (VELOCITY, lambda truth: truth.velocity),
    (FLOW, lambda truth: truth.flow),
    (edm(SIGMA_DATA), lambda truth: truth.inner),
    (DENOISER, lambda truth: truth.data),
]
SOURCES = pytest.mark.parametrize(("source", "target"), TARGETS, ids=lambda v: type(v).__name__)


def draw(sde: GaussianSDE, t: Tensor) -> Truth:
    """One noised row of seven numbers for each time."""
    generator = torch.Generator().manual_seed(5)
    shape = (len(t), 7)
    data, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return Truth(sde, t, sde.alpha(t)[:, None] * data + sde.sigma(t)[:, None] * noise, data, noise)


class Fixed(nn.Module):
    """A perfect network: its output is fixed, and it stores its inputs."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out = nn.Parameter(out, requires_grad=False)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        self.seen = x, label
        return self.out


def times(sde: GaussianSDE) -> Tensor:
    """Both ends of numerical work, and in between."""
    low = max(sde.t_min, 1e-5)
    parts = torch.tensor([0.0, 1e-4, 0.01, 0.2, 0.5, 0.9, 0.999, 1.0], dtype=torch.float64)
    return low + (sde.T - low) * parts


def sizes(truth: Truth) -> dict[str, Tensor]:
    """How large the terms are that cancel into each view; rounding errors are a part of these."""
    data = truth.x.abs() / truth.alpha + truth.sigma / truth.alpha * truth.noise.abs() + 1
    noise = (truth.x.abs() + truth.alpha) / truth.sigma + 1
    return {
        "denoised": data,
        "noise": noise,
        "forward": noise / truth.sigma,
        "velocity": truth.alpha * noise + truth.sigma * data,
    }


@EACH_SDE
@SOURCES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_every_view_comes_back_from_every_target(member, source, target, dtype):
    """Error at most 64 roundings of the terms: 1e-10 and better in float64, at both ends."""
    sde = member()
    truth = draw(sde, times(sde))
    model = ScoreModel(Fixed(target(truth).to(dtype)), sde, source)
    exact = {
        "denoised": truth.data,
        "noise": truth.noise,
        "forward": truth.score,
        "velocity": truth.velocity,
    }
    for view, size in sizes(truth).items():
        value = getattr(model, view)(truth.x.to(dtype), truth.t)
        assert value.dtype == dtype
        error = (value.double() - exact[view]).abs()
        assert (error <= 64 * torch.finfo(dtype).eps * size).all(), view
        if dtype == torch.float64:
            largest = exact[view].abs().amax(1, keepdim=True)
            assert (error <= (1e-10 + ROUNDING / truth.sigma) * largest).all(), view


@EACH_SDE
@SOURCES
def test_targets_come_back_from_the_data(member, source, target):
    """From x̂ through the inverse of each parametrization to its target."""
    sde = member()
    truth = draw(sde, times(sde))
    score = FunctionScore(lambda x, t: truth.data, sde, DATA)
    value = score.predict(truth.x, truth.t, source)
    expected = target(truth)
    bound = (1e-10 + ROUNDING / truth.sigma) * expected.abs().amax(1, keepdim=True)
    assert ((value - expected).abs() <= bound).all()


@EACH_SDE
def test_near_the_data_end_float32_keeps_the_data(member):
    """x̂ from ε̂ in float32 at t_min: no digit of x is lost, since k is the difference from 1/α."""
    sde = member()
    t = torch.full((3,), max(sde.t_min, 1e-5), dtype=torch.float64)
    truth = draw(sde, t)
    for source, target in TARGETS:
        if source in (NOISE, VELOCITY, edm(SIGMA_DATA), DATA):
            model = ScoreModel(Fixed(target(truth).float()), sde, source)
            value = model.denoised(truth.x.float(), t)
            error = (value - truth.data).abs()
            assert (error <= 4e-7 * (1 + truth.x.abs() + truth.data.abs())).all()


@EACH_SDE
def test_the_edm_network_sees_inputs_and_targets_of_unit_size(member):
    """Over data N(0, σ_d²): E|c_in y|² = E|F|² = 1; 6 standard errors of 20 000 draws."""
    sde, n = member(), 20_000
    data = SIGMA_DATA * torch.randn(n, 1, dtype=torch.float64)
    for t in (max(sde.t_min, 1e-4 * sde.T), 0.3 * sde.T, sde.T):
        x = sde.perturb(data, t, torch.randn_like(data))
        network = Fixed(torch.zeros_like(x))
        ScoreModel(network, sde, edm(SIGMA_DATA)).denoised(x, t)
        ratio = sde.sigma(t) / sde.alpha(t)
        scaled = x / sde.alpha(t) / torch.sqrt(SIGMA_DATA**2 + ratio**2)
        torch.testing.assert_close(network.seen[0], scaled)
        assert abs(float(network.seen[0].square().mean()) - 1) < 6 * math.sqrt(2 / n)
        target = FunctionScore(lambda x, t: data, sde, DATA).predict(x, t, edm(SIGMA_DATA))
        assert abs(float(target.square().mean()) - 1) < 6 * math.sqrt(2 / n)


def test_the_flow_of_rectified_flow_is_noise_minus_data():
    from scoresde import RectifiedFlow

    sde = RectifiedFlow()
    truth = draw(sde, torch.tensor([1e-3, 0.4, 0.99], dtype=torch.float64))
    torch.testing.assert_close(truth.flow, truth.noise - truth.data)


@EACH_SDE
@SOURCES
@pytest.mark.parametrize("part", [0.01, 0.4, 1.0])
def test_a_network_trained_on_a_mixture_gives_its_score(member, source, target, part):
    """The exact denoiser in each parametrization, against autograd of torch's own log density."""
    sde = member()
    t = max(sde.t_min, part * sde.T)
    weights = torch.tensor([0.2, 0.8], dtype=torch.float64)
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
    covariances = torch.diag_embed(torch.tensor([[0.3, 0.1], [0.2, 0.4]], dtype=torch.float64))
    mixture = GaussianMixture(weights, means, covariances, sde)
    x = mixture.sample(6, t, dtype=torch.float64).requires_grad_()
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    eye = torch.eye(2, dtype=torch.float64)
    density = MixtureSameFamily(
        Categorical(weights),
        MultivariateNormal(alpha * means, alpha**2 * covariances + sigma**2 * eye),
    )
    (score,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    x = x.detach()
    t = torch.full((6,), t, dtype=torch.float64)
    posterior = Truth(sde, t, x, (x + sigma**2 * score) / alpha, -sigma * score)
    model = ScoreModel(Fixed(target(posterior)), sde, source)
    torch.testing.assert_close(model(x, t), score, rtol=1e-8, atol=1e-8 * float(score.abs().max()))


# --- labels


def test_labels():
    sde = VPSDE()
    t = torch.tensor([0.1, 0.7], dtype=torch.float64)
    assert torch.equal(by_time(sde, t), t)
    torch.testing.assert_close(TimeLabel(999.0)(sde, t), 999 * t)
    torch.testing.assert_close(by_sigma(sde, t), sde.sigma(t))
    ratio = sde.sigma(t) / sde.alpha(t)
    torch.testing.assert_close(by_ratio(sde, t), ratio)
    torch.testing.assert_close(by_half_logsnr(sde, t), -ratio.log())
    torch.testing.assert_close(LogSNRLabel(-0.25)(sde, t), ratio.log() / 4)  # c_noise of EDM
    with pytest.raises(NotImplementedError, match="VPSDE has no table"):
        by_index(sde, t)
    table = DDPM.linear(N=10)
    torch.testing.assert_close(by_index(table, t), torch.tensor([0.0, 6.0]).double())


@pytest.mark.parametrize("label", [by_time, by_sigma, by_half_logsnr, TimeLabel(999.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_network_receives_one_label_per_sample(label, dtype):
    """In its own dtype, float32 at least: bfloat16 has 500 and 504, and nothing in between."""
    sde, network = VPSDE(), Fixed(torch.zeros(3, 2, dtype=dtype))
    model = ScoreModel(network, sde, label=label)
    x = torch.randn(3, 2)
    kinds = [0.5, torch.tensor(0.5), torch.full((3,), 0.5)]
    for t in kinds:
        assert model(x, t).dtype == torch.float32
        seen, received = network.seen
        assert seen.dtype == dtype
        assert received.shape == (3,)
        assert received.dtype == torch.promote_types(dtype, torch.float32)
        expected = label(sde, torch.full((3,), 0.5, dtype=torch.float64))
        torch.testing.assert_close(received.double(), expected, rtol=1e-7, atol=0)


def test_a_function_is_a_label_too():
    network = Fixed(torch.zeros(2, 1))
    ScoreModel(network, VPSDE(), label=lambda sde, t: 3 * t)(torch.randn(2, 1), 0.25)
    assert network.seen[1].tolist() == [0.75, 0.75]


def test_recipes_print_and_compare_by_value():
    assert repr(edm(0.5)) == "EDMPrediction(sigma_data=0.5)"
    assert edm(0.5) == edm(0.5) != edm(1.0)
    assert NOISE != SCORE
    with pytest.raises(ValueError, match="sigma_data"):
        edm(-1.0)
