r"""Weightings w(t) of the denoising error ‖ε̂ − ε‖² in :func:`~scoresde.training.losses.dsm_loss`.

A weighting is any function ``(sde, t) -> (batch,)``; those of the literature are here. They differ
by the quantity whose squared error is weighted by 1 (noise, data, score, …), since the errors of
all predictions are multiples of each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde._core.checks import check_instance, check_positive
from scoresde.scores.predictions import Prediction
from scoresde.sdes import GaussianSDE

__all__ = [
    "EDMWeighting",
    "LikelihoodWeighting",
    "MinSNR",
    "PredictionWeighting",
    "Simple",
    "WeightFunction",
    "Weighting",
]

WeightFunction = Callable[[GaussianSDE, Tensor], Tensor]
"""Called as ``weighting(sde, t)``; returns w ``(batch,)``, the weight on ‖ε̂ − ε‖²."""


@dataclass(frozen=True)
class Weighting(ABC):
    """A weight w(t) on ‖ε̂ − ε‖²; any function ``(sde, t) -> (batch,)`` is accepted too."""

    @abstractmethod
    def __call__(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        """Return w >= 0 at float64 times ``(batch,)``, shaped like ``t``."""


@dataclass(frozen=True)
class Simple(Weighting):
    """The unweighted noise error, w = 1: L_simple of DDPM, λ(t) = σ² of Song et al.

    References:
        Ho et al. 2020, arXiv:2006.11239, eq. 14; Song et al. 2021, arXiv:2011.13456, eq. 7.
    """

    def __call__(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class LikelihoodWeighting(Weighting):
    r"""Likelihood weighting, w = g²/σ² = −2 λ′, so that g² ‖s − s*‖² is minimized.

    Then ½ (T − t_min) times the loss (``reduction="sum"``), minus its value at the exact score,
    plus KL(p_T ‖ prior), bounds the Kullback–Leibler divergence between the data (at t_min) and the
    samples of the reverse SDE.

    References:
        Song, Durkan, Murray & Ermon, *Maximum likelihood training of score-based diffusion models*,
        2021, arXiv:2101.09258, theorem 1; Kingma et al. 2021, arXiv:2107.00630, section 4.
    """

    def __call__(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        time = sde.interior(t)
        return sde.rates(time)[1] * torch.exp(-2 * sde.log_sigma(time))


@dataclass(frozen=True)
class EDMWeighting(Weighting):
    r"""The weighting of EDM, (ρ² + σ_d²)/(ρ σ_d)² on ‖x̂ − x_0‖², that is w = 1 + (ρ/σ_d)².

    It weights the error of the network that :func:`~scoresde.scores.predictions.edm` preconditions
    by 1.

    Args:
        sigma_data: σ_d > 0, the standard deviation of the data, in their own unit.

    References:
        Karras et al. 2022, arXiv:2206.00364, table 1.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        check_positive("sigma_data", self.sigma_data)

    def __call__(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        return 1 + torch.exp(-2 * sde.half_logsnr(t)) / self.sigma_data**2


@dataclass(frozen=True)
class MinSNR(Weighting):
    r"""Min-SNR-γ, min(SNR, γ) on ‖x̂ − x_0‖², that is w = min(1, γ ρ²) since SNR = 1/ρ².

    Args:
        gamma: γ > 0; the noise error has weight 1 where the signal-to-noise ratio is below γ, the
            data error has weight γ where it is above.

    References:
        Hang et al., *Efficient diffusion training via min-SNR weighting strategy*, 2023,
        arXiv:2303.09556, section 3.4.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        check_positive("gamma", self.gamma)

    def __call__(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        return (self.gamma * torch.exp(-2 * sde.half_logsnr(t))).clamp(max=1.0)


@dataclass(frozen=True)
class PredictionWeighting(Weighting):
    r"""The unweighted error ‖y − y*‖² of any prediction y, whatever the network itself predicts.

    With x̂ = x/α + k x + c y (:mod:`scoresde.scores.predictions`) it is w = (ρ/c)². For example,
    ``PredictionWeighting(NOISE)`` is :class:`Simple`, ``PredictionWeighting(edm(σ_d))`` is
    :class:`EDMWeighting`, ``PredictionWeighting(FLOW)`` with :class:`~scoresde.sdes.RectifiedFlow`
    is flow matching, and ``PredictionWeighting(DATA)`` weights by ρ².

    Args:
        prediction: NOISE, DATA, SCORE, VELOCITY, FLOW or edm(sigma_data).

    References:
        Salimans & Ho 2022, arXiv:2202.00512, section 4; Lipman et al. 2022, arXiv:2210.02747,
        eq. 9.
    """

    prediction: Prediction

    def __post_init__(self) -> None:
        example = "NOISE, DATA, SCORE, VELOCITY, FLOW or edm(sigma_data)"
        check_instance("prediction", self.prediction, Prediction, example)

    def __call__(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        time = sde.interior(t)
        output = self.prediction.coefficients(sde, time).output
        return (torch.exp(-sde.half_logsnr(time)) / output) ** 2
