r"""The density as an integral along a straight path, instead of an initial-value problem.

Along any path z(τ), which need not be a solution of the flow, the densities of a diffusion satisfy
::

    d log p_z(z(τ), τ)/dτ = −∇·v + a · (z′ − v),        v = dz/dτ of the flow,  a = ∇_z log p_z,

since the flow transports them. Along the path z = const, the solution of the flow of Gaussian data
(:mod:`scoresde.flow.probability_flow`), ::

    log p_{t_min}(x) = log p_z(z, τ_T) + ∫ (∇·v + a · v) dτ − Σ log S_x(t_min).

The points are independent of each other: all nodes of a quadrature are evaluated in one batch. This
assumes, beyond the flow, that a, computed from the score, is the gradient of the log-density that
the score's own flow transports. It is for a true score; for a learned score it is as far as the
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
_ERROR_FACTOR = 50.0
"""Factor of the error estimate: with that of QUADPACK, 2828, twice as many nodes are needed."""

_FINEST = 1 << 40
"""Panels with an index from here on are not bisected: their width is 10⁻¹² of the interval."""


@dataclass(frozen=True)
class PathIntegral(Method):
    r"""log p by an adaptive quadrature along the Gaussian path; every round is one batch.

    Each sample has its own panels, with 15 Gauss–Kronrod nodes each; panels with too large an error
    are bisected, those of all samples at once. One to three rounds are usual, with 15 to 60
    evaluations for each sample. The score is evaluated at the 15 nodes of all new panels in one
    batch: choose a smaller ``batch_size`` in :func:`log_likelihood` than for the flow.

    **This is the density of the probability flow only for a consistent score**, one that is a
    gradient and satisfies the Fokker–Planck equation, as the true score of some data does. For a
    learned score it is another estimate of the data's density, neither a bound nor normalized; its
    difference from :class:`FlowIntegral` measures the inconsistency of the score, and is not part
    of the error budget, which covers the quadrature.

    With a stochastic trace every node has its own probes, and the panels are chosen by the
    integrand a · v alone, which is deterministic. The standard error is unbiased in the mean
    square; where few nodes dominate the variance, as with 15 nodes, a single standard error is less
    accurate: ±2 of them can cover as little as 80 % with two probes, 90 % with four.

    In the result, ``latent`` is the end of the path, not of the flow.

    Args:
        max_evaluations: largest number of evaluations for a sample; one that needs more is returned
            with the value so far, not converged.

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
        arXiv:2210.04296, for the consistency of scores; Piessens et al., *QUADPACK*, 1983,
        for the rule and its error estimate.
    """

    max_evaluations: int = 2000

    def __post_init__(self) -> None:
        check_integer("max_evaluations", self.max_evaluations, minimum=_NODES)

    def __call__(self, settings: LikelihoodSettings, x: Tensor, rows: Tensor) -> Likelihood:
        flow = settings.flow
        z = flow.encode(x, flow.start)
        latent = flow.decode(z, flow.end)
        terminal, mismatch = flow.terminal(z, latent, settings.prior)
        ends = terminal - flow.log_volume(flow.start)
        allowed = settings.tolerance * flow.dimension * math.log(2)
        n = len(z)

        def per_row(values: Tensor, panels: _Panels) -> Tensor:
            return values.new_zeros(n).index_add(0, panels.row, values)

        panels = self._evaluate(settings, z, rows, _interval(z, flow.start, flow.end))
        while True:
            count = per_row(torch.ones_like(panels.error), panels)
            integral = per_row(panels.integral, panels)
            error = per_row(panels.error, panels)
            evaluations = _NODES * (2 * count - 1)  # all panels of a binary tree, not its leaves
            log_prob = ends + integral
            coarse = (error > allowed)[panels.row] & error.isfinite()[panels.row]
            coarse &= panels.error * count[panels.row] > allowed
            coarse &= panels.index < _FINEST
            required = evaluations + 2 * _NODES * per_row(coarse.to(count.dtype), panels)
            coarse &= (required <= self.max_evaluations)[panels.row]
            if not bool(coarse.any()):
                break
            halves = self._evaluate(settings, z, rows, panels.select(coarse).halves())
            panels = panels.select(~coarse).concatenate(halves)
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
        self, settings: LikelihoodSettings, z: Tensor, rows: Tensor, panels: _Panels
    ) -> _Panels:
        """Return new panels with their integrals: one batch of 15 nodes for each."""
        kronrod, gauss, nodes = _rule(z)
        row, index = panels.row.repeat_interleave(_NODES), panels.index.repeat_interleave(_NODES)
        tau = panels.left.unsqueeze(1) + panels.width.unsqueeze(1) * 0.5 * (1 + nodes)
        counter = index * _NODES + torch.arange(_NODES, device=z.device).repeat(len(panels.row))
        field = settings.flow.rhs(settings.trace, settings.rng, rows)
        point = field(tau.reshape(-1), z[row], row, counter)
        assert point.gradient is not None  # a flow returns it, other fields need not
        along = (point.gradient * point.velocity).sum(1, keepdim=True)
        estimates = (point.integrand + along).reshape(len(tau), _NODES, -1)
        values = estimates.mean(2)
        smooth = values if settings.trace.exact else along.reshape(values.shape)
        half = 0.5 * panels.width
        return replace(
            panels,
            integral=half * (kronrod * values).sum(1),
            variance=half**2
            * (kronrod**2 * _variance(settings.trace, tau, estimates.detach())).sum(1),
            error=half.abs() * _discrepancy(smooth.detach(), kronrod, gauss),
        )


@dataclass(frozen=True)
class _Panels:
    """Parts of the interval, each of one sample; all attributes are ``(P,)``.

    The index of a panel determines its position: 1 is the entire interval, and i has the halves 2i
    and 2i + 1. It is the counter of the random numbers, which thus depend on the sample alone.
    """

    row: Tensor
    index: Tensor
    left: Tensor
    width: Tensor
    integral: Tensor
    variance: Tensor
    error: Tensor

    def select(self, mask: Tensor) -> _Panels:
        """Return some of the panels."""
        return _Panels(**{f.name: getattr(self, f.name)[mask] for f in fields(self)})

    def concatenate(self, other: _Panels) -> _Panels:
        """Return these panels followed by others."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return _Panels(**{name: torch.cat(pair) for name, pair in pairs.items()})

    def halves(self) -> _Panels:
        """Return the halves of all panels, not evaluated yet."""
        width = 0.5 * self.width
        first = replace(self, index=2 * self.index, width=width)
        return first.concatenate(replace(first, index=first.index + 1, left=self.left + width))


