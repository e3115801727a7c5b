"""Convolution with a kernel: deblurring."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde._core.checks import check_finite, check_floating, check_integer, check_positive
from scoresde.operators.base import DiagonalizedOperator, Shape, shape_error


class Blur(DiagonalizedOperator):
    r"""Circular convolution with a kernel over the last axes, diagonal in Fourier space.

    ::

        y_i = Σ_j k_j x_{i−j},        A Aᵀ = F* diag(|k̂|²) F,

    with the kernel's center at j = 0 and periodic axes, so that A preserves the shape.

    Args:
        kernel: of odd sizes along one axis or more, none longer than those of a sample.

    Raises:
        ValueError: if the kernel has no axis, an even size or a value that is not finite; when
            called, if a sample is smaller than it.

    Example:
        >>> blur = Blur(torch.tensor([0.25, 0.5, 0.25]))
        >>> blur(torch.tensor([[0.0, 0.0, 4.0, 0.0, 0.0]]))
        tensor([[0., 1., 2., 1., 0.]])
    """

    kernel: Tensor

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        check_finite("kernel", check_floating("kernel", kernel))
        if kernel.ndim == 0 or any(size % 2 == 0 for size in kernel.shape):
            raise ValueError(
                f"kernel: expected odd sizes along one axis or more, got {tuple(kernel.shape)}; "
                "pad it with zeros to odd sizes"
            )
        self.register_buffer("kernel", kernel.to(torch.float64).clone())

    @classmethod
    def gaussian(cls, std: float, dimensions: int = 2, radius: int | None = None) -> Blur:
        """Return the blur with a Gaussian kernel, truncated and normalized to sum to one.

        Args:
            std: its standard deviation, in pixels.
            dimensions: number of axes, counted from the last.
            radius: of the kernel, in pixels; 3 std, rounded up, if None.

        Returns:
            The operator.

        Example:
            >>> Blur.gaussian(1.0).kernel.shape
            torch.Size([7, 7])
        """
        std = check_positive("std", std)
        half_width = int(-(-3 * std // 1)) if radius is None else check_integer("radius", radius, 0)
        line = torch.exp(
            -0.5 * (torch.arange(-half_width, half_width + 1, dtype=torch.float64) / std) ** 2
        )
        kernel = torch.ones((), dtype=torch.float64)
        for _ in range(check_integer("dimensions", dimensions, minimum=1)):
            kernel = kernel.unsqueeze(-1) * (line / line.sum())
        return cls(kernel)

    def observed_shape(self, event_shape: Sequence[int]) -> Shape:
        sizes = tuple(event_shape)[-self.kernel.ndim :]
        short = any(n < k for n, k in zip(sizes, self.kernel.shape, strict=False))
        if len(sizes) < self.kernel.ndim or short:
            expected = f"(…, {', '.join(f'>= {k}' for k in self.kernel.shape)})"
            raise shape_error(self, expected, event_shape, "crop the kernel")
        return tuple(event_shape)

    def forward(self, x: Tensor) -> Tensor:
        self.observed_shape(x.shape[1:])
        return self.rotate_back(self.rotate(x) * self._transfer(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the convolution with the mirrored kernel, shaped like ``y``."""
        return self.rotate_back(self.rotate(y) * self._transfer(y).conj())

    def rotate(self, y: Tensor) -> Tensor:
        """Return the Fourier transform over the kernel's axes."""
        z: Tensor = torch.fft.fftn(y, dim=self._axes)
        return z

    def rotate_back(self, z: Tensor) -> Tensor:
        y: Tensor = torch.fft.ifftn(z, dim=self._axes).real
        return y

    def eigenvalues(self, y: Tensor) -> Tensor:
        """Return |k̂|²."""
        return self._transfer(y).abs().square()

    def extra_repr(self) -> str:
        return f"kernel of shape {tuple(self.kernel.shape)}"

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(range(-self.kernel.ndim, 0))

    def _transfer(self, x: Tensor) -> Tensor:
        """Return k̂ on the frequencies of ``x``."""
        padded = x.new_zeros(x.shape[-self.kernel.ndim :])
        padded[tuple(slice(0, size) for size in self.kernel.shape)] = self.kernel.to(x)
        offset = [-(size // 2) for size in self.kernel.shape]
        transform: Tensor = torch.fft.fftn(padded.roll(offset, dims=tuple(range(padded.ndim))))
        return transform
