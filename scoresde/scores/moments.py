r"""Mean and covariance of the data, and the Gaussian they define.

If the data have mean m and covariance C = E diag(c) Eᵀ, the Gaussian closest to p(x_t) is
N(α m, α² C + σ² I). It defines the coordinates in which the flow of Gaussian data is constant, the
terminal distribution of a likelihood, and control variates of traces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde._core.checks import check_finite, check_state
from scoresde._core.modules import FixedDtypeModule
from scoresde._core.shapes import flatten

_LARGEST_BASIS = 1024


class Moments(FixedDtypeModule):
    r"""Mean and covariance of the data, as a Gaussian N(m, E diag(c) Eᵀ).

    Args:
        mean: m, a number for all coordinates or a tensor of the event's shape.
        variance: c >= 0, a number or a tensor ``(d,)``: per coordinate, or per column of ``basis``.
        basis: E, orthonormal columns ``(d, d)``; None for the coordinate axes.
        known: whether the numbers come from data; ``Moments()`` is the default (0, 1), not known.

    Raises:
        ValueError: if a variance is negative, or the shapes do not fit each other.

    Example:
        >>> moments = Moments.of(torch.randn(1000, 1, 8, 8) * 0.5 + 2.0)
        >>> moments.mean.shape, moments.variance.shape, moments.basis.shape
        (torch.Size([1, 8, 8]), torch.Size([64]), torch.Size([64, 64]))
    """

    mean: Tensor
    variance: Tensor
    basis: Tensor | None

    def __init__(
        self,
        mean: float | Tensor = 0.0,
        variance: float | Tensor = 1.0,
        basis: Tensor | None = None,
        known: bool = False,
    ) -> None:
        super().__init__()
        mean = torch.as_tensor(mean, dtype=torch.float64).clone()
        variance = torch.as_tensor(variance, dtype=torch.float64).clone()
        check_finite("mean", mean)
        check_finite("variance", variance)
        if variance.ndim > 1 or not bool((variance >= 0).all()):
            raise ValueError(
                f"variance: expected a number or a tensor (d,), all >= 0, got {variance}; "
                "a full covariance is given by its eigenvalues and `basis`"
            )
        if mean.ndim and variance.ndim and mean.numel() != len(variance):
            raise ValueError(
                f"variance: expected one per element of the mean, {mean.numel()}, got "
                f"{len(variance)}; the variances follow the flattened event"
            )
        self.register_buffer("mean", mean)
        self.register_buffer("variance", variance)
        if basis is not None:
            basis = basis.to(torch.float64).clone()
            if variance.ndim != 1 or basis.shape != 2 * variance.shape:
                raise ValueError(
                    "basis: expected shape (d, d) for variance of shape (d,), got "
                    f"{tuple(basis.shape)} and {tuple(variance.shape)}; its columns are the "
                    "covariance's eigenvectors"
                )
        self.register_buffer("basis", basis)
        self.known = bool(known)

    @classmethod
    def of(cls, data: Tensor) -> Moments:
        """Estimate the moments of ``data`` ``(n, *event)``.

        The full covariance, with its eigenvectors, if d <= 1024; otherwise the variance of each
        coordinate.

        Args:
            data: samples ``(n, *event)``, floating point, n >= 2.

        Returns:
            The sample moments, marked as known.
        """
        check_state("data", data)
        if data.shape[0] < 2:
            raise ValueError(
                f"data: expected at least 2 samples, got {data.shape[0]}; one has no variance"
            )
        mean = data.double().mean(0)
        centered = flatten(data.double() - mean)
        if centered.shape[1] > _LARGEST_BASIS:
            return cls(mean, centered.square().sum(0) / (len(centered) - 1), known=True)
        return cls.from_covariance(mean, centered.T @ centered / (len(centered) - 1))

    @classmethod
    def from_covariance(cls, mean: Tensor, covariance: Tensor) -> Moments:
        """Return the moments of a mean of the event's shape and a covariance ``(d, d)``."""
        variance, basis = torch.linalg.eigh(covariance.to(torch.float64))
        return cls(mean, variance.clamp(min=0.0), basis, known=True)

    def check_event(self, name: str, event_shape: Sequence[int]) -> None:
        """Check that the event shape of states is the mean's.

        Raises:
            ValueError: if the mean has a shape, and the states another one.
        """
        expected = tuple(self.mean.shape)
        if expected and expected != tuple(event_shape):
            raise ValueError(
                f"{name}: expected shape (batch, {', '.join(map(str, expected))}), that of the "
                f"score's data moments, got an event of shape {tuple(event_shape)}"
            )

    @property
    def std(self) -> float:
        """√(mean variance), one scale for all coordinates; 1 if unknown or zero."""
        std = float(self.variance.mean().sqrt())
        return std if std > 0 else 1.0

    def scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return S = √(α² c + σ²) for α, σ of shape ``(…)``: shape ``(…, 1)`` or ``(…, d)``."""
        alpha, sigma = alpha.unsqueeze(-1), sigma.unsqueeze(-1)
        return torch.sqrt(alpha**2 * self.variance + sigma**2)

    def rotate(self, v: Tensor) -> Tensor:
        """Return Eᵀ v for ``v`` ``(batch, d)``."""
        return v if self.basis is None else v @ self.basis.to(v.dtype)

    def rotate_back(self, v: Tensor) -> Tensor:
        """Return E v for ``v`` ``(batch, d)``."""
        return v if self.basis is None else v @ self.basis.T.to(v.dtype)

    def whiten(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return z = Eᵀ(x − α m)/S ``(batch, d)``, float64, for ``x`` ``(batch, *event)``.

        α and σ are float64, ``()`` or ``(batch,)``.
        """
        centered = flatten(x) - alpha.unsqueeze(-1) * self.mean.reshape(-1)
        return self.rotate(centered) / self.scale(alpha, sigma)

    def unwhiten(
        self, z: Tensor, alpha: Tensor, sigma: Tensor, event_shape: Sequence[int]
    ) -> Tensor:
        """Return x = α m + E S z ``(batch, *event)``, the inverse of :meth:`whiten`."""
        flat = self.rotate_back(z * self.scale(alpha, sigma))
        x = flat + alpha.unsqueeze(-1) * self.mean.reshape(-1)
        return x.reshape(z.shape[0], *event_shape)

    def log_det(self, alpha: Tensor, sigma: Tensor, dimension: int) -> Tensor:
        """Return Σ log S over the ``dimension`` coordinates, shaped like α."""
        logs = torch.log(self.scale(alpha, sigma))
        return logs.sum(-1) * (dimension / logs.shape[-1])

    def log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return log N(x; α m, α² C + σ² I) in nats ``(batch,)`` for ``x`` ``(batch, *event)``."""
        z = self.whiten(x.double(), alpha, sigma)
        dimension = z.shape[1]
        log_volume = self.log_det(alpha, sigma, dimension)
        return -0.5 * (z.square().sum(1) + dimension * math.log(2 * math.pi)) - log_volume

    def extra_repr(self) -> str:
        kind = "diagonal" if self.basis is None else "full"
        return f"known={self.known}, {kind} covariance of shape {tuple(self.variance.shape)}"
