"""Downsampling of the last axes: the operators of super-resolution."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from scoresde._core.checks import check_integer
from scoresde.operators.base import DiagonalizedOperator, Shape, shape_error


class Downsampling(DiagonalizedOperator):
    """The same matrix M along each of the last axes, A = M ⊗ … ⊗ M: define :meth:`axis`.

    Args:
        factor: k >= 1, which divides the size of these axes.
        dimensions: number of axes, counted from the last: 2 for images, 1 for signals.
    """

    def __init__(self, factor: int, dimensions: int = 2) -> None:
        super().__init__()
        self.factor = check_integer("factor", factor, minimum=1)
        self.dimensions = check_integer("dimensions", dimensions, minimum=1)

    @staticmethod
    @abstractmethod
    def axis(size: int, factor: int) -> Tensor:
        """Return M ``(size, k·size)`` in float64.

        Args:
            size: of the small axis.
            factor: k.
        """

    def observed_shape(self, event_shape: Sequence[int]) -> Shape:
        leading, large = event_shape[: -self.dimensions], event_shape[-self.dimensions :]
        if len(large) < self.dimensions or any(size % self.factor for size in large):
            expected = f"(…, {', '.join([f'{self.factor}n'] * self.dimensions)})"
            raise shape_error(
                self, expected, event_shape, "crop or pad them, or choose another factor"
            )
        return (*leading, *(size // self.factor for size in large))

    def forward(self, x: Tensor) -> Tensor:
        self.observed_shape(x.shape[1:])
        return self._along_each(
            x, lambda size: _matrix(self.axis, size // self.factor, self.factor)
        )

    def adjoint(self, y: Tensor) -> Tensor:
        return self._along_each(y, lambda size: _matrix(self.axis, size, self.factor).T)

    def rotate(self, y: Tensor) -> Tensor:
        """Return ``y`` in the basis of the eigenvectors of M Mᵀ along each axis."""
        return self._along_each(y, lambda size: self._gram(size)[1].T)

    def rotate_back(self, z: Tensor) -> Tensor:
        return self._along_each(z, lambda size: self._gram(size)[1])

    def eigenvalues(self, y: Tensor) -> Tensor:
        """Return the products of the eigenvalues along the axes."""
        values = torch.ones((), dtype=torch.float64)
        for size in y.shape[-self.dimensions :]:
            values = values.unsqueeze(-1) * self._gram(size)[0]
        return values

    def extra_repr(self) -> str:
        return f"factor={self.factor}, dimensions={self.dimensions}"

    def _gram(self, size: int) -> tuple[Tensor, Tensor]:
        return _eigen(self.axis, size, self.factor)

    def _along_each(self, x: Tensor, matrix: Callable[[int], Tensor]) -> Tensor:
        for dim in range(-self.dimensions, 0):
            x = (x.movedim(dim, -1) @ matrix(x.shape[dim]).to(x).T).movedim(-1, dim)
        return x


class AveragePool(Downsampling):
    """The mean of each block of k pixels along each axis: A Aᵀ = k^{-dimensions}.

    Args:
        factor: k >= 1, which divides the size of these axes.
        dimensions: number of axes, counted from the last: 2 for images, 1 for signals.

    Raises:
        ValueError: unless both are positive integers; when called, if k does not divide an axis.

    Example:
        >>> AveragePool(2)(torch.arange(16.0).reshape(1, 4, 4))
        tensor([[[ 2.5000,  4.5000],
                 [10.5000, 12.5000]]])
    """

    @staticmethod
    def axis(size: int, factor: int) -> Tensor:
        """Return the matrix of block means."""
        means = torch.full((1, factor), 1 / factor, dtype=torch.float64)
        return torch.kron(torch.eye(size, dtype=torch.float64), means)


class Bicubic(Downsampling):
    """Antialiased cubic downsampling, as ``torch.nn.functional.interpolate`` does it.

    Args:
        factor: k >= 1, which divides the size of these axes.
        dimensions: number of axes, counted from the last: 2 for images, 1 for signals.

    Raises:
        ValueError: unless both are positive integers; when called, if k does not divide an axis.

    Example:
        >>> x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> expected = interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True)
        >>> torch.allclose(Bicubic(2)(x), expected, atol=1e-5)
        True

    References:
        Keys, *Cubic convolution interpolation for digital image processing*, 1981 (a = −1/2).
    """

    @staticmethod
    def axis(size: int, factor: int) -> Tensor:
        """Return the matrix of cubic weights."""
        large = factor * size
        pixels = torch.eye(large, dtype=torch.float64).reshape(1, 1, large, large)
        small = interpolate(pixels, size=(size, large), mode="bicubic", antialias=True)
        return small.reshape(size, large)


@lru_cache
def _matrix(axis: Callable[[int, int], Tensor], size: int, factor: int) -> Tensor:
    """Return M, computed once."""
    return axis(size, factor)


@lru_cache
def _eigen(axis: Callable[[int, int], Tensor], size: int, factor: int) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors of M Mᵀ."""
    matrix = _matrix(axis, size, factor)
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return values.clamp(min=0.0), vectors
