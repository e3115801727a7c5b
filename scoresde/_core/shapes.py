"""Shapes of states, times and coefficients: the only place where they are broadcast.

A state ``x`` is ``(batch, *event)`` with any event shape, ``()`` included. A time ``t`` is a float,
a tensor of shape ``()`` (shared by the batch) or of shape ``(batch,)`` (one per sample).
Schedules are evaluated in float64, whatever the dtype of ``t`` or ``x``; the result is cast last.
"""

from __future__ import annotations

import math
from typing import TypeGuard

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from scoresde._core.checks import check_finite, check_floating, check_tensor

Time = float | Tensor

_SLACK = 1e-6
"""Relative overshoot of ``[0, T]`` that counts as rounding (``float32(0.995) > 0.995``)."""


def as_time(t: Time, T: float = math.inf, name: str = "t") -> Tensor:
    """Return ``t`` as a float64 tensor of shape ``()`` or ``(batch,)``, clamped to ``[0, T]``.

    Values are checked on the CPU, outside compiled or transformed code; on an accelerator a check
    would synchronize with the device.

    Args:
        t: time, a float, ``()`` or ``(batch,)``.
        T: end of the diffusion, in the same unit.
        name: the argument's name in error messages.

    Returns:
        Float64 tensor with the shape of ``t``.

    Raises:
        TypeError: if ``t`` is neither a float nor a floating-point tensor.
        ValueError: if ``t`` has more than one dimension, is not finite or lies outside ``[0, T]``.
    """
    if _is_number(t) and 0.0 <= float(t) <= T:
        return t  # the usual case in loops
    if not isinstance(t, Tensor):
        try:
            t = torch.as_tensor(float(t), dtype=torch.float64)
        except (TypeError, ValueError):
            raise TypeError(
                f"{name}: expected a float or a floating-point tensor of shape () or (batch,), "
                f"got {type(t).__name__}; convert it with torch.as_tensor"
            ) from None
    elif not t.is_floating_point():
        raise TypeError(
            f"{name}: expected a floating-point time in [0, {T:g}], got {t.dtype}; "
            "a table's index becomes a time through its `times`"
        )
    if t.ndim > 1:
        raise ValueError(
            f"{name}: expected shape () or (batch,), got {tuple(t.shape)}; "
            "give one time per sample (for shape (batch, 1) use t.squeeze(-1))"
        )
    t = t.to(torch.float64)
    if has_concrete_value(t) and _inside(t, T, name):
        return t
    return t.clamp(0.0, T) if math.isfinite(T) else t


def _is_number(t: object) -> TypeGuard[Tensor]:
    """Whether ``t`` is a float64 scalar with a concrete value and no gradient."""
    if not isinstance(t, Tensor) or t.ndim or t.dtype != torch.float64:
        return False
    return not t.requires_grad and has_concrete_value(t)


def has_concrete_value(x: Tensor) -> bool:
    """Whether values are available without synchronization: on the CPU, not compiled or traced."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not is_functorch_wrapped_tensor(x)


def check_data(name: str, x: Tensor) -> Tensor:
    """Return ``x`` if it is a floating-point tensor; where values are concrete, also finite."""
    check_floating(name, x)
    return check_finite(name, x) if has_concrete_value(x) else x


def _inside(t: Tensor, T: float, name: str) -> bool:
    """Whether times lie in [0, T] exactly; raise if they do not up to rounding."""
    if not t.numel():
        return True
    times = t.detach()
    if t.ndim == 0:
        low = high = float(times)
    else:
        low, high = torch.stack(torch.aminmax(times)).tolist()  # plain numbers compare quickly
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name}: expected finite times, got {low:g} … {high:g}")
    if low < -_SLACK * min(T, 1.0) or high > T * (1 + _SLACK):
        raise ValueError(
            f"{name}: expected times in [0, {T:g}], got {low:g} … {high:g}; "
            "0 is the data end and T the noise end of the diffusion"
        )
    return low >= 0 and high <= T


def check_batch(t: Tensor, x: Tensor, name: str = "t") -> None:
    """Check that ``x`` is a state, floating, and ``t`` is ``()`` or has one entry per row of it."""
    check_floating("x", x)
    if t.ndim == 1 and (x.ndim == 0 or t.shape[0] != x.shape[0]):
        raise ValueError(
            f"{name}: expected shape () or ({x.shape[0] if x.ndim else 'batch'},) to go with x of "
            f"shape {tuple(x.shape)}, got {tuple(t.shape)}; one time per sample or one for all"
        )


def linear_combination(a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """Return a x + b y, for coefficients ``()`` or ``(batch,)`` and states ``(batch, *event)``."""
    if _is_number(b):  # saves one pass over the states
        return torch.add(expand(a, x) * x, y, alpha=float(b))
    return expand(a, x) * x + expand(b, y) * y


def check_like(name: str, out: Tensor, x: Tensor) -> Tensor:
    """Return what a user's function returned for ``x``, if it is a tensor of that shape."""
    if check_tensor(name, out).shape != x.shape:
        raise ValueError(
            f"{name}: expected a result of the shape of x, {tuple(x.shape)}, got "
            f"{tuple(out.shape)}; it is called with x of shape (batch, *event) and returns the same"
        )
    return out


def like_time(value: Tensor, t: Time) -> Tensor:
    """Return a float64 coefficient in the dtype of ``t`` if that is a tensor, else unchanged."""
    return value.to(t.dtype) if isinstance(t, Tensor) else value


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """Return a coefficient ``()`` or ``(batch,)`` shaped and cast to multiply ``x``.

    A scalar on the CPU is not moved: PyTorch multiplies by it as by a number, without a copy.

    Example:
        >>> x = torch.zeros(2, 3, 4)
        >>> expand(torch.ones(2, dtype=torch.float64), x).shape
        torch.Size([2, 1, 1])
    """
    if coefficient.ndim == 0:
        return coefficient.to(x.dtype)
    check_batch(coefficient, x)
    return coefficient.to(x).reshape(-1, *(1,) * (x.ndim - 1))


def per_sample(t: Tensor, x: Tensor) -> Tensor:
    """Return ``t`` ``()`` or ``(batch,)`` as ``(batch,)``, on the device of ``x``."""
    check_batch(t, x)
    return t.to(x.device).expand(x.shape[0])


def flatten(x: Tensor) -> Tensor:
    """Return ``x`` ``(batch, *event)`` as ``(batch, d)``, with d = 1 for scalar events."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))
