"""One line each: inpaint, super_resolve, colorize, denoise, restore."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

import scoresde
from scoresde import VESDE, VPSDE, FunctionScore, GaussianMixture, Moments, ScoreModel
from scoresde._core.conjugate_gradients import conjugate_gradients
from scoresde.inverse_problems import (
    DPS,
    MMPS,
    ConstrainedSampling,
    DiffPIR,
    Imputation,
    LogLikelihood,
    NonlinearObservation,
    Observation,
    ParticleSampling,
    PiGDM,
    PosteriorScoreSampling,
    colorize,
    ddnm,
    denoise,
    inpaint,
    restore,
    super_resolve,
)
from scoresde.operators import AveragePool, Bicubic, Grayscale, Mask, Matrix
from scoresde.samplers import Ancestral, ddim


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


WHITE = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I), in any shape
QUICK = PosteriorScoreSampling(steps=10)


def correlated(d=3, sde=None):
    """A Gaussian with a full covariance."""
    factor = randn(d, d, seed=1) / math.sqrt(d)
    covariance = factor @ factor.mT + 0.1 * torch.eye(d, dtype=torch.float64)
    return GaussianMixture(torch.ones(1), randn(1, d, seed=2), covariance[None], sde or VPSDE())


class Network(nn.Module):
    """A user's own, for any shape."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, label):
        return self.scale * x.tanh()


# --- any shape, any number


METHODS = [
    PosteriorScoreSampling(steps=6),
    PosteriorScoreSampling(PiGDM, ddim(), steps=6),
    PosteriorScoreSampling(ddnm, steps=6),
    ConstrainedSampling(steps=3),
    ConstrainedSampling(partial(Imputation, Ancestral()), steps=6),
]


@pytest.mark.parametrize(
    ("method", "event"),
    [*((method, (4,)) for method in METHODS), (METHODS[0], (3, 17, 23))],
    ids=[*"abcde", "an odd image"],
)
def test_a_users_network_fills_odd_images_and_points(method, event):
    model = ScoreModel(Network(), VPSDE())
    x = randn(2, *event, dtype=torch.float32)
    known = torch.arange(event[-1]) % 2 == 0
    hidden = x.masked_fill(~known, torch.nan)  # what is missing is never read
    options = {"method": method, "generator": generator()}
    one, several = inpaint(model, hidden, known, **options), inpaint(model, hidden, known, n=3)
    mean = inpaint(model, hidden, known, n=2, mean=True, **options)
    assert (one.shape, several.shape, mean.shape) == (x.shape, (2, 3, *event), x.shape)
    assert torch.equal(one[..., known], x[..., known])
    assert torch.equal(several[..., known], x.unsqueeze(1).expand(2, 3, *event)[..., known])
    for result in (one, several, mean):
        assert bool(result.isfinite().all())
        assert result.dtype == x.dtype


@pytest.mark.parametrize(
    ("downsampling", "shape", "factor", "dimensions"),
    [(AveragePool, (3, 5, 7), 2, 2), (Bicubic, (1, 4, 4), 2, 2), (AveragePool, (6,), 3, 1)],
    ids=str,
)
def test_enlarged_samples_reproduce_the_observation(downsampling, shape, factor, dimensions):
    y, operator = randn(2, *shape), downsampling(factor, dimensions)
    x = super_resolve(
        WHITE, y, factor, downsampling=downsampling, dimensions=dimensions, n=2, method=QUICK
    )
    assert x.shape[3 - len(shape) if len(shape) == 1 else 2 :][-1] == factor * shape[-1]
    for k in range(2):
        torch.testing.assert_close(operator(x[:, k]), y, rtol=1e-4, atol=1e-4)


def test_colorized_samples_reproduce_the_observation():
    gray, luma = randn(2, 1, 5, 7), (0.299, 0.587, 0.114)
    x = colorize(WHITE, gray, weights=luma, n=2, method=QUICK)
    assert x.shape == (2, 2, 3, 5, 7)
    torch.testing.assert_close(Grayscale(luma)(x[:, 1]), gray, rtol=1e-4, atol=1e-4)
    two = colorize(WHITE, randn(1, 1, 3), weights=(0.5, 0.5), method=QUICK)
    assert two.shape == (1, 2, 3)


