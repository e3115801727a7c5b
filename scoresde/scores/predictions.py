r"""What a network predicts: parametrizations of the denoiser.

Every parametrization in use is linear in the state, the network's output y and the denoised
x̂ = E[x_0 | x_t]. Solved for x̂ it is three coefficients::

    x̂ = x/α + k x + c y,        y = network(c_in x, label),

and converting between any two is one composition. The skip coefficient is stored as its difference
k from 1/α, so that no conversion cancels near the data end, where x̂ ≈ x/α.

==========  =================================  ==============  ==========  ======
prediction  y                                  k               c           c_in
==========  =================================  ==============  ==========  ======
NOISE       ε̂ = (x − αx̂)/σ                   0               −σ/α        1
SCORE       s = −ε̂/σ                          0               σ²/α        1
DATA        x̂                                 −1/α            1           1
VELOCITY    v = αε̂ − σx̂                      −σ²/(α(α²+σ²))  −σ/(α²+σ²)  1
FLOW        u = dx/dt of the probability flow  2fσ²/(αg²)      −2σ²/(αg²)  1
edm(σ_d)    F of EDM, ρ = σ/α, S² = σ_d²+ρ²    −ρ²/(αS²)       σ_d ρ/S     1/(αS)
DENOISER    D of EDM, x̂ from x/α              −1/α            1           1/α
==========  =================================  ==============  ==========  ======
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde._core.checks import check_positive
from scoresde.sdes.gaussian import GaussianSDE

__all__ = [
    "DATA",
    "DENOISER",
    "FLOW",
    "NOISE",
    "SCORE",
    "VELOCITY",
    "Coefficients",
    "DataPrediction",
    "DenoiserPrediction",
    "EDMPrediction",
    "FlowPrediction",
    "NoisePrediction",
    "Prediction",
    "ScorePrediction",
    "VelocityPrediction",
    "edm",
]


class Coefficients(NamedTuple):
    """x̂ = x/α + residual·x + output·y; float64, shaped like t."""

    residual: Tensor
    output: Tensor


@dataclass(frozen=True)
class Prediction(ABC):
    """A parametrization of the denoiser, as three coefficients of time (see the module's table)."""

    def input(self, sde: GaussianSDE, t: Tensor) -> Tensor | None:
        """Return c_in, shaped like ``t``; None, as here, where the network's input is x itself."""
        return None

    @abstractmethod
    def coefficients(self, sde: GaussianSDE, t: Tensor) -> Coefficients:
        """Return k and c at float64 times in (0, T], shaped like ``t``."""

    def directly(self, source: Prediction, output: Tensor, x: Tensor) -> Tensor | None:
        """Return an output of ``source`` at x in these terms, if that needs no coefficient."""
        return output if source == self else None


@dataclass(frozen=True)
class NoisePrediction(Prediction):
    """The network predicts the noise, ε̂ = E[ε | x_t].

    References:
        Ho et al., *Denoising diffusion probabilistic models*, 2020, arXiv:2006.11239, eq. 11.
    """

    def coefficients(self, sde: GaussianSDE, t: Tensor) -> Coefficients:
        """Return (0, −σ/α)."""
        return Coefficients(torch.zeros_like(t), -torch.exp(-sde.half_logsnr(t)))


@dataclass(frozen=True)
class ScorePrediction(Prediction):
    """The network predicts the score, s = ∇ log p_t(x).

    References:
        Song et al. 2021, arXiv:2011.13456, eq. 7; Efron, *Tweedie's formula*, 2011.
    """

    def coefficients(self, sde: GaussianSDE, t: Tensor) -> Coefficients:
        """Return (0, σ²/α)."""
        gain = torch.exp(2 * sde.log_sigma(t) - sde.log_alpha(t))
        return Coefficients(torch.zeros_like(t), gain)


@dataclass(frozen=True)
class DataPrediction(Prediction):
    """The network predicts the clean data, x̂ = E[x_0 | x_t]."""

    def coefficients(self, sde: GaussianSDE, t: Tensor) -> Coefficients:
        """Return (−1/α, 1)."""
        return Coefficients(-torch.exp(-sde.log_alpha(t)), torch.ones_like(t))


@dataclass(frozen=True)
class VelocityPrediction(Prediction):
    """The network predicts v = α ε̂ − σ x̂.

    References:
        Salimans & Ho, *Progressive distillation*, 2022, arXiv:2202.00512, appendix D.
    """

    def coefficients(self, sde: GaussianSDE, t: Tensor) -> Coefficients:
        """Return (−σ²/(α(α²+σ²)), −σ/(α²+σ²))."""
        alpha, sigma = torch.exp(sde.log_alpha(t)), torch.exp(sde.log_sigma(t))
        total = alpha**2 + sigma**2
        return Coefficients(-(sigma**2) / (alpha * total), -sigma / total)


@dataclass(frozen=True)
class FlowPrediction(Prediction):
    """The network predicts the probability flow's own velocity u = dx/dt = f x − ½ g² s.

    For :class:`~scoresde.sdes.RectifiedFlow` that is E[ε − x_0 | x_t], what flow matching learns
    (with the opposite sign where time runs from noise to data).

    References:
        Lipman et al. 2022, arXiv:2210.02747, eq. 10.
    """

    def coefficients(self, sde: GaussianSDE, t: Tensor) -> Coefficients:
        """Return (2fσ²/(αg²), −2σ²/(αg²))."""
        f, g2 = sde.rates(t)
        gain = 2 * torch.exp(2 * sde.log_sigma(t) - sde.log_alpha(t)) / g2
        return Coefficients(f * gain, -gain)


@dataclass(frozen=True)
class EDMPrediction(Prediction):
    """The preconditioning of EDM: inputs, targets and outputs of unit variance at every time.

    Args:
        sigma_data: standard deviation of the data, in their own unit.

    References:
        Karras et al. 2022, arXiv:2206.00364, eq. 7 and table 1.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        check_positive("sigma_data", self.sigma_data)

    def input(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        """Return 1/(αS)."""
        alpha, _, total = self._scales(sde, t)
        return 1 / (alpha * total)

    def coefficients(self, sde: GaussianSDE, t: Tensor) -> Coefficients:
        """Return (−ρ²/(αS²), σ_d ρ/S)."""
        alpha, ratio, total = self._scales(sde, t)
        return Coefficients(-(ratio**2) / (alpha * total**2), self.sigma_data * ratio / total)

    def _scales(self, sde: GaussianSDE, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return α, ρ = σ/α and S = √(σ_d² + ρ²)."""
        alpha, ratio = torch.exp(sde.log_alpha(t)), torch.exp(-sde.half_logsnr(t))
        return alpha, ratio, torch.sqrt(self.sigma_data**2 + ratio**2)


@dataclass(frozen=True)
class DenoiserPrediction(Prediction):
    """The network is a denoiser D(x/α, ρ) = x̂ as in EDM, of the rescaled state x/α.

    Every Gaussian diffusion is variance exploding after division by α; the label is ``by_ratio``.

    References:
        Karras et al. 2022, arXiv:2206.00364, eqs. 2 and 3.
    """

    def input(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        """Return 1/α."""
        return torch.exp(-sde.log_alpha(t))

    def coefficients(self, sde: GaussianSDE, t: Tensor) -> Coefficients:
        """Return (−1/α, 1)."""
        return Coefficients(-torch.exp(-sde.log_alpha(t)), torch.ones_like(t))


NOISE = NoisePrediction()
SCORE = ScorePrediction()
DATA = DataPrediction()
VELOCITY = VelocityPrediction()
FLOW = FlowPrediction()
edm = EDMPrediction
DENOISER = DenoiserPrediction()
