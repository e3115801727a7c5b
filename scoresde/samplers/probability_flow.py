"""The probability flow, integrated by an adaptive solver."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from scoresde._core.checks import check_instance, check_positive
from scoresde.flow.probability_flow import probability_flow
from scoresde.samplers.base import Noise, Sampler, half_step
from scoresde.scores import Score
from scoresde.solvers import Adams, Solver, Status


@dataclass(frozen=True)
class ProbabilityFlow(Sampler):
    r"""The probability flow dx/dt = f x − ½ g² s, integrated to a tolerance.

    For a Gaussian diffusion the integration variables are the standardized state and the angle
    atan(σ/(αb)), in which the flow of Gaussian data is constant
    (:mod:`scoresde.flow.probability_flow`). Step sizes are controlled per sample. The map from
    noise to data is deterministic and invertible: :func:`transport` evaluates it in either
    direction.

    Args:
        solver: the integrator: Adams(), TorchDiffEq(…) or SciPy(…).
        tolerance: tolerated error of each step, relative to 1 + |z|, where z has unit variance.

    Raises:
        TypeError: if ``solver`` is not a Solver.
        ValueError: unless ``tolerance`` is positive.

    Example:
        >>> import torch
        >>> from scoresde import FunctionScore, VPSDE
        >>> from scoresde.samplers import sample
        >>> score = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I)
        >>> start = torch.ones(2, 3)
        >>> torch.allclose(
        ...     sample(score, None, ProbabilityFlow(), start=start, denoise=False), start
        ... )
        True

    References:
        Song et al. 2021, arXiv:2011.13456, eq. 13 and section 4.3.
    """

    solver: Solver = field(default_factory=Adams)
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        check_instance("solver", self.solver, Solver, "Adams()")
        check_positive("tolerance", self.tolerance)

    @property
    def default_steps(self) -> int:
        """One, within which the solver chooses its own steps."""
        return 1

    @property
    def deterministic(self) -> bool:
        return True

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        """As many evaluations as the solver needs (see :meth:`Sampler.step`)."""
        return transport(score, x, float(t), float(s), self.solver, self.tolerance), state

    def end(self, score: Score, x: Tensor, t: Tensor, state: Any) -> Tensor:
        """Return the end of the flow at ρ = 0 (:func:`half_step`); one evaluation."""
        return half_step(score, x, t)


def transport(
    score: Score,
    x: Tensor,
    t: float,
    s: float,
    solver: Solver | None = None,
    tolerance: float = 1e-4,
) -> Tensor:
    """Integrate the probability flow from time t to time s, in either direction.

    Args:
        score: the score.
        x: states at t ``(batch, *event)``.
        t: the initial time, in [0, T].
        s: the final time, in [0, T].
        solver: the integrator; None for the adaptive Adams method.
        tolerance: tolerated error of each step, relative to 1 + |z|, where z has unit variance.

    Returns:
        The states at s, shaped like ``x`` and in its dtype. If the integration of a sample does not
        converge, a ``RuntimeWarning`` is given, and the sample is the last state reached.

    Example:
        >>> import torch
        >>> from scoresde import FunctionScore, VPSDE
        >>> score = FunctionScore(lambda x, t: -x, VPSDE())
        >>> transport(score, torch.ones(1, 2), 1e-5, 1.0)
        tensor([[1., 1.]])
    """
    flow = probability_flow(score, x.shape[1:], min(s, t), max(s, t))
    start, end = (flow.end, flow.start) if t > s else (flow.start, flow.end)
    solver = Adams() if solver is None else check_instance("solver", solver, Solver, "Adams()")
    solution = solver.solve(flow.rhs(), flow.encode(x, start), start, end, tolerance=tolerance)
    failed = int((solution.status != int(Status.CONVERGED)).sum())
    if failed:
        remaining = float((solution.reached - end).abs().max())
        warnings.warn(
            f"{failed} of {len(x)} samples did not reach t = {s:g} (up to {remaining:.3g} short "
            "in τ); check the score, or allow more evaluations",
            RuntimeWarning,
            stacklevel=2,
        )
    return flow.decode(solution.state, end).to(x.dtype)
