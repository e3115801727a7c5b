"""The Itô estimator, against the density of its chain by quadrature and against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from scoresde import (
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    FunctionScore,
    GaussianMixture,
    GaussianSDE,
    Moments,
    ScoreModel,
    SubVPSDE,
    log_likelihood,
)
from scoresde.likelihood import ItoEstimate, Likelihood

SDES = (VPSDE(), SubVPSDE(), VESDE(), EDMSDE())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(sde: GaussianSDE, d: int) -> GaussianMixture:
    """Four modes, stretched from 0.05 to 0.5."""
    generator = seeded(d)
    means = 0.5 * torch.randn(4, d, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(4, d, d, generator=generator, dtype=torch.float64))[0]
    stds = torch.logspace(math.log10(0.05), math.log10(0.5), d, dtype=torch.float64)
    covariances = rotation @ torch.diag(stds**2) @ rotation.mT
    return GaussianMixture(torch.tensor([0.1, 0.2, 0.3, 0.4]), means, covariances, sde)


def off(result: Likelihood, score: GaussianMixture) -> Tensor:
    """Error in bits per dimension against the closed form, with its sign."""
    truth = score.log_prob(result.points.double(), result.t_min)
    return (result.log_prob.double() - truth) / (score.event_shape.numel() * math.log(2))


@pytest.mark.parametrize("known", [True, False])
def test_the_mean_of_the_weights_is_the_density_of_the_chain(known: bool) -> None:
    """Two steps with a wrong score on the line: ∫∫ p(y₀|y₁) p(y₁|y₂) p(y₂), summed on a grid.

    200,000 paths; the mean is within 5 of its standard errors (false alarm 6e-7).
    """
    sde, x0, t_min, paths = VPSDE(0.1, 3.0), 0.4, 0.3, 200_000
    moments = Moments(0.2, 0.3, known=True) if known else Moments()
    prior = Independent(Normal(torch.tensor([0.1]), torch.tensor([1.1])), 1)
    score = FunctionScore(lambda x, t: torch.sin(3 * x) - x, sde, moments=moments)
    method = ItoEstimate(steps=2, samples=2)
    x = torch.full((paths // 2, 1), x0, dtype=torch.float64)
    result = log_likelihood(score, x, method=method, prior=prior, t_min=t_min, generator=seeded(1))
    weights = result.log_prob.exp()  # each of two paths

    t = torch.tensor([t_min, math.nan, sde.T], dtype=torch.float64)
    ratio = torch.exp(-sde.half_logsnr(t[[0, 2]]))
    b = math.sqrt(float(moments.variance))
    middle = b * math.tan(float(torch.atan(ratio / b).mean()))
    t[1] = sde.time_at(-math.log(middle))
    alpha, v = sde.alpha(t), torch.exp(-2 * sde.half_logsnr(t))
    axes = [torch.linspace(-9, 9, 1501, dtype=torch.float64) * (v[i] + 1) ** 0.5 for i in (1, 2)]

    def kernel(early: Tensor, late: Tensor, k: int) -> Tensor:
        gap, c = v[k + 1] - v[k], moments.variance
        slope = alpha[k + 1] * score.function(alpha[k + 1] * late, t[k + 1])
        std = torch.sqrt(gap * (c + v[k]) / (c + v[k + 1]))
        return Normal(late + gap * slope, std).log_prob(early).exp()

    y0 = torch.tensor(x0, dtype=torch.float64) / alpha[0]
    first = kernel(y0, axes[0], 0) * axes[0].diff()[0]
    second = kernel(axes[0][:, None], axes[1][None], 1)
    last = prior.log_prob((alpha[2] * axes[1])[:, None]).exp() * alpha[2] * axes[1].diff()[0]
    expected = float(first @ second @ last) / float(alpha[0])
    error = float(weights.std()) / math.sqrt(len(weights))
    assert error < 0.05 * expected
    assert abs(float(weights.mean()) - expected) < 5 * error


@pytest.mark.parametrize("sde", SDES[1:3], ids=repr)
def test_closed_form(sde: GaussianSDE) -> None:
    """True scores: errors fall with the steps, and the budget covers them."""
    for d in (2, 16):
        score = mixture(sde, d)
        x = score.sample(32, sde.t_min, seeded(1), dtype=torch.float64)
        wrong, covered = [], []
        for steps in (32, 128):
            result = log_likelihood(
                score, x, method=ItoEstimate(steps, samples=8), generator=seeded(2)
            )
            error = off(result, score)
            wrong.append(float(error.square().mean().sqrt()))
            covered.append(error.abs() * d * math.log(2) <= 2 * result.error)
        assert wrong[1] < 0.7 * wrong[0]
        assert wrong[1] < 0.2
        assert torch.cat(covered).double().mean() >= 0.95
        assert (result.evaluations == 128 * 8).all()
        assert not result.divergences.any()


def test_a_single_path_converges_to_log_p() -> None:
    """With the number of steps, the noise of a path vanishes like N^(−1/2), its bias like 1/N."""
    score = mixture(VPSDE(), 2)
    x = score.sample(1, 1e-5, seeded(1), dtype=torch.float64).expand(60, 2).contiguous()
    std, bias, reported = [], [], []
    for steps in (64, 256):
        result = log_likelihood(score, x, method=ItoEstimate(steps, 2), generator=seeded(2))
        std.append(float(off(result, score).std()))
        bias.append(float(off(result, score).mean()))
        reported.append(float(result.solver_error.mean()))
    assert 1.5 < std[0] / std[1] < 3.0
    assert reported[1] < 0.7 * reported[0]
    assert abs(bias[1]) < 0.05


@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_gaussian_data_have_no_error(sde: GaussianSDE) -> None:
    """Of any covariance, with two steps and two paths."""
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=seeded(), dtype=torch.float64))[0]
    covariance = rotation @ torch.diag(torch.tensor([0.1, 1.0, 4.0]).double()) @ rotation.mT
    score = GaussianMixture(torch.ones(1), torch.ones(1, 3), covariance[None], sde)
    x = score.sample(8, 0.0, seeded(1), dtype=torch.float64)
    result = log_likelihood(score, x, method=ItoEstimate(2, 2), generator=seeded(2))
    assert off(result, score).abs().max() < 1e-6
    assert max(result.standard_error.max(), result.solver_error.max()) < 1e-6


def test_more_paths_tighten_the_bound() -> None:
    """For a wrong score too: the mean increases with K, by several standard errors."""
    true = mixture(VPSDE(), 2)
    wrong = FunctionScore(lambda x, t: 0.8 * true(x, t), true.sde, moments=true.moments)
    x = true.sample(100, 1e-5, seeded(1), dtype=torch.float64)

    def bound(samples: int) -> Tensor:
        return log_likelihood(
            wrong, x, method=ItoEstimate(32, samples), generator=seeded(samples)
        ).log_prob

    gain = bound(16) - bound(2)
    assert gain.mean() > 4 * gain.std() / 10


def test_rows_streams_and_conditions() -> None:
    """A row's random numbers and condition do not depend on its batch; no global state changes."""
    torch.manual_seed(0)
    network = MLP((2,), width=16, depth=1, classes=3)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    model = ScoreModel(network, VPSDE())
    x = torch.randn(1, 2, generator=seeded(1), dtype=torch.float64).expand(6, 2).contiguous()
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    method = ItoEstimate(8, 2)
    before = torch.get_rng_state()
    joint = log_likelihood(model.given(classes=labels), x, method=method, generator=seeded(2))
    chunked = log_likelihood(
        model.given(classes=labels), x, method=method, generator=seeded(2), batch_size=4
    )
    assert torch.equal(before, torch.get_rng_state())
    assert torch.allclose(joint.log_prob, chunked.log_prob, rtol=0, atol=1e-6)
    for label in range(3):
        alone = log_likelihood(model.given(classes=label), x, method=method, generator=seeded(2))
        same = labels == label
        assert torch.allclose(alone.log_prob[same], joint.log_prob[same], atol=1e-5)
        assert not torch.allclose(alone.log_prob[~same], joint.log_prob[~same], atol=1e-5)


