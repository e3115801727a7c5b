"""Operators from a matrix or a linear function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from scoresde._core.checks import check_finite, check_floating, check_integers
from scoresde._core.shapes import flatten
from scoresde.operators.base import DiagonalizedOperator, LinearOperator, Shape, shape_error

_ROUNDING = 1e3
"""Tolerance of the linearity check, in units of the machine epsilon."""


class Matrix(DiagonalizedOperator):
    """A matrix on flattened samples.

    Args:
        values: the matrix ``(m, d)``.
        event_shape: of a sample, with d elements; ``(d,)`` if None.

    Raises:
        ValueError: if the matrix is not finite, or has not one column per element of a sample.

    Example:
        >>> Matrix(torch.tensor([[1.0, 1.0]]))(torch.tensor([[2.0, 3.0]]))
        tensor([[5.]])
    """

    values: Tensor
    _eigenvalues: Tensor
    _eigenvectors: Tensor

    def __init__(self, values: Tensor, event_shape: Sequence[int] | None = None) -> None:
        super().__init__()
        check_finite("values", check_floating("values", values))
        if values.ndim != 2:
            raise ValueError(
                f"values: expected a matrix (m, d), got shape {tuple(values.shape)}; one row per "
                "observed number"
            )
        shape = (values.shape[1],) if event_shape is None else event_shape
        self.event_shape = check_integers("event_shape", shape, minimum=1)
        if math.prod(self.event_shape) != values.shape[1]:
            raise ValueError(
                f"event_shape: expected {values.shape[1]} elements, one per column, got "
                f"{self.event_shape}"
            )
        wide = values.to(torch.float64)
        eigenvalues, eigenvectors = torch.linalg.eigh(wide @ wide.T)
        self.register_buffer("values", wide.clone())
        self.register_buffer("_eigenvalues", eigenvalues.clamp(min=0.0))
        self.register_buffer("_eigenvectors", eigenvectors)

    def observed_shape(self, event_shape: Sequence[int]) -> Shape:
        """Return ``(m,)``."""
        if tuple(event_shape) != self.event_shape:
            raise shape_error(
                self, str(self.event_shape), event_shape, "pass event_shape to Matrix"
            )
        return (self.values.shape[0],)

    def forward(self, x: Tensor) -> Tensor:
        self.observed_shape(x.shape[1:])
        return flatten(x) @ self.values.to(x).T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.values.to(y)).reshape(-1, *self.event_shape)

    def rotate(self, y: Tensor) -> Tensor:
        """Return ``y`` in the basis of the eigenvectors of A Aᵀ."""
        return y @ self._eigenvectors.to(y)

    def rotate_back(self, z: Tensor) -> Tensor:
        return z @ self._eigenvectors.to(z).T

    def eigenvalues(self, y: Tensor) -> Tensor:
        return self._eigenvalues

    def extra_repr(self) -> str:
        return f"{tuple(self.values.shape)}, event_shape={self.event_shape}"


class FunctionOperator(LinearOperator):
    """A linear function or module, its adjoint by automatic differentiation.

    Args:
        function: from ``(batch, *event)`` to ``(batch, *observed)``, linear, row by row.
        event_shape: of a sample.

    Raises:
        TypeError: if ``function`` is not callable.
        ValueError: if it is not linear on two random samples.

    Example:
        >>> differences = FunctionOperator(lambda x: x[:, 1:] - x[:, :-1], (4,))
        >>> differences.adjoint(torch.tensor([[1.0, 0.0, 0.0]]))
        tensor([[-1.,  1.,  0.,  0.]])
    """

    def __init__(self, function: Callable[[Tensor], Tensor], event_shape: Sequence[int]) -> None:
        super().__init__()
        if not callable(function):
            raise TypeError(f"function: expected a callable, got {type(function).__name__}")
        self.function = function
        self.event_shape = check_integers("event_shape", event_shape, minimum=1)
        self._observed = self._check_linear()

    def observed_shape(self, event_shape: Sequence[int]) -> Shape:
        """Return the shape of the function's values."""
        if tuple(event_shape) != self.event_shape:
            raise shape_error(
                self,
                str(self.event_shape),
                event_shape,
                "pass another event_shape to FunctionOperator",
            )
        return self._observed

    def forward(self, x: Tensor) -> Tensor:
        self.observed_shape(x.shape[1:])
        return self.function(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return Aᵀ y ``(batch, *event)``, one backward pass."""
        origin = y.new_zeros(y.shape[0], *self.event_shape)
        _, vjp = torch.func.vjp(self.function, origin)  # type: ignore[misc]
        x: Tensor = vjp(y)[0]
        return x

    def extra_repr(self) -> str:
        return f"event_shape={self.event_shape}, observed={self._observed}"

    @torch.no_grad()
    def _check_linear(self) -> Shape:
        """Check f(2u + v) = 2 f(u) + f(v) at random u, v, and return the shape of a value."""
        function = self.function
        parameters = function.parameters() if isinstance(function, nn.Module) else iter(())
        like = next(parameters, torch.empty(()))
        source = torch.Generator().manual_seed(0)
        u, v = torch.randn(2, 1, *self.event_shape, generator=source).to(like)
        of_sum, of_u, of_v = (function(w) for w in (2 * u + v, u, v))
        error = float((of_sum - 2 * of_u - of_v).abs().max())
        scale = float(of_sum.abs().max() + 2 * of_u.abs().max() + of_v.abs().max())
        if not error <= _ROUNDING * torch.finfo(u.dtype).eps * scale:
            raise ValueError(
                f"function: expected a linear one, got f(2u + v) − 2f(u) − f(v) of size "
                f"{error:g}; for nonlinear ones use NonlinearObservation"
            )
        return tuple(of_sum.shape[1:])
