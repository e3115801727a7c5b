r"""The probability flow of a score as an initial-value problem.

In the coordinates of :mod:`scoresde.flow.coordinates` the flow of a Gaussian SDE is

    dz/dτ = g (Eᵀε̂ + b u),      u = Eᵀ(x − αm) = αS z.

With S = √(c + ρ²), the default, Gaussian data are stationary and the solver integrates only what
the data have beyond a Gaussian; with τ = atan(ρ/s), s the standard deviation of the data, the
interval from ρ = 0 to ρ = ∞ has length π/2.

Along the flow d log p_z/dτ = −∇_z · (dz/dτ), and p_x(x) = p_z(z)/∏ αS. The divergence is invariant
under the scaling by αS; it is taken of αS dz/dτ as a function of u, whose Jacobian is symmetric.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from scoresde._core.counter_rng import CounterRNG
from scoresde._core.shapes import expand, flatten
from scoresde.flow.checkpointing import Rows, checkpointed
from scoresde.flow.coordinates import DataCoordinates, FlowCoefficients, Standardized
from scoresde.flow.linearization import DenoiserLinearization
from scoresde.scores.base import Score
from scoresde.sdes import GaussianSDE
from scoresde.sdes.gaussian import InverseLogSNR
from scoresde.solvers.base import Field, FieldEvaluation
from scoresde.solvers.local_linearization import IDENTITY, EigenCoordinates
from scoresde.traces import Trace

MAX_JACOBIAN_DIMENSION = 1024
"""Largest dimension in which the Jacobian and its eigenvectors are cheap beside the trace."""

_NODES = 2**14
"""Nodes of the table that inverts λ(t); a fine one, since every evaluation uses it."""


class _Flow(NamedTuple):
    """A vector field with a symmetric Jacobian, at the states ``u`` ``(m, d)``."""

    field: Callable[[Tensor], Tensor]
    u: Tensor
    finish: Callable[[Tensor, Tensor, Tensor | None], FieldEvaluation]


class ProbabilityFlowODE(ABC):
    """The probability flow dz/dτ of a score, with z of shape ``(batch, d)``.

    Attributes:
        score: the score.
        event_shape: shape of one sample.
        start: τ at the data end of the interval.
        end: τ at its noise end.
        t_min: time at the data end.
    """

    score: Score
    start: float
    end: float
    t_min: float
    event_shape: tuple[int, ...]

    @property
    def dimension(self) -> int:
        """Number of coordinates of one sample."""
        return math.prod(self.event_shape)

    @abstractmethod
    def encode(self, x: Tensor, tau: float) -> Tensor:
        """Return z ``(batch, d)`` in float64 for the state ``x`` ``(batch, *event)`` at τ."""

    @abstractmethod
    def decode(self, z: Tensor, tau: float) -> Tensor:
        """Return the state x ``(batch, *event)`` in float64 for ``z`` ``(batch, d)`` at τ."""

    @abstractmethod
    def log_volume(self, tau: float) -> float:
        """Return log |det ∂x/∂z| at τ, so that log p_x = log p_z − log_volume."""

    @abstractmethod
    def _at(self, tau: Tensor, z: Tensor, rows: Rows) -> _Flow:
        """Return the vector field of some rows at their times and states."""

    def evaluate(
        self,
        tau: Tensor,
        z: Tensor,
        rows: Rows,
        trace: Trace | None = None,
        rng: CounterRNG | None = None,
        differentiable: bool = False,
        local_coordinates: bool = False,
    ) -> FieldEvaluation:
        """Evaluate the flow for some rows of the batch, each at a time of its own.

        Args:
            tau: ``(m,)``, float64.
            z: ``(m, d)``, float64.
            rows: the rows of the batch that these are, for conditions held per sample.
            trace: the estimator of the divergence; None for none.
            rng: random numbers of the rows.
            differentiable: whether to keep the graph.
            local_coordinates: whether to return the local linearization, if the trace yields the
                Jacobian.

        Returns:
            dz/dτ, its divergence, ∇_z log p_z and the local coordinates.
        """
        flow = self._at(tau, z, rows)
        if trace is None or rng is None:
            return flow.finish(flow.field(flow.u), z.new_zeros(len(z), 0), None)
        if local_coordinates and z.shape[1] <= MAX_JACOBIAN_DIMENSION:
            return flow.finish(
                *trace.linearize(flow.field, flow.u, rng, differentiable=differentiable)
            )
        return flow.finish(*trace(flow.field, flow.u, rng, differentiable=differentiable), None)

    def rhs(
        self,
        trace: Trace | None = None,
        rng: CounterRNG | None = None,
        rows: Tensor | None = None,
        local_coordinates: bool = False,
    ) -> Field:
        """Return the right-hand side dz/dτ for a solver, with its divergence as the integrand.

        Where gradients are enabled, evaluations are recomputed in the backward pass
        (:mod:`scoresde.flow.checkpointing`). Gradients pass through values, not through local
        coordinates, so that these are not used then.

        Args:
            trace: the estimator of the divergence; None for none.
            rng: random numbers of the whole batch.
            rows: the rows of the batch that the solver integrates; all if None.
            local_coordinates: whether to return local linearizations (see :meth:`evaluate`).

        Returns:
            A :data:`~scoresde.solvers.base.Field`.
        """

        def field(tau: Tensor, z: Tensor, index: Tensor, counter: Tensor) -> FieldEvaluation:
            own = index if rows is None else rows[index]
            drawn = None if rng is None else rng.at(own, counter)
            if not torch.is_grad_enabled():
                return self.evaluate(tau, z, own, trace, drawn, False, local_coordinates)

            def evaluate(z: Tensor, part: Rows, differentiable: bool) -> Sequence[Tensor]:
                of_part = None if drawn is None else drawn.at(part, drawn.counter[part])
                found = self.evaluate(tau[part], z, own[part], trace, of_part, differentiable)
                assert found.gradient is not None  # only other fields lack it
                return found.velocity, found.integrand, found.gradient

            velocity, divergence, gradient = checkpointed(evaluate, self.score, z)
            return FieldEvaluation(velocity, divergence, gradient)

        return field

    def terminal(
        self, z: Tensor, latent: Tensor, prior: Distribution | None
    ) -> tuple[Tensor, Tensor]:
        """Return log p_z at the noise end, and the effect of matching its moments, ``(batch,)``.

        Args:
            z: the end of the flow, ``(batch, d)``.
            latent: the same as a state x ``(batch, *event)``.
            prior: the distribution at T; None for the moment-matched Gaussian where moments are
                known, else the SDE's own.

        Returns:
            log p_z, and how much it exceeds that of the SDE's own prior if the moments are matched
            (NaN if they are unknown).
        """
        volume = self.log_volume(self.end)
        known = self.score.moments.known
        given = None if prior is None else prior.log_prob(latent) + volume
        if given is not None and not known:
            return given, torch.full_like(z[:, 0], torch.nan)
        own = self.score.sde.prior(self.event_shape, dtype=latent.dtype, device=latent.device)
        standard = own.log_prob(latent) + volume
        if not known:
            return standard, torch.full_like(standard, torch.nan)
        matched = standard_normal(z)
        return matched if given is None else given, matched - standard


class GaussianProbabilityFlow(ProbabilityFlowODE):
    """The flow of a Gaussian SDE in standardized coordinates, τ = atan(ρ/s).

    Args:
        score: the score, whose moments define m, c and E.
        event_shape: shape of one sample.
        t_min: data end of the path, the SDE's own by default.
        t_max: noise end of the path, the SDE's T by default.
    """

    def __init__(
        self,
        score: Score,
        event_shape: Sequence[int],
        t_min: float | None = None,
        t_max: float | None = None,
    ) -> None:
        self.score = score
        self.sde: GaussianSDE = score.sde
        self.moments = score.moments
        self.event_shape = tuple(event_shape)
        self.moments.check_event("x", self.event_shape)
        std, variance = self.moments.std, self.moments.variance
        self.coordinates = DataCoordinates(Standardized(), std, variance)
        self.t_min = self.sde.t_min if t_min is None else t_min
        self.t_max = self.sde.T if t_max is None else t_max
        self._time_at = InverseLogSNR(self.sde, _NODES)
        self.start, self.end = self.angle(self.t_min), self.angle(self.t_max)

    def angle(self, t: float) -> float:
        """Return τ = atan(ρ(t)/s)."""
        return float(self.coordinates.time(torch.exp(-self.sde.half_logsnr(self.sde.interior(t)))))

    def time(self, tau: Tensor) -> Tensor:
        """Return the time t ``(m,)`` at τ ``(m,)``, in [t_min, t_max]."""
        half_logsnr = -torch.log(self.coordinates.ratio(tau))
        return self._time_at(half_logsnr).clamp(self.t_min, self.t_max)

    def encode(self, x: Tensor, tau: float) -> Tensor:
        alpha, sigma = self._end(tau, x.device)
        return self.moments.whiten(x.double(), alpha, sigma)

    def decode(self, z: Tensor, tau: float) -> Tensor:
        alpha, sigma = self._end(tau, z.device)
        return self.moments.unwhiten(z, alpha, sigma, self.event_shape)

    def log_volume(self, tau: float) -> float:
        alpha, sigma = self._end(tau, self.moments.variance.device)
        return float(self.moments.log_det(alpha, sigma, self.dimension))

    def _at(self, tau: Tensor, z: Tensor, rows: Rows) -> _Flow:
        time = self.time(tau)
        log_alpha, log_sigma = self.sde.log_alpha(time), self.sde.log_sigma(time)
        alpha, sigma, ratio = log_alpha.exp(), log_sigma.exp(), (log_sigma - log_alpha).exp()
        c = self.coordinates.coefficients(alpha, sigma, ratio)
        score, moments, shape = self.score.select(rows), self.moments, (-1, *self.event_shape)
        mean = alpha.unsqueeze(1) * moments.mean.reshape(-1)
        speed = sigma.unsqueeze(1) * c.rate  # αS g

        def field(u: Tensor) -> Tensor:
            x = (moments.rotate_back(u) + mean).reshape(shape)
            return speed * (moments.rotate(flatten(score.noise(x, time))) + c.lead * u)

        u = c.scale * z

        def finish(value: Tensor, divergence: Tensor, jacobian: Tensor | None) -> FieldEvaluation:
            noise = value / speed - c.lead * u
            gradient = -c.scale / sigma.unsqueeze(1) * noise  # ∇_z log p_z = −(αS/σ) Eᵀε̂
            local = (
                IDENTITY
                if jacobian is None
                else self._linearize(c, u, noise, jacobian, alpha, sigma)
            )
            return FieldEvaluation(value / c.scale, divergence, gradient, local)

        return _Flow(field, u, finish)

    def _linearize(
        self,
        c: FlowCoefficients,
        u: Tensor,
        noise: Tensor,
        jacobian: Tensor,
        alpha: Tensor,
        sigma: Tensor,
    ) -> DenoiserLinearization:
        """Return the local coordinates, from ε̂ and the Jacobian of αS dz/dτ with respect to u."""
        alpha, sigma = alpha.unsqueeze(1), sigma.unsqueeze(1)
        drift = (1 + c.lead * sigma).expand_as(u)  # A
        denoised = (u - sigma * noise) / alpha
        sensitivity = torch.diag_embed(drift) - jacobian / c.rate.unsqueeze(2)
        return DenoiserLinearization.at(
            self.coordinates, sigma / alpha, u / alpha, denoised, sensitivity
        )

    def _end(self, tau: float, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return α and σ at τ, exactly at the two ends."""
        ends = {self.start: self.t_min, self.end: self.t_max}
        if tau in ends:
            time = torch.tensor(ends[tau], dtype=torch.float64, device=device)
        else:
            time = self.time(torch.tensor([tau], dtype=torch.float64, device=device))[0]
        return self.sde.log_alpha(time).exp(), self.sde.log_sigma(time).exp()


