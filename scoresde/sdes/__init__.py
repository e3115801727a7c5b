"""SDEs, and Gaussian diffusions given by two curves, log α(t) and log σ(t)."""

from scoresde.sdes.base import SDE, ReverseSDE
from scoresde.sdes.cosine import CosineSDE
from scoresde.sdes.discrete import DDPM, NCSN
from scoresde.sdes.gaussian import GaussianSDE
from scoresde.sdes.rectified import RectifiedFlow
from scoresde.sdes.variance_exploding import EDMSDE, VESDE
from scoresde.sdes.variance_preserving import VPSDE, SubVPSDE

MEMBERS = (
    VPSDE,
    SubVPSDE,
    VESDE,
    CosineSDE,
    EDMSDE,
    RectifiedFlow,
    DDPM.linear,
    NCSN.geometric,
)
"""The members, each ready to use as ``member()``; a line here enrols one in the contract tests."""

__all__ = [
    "DDPM",
    "EDMSDE",
    "MEMBERS",
    "NCSN",
    "SDE",
    "VESDE",
    "VPSDE",
    "CosineSDE",
    "GaussianSDE",
    "RectifiedFlow",
    "ReverseSDE",
    "SubVPSDE",
]
