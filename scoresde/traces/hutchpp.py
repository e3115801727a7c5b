"""Hutch++: the trace on a low-rank subspace exactly, the remainder by Hutchinson's estimator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde._core.checks import check_integer
from scoresde._core.counter_rng import CounterRNG
from scoresde.traces.base import Tape, Trace, VectorField


@dataclass(frozen=True)
class HutchPlusPlus(Trace):
    r"""tr J = tr QᵀJQ + tr (I − QQᵀ)J(I − QQᵀ), the second term from random signs g.

    The columns of Q are an orthonormal basis of the range of JᵀS for a matrix S of random normals.
    With k columns, Q contains most of the contribution of the k largest singular values. The
    estimate is unbiased for every J, symmetric or not, because g is independent of Q. It is
    worth its cost if few singular values dominate; along a path, :class:`Hutchinson` with fresh
    probes usually has less noise for the same number of products.

    In differentiable mode Q is held constant: the gradient of the estimate is then an unbiased
    estimate of the gradient of the divergence, even where the range of Jᵀ is not differentiable.

    Args:
        budget: largest number of products per call; a third each for S, for Q and for g.

    Raises:
        ValueError: if ``budget`` is below 3.

    Example:
        >>> from scoresde._core.counter_rng import CounterRNG
        >>> rng = CounterRNG.draw(1, torch.Generator().manual_seed(0))
        >>> x = torch.tensor([[1.0, 2.0, 3.0]])
        >>> HutchPlusPlus(budget=3)(lambda x: x.sum(1, keepdim=True) * x, x, rng)[1].shape
        torch.Size([1, 1])

    References:
        Meyer, Musco, Musco & Woodruff, *Hutch++: optimal stochastic trace estimation*, 2021,
        arXiv:2010.09649, algorithm 1.
    """

    budget: int = 12

    def __post_init__(self) -> None:
        check_integer("budget", self.budget, minimum=3)

    def products(self, d: int) -> int:
        """Return the budget, reduced if Q has d columns."""
        return self.budget - 2 * (self.budget // 3 - self._rank(d))

    def exact_rank(self, d: int) -> int:
        """Return the number of columns of Q, which span the range of a J of at most this rank."""
        return self._rank(d)

    def __call__(
        self, field: VectorField, x: Tensor, rng: CounterRNG, *, differentiable: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return h(x) ``(m, d)`` and one estimate of the divergence ``(m, 1)``."""
        tape = Tape(field, x, differentiable, batched=True)
        d, k = x.shape[1], self._rank(x.shape[1])
        sketch = rng.normals((k, d)).to(x.dtype).mT
        probes = rng.signs((self.budget - 2 * (self.budget // 3), d)).to(x.dtype).mT
        q = torch.linalg.qr(tape.transpose_product(sketch).detach()).Q
        probes = probes - q @ (q.mT @ probes)
        v = torch.cat([q, probes], dim=2)
        low_rank, remainder = (v * tape.transpose_product(v)).sum(1).tensor_split([k], dim=1)
        return tape.value, low_rank.sum(1, keepdim=True) + remainder.mean(1, keepdim=True)

    def _rank(self, d: int) -> int:
        """Return the number of columns of Q."""
        return min(self.budget // 3, d)
