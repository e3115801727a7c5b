"""Steps towards a posterior: what is seen stays seen, and how the rest answers to it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from scoresde import VESDE, VPSDE, GaussianMixture, SubVPSDE, sample
from scoresde.inverse_problems import Imputation, NormalizedDPS, Observation, RePaint
from scoresde.inverse_problems.constrained import impute
from scoresde.operators import Bicubic, Grayscale, Mask, Matrix
from scoresde.samplers import (
    Ancestral,
    Exponential,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
)

FIRST = Observation(Mask(torch.tensor([True, False])), torch.full((1, 1), 1.5))
NOISY = Observation(FIRST.operator, FIRST.y, noise_std=0.1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def correlated(sde, correlation=0.8):
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]])
    return GaussianMixture(torch.ones(1), torch.zeros(1, 2), covariance.unsqueeze(0), sde)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=repr)
@pytest.mark.parametrize(
    ("operator", "event"),
    [
        (Mask(torch.tensor([True, False, True])), (3,)),
        (Grayscale(), (3, 4, 4)),
        (Bicubic(2), (1, 4, 4)),
        (Matrix(randn(2, 5)), (5,)),
    ],
    ids=str,
)
def test_imputation_draws_what_is_seen_and_leaves_the_rest(sde, operator, event):
    """A x_t = α y + σ A z; the part that A does not see is as it was (eq. 53 for a gray axis)."""
    x, z = randn(2, *event, seed=1), randn(2, *event, seed=2)
    y = operator(randn(2, *event, seed=3))
    t = torch.tensor(0.4, dtype=torch.float64)
    imputed = impute(Observation(operator, y), sde, x, t, lambda _: z)
    torch.testing.assert_close(operator(imputed), sde.alpha(t) * y + sde.sigma(t) * operator(z))
    unseen, before = imputed - operator.project(imputed), x - operator.project(x)
    torch.testing.assert_close(unseen, before)


@pytest.mark.parametrize(
    "sampler",
    [
        Imputation(Ancestral(), FIRST),
        Imputation(Exponential(3), FIRST),
        RePaint(Ancestral(), FIRST, repeats=2),
        RePaint(Exponential(2), FIRST, repeats=2),
        PredictorCorrector(Imputation(ReverseDiffusion(), FIRST), Imputation(Langevin(), FIRST)),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_what_is_seen_is_reproduced(sampler):
    x = sample(correlated(VPSDE()), (500, 2), sampler, steps=100, generator=generator())
    torch.testing.assert_close(x[:, 0], torch.full((500,), 1.5))
    assert dataclasses.replace(sampler) == sampler


def test_repetition_lessens_the_bias():
    """Data N(0, [[1, r], [r, 1]]): the mean of the unseen given the seen is 1.5 r.

    Imputation alone answers too weakly. The mean of 1000 samples has a standard error of 0.02.
    """
    prior, n, expected = correlated(VPSDE(), 0.8), 1000, 1.2
    once, often = (
        sample(prior, (n, 2), sampler, steps=40, generator=generator())[:, 1].mean()
        for sampler in (Imputation(Ancestral(), FIRST), RePaint(Ancestral(), FIRST, repeats=12))
    )
    assert float(expected - once) > 0.1
    assert abs(float(often) - expected) < 0.1


def test_published_dps_moves_against_the_misfit():
    """x_s less ζ ∇‖y − A x̂(x_t)‖, by central differences."""
    prior, t, s = correlated(VPSDE()), *torch.tensor([0.5, 0.4], dtype=torch.float64)
    x, z = randn(1, 2, seed=1), randn(1, 2, seed=2)

    def misfit(v):
        return float((1.5 - prior.denoised(v, t)[0, 0]).abs())

    step = 1e-5 * torch.eye(2, dtype=torch.float64)
    slope = [(misfit(x + e) - misfit(x - e)) / 2e-5 for e in step]
    plain, _ = Ancestral().step(prior, x, t, s, None, lambda _: z)
    moved, _ = NormalizedDPS(Ancestral(), FIRST, step_size=0.3).step(
        prior, x, t, s, None, lambda _: z
    )
    expected = plain - 0.3 * torch.tensor([slope], dtype=torch.float64)
    torch.testing.assert_close(moved, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: Imputation(Ancestral(), NOISY), ValueError, "noise_std: expected 0"),
        (lambda: RePaint(Ancestral(), NOISY), ValueError, "noise_std: expected 0"),
        (lambda: RePaint(Ancestral(), FIRST, repeats=0), ValueError, "repeats"),
        (lambda: Imputation("ancestral", FIRST), TypeError, "sampler: expected a Sampler"),
        (lambda: Imputation(Ancestral(), torch.ones(2)), TypeError, "observation: expected an Obs"),
        (lambda: NormalizedDPS(Ancestral(), FIRST, step_size=-1.0), ValueError, "size"),
        (
            lambda: sample(correlated(VPSDE()), (3, 3), Imputation(Ancestral(), FIRST), steps=2),
            ValueError,
            r"samples of shape \(2,\)",
        ),
    ],
)
def test_bad_input(act, error, message):
    with pytest.raises(error, match=message):
        act()
