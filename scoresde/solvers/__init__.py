"""Integrating batches of initial-value problems, each sample on its own clock."""

from scoresde.solvers.adams import Adams
from scoresde.solvers.base import Solution, Solver, Status
from scoresde.solvers.scipy import SciPy
from scoresde.solvers.torchdiffeq import TorchDiffEq

MEMBERS = (Adams(), TorchDiffEq(), SciPy(), SciPy(coupled=True))
"""Ready members; a line here enrols one in the contract tests."""

__all__ = ["MEMBERS", "Adams", "SciPy", "Solution", "Solver", "Status", "TorchDiffEq"]
