r"""The density along a straight path: an integral in place of an initial-value problem.

For any path z(τ), whether the flow takes it or not, the densities of a diffusion obey

    d log p_z(z(τ), τ)/dτ = −∇·v + a · (z′ − v),        v = dz/dτ of the flow,  a = ∇_z log p_z,

since the flow transports them. Along the path z = const, the one that the flow of Gaussian data
would take (:mod:`scoresde.flow.probability_flow`),

    log p_{t_min}(x) = log p_z(z, τ_T) + ∫ (∇·v + a · v) dτ − Σ log S_x(t_min).

No point depends on another: all nodes of a quadrature are evaluated in one batch. What is used
besides the flow is that a, read from the score, is the gradient of the log-density which the
score's own flow transports. That holds for a true score; for a learned one it holds as far as the
score is consistent: a gradient field that satisfies the Fokker–Planck equation of its diffusion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from scoresde._core.checks import check_integer
from scoresde.likelihood.base import Likelihood, LikelihoodSettings, Method
from scoresde.traces import Trace

_KRONROD_NODES = (
    0.991455371120812639206854697526329,
    0.949107912342758524526189684047851,
    0.864864423359769072789712788640926,
    0.741531185599394439863864773280788,
    0.586087235467691130294144691258379,
    0.405845151377397166906606412076961,
    0.207784955007898467600689403773245,
    0.0,
)
_KRONROD_WEIGHTS = (
    0.022935322010529224963732008058970,
    0.063092092629978553290700663189204,
    0.104790010322250183839876322541518,
    0.140653259715525918745189590510238,
    0.169004726639267902826583426598550,
    0.190350578064785409913256402421014,
    0.204432940075298892414161999234649,
    0.209482141084727828012999174891714,
)
_GAUSS_WEIGHTS = (
    0.0,
    0.129484966168869693270611432679082,
    0.0,
    0.279705391489276667901467771423780,
    0.0,
    0.381830050505118944950369775488975,
    0.0,
    0.417959183673469387755102040816327,
)
"""Nodes and weights on [−1, 1], from the end to the middle (QUADPACK, ``qk15``)."""

_NODES = 15
_CAUTION = 50.0
"""Factor of the error estimate: that of QUADPACK, 2828, asks for twice the nodes."""

_FINEST = 1 << 40
"""Panels with an index from here on are not divided: their width is 10⁻¹² of the whole."""


@dataclass(frozen=True)
class PathIntegral(Method):
    r"""log p by an adaptive quadrature along the Gaussian path; every round is one batch.

    Each sample has its own panels, with 15 Gauss–Kronrod nodes in each; panels whose error counts
    are bisected, those of all samples at once. One to three rounds are usual, with 15 to 60
    evaluations of a sample, and the score sees 15 points of every new panel in one batch: take the
    ``batch_size`` of :func:`log_likelihood` smaller than for the flow.

    **This is the density of the probability flow only for a consistent score**, one that is a
    gradient and satisfies the Fokker–Planck equation, as the true score of some data does. For a
    learned score it is another estimate of the data's density, neither bound nor normalised; its
    distance from :class:`FlowIntegral` is a measure of the score's inconsistency. The budget tells
    the error of the quadrature, not this distance.

    With a noisy trace every node has fresh probes, and the panels are chosen by a · v alone, which
    has no noise. The standard error is right in the mean square; where few nodes carry the noise,
    as 15 may be, a single one knows itself less well, so that ±2 of them can cover as little as
    80 % with two probes, 90 % with four.

    In the result, ``latent`` is the end of the path, not of the flow.

    Args:
        max_evaluations: how many evaluations a sample may use; one that needs more is returned as
            it stands, not converged.

    Raises:
        ValueError: if ``max_evaluations`` is below 15.

    Example:
        >>> from scoresde import GaussianMixture, VPSDE, log_likelihood
        >>> means, covariances = torch.tensor([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.1)
        >>> mixture = GaussianMixture(torch.ones(2), means, covariances, VPSDE())
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> log_likelihood(mixture, x, method=PathIntegral()).log_prob, mixture.log_prob(x)
        (tensor([-4.7676, -0.4608]), tensor([-4.7676, -0.4608]))

    References:
        Song et al. 2021, arXiv:2011.13456, eq. 39, for the flow; Lai et al., *FP-Diffusion*, 2023,
        arXiv:2210.04296, for what consistency asks of a score; Piessens et al., *QUADPACK*, 1983,
        for the rule and its error estimate.
    """

    max_evaluations: int = 2000

    def __post_init__(self) -> None:
        check_integer("max_evaluations", self.max_evaluations, minimum=_NODES)

    def __call__(self, query: LikelihoodSettings, x: Tensor, rows: Tensor) -> Likelihood:
        """Return the likelihood of some rows by the path integral."""
        flow = query.flow
        z = flow.encode(x, flow.start)
        latent = flow.decode(z, flow.end)
        terminal, mismatch = flow.terminal(z, latent, query.prior)
        ends = terminal - flow.log_volume(flow.start)
        allowed = query.tolerance * flow.dimension * math.log(2)
        n = len(z)

        def per_row(values: Tensor, panels: _Panels) -> Tensor:
            return values.new_zeros(n).index_add(0, panels.row, values)

        panels = self._evaluate(query, z, rows, _whole(z, flow.start, flow.end))
        while True:
            count = per_row(torch.ones_like(panels.error), panels)
            integral = per_row(panels.integral, panels)
            error = per_row(panels.error, panels)
            evaluations = _NODES * (2 * count - 1)  # a binary tree: all its panels, not its leaves
            log_prob = ends + integral
            coarse = (error > allowed)[panels.row] & error.isfinite()[panels.row]
            coarse &= panels.error * count[panels.row] > allowed
            coarse &= panels.index < _FINEST
            wanted = evaluations + 2 * _NODES * per_row(coarse.to(count.dtype), panels)
            coarse &= (wanted <= self.max_evaluations)[panels.row]
            if not bool(coarse.any()):
                break
            halves = self._evaluate(query, z, rows, panels.take(coarse).halves())
            panels = panels.take(~coarse).join(halves)
        finite = log_prob.isfinite() & error.isfinite()
        error = torch.where(finite, error, torch.inf)
        return Likelihood(
            log_prob=log_prob.to(x.dtype),
            standard_error=per_row(panels.variance, panels).sqrt().to(x.dtype),
            solver_error=error.to(x.dtype),
            prior_mismatch=mismatch.to(x.dtype),
            latent=latent.to(x.dtype),
            evaluations=evaluations.long(),
            divergences=evaluations.long(),
            converged=finite & (error <= allowed),
            t_min=flow.t_min,
            points=x,
        )

    def _evaluate(
        self, query: LikelihoodSettings, z: Tensor, rows: Tensor, panels: _Panels
    ) -> _Panels:
        """Fill in the integrals of new panels: one batch of 15 nodes each."""
        kronrod, gauss, nodes = _rule(z)
        row, index = panels.row.repeat_interleave(_NODES), panels.index.repeat_interleave(_NODES)
        tau = panels.left.unsqueeze(1) + panels.width.unsqueeze(1) * 0.5 * (1 + nodes)
        counter = index * _NODES + torch.arange(_NODES, device=z.device).repeat(len(panels.row))
        field = query.flow.rhs(query.trace, query.rng, rows)
        point = field(tau.reshape(-1), z[row], row, counter)
        assert point.gradient is not None  # a flow tells it, other fields need not
        along = (point.gradient * point.velocity).sum(1, keepdim=True)
        estimates = (point.integrand + along).reshape(len(tau), _NODES, -1)
        values = estimates.mean(2)
        smooth = values if query.trace.exact else along.reshape(values.shape)
        half = 0.5 * panels.width
        return replace(
            panels,
            integral=half * (kronrod * values).sum(1),
            variance=half**2
            * (kronrod**2 * _variance(query.trace, tau, estimates.detach())).sum(1),
            error=half.abs() * _discrepancy(smooth.detach(), kronrod, gauss),
        )


@dataclass(frozen=True)
class _Panels:
    """Parts of the interval, each of one sample; all attributes are ``(P,)``.

    A panel's index says where it lies, whoever its neighbours are: 1 is the whole interval, and i
    has the halves 2i and 2i + 1. It numbers the random streams, so that they are the sample's own.
    """

    row: Tensor
    index: Tensor
    left: Tensor
    width: Tensor
    integral: Tensor
    variance: Tensor
    error: Tensor

    def take(self, mask: Tensor) -> _Panels:
        """Return some of the panels."""
        return _Panels(**{f.name: getattr(self, f.name)[mask] for f in fields(self)})

    def join(self, other: _Panels) -> _Panels:
        """Return these panels and others."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return _Panels(**{name: torch.cat(pair) for name, pair in pairs.items()})

    def halves(self) -> _Panels:
        """Return the halves of all panels, not evaluated yet."""
        width = 0.5 * self.width
        first = replace(self, index=2 * self.index, width=width)
        return first.join(replace(first, index=first.index + 1, left=self.left + width))


def _whole(z: Tensor, start: float, end: float) -> _Panels:
    """One panel per sample."""
    row, zero = torch.arange(len(z), device=z.device), torch.zeros_like(z[:, 0])
    return _Panels(row, row * 0 + 1, zero + start, zero + (end - start), zero, zero, zero)


def _rule(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Kronrod weights, Gauss weights and nodes on [−1, 1], ``(15,)`` each."""

    def unfold(values: tuple[float, ...], sign: float) -> Tensor:
        return z.new_tensor([*(sign * v for v in values), *values[-2::-1]])

    return unfold(_KRONROD_WEIGHTS, 1.0), unfold(_GAUSS_WEIGHTS, 1.0), unfold(_KRONROD_NODES, -1.0)


def _discrepancy(values: Tensor, kronrod: Tensor, gauss: Tensor) -> Tensor:
    """Estimated error of the Kronrod rule on [−1, 1] ``(P,)`` for values ``(P, 15)``."""
    mean = 0.5 * (kronrod * values).sum(1, keepdim=True)
    std = (kronrod * (values - mean).abs()).sum(1)
    apart = ((kronrod - gauss) * values).sum(1).abs()
    relative = apart / std.clamp(min=torch.finfo(std.dtype).tiny)
    return std * (_CAUTION * relative**1.5).clamp(max=1.0)


def _variance(trace: Trace, tau: Tensor, estimates: Tensor) -> Tensor:
    """Variance of the mean estimate at every node ``(P, 15)``, for estimates ``(P, 15, k)``.

    A single one tells by its distance from the line through those of the neighbouring nodes.
    """
    k = estimates.shape[2]
    if trace.exact:
        return torch.zeros_like(tau)
    if k > 1:
        return estimates.var(2) / k
    q = estimates.squeeze(2)
    part = (tau[:, 1:-1] - tau[:, :-2]) / (tau[:, 2:] - tau[:, :-2])
    miss = q[:, 1:-1] - (1 - part) * q[:, :-2] - part * q[:, 2:]
    inner = miss**2 / (1 + (1 - part) ** 2 + part**2)
    return torch.cat([inner[:, :1], inner, inner[:, -1:]], dim=1)
