"""Random draws of a given shape, dtype and device.

A generator draws on its own device and the result moves afterwards, so that a CPU generator gives
the same numbers on every device.  Without one, PyTorch's global generator of the target device is
used; with one, the global generators do not change.  Half-precision draws are made in float32 and
rounded.
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
    draw: Callable[..., Tensor],
    shape: Sequence[int],
    generator: torch.Generator | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Tensor:
    dtype = dtype or torch.get_default_dtype()
    wide = torch.promote_types(dtype, torch.float32)
    source = device if generator is None else generator.device
    drawn = draw(tuple(shape), generator=generator, dtype=wide, device=source)
    return drawn.to(device=device, dtype=dtype)


def normal(
    shape: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return independent draws of N(0, 1).

    Example:
        >>> normal((2, 3), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3])
    """
    return _draw(torch.randn, shape, generator, dtype, device)


def normal_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return independent draws of N(0, 1) with the shape, dtype and device of ``x``."""
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
    """Return independent uniform draws from [lower, upper); rounding can give ``upper`` itself.

    Example:
        >>> t = uniform((1000,), lower=0.2, upper=0.5, generator=torch.Generator().manual_seed(0))
        >>> bool(((t >= 0.2) & (t <= 0.5)).all())
        True
    """

    def draw(size: tuple[int, ...], **options: Any) -> Tensor:
        return lower + (upper - lower) * torch.rand(size, **options)

    return _draw(draw, shape, generator, dtype, device)


def uniform_like(
    x: Tensor, generator: torch.Generator | None = None, *, lower: float = 0.0, upper: float = 1.0
) -> Tensor:
    """Return independent uniform draws from [lower, upper), in shape, dtype and device of ``x``."""
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
    """Return independent signs, -1 or +1, with probability one half each.

    Example:
        >>> signs = rademacher((4, 2), generator=torch.Generator().manual_seed(0))
        >>> bool((signs.abs() == 1).all())
        True
    """

    def draw(size: tuple[int, ...], **options: Any) -> Tensor:
        return 2 * torch.randint(2, size, **options) - 1

    return _draw(draw, shape, generator, dtype, device)


def rademacher_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return independent signs with the shape, dtype and device of ``x``."""
    return rademacher(x.shape, generator=generator, dtype=x.dtype, device=x.device)


@contextmanager
def temporarily_seeded(generator: torch.Generator | None) -> Iterator[None]:
    """Seed the CPU's global generator from ``generator``, and restore its state afterwards.

    ``torch.distributions`` draw from the global generator alone.

    Example:
        >>> normal, before = torch.distributions.Normal(0.0, 1.0), torch.get_rng_state()
        >>> with temporarily_seeded(torch.Generator().manual_seed(0)):
        ...     x = normal.sample()
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
