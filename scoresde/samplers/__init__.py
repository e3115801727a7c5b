"""Noise to data: one loop, and many ways to make its steps."""

from scoresde.flow.coordinates import (
    Coordinates,
    LogSNR,
    Rectified,
    Standardized,
    VarianceExploding,
    Windowed,
)
from scoresde.samplers.adams_bashforth import AdamsBashforth
from scoresde.samplers.adaptive import AdaptiveSDE
from scoresde.samplers.ancestral import Ancestral
from scoresde.samplers.base import Noise, Sampler, half_step
from scoresde.samplers.churn import Churn
from scoresde.samplers.encoding import Trajectory, encode, interpolate, trajectory
from scoresde.samplers.euler_maruyama import EulerMaruyama
from scoresde.samplers.exponential import DEIS, DDIMNoise, Exponential
from scoresde.samplers.grids import (
    Angle,
    Grid,
    Karras,
    LogMobius,
    Timesteps,
    UniformLogSNR,
    UniformTime,
)
from scoresde.samplers.heun import Heun
from scoresde.samplers.langevin import AnnealedLangevin, Langevin
from scoresde.samplers.mala import MALA
from scoresde.samplers.predictor_corrector import NoPredictor, PredictorCorrector
from scoresde.samplers.presets import (
    annealed_langevin,
    ddim,
    ddpm,
    deis,
    dpm_solver,
    edm_heun,
    pc,
    sa_solver,
    unipc,
)
from scoresde.samplers.probability_flow import ProbabilityFlow, transport
from scoresde.samplers.reverse_diffusion import ReverseDiffusion
from scoresde.samplers.runge_kutta import (
    HEUN,
    HEUN3,
    KUTTA3,
    MIDPOINT,
    RALSTON,
    RK4,
    RungeKutta,
    Tableau,
)
from scoresde.samplers.sample import SamplingError, SamplingStep, iterate, sample
from scoresde.samplers.scheduled import Scheduled
from scoresde.samplers.torch_sde import TorchSDE

MEMBERS = (
    EulerMaruyama(),
    EulerMaruyama(eta=0.0),
    ReverseDiffusion(),
    Ancestral(),
    Ancestral(variance=1.0),
    Langevin(),
    AnnealedLangevin(),
    PredictorCorrector(ReverseDiffusion(), Langevin()),
    PredictorCorrector(EulerMaruyama(), AnnealedLangevin(), corrections=2),
    PredictorCorrector(NoPredictor(), AnnealedLangevin()),
    Exponential(order=1, eta=DDIMNoise(0.5)),
    Exponential(order=2),
    Exponential(order=3, eta=1.0),
    Exponential(order=3, corrector=4),
    DEIS(),
    AdamsBashforth(),
    AdamsBashforth(order=2, corrector=0, coordinates=Standardized()),
    RungeKutta(),
    RungeKutta(RK4, VarianceExploding()),
    RungeKutta(MIDPOINT, Rectified()),
    Heun(),
    Heun(eta=1.0),
    Churn(Heun()),
    AdaptiveSDE(tolerance=0.5),
    ProbabilityFlow(),
    TorchSDE(),
    TorchSDE("srk"),
)
"""The members, ready to use; a line here enrols one in the contract tests."""

__all__ = [
    "DEIS",
    "HEUN",
    "HEUN3",
    "KUTTA3",
    "MALA",
    "MEMBERS",
    "MIDPOINT",
    "RALSTON",
    "RK4",
    "AdamsBashforth",
    "AdaptiveSDE",
    "Ancestral",
    "Angle",
    "AnnealedLangevin",
    "Churn",
    "Coordinates",
    "DDIMNoise",
    "EulerMaruyama",
    "Exponential",
    "Grid",
    "Heun",
    "Karras",
    "Langevin",
    "LogMobius",
    "LogSNR",
    "NoPredictor",
    "Noise",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Rectified",
    "ReverseDiffusion",
    "RungeKutta",
    "Sampler",
    "SamplingError",
    "SamplingStep",
    "Scheduled",
    "Standardized",
    "Tableau",
    "Timesteps",
    "TorchSDE",
    "Trajectory",
    "UniformLogSNR",
    "UniformTime",
    "VarianceExploding",
    "Windowed",
    "annealed_langevin",
    "ddim",
    "ddpm",
    "deis",
    "dpm_solver",
    "edm_heun",
    "encode",
    "half_step",
    "interpolate",
    "iterate",
    "pc",
    "sa_solver",
    "sample",
    "trajectory",
    "transport",
    "unipc",
]
