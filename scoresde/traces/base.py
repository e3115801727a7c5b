r"""Estimating the divergence of a vector field h: R^d → R^d, the trace of its Jacobian J.

Everything is told by products vᵀJ, each the cost of one backward pass through the evaluation of h
that is needed anyway. An estimator is unbiased and returns independent estimates, so that whoever
averages them can also say how much to trust the average.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext, suppress

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from scoresde._core.counter_rng import CounterRNG

VectorField = Callable[[Tensor], Tensor]


class Trace(ABC):
    """An unbiased estimator of tr ∂h/∂x, fused with the evaluation of h.

    Members are frozen dataclasses. What one declares of its noise (``exact``, ``linear``,
    :meth:`variance`, :meth:`resolved`) is what :func:`~scoresde.testing.check_trace` holds it to.
    """

    exact: bool = False
    """Whether the estimate has no noise."""
    linear: bool = False
    """Whether, with the same streams, the estimate is linear in the field."""

    @abstractmethod
    def __call__(
        self, field: VectorField, x: Tensor, rng: CounterRNG, *, differentiable: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Evaluate the field and its divergence.

        Args:
            field: h, from ``(m, d)`` to ``(m, d)``, row by row.
            x: where, ``(m, d)``.
            streams: one random stream per row, at the position to draw from.
            differentiable: keep the graph, so that results can be differentiated again.

        Returns:
            The value h(x) ``(m, d)``, and independent unbiased estimates of the divergence
            ``(m, k)``.
        """

    def linearize(
        self, field: VectorField, x: Tensor, rng: CounterRNG, *, differentiable: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Do the same, and hand out the Jacobian ``(m, d, d)`` where it comes for nothing."""
        return *self(field, x, rng, differentiable=differentiable), None

    @abstractmethod
    def products(self, d: int) -> int:
        """Return how many products vᵀJ one call takes in ``d`` dimensions."""

    def variance(self, jacobian: Tensor) -> Tensor | None:
        """Return the variance of the mean estimate for J ``(d, d)``, ``()``; None if not known."""
        return torch.zeros_like(jacobian[0, 0]) if self.exact else None

    def resolved(self, d: int) -> int:
        """Return up to which rank of J the estimate has no noise; 0 if that is not promised."""
        return d if self.exact else 0


class Tape:
    """One evaluation of a field, ready to give products vᵀJ.

    The fused kernels of ``scaled_dot_product_attention`` have neither a second derivative nor a
    batched first one; where one of them is asked for, the field is evaluated with the plain kernel.

    Args:
        field: h, from ``(m, d)`` to ``(m, d)``, row by row.
        x: where, ``(m, d)``.
        differentiable: keep the graph of value and products.
        batched: whether several products will be made in one backward pass.
    """

    def __init__(
        self, field: VectorField, x: Tensor, differentiable: bool, *, batched: bool
    ) -> None:
        self._differentiable = differentiable
        plain = sdpa_kernel(SDPBackend.MATH) if differentiable or batched else nullcontext()
        with torch.enable_grad(), plain:
            self._x = x if differentiable and x.requires_grad else x.detach().requires_grad_()
            self._value = field(self._x)
        self.value = self._value if differentiable else self._value.detach()

    def product(self, v: Tensor, *, last: bool = False) -> Tensor:
        """Return vᵀJ ``(k, m, d)`` for ``v`` ``(k, m, d)``, in one batched backward pass.

        Where an operation of the field has no rule for batches, it is one pass for each. With the
        ``last`` product the memory of the evaluation is given back on the way.
        """
        if not self._value.requires_grad:
            return torch.zeros_like(v)
        if len(v) > 1:
            with suppress(RuntimeError):  # what is wrong besides is raised below
                return self._gradient(v, is_grads_batched=True)
        final = last and not self._differentiable
        *before, end = v
        rows = [self._gradient(each) for each in before]
        return torch.stack([*rows, self._gradient(end, retain_graph=not final)])

    def _gradient(
        self, v: Tensor, is_grads_batched: bool = False, retain_graph: bool = True
    ) -> Tensor:
        (rows,) = torch.autograd.grad(
            self._value,
            self._x,
            v,
            retain_graph=retain_graph,
            create_graph=self._differentiable,
            is_grads_batched=is_grads_batched,
            allow_unused=True,
        )
        return torch.zeros_like(v) if rows is None else rows

    def images(self, v: Tensor) -> Tensor:
        """Return Jᵀv ``(m, d, k)`` for the columns of ``v`` ``(m, d, k)``."""
        return self.product(v.permute(2, 0, 1)).permute(1, 2, 0)
