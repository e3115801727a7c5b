r"""A sample and its integrals as one state, for libraries that solve systems dy/dτ = f(τ, y).

y = (z, I_1 … I_k) holds one integral per independent estimate of the integrand, and all of them are
drawn as at node 0, so that f is a function of τ and y. It is a smooth one: its noise may steer the
steps, and what the k integrals differ by is the noise of their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from scoresde._core.checks import check_positive
from scoresde.solvers.base import Field, Solution, Status


class Exhausted(Exception):  # noqa: N818
    """The rows have spent their evaluations."""


class Augmented:
    """Some rows of a batch under way: their right-hand side, and how far they got.

    Args:
        field: the field (see :data:`Field`).
        z: initial states ``(m, d)``.
        rows: which rows of the batch they are, ``(m,)``.
        start: initial τ.
        end: final τ.
        max_evaluations: how many evaluations there can be before :class:`Exhausted` is raised.

    Attributes:
        rows: those still under way.
        tau: how far they got.
        y: their state there, ``(m, d + k)``.
        d: number of coordinates of z.
        finite: whether the latest slopes were finite, ``(m,)``.
        busy: whether the field is being evaluated, so that an exception is its own.
    """

    def __init__(
        self, field: Field, z: Tensor, rows: Tensor, start: float, end: float, max_evaluations: int
    ) -> None:
        self.rows, self.tau, self.d = rows, start, z.shape[1]
        self.busy = False
        self._field = field
        self._span = min(start, end), max(start, end)
        self._left = self._max_evaluations = max_evaluations
        self._latest = torch.nan, z, z
        slope = self(start, z)
        self.y = torch.cat([z, torch.zeros_like(slope[:, self.d :])], dim=1)

    def __call__(self, tau: float | Tensor, y: Tensor) -> Tensor:
        """Return dy/dτ ``(m, d + k)`` at a τ within the interval; repeating a call is free."""
        time, z = torch.as_tensor(tau).to(y).clamp(*self._span), y[:, : self.d]
        at, latest, slope = self._latest
        if time.item() == at and torch.equal(z, latest):
            return slope
        if not self._left:
            raise Exhausted
        self.busy = True
        counter = torch.zeros_like(self.rows)
        velocity, estimates, *_ = self._field(time.expand(len(z)), z, self.rows, counter)
        self.busy = False
        self._left -= 1
        slope = torch.cat([velocity, estimates], dim=1)
        self.finite = slope.isfinite().all(1)
        self._latest = time.item(), z, slope
        return slope

    @property
    def everyone(self) -> Tensor:
        """All rows, as a mask ``(m,)``."""
        return torch.ones_like(self.finite)

    @property
    def failure(self) -> Tensor:
        """Why each row gets no further ``(m,)``: it has no slope, or no step is small enough."""
        return torch.where(self.finite, int(Status.STEP_TOO_SMALL), int(Status.NOT_FINITE))

    def leave(self, gone: Tensor, status: Tensor | Status, noisy: bool) -> tuple[Tensor, Solution]:
        """Take out the rows ``gone`` ``(m,)``; return which they are and their solution."""
        integrals = self.y[gone, self.d :]
        integral, standard_error = _mean(integrals, noisy)
        rows, zero = self.rows[gone], torch.zeros_like(self.rows)
        solution = Solution(
            state=self.y[gone, : self.d],
            integral=integral,
            standard_error=standard_error,
            error=torch.full_like(integral, torch.nan),
            reached=torch.full_like(integral, self.tau),
            evaluations=torch.full_like(rows, self._max_evaluations - self._left),
            status=(zero + status)[gone],
        )
        for name in ("rows", "y", "finite"):
            setattr(self, name, getattr(self, name)[~gone])
        at, z, slope = self._latest
        self._latest = at, z[~gone], slope[~gone]
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
    std = (integrals - mean.unsqueeze(1)).square().sum(1) / (k - 1)
    return mean, torch.sqrt(std / k)
