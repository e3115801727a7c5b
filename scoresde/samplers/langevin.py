r"""Correctors: steps of Langevin dynamics at a fixed time t, with stationary distribution p_t.

    x ← x + ε s(x, t) + √(2ε) z

leaves p_t invariant as ε → 0. The step size ε is given by the signal-to-noise ratio r of the two
terms, up to the scale of p_t. The Hessian of −log p_t is at most 1/σ_t², so that ε = 2 r² σ_t² is
stable everywhere (annealed Langevin), and E‖s‖² is at most d/σ_t².
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde._core.checks import check_nonnegative, check_positive
from scoresde._core.shapes import expand, flatten
from scoresde.samplers.base import Noise, Sampler, check_gaussian
from scoresde.scores import Score
from scoresde.sdes import GaussianSDE

_LARGEST = 0.5
"""Largest step in units of σ_t²; Langevin steps are unstable from 2 on."""


@dataclass(frozen=True)
class AnnealedLangevin(Sampler):
    r"""A Langevin step of size ε = 2 a (r σ_t)², the same for all samples, with a = 1.

    A corrector. Annealed Langevin dynamics, which is nothing but such steps at decreasing noise
    levels, is :func:`~scoresde.samplers.annealed_langevin`.

    Args:
        snr: r > 0, signal-to-noise ratio of a step.
        published: a = (α_t/α_s)² as in the official code (1 − β_i for a DDPM, 1 for VE). With a = 1
            the step is equivariant to a rescaling of the diffusion.

    Raises:
        ValueError: unless ``snr`` is positive.

    Example:
        >>> AnnealedLangevin(snr=0.176)
        AnnealedLangevin(snr=0.176, published=False)

    References:
        Song & Ermon, *Generative modeling by estimating gradients of the data distribution*, 2019,
        arXiv:1907.05600, algorithm 1; Song et al. 2021, arXiv:2011.13456, appendix G.
    """

    snr: float = 0.16
    published: bool = False

    def __post_init__(self) -> None:
        check_positive("snr", self.snr)

    @property
    def corrects(self) -> bool:
        return True

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        """Correct at time t; one evaluation of the score."""
        size = 2 * (self.snr * check_gaussian(score.sde).sigma(t)) ** 2
        if self.published:
            size = size * check_gaussian(score.sde).transition(s, t)[0] ** 2
        return langevin_step(x, score(x, t), size, noise(x)), None


@dataclass(frozen=True)
class Langevin(Sampler):
    r"""A Langevin step whose size depends on the norm of the score of each sample.

    The step size is ::

        ε = 2 r² σ_t² / m,    m = (σ_t²‖s‖² + n)/(d + n),    ε <= σ_t²/2.

    In high dimension m ≈ σ_t²‖s‖²/d, and ε = 2 (r √d/‖s‖)² is the published rule with the expected
    norm of the noise. But with a step size that depends on the state the stationary distribution is
    proportional to p_t/ε instead of p_t. The rule needs the mean of ‖s‖², and the norm at one
    sample is a poor estimate of it in low dimension (it is zero at the center of a mode, where ε
    would be infinite). The estimate is therefore shrunk towards its upper bound d/σ_t², with the
    weight of n dimensions. Then ε <= 2 r² σ_t² (1 + d/n), and for Gaussian p_t the relative error
    of the stationary variance is at most 2/(d + n), 2 % by default. A sample does not depend on the
    other samples of the batch.

    Args:
        snr: r > 0, signal-to-noise ratio of a step; None for the published one
            (:func:`published_snr`).
        shrinkage: n >= 0, in dimensions; 0 for none.
        published: the rule of the official code instead, ε = 2 a (r ‖z‖/‖s‖)² with norms averaged
            over the batch and a = (α_t/α_s)² (1 − β_i for a DDPM, 1 for VE).

    Raises:
        ValueError: unless ``snr`` is positive and ``shrinkage`` nonnegative.

    Example:
        >>> Langevin(snr=0.075)
        Langevin(snr=0.075, shrinkage=100.0, published=False)

    References:
        Song et al. 2021, arXiv:2011.13456, algorithms 4 and 5 (appendix G).
    """

    snr: float | None = None
    shrinkage: float = 100.0
    published: bool = False

    def __post_init__(self) -> None:
        if self.snr is not None:
            check_positive("snr", self.snr)
        check_nonnegative("shrinkage", self.shrinkage)

    @property
    def corrects(self) -> bool:
        return True

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        """Correct at time t; one evaluation of the score."""
        value, z = score(x, t), noise(x)
        if self.published:
            size = self._published_size(score, value, z, t, s)
        else:
            size = self._size(score, value, t)
        return langevin_step(x, value, size, z), None

    def _size(self, score: Score, value: Tensor, t: Tensor) -> Tensor:
        variance = (check_gaussian(score.sde).sigma(t) ** 2).to(value)
        squares = flatten(value).square().sum(1)
        dimension = flatten(value).shape[1]
        mean = (variance * squares + self.shrinkage) / (dimension + self.shrinkage)
        return variance * (2 * self._snr(score) ** 2 / mean).clamp(max=_LARGEST)

    def _published_size(
        self, score: Score, value: Tensor, z: Tensor, t: Tensor, s: Tensor
    ) -> Tensor:
        ratio = flatten(z).norm(dim=1).mean() / flatten(value).norm(dim=1).mean()
        scale: Tensor = check_gaussian(score.sde).transition(s, t)[0].to(ratio)
        size: Tensor = 2 * scale**2 * (self._snr(score) * ratio) ** 2
        return size

    def _snr(self, score: Score) -> float:
        return published_snr(check_gaussian(score.sde)) if self.snr is None else self.snr


def published_snr(sde: GaussianSDE) -> float:
    """Return the best signal-to-noise ratio for one correction per step on CIFAR-10.

    0.16 if α is 1 (VE, EDM, NCSN), 0.01 if it decreases (VP, sub-VP, DDPM).

    Example:
        >>> from scoresde import VESDE, VPSDE
        >>> published_snr(VESDE()), published_snr(VPSDE())
        (0.16, 0.01)

    References:
        Song et al. 2021, arXiv:2011.13456, table 5.
    """
    end = torch.tensor(sde.T, dtype=torch.float64)
    return 0.16 if float(sde.log_alpha(end)) == 0 else 0.01


def langevin_step(x: Tensor, score: Tensor, size: Tensor, z: Tensor) -> Tensor:
    """Return x + ε s + √(2ε) z for a size ε ``()`` or ``(batch,)``."""
    return x + expand(size, x) * score + expand((2 * size).sqrt(), x) * z
