"""What many tests build: a seeded generator, a Gaussian mixture of known density."""

from __future__ import annotations

from typing import Any

import torch

from scoresde import GaussianMixture, GaussianSDE


def generator(seed: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of random numbers at the start of the stream of ``seed``."""
    return torch.Generator(device).manual_seed(seed)


def mixture(
    sde: GaussianSDE,
    means: Any = ((-1.0, -1.0), (1.0, 0.8)),
    covariances: Any = 0.09,
    weights: Any = None,
    dtype: torch.dtype = torch.float64,
) -> GaussianMixture:
    """A mixture of K Gaussians in D dimensions, from plain numbers.

    Args:
        sde: the diffusion.
        means: ``(K, D)``.
        covariances: one variance for all, ``(K,)`` variances, ``(K, D)`` diagonals or
            ``(K, D, D)`` matrices.
        weights: ``(K,)``; equal if None.
        dtype: of the parameters.
    """
    centers = torch.as_tensor(means, dtype=dtype)
    count, d = centers.shape
    matrices = torch.as_tensor(covariances, dtype=dtype)
    if matrices.ndim < 2:
        matrices = matrices.expand(count)[:, None].expand(count, d)
    if matrices.ndim == 2:
        matrices = torch.diag_embed(matrices)
    proportions = torch.ones(count, dtype=dtype) if weights is None else torch.as_tensor(weights)
    return GaussianMixture(proportions.to(dtype), centers, matrices, sde)


def random_mixture(
    sde: GaussianSDE, d: int, components: int = 3, stds: tuple[float, float] = (0.05, 0.5)
) -> GaussianMixture:
    """A mixture with rotated covariances whose standard deviations are log-spaced in ``stds``.

    Means are N(0, ½²), weights proportional to 2, 3, 4, …; the draws depend on ``d`` alone.
    """
    numbers = generator(d)
    means = 0.5 * torch.randn(components, d, generator=numbers, dtype=torch.float64)
    normal = torch.randn(components, d, d, generator=numbers, dtype=torch.float64)
    basis = torch.linalg.qr(normal)[0]
    low, high = (torch.tensor(std).log10().item() for std in stds)
    scales = torch.logspace(low, high, d, dtype=torch.float64)
    covariances = basis @ torch.diag(scales**2) @ basis.mT
    weights = torch.arange(2.0, 2.0 + components, dtype=torch.float64)
    return GaussianMixture(weights / weights.sum(), means, covariances, sde)
