r"""The solvers of scipy, explicit and implicit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.integrate
import torch
from torch import Tensor

from scoresde._core.checks import check_integer
from scoresde.solvers._augmented import Augmented, Exhausted, check_tolerances, join
from scoresde.solvers.base import Field, Solution, Solver, Status

_METHODS = {"RK23": 3.0, "RK45": 5.0, "DOP853": 8.0, "Radau": None, "BDF": None, "LSODA": None}
"""Their orders, of those that are not implicit."""


@dataclass(frozen=True)
class SciPy(Solver):
    r"""A method of ``scipy.integrate.solve_ivp``, on the CPU, for every sample on its own.

    A step is accepted if the RMS over a sample's entries of error/(``atol`` + ``rtol`` |y|) is at
    most 1. The absolute tolerance of an integral is d ``atol``/√n where it is one of n entries: its
    error weighs as much as that of all coordinates of the state together. Probes are fixed along
    the path. Scipy controls the error of a step, from which that of the result does not follow; the
    solution's ``error`` is NaN.

    With ``coupled=True`` the whole batch is one vector with one RMS and one ``atol``, which is how
    the likelihoods of Song et al. are computed: to reproduce those numbers, use
    ``SciPy("RK45", rtol=1e-5, atol=1e-5, coupled=True)``. Batch-mates then share steps, errors and
    failures.

    Args:
        method: ``"RK23"``, ``"RK45"``, ``"DOP853"``, or one for stiff problems in few dimensions,
            whose Jacobians are differenced: ``"Radau"``, ``"BDF"``, ``"LSODA"``.
        rtol: relative tolerance; the ``tolerance`` of :meth:`solve` when None.
        atol: absolute tolerance, likewise.
        max_evaluations: where a sample gives up, with the best it has.
        coupled: whether the batch is solved as one system.

    Raises:
        ValueError: if the method is none of these, or a number is out of range.

    Example:
        >>> def decay(tau, z, rows, counter):
        ...     return -z, z.sum(1, keepdim=True), None
        >>> z = torch.ones(1, 2, dtype=torch.float64)
        >>> solution = SciPy("DOP853").solve(decay, z, 0.0, 1.0, tolerance=1e-6)
        >>> solution.state, solution.integral  # 1/e, 2 − 2/e
        (tensor([[0.3679, 0.3679]], dtype=torch.float64), tensor([1.2642], dtype=torch.float64))

    References:
        Virtanen et al., *SciPy 1.0*, 2020, doi:10.1038/s41592-019-0686-2; Song et al. 2021,
        arXiv:2011.13456, appendix D.2.
    """

    method: str = "RK45"
    rtol: float | None = None
    atol: float | None = None
    max_evaluations: int = 10_000
    coupled: bool = False

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            raise ValueError(
                f"method: expected one of {', '.join(_METHODS)}, got {self.method!r}; these are "
                "the names that scipy.integrate.solve_ivp knows"
            )
        check_tolerances(self.rtol, self.atol)
        check_integer("max_evaluations", self.max_evaluations, minimum=2)

    @property
    def own_steps(self) -> bool:  # type: ignore[override]
        """Whether samples are solved one by one."""
        return not self.coupled

    @property
    def convergence_order(self) -> float | None:
        """That of the method; None for implicit ones, which vary it or spend steps on Jacobians."""
        return _METHODS[self.method]

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
        """Integrate sample by sample, or the batch as one (see :meth:`Solver.solve`)."""
        parts = []
        for rows in torch.arange(len(z), device=z.device).split(len(z) if self.coupled else 1):
            walk = Augmented(field, z[rows], rows, start, end, self.max_evaluations)
            status = self._advance(walk, end, tolerance)
            parts.append(walk.leave(walk.everyone, status, noisy))
        return join(parts)

    def _advance(self, walk: Augmented, end: float, tolerance: float) -> Tensor | Status:
        """Step until the end or a failure, keep the last good state, and say which it was."""
        shape = walk.y.shape
        rtol = tolerance if self.rtol is None else self.rtol
        atol = np.full(shape, tolerance if self.atol is None else self.atol)
        if not self.coupled:
            atol[:, walk.d :] *= walk.d / shape[1] ** 0.5

        def entries(y: np.ndarray) -> Tensor:
            return torch.tensor(y.reshape(shape), dtype=walk.y.dtype, device=walk.y.device)

        def slope(tau: float, y: np.ndarray) -> np.ndarray:
            return walk(tau, entries(y)).detach().cpu().numpy().reshape(-1)

        if not walk.finite.all():
            return walk.failure
        try:
            with np.errstate(all="ignore"):
                solver = getattr(scipy.integrate, self.method)(
                    slope,
                    walk.tau,
                    walk.y.detach().cpu().numpy().reshape(-1),
                    end,
                    rtol=rtol,
                    atol=atol.reshape(-1),
                )
                while solver.status == "running":
                    solver.step()
                    if solver.status == "failed" or not np.isfinite(solver.y).all():
                        return walk.failure
                    walk.tau, walk.y = float(solver.t), entries(solver.y)
        except Exhausted:
            return Status.MAX_EVALUATIONS
        except ValueError:  # scipy's linear algebra refuses a Jacobian that is not finite
            if walk.busy:
                raise
            return walk.failure
        return Status.CONVERGED
