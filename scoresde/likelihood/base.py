r"""Log-densities with an error budget: what a method receives and what it returns.

The value is the density of the noised data at t_min, at the point x itself; it tends to that of the
data as t_min → 0. The result lists the contributions to its error separately, in nats: the noise of
the trace estimate, the error of the integration, and the approximation of the distribution at T.
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
from scoresde.solvers import Solver
from scoresde.traces import Trace


@dataclass(frozen=True)
class LikelihoodSettings:
    """What a method needs besides the points.

    Attributes:
        flow: the probability flow of the score.
        trace: the divergence estimator.
        solver: the integrator.
        tolerance: target error in bits per dimension.
        prior: the distribution at T, or None for the flow's own choice.
        rng: random numbers, one stream per point of the whole batch.
    """

    flow: ProbabilityFlowODE
    trace: Trace
    solver: Solver
    tolerance: float
    prior: Distribution | None
    rng: CounterRNG


class Method(ABC):
    """A method for the log-densities of points; members are frozen dataclasses.

    Example:
        >>> from scoresde import GaussianMixture, VPSDE, log_likelihood
        >>> @dataclass(frozen=True)
        ... class ClosedForm(Method):
        ...     "The density of a score that has one."
        ...
        ...     def __call__(self, settings, x, rows):
        ...         t_min = settings.flow.t_min
        ...         log_prob = settings.flow.score.select(rows).log_prob(x, t_min)
        ...         zero, one = torch.zeros(len(x)), torch.ones(len(x), dtype=torch.int64)
        ...         return Likelihood(
        ...             log_prob, zero, zero, zero, x, one, 0 * one, one > 0, t_min, x
        ...         )
        >>> mixture = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None], VPSDE())
        >>> log_likelihood(mixture, torch.zeros(1, 2), method=ClosedForm()).log_prob
        tensor([-1.8379])
    """

    @abstractmethod
    def __call__(self, settings: LikelihoodSettings, x: Tensor, rows: Tensor) -> Likelihood:
        """Return the likelihood of some rows.

        Args:
            settings: the flow of the score, and the objects that evaluate it.
            x: the points of these rows, ``(m, *event)``.
            rows: their indices in the whole batch ``(m,)``, which select random numbers and
                conditions.

        Returns:
            Log-densities and error estimates, one row per point.
        """


@dataclass(frozen=True)
class Likelihood:
    """Log-densities of a batch with estimates of their errors, per sample, in nats.

    Attributes:
        log_prob: log p_{t_min}(x) ``(batch,)``.
        standard_error: standard error from the probes of the trace, or from other random numbers of
            the method, ``(batch,)``; two standard errors are a 95 % interval even with few probes.
            0 if nothing is random, NaN if a single fixed probe leaves it unknown.
        solver_error: estimated error of the integration ``(batch,)``; NaN if the solver gives none,
            infinite where it did not reach the end.
        prior_mismatch: log-density of the latent under the moment-matched Gaussian at T less that
            under the SDE's own prior ``(batch,)``: a lower bound on the error of every likelihood
            that uses the latter. NaN if the score has no moments.
        latent: the state at T at the end of the flow from x, ``(batch, *event)``.
        evaluations: evaluations of the score ``(batch,)``, int64.
        divergences: evaluations that included a divergence ``(batch,)``, int64.
        converged: whether the integration reached T with an estimated error of at most ten times
            the tolerance ``(batch,)`` (the estimate is an upper bound, often far above the true
            error). Where false, log_prob is the best value available. Off the data an exact trace
            helps, since it removes the stiffness: ``trace=ExactTrace()``, up to 1024 dimensions.
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
        """Return −log₂ p per dimension in the units of the raw data, ``(batch,)``.

        Args:
            levels: number of levels of the (dequantized) integer data, None for continuous data.
            scale: total width of the levels in the units of the model: 2 for data in [−1, 1].

        Returns:
            Bits per dimension ``(batch,)``.

        Raises:
            ValueError: if x appears not to be dequantized: a density at such points bounds no
                probability.

        References:
            Theis et al., *A note on the evaluation of generative models*, 2016, arXiv:1511.01844.
        """
        points = check_dequantized("x", self.points)
        return bits_per_dim(self.log_prob, points.shape[1:], levels=levels, scale=scale)

    def concatenate(self, others: Sequence[Self]) -> Self:
        """Return these rows followed by those of ``others``, of the same settings."""
        parts = (self, *others)
        names = [f.name for f in fields(Likelihood) if f.name != "t_min"]
        rows: dict[str, Any] = {n: torch.cat([getattr(p, n) for p in parts]) for n in names}
        return replace(self, **rows)

    @property
    def error(self) -> Tensor:
        """Two standard errors plus the solver's error, in nats ``(batch,)``."""
        return 2 * self.standard_error + self.solver_error

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.log_prob)

    def __repr__(self) -> str:
        """Return the mean and the error budget."""
        nats = self.log_prob.detach().double().mean()
        bits = bits_per_dim(nats, self.points.shape[1:])
        return (
            f"Likelihood({len(self)} samples, mean log p = {nats:.4f} nats = {bits:.4f} bits/dim "
            f"at t = {self.t_min:g}; largest standard error {self.standard_error.max():.2g}, "
            f"solver error {self.solver_error.max():.2g}, {int(self.converged.sum())} converged, "
            f"{self.evaluations.double().mean():.1f} evaluations)"
        )
