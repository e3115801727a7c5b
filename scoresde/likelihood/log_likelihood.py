"""The public function: log-densities of points under a score."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution
from tqdm import tqdm

from scoresde._core.checks import (
    check_between,
    check_instance,
    check_integer,
    check_positive,
    check_state,
)
from scoresde._core.counter_rng import CounterRNG
from scoresde._core.modules import evaluation_mode
from scoresde.flow.probability_flow import MAX_JACOBIAN_DIMENSION, probability_flow
from scoresde.likelihood.base import Likelihood, LikelihoodSettings, Method
from scoresde.likelihood.flow import FlowIntegral
from scoresde.scores import Score
from scoresde.scores.base import require_score
from scoresde.solvers import Adams, Solver
from scoresde.traces import ExactTrace, Hutchinson, Trace

_EXACT_UP_TO = 64
"""Dimension up to which the exact trace is always the default: its Jacobian also removes the
stiffness of the flow."""

_JACOBIANS = 2**26
"""Entries of Jacobians held in memory at once, in float64, unless a batch size is given."""

_NOISE = 0.35
"""Standard deviation of log p with one new probe at every evaluation, in bits per dimension times
√d: 0.27 to 0.45 measured on mixtures and networks in 16 to 784 dimensions."""

_EXACT_COST = 0.7
"""Cost of one of the batched products of the exact trace relative to that of a probe."""


def log_likelihood(
    score: Score,
    x: Tensor,
    *,
    trace: Trace | None = None,
    method: Method | None = None,
    solver: Solver | None = None,
    tolerance: float = 1e-3,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    prior: Distribution | None = None,
    t_min: float | None = None,
    differentiable: bool | None = None,
    progress: bool = False,
) -> Likelihood:
    r"""Compute log p(x), with an error budget for every sample.

        log p_{t_min}(x) = log p_T(x_T) + ∫_{t_min}^{T} ∇·(f x − ½ g² s) dt.

    The value of a sample does not depend on the other samples of the batch: each has its own steps
    and its own probes.

    Args:
        score: the score.
        x: points ``(batch, *event)``, floating point and finite; taken as points of p at t_min.
        trace: the divergence estimator. None for the exact trace up to 64 dimensions, or where it
            costs less than the probes that would reduce the noise to ``tolerance``, d <= 0.4 /
            tolerance (418 dimensions at the default tolerance); above, two Rademacher probes, new
            ones at every evaluation, whose noise the standard error measures. Up to 1024 dimensions
            an exact trace also yields the Jacobian, d² numbers a sample, which removes the
            stiffness of the flow off the data.
        method: the estimator of the density; None for the probability flow, ``FlowIntegral()``.
        solver: the integrator; None for the adaptive Adams method.
        tolerance: target error of log p from the integration, in bits per dimension; where log p is
            larger than one bit per dimension, as far off the data, relative to it.
        generator: source of the probes; None for PyTorch's global one.
        batch_size: number of samples integrated together, to bound memory; None for all, or for as
            many as fit their Jacobians into half a gigabyte.
        prior: the distribution at T, with the shape of the event; None for the Gaussian with the
            moments of x_T where the score has those of its data, else the SDE's own prior.
        t_min: the time at which x is taken as a sample, the SDE's own ``t_min`` by default. There
            the data are blurred by σ(t_min): the value is the density of the blurred distribution,
            finite even for data on a manifold, where it grows without bound as t_min → 0.
        differentiable: whether ``log_prob`` and ``latent`` have gradients with respect to ``x``,
            to the parameters of the score and to those of ``prior``; None where ``x`` requires one.
            Evaluations are recomputed in the backward pass: memory is that of one evaluation and a
            few dozen times that of ``x`` for the steps of the solver; with an exact trace it holds
            the graph of all d products. The stiffness off the data is then not removed: check
            ``converged`` there, or use ``PathIntegral()``. With a stochastic trace the gradient is
            that of the estimate, hence unbiased.
        progress: show a progress bar.

    Returns:
        A :class:`Likelihood`; its tensors have the dtype and the device of ``x``.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if ``x`` is empty or not finite, a number is out of range, or the solver has no
            gradients where they are required.

    Example:
        >>> from scoresde import GaussianMixture, VPSDE
        >>> mixture = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None], VPSDE())
        >>> result = log_likelihood(mixture, torch.zeros(1, 2))
        >>> result.log_prob, result.converged
        (tensor([-1.8379]), tensor([True]))

    References:
        Song et al. 2021, arXiv:2011.13456, eq. 39 and section D.2; Chen et al., *Neural ordinary
        differential equations*, 2018, arXiv:1806.07366, theorem 1; Skilling 1989 and Hutchinson
        1990.
    """
    require_score(score)
    check_state("x", x)
    check_positive("tolerance", tolerance)
    if t_min is not None:
        check_between("t_min", t_min, 0.0, score.sde.T)
    if differentiable is None:
        differentiable = x.requires_grad
    differentiable &= torch.is_grad_enabled()
    if not differentiable:
        x = x.clone() if x.is_inference() else x.detach()
    flow = probability_flow(score, x.shape[1:], t_min)
    if trace is None:
        trace = _default_trace(flow.dimension, tolerance)
    settings = LikelihoodSettings(
        flow=flow,
        trace=check_instance("trace", trace, Trace, "ExactTrace()"),
        solver=check_instance("solver", Adams() if solver is None else solver, Solver, "Adams()"),
        tolerance=tolerance,
        prior=prior,
        rng=CounterRNG.draw(len(x), generator, x.device),
    )
    method = FlowIntegral() if method is None else method
    check_instance("method", method, Method, "FlowIntegral()")
    if differentiable and not settings.solver.differentiable:
        raise ValueError(
            f"solver: expected one with gradients, such as Adams(), got {solver!r}; or pass "
            "differentiable=False"
        )
    size = _batch_size(flow.dimension, trace, settings.solver, len(x))
    if batch_size is not None:
        size = check_integer("batch_size", batch_size, minimum=1)
    parts = []
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(differentiable),
        evaluation_mode(score),
        tqdm(total=len(x), disable=not progress, unit="sample") as bar,
    ):
        for rows in torch.arange(len(x), device=x.device).split(size):
            parts.append(method(settings, x[rows], rows))
            bar.update(len(rows))
    return parts[0].concatenate(parts[1:])


def _batch_size(d: int, trace: Trace, solver: Solver, count: int) -> int:
    """Return the number of ``count`` samples to integrate together by default."""
    if not (trace.exact and solver.local_coordinates) or d > MAX_JACOBIAN_DIMENSION:
        return count
    return max(1, min(count, _JACOBIANS // d**2))


def _default_trace(d: int, tolerance: float) -> Trace:
    """Return the exact trace where it is the cheapest for the target error, else two probes."""
    probes = (_NOISE / tolerance) ** 2 / d
    return ExactTrace() if d <= max(_EXACT_UP_TO, probes / _EXACT_COST) else Hutchinson(probes=2)
