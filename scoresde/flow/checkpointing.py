r"""Gradient checkpointing: evaluations are not stored but recomputed in the backward pass.

A log-likelihood takes dozens of evaluations of the score, each with its divergence; their graphs
together would fill the memory. Only the points of the evaluations are stored. The backward pass
recomputes one evaluation at a time with its graph, which is freed before the next one. The
gradient is that of the numbers computed in the forward pass (discretize, then differentiate), for
one more evaluation each.

Rows whose incoming gradient is zero, such as those of a rejected step, are left out: they cost
nothing, and a value that is not finite in them does not spread.

References:
    Chen et al., *Training deep nets with sublinear memory cost*, 2016, arXiv:1604.06174; Gholami et
    al., *ANODE*, 2019, arXiv:1902.10298, on the adjoint of an ODE integrated backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scoresde._core.modules import evaluation_mode
from scoresde._core.shapes import flatten

Rows = Tensor | slice
Evaluate = Callable[[Tensor, Rows, bool], Sequence[Tensor]]
"""evaluate(z, index, differentiable): functions of the rows ``index`` of a batch, where ``z`` holds
these rows of the variable; each result is ``(len(z), …)``, with a graph if differentiable."""


def checkpointed(evaluate: Evaluate, module: nn.Module, z: Tensor) -> tuple[Tensor, ...]:
    """Evaluate functions of a batch, with gradients to ``z`` and to a module's parameters.

    Args:
        evaluate: the functions, row by row; random numbers must be the same in every call.
        module: the module whose parameters the functions depend on.
        z: the variable ``(m, …)``.

    Returns:
        What ``evaluate`` returns for all rows.
    """
    if not torch.is_grad_enabled():
        return tuple(evaluate(z, slice(None), False))
    return tuple(_Checkpoint.apply(evaluate, module, z, *_parameters(module)))


class _Checkpoint(torch.autograd.Function):
    """The function of :func:`checkpointed`, of z and the parameters."""

    @staticmethod
    def forward(
        ctx: Any, evaluate: Evaluate, module: nn.Module, z: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.evaluate, ctx.module = evaluate, module
        ctx.save_for_backward(z, *parameters)
        return tuple(evaluate(z, slice(None), False))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - as torch documents it
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        z = ctx.saved_tensors[0]  # raises if a parameter was changed since the forward pass
        needed = torch.stack([flatten(g).ne(0).any(1) for g in gradients]).any(0)
        index = needed.nonzero().squeeze(1)
        if not len(index):
            return (None,) * len(ctx.needs_input_grad)
        with torch.enable_grad(), evaluation_mode(ctx.module):
            part = z[index].detach().requires_grad_(ctx.needs_input_grad[2])
            results = ctx.evaluate(part, index, True)
        sources = [part] * part.requires_grad + _parameters(ctx.module)
        live = [(r, g[index]) for r, g in zip(results, gradients, strict=True) if r.requires_grad]
        values, weights = zip(*live, strict=True)
        found = list(torch.autograd.grad(values, sources, weights, allow_unused=True))
        if not part.requires_grad:
            return None, None, None, *found
        of_part = found.pop(0)
        of_z = None if of_part is None else torch.zeros_like(z).index_copy(0, index, of_part)
        return None, None, of_z, *found


def _parameters(module: nn.Module) -> list[Tensor]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
