"""Data → log p, with an error budget for every sample."""

from scoresde.likelihood.base import Likelihood, Method, Query
from scoresde.likelihood.bound import VariationalBound, variational_bound
from scoresde.likelihood.discrete_bound import DiscreteBound, discrete_bound
from scoresde.likelihood.distribution import ScoreDistribution
from scoresde.likelihood.door import log_likelihood
from scoresde.likelihood.flow import FlowIntegral
from scoresde.likelihood.ito import ItoEstimate
from scoresde.likelihood.path_integral import PathIntegral
from scoresde.likelihood.side_by_side import Comparison, SideBySide

FAMILY = (
    FlowIntegral(),
    PathIntegral(),
    VariationalBound(),
    ItoEstimate(),
    SideBySide((PathIntegral(), VariationalBound())),
)
"""The methods, ready to use; a line here enrols one in the contract tests."""

__all__ = [
    "FAMILY",
    "Comparison",
    "DiscreteBound",
    "FlowIntegral",
    "ItoEstimate",
    "Likelihood",
    "Method",
    "PathIntegral",
    "Query",
    "ScoreDistribution",
    "SideBySide",
    "VariationalBound",
    "discrete_bound",
    "log_likelihood",
    "variational_bound",
]
