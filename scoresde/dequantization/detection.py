"""Whether data look quantised, so that a density of them would mean nothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde._core.checks import check_state, check_tensor, summarize

_SAMPLES, _FEWEST, _CHANCE = 64, 16, 1e-12
"""Rows looked at, fewest values that tell anything, accepted chance of a false alarm."""


def looks_quantized(x: Tensor) -> bool:
    """Whether the values of ``x`` lie on a lattice that is far too coarse to be chance or rounding.

    Looked at are up to 64 different samples, all values together and each entry of the first event
    dimension (a channel, a column) on its own, since standardisation gives each its own lattice.
    A set of n values is on a lattice {v_0 + j h} if all are, up to rounding δ, where h is the
    smallest distance of two values or that over 2, ..., 8, and (2δ/h)^(n−2), the chance that
    unquantised values look so, is below 1e-12.  Integer tensors are quantised by definition.

    It cannot tell with fewer than 16 values, with lattices finer than about 1/1000 of the range in
    float32 (finer ones are found if h is a binary fraction, as in 16-bit sound), or in half
    precision beyond some 30 levels; then the answer is False.

    Args:
        x: Data, ``(batch, *event)``.

    Raises:
        TypeError: If ``x`` is no tensor.
        ValueError: If ``x`` is empty, without batch dimension or not finite.

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
    """Refuse data that look quantised: a density of such data says nothing in bits per dimension.

    A density can be made arbitrarily large at finitely many levels, so its value there bounds the
    probability of nothing.

    Args:
        name: The argument's name in the message.
        x: Data, ``(batch, *event)``.

    Returns:
        ``x`` itself.

    Raises:
        TypeError: If ``x`` is no tensor.
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
            "a density at quantised values can be arbitrarily large and bounds no probability, so "
            "bits/dim would mean nothing: spread the levels over their bins with dequantize(...), "
            "or ask dequantized_bound(...) for a bound on log P"
        )
    return x
