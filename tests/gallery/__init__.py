"""Known bugs, each a small class with a typical mistake, and the property that it violates."""

from gallery import likelihoods, networks, samplers, scores, sdes, solvers, traces
from gallery.bug import BUGS, Bug

__all__ = [
    "BUGS",
    "Bug",
    "likelihoods",
    "networks",
    "samplers",
    "scores",
    "sdes",
    "solvers",
    "traces",
]
