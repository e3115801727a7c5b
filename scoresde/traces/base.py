r"""Estimators of the divergence of a vector field h: R^d → R^d, the trace of its Jacobian J.

All use vector–Jacobian products vᵀJ, each at the cost of one backward pass through an evaluation of
h that is needed anyway. Estimators are unbiased and return independent estimates, from which the
standard error of their mean follows.
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
    """An unbiased estimator of tr ∂h/∂x, evaluated together with h.

    Members are frozen dataclasses. :func:`~scoresde.testing.check_trace` tests what a member
    declares about its noise: ``exact``, ``linear``, :meth:`variance` and :meth:`exact_rank`.
    """

    exact: bool = False
    """Whether the estimate has no noise."""
    linear: bool = False
    """Whether, with the same random numbers, the estimate is linear in the field."""

    @abstractmethod
    def __call__(
        self, field: VectorField, x: Tensor, rng: CounterRNG, *, differentiable: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Evaluate the field and its divergence.

        Args:
            field: h, from ``(m, d)`` to ``(m, d)``, row by row.
            x: the points ``(m, d)``.
            rng: the random numbers of the rows, at the counters to draw from.
            differentiable: keep the graph, so that results can be differentiated again.

        Returns:
            The value h(x) ``(m, d)``, and independent unbiased estimates of the divergence
            ``(m, k)``.
        """

    def linearize(
        self, field: VectorField, x: Tensor, rng: CounterRNG, *, differentiable: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the same two, and the Jacobian ``(m, d, d)`` if it requires no further products.

        Args:
            field: h, from ``(m, d)`` to ``(m, d)``, row by row.
            x: the points ``(m, d)``.
            rng: the random numbers of the rows, at the counters to draw from.
            differentiable: keep the graph, so that results can be differentiated again.

        Returns:
            The value, the estimates, and the Jacobian or None.
        """
        return *self(field, x, rng, differentiable=differentiable), None

    @abstractmethod
    def products(self, d: int) -> int:
        """Return the number of products vᵀJ of one call in ``d`` dimensions."""

    def variance(self, jacobian: Tensor) -> Tensor | None:
        """Return the variance of the mean estimate for J ``(d, d)``, ``()``; None if unknown."""
        return torch.zeros_like(jacobian[0, 0]) if self.exact else None

    def exact_rank(self, d: int) -> int:
        """Return the largest rank of J up to which the estimate is exact; 0 if not declared."""
        return d if self.exact else 0


class Tape:
    """One evaluation of a field, recorded for vector–Jacobian products.

    The fused kernels of ``scaled_dot_product_attention`` have neither a second derivative nor a
    batched first one; if one of these is needed, the field is evaluated with the math kernel.

    Args:
        field: h, from ``(m, d)`` to ``(m, d)``, row by row.
        x: the points ``(m, d)``.
        differentiable: keep the graph of value and products.
        batched: whether several products will be computed in one backward pass.

    Attributes:
        value: h(x) ``(m, d)``.
    """

    def __init__(
        self, field: VectorField, x: Tensor, differentiable: bool, *, batched: bool
    ) -> None:
        self._differentiable = differentiable
        kernel = sdpa_kernel(SDPBackend.MATH) if differentiable or batched else nullcontext()
        with torch.enable_grad(), kernel:
            self._x = x if differentiable and x.requires_grad else x.detach().requires_grad_()
            self._value = field(self._x)
        self.value = self._value if differentiable else self._value.detach()

    def product(self, v: Tensor, *, last: bool = False) -> Tensor:
        """Compute vᵀJ in one batched backward pass.

        If an operation of the field has no batching rule, there is one pass for each vector.

        Args:
            v: the vectors ``(k, m, d)``.
            last: whether this is the last product, so that the graph is freed during the pass.

        Returns:
            The products ``(k, m, d)``.
        """
        if not self._value.requires_grad:
            return torch.zeros_like(v)
        if len(v) > 1:
            with suppress(RuntimeError):  # other errors recur below
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

    def transpose_product(self, v: Tensor) -> Tensor:
        """Return Jᵀv ``(m, d, k)`` for the columns of ``v`` ``(m, d, k)``."""
        return self.product(v.permute(2, 0, 1)).permute(1, 2, 0)
