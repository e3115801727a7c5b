"""Random draws: the one place where a generator meets a shape, a dtype and a device.

A generator draws on its own device and the result moves afterwards, so that a CPU generator gives
the same numbers whatever device the model is on.  Without one, torch's global generator of the
target device is used; with one, the global generators stay untouched.  Half-precision draws are
made in float32 and rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "normal",
    "normal_like",
    "rademacher",
    "rademacher_like",
    "temporarily_seeded",
    "uniform",
    "uniform_like",
]


def _draw(
    law: Callable[..., Tensor],
    shape: Sequence[int],
    generator: torch.Generator | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Tensor:
    dtype = dtype or torch.get_default_dtype()
    wide = torch.promote_types(dtype, torch.float32)
    source = device if generator is None else generator.device
    drawn = law(tuple(shape), generator=generator, dtype=wide, device=source)
    return drawn.to(device=device, dtype=dtype)


def normal(
    shape: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Independent draws of N(0, 1).

    Example:
        >>> normal((2, 3), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3])
    """
    return _draw(torch.randn, shape, generator, dtype, device)


def normal_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Independent draws of N(0, 1) with the shape, dtype and device of ``x``."""
    return normal(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def uniform(
    shape: Sequence[int],
    *,
    lower: float = 0.0,
    upper: float = 1.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Independent draws of the uniform law on [lower, upper); rounding can reach ``upper``.

    Example:
        >>> t = uniform((1000,), lower=0.2, upper=0.5, generator=torch.Generator().manual_seed(0))
        >>> bool(((t >= 0.2) & (t <= 0.5)).all())
        True
    """

    def law(size: tuple[int, ...], **options: Any) -> Tensor:
        return lower + (upper - lower) * torch.rand(size, **options)

    return _draw(law, shape, generator, dtype, device)


def uniform_like(
    x: Tensor, generator: torch.Generator | None = None, *, lower: float = 0.0, upper: float = 1.0
) -> Tensor:
    """Independent draws of the uniform law on [lower, upper), like ``x`` in all the rest."""
    return uniform(
        x.shape, lower=lower, upper=upper, generator=generator, dtype=x.dtype, device=x.device
    )


def rademacher(
    shape: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Independent signs, -1 or +1, with probability one half each.

    Example:
        >>> signs = rademacher((4, 2), generator=torch.Generator().manual_seed(0))
        >>> bool((signs.abs() == 1).all())
        True
    """

    def law(size: tuple[int, ...], **options: Any) -> Tensor:
        return 2 * torch.randint(2, size, **options) - 1

    return _draw(law, shape, generator, dtype, device)


def rademacher_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Independent signs with the shape, dtype and device of ``x``."""
    return rademacher(x.shape, generator=generator, dtype=x.dtype, device=x.device)


@contextmanager
def temporarily_seeded(generator: torch.Generator | None) -> Iterator[None]:
    """Let ``generator`` stand in for the CPU's global one, which distributions draw from.

    Example:
        >>> law, before = torch.distributions.Normal(0.0, 1.0), torch.get_rng_state()
        >>> with temporarily_seeded(torch.Generator().manual_seed(0)):
        ...     x = law.sample()
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    if generator is None:
        yield
        return
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed))
        yield
