"""Noise to data: one loop, and many ways to make its steps."""

from scoresde.samplers.ancestral import Ancestral
from scoresde.samplers.base import Noise, Sampler
from scoresde.samplers.euler_maruyama import EulerMaruyama
from scoresde.samplers.langevin import AnnealedLangevin, Langevin
from scoresde.samplers.loop import Frame, SamplingError, sample, walk
from scoresde.samplers.predictor_corrector import PredictorCorrector
from scoresde.samplers.probability_flow import ProbabilityFlow, transport
from scoresde.samplers.reverse_diffusion import ReverseDiffusion
from scoresde.samplers.torch_sde import TorchSDE

FAMILY = (
    EulerMaruyama(),
    EulerMaruyama(eta=0.0),
    ReverseDiffusion(),
    Ancestral(),
    Ancestral(variance=1.0),
    Langevin(),
    AnnealedLangevin(),
    PredictorCorrector(ReverseDiffusion(), Langevin()),
    PredictorCorrector(EulerMaruyama(), AnnealedLangevin(), corrections=2),
    ProbabilityFlow(),
    TorchSDE(),
    TorchSDE("srk"),
)
"""The members, ready to use; a line here enrols one in the contract tests."""

__all__ = [
    "FAMILY",
    "Ancestral",
    "AnnealedLangevin",
    "EulerMaruyama",
    "Frame",
    "Langevin",
    "Noise",
    "PredictorCorrector",
    "ProbabilityFlow",
    "ReverseDiffusion",
    "Sampler",
    "SamplingError",
    "TorchSDE",
    "sample",
    "transport",
    "walk",
]
