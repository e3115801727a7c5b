"""Known bugs, each a small class: what people wrote, and the law that has to tell them so."""

from gallery import likelihoods, samplers, scores, sdes, solvers, traces
from gallery.bug import BUGS, Bug

__all__ = ["BUGS", "Bug", "likelihoods", "samplers", "scores", "sdes", "solvers", "traces"]
