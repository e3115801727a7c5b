"""Solvers of initial-value problems for batches of samples."""

from scoresde.solvers.adams import Adams
from scoresde.solvers.base import Solution, Solver, Status
from scoresde.solvers.scipy import SciPy
from scoresde.solvers.torchdiffeq import TorchDiffEq

MEMBERS = (Adams(), TorchDiffEq(), SciPy(), SciPy(coupled=True))
"""Instances of every member, which the contract tests check; a new member adds a line here."""

__all__ = ["MEMBERS", "Adams", "SciPy", "Solution", "Solver", "Status", "TorchDiffEq"]