@pytest.mark.parametrize("shape", [(), (1, 2, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_event_shapes(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    d = math.prod(shape)
    score = GaussianMixture(
        torch.ones(1), torch.full((1, *shape), 0.5), 0.09 * torch.eye(d)[None], VPSDE()
    ).to(device)
    score.moments = Moments().to(device)
    x = score.sample(4, 0.0, dtype=dtype, generator=seeded(1))
    result = log_likelihood(score, x, method=ItoEstimate(), generator=seeded(2))
    assert result.log_prob.shape == (4,)
    assert (result.latent.shape, result.latent.dtype) == (x.shape, dtype)
    assert (result.log_prob.dtype, result.log_prob.device) == (dtype, x.device)
    budget = 3 * result.error.cpu() / (d * math.log(2)) + 5e-3
    assert (off(result, score).cpu().abs() < budget).all()


def test_the_gradient_is_that_of_the_estimate() -> None:
    """Against differences, with the same noise."""
    score = mixture(VPSDE(), 2)
    x = score.sample(1, 0.0, seeded(1), dtype=torch.float64).requires_grad_()

    def value(x: Tensor) -> Tensor:
        return log_likelihood(score, x, method=ItoEstimate(4, 2), generator=seeded(2)).log_prob

    assert torch.autograd.gradcheck(value, x, eps=1e-5, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ItoEstimate(steps=7), ValueError, "steps: expected a multiple of 2, got 7"),
        (lambda: ItoEstimate(steps=0), ValueError, "steps"),
        (lambda: ItoEstimate(samples=1), ValueError, "samples"),
        (lambda: ItoEstimate(samples=2.5), TypeError, "samples"),
    ],
)
def test_bad_input(make: object, error: type[Exception], message: str) -> None:
    assert callable(make)
    with pytest.raises(error, match=message):
        make()
