r"""The probability flow in variables where its Gaussian part is exact.

With y = x/α, ρ = σ/α and D(y; ρ) = E[x_0 | y], every Gaussian diffusion has the same flow,
dy/d ln ρ = y − D. If the data have mean m and covariance E diag(c) Eᵀ, write

    w = Eᵀ(y − m),     S = √(c + ρ²),     z = w/S,     A = c/(c + ρ²),     R = Eᵀ(D − m) − A w.

Then dz/d ln ρ = −R/S: Gaussian data stand still, and what is left for the solver is what the data
have beyond a Gaussian. In the angle θ = atan(ρ/b), with b the scale of the data, the whole way from
ρ = 0 to ρ = ∞ is an interval of length π/2, and d ln ρ/dθ = (ρ² + b²)/(bρ).

Along the flow d log p_z/dθ = −∇_z · (dz/dθ), and p_x(x) = p_z(z)/∏ S_x with S_x = αS. The
divergence is invariant under the scaling by S, ∇_z·(dz/dθ) = ∇_w·h with h = S dz/dθ = −R d ln
ρ/dθ, and is taken of h, whose Jacobian is symmetric.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributions import Distribution

from scoresde._core.counter_rng import CounterRNG
from scoresde._core.shapes import expand, flatten
from scoresde.flow.coordinates import Standardized
from scoresde.scores import Score
from scoresde.sdes import GaussianSDE
from scoresde.sdes.gaussian import Inverse
from scoresde.solvers.base import FieldEvaluation
from scoresde.solvers.local_linearization import (
    IDENTITY,
    EigenCoordinates,
    LocalCoordinates,
    eigenpairs,
)
from scoresde.traces import Trace
from scoresde.traces.base import VectorField

MAX_JACOBIAN_DIMENSION = 1024
"""Dimensions up to which the Jacobian and its spectrum are cheap beside the products it takes."""


_NODES = 2**14
"""Values of λ between which times are looked for: many, for they are asked at every step."""

_WIDEST = 10.0
"""Largest C, in units of the largest variance of the data, that ∂D/∂w is read as telling."""


class ProbabilityFlowODE(ABC):
    """The probability flow of a score as an initial-value problem dz/dτ, z of shape ``(batch, d)``.

    Attributes:
        start: τ at the data end of the interval.
        end: τ at its noise end.
        event_shape: shape of one sample.
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

    def terminal(
        self, z: Tensor, latent: Tensor, prior: Distribution | None
    ) -> tuple[Tensor, Tensor]:
        """Return log p_z at the noise end, and what matching its moments is worth, ``(batch,)``.

        Args:
            z: where the flow ends, ``(batch, d)``.
            latent: the same as a state x ``(batch, *event)``.
            prior: the law at T; None for the moment-matched Gaussian where moments are known, else
                the SDE's own.
        """
        volume = self.log_volume(self.end)
        if prior is not None and not self.score.moments.known:
            return prior.log_prob(latent) + volume, torch.full_like(z[:, 0], torch.nan)
        own = self.score.sde.prior(self.event_shape, dtype=latent.dtype, device=latent.device)
        standard = own.log_prob(latent) + volume
        if not self.score.moments.known:
            return standard, torch.full_like(standard, torch.nan)
        matched = standard_normal(z)
        terminal = matched if prior is None else prior.log_prob(latent) + volume
        return terminal, matched - standard

    @abstractmethod
    def evaluate(
        self,
        tau: Tensor,
        z: Tensor,
        rows: Tensor | slice,
        trace: Trace | None = None,
        rng: CounterRNG | None = None,
        differentiable: bool = False,
        local_coordinates: bool = False,
    ) -> FieldEvaluation:
        """Evaluate the flow for some rows of the batch, at a time of their own each.

        Args:
            tau: ``(m,)``, float64.
            z: ``(m, d)``, float64.
            rows: which rows of the batch they are, for conditions held per sample.
            trace: the estimator of the divergence; None for none.
            streams: the rows' random streams, at the position to draw from.
            differentiable: keep the graph.
            framed: give the frame of the flow too, where the trace hands out the Jacobian.
        """


