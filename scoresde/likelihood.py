r"""Data → log p, with an error budget.

Along the probability flow, told in the standardised variable z of :mod:`scoresde.coordinates`,

    log p_{t_min}(x) = log p_z(z_T) + ∫ ∇·(dz/dτ) dτ − Σ log S_x(t_min),

one initial-value problem per sample, with the divergence beside it. The value is the density of the
noised data at t_min, taken at the point x itself; it tends to that of the data as t_min → 0. What
separates the returned number from it is told apart, in nats: the noise of the trace estimate, the
error of the integration, and the stand-in used for the law at T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.distributions import Distribution
from tqdm import tqdm

from scoresde._checks import check_between, check_integer, check_positive, check_state
from scoresde._streams import Streams
from scoresde.coordinates import Flow, flow_of
from scoresde.dequantization import bits_per_dim, check_dequantized
from scoresde.score import Score
from scoresde.solvers import Adams, Solver, Status
from scoresde.solvers.base import Evaluation
from scoresde.traces import ExactTrace, Hutchinson, Trace

_EXACT_UP_TO = 64
"""Dimensions up to which the exact trace costs less than enough probes for the default error."""

_SOLVER_SHARE = 0.1
"""Tolerance of the solver's steps as a fraction of the wanted error of log p per dimension."""

_LENIENCE = 10.0
"""How far the error estimate, an upper bound, may exceed the tolerance before a sample is flagged."""

__all__ = ["Likelihood", "log_likelihood"]


@dataclass(frozen=True)
class Likelihood:
    """Log-densities of a batch and what is known of their errors, per sample, in nats.

    Attributes:
        log_prob: log p_{t_min}(x) ``(batch,)``.
        standard_error: standard error from the trace's probes ``(batch,)``; 0 for an exact trace, NaN
            if a solver with a single fixed probe can't tell.
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
            where not, log_prob is the best value there is.
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
            ValueError: if ``levels`` is given and x looks as if it had not been dequantized.

        References:
            Theis et al., *A note on the evaluation of generative models*, 2016, arXiv:1511.01844.
        """
        if levels is not None:
            check_dequantized("x", self.points)
        event_shape = self.points.shape[1:]
        return bits_per_dim(self.log_prob, event_shape, levels=levels, scale=scale)

    @property
    def error(self) -> Tensor:
        """Two standard errors and the solver's error together, in nats ``(batch,)``."""
        return 2 * self.standard_error + self.solver_error

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.log_prob)

    def __repr__(self) -> str:
        """Show the mean and the budget."""
        n, d = len(self), max(1, math.prod(self.points.shape[1:]))
        mean = self.log_prob.double().mean()
        return (
            f"Likelihood({n} samples, mean log p = {mean:.4f} nats = {-mean / d / math.log(2):.4f} "
            f"bits/dim at t = {self.t_min:g}; largest standard error "
            f"{self.standard_error.max():.2g}, solver error {self.solver_error.max():.2g}, "
            f"{int(self.converged.sum())} converged, "
            f"{self.evaluations.double().mean():.1f} evaluations)"
        )


