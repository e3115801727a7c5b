"""Twisted particles: unbiased evidence, and the exact posterior as their number grows.

Runs are independent rows of one call: an observation repeated R times gives R estimates.
"""

from __future__ import annotations

import math

import pytest
import torch

from scoresde import VESDE, VPSDE, GaussianMixture, sample
from scoresde.inverse_problems import (
    DPS,
    MMPS,
    DiffPIR,
    LogLikelihood,
    Observation,
    Particles,
    PiGDM,
    twisted_smc,
)
from scoresde.inverse_problems.particles import effective_sample_size, systematic_resampling
from scoresde.operators import Matrix
from scoresde.samplers import Exponential, SamplingError, UniformLogSNR

A = Matrix(torch.tensor([[1.0, 0.5]]))
Y, NOISE = torch.tensor([[0.8]], dtype=torch.float64), 0.3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture(sde):
    means = torch.tensor([[-1.0, -0.5], [1.0, 0.3], [0.5, 1.5]])
    covariances = torch.diag_embed(torch.tensor([[0.1, 0.3], [0.2, 0.05], [0.04, 0.04]]))
    return GaussianMixture(torch.tensor([0.5, 0.2, 0.3]), means, covariances, sde)


def runs(method, sde, count, particles, **options):
    prior = mixture(sde)
    posterior = method(prior, Observation(A, Y.expand(count, 1), NOISE))
    options = {"steps": 40, "generator": generator()} | options
    return prior, twisted_smc(posterior, (particles, 2), **options)


# --- the evidence


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=repr)
@pytest.mark.parametrize("method", [MMPS, DiffPIR], ids=lambda m: m.__name__)
def test_the_evidence_is_unbiased_whatever_the_proposal(method, sde):
    """The mean of 40 estimates by 300 particles is within 4.5 standard errors, and 2 %.

    The false-alarm rate of a new seed is below 1e-4; the percents are for the chain, whose
    distribution in 80 steps differs from the prior's. (Weights of other proposals have too heavy
    tails.)
    """
    prior, cloud = runs(method, sde, 40, 300, steps=80)
    ratio = torch.exp(cloud.log_evidence - prior.evidence(A, Y, NOISE))
    error = float(ratio.std() / math.sqrt(len(ratio)))
    assert abs(float(ratio.mean()) - 1) < 4.5 * error + 0.02
    assert error < 0.02  # so that the test can fail


def test_the_evidence_gets_sharper_with_particles():
    """Its spread over 100 runs falls about as 1/√particles: by 4 from 25 to 400."""
    few, many = (
        float(runs(MMPS, VPSDE(), 100, particles)[1].log_evidence.std()) for particles in (25, 400)
    )
    assert many < 0.5 * few