class GaussianProbabilityFlow(ProbabilityFlowODE):
    """The flow of a Gaussian diffusion in the standardised variable z and the angle θ.

    Args:
        score: the score, whose moments fix m, c and E.
        event_shape: shape of one sample.
        t_min: data end of the path, the SDE's own by default.
        t_max: noise end of the path, the SDE's T by default.
        pivot: b, the scale of the angle; the data's root mean variance by default.
    """

    def __init__(
        self,
        score: Score,
        event_shape: Sequence[int],
        t_min: float | None = None,
        t_max: float | None = None,
        pivot: float | None = None,
    ) -> None:
        self.score = score
        self.sde: GaussianSDE = score.sde
        self.moments = score.moments
        self.event_shape = tuple(event_shape)
        self.moments.check_event("x", self.event_shape)
        self.coordinates = Standardized(self.moments.std if pivot is None else pivot)
        self.t_min = self.sde.t_min if t_min is None else t_min
        self.t_max = self.sde.T if t_max is None else t_max
        self._time_at = Inverse(self.sde, _NODES)
        self.start, self.end = self.angle(self.t_min), self.angle(self.t_max)

    def angle(self, t: float) -> float:
        """Return θ = atan(ρ(t)/b)."""
        return float(self.coordinates.time(torch.exp(-self.sde.half_logsnr(self.sde.interior(t)))))

    def time(self, tau: Tensor) -> Tensor:
        """Return the diffusion time t at the angle θ, in [t_min, t_max]."""
        half_logsnr = -torch.log(self.coordinates.ratio(tau))
        time = self._time_at(half_logsnr.reshape(-1)).reshape(tau.shape)
        return time.clamp(self.t_min, self.t_max)

    def encode(self, x: Tensor, tau: float) -> Tensor:
        """Return z = Eᵀ(x − αm)/√(α²c + σ²)."""
        alpha, sigma = self._scales(self._at(tau, x.device))
        return self.moments.whiten(x.double(), alpha, sigma)

    def decode(self, z: Tensor, tau: float) -> Tensor:
        """Return x = αm + E z √(α²c + σ²)."""
        alpha, sigma = self._scales(self._at(tau, z.device))
        return self.moments.colour(z, alpha, sigma, self.event_shape)

    def log_volume(self, tau: float) -> float:
        """Return Σ log √(α²c + σ²)."""
        alpha, sigma = self._scales(self._at(tau, self.moments.variance.device))
        return float(self.moments.log_det(alpha, sigma, self.dimension))

    def evaluate(
        self,
        tau: Tensor,
        z: Tensor,
        rows: Tensor | slice,
        trace: Trace | None = None,
        rng: CounterRNG | None = None,
        differentiable: bool = False,
        local_coordinates: bool = False,
    ) -> FieldEvaluation:
        """Evaluate dz/dθ = −(R/S) d ln ρ/dθ, its divergence and ∇_z log p_z."""
        time = self.time(tau)
        alpha, sigma = self._scales(time)
        ratio = (sigma / alpha).unsqueeze(1)
        variance = self.moments.variance
        kept, rate = self.coordinates.slope(ratio, variance)
        score = self.score.select(rows)

        def field(w: Tensor) -> Tensor:
            y = self.moments.rotate_back(w) + self.moments.mean.reshape(-1)
            x = expand(alpha, y) * y
            denoised = flatten(score.denoised(x.reshape(-1, *self.event_shape), time))
            return kept * w - rate * self.moments.rotate(denoised - self.moments.mean.reshape(-1))

        scale = self.coordinates.scale(ratio, variance)
        w = scale * z
        value, divergence, jacobian = _evaluate(
            field, w, trace, rng, differentiable, local_coordinates
        )
        # ∇_y log p = (D − y)/ρ² = (R − (1 − A) w)/ρ², with 1 − A = ρ²/(c + ρ²)
        gradient = -scale * value / (rate * ratio**2) - z
        local: LocalCoordinates = IDENTITY
        if jacobian is not None:
            kept, weights_at = kept.expand_as(z), (kept * w - value) / rate
            shrinkage = (torch.diag_embed(kept) - jacobian) / rate.unsqueeze(2)
            local = Posterior.behind(self, ratio, w, weights_at, shrinkage)
        return FieldEvaluation(value / scale, divergence, gradient, local)

    def _at(self, tau: float, device: torch.device) -> Tensor:
        ends = {self.start: self.t_min, self.end: self.t_max}
        if tau in ends:
            return torch.tensor(ends[tau], dtype=torch.float64, device=device)
        return self.time(torch.tensor(tau, dtype=torch.float64, device=device))

    def _scales(self, time: Tensor) -> tuple[Tensor, Tensor]:
        return self.sde.log_alpha(time).exp(), self.sde.log_sigma(time).exp()


