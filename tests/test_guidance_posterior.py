"""Posterior scores against the exact posterior of Gaussians and mixtures."""

from __future__ import annotations

import math

import pytest
import torch

from scoresde import VESDE, VPSDE, GaussianMixture, SubVPSDE
from scoresde.guidance import MMPS, Observation, PiGDM
from scoresde.operators import AveragePool, Bicubic, Blur, Grey, Mask, Matrix

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
    (Grey(), (3, 2, 2)),
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
    evidence = prior.observed(operator, noise_std).log_prob(y)
    seen = Observation(operator, y, noise_std).log_prob(x)
    torch.testing.assert_close(posterior.log_prob(x) + evidence, prior.log_prob(x) + seen)
    assert posterior.event_shape == prior.event_shape


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
