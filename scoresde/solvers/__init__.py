"""Integrating batches of initial-value problems, each sample on its own clock."""

from scoresde.solvers.adams import Adams
from scoresde.solvers.base import Solution, Solver, Status

__all__ = ["Adams", "Solution", "Solver", "Status"]