def test_rows_are_restored_with_their_own_conditions():
    class Shift(nn.Module):
        def forward(self, x, label, by):
            return x * 0 + by.reshape(-1, *(1,) * (x.ndim - 1))

    model = ScoreModel(Shift(), VPSDE(), prediction=scoresde.DATA)
    model = model.given(by=torch.tensor([-1.0, 2.0]))
    x = inpaint(model, torch.zeros(2, 2), torch.tensor([True, False]), n=3, method=QUICK)
    torch.testing.assert_close(x[:, :, 1], torch.tensor([[-1.0], [2.0]]).expand(2, 3))


def test_chunks_change_nothing_and_seeds_decide():
    prior, y = correlated(), randn(3, 3)
    known, state = torch.tensor([True, False, True]), torch.get_rng_state()
    first, chunks, other = (
        inpaint(prior, y, known, n=2, method=QUICK, batch_size=size, generator=generator(seed))
        for size, seed in ((None, 0), (4, 0), (None, 1))
    )
    torch.testing.assert_close(first, chunks, rtol=1e-4, atol=1e-5)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


# --- the distribution


@pytest.mark.parametrize(
    "method", [PosteriorScoreSampling(), ParticleSampling(particles=4000, steps=60)], ids=str
)
def test_samples_and_means_have_the_exact_posterior(method):
    """Of Gaussian data; 4000 samples within 5.5 standard errors of mean, and of variance.

    False-alarm rate of a new seed below 1e-6; 3 % of the variance are for the sampler's steps.
    """
    prior, n, noise_std = correlated(), 4000, 0.3
    operator, y = Matrix(randn(1, 3, seed=5)), torch.full((1, 1), 0.7, dtype=torch.float64)
    seen = Observation(operator, y, noise_std)
    x = restore(prior, seen, (3,), n=n, method=method, generator=generator())[0].double()
    exact = prior.posterior(operator, y[0], noise_std)
    variance = exact.covariances[0].diag()
    assert bool(((x.mean(0) - exact.means[0]).abs() < 5.5 * (variance / n).sqrt() + 0.01).all())
    assert bool(((x.var(0) / variance - 1).abs() < 5.5 * math.sqrt(2 / n) + 0.03).all())
    mean = restore(prior, seen, (3,), n=n, mean=True, method=method, generator=generator())[0]
    torch.testing.assert_close(mean, x.mean(0).float(), atol=0.05, rtol=0)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=repr)
def test_noisy_rows_have_their_own_levels(sde):
    """Against the exact posterior of each row: 2000 samples, 5.5 standard errors."""
    prior, n = correlated(sde=sde), 2000
    y, levels = randn(2, 3, seed=6), torch.tensor([0.8, 0.1], dtype=torch.float64)
    x = denoise(prior, y, levels, n=n, generator=generator())
    for row, level, drawn in zip(y, levels.tolist(), x, strict=True):
        exact = prior.posterior(Matrix(torch.eye(3)), row, level)
        variance = exact.covariances[0].diag()
        error = (drawn.mean(0) - exact.means[0]).abs()
        assert bool((error < 5.5 * (variance / n).sqrt() + 0.005).all())
        assert bool(((drawn.var(0) / variance - 1).abs() < 5.5 * math.sqrt(2 / n) + 0.04).all())
    below = denoise(prior, y, 1e-5, n=2, steps=3)  # less noise than the diffusion resolves
    torch.testing.assert_close(below, y.unsqueeze(1).expand(2, 2, 3), atol=5e-3, rtol=0)


# --- observations through any function


@pytest.mark.parametrize("method", [DPS, PiGDM, MMPS, DiffPIR], ids=lambda m: m.__name__)
def test_a_function_that_is_linear_is_taken_as_the_matrix_it_is(method):
    a, y, x = randn(2, 3, seed=5), randn(1, 2, seed=6), randn(4, 3, seed=7)
    free = NonlinearObservation(lambda v: v @ a.T, y, 0.3)
    expected = method(correlated(), Observation(Matrix(a), y, 0.3)).denoised(x, 0.4)
    torch.testing.assert_close(method(correlated(), free).denoised(x, 0.4), expected)


@pytest.mark.parametrize("method", [PiGDM, MMPS, DiffPIR], ids=lambda m: m.__name__)
def test_a_curved_function_can_be_differentiated(method):
    a, y = randn(2, 3, seed=5), randn(1, 2, seed=6)
    free = NonlinearObservation(lambda v: torch.sin(v @ a.T) + v[:, :2] ** 2, y, 0.3)
    x = randn(2, 3, seed=7).requires_grad_()
    torch.autograd.gradcheck(lambda v: method(correlated(), free).denoised(v, 0.4), (x,))


