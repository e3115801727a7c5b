"""Posterior scores against the exact posterior of Gaussians and mixtures."""

from __future__ import annotations

import math

import pytest
import torch

from scoresde import VESDE, VPSDE, GaussianMixture, Moments, SubVPSDE, log_likelihood, sample
from scoresde.inverse_problems import DPS, MMPS, DiffPIR, LogLikelihood, Observation, PiGDM
from scoresde.operators import AveragePool, Bicubic, Blur, Grayscale, Mask, Matrix
from scoresde.samplers import Ancestral, Exponential

SDES = pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=repr)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(sde, event=(4,), seed=0, components=1):
    """Data with a full covariance, eigenvalues between 0.1 and about 2."""
    d = math.prod(event)
    factor = randn(components, d, d, seed=seed) / math.sqrt(d)
    covariances = factor @ factor.mT + 0.1 * torch.eye(d, dtype=torch.float64)
    weights = torch.linspace(1.0, 2.0, components)
    return GaussianMixture(weights, randn(components, *event, seed=seed + 1), covariances, sde)


def isotropic(sde, event=(4,), variance=1.0):
    d = math.prod(event)
    eye = variance * torch.eye(d, dtype=torch.float64)
    return GaussianMixture(torch.ones(1), torch.zeros(1, *event), eye.unsqueeze(0), sde)


CASES = [
    (Mask(torch.tensor([True, False, True, False])), (4,)),
    (Matrix(randn(2, 4, seed=5)), (4,)),
    (AveragePool(2, dimensions=1), (4,)),
    (Blur(torch.tensor([0.2, 0.6, 0.2])), (4,)),
    (Bicubic(2), (1, 4, 4)),
    (Grayscale(), (3, 2, 2)),
]
OPERATORS = pytest.mark.parametrize(("operator", "event"), CASES, ids=str)


# --- the oracle


@OPERATORS
def test_the_mixtures_posterior_is_bayes_theorem(operator, event):
    """log p(x|y) + log p(y) = log p(x) + log p(y|x), at any point."""
    prior = gaussian(VPSDE(), event, components=3)
    x, truth, noise_std = randn(5, *event, seed=7), randn(1, *event, seed=8), 0.3
    y = operator(truth) + 0.1
    posterior = prior.posterior(operator, y[0], noise_std)
    evidence = prior.evidence(operator, y, noise_std)
    seen = Observation(operator, y, noise_std).log_prob(x)
    torch.testing.assert_close(posterior.log_prob(x) + evidence, prior.log_prob(x) + seen)
    assert posterior.event_shape == prior.event_shape


def test_a_drawn_observation_has_its_noise():
    x, operator = randn(4000, 4), Matrix(randn(2, 4, seed=5))
    seen = Observation.draw(operator, x, 0.3, torch.Generator().manual_seed(0))
    assert float(seen.residual(x).std()) == pytest.approx(0.3, rel=0.04)  # 5 standard errors
    expected = torch.distributions.Normal(operator(x), 0.3).log_prob(seen.y).sum(1)
    torch.testing.assert_close(seen.log_prob(x), expected)


# --- methods that claim to be exact are


@SDES
@OPERATORS
@pytest.mark.parametrize("noise_std", [0.02, 0.5])
def test_moment_matching_is_exact_on_gaussian_data(sde, operator, event, noise_std):
    prior = gaussian(sde, event)
    y = operator(randn(1, *event, seed=3))
    exact = prior.posterior(operator, y[0], noise_std)
    seen = Observation(operator, y, noise_std)
    for method in (PiGDM(prior, seen, tolerance=1e-12), MMPS(prior, seen, 50, tolerance=1e-12)):
        for t in (1e-3, 0.3, 0.9):
            x = prior.sample(3, t, torch.Generator().manual_seed(0), torch.float64)
            expected = exact.denoised(x, t)
            torch.testing.assert_close(method.denoised(x, t), expected, rtol=1e-6, atol=1e-7)


@SDES
@OPERATORS
def test_one_known_variance_is_enough_where_all_are_equal(sde, operator, event):
    """The published ΠGDM: data N(0, I), in closed form, also without noise."""
    prior = isotropic(sde, event)
    y = operator(randn(1, *event, seed=3))
    for noise_std in (1e-4, 0.3):
        exact = prior.posterior(operator, y[0], noise_std)
        seen = Observation(operator, y, noise_std)
        for t in (1e-2, 0.7):
            x = prior.sample(3, t, torch.Generator().manual_seed(0), torch.float64)
            method = PiGDM(prior, seen, iterations=1)
            torch.testing.assert_close(
                method.denoised(x, t), exact.denoised(x, t), rtol=1e-5, atol=1e-6
            )


