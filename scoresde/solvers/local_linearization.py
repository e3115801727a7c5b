r"""Local coordinates of a step, in which a model of the flow is solved exactly.

A model v̂ of the velocity around a point has a flow of its own, z = Z(τ, ζ), which keeps ζ constant.
In the coordinates ζ the contribution of the model to the velocity vanishes::

    ζ′ = (∂Z/∂ζ)^{-1} (v − v̂),        div_ζ ζ′ = div_z v − d log |det ∂Z/∂ζ|/dτ.

A solver integrates the remainder, with steps that grow with the accuracy of the model. With a
linear v̂ this is a Lawson method. The diagonal λ of the Jacobian ∂ζ′/∂ζ at the point itself may be
given in addition; an exponential (Rosenbrock-type) integrator treats that linear part exactly.

References:
    Lawson, *Generalized Runge-Kutta processes for stable systems with large Lipschitz constants*,
    SIAM J. Numer. Anal. 4, 1967; Hochbruck & Ostermann, *Exponential integrators*, Acta Numerica
    19, 2010, section 2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Self, final

import torch
from torch import Tensor


@dataclass(frozen=True)
class LocalCoordinates(ABC):
    """The local coordinates of ``m`` samples; tensors with a row for each.

    A field of a subclass that is no such tensor has the metadata ``{"shared": True}``.

    Args:
        values: λ, the diagonal of ∂ζ′/∂ζ at the point ``(m, d)``; None for zero.
    """

    values: Tensor | None

    @abstractmethod
    def to_local(
        self, tau: Tensor, z: Tensor, velocity: Tensor, rates: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Transform points, velocities and integrands to local coordinates.

        Args:
            tau: ``(m, k)``.
            z: ``(m, k, d)``.
            velocity: v at these points, ``(m, k, d)``.
            rates: the integrand ``(m, k)``; the divergence of v, if the volume varies with τ.

        Returns:
            ζ and ζ′ ``(m, k, d)``, and the integrand in these coordinates ``(m, k)``.
        """

    @abstractmethod
    def from_local(self, tau: Tensor, zeta: Tensor) -> Tensor:
        """Return z ``(m, d)`` at τ ``(m,)`` for ζ ``(m, d)``."""

    @abstractmethod
    def log_volume(self, tau: Tensor) -> Tensor:
        """Return log abs det ∂z/∂ζ ``(m,)`` at τ ``(m,)``: ∫q = ∫q_ζ + its increase."""

    def relocate(
        self, tau: Tensor, z: Tensor, velocity: Tensor, to: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Move an evaluation of the velocity to a nearby point, to first order.

        Args:
            tau: ``(m,)``, at which these coordinates were constructed.
            z: ``(m, d)``, the point of the evaluation.
            velocity: v at z, ``(m, d)``.
            to: the nearby point, ``(m, d)``.

        Returns:
            ``to`` and the velocity there if the Jacobian is known, else z and v unchanged.
        """
        return z, velocity

    @final
    def map(self, function: Callable[..., Tensor], *others: LocalCoordinates) -> Self:
        """Apply a function of tensors to each field, together with the same field of others.

        Args:
            function: of one tensor for each object; its result has a row for each sample.
            *others: objects of the same class.

        Returns:
            An object with the results as fields; ``shared`` fields are unchanged.
        """
        names = [f.name for f in fields(self) if not f.metadata.get("shared")]
        results = {
            name: function(*(getattr(each, name) for each in (self, *others))) for name in names
        }
        return replace(self, **results)


@dataclass(frozen=True)
class IdentityCoordinates(LocalCoordinates):
    """ζ = z, the model v̂ = 0."""

    values: None = field(default=None, init=False, repr=False, metadata={"shared": True})

    def to_local(
        self, tau: Tensor, z: Tensor, velocity: Tensor, rates: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return z, velocity, rates

    def from_local(self, tau: Tensor, zeta: Tensor) -> Tensor:
        return zeta

    def log_volume(self, tau: Tensor) -> Tensor:
        return torch.zeros_like(tau)


@dataclass(frozen=True)
class EigenCoordinates(LocalCoordinates):
    """Components along the eigenvectors of a symmetric Jacobian; the model is v̂ = 0.

    Args:
        values: eigenvalues of the Jacobian ``(m, d)``.
        basis: its eigenvectors, in columns ``(m, d, d)``.
    """

    values: Tensor
    basis: Tensor

    @classmethod
    def from_jacobian(cls, jacobian: Tensor) -> EigenCoordinates:
        """Return the coordinates of the symmetric part of a Jacobian ``(m, d, d)``."""
        return EigenCoordinates(*eigenpairs(jacobian))

    def to_local(
        self, tau: Tensor, z: Tensor, velocity: Tensor, rates: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return z @ self.basis, velocity @ self.basis, rates

    def from_local(self, tau: Tensor, zeta: Tensor) -> Tensor:
        return torch.einsum("mdr,mr->md", self.basis, zeta)

    def relocate(
        self, tau: Tensor, z: Tensor, velocity: Tensor, to: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return ``to`` and v + J (to − z)."""
        return to, velocity + self.multiply(self.values, to - z)

    def multiply(self, values: Tensor, vector: Tensor) -> Tensor:
        """Return E diag(values) Eᵀ vector, with E the basis; all ``(m, d)``."""
        components = values * torch.einsum("mdr,md->mr", self.basis, vector)
        return torch.einsum("mdr,mr->md", self.basis, components)

    def log_volume(self, tau: Tensor) -> Tensor:
        return torch.zeros_like(tau)


def eigenpairs(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues ``(m, d)`` and eigenvectors ``(m, d, d)`` of the symmetric part.

    Entries that are not finite count as zero: every basis is valid, and the velocity itself shows
    the failure.
    """
    safe = torch.where(matrix.isfinite(), matrix, 0.0).detach()
    values, vectors = torch.linalg.eigh(0.5 * (safe + safe.mT))
    return values, vectors


IDENTITY = IdentityCoordinates()