def log_likelihood(
    score: Score,
    x: Tensor,
    *,
    trace: Trace | None = None,
    solver: Solver | None = None,
    tolerance: float = 1e-3,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    prior: Distribution | None = None,
    t_min: float | None = None,
    progress: bool = False,
) -> Likelihood:
    r"""Compute log p(x) by the probability flow, with an error budget for every sample.

        log p_{t_min}(x) = log p_T(x_T) + ∫_{t_min}^{T} ∇·(f x − ½ g² s) dt.

    A sample's value does not depend on its batch-mates: each has its own steps and its own probes.

    Args:
        score: a score that knows its diffusion.
        x: points ``(batch, *event)``, floating point and finite; read as points of p at t_min.
        trace: how the divergence is told; None for exact up to 64 dimensions and two Rademacher
            probes, fresh at every evaluation, above.
        solver: the integrator; None for the adaptive Adams method.
        tolerance: wanted error of log p from the integration, in bits per dimension; where log p is
            larger than one bit per dimension, as far off the data, relative to it.
        generator: source of the probes; None for PyTorch's global one.
        batch_size: how many samples to integrate together, to bound memory; None for all.
        prior: the law at T, with the event's shape; None for the Gaussian with the moments of x_T where
            the score knows those of its data, else the SDE's own prior.
        t_min: the time at which x is taken to be a sample, the SDE's own ``t_min`` by default. There
            the data are blurred by σ(t_min): the value is the density of the blurred law, finite even
            for data on a manifold, where it grows without bound as t_min → 0.
        progress: show a bar.

    Returns:
        A :class:`Likelihood`; its tensors have the dtype and the device of ``x``.

    Raises:
        TypeError: if ``x`` is not a floating-point tensor, or ``score`` not a Score.
        ValueError: if ``x`` is empty or not finite, or a number is out of range.

    Example:
        >>> from scoresde import GaussianMixture, VPSDE
        >>> mixture = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None], VPSDE())
        >>> result = log_likelihood(mixture, torch.zeros(1, 2))
        >>> result.log_prob, result.converged
        (tensor([-1.8379]), tensor([True]))

    References:
        Song et al. 2021, arXiv:2011.13456, eq. 39 and section D.2; Chen et al., *Neural ordinary
        differential equations*, 2018, arXiv:1806.07366, theorem 1; Skilling 1989 and Hutchinson 1990.
    """
    if not isinstance(score, Score):
        raise TypeError(
            f"score: expected a Score, got {type(score).__name__}; wrap a network in "
            "ScoreModel(network, sde), a function in FunctionScore(function, sde)"
        )
    check_state("x", x)
    check_positive("tolerance", tolerance)
    if t_min is not None:
        check_between("t_min", t_min, 0.0, score.sde.T)
    event_shape = x.shape[1:]
    if trace is None:
        trace = ExactTrace() if math.prod(event_shape) <= _EXACT_UP_TO else Hutchinson(probes=2)
    flow = flow_of(score, event_shape, t_min)
    solver = Adams() if solver is None else solver
    size = len(x) if batch_size is None else check_integer("batch_size", batch_size, minimum=1)
    streams = Streams.draw(len(x), generator, x.device)
    parts = []
    with torch.no_grad(), tqdm(total=len(x), disable=not progress, unit="sample") as bar:
        for start in range(0, len(x), size):
            rows = torch.arange(start, min(start + size, len(x)), device=x.device)
            parts.append(_flow_likelihood(flow, x, rows, trace, solver, tolerance, streams, prior))
            bar.update(len(rows))
    return _concatenate(parts)


def _flow_likelihood(
    flow: Flow,
    x: Tensor,
    batch: Tensor,
    trace: Trace,
    solver: Solver,
    tolerance: float,
    streams: Streams,
    prior: Distribution | None,
) -> Likelihood:
    """The likelihood of some rows of ``x``, by the flow."""
    points = x[batch]

    def field(tau: Tensor, z: Tensor, rows: Tensor, node: Tensor) -> Evaluation:
        chosen = batch[rows]
        return flow.slope(tau, z, chosen, trace, streams.at(chosen, node))

    z = flow.enter(points, flow.start)
    d = flow.dimension
    nats = tolerance * math.log(2)
    solution = solver.solve(
        field, z, flow.start, flow.end, tolerance=_SOLVER_SHARE * nats, noisy=not trace.exact
    )
    arrived = solution.status == int(Status.CONVERGED)
    latent = flow.leave(solution.state, flow.end)
    terminal, mismatch = flow.terminal(solution.state, latent, prior)
    log_prob = terminal + solution.integral - flow.log_volume(flow.start)
    error = torch.where(arrived, solution.error, torch.inf)
    allowed = tolerance * torch.maximum(log_prob.abs(), log_prob.new_tensor(d * math.log(2)))
    return Likelihood(
        log_prob=log_prob.to(x.dtype),
        standard_error=solution.standard_error.to(x.dtype),
        solver_error=error.to(x.dtype),
        prior_mismatch=mismatch.to(x.dtype),
        latent=latent.to(x.dtype),
        evaluations=solution.evaluations,
        divergences=solution.evaluations,
        converged=arrived & ~(error > _LENIENCE * allowed) & log_prob.isfinite(),
        t_min=flow.t_min,
        points=points,
    )


def _concatenate(parts: Sequence[Likelihood]) -> Likelihood:
    tensors = {
        f.name: torch.cat([getattr(part, f.name) for part in parts])
        for f in fields(Likelihood)
        if f.name != "t_min"
    }
    return replace(parts[0], **tensors)
