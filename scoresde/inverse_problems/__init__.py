"""Inverse problems: from an observation y to samples of the posterior p(x_0 | y).

A :class:`Measurement` is the likelihood p(y | x_0). A :class:`PosteriorScore` is the score of
p(x_t | y), to be used as any score; constrained samplers wrap another sampler; particle methods
are asymptotically exact. :func:`restore` and its presets (:func:`inpaint`, :func:`super_resolve`,
:func:`colorize`, :func:`denoise`) combine them in one call.
"""

from scoresde.inverse_problems.constrained import Imputation, NormalizedDPS, RePaint
from scoresde.inverse_problems.denoising import as_state, denoise, noise_level
from scoresde.inverse_problems.diffpir import DiffPIR, ddnm
from scoresde.inverse_problems.dps import DPS
from scoresde.inverse_problems.gaussian_approximation import MMPS, PiGDM
from scoresde.inverse_problems.measurement import (
    GaussianMeasurement,
    LogLikelihood,
    Measurement,
    NonlinearObservation,
    Observation,
)
from scoresde.inverse_problems.particles import Particles, twisted_smc
from scoresde.inverse_problems.posterior import PosteriorScore, TweediePosterior, Update
from scoresde.inverse_problems.restoration import (
    ConstrainedSampling,
    ParticleSampling,
    PosteriorProblem,
    PosteriorSampler,
    PosteriorScoreSampling,
    colorize,
    inpaint,
    restore,
    super_resolve,
)

__all__ = [
    "DPS",
    "MMPS",
    "ConstrainedSampling",
    "DiffPIR",
    "GaussianMeasurement",
    "Imputation",
    "LogLikelihood",
    "Measurement",
    "NonlinearObservation",
    "NormalizedDPS",
    "Observation",
    "ParticleSampling",
    "Particles",
    "PiGDM",
    "PosteriorProblem",
    "PosteriorSampler",
    "PosteriorScore",
    "PosteriorScoreSampling",
    "RePaint",
    "TweediePosterior",
    "Update",
    "as_state",
    "colorize",
    "ddnm",
    "denoise",
    "inpaint",
    "noise_level",
    "restore",
    "super_resolve",
    "twisted_smc",
]
