"""The exact mixture: densities, scores, divergences and samples against other libraries."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from families import STRATEGIES, sde_and_times
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

from scoresde import VESDE, VPSDE, GaussianMixture, SubVPSDE
from scoresde.sdes import MEMBERS

EACH_SDE = pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.__qualname__)
EVENTS = [(), (5,), (1, 8, 8), (3, 4, 4, 4)]


def random_mixture(
    sde, components: int = 3, event: tuple[int, ...] = (2,), seed: int = 0, std: float = 1.0
) -> GaussianMixture:
    generator = torch.Generator().manual_seed(seed)
    d = math.prod(event)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    factors = draw(components, d, d) / math.sqrt(d)
    covariances = std * (factors @ factors.mT + 0.05 * torch.eye(d, dtype=torch.float64))
    return GaussianMixture(
        torch.rand(components, generator=generator, dtype=torch.float64) + 0.1,
        2 * draw(components, *event),
        covariances,
        sde,
    )


def by_torch(mixture: GaussianMixture, t) -> MixtureSameFamily:
    sde, K = mixture.sde, len(mixture.weights)
    d = mixture.covariances.shape[1]
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    eye = torch.eye(d, dtype=torch.float64)
    parts = MultivariateNormal(
        alpha * mixture.means.reshape(K, d), alpha**2 * mixture.covariances + sigma**2 * eye
    )
    return MixtureSameFamily(Categorical(mixture.weights), parts)


# --- densities, scores, divergences


@pytest.mark.parametrize("name", STRATEGIES)
@given(data=st.data())
def test_density_score_and_divergence_against_torch(name, data):
    """log p by torch.distributions; score and divergence by autograd of that."""
    sde, (t,) = data.draw(sde_and_times(STRATEGIES[name]))
    mixture = random_mixture(sde, seed=data.draw(st.integers(0, 10**6)))
    t = data.draw(st.sampled_from([0.0, t, sde.T]))
    density = by_torch(mixture, t)
    for x in mixture.sample(3, t, dtype=torch.float64):
        x.requires_grad_()
        log_prob = density.log_prob(x)
        (score,) = torch.autograd.grad(log_prob, x, create_graph=True)
        trace = sum(torch.autograd.grad(score[i], x, retain_graph=True)[0][i] for i in range(2))
        x = x.detach()[None]
        torch.testing.assert_close(mixture.log_prob(x, t)[0], log_prob.detach())
        largest = float(score.detach().abs().max())
        torch.testing.assert_close(mixture(x, t)[0], score.detach(), rtol=1e-8, atol=1e-9 * largest)
        size = float(abs(trace)) + largest**2
        torch.testing.assert_close(
            mixture.divergence(x, t)[0], trace.detach(), rtol=1e-7, atol=1e-9 * size
        )


def test_density_against_scipy():
    mixture = random_mixture(VPSDE(), components=4)
    x = mixture.sample(50, dtype=torch.float64)
    density = sum(
        float(w) * scipy.stats.multivariate_normal(m.numpy(), c.numpy()).pdf(x.numpy())
        for w, m, c in zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
    )
    np.testing.assert_allclose(mixture.log_prob(x).numpy(), np.log(density), rtol=1e-10)


@EACH_SDE
@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_every_event_shape(member, event, device):
    """Against one multivariate normal per component on flattened states."""
    sde = member().to(device)
    mixture = random_mixture(sde, components=2, event=event).to(device)
    t = 0.3 * sde.T
    for dtype in (torch.float32, torch.float64):
        x = mixture.sample(3, t, dtype=dtype)
        assert x.shape == (3, *event)
        assert x.device.type == device.type
        kinds = [t, torch.tensor(t), torch.full((3,), t, device=device, dtype=torch.float64)]
        for time in kinds:
            for value in (mixture(x, time), mixture.denoised(x, time), mixture.noise(x, time)):
                assert value.shape == x.shape
                assert value.dtype == dtype
            for value in (mixture.log_prob(x, time), mixture.divergence(x, time)):
                assert value.shape == (3,)
                assert value.dtype == dtype
        if device.type == "cpu" and dtype == torch.float64:
            expected = by_torch(mixture, t).log_prob(x.reshape(3, -1))
            torch.testing.assert_close(mixture.log_prob(x, t), expected)


def test_each_row_has_its_own_time():
    mixture = random_mixture(SubVPSDE())
    x, t = mixture.sample(4, dtype=torch.float64), torch.tensor([0.0, 0.2, 0.6, 1.0]).double()
    for row in range(4):
        one, at = x[row : row + 1], float(t[row])
        torch.testing.assert_close(mixture(x, t)[row : row + 1], mixture(one, at))
        torch.testing.assert_close(mixture.log_prob(x, t)[row], mixture.log_prob(one, at)[0])
        torch.testing.assert_close(mixture.divergence(x, t)[row], mixture.divergence(one, at)[0])


@pytest.mark.parametrize("t", [0.0, 1e-5, 0.3, 1.0])
def test_densities_integrate_to_one(t):
    line = GaussianMixture(
        torch.tensor([0.3, 0.7]),
        torch.tensor([[-1.0], [2.0]]),
        torch.tensor([[[0.05]], [[0.5]]]),
        VPSDE(),
    )
    grid = torch.linspace(-12, 12, 4801, dtype=torch.float64)[:, None]
    mass = torch.trapezoid(line.log_prob(grid, t).exp(), grid[:, 0])
    assert float(mass) == pytest.approx(1, abs=1e-8)
    plane = random_mixture(VPSDE())
    axis = torch.linspace(-12, 12, 601, dtype=torch.float64)
    square = torch.cartesian_prod(axis, axis)
    density = plane.log_prob(square, t).exp().reshape(601, 601)
    mass = torch.trapezoid(torch.trapezoid(density, axis), axis)
    assert float(mass) == pytest.approx(1, abs=1e-6)


# --- the hub


@EACH_SDE
@pytest.mark.parametrize("part", [0.02, 0.3, 1.0])
def test_tweedie(member, part):
    """E[x_0 | x_t] by quadrature over x_0 in one dimension."""
    sde = member()
    t = max(sde.t_min, part * sde.T)
    mixture = GaussianMixture(
        torch.tensor([0.4, 0.6]),
        torch.tensor([-1.0, 1.0]),
        torch.tensor([[[0.2]], [[0.1]]], dtype=torch.float64),
        sde,
    )
    x = mixture.sample(5, t, dtype=torch.float64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    x0 = torch.linspace(-5, 5, 200_001, dtype=torch.float64)
    parts = Normal(torch.tensor([-1.0, 1.0]).double(), torch.tensor([0.2, 0.1]).double().sqrt())
    data = MixtureSameFamily(Categorical(mixture.weights), parts)
    prior = data.log_prob(x0)
    for row, value in enumerate(x):
        weight = torch.softmax(prior - 0.5 * ((value - alpha * x0) / sigma) ** 2, 0)
        expected = (weight * x0).sum()
        torch.testing.assert_close(mixture.denoised(x, t)[row], expected, rtol=1e-6, atol=1e-7)
        noise = (value - alpha * expected) / sigma
        torch.testing.assert_close(mixture.noise(x, t)[row], noise, rtol=1e-5, atol=1e-6)
        velocity = alpha * noise - sigma * expected
        torch.testing.assert_close(
            mixture.velocity(x, t)[row], velocity, rtol=1e-5, atol=1e-6 * float(sigma + 1)
        )


def test_data_are_their_own_denoised_version_at_time_zero():
    mixture = random_mixture(VPSDE())
    x = mixture.sample(4, dtype=torch.float64)
    torch.testing.assert_close(mixture.denoised(x, 0.0), x)
    assert torch.isfinite(mixture(x, 0.0)).all()


# --- hard corners


def exact_log_prob(mixture: GaussianMixture, x: list[float], t: float):
    """Axis-parallel mixtures in 60 digits: log p and its gradient."""
    alpha, sigma = (mpmath.mpf(float(v)) for v in (mixture.sde.alpha(t), mixture.sde.sigma(t)))

    def log_prob(*point):
        total = mpmath.mpf(0)
        for w, m, c in zip(mixture.weights, mixture.means, mixture.covariances, strict=True):
            term = mpmath.mpf(float(w))
            for i, value in enumerate(point):
                variance = alpha**2 * mpmath.mpf(float(c[i, i])) + sigma**2
                shift = value - alpha * mpmath.mpf(float(m[i]))
                term *= mpmath.exp(-(shift**2) / (2 * variance))
                term /= mpmath.sqrt(2 * mpmath.pi * variance)
            total += term
        return mpmath.log(total)

    return log_prob


CORNERS = {
    "far": ([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.3]], [[1.0, 0.5], [0.4, 2.0]], [1e6, -1e6]),
    "between": ([0.5, 0.5], [[-40.0, 0.0], [40.0, 0.0]], [[0.1, 0.1], [0.1, 0.1]], [1e-3, 0.5]),
    "tiny weight": ([1e-300, 1.0], [[0.0, 0.0], [30.0, 0.0]], [[1, 1], [1, 1]], [-20.0, 1.0]),
    "tiny loses": ([1e-300, 1.0], [[0.0, 0.0], [3.0, 0.0]], [[1, 1], [1, 1]], [0.5, 1.0]),
    "near-singular": ([0.5, 0.5], [[0.0, 0.0], [1.0, 1.0]], [[1e-12, 1], [1, 1e-12]], [0.1, 0.9]),
    "wide and narrow": ([0.5, 0.5], [[0.0, 0.0], [0.0, 0.0]], [[1e-8, 1e-8], [1e6, 1e6]], [3, 4]),
}


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(1e-4, 50.0)], ids=str)
@pytest.mark.parametrize("t", [0.0, 1e-4, 0.5, 1.0])
def test_corners_in_sixty_digits(corner, sde, t):
    weights, means, variances, x = CORNERS[corner]
    weights = torch.tensor(weights, dtype=torch.float64)
    mixture = GaussianMixture(
        weights,
        torch.tensor(means, dtype=torch.float64),
        torch.diag_embed(torch.tensor(variances, dtype=torch.float64)),
        sde,
    )
    point = torch.tensor([x], dtype=torch.float64)
    with mpmath.workdps(60):
        log_prob = exact_log_prob(mixture, x, t)
        at = [mpmath.mpf(v) for v in x]
        expected = float(log_prob(*at))
        gradient = [float(mpmath.diff(log_prob, tuple(at), n)) for n in ((1, 0), (0, 1))]
        curvature = [float(mpmath.diff(log_prob, tuple(at), n)) for n in ((2, 0), (0, 2))]
    assert float(mixture.log_prob(point, t)) == pytest.approx(expected, rel=1e-11, abs=1e-11)
    # two components compete by the difference of their exponents, of the size of log p
    rounding = 1e-15 * (abs(expected) + 1)
    bound = (1e-10 + rounding) * max(map(abs, gradient))
    assert mixture(point, t)[0].tolist() == pytest.approx(gradient, rel=1e-9, abs=bound)
    bound = (1e-8 + rounding) * (max(map(abs, curvature)) + rounding * max(map(abs, gradient)) ** 2)
    assert float(mixture.divergence(point, t)) == pytest.approx(sum(curvature), rel=1e-6, abs=bound)


def test_float32_points_keep_float64_inside():
    mixture = random_mixture(VPSDE(), std=1e-3)
    x = mixture.sample(20, dtype=torch.float32)
    exact = mixture.log_prob(x.double())
    torch.testing.assert_close(mixture.log_prob(x), exact.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(mixture(x, 1e-5), mixture(x.double(), 1e-5).float())


def test_buffers_keep_float64():
    mixture = random_mixture(VPSDE())
    x = mixture.sample(4, dtype=torch.float64)
    before = mixture.log_prob(x)
    assert torch.equal(mixture.half().log_prob(x), before)
    assert mixture.means.dtype == torch.float64


# --- samples, moments, gradients


@EACH_SDE
@pytest.mark.parametrize("part", [0.0, 0.4])
def test_samples_have_the_right_distribution(member, part):
    """Kolmogorov–Smirnov on two projections of 4000 samples; 32 such tests, of which one fails by
    chance once in 60 000 runs."""
    sde = member()
    mixture = random_mixture(sde)
    t = part * sde.T
    x = mixture.sample(4000, t, torch.Generator().manual_seed(1), torch.float64)
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    for direction in (torch.tensor([1.0, 0.0]).double(), torch.tensor([0.6, 0.8]).double()):
        means = alpha * mixture.means @ direction
        variances = alpha**2 * direction @ mixture.covariances @ direction + sigma**2

        def distribution(v, means=means, variances=variances):
            return sum(
                float(w) * scipy.stats.norm.cdf(v, float(m), math.sqrt(float(c)))
                for w, m, c in zip(mixture.weights, means, variances, strict=True)
            )

        assert scipy.stats.kstest((x @ direction).numpy(), distribution).pvalue > 5e-7


def test_sampling_takes_a_generator_and_a_dtype():
    mixture = random_mixture(VPSDE())
    before = torch.get_rng_state()
    first = mixture.sample(5, 0.2, torch.Generator().manual_seed(3))
    again = mixture.sample(5, 0.2, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert first.dtype == torch.float32
    assert mixture.sample(2, dtype=torch.float64).dtype == torch.float64


def test_moments_are_those_of_the_mixture():
    """By total variance, and within 5 standard errors of 20 000 samples."""
    mixture = random_mixture(VPSDE(), event=(2, 2))
    moments = mixture.moments
    assert moments.known
    covariance = moments.basis @ torch.diag(moments.variance) @ moments.basis.T
    x = mixture.sample(20_000, dtype=torch.float64).reshape(-1, 4)
    error = x.std(0) / math.sqrt(len(x))
    assert ((x.mean(0) - moments.mean.reshape(-1)).abs() < 5 * error).all()
    products = (x - x.mean(0))[:, :, None] * (x - x.mean(0))[:, None, :]
    error = products.std(0) / math.sqrt(len(x))
    assert ((products.mean(0) - covariance).abs() < 5 * error).all()


def test_gradients_flow_through():
    mixture = random_mixture(VPSDE())
    x = mixture.sample(3, 0.3, dtype=torch.float64).requires_grad_()
    (score,) = torch.autograd.grad(mixture.log_prob(x, 0.3).sum(), x)
    torch.testing.assert_close(score, mixture(x.detach(), 0.3))

    def total(v):
        return mixture(v[None], 0.3)[0]

    jacobian = torch.func.vmap(torch.func.jacrev(total))(x.detach())
    trace = jacobian.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(trace, mixture.divergence(x.detach(), 0.3))


def test_weights_are_normalized():
    means, covariances = torch.zeros(2, 1), torch.ones(2, 1, 1)
    mixture = GaussianMixture(torch.tensor([2, 6]), means, covariances, VPSDE())
    assert mixture.weights.tolist() == [0.25, 0.75]
    assert mixture.event_shape == (1,)
