r"""Data → log p, with an error budget: the door, and what comes out of it.

The value is the density of the noised data at t_min, taken at the point x itself; it tends to that
of the data as t_min → 0. What separates the returned number from it is told apart, in nats: the
noise of the trace estimate, the error of the integration, and the stand-in used for the law at T.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import Distribution

from scoresde._core.counter_rng import CounterRNG
from scoresde.dequantization import bits_per_dim, check_dequantized
from scoresde.flow.probability_flow import ProbabilityFlowODE
from scoresde.likelihood.checkpointing import evaluate
from scoresde.solvers import Solver
from scoresde.solvers.base import FieldEvaluation
from scoresde.traces import Trace


@dataclass(frozen=True)
class LikelihoodSettings:
    """Everything a method needs besides the points.

    Attributes:
        flow: the probability flow of the score, in its best variables.
        trace: how divergences are told.
        solver: how paths are integrated.
        tolerance: wanted error in bits per dimension.
        prior: the law at T, or None for the flow's own choice.
        streams: one random stream per point of the whole batch.
    """

    flow: ProbabilityFlowODE
    trace: Trace
    solver: Solver
    tolerance: float
    prior: Distribution | None
    rng: CounterRNG

    def evaluate(
        self, tau: Tensor, z: Tensor, rows: Tensor, counter: Tensor, local_coordinates: bool = False
    ) -> FieldEvaluation:
        """Evaluate the flow and its divergence at some rows' points.

        Args:
            tau: ``(m,)``, float64.
            z: ``(m, d)``, float64.
            rows: which rows of the whole batch they are, ``(m,)``.
            node: the position of their streams, ``(m,)``: another one, fresh probes.
            framed: whether to give the frame of the flow where the trace tells it.
        """
        return evaluate(
            self.flow, tau, z, rows, self.trace, self.rng.at(rows, counter), local_coordinates
        )


class Method(ABC):
    """A way from points to log-densities; members are frozen dataclasses."""

    @abstractmethod
    def __call__(self, query: LikelihoodSettings, x: Tensor, rows: Tensor) -> Likelihood:
        """Return the likelihood of some rows.

        Args:
            query: the score's flow and how to follow it.
            x: the points of these rows, ``(m, *event)``.
            rows: which rows of the whole batch they are, ``(m,)``; streams and conditions are
                theirs.
        """


@dataclass(frozen=True)
class Likelihood:
    """Log-densities of a batch and what is known of their errors, per sample, in nats.

    Attributes:
        log_prob: log p_{t_min}(x) ``(batch,)``.
        standard_error: standard error from the trace's probes, or from what else the method draws,
            ``(batch,)``, of which two cover 95 %, few as the probes may be; 0 where
            nothing is, NaN if a solver with a single fixed probe can't tell.
        solver_error: estimated error of the integration ``(batch,)``; NaN if the solver gives none,
            infinite where it did not arrive.
        prior_mismatch: log-density of the latent under the moment-matched law at T less that under
            the SDE's own prior ``(batch,)``: what the choice of the terminal law is worth, and the
            floor under every likelihood that uses the latter. NaN if the score has no moments.
        latent: the state at T the flow takes x to, ``(batch, *event)``.
        evaluations: evaluations of the score ``(batch,)``.
        divergences: evaluations that came with a divergence ``(batch,)``.
        converged: whether the integration arrived, with an estimated error of at most ten times the
            tolerance ``(batch,)`` (the estimate is an upper bound, often far above the true error);
            where not, log_prob is the best value there is. Off the data an exact trace helps, for
            it takes the stiffness out: ``trace=ExactTrace()``, up to 1024 dimensions.
        t_min: the time at which the density is taken; see :func:`log_likelihood`.
        points: x itself ``(batch, *event)``.
    """

    log_prob: Tensor
    standard_error: Tensor
    solver_error: Tensor
    prior_mismatch: Tensor
    latent: Tensor
    evaluations: Tensor
    divergences: Tensor
    converged: Tensor
    t_min: float
    points: Tensor

    def bits_per_dim(
        self, *, levels: int | None = None, scale: float | Tensor | None = None
    ) -> Tensor:
        """Return −log₂ p per dimension in the unit of the raw data, ``(batch,)``.

        Args:
            levels: number of levels of the (dequantized) integer data, None for continuous data.
            scale: width of all levels together in the model's coordinates: 2 for data in [−1, 1].

        Raises:
            ValueError: if x looks as if it had not been dequantized: a density at such points
                bounds no probability.

        References:
            Theis et al., *A note on the evaluation of generative models*, 2016, arXiv:1511.01844.
        """
        points = check_dequantized("x", self.points)
        return bits_per_dim(self.log_prob, points.shape[1:], levels=levels, scale=scale)

    def joined(self, others: Sequence[Self]) -> Self:
        """Return these rows, and behind them those of ``others``, answers to the same query."""
        parts = (self, *others)
        names = [f.name for f in fields(Likelihood) if f.name != "t_min"]
        rows: dict[str, Any] = {n: torch.cat([getattr(p, n) for p in parts]) for n in names}
        return replace(self, **rows)

    @property
    def error(self) -> Tensor:
        """Two standard errors and the solver's error together, in nats ``(batch,)``."""
        return 2 * self.standard_error + self.solver_error

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.log_prob)

    def __repr__(self) -> str:
        """Show the mean and the budget."""
        nats = self.log_prob.detach().double().mean()
        bits = bits_per_dim(nats, self.points.shape[1:])
        return (
            f"Likelihood({len(self)} samples, mean log p = {nats:.4f} nats = {bits:.4f} bits/dim "
            f"at t = {self.t_min:g}; largest standard error {self.standard_error.max():.2g}, "
            f"solver error {self.solver_error.max():.2g}, {int(self.converged.sum())} converged, "
            f"{self.evaluations.double().mean():.1f} evaluations)"
        )
