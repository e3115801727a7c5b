r"""Initial-value problems for a batch of independent samples, with one integral along each path.

Every solver integrates ::

    dz/dτ = v(τ, z),        I = ∫ q(τ, z(τ)) dτ,        z(start) given, per sample.

The same call serves a sampler (no integral) and a likelihood (q is the divergence). A solver
reports per sample whether it reached the end, the number of evaluations and an error estimate. It
always returns: the failure of one sample is a status, not an exception.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from torch import Tensor

from scoresde.solvers.local_linearization import IDENTITY, LocalCoordinates


class FieldEvaluation(NamedTuple):
    """A field at ``m`` points.

    Attributes:
        velocity: v ``(m, d)``.
        integrand: independent estimates of q ``(m, k)``; k = 0 for no integral.
        gradient: ∇_z log p ``(m, d)``, or None.
        local: coordinates in which the flow is slow around these points.
    """

    velocity: Tensor
    integrand: Tensor
    gradient: Tensor | None = None
    local: LocalCoordinates = IDENTITY


Field = Callable[[Tensor, Tensor, Tensor, Tensor], FieldEvaluation]
"""The right-hand side: ``field(tau, z, rows, counter)`` with τ ``(m,)`` and z ``(m, d)``; ``rows``
``(m,)`` are the samples' indices in the batch, and ``counter`` ``(m,)`` numbers the evaluations of
each sample, so that random probes can differ between evaluations."""


class Status(IntEnum):
    """How a sample's integration ended."""

    CONVERGED = 0
    MAX_EVALUATIONS = 1
    STEP_TOO_SMALL = 2
    NOT_FINITE = 3


@dataclass(frozen=True)
class Solution:
    """What a solver returns, per sample; float64.

    Attributes:
        state: z at the end ``(batch, d)``; after a failure, the last accepted value.
        integral: ∫ q ``(batch,)``.
        standard_error: standard error of the integral due to the noise of q ``(batch,)``; 0 for an
            exact q, NaN if it cannot be estimated from a single estimate per evaluation.
        error: estimated discretization error of the integral ``(batch,)``; NaN if not estimated.
        reached: τ of ``state`` ``(batch,)``.
        evaluations: evaluations of the field ``(batch,)``, int64.
        status: a :class:`Status` code ``(batch,)``, int64.
    """

    state: Tensor
    integral: Tensor
    standard_error: Tensor
    error: Tensor
    reached: Tensor
    evaluations: Tensor
    status: Tensor


class Solver(ABC):
    """A method for a batch of initial-value problems; members are frozen dataclasses."""

    fresh: bool = False
    """Whether the integrand may be estimated with new noise at every evaluation."""
    differentiable: bool = False
    """Whether gradients pass from a solution to the initial state and into the field."""
    own_steps: bool = True
    """Whether step sizes are chosen per sample, so that a result does not depend on the batch."""
    coupled: bool = False
    """Whether all samples share one error norm and fail together."""
    local_coordinates: bool = False
    """Whether steps use the local coordinates of a field, which remove the stiffness they model."""

    @property
    def convergence_order(self) -> float | None:
        """p, if errors fall like n⁻ᵖ in n evaluations of a smooth field; None if not declared."""
        return None

    @abstractmethod
    def solve(
        self,
        field: Field,
        z: Tensor,
        start: float,
        end: float,
        *,
        tolerance: float,
        noisy: bool = False,
    ) -> Solution:
        """Integrate from ``start`` to ``end``, in either direction.

        Args:
            field: the right-hand side (see :data:`Field`).
            z: initial state ``(batch, d)``, float64.
            start: initial τ.
            end: final τ.
            tolerance: target error of the state relative to ``1 + |z|``, and of the integral
                per dimension.
            noisy: whether the integrand is a stochastic estimate, which is then excluded from
                step-size control.
        """
