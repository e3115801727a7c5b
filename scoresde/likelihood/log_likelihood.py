"""The door: what is asked of a score, and how."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution
from tqdm import tqdm

from scoresde._core.checks import check_between, check_integer, check_positive, check_state
from scoresde._core.counter_rng import CounterRNG
from scoresde._core.modules import evaluation_mode
from scoresde.flow.probability_flow import (
    MAX_JACOBIAN_DIMENSION,
    ProbabilityFlowODE,
    probability_flow,
)
from scoresde.likelihood.base import Likelihood, LikelihoodSettings, Method
from scoresde.likelihood.flow import FlowIntegral
from scoresde.scores import Score
from scoresde.solvers import Adams, Solver
from scoresde.traces import ExactTrace, Hutchinson, Trace

_EXACT_UP_TO = 64
"""Dimensions up to which the exact trace is worth its price anyway: its Jacobian also takes the
stiffness out of the flow."""

_JACOBIANS = 2**26
"""How many entries of Jacobians are held at once, in float64, unless a batch size is given."""

_NOISE = 0.35
"""Standard deviation of log p with one fresh probe at every evaluation, in bits per dimension times
√d: measured 0.27 to 0.45 on mixtures and networks of 16 to 784 dimensions."""

_EXACT_COST = 0.7
"""Cost of a product of the exact trace, batched as they are, over that of a probe."""


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

    A sample's value does not depend on its batch-mates: each has its own steps and its own probes.

    Args:
        score: a score that knows its diffusion.
        x: points ``(batch, *event)``, floating point and finite; read as points of p at t_min.
        trace: how the divergence is told; None for exact up to 64 dimensions, or where it costs
            less than the probes that would bring the noise down to ``tolerance``, d <= 0.4 /
            tolerance; above, two Rademacher probes, fresh at every evaluation, whose noise the
            standard error tells. Up to 1024 dimensions an exact trace also has the Jacobian at
            hand, d² numbers a sample, which takes out the stiffness of the flow off the data.
        method: which density; None for that of the probability flow, ``FlowIntegral()``.
        solver: the integrator; None for the adaptive Adams method.
        tolerance: wanted error of log p from the integration, in bits per dimension; where log p is
            larger than one bit per dimension, as far off the data, relative to it.
        generator: source of the probes; None for PyTorch's global one.
        batch_size: how many samples to integrate together, to bound memory; None for all, or for as
            many as half a gigabyte has room for the Jacobians of.
        prior: the law at T, with the event's shape; None for the Gaussian with the moments of x_T
            where the score knows those of its data, else the SDE's own prior.
        t_min: the time at which x is taken to be a sample, the SDE's own ``t_min`` by default.
            There the data are blurred by σ(t_min): the value is the density of the blurred law,
            finite even for data on a manifold, where it grows without bound as t_min → 0.
        differentiable: whether ``log_prob`` and ``latent`` have gradients with respect to ``x``,
            to the score's parameters and to those of ``prior``; None where ``x`` requires one.
            Each evaluation is made again on the way back, so that the memory is that of one, beside
            a few dozen times that of ``x`` for the steps of the solver; with an exact trace it has
            the graph of all d products. The stiffness off the data is then not taken out: there,
            look at ``converged``, or use ``PathIntegral()``. With a stochastic trace the gradient
            is that of the estimate, hence an unbiased one.
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
        differential equations*, 2018, arXiv:1806.07366, theorem 1; Skilling 1989 and Hutchinson
        1990.
    """
    if not isinstance(score, Score):
        raise TypeError(
            f"score: expected a Score, got {type(score).__name__}; wrap a network in "
            "ScoreModel(network, sde), a function in FunctionScore(function, sde)"
        )
    _check_kind("trace", trace, Trace, "ExactTrace()")
    _check_kind("method", method, Method, "FlowIntegral()")
    _check_kind("solver", solver, Solver, "Adams()")
    check_state("x", x)
    check_positive("tolerance", tolerance)
    if t_min is not None:
        check_between("t_min", t_min, 0.0, score.sde.T)
    if differentiable is None:
        differentiable = x.requires_grad
    differentiable &= torch.is_grad_enabled()
    if not differentiable:
        x = x.clone() if x.is_inference() else x.detach()
    event_shape = x.shape[1:]
    if trace is None:
        trace = _trace_for(math.prod(event_shape), tolerance)
    flow = probability_flow(score, event_shape, t_min)
    solver = Adams() if solver is None else solver
    if differentiable and not solver.differentiable:
        raise ValueError(
            f"solver: expected one that gradients pass through, such as Adams(), got {solver!r}; "
            "or pass differentiable=False"
        )
    size = _room(flow, trace, solver, len(x))
    if batch_size is not None:
        size = check_integer("batch_size", batch_size, minimum=1)
    method = FlowIntegral() if method is None else method
    rng = CounterRNG.draw(len(x), generator, x.device)
    query = LikelihoodSettings(flow, trace, solver, tolerance, prior, rng)
    parts = []
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(differentiable),
        evaluation_mode(score),
        tqdm(total=len(x), disable=not progress, unit="sample") as bar,
    ):
        for rows in torch.arange(len(x), device=x.device).split(size):
            parts.append(method(query, x[rows], rows))
            bar.update(len(rows))
    return parts[0].joined(parts[1:])


def _room(flow: ProbabilityFlowODE, trace: Trace, solver: Solver, count: int) -> int:
    """Return how many of ``count`` samples to take together if nobody says so."""
    d = flow.dimension
    if not (trace.exact and solver.local_coordinates) or d > MAX_JACOBIAN_DIMENSION:
        return count
    return max(1, min(count, _JACOBIANS // d**2))


def _trace_for(d: int, tolerance: float) -> Trace:
    """Return the exact trace where it is the cheapest way to the wanted error, else two probes."""
    probes = (_NOISE / tolerance) ** 2 / d
    return ExactTrace() if d <= max(_EXACT_UP_TO, probes / _EXACT_COST) else Hutchinson(probes=2)


def _check_kind(name: str, value: object, kind: type, example: str) -> None:
    if value is not None and not isinstance(value, kind):
        raise TypeError(
            f"{name}: expected None or a {kind.__name__} such as {example}, got {value!r}"
        )
