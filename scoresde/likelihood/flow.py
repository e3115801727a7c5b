r"""The density of the probability flow.

Along the flow, in the standardized coordinates z of :mod:`scoresde.flow.probability_flow`,

    log p_{t_min}(x) = log p_z(z_T) + ∫ ∇·(dz/dτ) dτ − Σ log S_x(t_min),

one initial-value problem per sample, with the integral of the divergence as a component.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.flow.probability_flow import ProbabilityFlowODE
from scoresde.likelihood.base import Likelihood, LikelihoodSettings, Method
from scoresde.solvers import Status

_SOLVER_FRACTION = 0.08
"""Tolerance of the solver's steps as a fraction of the target error of log p per dimension."""

_CONVERGED_WITHIN = 10.0
"""Estimated error, in units of the tolerance, up to which a sample counts as converged: the
estimate is an upper bound."""

_LEAST_ERROR, _LEAST_ERROR_OF_DEPTH = 0.25, 2 / 3
"""Least error that is reported, in units of the tolerance: per bit and dimension, and per bit by
which log p lies below that of typical data."""


@dataclass(frozen=True)
class FlowIntegral(Method):
    """log p by the instantaneous change of variables along the probability flow; the default.

    Exact for the density that the probability flow of this very score carries to the prior, whether
    the score is a gradient or not.

    The steps control errors relative to the state. Far off the data, log p depends steeply on the
    state, so that its error is relative too: the reported error is at least two thirds of the
    tolerance per bit by which log p lies below the mean log-density of a Gaussian with the moments
    of the data, and at least a quarter of the tolerance everywhere.

    References:
        Chen et al. 2018, arXiv:1806.07366, theorem 1; Song et al. 2021, arXiv:2011.13456, eq. 39.
    """

    def __call__(self, settings: LikelihoodSettings, x: Tensor, rows: Tensor) -> Likelihood:
        flow, trace, solver = settings.flow, settings.trace, settings.solver
        solution = solver.solve(
            flow.rhs(trace, settings.rng, rows, solver.local_coordinates),
            flow.encode(x, flow.start),
            flow.start,
            flow.end,
            tolerance=_SOLVER_FRACTION * settings.tolerance * math.log(2),
            noisy=not trace.exact,
        )
        reached = solution.status == int(Status.CONVERGED)
        latent = flow.decode(solution.state, flow.end)
        terminal, mismatch = flow.terminal(solution.state, latent, settings.prior)
        log_prob = terminal + solution.integral - flow.log_volume(flow.start)
        one_bit = log_prob.new_tensor(flow.dimension * math.log(2))
        depth = _typical(flow) - log_prob.detach()
        least = torch.maximum(_LEAST_ERROR * one_bit, _LEAST_ERROR_OF_DEPTH * depth)
        error = torch.hypot(solution.error.detach(), least * settings.tolerance)
        error = torch.where(reached, error, torch.inf)
        allowed = _CONVERGED_WITHIN * settings.tolerance * torch.maximum(log_prob.abs(), one_bit)
        return Likelihood(
            log_prob=log_prob.to(x.dtype),
            standard_error=solution.standard_error.detach().to(x.dtype),
            solver_error=error.to(x.dtype),
            prior_mismatch=mismatch.to(x.dtype),
            latent=latent.to(x.dtype),
            evaluations=solution.evaluations,
            divergences=solution.evaluations,
            converged=reached & ~(error > allowed) & log_prob.isfinite(),
            t_min=flow.t_min,
            points=x,
        )


def _typical(flow: ProbabilityFlowODE) -> float:
    """Return the mean log-density at the data end of a Gaussian with the data's moments."""
    return -flow.log_volume(flow.start) - 0.5 * flow.dimension * (1 + math.log(2 * math.pi))
