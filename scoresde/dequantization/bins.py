"""Integer levels, their bins, and the points of dequantized data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde._core.checks import (
    check_finite,
    check_floating,
    check_instance,
    check_integer,
    check_number,
    check_positive,
    check_state,
    check_tensor,
    summarize,
)
from scoresde.dequantization.noise import UNIFORM, Dequantization

Coefficient = float | Tensor
"""A number, or a tensor that broadcasts against the event shape."""


def coefficient(
    name: str, value: object, event_shape: Sequence[int], device: torch.device, *, positive: bool
) -> Tensor:
    """Return ``value`` as a float64 tensor of shape ``event_shape``."""
    event_shape = tuple(event_shape)
    if not isinstance(value, Tensor):
        number = check_positive(name, value) if positive else check_number(name, value)
        return torch.full(event_shape, number, dtype=torch.float64, device=device)
    value = check_finite(name, check_floating(name, value)).to(device, torch.float64)
    if positive and not bool((value > 0).all()):
        raise ValueError(
            f"{name}: expected positive entries, got a smallest one of {float(value.min())!r}; "
            "pass the width of the range, upper minus lower end"
        )
    try:
        return value.expand(event_shape)
    except RuntimeError:
        raise ValueError(
            f"{name}: expected a number or a tensor that broadcasts to the event shape "
            f"{event_shape}, got {summarize(value)}; add trailing dimensions of size one"
        ) from None


_SHRINKAGE = 1 - 1e-10
"""Factor on positions within a bin, so that float64 rounding cannot move a point to the next."""


@dataclass(frozen=True)
class _LevelBins:
    """The bins of levels 0, ..., count-1 in the model's coordinates; float64 throughout."""

    count: int
    width: Tensor
    shift: Tensor

    @classmethod
    def of(cls, levels: int, scale: Coefficient, shift: Coefficient, x: Tensor) -> _LevelBins:
        """Return the bins of the events of ``x``, on its device; checks the arguments."""
        count = check_integer("levels", levels, minimum=2)
        event = x.shape[1:]
        width = coefficient("scale", scale, event, x.device, positive=True) / count
        return cls(count, width, coefficient("shift", shift, event, x.device, positive=False))

    def point(self, k: Tensor, u: Tensor | float) -> Tensor:
        """Return the point at u ∈ [-½, ½] widths from the center of bin k."""
        return self.shift + self.width * (k + 0.5 + u)

    def position(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bin k of each point, the nearest for points outside the range, and u."""
        z = (x.to(torch.float64) - self.shift) / self.width
        k = z.clamp(0, self.count - 1).trunc()
        return k, z - k - 0.5


def _check_levels(x: object, count: int) -> Tensor:
    """Return integer levels ``(batch, *event)`` as float64."""
    x = check_tensor("x", x)
    if x.is_complex():
        raise TypeError(f"x: expected integer levels, got {summarize(x)}; pass real numbers")
    k = check_state("x", x.to(torch.float64))
    expected = f"x: expected integers from 0 to {count - 1} (levels={count})"
    if not torch.equal(k, k.round()):
        raise ValueError(
            f"{expected}, got values such as {float(k[k != k.round()][0]):.6g}; undo the scaling "
            "first, e.g. (x * 255).round() for images in [0, 1]"
        )
    low, high = (int(end) for end in torch.aminmax(k))
    if low < 0 or high >= count:
        raise ValueError(
            f"{expected}, got values from {low} to {high}; pass the number of levels of the data"
        )
    return k


def _draw(
    noise: Dequantization, k: Tensor, bins: _LevelBins, generator: torch.Generator | None
) -> Tensor:
    """Return positions u from ``noise``, checked, strictly inside the bins."""
    check_instance("noise", noise, Dequantization, "UniformDequantization()")
    u = noise.sample(bins.point(k, 0.0), bins.width, generator)
    if u.shape != k.shape or not bool((u.abs() <= 0.5).all()):
        raise ValueError(
            f"noise: expected positions of shape {tuple(k.shape)} in [-1/2, 1/2], got "
            f"{summarize(u)} of largest size {float(u.abs().max()):.3g}; measure u in bin widths "
            "from the center"
        )
    return _SHRINKAGE * u


def _round_within_bins(points: Tensor, k: Tensor, bins: _LevelBins, dtype: torch.dtype) -> Tensor:
    """Return ``points`` in ``dtype``, moved by one ulp where rounding would leave the bin."""
    x = points.to(dtype)
    limits = torch.finfo(dtype)
    step = limits.eps * points.abs().clamp(min=limits.smallest_normal)
    back = points + step * torch.sign(bins.point(k, 0.0) - points)
    x = torch.where(bins.position(x)[0] == k, x, back.to(dtype))
    if not torch.equal(bins.position(x)[0], k):
        raise ValueError(
            f"x: expected a dtype that resolves bins of width {float(bins.width.min()):.3g}, "
            f"got {str(dtype).removeprefix('torch.')}; pass x.float() or x.double()"
        )
    return x


# --- public functions


def dequantize(
    x: Tensor,
    levels: int,
    *,
    scale: Coefficient = 1.0,
    shift: Coefficient = 0.0,
    noise: Dequantization = UNIFORM,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Dequantize integer levels: x = shift + scale · (k + ½ + u) / levels, u ~ ``noise``.

    :func:`quantize` maps the result back to exactly the same levels, in every dtype.

    Args:
        x: Integer levels from 0 to levels-1, ``(batch, *event)``; any dtype with integer values.
        levels: Number of levels, 256 for 8-bit data.
        scale: Width of the range that all bins cover together, in the model's coordinates: 1 for
            [0, 1], 2 for [-1, 1]; a number, or a tensor that broadcasts to the event shape.
        shift: Lower end of that range, likewise.
        noise: Distribution of u within a bin.
        generator: Source of randomness; torch's global one if None.

    Returns:
        Points in the model's coordinates, shaped like ``x``, in its dtype if that is floating and
        in torch's default dtype otherwise.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``x`` is empty, holds anything but integers from 0 to levels-1, or its dtype
            cannot resolve the bins.

    Example:
        >>> images = torch.tensor([[0, 128, 255]], dtype=torch.uint8)
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = dequantize(images, 256, scale=2.0, shift=-1.0, generator=generator)
        >>> bool(((x >= -1) & (x <= 1)).all())
        True
        >>> quantize(x, 256, scale=2.0, shift=-1.0)
        tensor([[  0, 128, 255]])
    """
    k = _check_levels(x, check_integer("levels", levels, minimum=2))
    bins = _LevelBins.of(levels, scale, shift, k)
    u = _draw(noise, k, bins, generator)
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    return _round_within_bins(bins.point(k, u), k, bins, dtype)


def quantize(
    x: Tensor, levels: int, *, scale: Coefficient = 1.0, shift: Coefficient = 0.0
) -> Tensor:
    """Return the level whose bin contains each point: k = ⌊levels · (x − shift) / scale⌋.

    Points outside the range, as a sampler may draw them, are assigned to the nearest level.

    Args:
        x: Points in the model's coordinates, ``(batch, *event)``.
        levels: Number of levels.
        scale: Width of the whole range, see :func:`dequantize`.
        shift: Lower end of the range.

    Returns:
        Levels from 0 to levels-1, int64, shaped like ``x``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``x`` is empty or not finite.

    Example:
        >>> quantize(torch.tensor([[-1.2, -0.999, 0.0, 1.0]]), 256, scale=2.0, shift=-1.0)
        tensor([[  0,   0, 128, 255]])
    """
    x = check_state("x", x)
    return _LevelBins.of(levels, scale, shift, x).position(x)[0].long()


def dequantization_log_prob(
    x: Tensor,
    levels: int,
    *,
    scale: Coefficient = 1.0,
    shift: Coefficient = 0.0,
    noise: Dequantization = UNIFORM,
) -> Tensor:
    """Return the log-density of a dequantized point given its level, in the model's coordinates.

    ::

        log q(x | k) = log q(u | k) − Σ_i log width_i,

    so that log p(x) − log q(x | k) is one log-weight of the bound on log P(k).

    Args:
        x: Dequantized points, ``(batch, *event)``; k is the level whose bin contains it.
        levels: Number of levels.
        scale: Width of the whole range, see :func:`dequantize`.
        shift: Lower end of the range.
        noise: The distribution that the points were drawn from.

    Returns:
        log q(x | k) in nats, ``(batch,)``, float64; -inf outside the range.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``x`` is empty or not finite.

    Example:
        >>> dequantization_log_prob(torch.tensor([[0.1, 0.7]]), 256) / torch.tensor(2.0).log()
        tensor([16.], dtype=torch.float64)
    """
    x = check_state("x", x)
    bins = _LevelBins.of(levels, scale, shift, x)
    k, u = bins.position(x)
    return noise.log_prob(u, bins.point(k, 0.0), bins.width) - bins.width.log().sum()
