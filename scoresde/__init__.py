"""scoresde: score SDEs you can trust, on PyTorch.

A diffusion is two curves, log α(t) and log σ(t). Drift, noise, kernels, reverse SDE, every sampler,
DDPM, NCSN and the likelihood are derived from them, once.
"""

from scoresde.exact import GaussianMixture
from scoresde.moments import Moments
from scoresde.networks import MLP, UNet
from scoresde.predictions import (
    DATA,
    FLOW,
    NOISE,
    SCORE,
    VELOCITY,
    by_half_logsnr,
    by_index,
    by_sigma,
    by_time,
    edm,
)
from scoresde.score import FunctionScore, Score, ScoreModel
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

__version__ = "0.1.0"
