r"""Local coordinates from the denoiser and its Jacobian at a point."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from scoresde.flow.coordinates import DataCoordinates
from scoresde.solvers.local_linearization import EigenCoordinates, eigenpairs

_LARGEST_VARIANCE = 10.0
"""Largest C, in units of the largest variance of the data, that is read off ∂D/∂w."""


@dataclass(frozen=True)
class DenoiserLinearization(EigenCoordinates):
    r"""Coordinates in which the flow of the Gaussian that fits the denoiser locally is constant.

    Near the point, D ≈ μ + A (ω − μ) along the eigenvectors of ∂D/∂w, with A = C/(C + ρ²) the
    eigenvalues: the denoiser of the Gaussian N(μ, C), whose flow is ω = μ + s ζ, s = √(C + ρ²).
    Eigenvalues outside [0, 1), as between modes, belong to no Gaussian; the difference remains in
    ``values``.

    Args:
        basis: eigenvectors of ∂D/∂w, in columns ``(m, d, d)``.
        values: what the Gaussian leaves of the Jacobian ∂ζ′/∂ζ, ``(m, d)``.
        center: μ ``(m, d)``.
        variance: C ``(m, d)``.
        coordinates: those of z and τ.
    """

    center: Tensor
    variance: Tensor
    coordinates: DataCoordinates = field(metadata={"shared": True})

    @classmethod
    def at(
        cls,
        coordinates: DataCoordinates,
        ratio: Tensor,
        w: Tensor,
        denoised: Tensor,
        sensitivity: Tensor,
    ) -> DenoiserLinearization:
        """Return the coordinates at the points w ``(m, d)``.

        Args:
            coordinates: those of z and τ.
            ratio: ρ ``(m, 1)``.
            w: the states Eᵀ(x/α − m) ``(m, d)``.
            denoised: Eᵀ(D − m) ``(m, d)``.
            sensitivity: ∂D/∂w ``(m, d, d)``.
        """
        values, basis = eigenpairs(sensitivity)
        largest = _LARGEST_VARIANCE * coordinates.variance.max().clamp(min=coordinates.std**2)
        variance = ratio**2 * values.clamp(0.0, 1.0) / (1 - values).clamp(min=1e-300)
        variance = torch.minimum(variance, largest)
        gain, rest = (v / (variance + ratio**2) for v in (variance, ratio**2))
        point, target = (torch.einsum("mdr,md->mr", basis, v.detach()) for v in (w, denoised))
        return cls(
            basis=basis,
            values=coordinates.rate(ratio) * (gain - values),
            center=(target - gain * point) / rest,
            variance=variance,
            coordinates=coordinates,
        )

    def to_local(
        self, tau: Tensor, z: Tensor, velocity: Tensor, rates: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ζ = (ω − μ)/s, its slope, and the divergence of that."""
        ratio, scale = self._ratio_and_scale(tau.unsqueeze(2))
        rate = self.coordinates.rate(ratio)
        growth_scale = (rate * (1 - self.coordinates.drift(ratio))).expand_as(z)  # d ln S/dτ
        total = self.variance.unsqueeze(1) + ratio**2
        growth_std = rate * ratio**2 / total  # d ln s/dτ
        deviation = (scale * z) @ self.basis - self.center.unsqueeze(1)
        change = (scale * (velocity + growth_scale * z)) @ self.basis
        std = torch.sqrt(total)
        slope = (change - growth_std * deviation) / std
        return deviation / std, slope, rates + growth_scale.sum(2) - growth_std.sum(2)

    def relocate(
        self, tau: Tensor, z: Tensor, velocity: Tensor, to: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return ``to`` and v + S⁻¹ ∂h/∂w S (to − z), ∂h/∂w = (A − ∂D/∂w) d ln ρ/dτ."""
        ratio, scale = self._ratio_and_scale(tau.unsqueeze(1))
        rate = self.coordinates.rate(ratio)
        change = scale * (to - z)
        sensitivity = self.variance / (self.variance + ratio**2) - self.values / rate
        linear = self.coordinates.drift(ratio) * rate * change
        return to, velocity + (linear - rate * self.multiply(sensitivity, change)) / scale

    def from_local(self, tau: Tensor, zeta: Tensor) -> Tensor:
        """Return z = E(μ + s ζ)/S."""
        ratio, scale = self._ratio_and_scale(tau.unsqueeze(1))
        point = self.center + torch.sqrt(self.variance + ratio**2) * zeta
        return torch.einsum("mdr,mr->md", self.basis, point) / scale

    def log_volume(self, tau: Tensor) -> Tensor:
        """Return Σ log s − Σ log S."""
        ratio, scale = self._ratio_and_scale(tau.unsqueeze(1))
        return (0.5 * torch.log(self.variance + ratio**2) - torch.log(scale)).sum(1)

    def _ratio_and_scale(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """Return ρ and S."""
        ratio = self.coordinates.ratio(tau)
        return ratio, self.coordinates.scale(ratio)