def test_any_likelihood_has_an_evidence():
    """A ring, against quadrature on a grid: within 4.5 standard errors of 8 runs, and 2 %."""
    prior = mixture(VPSDE())
    ring = LogLikelihood(lambda x: -20 * (x.norm(dim=1) - 1) ** 2)
    logs = torch.stack(
        [
            twisted_smc(
                DPS(prior, ring, curvature=40.0),
                (500, 2),
                steps=40,
                generator=generator(seed),
            ).log_evidence[0]
            for seed in range(8)
        ]
    )
    line = torch.linspace(-4, 4, 801, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    mass = (prior.log_prob(points) + ring.log_prob(points)).exp().sum() * 0.01**2
    ratio = torch.exp(logs - mass.log())
    assert abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / math.sqrt(8) + 0.02


# --- the posterior


@pytest.mark.parametrize("method", [PiGDM, MMPS, DiffPIR], ids=lambda m: m.__name__)
def test_particles_have_the_exact_posterior(method):
    """Mean, variances and mode weights of 60 runs: within 5 standard errors over runs, and 2 %."""
    prior, cloud = runs(method, VPSDE(), 60, 200)
    exact = prior.posterior(A, Y[0], NOISE)
    weights, x = cloud.log_weights.exp(), cloud.x.double()
    components = torch.distributions.MultivariateNormal(exact.means, exact.covariances)
    logits = exact.weights.log() + components.log_prob(x.reshape(-1, 1, 2).double())
    modes = torch.softmax(logits, 1)
    moments = torch.cat([x, x.square(), modes.reshape(60, 200, -1)], dim=2)
    found = torch.einsum("rp,rpk->rk", weights, moments)
    basis, variance = exact.moments.basis, exact.moments.variance
    second = (basis @ variance.diag() @ basis.T).diag() + exact.moments.mean.square()
    expected = torch.cat([exact.moments.mean, second, exact.weights])
    error = found.std(0) / math.sqrt(60)
    assert bool(((found.mean(0) - expected).abs() < 5 * error + 0.02).all())
    torch.testing.assert_close(cloud.mean(), found[:, :2].to(cloud.x))


def test_the_bias_of_the_proposal_is_gone():
    """The same check fails without weights and resampling: they are what makes it exact."""
    prior, cloud = runs(DiffPIR, VPSDE(), 60, 200, resample_below=0.0)
    exact = prior.posterior(A, Y[0], NOISE)
    unweighted = cloud.x.double().mean((0, 1))
    assert float((unweighted - exact.moments.mean).abs().max()) > 0.1
    assert float((cloud.mean().mean(0) - exact.moments.mean).abs().max()) < 0.05


# --- properties of the particles


def test_without_information_they_are_samples_of_the_second_order_sde():
    prior = mixture(VPSDE())
    flat = LogLikelihood(lambda x: 0 * x.sum(1))
    cloud = twisted_smc(DPS(prior, flat), (50, 2), steps=10, generator=generator())
    x = sample(
        prior,
        (50, 2),
        Exponential(order=2, eta=1.0),
        steps=10,
        times=UniformLogSNR(),
        denoise=False,
        generator=generator(),
    )
    torch.testing.assert_close(cloud.x[0], prior.denoised(x, prior.sde.t_min))
    assert float(cloud.log_evidence) == pytest.approx(0, abs=1e-9)
    assert float(cloud.smallest_ess) == pytest.approx(50)


def test_observations_share_nothing_and_chunks_do_not_matter():
    prior = mixture(VPSDE())
    y = torch.tensor([[0.8], [-1.2], [2.0]], dtype=torch.float64)
    clouds = [
        twisted_smc(
            MMPS(prior, Observation(A, y, NOISE)),
            (50, 2),
            steps=20,
            generator=generator(),
            batch_size=size,
        )
        for size in (None, 7)
    ]
    torch.testing.assert_close(clouds[0].x, clouds[1].x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(clouds[0].log_evidence, clouds[1].log_evidence, rtol=1e-4, atol=1e-4)
    cloud = clouds[0]
    assert cloud.x.shape == (3, 50, 2)
    assert cloud.evaluations == 21
    torch.testing.assert_close(cloud.log_weights.exp().sum(1), torch.ones(3, dtype=torch.float64))
    for size in (cloud.ess, cloud.smallest_ess):
        assert bool(((size >= 1) & (size <= 50 * (1 + 1e-9))).all())
    assert bool((cloud.smallest_ess <= cloud.ess).all())
    assert cloud.draw(7, generator()).shape == (3, 7, 2)


def test_a_generator_is_the_only_source_of_randomness():
    state = torch.get_rng_state()
    first, second = (runs(PiGDM, VPSDE(), 2, 20, steps=5)[1].x for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_systematic_resampling_is_unbiased_and_even():
    weights = torch.tensor([[0.5, 0.25, 0.01, 0.24], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    copies = torch.stack(
        [
            torch.stack([(row == k).sum(1) for k in range(4)], dim=1)
            for row in (
                systematic_resampling(weights.log(), 10, generator(seed)) for seed in range(400)
            )
        ]
    ).double()
    assert float((copies - 10 * weights).abs().max()) <= 1
    assert float((copies.mean(0) - 10 * weights).abs().max()) < 0.1  # 4 standard errors of 400
    assert effective_sample_size(weights.log()).tolist() == pytest.approx(
        (1 / weights.square().sum(1)).tolist()
    )


def test_a_result_of_equal_weights_is_drawn_once_each():
    x = torch.arange(6.0).reshape(1, 6)
    even = torch.full((1, 6), -math.log(6), dtype=torch.float64)
    cloud = Particles(x, even, torch.zeros(1), torch.full((1,), 6.0), 1)
    assert sorted(cloud.draw(6, generator())[0].tolist()) == x[0].tolist()


def test_particles_of_zero_weight_raise():
    def broken(x):
        return torch.where(x[:, 0] > -50, torch.nan, 0.0) + 0 * x.sum(1)

    with pytest.raises(SamplingError, match="particles: those of 1 of 1 obs") as caught:
        twisted_smc(DPS(mixture(VPSDE()), LogLikelihood(broken)), (5, 2), steps=3)
    assert caught.value.samples.shape == (1, 5, 2)
    assert caught.value.finite.tolist() == [False]


SEEN = Observation(A, Y, NOISE)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda p: twisted_smc(p, (10, 2)), TypeError, "posterior: expected a PosteriorScore"),
        (
            lambda p: twisted_smc(PiGDM(p, Observation(A, Y)), (10, 2)),
            ValueError,
            "noise_std: expected σ_y > 0",
        ),
        (lambda p: twisted_smc(PiGDM(p, SEEN), (0, 2)), ValueError, "shape"),
        (lambda p: twisted_smc(PiGDM(p, SEEN), (5, 3), steps=2), ValueError, "shape"),
        (lambda p: twisted_smc(PiGDM(p, SEEN), (5, 2), steps=0), ValueError, "steps"),
        (
            lambda p: twisted_smc(PiGDM(p, SEEN), (5, 2), resample_below=2.0),
            ValueError,
            "resample_bel",
        ),
        (lambda p: twisted_smc(PiGDM(p, SEEN), (5, 2), batch_size=0), ValueError, "batch_size"),
    ],
)
def test_bad_input(act, error, message):
    with pytest.raises(error, match=message):
        act(mixture(VPSDE()))
