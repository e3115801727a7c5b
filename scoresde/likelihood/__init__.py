"""Data → log p, with an error budget for every sample."""

from scoresde.likelihood.base import Likelihood, LikelihoodSettings, Method
from scoresde.likelihood.bound import VariationalBound, variational_bound
from scoresde.likelihood.comparison import LikelihoodComparison, MethodComparison
from scoresde.likelihood.discrete_bound import DiscreteBound, discrete_bound
from scoresde.likelihood.distribution import ScoreDistribution
from scoresde.likelihood.flow import FlowIntegral
from scoresde.likelihood.ito import ItoEstimate
from scoresde.likelihood.log_likelihood import log_likelihood
from scoresde.likelihood.path_integral import PathIntegral

MEMBERS = (
    FlowIntegral(),
    PathIntegral(),
    VariationalBound(),
    ItoEstimate(),
    MethodComparison((PathIntegral(), VariationalBound())),
)
"""The methods, ready to use; a line here enrols one in the contract tests."""

__all__ = [
    "MEMBERS",
    "DiscreteBound",
    "FlowIntegral",
    "ItoEstimate",
    "Likelihood",
    "LikelihoodComparison",
    "LikelihoodSettings",
    "Method",
    "MethodComparison",
    "PathIntegral",
    "ScoreDistribution",
    "VariationalBound",
    "discrete_bound",
    "log_likelihood",
    "variational_bound",
]
