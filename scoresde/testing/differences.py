"""Derivatives in time by differences, with a bound of their error: an oracle without autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_STEPS = (1e-3, 1e-4, 1e-5, 1e-6)
_ROUNDING = 1e-15


def slope(curve: Callable[[Tensor], Tensor], t: float, T: float) -> tuple[Tensor, Tensor]:
    """Return the derivative of a curve, and a bound of its error.

    Central differences, or one-sided near T, over the distance that suits each component best. The
    difference to the slope over twice the distance bounds the error of the discretisation, kinks
    included; that of rounding is 1e-15 (|curve| + 1)/distance.

    Args:
        curve: from a float64 time ``()`` to a tensor.
        t: where, in (0, T].
        T: the end of time.
    """
    here = curve(torch.tensor(t, dtype=torch.float64))
    slopes, bounds = zip(*(_slope(curve, t, T, part * t, here) for part in _STEPS), strict=True)
    best = torch.stack(bounds).argmin(0, keepdim=True)
    return torch.stack(slopes).gather(0, best)[0], torch.stack(bounds).gather(0, best)[0]


def _slope(
    curve: Callable[[Tensor], Tensor], t: float, T: float, step: float, here: Tensor
) -> tuple[Tensor, Tensor]:
    ahead = 1.0 if t + 2 * step <= T else 0.0

    def difference(h: float) -> Tensor:
        high, low = (torch.tensor(v, dtype=torch.float64) for v in (t + ahead * h, t - h))
        return (curve(high) - curve(low)) / (high - low)

    near, far = difference(step), difference(2 * step)
    return near, 2 * (near - far).abs() + _ROUNDING * (here.abs() + 1) / step
