"""Counter-based numbers are reproducible, depend on their row alone, and pass tests of randomness.

Every statistical test is run on fixed seeds and compares a z-score with 5.5 standard deviations
(false alarm 4e-8 each, below 1e-4 for the file) or a p-value with 1e-6.
"""

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats

from scoresde._core.counter_rng import CounterRNG

N = 20_000
LIMIT = 5.5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def seeds(n=N, counter=0):
    """Streams with the least random of seeds, 0 … n − 1."""
    return CounterRNG(torch.arange(n), torch.full((n,), counter))


def counters(n=N, seed=0):
    """One stream at the counters 0 … n − 1."""
    return CounterRNG(torch.full((n,), seed), torch.arange(n))


DIRECTIONS = {
    "seeds": lambda: seeds().bits((1,))[:, 0],
    "counters": lambda: counters().bits((1,))[:, 0],
    "coordinates": lambda: seeds(1).bits((N,))[0],
    "drawn seeds": lambda: CounterRNG.draw(N, generator()).bits((1,))[:, 0],
    "distant counters": lambda: CounterRNG(torch.full((N,), 7), torch.arange(N) << 32).bits((1,))[
        :, 0
    ],
}
"""Sequences of numbers along which only one index varies."""

directions = pytest.mark.parametrize("direction", DIRECTIONS)


def table(bits):
    """The 64 bits of each number as signs ±1, ``(n, 64)``."""
    return 1.0 - 2.0 * ((bits.unsqueeze(1) >> torch.arange(64)) & 1).double()


# --- batch independence and reproducibility


@pytest.mark.parametrize("draw", ["signs", "normals"])
def test_rows_do_not_depend_on_each_other(draw):
    rng = CounterRNG.draw(6, generator())
    rng = rng.at(slice(None), torch.tensor([3, 0, 3, 1, 7, 2]))
    together = getattr(rng, draw)((2, 5))
    order = torch.tensor([4, 1, 5])
    part = rng.at(order, rng.counter[order])
    assert torch.equal(getattr(part, draw)((2, 5)), together[order])
    alone = [getattr(rng.at(slice(i, i + 1), rng.counter[i : i + 1]), draw) for i in range(6)]
    assert torch.equal(torch.cat([one((2, 5)) for one in alone]), together)


@pytest.mark.parametrize("draw", ["signs", "normals"])
def test_the_order_of_the_numbers_does_not_depend_on_the_shape(draw):
    rng = seeds(3)
    flat = getattr(rng, draw)((12,))
    assert torch.equal(getattr(rng, draw)((3, 4)).reshape(3, 12), flat)
    assert torch.equal(getattr(rng, draw)((5,)), flat[:, :5])
    assert getattr(rng, draw)(()).shape == (3,)
    assert getattr(rng, draw)((0, 4)).shape == (3, 0, 4)


@pytest.mark.parametrize("draw", ["signs", "normals"])
def test_every_device_draws_the_same(draw, device):
    here = CounterRNG.draw(5, generator())
    there = CounterRNG.draw(5, generator(), device)
    assert torch.equal(there.seeds.cpu(), here.seeds)
    assert torch.equal(there.bits((8,)).cpu(), here.bits((8,)))
    drawn = getattr(there, draw)((8,))
    assert (drawn.device.type, drawn.dtype) == (device.type, torch.float64)
    torch.testing.assert_close(drawn.cpu(), getattr(here, draw)((8,)), rtol=1e-12, atol=1e-12)


def test_a_generator_determines_the_seeds_and_leaves_the_global_state():
    before = torch.get_rng_state()
    first = CounterRNG.draw(1000, generator(3))
    assert torch.equal(first.seeds, CounterRNG.draw(1000, generator(3)).seeds)
    assert not torch.equal(first.seeds, CounterRNG.draw(1000, generator(4)).seeds)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(first.seeds.unique()) == 1000
    assert (first.seeds < 0).any()
    assert (first.seeds > 0).any()
    assert not first.counter.any()


def test_without_a_generator_the_global_seed_is_used():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = CounterRNG.draw(4, None)
        torch.manual_seed(1)
        assert torch.equal(CounterRNG.draw(4, None).seeds, first.seeds)


