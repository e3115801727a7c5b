"""What every sampler of the family owes: shapes, dtypes, rows on their own, no NaN."""

import dataclasses
import math

import pytest
import torch

import scoresde
import scoresde.samplers as samplers
from scoresde import VESDE, VPSDE, FunctionScore, GaussianMixture, SubVPSDE
from scoresde.samplers import FAMILY, sample, walk

NAMES = vars(scoresde) | vars(samplers) | {"inf": math.inf}
MEMBERS = pytest.mark.parametrize("sampler", FAMILY, ids=repr)
SDES = pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=repr)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian_score(sde, variance=0.25):
    """The score of data N(0, variance I), for any event shape."""

    def score(x, t):
        scale = sde.alpha(t) ** 2 * variance + sde.sigma(t) ** 2
        return -x / scale.to(x).reshape(-1, *(1,) * (x.ndim - 1))

    return FunctionScore(score, sde)


def plane(sde):
    means = torch.tensor([[-1.0, -1.0], [1.0, 0.8]])
    return GaussianMixture(
        torch.tensor([0.7, 0.3]), means, 0.04 * torch.eye(2).expand(2, 2, 2), sde
    )


@MEMBERS
def test_members_are_records_that_print_themselves(sampler):
    assert eval(repr(sampler), NAMES) == sampler
    assert dataclasses.replace(sampler) == sampler
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampler.anything = 1


@MEMBERS
@SDES
def test_the_default_grid_falls_to_t_min(sampler, sde):
    for steps in (1, 2, 17):
        grid = sampler.grid(sde, steps)
        assert grid.shape == (steps + 1,)
        assert grid.dtype == torch.float64
        assert grid.device.type == "cpu"
        assert bool((grid.diff() < 0).all())
        assert (float(grid[0]), float(grid[-1])) == (sde.T, sde.t_min)


@MEMBERS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("event", "sde"),
    [((), VPSDE()), ((5,), SubVPSDE()), ((1, 8, 8), VESDE()), ((3, 4, 4, 4), VPSDE())],
    ids=str,
)
def test_any_event_shape_in_the_dtype_of_the_start(sampler, event, sde, dtype):
    start = torch.randn(2, *event, generator=generator(), dtype=dtype)
    steps = min(3, sampler.default_steps)
    x = sample(gaussian_score(sde), None, sampler, steps=steps, start=start, generator=generator())
    assert x.shape == start.shape
    assert x.dtype == dtype
    assert bool(x.isfinite().all())


@MEMBERS
@SDES
def test_a_row_does_not_know_its_batch_mates(sampler, sde):
    score, n = plane(sde), 3
    start = score.sample(n, sde.T, generator(), torch.float64)
    start[-1] *= 3  # an odd one that must not disturb the others
    recorded, source = [], generator(1)

    def record(x):
        recorded.append(torch.randn(x.shape, generator=source, dtype=x.dtype))
        return recorded[-1]

    times = sampler.grid(sde, min(8, sampler.default_steps))
    *_, together = walk(score, start, times, sampler, record)
    for i in range(n):
        replay = iter([noise[i : i + 1] for noise in recorded])
        *_, alone = walk(score, start[i : i + 1], times, sampler, lambda x, z=replay: next(z))
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-9, atol=1e-9)


@MEMBERS
@SDES
def test_chunks_give_the_samples_of_the_whole_batch(sampler, sde):
    score = plane(sde)
    whole, chunks = (
        sample(
            score,
            (7, 2),
            sampler,
            steps=min(5, sampler.default_steps),
            generator=generator(),
            batch_size=size,
        )
        for size in (None, 3)
    )
    torch.testing.assert_close(whole, chunks, rtol=1e-5, atol=1e-5)


@MEMBERS
def test_a_generator_is_the_only_source_of_randomness(sampler):
    score = plane(VPSDE())
    before = torch.get_rng_state()
    first = sample(
        score, (4, 2), sampler, steps=min(3, sampler.default_steps), generator=generator(0)
    )
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert torch.equal(
        sample(score, (4, 2), sampler, steps=min(3, sampler.default_steps), generator=generator(0)),
        first,
    )
    assert not torch.equal(
        sample(score, (4, 2), sampler, steps=min(3, sampler.default_steps), generator=generator(1)),
        first,
    )
    torch.manual_seed(5)
    globally = sample(score, (4, 2), sampler, steps=3)
    torch.manual_seed(5)
    assert torch.equal(sample(score, (4, 2), sampler, steps=3), globally)


@MEMBERS
@SDES
@pytest.mark.parametrize("steps", [1, 2])
def test_finite_in_very_few_steps(sampler, sde, steps):
    x = sample(gaussian_score(sde, 0.01), (2, 3), sampler, steps=steps, generator=generator())
    assert bool(x.isfinite().all())


@MEMBERS
@pytest.mark.parametrize(
    "steps",
    [150, pytest.param(1000, marks=pytest.mark.slow), pytest.param(2000, marks=pytest.mark.slow)],
)
def test_finite_in_very_many_steps(sampler, steps):
    sde = VESDE() if steps == 2000 else VPSDE()
    if sampler.default_steps == 1:
        steps //= 50  # one that steps within its intervals
    x = sample(gaussian_score(sde, 0.01), (2, 3), sampler, steps=steps, generator=generator())
    assert bool(x.isfinite().all())


@MEMBERS
def test_the_start_is_left_alone(sampler):
    start = torch.randn(3, 2, generator=generator())
    kept = start.clone()
    sample(plane(VPSDE()), None, sampler, steps=2, start=start, generator=generator())
    assert torch.equal(start, kept)