@pytest.mark.parametrize("method", [MMPS, PiGDM], ids=lambda m: m.__name__)
def test_particles_are_exact_through_a_curved_function(method):
    """y = x_1² + noise, against quadrature: moments within 6 standard errors of 20 runs, and 2 %.

    (DiffPIR's proposals hardly ever reach the smaller of the two modes: 2000 are not enough.)
    """
    prior, noise_std = correlated(2), 0.3
    y = torch.full((20, 1), 1.5, dtype=torch.float64)
    seen = NonlinearObservation(lambda v: v[:, :1] ** 2, y, noise_std)
    line = torch.linspace(-5, 5, 401, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    logs = prior.log_prob(points) + seen.select(torch.tensor([0])).log_prob(points)
    weights = torch.softmax(logs, 0)
    expected = torch.cat([weights @ points, weights @ points.square()])
    cloud = scoresde.inverse_problems.twisted_smc(
        method(prior, seen), (200, 2), steps=40, generator=generator()
    )
    x, w = cloud.x.double(), cloud.log_weights.exp()
    found = torch.einsum("rp,rpk->rk", w, torch.cat([x, x.square()], dim=2))
    error = found.std(0) / math.sqrt(20)
    assert bool(((found.mean(0) - expected).abs() < 6 * error + 0.02).all())
    evidence = logs.logsumexp(0) + 2 * math.log(10 / 400)
    ratio = torch.exp(cloud.log_evidence - evidence)
    assert abs(float(ratio.mean()) - 1) < 6 * float(ratio.std()) / math.sqrt(20) + 0.02
    assert "effective sample size" in repr(cloud)


def test_bayes_theorem_gives_the_density_of_any_point():
    """log p(x) + log p(y|x) − log p(y), the last by particles: 40 runs of 200, to 0.06 nats."""
    prior, operator = correlated(2), Matrix(randn(1, 2, seed=5))
    y, x = torch.full((1, 1), 0.7, dtype=torch.float64), randn(3, 2, seed=8)
    seen = Observation(operator, y.expand(40, 1), 0.3)
    cloud = scoresde.inverse_problems.twisted_smc(
        MMPS(prior, seen), (200, 2), steps=40, generator=generator()
    )
    log_evidence = cloud.log_evidence.logsumexp(0) - math.log(40)
    prior_density = scoresde.log_likelihood(prior, x).log_prob
    found = prior_density + Observation(operator, y, 0.3).log_prob(x) - log_evidence
    expected = prior.posterior(operator, y[0], 0.3).log_prob(x)
    torch.testing.assert_close(found.double(), expected, atol=0.06, rtol=0)


# --- bad input


KNOWN = torch.tensor([True, False])
X = torch.ones(2, 2)
SHAPED = FunctionScore(lambda x, t: -x, VPSDE(), moments=Moments(torch.zeros(1, 8, 8), known=True))
NOISELESS = Observation(Mask(KNOWN), torch.ones(1, 1))


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: inpaint(torch.neg, X, KNOWN), TypeError, "score: expected a Score"),
        (lambda: super_resolve(torch.neg, X[:, None], 2), TypeError, "score: expected a Score"),
        (lambda: colorize(torch.neg, X), TypeError, "score: expected a Score"),
        (lambda: inpaint(WHITE, X, KNOWN.float()), TypeError, "mask: expected booleans"),
        (lambda: inpaint(WHITE, X, ~KNOWN & KNOWN), ValueError, "mask: expected at least one true"),
        (lambda: inpaint(WHITE, X, KNOWN | ~KNOWN), ValueError, "mask: expected at least one fals"),
        (lambda: inpaint(WHITE, X, torch.ones(3).bool()), ValueError, r"mask: expected the shape"),
        (lambda: inpaint(WHITE, X, torch.ones(2, 2).bool()), ValueError, "all rows share one mask"),
        (lambda: inpaint(WHITE, X.int(), KNOWN), TypeError, "x: expected a floating"),
        (lambda: inpaint(WHITE, X * math.nan, KNOWN), ValueError, "x: expected finite"),
        (lambda: inpaint(WHITE, X, KNOWN, n=0), ValueError, "n: expected"),
        (lambda: inpaint(WHITE, X, KNOWN, noise_std=-1.0), ValueError, "noise_std"),
        (
            lambda: inpaint(WHITE, X, KNOWN, method=MMPS),
            TypeError,
            "method: expected a PosteriorSampler",
        ),
        (
            lambda: inpaint(WHITE, X, KNOWN, method=PosteriorScoreSampling(DPS)),
            ValueError,
            "expected σ_y > 0",
        ),
        (
            lambda: inpaint(WHITE, X, KNOWN, method=ParticleSampling()),
            ValueError,
            "expected σ_y > 0",
        ),
        (
            lambda: inpaint(WHITE, X, KNOWN, noise_std=0.1, method=ConstrainedSampling()),
            ValueError,
            "noise_std: expected 0",
        ),
        (lambda: inpaint(SHAPED, X, KNOWN), ValueError, r"expected shape \(batch, 1, 8, 8\)"),
        (lambda: super_resolve(WHITE, torch.ones(1, 3), 2), ValueError, "dimensions=1"),
        (lambda: super_resolve(WHITE, torch.ones(1, 1, 2, 2), 0), ValueError, "factor"),
        (lambda: super_resolve(WHITE, torch.ones(1, 1, 2, 2), 1.5), TypeError, "factor"),
        (
            lambda: super_resolve(SHAPED, torch.ones(1, 1, 3, 3), 3),
            ValueError,
            r"enlarged by factor=3.*\(batch, 1, 8, 8\)",
        ),
        (
            lambda: restore(WHITE, Observation(AveragePool(3), torch.ones(1, 1, 2, 2)), (1, 8, 8)),
            ValueError,
            r"\(…, 3n, 3n\).*choose another factor",
        ),
        (lambda: colorize(WHITE, torch.ones(1, 3, 2, 2)), ValueError, "one channel"),
        (lambda: colorize(WHITE, torch.ones(4)), ValueError, r"gray.unsqueeze\(1\)"),
        (lambda: colorize(SHAPED, torch.ones(1, 1, 8, 8)), ValueError, "gray with 3 weights"),
        (lambda: denoise(SHAPED, torch.ones(1, 8, 8), 0.1), ValueError, "y: expected shape"),
        (lambda: denoise(WHITE, X, 0.0), ValueError, "sigma: expected noise levels"),
        (lambda: denoise(WHITE, X, 0.1, n=0), ValueError, "n: expected"),
        (lambda: denoise(WHITE, X, 0.1, n=1, steps=0), ValueError, "steps"),
        (
            lambda: restore(
                WHITE, Observation(Grayscale(), torch.ones(2, 3, 4, 4)), (3, 4, 4), n=5
            ),
            ValueError,
            r"y: expected shape \(batch, 1, 4, 4\).*got \(2, 3, 4, 4\)",
        ),
        (lambda: restore(WHITE, KNOWN, (2,)), TypeError, "measurement: expected a Measurement"),
        (lambda: restore(WHITE, NOISELESS, (3,)), ValueError, r"samples of shape \(2,\)"),
        (
            lambda: restore(WHITE, LogLikelihood(lambda x: x.sum(1)), (2,)),
            TypeError,
            "for other likelihoods use DPS",
        ),
        (
            lambda: PosteriorScoreSampling("mmps"),
            TypeError,
            "posterior: expected a class or function",
        ),
        (lambda: PosteriorScoreSampling(sampler="ddim"), TypeError, "sampler: expected a Sampler"),
        (lambda: PosteriorScoreSampling(steps=0), ValueError, "steps"),
        (lambda: ConstrainedSampling(steps=0), ValueError, "steps"),
        (lambda: ParticleSampling(particles=0), ValueError, "particles"),
        (lambda: NonlinearObservation(3, X), TypeError, "function: expected a callable"),
        (
            lambda: NonlinearObservation(lambda x: x.sum(1), X).residual(X),
            ValueError,
            "function: expected values like y",
        ),
        (lambda: ddnm(WHITE, NonlinearObservation(torch.sin, X)), TypeError, "one that is linear"),
    ],
)
def test_bad_input(act, error, message):
    with pytest.raises(error, match=message):
        act()


@pytest.mark.parametrize("iterations", [1, 3, 8])
def test_conjugate_gradients_do_no_harm_where_the_map_is_not_symmetric(iterations):
    """As the Jacobian of a learned denoiser: what is returned never misses more than 0 does."""
    m, b = 0.5 * torch.eye(8, dtype=torch.float64) + 0.4 * randn(8, 8, seed=3), randn(200, 8)
    x = conjugate_gradients(lambda v: v @ m.T, b, iterations=iterations, tolerance=1e-6)
    assert bool(((x @ m.T - b).norm(dim=1) <= b.norm(dim=1)).all())
