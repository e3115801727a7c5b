"""Conjugate gradients for batches of independent linear systems given by matrix products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde._core.shapes import expand, flatten

Map = Callable[[Tensor], Tensor]


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products of rows ``(batch,)`` of two tensors ``(batch, *shape)``."""
    return (flatten(a) * flatten(b)).sum(1)


def conjugate_gradients(
    apply: Map,
    b: Tensor,
    *,
    iterations: int,
    tolerance: float,
    precondition: Map | None = None,
) -> Tensor:
    r"""Solve M x = b for a symmetric positive M, starting from 0.

    A row stops when its residual is below the tolerance, or when the curvature along its search
    direction is not positive, so that rows do not depend on each other. If M is singular and b in
    its range, the iteration converges to the solution of least norm (in the preconditioner's
    metric). The iterate of least residual is returned: if M is not exactly symmetric, as the
    Jacobian of a learned denoiser, later ones may be far worse.

    Args:
        apply: v -> M v, row by row, ``(batch, *shape)`` to the same shape.
        b: ``(batch, *shape)``.
        iterations: maximal number of products with M.
        tolerance: target for ‖M x − b‖/‖b‖.
        precondition: v -> P v with P ≈ M^{-1} symmetric positive; the identity if None.

    Returns:
        x, shaped like ``b``; differentiable where ``apply`` and ``b`` are.

    References:
        Hestenes & Stiefel, *Methods of conjugate gradients for solving linear systems*, 1952.
    """
    x, residual = torch.zeros_like(b), b
    preconditioned = residual if precondition is None else precondition(residual)
    direction, product = preconditioned, inner(residual, preconditioned)
    least = inner(b, b)
    best, target = x, tolerance**2 * least
    for _ in range(iterations):
        active = (inner(residual, residual) > target).detach()
        if not bool(active.any()):
            break
        image = apply(direction)
        curvature = inner(direction, image)
        active = active & (curvature > 0).detach()
        step = _quotient(product, curvature, active)
        x = x + expand(step, x) * direction
        residual = residual - expand(step, x) * image
        size = inner(residual, residual)
        improved = (size < least).detach()
        best = torch.where(expand(improved, x).bool(), x, best)
        least = torch.where(improved, size, least)
        preconditioned = residual if precondition is None else precondition(residual)
        previous, product = product, inner(residual, preconditioned)
        direction = preconditioned + expand(_quotient(product, previous, active), x) * direction
    return best


def _quotient(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """Return a/b, and 0 elsewhere."""
    return torch.where(where, a / torch.where(where, b, torch.ones_like(b)), torch.zeros_like(a))
