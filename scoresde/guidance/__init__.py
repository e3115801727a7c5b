"""Conditions, restoration, inverse problems: scores of posteriors, and steps towards them.

What conditions a score is a Score again: :class:`PosteriorScore` and its members, and scores made
of scores (:class:`Product`, :class:`Mixture`), which is what guidance is. What works on the way is
a Sampler that wraps a Sampler. The loop knows of neither. Since steps are made of samplers, this
room stands on their floor.
"""

from scoresde.guidance.classifier import (
    ClassifierScore,
    NoisyClassifier,
    classification_loss,
    classifier_guided,
)
from scoresde.guidance.classifier_free import classifier_free
from scoresde.guidance.combination import Combination
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
from scoresde.guidance.mixture import Mixture
from scoresde.guidance.posterior import PosteriorScore, TweediePosterior, Update
from scoresde.guidance.product import GuidanceInterval, Product, autoguided, tempered
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
    "ClassifierScore",
    "Combination",
    "DiffPIR",
    "GaussianMeasurement",
    "GuidanceInterval",
    "Guided",
    "Imputation",
    "LogLikelihood",
    "Measurement",
    "Mixture",
    "NoisyClassifier",
    "NonlinearObservation",
    "NormalizedDPS",
    "Observation",
    "Particles",
    "PiGDM",
    "PosteriorScore",
    "Product",
    "RePaint",
    "Restorer",
    "Stepwise",
    "TweediePosterior",
    "Update",
    "Weighted",
    "as_state",
    "autoguided",
    "classification_loss",
    "classifier_free",
    "classifier_guided",
    "colorize",
    "ddnm",
    "denoise",
    "inpaint",
    "noise_level",
    "restore",
    "super_resolve",
    "tempered",
    "twisted",
]
