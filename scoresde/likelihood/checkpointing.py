r"""Gradients by replay: an evaluation is forgotten at once, and made again when they are asked for.

A log-likelihood takes dozens of evaluations of the score, each with its divergence. Kept for their
gradients, they would fill the memory; kept is only where each was made. On the way back it is made
again, with a graph of its own, which is dropped before the next one. The gradient is that of the
numbers that were computed (discretise, then differentiate), at the price of one evaluation more
for each.

Rows that nobody asks about, as those of a rejected step, are left out: they cost nothing, and what
is not finite in them spoils nothing.

References:
    Chen et al., *Training deep nets with sublinear memory cost*, 2016, arXiv:1604.06174; Gholami et
    al., *ANODE*, 2019, arXiv:1902.10298, for why not the adjoint of an ODE solved backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scoresde._core.counter_rng import CounterRNG
from scoresde._core.modules import evaluation_mode
from scoresde._core.shapes import flatten
from scoresde.flow.probability_flow import ProbabilityFlowODE
from scoresde.scores import Score
from scoresde.solvers.base import FieldEvaluation
from scoresde.traces import Trace

Evaluate = Callable[[Tensor, Tensor | slice, bool], Sequence[Tensor]]
"""evaluate(z, index, differentiable): some functions of the rows ``index`` of a batch, ``z`` being
these rows of the variable; each result is ``(len(z), …)``, with a graph if it is differentiable."""


def checkpointed(evaluate: Evaluate, score: Score, z: Tensor) -> tuple[Tensor, ...]:
    """Evaluate functions of a batch, with gradients to ``z`` and to the parameters of the score.

    Args:
        evaluate: the functions, row by row; random numbers must be the same in every call.
        score: whose parameters they depend on.
        z: the variable ``(m, …)``.

    Returns:
        What ``evaluate`` returns for all rows.
    """
    if not torch.is_grad_enabled():
        return tuple(evaluate(z, slice(None), False))
    return tuple(_Checkpoint.apply(evaluate, score, z, *_parameters(score)))


def evaluate(
    flow: ProbabilityFlowODE,
    tau: Tensor,
    z: Tensor,
    rows: Tensor,
    trace: Trace | None = None,
    rng: CounterRNG | None = None,
    local_coordinates: bool = False,
) -> FieldEvaluation:
    """Evaluate a flow, checkpointed where gradients are asked for (see :meth:`ProbabilityFlowODE.evaluate`).

    These pass through values, not through frames: then the steps are taken without. (Along steps
    that a frame made long, its dependence on the parameters is what their gradient consists of.)
    """
    if not torch.is_grad_enabled():
        return flow.evaluate(tau, z, rows, trace, rng, local_coordinates=local_coordinates)

    def evaluate(z: Tensor, index: Tensor | slice, differentiable: bool) -> Sequence[Tensor]:
        drawn = None if rng is None else rng.at(index, rng.counter[index])
        point = flow.evaluate(tau[index], z, rows[index], trace, drawn, differentiable)
        assert point.gradient is not None  # a flow tells it, other fields need not
        return point.velocity, point.integrand, point.gradient

    velocity, integrand, gradient = checkpointed(evaluate, flow.score, z)
    return FieldEvaluation(velocity, integrand, gradient)


class _Checkpoint(torch.autograd.Function):
    """The function of :func:`checkpointed`, of z and the parameters."""

    @staticmethod
    def forward(
        ctx: Any, evaluate: Evaluate, score: Score, z: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.evaluate, ctx.score = evaluate, score
        ctx.save_for_backward(z, *parameters)
        return tuple(evaluate(z, slice(None), False))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        z = ctx.saved_tensors[0]  # an error, if a parameter was changed since
        asked = torch.stack([flatten(g).ne(0).any(1) for g in gradients]).any(0)
        index = asked.nonzero().squeeze(1)
        if not len(index):
            return (None,) * len(ctx.needs_input_grad)
        with torch.enable_grad(), evaluation_mode(ctx.score):
            part = z[index].detach().requires_grad_(ctx.needs_input_grad[2])
            results = ctx.evaluate(part, index, True)
        sources = [part] * part.requires_grad + _parameters(ctx.score)
        live = [(r, g[index]) for r, g in zip(results, gradients, strict=True) if r.requires_grad]
        values, weights = zip(*live, strict=True)
        found = list(torch.autograd.grad(values, sources, weights, allow_unused=True))
        if not part.requires_grad:
            return None, None, None, *found
        of_part = found.pop(0)
        whole = None if of_part is None else torch.zeros_like(z).index_copy(0, index, of_part)
        return None, None, whole, *found


def _parameters(score: Score) -> list[Tensor]:
    return [parameter for parameter in score.parameters() if parameter.requires_grad]