def test_log_density_of_a_consistent_posterior():
    """Where the posterior score is exact, so is log p(x|y) by the flow."""
    prior = gaussian(VPSDE(), (3,))
    operator, y = Matrix(randn(1, 3, seed=5)), torch.full((1, 1), 0.7, dtype=torch.float64)
    exact = prior.posterior(operator, y[0], 0.3)
    x = exact.sample(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = Observation(operator, y, 0.3)
    alpha, sigma = (float(curve(prior.sde.T)) for curve in (prior.sde.alpha, prior.sde.sigma))
    total = alpha**2 * exact.covariances[0] + sigma**2 * torch.eye(3, dtype=torch.float64)
    end = torch.distributions.MultivariateNormal(alpha * exact.means[0], total)
    for method in (PiGDM(prior, seen, tolerance=1e-12), MMPS(prior, seen, 20, tolerance=1e-12)):
        result = log_likelihood(method, x, tolerance=1e-4, prior=end)
        assert bool(result.converged.all())
        expected = exact.log_prob(x, prior.sde.t_min)
        torch.testing.assert_close(result.log_prob, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["PiGDM", "MMPS"])
def test_samples_of_a_consistent_posterior(name):
    """Mean and covariance within 5 standard errors: false-alarm rate of a new seed below 1e-4."""
    prior, n = gaussian(VPSDE(), (3,)), 4000
    operator, y = Matrix(randn(1, 3, seed=5)), torch.full((1, 1), 0.7, dtype=torch.float64)
    seen = Observation(operator, y, 0.1)
    method = {"PiGDM": PiGDM(prior, seen), "MMPS": MMPS(prior, seen)}[name]
    generator = torch.Generator().manual_seed(0)
    x = sample(method, (n, 3), Exponential(3), steps=40, generator=generator).double()
    exact = prior.posterior(operator, y[0], 0.1)
    covariance = exact.covariances[0]
    error = (x.mean(0) - exact.means[0]) / (covariance.diag() / n).sqrt()
    assert float(error.abs().max()) < 5
    d = covariance.diag()
    scale = ((d.outer(d) + covariance**2) / n).sqrt()
    assert float(((torch.cov(x.T) - covariance).abs() / scale).max()) < 5


# --- each method is what its paper says, against a dense transcription on a mixture


def dense(prior, x, t):
    """x̂ ``(n, d)``, its Jacobian ``(n, d, d)``, α and σ."""
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: prior.denoised(v[None], t)[0]))(x)
    return prior.denoised(x, t), jacobian, float(prior.sde.alpha(t)), float(prior.sde.sigma(t))


@SDES
@pytest.mark.parametrize("t", [0.05, 0.6])
def test_each_method_is_its_formula(sde, t):
    prior, a, noise_std = gaussian(sde, (4,), components=3), randn(2, 4, seed=5), 0.2
    x = prior.sample(5, t, torch.Generator().manual_seed(0), torch.float64)
    y = randn(5, 2, seed=6)
    seen = Observation(Matrix(a), y, noise_std)
    clean, jacobian, alpha, sigma = dense(prior, x, t)
    eye, missed = torch.eye(2, dtype=torch.float64), y - clean @ a.T

    def kalman(covariance, gain):
        system = a @ covariance @ a.T + noise_std**2 * eye
        w = torch.linalg.solve(system.expand(5, 2, 2), missed)
        return clean + torch.einsum("nij,nj->ni", gain, w @ a)

    c = prior.moments.variance.mean()
    conditional_variance = float(c * sigma**2 / (alpha**2 * c + sigma**2))
    zero, isotropic_spread = (
        k * torch.eye(4, dtype=torch.float64) for k in (0.0, conditional_variance)
    )
    tweedie = sigma**2 / alpha * jacobian.mT
    prox = torch.linalg.lstsq(
        torch.cat([a, noise_std * alpha / sigma * torch.eye(4, dtype=torch.float64)]),
        torch.cat([y, noise_std * alpha / sigma * clean], dim=1).T,
    ).solution.T
    for method, expected in [
        (DPS(prior, seen), kalman(zero, tweedie)),
        (PiGDM(prior, seen, Moments(0.0, c)), kalman(isotropic_spread, tweedie)),
        (MMPS(prior, seen, 10, tolerance=1e-12), kalman(tweedie, tweedie)),
        (DiffPIR(prior, seen), prox),
        (DiffPIR(prior, seen, weight=0.0), clean + missed @ torch.linalg.pinv(a).T),
    ]:
        torch.testing.assert_close(method.denoised(x, t), expected, rtol=1e-6, atol=1e-8)


def test_any_log_likelihood_guides_like_the_observation_it_equals():
    prior = gaussian(VPSDE(), (4,), components=3)
    operator, y, x = Matrix(randn(2, 4, seed=5)), randn(1, 2, seed=6), randn(5, 4, seed=7)
    linear = Observation(operator, y, 0.2)
    free = LogLikelihood(lambda v: -0.5 * (y - operator(v)).square().sum(1) / 0.2**2)
    for t in (0.1, 0.9):
        expected = DPS(prior, linear, scale=0.5).denoised(x, t)
        torch.testing.assert_close(DPS(prior, free, scale=0.5).denoised(x, t), expected)


# --- a Score like any other

