"""Weighted sums of channels: the operator of colorization."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from scoresde._core.checks import check_number
from scoresde.operators.base import DiagonalizedOperator, Shape, shape_error


class Grayscale(DiagonalizedOperator):
    """A weighted sum of the channels, A Aᵀ = Σ w²; channels are the first axis of a sample.

    Args:
        weights: one per channel; the mean of three by default.

    Raises:
        ValueError: if all weights are zero; when called, if the number of channels is another one.

    Example:
        >>> import torch
        >>> Grayscale()(torch.tensor([[0.3, 0.6, 0.9]]))
        tensor([[0.6000]])
        >>> Grayscale((0.299, 0.587, 0.114)).observed_shape((3, 8, 8))  # luma
        (1, 8, 8)
    """

    def __init__(self, weights: Sequence[float] = (1 / 3, 1 / 3, 1 / 3)) -> None:
        super().__init__()
        self.weights = tuple(
            check_number(f"weights[{i}]", weight) for i, weight in enumerate(weights)
        )
        if not any(self.weights):
            raise ValueError(f"weights: expected some that are not zero, got {self.weights}")

    def observed_shape(self, event_shape: Sequence[int]) -> Shape:
        if len(event_shape) == 0 or event_shape[0] != len(self.weights):
            raise shape_error(
                self, f"({len(self.weights)}, …)", event_shape, "give one weight per channel"
            )
        return (1, *event_shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        self.observed_shape(x.shape[1:])
        return (self._column(x) * x).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._column(y) * y

    def eigenvalues(self, y: Tensor) -> Tensor:
        """Return Σ w²."""
        return y.new_tensor(sum(weight**2 for weight in self.weights))

    def extra_repr(self) -> str:
        return f"weights={self.weights}"

    def _column(self, x: Tensor) -> Tensor:
        return x.new_tensor(self.weights).reshape(-1, *(1,) * (x.ndim - 2))
