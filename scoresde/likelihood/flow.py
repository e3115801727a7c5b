r"""The density of the probability flow.

Along the flow, told in the standardised variable z of :mod:`scoresde.flow.probability_flow`,

    log p_{t_min}(x) = log p_z(z_T) + ∫ ∇·(dz/dτ) dτ − Σ log S_x(t_min),

one initial-value problem per sample, with the divergence beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.flow.probability_flow import ProbabilityFlowODE
from scoresde.likelihood.base import Likelihood, LikelihoodSettings, Method
from scoresde.solvers import Status
from scoresde.solvers.base import FieldEvaluation

_SOLVER_SHARE = 0.08
"""Tolerance of the solver's steps as a fraction of the wanted error of log p per dimension."""

_LENIENCE = 10.0
"""How far the error estimate, an upper bound, may exceed the tolerance before a sample is
flagged."""

_RESOLUTION, _DEPTH_SHARE = 0.25, 2 / 3
"""What is claimed at least, in units of the tolerance: per bit and dimension, and of what log p
lies below that of data."""


@dataclass(frozen=True)
class FlowIntegral(Method):
    """log p by the instantaneous change of variables along the probability flow; the default.

    Exact for the density that the probability flow of this very score carries to the prior, whether
    the score is a gradient or not.

    The steps control errors relative to the state. Far off the data, log p is a large number that
    hangs on the state with a large slope, so that its error is relative too: by as much as log p
    lies below the typical log-density of a Gaussian with the data's moments, the solver's error
    counts as at least two thirds of the tolerance. Nor is it told finer than a quarter of it.

    References:
        Chen et al. 2018, arXiv:1806.07366, theorem 1; Song et al. 2021, arXiv:2011.13456, eq. 39.
    """

    def __call__(self, query: LikelihoodSettings, x: Tensor, rows: Tensor) -> Likelihood:
        """Return the likelihood of some rows by the flow."""
        flow, nats = query.flow, query.tolerance * math.log(2)

        def field(tau: Tensor, z: Tensor, index: Tensor, counter: Tensor) -> FieldEvaluation:
            return query.evaluate(tau, z, rows[index], counter, query.solver.local_coordinates)

        solution = query.solver.solve(
            field,
            flow.encode(x, flow.start),
            flow.start,
            flow.end,
            tolerance=_SOLVER_SHARE * nats,
            noisy=not query.trace.exact,
        )
        arrived = solution.status == int(Status.CONVERGED)
        latent = flow.decode(solution.state, flow.end)
        terminal, mismatch = flow.terminal(solution.state, latent, query.prior)
        log_prob = terminal + solution.integral - flow.log_volume(flow.start)
        one_bit = log_prob.new_tensor(flow.dimension * math.log(2))
        depth = _typical(flow) - log_prob.detach()
        resolved = torch.maximum(_RESOLUTION * one_bit, _DEPTH_SHARE * depth) * query.tolerance
        error = torch.hypot(solution.error.detach(), resolved)
        error = torch.where(arrived, error, torch.inf)
        allowed = _LENIENCE * query.tolerance * torch.maximum(log_prob.abs(), one_bit)
        return Likelihood(
            log_prob=log_prob.to(x.dtype),
            standard_error=solution.standard_error.detach().to(x.dtype),
            solver_error=error.to(x.dtype),
            prior_mismatch=mismatch.to(x.dtype),
            latent=latent.to(x.dtype),
            evaluations=solution.evaluations,
            divergences=solution.evaluations,
            converged=arrived & ~(error > allowed) & log_prob.isfinite(),
            t_min=flow.t_min,
            points=x,
        )


def _typical(flow: ProbabilityFlowODE) -> float:
    """Return the mean log-density at the data end of a Gaussian with the data's moments."""
    return -flow.log_volume(flow.start) - 0.5 * flow.dimension * (1 + math.log(2 * math.pi))
