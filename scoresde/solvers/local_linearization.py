r"""Frames: coordinates of a step in which a model of the flow stands still.

A model v̂ of the velocity around a point has a flow of its own, which carries ζ, held fixed, along
z = Z(τ, ζ). In the coordinates ζ the model's share of the velocity is gone,

    ζ′ = (∂Z/∂ζ)^{-1} (v − v̂),        div_ζ ζ′ = div_z v − d log |det ∂Z/∂ζ|/dτ,

and the rest is what a solver has to follow, over steps as long as the model is good. What the model
leaves of the Jacobian at the point itself may be told beside it, for a solver to take exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self, final

import torch
from torch import Tensor


class LocalCoordinates(ABC):
    """The frames of ``m`` samples; a dataclass of tensors with a row for each.

    Attributes:
        values: the diagonal of ∂ζ′/∂ζ at the point ``(m, d)``; None for zero.
    """

    values: Tensor | None

    @abstractmethod
    def to_local(
        self, tau: Tensor, z: Tensor, velocity: Tensor, rates: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ζ, ζ′ ``(m, k, d)`` and the integrand in these coordinates ``(m, k)``.

        Args:
            tau: ``(m, k)``.
            z: ``(m, k, d)``.
            velocity: v there, ``(m, k, d)``.
            rates: the integrand ``(m, k)``; the divergence of v, if the frame's volume varies.
        """

    @abstractmethod
    def from_local(self, tau: Tensor, zeta: Tensor) -> Tensor:
        """Return z ``(m, d)`` at τ ``(m,)`` for ζ ``(m, d)``."""

    @abstractmethod
    def log_volume(self, tau: Tensor) -> Tensor:
        """Return log |det ∂z/∂ζ| ``(m,)`` at τ ``(m,)``: ∫q = ∫q_ζ + its increase."""

    def relocate(
        self, tau: Tensor, z: Tensor, velocity: Tensor, to: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return a point close to z whose velocity is known as well, and that velocity.

        It is ``to`` where the Jacobian is known, else z itself.

        Args:
            tau: ``(m,)``, where this frame was made.
            z: ``(m, d)``, likewise.
            velocity: v there, ``(m, d)``.
            to: the point wanted, ``(m, d)``.
        """
        return z, velocity

    @final
    def map(self, function: Callable[..., Tensor], *others: LocalCoordinates) -> Self:
        """Apply a function of tensors with a row per sample to all that are no ``shared`` field."""
        local_coordinates = (self, *others)
        members: tuple[Any, ...] = fields(self)  # type: ignore[arg-type]
        own = [f.name for f in members if not f.metadata.get("shared")]
        found = {name: function(*(getattr(v, name) for v in local_coordinates)) for name in own}
        return replace(self, **found)  # type: ignore[type-var]


@dataclass(frozen=True)
class IdentityCoordinates(LocalCoordinates):
    """z itself, where nothing is known of the flow."""

    values = None

    def to_local(
        self, tau: Tensor, z: Tensor, velocity: Tensor, rates: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return all as it is."""
        return z, velocity, rates

    def from_local(self, tau: Tensor, zeta: Tensor) -> Tensor:
        """Return ζ."""
        return zeta

    def log_volume(self, tau: Tensor) -> Tensor:
        """Return 0."""
        return torch.zeros_like(tau)


@dataclass(frozen=True)
class EigenCoordinates(LocalCoordinates):
    """The axes of a symmetric Jacobian, which is told beside them; the model is v̂ = 0.

    Args:
        basis: its eigenvectors, in columns ``(m, d, d)``.
        values: its eigenvalues ``(m, d)``.
    """

    basis: Tensor
    values: Tensor

    @classmethod
    def of(cls, jacobian: Tensor) -> EigenCoordinates:
        """Return the frame of the symmetric part of a Jacobian ``(m, d, d)``."""
        values, basis = eigenpairs(jacobian)
        return cls(basis, values)

    def to_local(
        self, tau: Tensor, z: Tensor, velocity: Tensor, rates: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the components along the axes."""
        return z @ self.basis, velocity @ self.basis, rates

    def from_local(self, tau: Tensor, zeta: Tensor) -> Tensor:
        """Return the vector of these components."""
        return torch.einsum("mdr,mr->md", self.basis, zeta)

    def relocate(
        self, tau: Tensor, z: Tensor, velocity: Tensor, to: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return ``to`` and v + J (to − z)."""
        return to, velocity + self.stretched(self.values, to - z)

    def stretched(self, values: Tensor, change: Tensor) -> Tensor:
        """Return a vector stretched by ``values`` along the axes, all ``(m, d)``."""
        along = values * torch.einsum("mdr,md->mr", self.basis, change)
        return torch.einsum("mdr,mr->md", self.basis, along)

    def log_volume(self, tau: Tensor) -> Tensor:
        """Return 0."""
        return torch.zeros_like(tau)


def eigenpairs(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues ``(m, d)`` and eigenvectors ``(m, d, d)`` of the symmetric part.

    What is not finite counts as zero: any frame serves, and the failure shows in the flow itself.
    """
    safe = torch.where(matrix.isfinite(), matrix, 0.0).detach()
    values, vectors = torch.linalg.eigh(0.5 * (safe + safe.mT))
    return values, vectors


IDENTITY = IdentityCoordinates()
