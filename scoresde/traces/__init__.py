"""Divergence estimators: the trace of a Jacobian from products with vectors."""

from scoresde.traces.base import Trace
from scoresde.traces.exact import ExactTrace
from scoresde.traces.hutchinson import (
    Gaussian,
    Hutchinson,
    Orthogonal,
    ProbeLaw,
    Rademacher,
    Sphere,
)

FAMILY = (
    ExactTrace(),
    Hutchinson(),
    Hutchinson(probes=2, law=Gaussian()),
    Hutchinson(probes=2, law=Sphere()),
)
"""Ready members; a line here enrols one in the contract tests."""

__all__ = [
    "FAMILY",
    "ExactTrace",
    "Gaussian",
    "Hutchinson",
    "Orthogonal",
    "ProbeLaw",
    "Rademacher",
    "Sphere",
    "Trace",
]
