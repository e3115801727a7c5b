"""scoresde: score SDEs you can trust, on PyTorch.

A diffusion is two curves, log α(t) and log σ(t). Drift, diffusion coefficient, transition kernels,
the reverse SDE, all samplers, DDPM, NCSN and the likelihood are derived from them, once.

The names below are the ones most programs need; each package has more
(:mod:`scoresde.samplers`, :mod:`scoresde.likelihood`, …). ``scoresde.interop``,
``scoresde.testing`` and ``scoresde.plots`` are imported at first use.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from scoresde.dequantization import (
    bits_per_dim,
    dequantize,
    dequantized_bound,
    quantize,
)
from scoresde.guidance import (
    Mixture,
    Product,
    autoguidance,
    classifier_free_guidance,
    classifier_guidance,
)
from scoresde.inverse_problems import (
    DPS,
    MMPS,
    NonlinearObservation,
    Observation,
    PiGDM,
    colorize,
    denoise,
    inpaint,
    restore,
    super_resolve,
)
from scoresde.likelihood import (
    Likelihood,
    PathIntegral,
    ScoreDistribution,
    discrete_bound,
    log_likelihood,
    variational_bound,
)
from scoresde.networks import (
    MLP,
    DDPMUNet,
    DiT,
    NCSNpp,
    NCSNv2,
    UNet,
)
from scoresde.samplers import (
    MALA,
    AdamsBashforth,
    AdaptiveSDE,
    Ancestral,
    Angle,
    AnnealedLangevin,
    EulerMaruyama,
    Exponential,
    Heun,
    Karras,
    Langevin,
    LogMobius,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    RungeKutta,
    SamplingError,
    Timesteps,
    TorchSDE,
    UniformLogSNR,
    UniformTime,
    annealed_langevin,
    ddim,
    ddpm,
    deis,
    dpm_solver,
    edm_heun,
    encode,
    interpolate,
    pc,
    sa_solver,
    sample,
    trajectory,
    transport,
    unipc,
)
from scoresde.scores import (
    DATA,
    FLOW,
    NOISE,
    SCORE,
    VELOCITY,
    FunctionScore,
    GaussianMixture,
    Moments,
    Score,
    ScoreModel,
    by_half_logsnr,
    by_index,
    by_sigma,
    by_time,
    edm,
)
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
from scoresde.solvers import (
    Adams,
    SciPy,
    TorchDiffEq,
)
from scoresde.traces import (
    ExactTrace,
    Hutchinson,
)
from scoresde.training import (
    FitResult,
    dsm_loss,
    fit,
)

if TYPE_CHECKING:
    from scoresde import interop, plots, testing

__version__ = "0.1.0"

_LAZY = frozenset({"interop", "plots", "testing"})
"""Packages that are imported at first use, since they import optional dependencies."""

__all__ = [
    "DATA",
    "DDPM",
    "DPS",
    "EDMSDE",
    "FLOW",
    "MALA",
    "MLP",
    "MMPS",
    "NCSN",
    "NOISE",
    "SCORE",
    "SDE",
    "VELOCITY",
    "VESDE",
    "VPSDE",
    "Adams",
    "AdamsBashforth",
    "AdaptiveSDE",
    "Ancestral",
    "Angle",
    "AnnealedLangevin",
    "CosineSDE",
    "DDPMUNet",
    "DiT",
    "EulerMaruyama",
    "ExactTrace",
    "Exponential",
    "FitResult",
    "FunctionScore",
    "GaussianMixture",
    "GaussianSDE",
    "Heun",
    "Hutchinson",
    "Karras",
    "Langevin",
    "Likelihood",
    "LogMobius",
    "Mixture",
    "Moments",
    "NCSNpp",
    "NCSNv2",
    "NonlinearObservation",
    "Observation",
    "PathIntegral",
    "PiGDM",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Product",
    "RectifiedFlow",
    "ReverseDiffusion",
    "RungeKutta",
    "SamplingError",
    "SciPy",
    "Score",
    "ScoreDistribution",
    "ScoreModel",
    "SubVPSDE",
    "Timesteps",
    "TorchDiffEq",
    "TorchSDE",
    "UNet",
    "UniformLogSNR",
    "UniformTime",
    "annealed_langevin",
    "autoguidance",
    "bits_per_dim",
    "by_half_logsnr",
    "by_index",
    "by_sigma",
    "by_time",
    "classifier_free_guidance",
    "classifier_guidance",
    "colorize",
    "ddim",
    "ddpm",
    "deis",
    "denoise",
    "dequantize",
    "dequantized_bound",
    "discrete_bound",
    "dpm_solver",
    "dsm_loss",
    "edm",
    "edm_heun",
    "encode",
    "fit",
    "inpaint",
    "interop",
    "interpolate",
    "log_likelihood",
    "pc",
    "plots",
    "quantize",
    "restore",
    "sa_solver",
    "sample",
    "super_resolve",
    "testing",
    "trajectory",
    "transport",
    "unipc",
    "variational_bound",
]


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
