"""Conditions, restoration, inverse problems: scores of posteriors, and steps towards them.

What conditions a score is a Score again (:class:`PosteriorScore` and its members); what works on
the way is a Sampler that wraps a Sampler. The loop knows of neither. Since steps are made of
samplers, this room stands on their floor.
"""

from scoresde.guidance.denoising import as_state, denoise, noise_level
from scoresde.guidance.diffpir import DiffPIR, ddnm
from scoresde.guidance.dps import DPS
from scoresde.guidance.kalman import MMPS, PiGDM
from scoresde.guidance.measurement import (
    GaussianMeasurement,
    LogLikelihood,
    Measurement,
    NonlinearObservation,
    Observation,
)
from scoresde.guidance.posterior import PosteriorScore, TweediePosterior, Update
from scoresde.guidance.restoration import (
    Guided,
    Restorer,
    Stepwise,
    Weighted,
    colorize,
    inpaint,
    restore,
    super_resolve,
)
from scoresde.guidance.smc import Particles, twisted
from scoresde.guidance.steps import Imputation, NormalizedDPS, RePaint

__all__ = [
    "DPS",
    "MMPS",
    "DiffPIR",
    "GaussianMeasurement",
    "Guided",
    "Imputation",
    "LogLikelihood",
    "Measurement",
    "NonlinearObservation",
    "NormalizedDPS",
    "Observation",
    "Particles",
    "PiGDM",
    "PosteriorScore",
    "RePaint",
    "Restorer",
    "Stepwise",
    "TweediePosterior",
    "Update",
    "Weighted",
    "as_state",
    "colorize",
    "ddnm",
    "denoise",
    "inpaint",
    "noise_level",
    "restore",
    "super_resolve",
    "twisted",
]
