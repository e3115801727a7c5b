r"""Estimating the divergence of a vector field h: R^d → R^d, the trace of its Jacobian J.

Everything is told by products vᵀJ, each the cost of one backward pass through the evaluation of h
that is needed anyway. An estimator is unbiased and returns independent estimates, so that whoever
averages them can also say how much to trust the average.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from scoresde._streams import Streams

VectorField = Callable[[Tensor], Tensor]


class Trace(ABC):
    """An unbiased estimator of tr ∂h/∂x, fused with the evaluation of h.

    Members are frozen dataclasses. ``exact`` says whether the estimate has no noise.
    """

    exact: bool = False

    @abstractmethod
    def __call__(
        self, field: VectorField, x: Tensor, streams: Streams, *, differentiable: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Evaluate the field and its divergence.

        Args:
            field: h, from ``(m, d)`` to ``(m, d)``, row by row.
            x: where, ``(m, d)``.
            streams: one random stream per row, at the position to draw from.
            differentiable: keep the graph, so that results can be differentiated again.

        Returns:
            The value h(x) ``(m, d)``, and independent unbiased estimates of the divergence ``(m, k)``.
        """

    @abstractmethod
    def products(self, d: int) -> int:
        """Return how many products vᵀJ one call takes in ``d`` dimensions."""


class Tape:
    """One evaluation of a field, ready to give products vᵀJ."""

    def __init__(self, field: VectorField, x: Tensor, differentiable: bool) -> None:
        self._differentiable = differentiable
        with torch.enable_grad():
            self._x = x if differentiable and x.requires_grad else x.detach().requires_grad_()
            self._value = field(self._x)
        self.value = self._value if differentiable else self._value.detach()

    def product(self, v: Tensor) -> Tensor:
        """Return vᵀJ ``(k, m, d)`` for probes ``v`` ``(k, m, d)``, all in one batched backward pass."""
        if not self._value.requires_grad:
            return torch.zeros_like(v)
        options = {
            "retain_graph": True,
            "create_graph": self._differentiable,
            "allow_unused": True,
        }
        if v.shape[0] == 1:
            (rows,) = torch.autograd.grad(self._value, self._x, v[0], **options)
            return torch.zeros_like(v) if rows is None else rows.unsqueeze(0)
        (rows,) = torch.autograd.grad(
            self._value, self._x, v, is_grads_batched=True, **options
        )
        return torch.zeros_like(v) if rows is None else rows
