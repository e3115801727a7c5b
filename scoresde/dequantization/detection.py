"""Detection of quantized data, for which a density is not meaningful."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde._core.checks import check_state, check_tensor, summarize

_SAMPLES, _FEWEST, _CHANCE = 64, 16, 1e-12
"""Rows examined, minimum number of values, accepted probability of a false positive."""


def looks_quantized(x: Tensor) -> bool:
    """Return whether the values of ``x`` lie on a lattice too coarse to be chance or rounding.

    Up to 64 distinct samples are examined: all values together, and each entry of the first event
    dimension (a channel, a column) separately, since standardization gives each its own lattice.
    n values, known up to rounding δ, lie on a lattice {v_0 + j h} if all of them do, where h is
    the smallest distance between two values or that distance divided by 2, ..., 8. They count as
    quantized if (2δ/h)^(n−2), the probability of this for continuous values, is below 1e-12.
    Integer tensors are quantized by definition.

    The answer is False where detection is impossible: with fewer than 16 values, for lattices finer
    than about 1/1000 of the range in float32 (finer ones are found if h is a binary fraction, as in
    16-bit sound), and in half precision beyond about 30 levels.

    Args:
        x: Data, ``(batch, *event)``.

    Raises:
        TypeError: If ``x`` is not a tensor.
        ValueError: If ``x`` is empty, without a batch dimension or not finite.

    Example:
        >>> from scoresde.dequantization import dequantize
        >>> levels = torch.randint(256, (8, 3, 4), generator=torch.Generator().manual_seed(0))
        >>> looks_quantized(levels / 255), looks_quantized(dequantize(levels, 256))
        (True, False)
    """
    x = check_tensor("x", x)
    if not x.is_floating_point():
        return True
    rows = check_state("x", x.detach())[:_SAMPLES].to("cpu", torch.float64)
    rows = torch.unique(rows, dim=0)
    channels = rows.unbind(1) if rows.dim() > 1 else ()
    eps = torch.finfo(x.dtype).eps
    return any(_on_lattice(values, eps) for values in (rows, *channels))


def _on_lattice(values: Tensor, eps: float) -> bool:
    """Return whether values lie on a lattice, up to ``4 eps`` of the largest."""
    distinct = torch.unique(values)
    if values.numel() < _FEWEST or len(distinct) < 2:
        return False
    rounding = 4 * eps * distinct.abs().max()
    offsets = distinct - distinct[0]
    gaps = distinct.diff().min() / torch.arange(1, 9)
    steps = (offsets[-1] / (offsets[-1] / gaps).round()).unsqueeze(1)
    misses = (offsets - steps * (offsets / steps).round()).abs().amax(1)
    log_chance = (values.numel() - 2) * (2 * rounding / steps).clamp(max=1.0).log().squeeze(1)
    return bool(((misses <= rounding) & (log_chance < math.log(_CHANCE))).any())


def check_dequantized(name: str, x: Tensor) -> Tensor:
    """Raise ``ValueError`` if the data look quantized, else return them.

    A density can be arbitrarily large at finitely many levels, so its values there bound no
    probability, and bits per dimension computed from them mean nothing.

    Args:
        name: The argument's name in the message.
        x: Data, ``(batch, *event)``.

    Returns:
        ``x`` itself.

    Raises:
        TypeError: If ``x`` is not a tensor.
        ValueError: If :func:`looks_quantized`.

    Example:
        >>> check_dequantized("x", torch.arange(32.0).reshape(8, 4))
        Traceback (most recent call last):
        ...
        ValueError: x: expected continuous data, got a float32 tensor of shape (8, 4) ...
    """
    if looks_quantized(x):
        raise ValueError(
            f"{name}: expected continuous data, got {summarize(x)} whose values lie on a lattice; "
            "a density at quantized values can be arbitrarily large and bounds no probability, so "
            "bits/dim would mean nothing: dequantize the levels with dequantize(...), or use "
            "dequantized_bound(...) for a bound on log P"
        )
    return x
