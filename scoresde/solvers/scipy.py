"""The solvers of SciPy, explicit and implicit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scoresde._core.checks import check_integer
from scoresde.solvers.augmented import Augmented, EvaluationLimitError, check_tolerances, join
from scoresde.solvers.base import Field, Solution, Solver, Status

_METHODS = {"RK23": 3.0, "RK45": 5.0, "DOP853": 8.0, "Radau": None, "BDF": None, "LSODA": None}
"""Names of the methods and the orders of the explicit ones."""


@dataclass(frozen=True)
class SciPy(Solver):
    r"""A method of ``scipy.integrate.solve_ivp``, on the CPU, for each sample separately.

    A step is accepted if the RMS over a sample's entries of ``error / (atol + rtol |y|)`` is at
    most 1. The absolute tolerance of an integral is d ``atol``/√n where it is one of n entries, so
    that its error weighs as much as that of all coordinates of the state together. Probes are fixed
    along the path. SciPy controls the local error of a step, which does not bound the error of the
    result; the solution's ``error`` is NaN.

    With ``coupled=True`` the batch is one vector with one RMS norm and one ``atol``, which is how
    Song et al. compute likelihoods: to reproduce those numbers, use
    ``SciPy("RK45", rtol=1e-5, atol=1e-5, coupled=True)``. All samples then share steps, errors and
    failures.

    Args:
        method: explicit: ``"RK23"``, ``"RK45"``, ``"DOP853"``; for stiff problems in few
            dimensions, with a finite-difference Jacobian: ``"Radau"``, ``"BDF"``, ``"LSODA"``.
        rtol: relative tolerance; the ``tolerance`` of :meth:`solve` when None.
        atol: absolute tolerance; the ``tolerance`` of :meth:`solve` when None.
        max_evaluations: evaluations after which a sample stops at its last accepted step.
        coupled: whether the batch is solved as one system.

    Raises:
        ValueError: if the method is unknown or a number is out of range.

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
                "the methods of scipy.integrate.solve_ivp"
            )
        check_tolerances(self.rtol, self.atol)
        check_integer("max_evaluations", self.max_evaluations, minimum=2)

    @property
    def own_steps(self) -> bool:  # type: ignore[override]
        """True unless the batch is ``coupled``."""
        return not self.coupled

    @property
    def convergence_order(self) -> float | None:
        """The order of an explicit method; None for implicit ones, whose order or cost varies."""
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
        parts = []
        for rows in torch.arange(len(z), device=z.device).split(len(z) if self.coupled else 1):
            system = Augmented(field, z[rows], rows, start, end, self.max_evaluations)
            status = self._integrate(system, end, tolerance)
            parts.append(system.finish(system.all_rows, status, noisy))
        return join(parts)

    def _integrate(self, system: Augmented, end: float, tolerance: float) -> Tensor | Status:
        """Step to the end or to a failure; store the last finite state and return the status."""
        import scipy.integrate  # takes longer to import than the rest of the package

        shape = system.y.shape
        rtol = tolerance if self.rtol is None else self.rtol
        atol = np.full(shape, tolerance if self.atol is None else self.atol)
        if not self.coupled:
            atol[:, system.d :] *= system.d / shape[1] ** 0.5

        def to_tensor(y: np.ndarray) -> Tensor:
            return torch.tensor(y.reshape(shape), dtype=system.y.dtype, device=system.y.device)

        def slope(tau: float, y: np.ndarray) -> np.ndarray:
            return system(tau, to_tensor(y)).detach().cpu().numpy().reshape(-1)

        if not system.finite.all():
            return system.failure
        try:
            with np.errstate(all="ignore"):
                solver = getattr(scipy.integrate, self.method)(
                    slope,
                    system.tau,
                    system.y.detach().cpu().numpy().reshape(-1),
                    end,
                    rtol=rtol,
                    atol=atol.reshape(-1),
                )
                while solver.status == "running":
                    solver.step()
                    if solver.status == "failed" or not np.isfinite(solver.y).all():
                        return system.failure
                    system.tau, system.y = float(solver.t), to_tensor(solver.y)
        except EvaluationLimitError:
            return Status.MAX_EVALUATIONS
        except ValueError:  # SciPy's linear algebra raises it if a Jacobian is not finite
            if system.evaluating:
                raise
            return system.failure
        return Status.CONVERGED
