"""XTrace: each probe serves both in a low-rank basis and in the estimate of its remainder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde._core.checks import check_integer
from scoresde._core.counter_rng import CounterRNG
from scoresde.traces.base import Tape, Trace, VectorField


@dataclass(frozen=True)
class XTrace(Trace):
    r"""tr J ≈ mean over i of tr Q_iᵀJQ_i + ν_iᵀJν_i, with Q_i from all probes but the i-th.

    With normal probes ω_1 … ω_k, the columns of Q_i are an orthonormal basis of the range of
    {Jᵀω_j, j ≠ i}, and ν_i is ω_i projected onto its orthogonal complement and scaled to length
    √(d − k + 1). Each term is unbiased for every J, symmetric or not, because ω_i is independent of
    Q_i. The terms are dependent, so their mean counts as one estimate. It is exact if the rank of J
    is below k, or if k = d.

    In differentiable mode Q_i and ν_i are held constant, as in :class:`HutchPlusPlus`.

    Args:
        budget: largest number of products per call; half for the probes, half for the basis.

    Raises:
        ValueError: if ``budget`` is below 2.

    Example:
        >>> from scoresde._core.counter_rng import CounterRNG
        >>> rng = CounterRNG.draw(1, torch.Generator().manual_seed(0))
        >>> x = torch.tensor([[1.0, 2.0, 3.0]])
        >>> J = torch.outer(torch.ones(3), torch.tensor([3.0, 2.0, 1.0]))  # of rank 1
        >>> XTrace(budget=4)(lambda x: x @ J, x, rng)[1]
        tensor([[6.0000]])

    References:
        Epperly, Tropp & Webber, *XTrace: making the most of every sample in stochastic trace
        estimation*, 2024, arXiv:2301.07825, sections 2.2 and 2.3.
    """

    budget: int = 12

    def __post_init__(self) -> None:
        check_integer("budget", self.budget, minimum=2)

    def products(self, d: int) -> int:
        """Return the even part of the budget, at most 2d."""
        return 2 * self._rank(d)

    def exact_rank(self, d: int) -> int:
        """Return the number of probes less the one left out, or d if they span all dimensions."""
        k = self._rank(d)
        return d if k == d else k - 1

    def __call__(
        self, field: VectorField, x: Tensor, rng: CounterRNG, *, differentiable: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return h(x) ``(m, d)`` and one estimate of the divergence, ``(m, 1)``."""
        tape = Tape(field, x, differentiable, batched=True)
        d = x.shape[1]
        k = self._rank(d)
        omega = rng.normals((k, d)).to(x.dtype).mT  # (m, d, k), as all below
        image = tape.transpose_product(omega)
        q, r = torch.linalg.qr(image.detach())
        basis_image = tape.transpose_product(q)
        # Q_iQ_iᵀ = Q(I − s_i s_iᵀ)Qᵀ with s_i orthogonal to all columns of R but the i-th
        s = _left_out(r)
        w = q.mT @ omega
        c = w - s * (s * w).sum(1, keepdim=True)
        mu = omega - q @ c  # (I − Q_iQ_iᵀ)ω_i
        core = q.mT @ basis_image
        low_rank = core.diagonal(dim1=1, dim2=2).sum(1, keepdim=True) - (s * (core @ s)).sum(1)
        remainder = (mu * (image - basis_image @ c)).sum(1) * (d - k + 1) / mu.square().sum(1)
        return tape.value, (low_rank + remainder).mean(1, keepdim=True)

    def _rank(self, d: int) -> int:
        """Return k, the number of probes."""
        return min(self.budget // 2, d)


def _left_out(r: Tensor) -> Tensor:
    """Return unit columns s_i orthogonal to the columns j ≠ i of ``r`` ``(m, k, k)``."""
    k = r.shape[1]
    others = torch.tensor([[j for j in range(k) if j != i] for i in range(k)], device=r.device)
    columns = r[:, :, others.long()].transpose(1, 2)  # (m, k, k, k − 1), i in dimension 1
    q: Tensor = torch.linalg.qr(columns, mode="complete").Q
    return q[..., -1].mT