class GeneralProbabilityFlow(ProbabilityFlowODE):
    """The flow of a general SDE, dx/dt = f − ½ g² s, in its own variables: z = x, τ = t.

    Args:
        score: the score.
        event_shape: shape of one sample.
        t_min: data end of the path, the SDE's own by default.
        t_max: noise end of the path, the SDE's T by default.
    """

    def __init__(
        self,
        score: Score,
        event_shape: Sequence[int],
        t_min: float | None = None,
        t_max: float | None = None,
    ) -> None:
        self.score = score
        self.event_shape = tuple(event_shape)
        self.t_min = score.sde.t_min if t_min is None else t_min
        self.start = self.t_min
        self.end = score.sde.T if t_max is None else t_max

    def encode(self, x: Tensor, tau: float) -> Tensor:
        return flatten(x.double())

    def decode(self, z: Tensor, tau: float) -> Tensor:
        return z.reshape(z.shape[0], *self.event_shape)

    def log_volume(self, tau: float) -> float:
        return 0.0

    def _at(self, tau: Tensor, z: Tensor, rows: Rows) -> _Flow:
        score, shape = self.score.select(rows), (-1, *self.event_shape)
        half = 0.5 * score.sde.diffusion(tau).square()

        def field(z: Tensor) -> Tensor:
            x = z.reshape(shape)
            return flatten(score.sde.drift(x, tau) - expand(half, x) * score(x, tau))

        def finish(value: Tensor, divergence: Tensor, jacobian: Tensor | None) -> FieldEvaluation:
            with torch.set_grad_enabled(value.requires_grad):
                drift = flatten(score.sde.drift(z.reshape(shape), tau))
            local = IDENTITY if jacobian is None else EigenCoordinates.from_jacobian(jacobian)
            gradient = (drift - value) / half.unsqueeze(1)
            return FieldEvaluation(value, divergence, gradient, local)

        return _Flow(field, z, finish)


def standard_normal(z: Tensor) -> Tensor:
    """Return log N(z; 0, I) ``(batch,)``."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)


def probability_flow(
    score: Score,
    event_shape: Sequence[int],
    t_min: float | None = None,
    t_max: float | None = None,
) -> ProbabilityFlowODE:
    """Return the probability flow of a score, in standardized coordinates if its SDE is Gaussian.

    Args:
        score: the score.
        event_shape: shape of one sample.
        t_min: data end of the path, the SDE's own by default.
        t_max: noise end of the path, the SDE's T by default.

    Returns:
        The initial-value problem.
    """
    kind = GaussianProbabilityFlow if score.sde.gaussian else GeneralProbabilityFlow
    return kind(score, event_shape, t_min, t_max)
