"""Divergence estimators: the trace of a Jacobian from products with vectors."""

from scoresde.traces.base import Tape, Trace
from scoresde.traces.exact import ExactTrace
from scoresde.traces.hutchinson import (
    Gaussian,
    Hutchinson,
    Orthogonal,
    ProbeDistribution,
    Rademacher,
    Sphere,
)
from scoresde.traces.hutchpp import HutchPlusPlus
from scoresde.traces.xtrace import XTrace

MEMBERS = (
    ExactTrace(),
    Hutchinson(),
    Hutchinson(probes=2, law=Gaussian()),
    Hutchinson(probes=2, law=Sphere()),
    Hutchinson(probes=2, law=Orthogonal()),
    HutchPlusPlus(),
    XTrace(),
)
"""Instances of every member, which the contract tests check; a new member adds a line here."""

__all__ = [
    "MEMBERS",
    "ExactTrace",
    "Gaussian",
    "HutchPlusPlus",
    "Hutchinson",
    "Orthogonal",
    "ProbeDistribution",
    "Rademacher",
    "Sphere",
    "Tape",
    "Trace",
    "XTrace",
]