def _interval(z: Tensor, start: float, end: float) -> _Panels:
    """Return one panel per sample, the entire interval, not evaluated yet."""
    row, zero = torch.arange(len(z), device=z.device), torch.zeros_like(z[:, 0])
    return _Panels(row, row * 0 + 1, zero + start, zero + (end - start), zero, zero, zero)


def _rule(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return Kronrod weights, Gauss weights and nodes on [−1, 1], ``(15,)`` each."""

    def unfold(values: tuple[float, ...], sign: float) -> Tensor:
        return z.new_tensor([*(sign * v for v in values), *values[-2::-1]])

    return unfold(_KRONROD_WEIGHTS, 1.0), unfold(_GAUSS_WEIGHTS, 1.0), unfold(_KRONROD_NODES, -1.0)


def _discrepancy(values: Tensor, kronrod: Tensor, gauss: Tensor) -> Tensor:
    """Return the estimated error of the Kronrod rule on [−1, 1] ``(P,)`` for ``(P, 15)`` values."""
    mean = 0.5 * (kronrod * values).sum(1, keepdim=True)
    deviation = (kronrod * (values - mean).abs()).sum(1)
    difference = ((kronrod - gauss) * values).sum(1).abs()
    relative = difference / deviation.clamp(min=torch.finfo(deviation.dtype).tiny)
    return deviation * (_ERROR_FACTOR * relative**1.5).clamp(max=1.0)


def _variance(trace: Trace, tau: Tensor, estimates: Tensor) -> Tensor:
    """Return the variance of the mean estimate at every node ``(P, 15)``, of ``(P, 15, k)``.

    For k = 1 it is estimated from the residual of each from the line through the two adjacent ones.

    Args:
        trace: the divergence estimator.
        tau: the nodes ``(P, 15)``.
        estimates: k estimates of the integrand at each node.

    Returns:
        The variances, 0 for an exact trace.
    """
    k = estimates.shape[2]
    if trace.exact:
        return torch.zeros_like(tau)
    if k > 1:
        return estimates.var(2) / k
    q = estimates.squeeze(2)
    weight = (tau[:, 1:-1] - tau[:, :-2]) / (tau[:, 2:] - tau[:, :-2])
    residual = q[:, 1:-1] - (1 - weight) * q[:, :-2] - weight * q[:, 2:]
    inner = residual**2 / (1 + (1 - weight) ** 2 + weight**2)
    return torch.cat([inner[:, :1], inner, inner[:, -1:]], dim=1)
