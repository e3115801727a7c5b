"""Derivatives by finite differences, with a bound of their error: an oracle without autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_STEPS = (1e-3, 1e-4, 1e-5, 1e-6)
_ROUNDING = 1e-15


def slope(curve: Callable[[Tensor], Tensor], t: float, T: float) -> tuple[Tensor, Tensor]:
    """Return the derivative of a curve, and a bound of its error.

    Central differences, or one-sided near T, with the step that is best for each component. The
    difference to the result for twice the step bounds the discretization error, kinks included; the
    rounding error is 1e-15 (|curve| + 1)/step.

    Args:
        curve: function of a float64 time ``()``, with a tensor as value.
        t: time of the derivative, in (0, T].
        T: end of the time interval.

    Returns:
        The derivative and the bound, both in the shape of the value.
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
