"""Linear systems that are given by products alone, each row of a batch on its own."""

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

    A row that has reached its tolerance stays as it is, as does one along whose direction M turns
    out not to be positive, so that rows do not depend on each other. If M is singular but b in its
    range, the solution of least norm (in the preconditioner's metric) is approached. Of all steps
    the one of least residual is returned: where M is not quite symmetric, as the Jacobian of a
    learnt denoiser, later ones may be far worse.

    Args:
        apply: v -> M v, row by row, ``(batch, *shape)`` to the same.
        b: ``(batch, *shape)``.
        iterations: how many products with M are made at most.
        tolerance: wanted ‖M x − b‖/‖b‖.
        precondition: v -> P v with P ≈ M^{-1} symmetric positive; the identity if None.

    Returns:
        x, shaped like ``b``; differentiable where ``apply`` and ``b`` are.

    References:
        Hestenes & Stiefel, *Methods of conjugate gradients for solving linear systems*, 1952.
    """
    x, residual = torch.zeros_like(b), b
    better = residual if precondition is None else precondition(residual)
    direction, product = better, inner(residual, better)
    least = inner(b, b)
    best, goal = x, tolerance**2 * least
    for _ in range(iterations):
        active = (inner(residual, residual) > goal).detach()
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
        better = residual if precondition is None else precondition(residual)
        before, product = product, inner(residual, better)
        direction = better + expand(_quotient(product, before, active), x) * direction
    return best


def _quotient(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """Return a/b, and 0 elsewhere."""
    return torch.where(where, a / torch.where(where, b, torch.ones_like(b)), torch.zeros_like(a))
