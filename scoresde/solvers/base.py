r"""Integrating a batch of independent initial-value problems, with one integral beside each.

    dz/dτ = v(τ, z),        I = ∫ q(τ, z(τ)) dτ,        z(start) given, per sample.

The same call serves a sampler (no integral) and a likelihood (q the divergence). A solver reports,
per sample, whether it arrived, at what cost, and how far off it believes to be; it does not raise
because one sample fails, and it always ends.
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
        frame: coordinates in which the flow is slow around these points.
    """

    velocity: Tensor
    integrand: Tensor
    gradient: Tensor | None = None
    local: LocalCoordinates = IDENTITY


Field = Callable[[Tensor, Tensor, Tensor, Tensor], FieldEvaluation]
"""field(tau (m,), z (m, d), rows (m,), node (m,)): ``counter`` numbers the evaluations of each row."""


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
        state: z at the end ``(batch, d)``, or the last good value where it did not arrive.
        integral: ∫ q ``(batch,)``.
        standard_error: standard error of the integral from the noise of q ``(batch,)``; 0 for an
            exact q, NaN where a single estimate does not tell.
        error: estimated error of the integral from the discretisation ``(batch,)``.
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
    """Whether the integrand may be estimated anew, with other noise, at every node."""
    differentiable: bool = False
    """Whether gradients pass from a solution to the initial state and into the field."""
    own_steps: bool = True
    """Whether every sample has steps of its own, so that batch-mates don't change its digits."""
    coupled: bool = False
    """Whether batch-mates even share their error and their failures."""
    local_coordinates: bool = False
    """Whether steps are told in the frames that a field can give, which take its stiffness out."""

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
            tolerance: wanted error, of the state relative to 1 + |z| and of the integral per
                dimension.
            noisy: whether the integrand is a noisy estimate, which must not steer the steps.
        """
