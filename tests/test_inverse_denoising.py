"""Denoising at a known level is exact; an unknown one is found by maximum likelihood."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from scoresde import VESDE, VPSDE, GaussianMixture, SubVPSDE, sample
from scoresde.inverse_problems import (
    Observation,
    PosteriorScoreSampling,
    as_state,
    denoise,
    noise_level,
    restore,
)
from scoresde.operators import Matrix
from scoresde.samplers import Exponential
from scoresde.traces import Hutchinson

SDES = pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=repr)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture(sde, event=(3,)):
    means = torch.randn(3, *event, generator=generator(), dtype=torch.float64)
    d = means[0].numel()
    factor = torch.randn(3, d, d, generator=generator(1), dtype=torch.float64) / d**0.5
    covariances = 0.3 * factor @ factor.mT + 0.01 * torch.eye(d, dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.5, 0.3, 0.2]), means, covariances, sde)


def noisy(prior, n, sigma):
    clean = prior.sample(n, generator=generator(2), dtype=torch.float64)
    return clean + sigma * torch.randn(clean.shape, generator=generator(3), dtype=torch.float64)


@SDES
def test_the_mean_is_that_of_the_exact_posterior(sde):
    prior, identity = mixture(sde), Matrix(torch.eye(3))
    y, sigma = noisy(prior, 4, 0.4), torch.tensor([0.05, 0.2, 0.4, 2.0], dtype=torch.float64)
    exact = [
        prior.posterior(identity, *pair).moments.mean
        for pair in zip(y, sigma.tolist(), strict=True)
    ]
    torch.testing.assert_close(denoise(prior, y, sigma), torch.stack(exact), rtol=1e-7, atol=1e-8)


def test_samples_from_the_state_have_the_exact_posterior():
    """Mean and variances within 5 standard errors: false-alarm rate of a new seed below 1e-4."""
    prior, n = mixture(VPSDE()), 4000
    y = noisy(prior, 1, 0.5)
    x, t = as_state(prior.sde, y, 0.5)
    low = torch.linspace(float(prior.sde.half_logsnr(t)), float(prior.sde.half_logsnr(1e-5)), 51)
    times = prior.sde.time_at(low.double())
    start = x.repeat_interleave(n, 0)
    drawn = sample(
        prior, None, Exponential(3, eta=1.0), start=start, times=times, generator=generator()
    )
    exact = prior.posterior(Matrix(torch.eye(3)), y[0], 0.5)
    reference = exact.sample(40000, generator=generator(5), dtype=torch.float64)
    error = (drawn.mean(0) - exact.moments.mean) / (reference.var(0) / n).sqrt()
    assert float(error.abs().max()) < 5
    centered = (reference - exact.moments.mean).square()
    std = (drawn.var(0) - centered.mean(0)) / (centered.var(0) / n).sqrt()
    assert float(std.abs().max()) < 5


@pytest.mark.parametrize(
    ("sde", "event"), [(VPSDE(), (3,)), (SubVPSDE(), (2, 2)), (VESDE(), (3,))], ids=str
)
def test_the_level_is_the_most_likely_one(sde, event):
    """Against a search over the closed form of log p_σ(y)."""
    prior = mixture(sde, event)
    identity = Matrix(torch.eye(prior.means[0].numel()), event)
    y = noisy(prior, 3, 0.7)
    found = noise_level(prior, y, levels=96)
    for row, sigma in zip(y, found.tolist(), strict=True):

        def loss(log_sigma, row=row):
            return -float(prior.evidence(identity, row.reshape(1, -1), math.exp(log_sigma)))

        grid = torch.linspace(-4.0, 3.0, 36).tolist()
        best = min(grid, key=loss)
        best = minimize_scalar(loss, bounds=(best - 0.3, best + 0.3), method="bounded").x
        if best > -3.5:  # elsewhere y is most likely without any noise
            assert loss(math.log(sigma)) - loss(best) < 2e-3


def test_levels_are_found_without_exact_traces_and_used():
    prior = mixture(VESDE(), (8, 8))
    y = noisy(prior, 8, 0.5)
    probes = noise_level(prior, y, trace=Hutchinson(probes=4), generator=generator())
    assert float((probes - 0.5).abs().max()) < 0.15
    error = (denoise(prior, y) - denoise(prior, y, 0.5)).square().mean().sqrt()
    assert float(error) < 0.05


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda prior, y: denoise(prior, y, -1.0), r"sigma: expected noise levels in \(0, "),
        (lambda prior, y: denoise(prior, y, 1e6), "sigma: expected noise levels"),
        (lambda prior, y: denoise(prior, y, torch.ones(3)), "expected shape"),
        (lambda prior, y: denoise(prior, y * torch.nan, 0.1), "y: expected finite"),
        (lambda prior, y: noise_level(prior, y, levels=1), "levels"),
    ],
)
def test_bad_input(act, message):
    prior = mixture(VPSDE())
    with pytest.raises(ValueError, match=message):
        act(prior, noisy(prior, 2, 0.1))


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (2, 3)),
        ({"mean": True, "n": 4}, (2, 3)),
        ({"mean": False}, (2, 3)),
        ({"n": 1}, (2, 1, 3)),
        ({"n": 4, "mean": False}, (2, 4, 3)),
    ],
    ids=str,
)
def test_results_have_the_shapes_of_restore(options, shape):
    prior = mixture(VPSDE())
    y, identity = noisy(prior, 2, 0.4), Matrix(torch.eye(3))
    found = denoise(prior, y, 0.4, steps=5, generator=generator(), **options)
    if options:
        seen = Observation(identity, y, 0.4)
        method = PosteriorScoreSampling(steps=5)
        assert found.shape == restore(prior, seen, (3,), method=method, **options).shape
    assert found.shape == shape
    exact = [prior.posterior(identity, row, 0.4).moments.mean for row in y]
    is_mean = torch.allclose(found, torch.stack(exact)) if found.ndim == 2 else False
    assert is_mean == (options.get("mean", not options))
