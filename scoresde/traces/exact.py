"""The exact divergence, with one product per dimension."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from scoresde._core.checks import check_integer
from scoresde._core.counter_rng import CounterRNG
from scoresde.traces.base import Tape, Trace, VectorField


@dataclass(frozen=True)
class ExactTrace(Trace):
    r"""The exact trace, tr J = Σ_i e_iᵀ J e_i, at the cost of d products.

    Args:
        chunk: number of products in one batched backward pass; memory grows with it.

    Raises:
        ValueError: if ``chunk`` is below 1.

    Example:
        >>> from scoresde._core.counter_rng import CounterRNG
        >>> x = torch.tensor([[1.0, 2.0, 3.0]])
        >>> value, divergence = ExactTrace()(lambda x: x**2, x, CounterRNG.draw(1, None))
        >>> divergence
        tensor([[12.]])
    """

    chunk: int = 64
    exact = True
    linear = True

    def __post_init__(self) -> None:
        check_integer("chunk", self.chunk, minimum=1)

    def products(self, d: int) -> int:
        return d

    def __call__(
        self, field: VectorField, x: Tensor, rng: CounterRNG, *, differentiable: bool = False
    ) -> tuple[Tensor, Tensor]:
        d = x.shape[1]
        tape = Tape(field, x, differentiable, batched=min(self.chunk, d) > 1)
        trace = x.new_zeros(len(x))
        for start in range(0, d, self.chunk):
            rows = self._rows(tape, x, start)
            trace = trace + rows.diagonal(offset=start, dim1=0, dim2=2).sum(1)
        return tape.value, trace.unsqueeze(1)

    def linearize(
        self, field: VectorField, x: Tensor, rng: CounterRNG, *, differentiable: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        d = x.shape[1]
        tape = Tape(field, x, differentiable, batched=min(self.chunk, d) > 1)
        rows = [self._rows(tape, x, start) for start in range(0, d, self.chunk)]
        jacobian = torch.cat(rows).transpose(0, 1)
        trace = jacobian.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
        return tape.value, trace, jacobian

    def _rows(self, tape: Tape, x: Tensor, start: int) -> Tensor:
        """Return the rows of the Jacobian from ``start`` on, at most ``chunk``, ``(k, m, d)``."""
        m, d = x.shape
        k = min(self.chunk, d - start)
        probes = pad(torch.eye(k, dtype=x.dtype, device=x.device), (start, d - start - k))
        return tape.product(probes.unsqueeze(1).expand(k, m, d))
