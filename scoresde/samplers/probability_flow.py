"""The probability flow, followed by an adaptive solver."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from scoresde._core.checks import check_positive
from scoresde.flow.probability_flow import probability_flow
from scoresde.samplers.base import Noise, Sampler, half_step
from scoresde.scores import Score
from scoresde.solvers import Adams, Solver, Status


@dataclass(frozen=True)
class ProbabilityFlow(Sampler):
    r"""The flow dx/dt = f x − ½ g² s, integrated to a tolerance in the best variables there are.

    For a Gaussian diffusion these are the standardised state and the angle atan(σ/(αb)), in which
    the flow of Gaussian data stands still (:mod:`scoresde.flow.probability_flow`). Every sample has its own
    steps. The map from noise to data is deterministic and invertible: :func:`transport` runs it
    either way.

    Args:
        solver: the integrator: Adams(), TorchDiffEq(…) or SciPy(…).
        tolerance: wanted error of each step, relative to 1 + |z|, z of unit variance.

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
        if not isinstance(self.solver, Solver):
            raise TypeError(f"solver: expected a Solver such as Adams(), got {self.solver!r}")
        check_positive("tolerance", self.tolerance)

    @property
    def default_steps(self) -> int:
        """One: the solver chooses its own steps between the two ends."""
        return 1

    @property
    def deterministic(self) -> bool:
        """Whether no noise is drawn."""
        return True

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        """Follow the flow from t to s."""
        return transport(score, x, float(t), float(s), self.solver, self.tolerance), state

    def end(self, score: Score, x: Tensor, t: Tensor, state: Any) -> Tensor:
        """Return where the flow ends at 0 (:func:`half_step`); one evaluation."""
        return half_step(score, x, t)


def transport(
    score: Score,
    x: Tensor,
    t: float,
    s: float,
    solver: Solver | None = None,
    tolerance: float = 1e-4,
) -> Tensor:
    """Carry states along the probability flow from time t to time s, in either direction.

    Args:
        score: the score.
        x: states at t ``(batch, *event)``.
        t: where they are, in [0, T].
        s: where they go, in [0, T].
        solver: the integrator; None for the adaptive Adams method.
        tolerance: wanted error of each step, relative to 1 + |z|, z of unit variance.

    Returns:
        The states at s, shaped like ``x`` and in its dtype. A sample whose integration fails gives
        a ``RuntimeWarning`` and the best value there is.

    Example:
        >>> import torch
        >>> from scoresde import FunctionScore, VPSDE
        >>> score = FunctionScore(lambda x, t: -x, VPSDE())
        >>> transport(score, torch.ones(1, 2), 1e-5, 1.0)
        tensor([[1., 1.]])
    """
    flow = probability_flow(score, x.shape[1:], min(s, t), max(s, t))
    start, end = (flow.end, flow.start) if t > s else (flow.start, flow.end)
    solver = Adams() if solver is None else solver
    solution = solver.solve(flow.rhs(), flow.encode(x, start), start, end, tolerance=tolerance)
    failed = int((solution.status != int(Status.CONVERGED)).sum())
    if failed:
        behind = float((solution.reached - end).abs().max())
        warnings.warn(
            f"{failed} of {len(x)} samples did not arrive at t = {s:g} (the last is {behind:.3g} "
            "short in τ); check the score, or allow more evaluations",
            RuntimeWarning,
            stacklevel=2,
        )
    return flow.decode(solution.state, end).to(x.dtype)