@dataclass(frozen=True)
class Posterior(EigenCoordinates):
    r"""The clean data as seen from a point, as a Gaussian; under it, the flow of w stands still.

    Near the point, D ≈ μ + A (ω − μ) along the eigenvectors of ∂D/∂w, with A = C/(C + ρ²) of their
    eigenvalues; that of a Gaussian N(μ, C), whose flow is ω = μ + s ζ, s = √(C + ρ²). Eigenvalues
    outside [0, 1), as between modes, have no such law; what they differ by remains in ``values``.

    Args:
        basis: eigenvectors of the shrinkage ∂D/∂w, in columns ``(m, d, d)``.
        values: what the model leaves of the Jacobian ∂ζ′/∂ζ, ``(m, d)``.
        centre: μ ``(m, d)``.
        spread: C ``(m, d)``.
        flow: whose z = w/S and τ these are.
    """

    centre: Tensor
    std: Tensor
    flow: GaussianProbabilityFlow = field(metadata={"shared": True})

    @classmethod
    def behind(
        cls,
        flow: GaussianProbabilityFlow,
        ratio: Tensor,
        w: Tensor,
        denoised: Tensor,
        shrinkage: Tensor,
    ) -> Posterior:
        """Return the law of the data behind w ``(m, d)``, from D ``(m, d)`` and ∂D/∂w."""
        values, basis = eigenpairs(shrinkage)
        widest = _WIDEST * flow.moments.variance.max().clamp(min=flow.coordinates.pivot**2)
        std = ratio**2 * values.clamp(0.0, 1.0) / (1 - values).clamp(min=1e-300)
        std = torch.minimum(std, widest)
        gain, left = (v / (std + ratio**2) for v in (std, ratio**2))
        noise_level_at, target = (
            torch.einsum("mdr,md->mr", basis, v.detach()) for v in (w, denoised)
        )
        return cls(
            basis=basis,
            values=flow.coordinates.rate(ratio) * (gain - values),
            centre=(target - gain * noise_level_at) / left,
            std=std,
            flow=flow,
        )

    def to_local(
        self, tau: Tensor, z: Tensor, velocity: Tensor, rates: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ζ = (ω − μ)/s, its slope, and the divergence of that."""
        ratio, whole = self._scales(tau.unsqueeze(2))
        coordinates, variance = self.flow.coordinates, self.flow.moments.variance
        rate = coordinates.rate(ratio)
        growth = (rate * (1 - coordinates.kept(ratio, variance))).expand_as(z)  # of S
        swelling = rate * ratio**2 / (self.std.unsqueeze(1) + ratio**2)  # of s
        noise_level_at = (whole * z) @ self.basis - self.centre.unsqueeze(1)
        relocate = (whole * (velocity + growth * z)) @ self.basis
        scale = torch.sqrt(self.std.unsqueeze(1) + ratio**2)
        slope = (relocate - swelling * noise_level_at) / scale
        return noise_level_at / scale, slope, rates + growth.sum(2) - swelling.sum(2)

    def relocate(
        self, tau: Tensor, z: Tensor, velocity: Tensor, to: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return ``to`` and v + S⁻¹ ∂h/∂w S (to − z), ∂h/∂w = (A − ∂D/∂w) d ln ρ/dτ."""
        ratio, whole = self._scales(tau.unsqueeze(1))
        kept, rate = self.flow.coordinates.slope(ratio, self.flow.moments.variance)
        change = whole * (to - z)
        shrinkage = self.std / (self.std + ratio**2) - self.values / rate
        bent = kept * change - rate * self.stretched(shrinkage, change)
        return to, velocity + bent / whole

    def from_local(self, tau: Tensor, zeta: Tensor) -> Tensor:
        """Return z = E(μ + s ζ)/S."""
        ratio, whole = self._scales(tau.unsqueeze(1))
        noise_level_at = self.centre + torch.sqrt(self.std + ratio**2) * zeta
        return torch.einsum("mdr,mr->md", self.basis, noise_level_at) / whole

    def log_volume(self, tau: Tensor) -> Tensor:
        """Return Σ log s − Σ log S."""
        ratio, whole = self._scales(tau.unsqueeze(1))
        return (0.5 * torch.log(self.std + ratio**2) - torch.log(whole)).sum(1)

    def _scales(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """Return ρ and S."""
        ratio = self.flow.coordinates.ratio(tau)
        return ratio, self.flow.coordinates.scale(ratio, self.flow.moments.variance)


class GeneralProbabilityFlow(ProbabilityFlowODE):
    """The flow of a general diffusion, dx/dt = f − ½ g² s, as it stands: z = x, τ = t.

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
        """Return x, flattened."""
        return flatten(x.double())

    def decode(self, z: Tensor, tau: float) -> Tensor:
        """Return z in the event's shape."""
        return z.reshape(z.shape[0], *self.event_shape)

    def log_volume(self, tau: float) -> float:
        """Return 0."""
        return 0.0

    def evaluate(
        self,
        tau: Tensor,
        z: Tensor,
        rows: Tensor | slice,
        trace: Trace | None = None,
        rng: CounterRNG | None = None,
        differentiable: bool = False,
        local_coordinates: bool = False,
    ) -> FieldEvaluation:
        """Evaluate dx/dt = f − ½ g² s, its divergence and the score."""
        score = self.score.select(rows)
        half = 0.5 * score.sde.diffusion(tau).square()

        def field(w: Tensor) -> Tensor:
            x = w.reshape(-1, *self.event_shape)
            to_local = expand(half, x) * score(x, tau)
            return flatten(score.sde.drift(x, tau) - to_local)

        value, divergence, jacobian = _evaluate(
            field, z, trace, rng, differentiable, local_coordinates
        )
        with torch.set_grad_enabled(differentiable):
            drift = flatten(score.sde.drift(z.reshape(-1, *self.event_shape), tau))
        local = IDENTITY if jacobian is None else EigenCoordinates.of(jacobian)
        return FieldEvaluation(value, divergence, (drift - value) / half.unsqueeze(1), local)


def _evaluate(
    field: VectorField,
    z: Tensor,
    trace: Trace | None,
    rng: CounterRNG | None,
    differentiable: bool,
    local_coordinates: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return a field's value, its divergence, and its Jacobian where that is wanted and told."""
    if trace is None or rng is None:
        return field(z), z.new_zeros(len(z), 0), None
    if not local_coordinates or z.shape[1] > MAX_JACOBIAN_DIMENSION:
        return *trace(field, z, rng, differentiable=differentiable), None
    return trace.linearize(field, z, rng, differentiable=differentiable)


def standard_normal(z: Tensor) -> Tensor:
    """Return log N(z; 0, I) ``(batch,)``."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)


def probability_flow(
    score: Score,
    event_shape: Sequence[int],
    t_min: float | None = None,
    t_max: float | None = None,
) -> ProbabilityFlowODE:
    """Return the flow of a score in the best variables its diffusion allows."""
    kind = GaussianProbabilityFlow if score.sde.gaussian else GeneralProbabilityFlow
    return kind(score, event_shape, t_min, t_max)
