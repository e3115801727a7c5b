"""The known entries of a sample: the operator of inpainting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde._core.checks import check_tensor
from scoresde.operators.base import DiagonalizedOperator, Shape, shape_error


class Mask(DiagonalizedOperator):
    """The entries where a mask is true, as a vector: A Aᵀ = 1.

    Args:
        mask: bool, of the shape of one sample; true where an entry is observed.

    Raises:
        TypeError: if ``mask`` is not a boolean tensor.
        ValueError: if it is true nowhere.

    Example:
        >>> mask = Mask(torch.tensor([[True, False], [True, True]]))
        >>> mask(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
        tensor([[1., 3., 4.]])
        >>> mask.adjoint(torch.tensor([[1.0, 3.0, 4.0]]))
        tensor([[[1., 0.],
                 [3., 4.]]])
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        if check_tensor("mask", mask).dtype != torch.bool:
            raise TypeError(
                f"mask: expected booleans, true where an entry is observed, got {mask.dtype}; "
                "write mask > 0.5"
            )
        if not bool(mask.any()):
            raise ValueError(
                f"mask: expected at least one true entry, got none in shape {tuple(mask.shape)}; "
                "without observations, sample from the prior with sample()"
            )
        self.register_buffer("mask", mask.clone())

    def observed_shape(self, event_shape: Sequence[int]) -> Shape:
        """Return ``(m,)``, the number of observed entries."""
        if tuple(event_shape) != tuple(self.mask.shape):
            raise shape_error(
                self, str(tuple(self.mask.shape)), event_shape, "expand the mask to a sample"
            )
        return (int(self.mask.sum()),)

    def forward(self, x: Tensor) -> Tensor:
        self.observed_shape(x.shape[1:])
        return x[:, self.mask]

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the entries of ``y`` at the observed positions, zeros elsewhere."""
        x = y.new_zeros(y.shape[0], *self.mask.shape)
        x[:, self.mask] = y
        return x

    def eigenvalues(self, y: Tensor) -> Tensor:
        """Return 1."""
        return y.new_ones(())

    def extra_repr(self) -> str:
        return f"{int(self.mask.sum())} of {tuple(self.mask.shape)}"
