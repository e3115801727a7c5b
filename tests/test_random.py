"""Draws have the right distribution, shape, dtype and device; global states are preserved."""

import pytest
import torch

from scoresde._core import random

SHAPED = [random.normal, random.uniform, random.rademacher]
LIKE = [random.normal_like, random.uniform_like, random.rademacher_like]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("draw", LIKE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4,), (3, 2), (2, 1, 5, 1), (0, 3)])
def test_like_follows_shape_dtype_and_device(draw, dtype, shape, device):
    x = torch.empty(shape, dtype=dtype, device=device)
    for generator in (None, seeded()):
        drawn = draw(x, generator)
        assert (drawn.shape, drawn.dtype, drawn.device) == (x.shape, x.dtype, x.device)


@pytest.mark.parametrize("draw", SHAPED)
def test_a_generator_determines_the_draw_and_preserves_the_global_state(draw, device):
    before = torch.get_rng_state()
    first = draw((6,), generator=seeded(), device=device)
    again = draw((6,), generator=seeded(), device=device)
    other = draw((60,), generator=seeded(1), device=device)[:6]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("draw", SHAPED)
def test_a_cpu_generator_gives_the_same_numbers_on_every_device(draw, device):
    there = draw((50,), generator=seeded(), device=device)
    here = draw((50,), generator=seeded(), device="cpu")
    assert torch.equal(there.cpu(), here)


@pytest.mark.parametrize("draw", SHAPED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_rounded_float32_draw(draw, dtype):
    half = draw((200,), generator=seeded(), dtype=dtype)
    single = draw((200,), generator=seeded(), dtype=torch.float32)
    assert torch.equal(half, single.to(dtype))


@pytest.mark.parametrize("draw", SHAPED)
def test_without_a_generator_the_global_seed_decides(draw):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = draw((4,))
        torch.manual_seed(3)
        assert torch.equal(draw((4,)), first)


@pytest.mark.parametrize(
    ("draw", "moments"),
    [
        (random.normal, (0, 1, 0, 3)),
        (lambda *a, **k: random.uniform(*a, lower=-2.0, upper=2.0, **k), (0, 4 / 3, 0, 16 / 5)),
        (random.rademacher, (0, 1, 0, 1)),
    ],
)
def test_first_four_moments(draw, moments):
    """Each sample moment lies within 5 of its own standard errors (false alarm < 1e-5 for all)."""
    sample = draw((200_000,), generator=seeded(11), dtype=torch.float64)
    for power, moment in enumerate(moments, start=1):
        values = sample**power
        error = values.std() / len(values) ** 0.5
        assert abs(values.mean() - moment) <= 5 * error + 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
def test_supports(dtype):
    signs = random.rademacher((1000,), generator=seeded(), dtype=dtype)
    assert signs.unique().tolist() == [-1.0, 1.0]
    points = random.uniform((1000,), lower=0.25, upper=0.5, generator=seeded(), dtype=dtype)
    assert 0.25 <= points.min() < 0.26
    assert 0.49 < points.max() <= 0.5