def test_the_hash_is_that_of_splitmix64():
    """Steele, Lea & Flood 2014, as published by Vigna: the sequence from state 1234567."""

    def mix(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    golden, state = 0x9E3779B97F4A7C15, 1234567
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [mix((state + i * golden) % 2**64) for i in (1, 2, 3)] == published
    seed, counter = 5, 2
    start = mix((seed + mix((counter + 1) * golden % 2**64)) % 2**64)
    expected = [mix((start + i * golden) % 2**64) for i in (1, 2, 3)]
    rng = CounterRNG(torch.tensor([seed]), torch.tensor([counter]))
    assert [b % 2**64 for b in rng.bits((3,))[0].tolist()] == expected


# --- randomness


@directions
def test_bits_are_balanced(direction):
    score = table(DIRECTIONS[direction]()).mean(0) * N**0.5
    assert score.abs().max() < LIMIT


@directions
def test_bits_of_one_number_are_uncorrelated(direction):
    signs = table(DIRECTIONS[direction]())
    score = (signs.T @ signs / N**0.5).fill_diagonal_(0)
    assert score.abs().max() < LIMIT + 0.5  # 2016 pairs: false alarm 4e-6


@directions
@pytest.mark.parametrize("lag", [1, 2, 3, 16, 1000])
def test_adjacent_numbers_are_uncorrelated_bit_by_bit(direction, lag):
    signs = table(DIRECTIONS[direction]())
    score = signs[:-lag].T @ signs[lag:] / (N - lag) ** 0.5
    assert score.abs().max() < LIMIT + 0.5  # 4096 pairs: false alarm 8e-6


@directions
@pytest.mark.parametrize("byte", range(8))
def test_bytes_are_uniform(direction, byte):
    values = (DIRECTIONS[direction]() >> (8 * byte)) & 255
    assert stats.chisquare(torch.bincount(values, minlength=256)).pvalue > 1e-6


@directions
def test_numbers_do_not_repeat(direction):
    assert len(DIRECTIONS[direction]().unique()) == N


def test_seeds_counters_salts_and_coordinates_do_not_collide():
    """Two of 640,000 random 64-bit numbers agree with probability 1e-8."""
    seen = [
        CounterRNG(torch.arange(80), torch.full((80,), counter)).bits((100,), salt).reshape(-1)
        for counter in range(40)
        for salt in (0, 1)
    ]
    assert len(torch.cat(seen).unique()) == 80 * 100 * 80


def test_each_bit_of_seed_and_counter_flips_half_of_the_output():
    """Avalanche: flipping any input bit flips every output bit with probability one half."""
    base = CounterRNG.draw(2000, generator(1)).at(slice(None), torch.randint(1 << 20, (2000,)))
    signs = table(base.bits((1,))[:, 0])
    for bit in range(64):
        flip = torch.tensor(1) << bit
        moved = [
            CounterRNG(base.seeds ^ flip, base.counter),
            CounterRNG(base.seeds, base.counter ^ flip),
        ]
        for rng in moved:
            agreement = (table(rng.bits((1,))[:, 0]) * signs).mean(0) * 2000**0.5
            assert agreement.abs().max() < LIMIT + 0.5  # 8192 of them: false alarm 2e-5


@pytest.mark.parametrize("rng", [seeds(), counters()], ids=["seeds", "counters"])
def test_signs_are_fair_and_independent(rng):
    signs = rng.signs((8,))
    assert signs.unique().tolist() == [-1.0, 1.0]
    assert (signs.mean(0) * N**0.5).abs().max() < LIMIT
    products = (signs.T @ signs / N**0.5).fill_diagonal_(0)
    assert products.abs().max() < LIMIT
    words = (signs > 0).long() @ (1 << torch.arange(8))
    assert stats.chisquare(torch.bincount(words, minlength=256)).pvalue > 1e-6


@pytest.mark.parametrize("rng", [seeds(), counters()], ids=["seeds", "counters"])
def test_normals_are_normal_and_independent(rng):
    x = rng.normals((8,))
    assert bool(x.isfinite().all())
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)]:
        score = (x**power - moment).mean(0) * (N / variance) ** 0.5
        assert score.abs().max() < LIMIT
    for column in x.T:
        assert stats.kstest(column, "norm").pvalue > 1e-6
    beyond = (x.abs() > 3).double().sum()
    p = math.erfc(3 / 2**0.5)
    assert abs(beyond - x.numel() * p) < LIMIT * (x.numel() * p) ** 0.5
    for y in (x, (x**2 - 1) / 2**0.5):
        products = (y.T @ y / N**0.5).fill_diagonal_(0)
        assert products.abs().max() < LIMIT


def test_normals_and_signs_at_one_counter_are_independent():
    rng = seeds()
    score = (rng.normals((8,)).T @ rng.signs((8,)) / N**0.5).abs().max()
    assert score < LIMIT


def test_normals_of_successive_counters_are_independent():
    normals = [seeds(counter=counter).normals((4,)) for counter in range(6)]
    scores = [(a * b).mean(0) * N**0.5 for a, b in pairwise(normals)]
    assert torch.stack(scores).abs().max() < LIMIT
