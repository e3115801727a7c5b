r"""The adaptive Runge–Kutta methods of torchdiffeq."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchdiffeq import odeint

from scoresde._core.checks import check_integer
from scoresde.solvers._augmented import Augmented, Exhausted, check_tolerances, join
from scoresde.solvers.base import Field, Solution, Solver, Status

_METHODS = {"dopri5": 5.0, "dopri8": 8.0, "bosh3": 3.0, "adaptive_heun": 2.0}
"""Their orders."""
_HUGE = 1e10


class _March(Augmented):
    """An augmented system that follows torchdiffeq from step to step."""

    def norm(self, ratio: Tensor) -> Tensor:
        """The worst sample's error over its tolerance: of its state (RMS) or of an integral."""
        state, integrals = ratio[:, : self.d], ratio[:, self.d :]
        rms = state.square().mean(1, keepdim=True).sqrt()
        worst = torch.cat([rms, integrals.abs()], dim=1).amax(1)
        self.finite = worst.isfinite()
        # the library reads NaN as a step of 0; a large number makes it retry with a smaller one
        self._worst = worst.nan_to_num(_HUGE, _HUGE).clamp(max=_HUGE)
        return self._worst.max()

    def callback_step(self, tau: Tensor, y: Tensor, step: Tensor) -> None:
        """Note the last accepted state, which every step starts from."""
        self.tau, self.y = tau.item(), y

    @property
    def stuck(self) -> Tensor:
        """The rows on whose account the latest step was refused ``(m,)``."""
        return self._worst >= self._worst.max().clamp(max=1.0)


@dataclass(frozen=True)
class TorchDiffEq(Solver):
    r"""A method of torchdiffeq, with step control by the worst sample.

    The batch shares its steps, and each is accepted if max_i e_i ≤ 1, where e_i is the larger of
    the RMS error of sample i's state, over ``atol + rtol |z|``, and the error of its integral, over
    ``atol`` per dimension. So batch-mates cannot hide a sample's error, though they can make its
    steps smaller. A sample that fails leaves the batch with its status; the others go on from the
    last accepted step. Probes are fixed along the path.

    The library controls the error of a step, from which that of the result does not follow; the
    solution's ``error`` is NaN.

    Args:
        method: one of torchdiffeq's adaptive methods: ``"dopri5"``, ``"dopri8"``, ``"bosh3"``,
            ``"adaptive_heun"``. (Its ``"fehlberg2"`` misses the tolerance by two digits.)
        rtol: relative tolerance of the state; the ``tolerance`` of :meth:`solve` when None.
        atol: absolute tolerance, likewise.
        max_evaluations: where the samples give up, with the best they have.

    Raises:
        ValueError: if the method is none of these, or a number is out of range.

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
        """That of the method."""
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
        """Integrate the batch with common steps (see :meth:`Solver.solve`)."""
        rtol = tolerance if self.rtol is None else self.rtol
        atol = tolerance if self.atol is None else self.atol
        rows = torch.arange(len(z), device=z.device)
        march = _March(field, z, rows, start, end, self.max_evaluations)
        of_state = z.new_ones(march.d)
        of_integrals = z.new_ones(march.y.shape[1] - march.d)
        arguments = {
            "rtol": torch.cat([rtol * of_state, 0 * of_integrals]),
            "atol": torch.cat([atol * of_state, atol * march.d * of_integrals]),
            "method": self.method,
            "options": {"norm": march.norm, "step_t": z.new_tensor([end])},
        }
        parts = [march.leave(~march.finite, Status.NOT_FINITE, noisy)]
        while len(march.rows) and march.tau != end:
            try:
                march.y = odeint(march, march.y, z.new_tensor([march.tau, end]), **arguments)[-1]
                march.tau = end
            except Exhausted:
                parts.append(march.leave(march.everyone, Status.MAX_EVALUATIONS, noisy))
            except AssertionError:
                if march.busy:
                    raise
                parts.append(march.leave(march.stuck, march.failure, noisy))
        return join([*parts, march.leave(march.everyone, Status.CONVERGED, noisy)])
