"""Data → log p, with an error budget for every sample."""

from scoresde.likelihood.base import Likelihood, Method, Query
from scoresde.likelihood.door import log_likelihood
from scoresde.likelihood.flow import FlowIntegral

__all__ = ["FlowIntegral", "Likelihood", "Method", "Query", "log_likelihood"]
