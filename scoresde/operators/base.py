r"""Linear observation operators A, defined by three products.

An observation is y = A x_0 + σ_y n. All methods are written in three products::

    A x,        Aᵀ y,        (A Aᵀ + c)^{-1} y,        c >= 0.

The last, for c = 0 restricted to the range of A, gives the pseudo-inverse A⁺ = Aᵀ (A Aᵀ)^{-1}, the
projection A⁺A onto the observed subspace, and the regularized least-squares solution
argmin_u ‖y − A u‖² + c ‖u − x‖² = x + Aᵀ (A Aᵀ + c)^{-1} (y − A x).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from scoresde._core.conjugate_gradients import conjugate_gradients
from scoresde._core.modules import FixedDtypeModule
from scoresde._core.shapes import Time, expand, flatten

Shape = tuple[int, ...]


class LinearOperator(FixedDtypeModule, ABC):
    """A linear map A from samples to observations, the same for every row.

    A member defines :meth:`observed_shape`, :meth:`forward` and :meth:`adjoint`; if the eigenvalues
    of A Aᵀ are known, it is a :class:`DiagonalizedOperator`.

    Example:
        >>> import torch
        >>> from scoresde.operators import AveragePool
        >>> halve = AveragePool(2)
        >>> x = torch.arange(16.0).reshape(1, 4, 4)
        >>> halve(x)
        tensor([[[ 2.5000,  4.5000],
                 [10.5000, 12.5000]]])
        >>> torch.allclose(halve(halve.pseudo_inverse(halve(x))), halve(x))
        True
    """

    @abstractmethod
    def observed_shape(self, event_shape: Sequence[int]) -> Shape:
        """Return the shape of the observation of one sample.

        Args:
            event_shape: shape of the sample.

        Raises:
            ValueError: if the operator does not take such samples.
        """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return A x ``(batch, *observed)`` for ``x`` ``(batch, *event)``."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Return Aᵀ y ``(batch, *event)`` for ``y`` ``(batch, *observed)``."""

    def solve(self, y: Tensor, shift: Time = 0.0) -> Tensor:
        """Return (A Aᵀ + c)^{-1} y, here by conjugate gradients.

        Args:
            y: ``(batch, *observed)``.
            shift: c >= 0, a number, ``()`` or ``(batch,)``; 0 is the pseudo-inverse of A Aᵀ.

        Returns:
            Shaped like ``y``.
        """
        c = _coefficient(shift, y)
        return conjugate_gradients(
            lambda v: self(self.adjoint(v)) + c * v,
            y,
            iterations=2 * math.prod(y.shape[1:]),
            tolerance=10 * torch.finfo(y.dtype).eps,
        )

    @final
    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Return A⁺ y, the least-squares solution of least norm, ``(batch, *event)``."""
        return self.adjoint(self.solve(y))

    @final
    def project(self, x: Tensor) -> Tensor:
        """Return A⁺A x, the component of ``x`` in the observed subspace, shaped like ``x``."""
        return self.pseudo_inverse(self(x))

    @final
    def matrix(self, event_shape: Sequence[int]) -> Tensor:
        """Return A as a float64 matrix ``(m, d)`` on flattened samples of ``event_shape``."""
        d = math.prod(event_shape)
        device = next(self.buffers(), torch.empty(())).device
        basis = torch.eye(d, dtype=torch.float64, device=device)
        return flatten(self(basis.reshape(d, *event_shape))).T


class DiagonalizedOperator(LinearOperator):
    """An operator with a known eigendecomposition A Aᵀ = U diag(e) Uᵀ.

    Define :meth:`eigenvalues` and, unless U = 1, :meth:`rotate` and :meth:`rotate_back`.
    """

    def rotate(self, y: Tensor) -> Tensor:
        """Return Uᵀ y; here y itself."""
        return y

    def rotate_back(self, z: Tensor) -> Tensor:
        """Return U z; here z itself."""
        return z

    @abstractmethod
    def eigenvalues(self, y: Tensor) -> Tensor:
        """Return e >= 0, of a shape that broadcasts to that of the rotated ``y``."""

    def solve(self, y: Tensor, shift: Time = 0.0) -> Tensor:
        """Return U (e + c)^{-1} Uᵀ y, with 1/0 replaced by 0, shaped like ``y``."""
        z = self.rotate(y)
        values = self.eigenvalues(y).to(y)
        smallest = values.amax() * max(y.shape[1:], default=1) * torch.finfo(y.dtype).eps
        total = torch.where(values > smallest, values, 0.0) + _coefficient(shift, y)
        inverse = torch.where(total > 0, 1 / torch.where(total > 0, total, 1.0), 0.0)
        return self.rotate_back(z * inverse)


def _coefficient(shift: Time, y: Tensor) -> Tensor:
    return expand(torch.as_tensor(shift, dtype=torch.float64), y)


def shape_error(
    operator: LinearOperator, expected: str, event_shape: Sequence[int], hint: str
) -> ValueError:
    """Return the error for samples of a shape that an operator does not accept."""
    return ValueError(
        f"x: expected samples of shape {expected} for {operator}, got {tuple(event_shape)}; {hint}"
    )
