r"""Training: denoising score matching, and a training loop.

:func:`fit` takes batches of data, draws one time and one noise per sample, and minimizes the
denoising score matching loss (:mod:`scoresde.training.losses`) with AdamW. Its result has the
exponential moving average of the weights θ_n,

    θ̄_n = d_n θ̄_{n−1} + (1 − d_n) θ_n,        d_n = min(d, (1 + n)/(10 + n)),

which gives better samples and likelihoods than θ_n itself at no cost.

All random numbers of step n are a function of (seed, n). A run that was stopped is therefore
resumed from its checkpoint without a difference, on a CPU to the last bit.
"""

from scoresde.training.fit import fit
from scoresde.training.losses import (
    EDMWeighting,
    ImportanceSampled,
    LikelihoodWeighting,
    LogNormal,
    MinSNR,
    PredictionWeighting,
    Simple,
    Stratified,
    TableTimes,
    TimeSampler,
    Uniform,
    Weighting,
    dsm_loss,
)
from scoresde.training.result import FitResult, LossHistory

__all__ = [
    "EDMWeighting",
    "FitResult",
    "ImportanceSampled",
    "LikelihoodWeighting",
    "LogNormal",
    "LossHistory",
    "MinSNR",
    "PredictionWeighting",
    "Simple",
    "Stratified",
    "TableTimes",
    "TimeSampler",
    "Uniform",
    "Weighting",
    "dsm_loss",
    "fit",
]
