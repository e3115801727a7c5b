"""Properties of the members beside those that test_testing_families.py checks."""

import dataclasses
import math

import pytest
import torch

import scoresde
import scoresde.samplers as samplers
from scoresde import VESDE, VPSDE, FunctionScore, GaussianMixture, SubVPSDE
from scoresde.samplers import sample

NAMES = vars(scoresde) | vars(samplers) | {"inf": math.inf}
MEMBERS = pytest.mark.parametrize("sampler", samplers.MEMBERS, ids=repr)
SDES = pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=repr)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian_score(sde, variance=0.25):
    """The score of data N(0, variance I), for any event shape."""

    def score(x, t):
        scale = sde.alpha(t) ** 2 * variance + sde.sigma(t) ** 2
        return -x / scale.to(x).reshape(-1, *(1,) * (x.ndim - 1))

    return FunctionScore(score, sde)


@MEMBERS
def test_the_repr_of_a_member_is_its_code(sampler):
    assert eval(repr(sampler), NAMES) == sampler
    assert dataclasses.replace(sampler) == sampler
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampler.anything = 1


@MEMBERS
@SDES
def test_the_default_grid_ends_at_t_min(sampler, sde):
    for steps in (1, 2, 17):
        times = sampler.times(sde, steps)
        assert (float(times[0]), float(times[-1])) == (sde.T, sde.t_min)


@MEMBERS
def test_without_a_generator_the_global_one_is_used(sampler):
    means, covariances = torch.tensor([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.04)
    score = GaussianMixture(torch.ones(2), means, covariances, VPSDE())
    torch.manual_seed(5)
    globally = sample(score, (4, 1), sampler, steps=3)
    torch.manual_seed(5)
    assert torch.equal(sample(score, (4, 1), sampler, steps=3), globally)


@pytest.mark.slow
@MEMBERS
@pytest.mark.parametrize("steps", [1000, 2000])
def test_finite_in_very_many_steps(sampler, steps):
    sde = VESDE() if steps == 2000 else VPSDE()
    if sampler.default_steps == 1:
        steps //= 50  # chooses its own steps within each interval
    x = sample(gaussian_score(sde, 0.01), (2, 3), sampler, steps=steps, generator=generator())
    assert bool(x.isfinite().all())
