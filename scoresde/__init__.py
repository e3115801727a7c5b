"""scoresde: score SDEs you can trust, on PyTorch.

A diffusion is two curves, log α(t) and log σ(t). Drift, noise, kernels, reverse SDE, every sampler,
DDPM, NCSN and the likelihood are derived from them, once.
"""

from scoresde.dequantization import bits_per_dim, dequantize, dequantized_bound, quantize
from scoresde.inverse_problems import colorize, denoise, inpaint, restore, super_resolve
from scoresde.likelihood import Likelihood, log_likelihood
from scoresde.networks import MLP, UNet
from scoresde.samplers import (
    Ancestral,
    AnnealedLangevin,
    EulerMaruyama,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    TorchSDE,
    sample,
    transport,
)
from scoresde.scores import FunctionScore, Score, ScoreModel
from scoresde.scores.gaussian_mixture import GaussianMixture
from scoresde.scores.labels import by_half_logsnr, by_index, by_sigma, by_time
from scoresde.scores.moments import Moments
from scoresde.scores.predictions import DATA, FLOW, NOISE, SCORE, VELOCITY, edm
from scoresde.sdes import (
    DDPM,
    EDMSDE,
    NCSN,
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    GaussianSDE,
    RectifiedFlow,
    SubVPSDE,
)
from scoresde.solvers import Adams, SciPy, TorchDiffEq
from scoresde.traces import ExactTrace, Hutchinson
from scoresde.training import FitResult, fit
from scoresde.training.losses import dsm_loss

__version__ = "0.1.0"

__all__ = [
    "DATA",
    "DDPM",
    "EDMSDE",
    "FLOW",
    "MLP",
    "NCSN",
    "NOISE",
    "SCORE",
    "SDE",
    "VELOCITY",
    "VESDE",
    "VPSDE",
    "Adams",
    "Ancestral",
    "AnnealedLangevin",
    "CosineSDE",
    "EulerMaruyama",
    "ExactTrace",
    "FitResult",
    "FunctionScore",
    "GaussianMixture",
    "GaussianSDE",
    "Hutchinson",
    "Langevin",
    "Likelihood",
    "Moments",
    "PredictorCorrector",
    "ProbabilityFlow",
    "RectifiedFlow",
    "ReverseDiffusion",
    "SciPy",
    "Score",
    "ScoreModel",
    "SubVPSDE",
    "TorchDiffEq",
    "TorchSDE",
    "UNet",
    "bits_per_dim",
    "by_half_logsnr",
    "by_index",
    "by_sigma",
    "by_time",
    "colorize",
    "denoise",
    "dequantize",
    "dequantized_bound",
    "dsm_loss",
    "edm",
    "fit",
    "inpaint",
    "log_likelihood",
    "quantize",
    "restore",
    "sample",
    "super_resolve",
    "transport",
]
