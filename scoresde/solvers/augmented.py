r"""States augmented by their integrals, for libraries that solve systems dy/dτ = f(τ, y).

y = (z, I_1 … I_k) holds one integral per independent estimate of the integrand. All evaluations use
the random numbers of counter 0, so that f is a smooth function of τ and y. Its noise may therefore
affect the step size, and the sample variance of the k integrals estimates the variance of their
mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from scoresde._core.checks import check_positive
from scoresde.solvers.base import Field, Solution, Status


class EvaluationLimitError(Exception):
    """The maximum number of evaluations has been used."""


class Augmented:
    """The augmented system of some rows of a batch: its right-hand side and its current state.

    Args:
        field: the field (see :data:`~scoresde.solvers.base.Field`).
        z: initial states ``(m, d)``.
        rows: indices of these rows in the batch, ``(m,)``.
        start: initial τ.
        end: final τ.
        max_evaluations: evaluations after which :class:`EvaluationLimitError` is raised.

    Attributes:
        rows: the rows that are not finished.
        tau: τ of the last accepted step.
        y: the state at ``tau``, ``(m, d + k)``.
        d: number of coordinates of z.
        finite: whether the latest slopes were finite, ``(m,)``.
        evaluating: whether the field is being evaluated; an exception then comes from the field.
    """

    def __init__(
        self, field: Field, z: Tensor, rows: Tensor, start: float, end: float, max_evaluations: int
    ) -> None:
        self.rows, self.tau, self.d = rows, start, z.shape[1]
        self.evaluating = False
        self._field = field
        self._span = min(start, end), max(start, end)
        self._remaining = self._max_evaluations = max_evaluations
        self._latest = torch.nan, z, z
        slope = self(start, z)
        self.y = torch.cat([z, torch.zeros_like(slope[:, self.d :])], dim=1)

    def __call__(self, tau: float | Tensor, y: Tensor) -> Tensor:
        """Return dy/dτ ``(m, d + k)``; τ is clamped to the interval, the latest result cached."""
        time, z = torch.as_tensor(tau).to(y).clamp(*self._span), y[:, : self.d]
        latest_time, latest_z, slope = self._latest
        if time.item() == latest_time and torch.equal(z, latest_z):
            return slope
        if not self._remaining:
            raise EvaluationLimitError
        self.evaluating = True
        counter = torch.zeros_like(self.rows)
        velocity, estimates, *_ = self._field(time.expand(len(z)), z, self.rows, counter)
        self.evaluating = False
        self._remaining -= 1
        slope = torch.cat([velocity, estimates], dim=1)
        self.finite = slope.isfinite().all(1)
        self._latest = time.item(), z, slope
        return slope

    @property
    def all_rows(self) -> Tensor:
        """A mask ``(m,)`` of all remaining rows."""
        return torch.ones_like(self.finite)

    @property
    def failure(self) -> Tensor:
        """The status of each row if no further step succeeds, ``(m,)``."""
        return torch.where(self.finite, int(Status.STEP_TOO_SMALL), int(Status.NOT_FINITE))

    def finish(
        self, finished: Tensor, status: Tensor | Status, noisy: bool
    ) -> tuple[Tensor, Solution]:
        """Remove the rows of the mask ``finished`` ``(m,)``; return their indices and solution."""
        integrals = self.y[finished, self.d :]
        integral, standard_error = _mean(integrals, noisy)
        rows, zero = self.rows[finished], torch.zeros_like(self.rows)
        solution = Solution(
            state=self.y[finished, : self.d],
            integral=integral,
            standard_error=standard_error,
            error=torch.full_like(integral, torch.nan),
            reached=torch.full_like(integral, self.tau),
            evaluations=torch.full_like(rows, self._max_evaluations - self._remaining),
            status=(zero + status)[finished],
        )
        for name in ("rows", "y", "finite"):
            setattr(self, name, getattr(self, name)[~finished])
        time, z, slope = self._latest
        self._latest = time, z[~finished], slope[~finished]
        return rows, solution


def check_tolerances(rtol: float | None, atol: float | None) -> None:
    """Raise a ``ValueError`` unless each is None or positive."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None:
            check_positive(name, value)


def join(parts: Sequence[tuple[Tensor, Solution]]) -> Solution:
    """Return the solution of a batch from those of its parts, in the order of the batch."""
    order = torch.cat([rows for rows, _ in parts]).argsort()
    return Solution(
        *(torch.cat([getattr(part, f.name) for _, part in parts])[order] for f in fields(Solution))
    )


def _mean(integrals: Tensor, noisy: bool) -> tuple[Tensor, Tensor]:
    """Mean of independent integrals ``(m, k)`` and its standard error, NaN where it is unknown."""
    k = integrals.shape[1]
    mean = integrals.sum(1) / max(k, 1)
    if not noisy or k == 0:
        return mean, torch.zeros_like(mean)
    if k == 1:
        return mean, torch.full_like(mean, torch.nan)
    variance = (integrals - mean.unsqueeze(1)).square().sum(1) / (k - 1)
    return mean, torch.sqrt(variance / k)