METHODS = pytest.mark.parametrize(
    "method", [DPS, PiGDM, MMPS, DiffPIR], ids=lambda method: method.__name__
)


@METHODS
@pytest.mark.parametrize("event", [(), (5,), (3, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_event_shape_and_dtype(method, event, dtype, device):
    prior = isotropic(VPSDE().to(device), event).to(device)
    mask = (randn(*event) > -0.5) | torch.ones(event, dtype=torch.bool)
    y = torch.ones(1, int(mask.sum()), dtype=dtype)
    posterior = method(prior, Observation(Mask(mask), y, 0.5)).to(device)
    x = randn(3, *event).to(device, dtype)
    for t in (0.3, torch.full((3,), 0.3, dtype=torch.float64, device=device)):
        for value in (posterior(x, t), posterior.denoised(x, t), posterior.noise(x, t)):
            assert (value.shape, value.dtype, value.device) == (x.shape, dtype, x.device)
            assert not value.requires_grad


@METHODS
def test_rows_have_their_own_observations(method):
    prior, operator = gaussian(VPSDE(), (4,), components=2), Matrix(randn(2, 4, seed=5))
    y, x = randn(6, 2, seed=6), randn(6, 4, seed=7)
    together = method(prior, Observation(operator, y, 0.3))
    for i in range(6):
        alone = method(prior, Observation(operator, y[i : i + 1], 0.3))
        expected = alone.denoised(x[i : i + 1], 0.4)
        torch.testing.assert_close(together.denoised(x, 0.4)[i : i + 1], expected)
        part = together.select(torch.tensor([i]))
        torch.testing.assert_close(part.denoised(x[i : i + 1], 0.4), expected)
    together, chunks = (
        sample(
            together,
            (6, 4),
            Ancestral(),
            steps=3,
            batch_size=size,
            generator=torch.Generator().manual_seed(0),
        )
        for size in (None, 4)
    )
    torch.testing.assert_close(together, chunks, rtol=1e-4, atol=1e-5)


@METHODS
def test_it_can_be_differentiated(method):
    """As the divergence of a likelihood needs it."""
    prior, operator = gaussian(VPSDE(), (3,), components=2), Matrix(randn(1, 3, seed=5))
    posterior = method(prior, Observation(operator, randn(1, 1, seed=6), 0.3))
    x = randn(2, 3, seed=7).requires_grad_()
    torch.autograd.gradcheck(lambda v: posterior.denoised(v, 0.4), (x,))
    assert not posterior.denoised(x.detach(), 0.4).requires_grad


# --- bad input


def bad(operator=None, y=None, noise_std=0.1):
    operator = Mask(torch.tensor([True, False])) if operator is None else operator
    return Observation(operator, torch.ones(1, 1) if y is None else y, noise_std)


PRIOR = isotropic(VPSDE(), (2,))


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: bad(operator=torch.ones(2)), TypeError, "operator: expected a LinearOperator"),
        (lambda: bad(y=[1.0]), TypeError, "y: expected a floating|y: expected a torch.Tensor"),
        (lambda: bad(y=torch.full((1, 1), math.nan)), ValueError, "y: expected finite"),
        (lambda: bad(noise_std=-1.0), ValueError, "noise_std"),
        (lambda: bad().residual(torch.ones(1, 3)), ValueError, "samples of shape"),
        (lambda: bad(y=torch.ones(1, 2)).residual(torch.ones(1, 2)), ValueError, "y: expected sha"),
        (lambda: bad(y=torch.ones(3, 1)).residual(torch.ones(2, 2)), ValueError, "1 observation"),
        (lambda: DPS(PRIOR, bad(noise_std=0.0)), ValueError, "noise_std: expected σ_y > 0"),
        (lambda: DPS(PRIOR, bad(), scale=0.0), ValueError, "scale"),
        (lambda: DPS(lambda x, t: x, bad()), TypeError, "score: expected a Score"),
        (lambda: DPS(PRIOR, torch.ones(2)), TypeError, "measurement: expected a Measurement"),
        (
            lambda: PiGDM(PRIOR, LogLikelihood(torch.sum)),
            TypeError,
            "for other likelihoods use DPS",
        ),
        (lambda: MMPS(PRIOR, bad(), iterations=0), ValueError, "iterations"),
        (lambda: DiffPIR(PRIOR, bad(), weight=-1.0), ValueError, "weight"),
        (lambda: LogLikelihood(3), TypeError, "function: expected a callable"),
        (lambda: LogLikelihood(lambda x: x).log_prob(torch.ones(2, 2)), ValueError, "one log-lik"),
        (lambda: PRIOR.posterior(bad().operator, torch.ones(1), 0.0), ValueError, "noise_std"),
        (
            lambda: PRIOR.posterior(bad().operator, torch.ones(2), 0.1),
            ValueError,
            "y: expected shape",
        ),
        (lambda: PRIOR.evidence(torch.ones(2), torch.ones(1, 2), 0.1), TypeError, "operator"),
    ],
)
def test_bad_input(act, error, message):
    with pytest.raises(error, match=message):
        act()
