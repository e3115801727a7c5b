"""The divergence itself, one product per dimension."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde._checks import check_integer
from scoresde._streams import Streams
from scoresde.traces.base import Tape, Trace, VectorField


@dataclass(frozen=True)
class ExactTrace(Trace):
    r"""tr J = Σ_i e_iᵀ J e_i, with no noise, at the cost of d products.

    Args:
        chunk: how many of the d products one batched backward pass makes; memory grows with it.

    Raises:
        ValueError: if ``chunk`` is below 1.

    Example:
        >>> from scoresde._streams import Streams
        >>> x = torch.tensor([[1.0, 2.0, 3.0]])
        >>> value, divergence = ExactTrace()(lambda x: x**2, x, Streams.draw(1, None))
        >>> divergence
        tensor([[12.]])
    """

    chunk: int = 64
    exact = True

    def __post_init__(self) -> None:
        check_integer("chunk", self.chunk, minimum=1)

    def products(self, d: int) -> int:
        """Return d."""
        return d

    def __call__(
        self, field: VectorField, x: Tensor, streams: Streams, *, differentiable: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return h(x) ``(m, d)`` and the divergence ``(m, 1)``."""
        m, d = x.shape
        tape = Tape(field, x, differentiable, batched=min(self.chunk, d) > 1)
        trace = x.new_zeros(m)
        for start in range(0, d, self.chunk):
            index = torch.arange(start, min(start + self.chunk, d), device=x.device)
            probes = torch.zeros(len(index), m, d, dtype=x.dtype, device=x.device)
            probes[torch.arange(len(index), device=x.device), :, index] = 1.0
            rows = tape.product(probes)
            diagonal = rows.gather(2, index.reshape(-1, 1, 1).expand(-1, m, 1))
            trace = trace + diagonal.sum((0, 2))
        return tape.value, trace.unsqueeze(1)
