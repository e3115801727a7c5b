"""The adaptive Runge–Kutta methods of torchdiffeq."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from scoresde._core.checks import check_integer
from scoresde.solvers.augmented import Augmented, EvaluationLimitError, check_tolerances, join
from scoresde.solvers.base import Field, Solution, Solver, Status

_METHODS = {"dopri5": 5.0, "dopri8": 8.0, "bosh3": 3.0, "adaptive_heun": 2.0}
"""Names of the methods and their orders."""
_HUGE = 1e10


class _ControlledSystem(Augmented):
    """An augmented system with the error norm and the step callback of torchdiffeq."""

    def norm(self, ratio: Tensor) -> Tensor:
        """Return the largest error ratio of any sample: RMS of its state or one of its integrals.

        Args:
            ratio: local error over tolerance ``(m, d + k)``.

        Returns:
            The maximum over the samples, ``()``.
        """
        state, integrals = ratio[:, : self.d], ratio[:, self.d :]
        rms = state.square().mean(1, keepdim=True).sqrt()
        largest = torch.cat([rms, integrals.abs()], dim=1).amax(1)
        self.finite = largest.isfinite()
        # torchdiffeq turns NaN into a step of 0; after a large number it retries with a smaller one
        self._largest = largest.nan_to_num(_HUGE, _HUGE).clamp(max=_HUGE)
        return self._largest.max()

    def callback_step(self, tau: Tensor, y: Tensor, step: Tensor) -> None:
        """Store the last accepted state, from which the next step starts."""
        self.tau, self.y = tau.item(), y

    @property
    def rejecting(self) -> Tensor:
        """The rows because of which the latest step was rejected, ``(m,)``."""
        return self._largest >= self._largest.max().clamp(max=1.0)


@dataclass(frozen=True)
class TorchDiffEq(Solver):
    r"""A method of torchdiffeq, with step-size control by the sample of largest error.

    The batch shares its steps, and a step is accepted if max_i e_i ≤ 1, where e_i is the larger of
    the RMS error of sample i's state, over ``atol + rtol |z|``, and the error of its integral, over
    ``atol`` per dimension. Other samples can therefore shorten a sample's steps, but not hide its
    error, as the library's RMS over the batch would. A sample that fails is removed with its
    status; the others continue from the last accepted step. Probes are fixed along the path.

    The library controls the local error of a step, which does not bound the error of the result;
    the solution's ``error`` is NaN.

    Args:
        method: one of torchdiffeq's adaptive methods: ``"dopri5"``, ``"dopri8"``, ``"bosh3"``,
            ``"adaptive_heun"``. (Errors of its ``"fehlberg2"`` exceed the tolerance 100 times.)
        rtol: relative tolerance of the state; the ``tolerance`` of :meth:`solve` when None.
        atol: absolute tolerance; the ``tolerance`` of :meth:`solve` when None.
        max_evaluations: evaluations after which the samples stop at the last accepted step.

    Raises:
        ValueError: if the method is unknown or a number is out of range.

    Example:
        >>> def decay(tau, z, rows, counter):
        ...     return -z, z.sum(1, keepdim=True), None
        >>> z = torch.ones(1, 2, dtype=torch.float64)
        >>> solution = TorchDiffEq().solve(decay, z, 0.0, 1.0, tolerance=1e-6)
        >>> solution.state, solution.integral  # 1/e, 2 − 2/e
        (tensor([[0.3679, 0.3679]], dtype=torch.float64), tensor([1.2642], dtype=torch.float64))

    References:
        Chen, *torchdiffeq*, 2018, https://github.com/rtqichen/torchdiffeq.
    """

    method: str = "dopri5"
    rtol: float | None = None
    atol: float | None = None
    max_evaluations: int = 10_000
    differentiable = True
    own_steps = False

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            raise ValueError(
                f"method: expected an adaptive method of torchdiffeq, {', '.join(_METHODS)}, got "
                f"{self.method!r}; methods with fixed steps have no error control"
            )
        check_tolerances(self.rtol, self.atol)
        check_integer("max_evaluations", self.max_evaluations, minimum=2)

    @property
    def convergence_order(self) -> float:
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
        from torchdiffeq import odeint  # imports scipy, which takes seconds

        rtol = tolerance if self.rtol is None else self.rtol
        atol = tolerance if self.atol is None else self.atol
        rows = torch.arange(len(z), device=z.device)
        system = _ControlledSystem(field, z, rows, start, end, self.max_evaluations)
        ones = z.new_ones(system.y.shape[1])
        state, integrals = ones[: system.d], ones[system.d :]
        arguments = {
            "rtol": torch.cat([rtol * state, 0 * integrals]),
            "atol": torch.cat([atol * state, atol * system.d * integrals]),
            "method": self.method,
            "options": {"norm": system.norm, "step_t": z.new_tensor([end])},
        }
        parts = [system.finish(~system.finite, Status.NOT_FINITE, noisy)]
        while len(system.rows) and system.tau != end:
            try:
                times = z.new_tensor([system.tau, end])
                states = cast(Tensor, odeint(system, system.y, times, **arguments))
                system.y, system.tau = states[-1], end
            except EvaluationLimitError:
                parts.append(system.finish(system.all_rows, Status.MAX_EVALUATIONS, noisy))
            except AssertionError:
                if system.evaluating:
                    raise
                parts.append(system.finish(system.rejecting, system.failure, noisy))
        return join([*parts, system.finish(system.all_rows, Status.CONVERGED, noisy)])
