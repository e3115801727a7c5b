"""Samplers by the names and with the settings of their papers.

Each returns a :class:`~scoresde.samplers.Scheduled`: a sampler with its grid and number of steps.
"""

from __future__ import annotations

import math

from scoresde._core.checks import check_nonnegative
from scoresde.samplers.ancestral import Ancestral
from scoresde.samplers.base import Sampler
from scoresde.samplers.churn import Churn
from scoresde.samplers.exponential import DEIS, DDIMNoise, Exponential
from scoresde.samplers.grids import Grid, Karras, UniformLogSNR, UniformTime
from scoresde.samplers.heun import Heun
from scoresde.samplers.langevin import AnnealedLangevin, Langevin
from scoresde.samplers.predictor_corrector import NoPredictor, PredictorCorrector
from scoresde.samplers.reverse_diffusion import ReverseDiffusion
from scoresde.samplers.scheduled import Scheduled

_LARGEST_GAMMA = math.sqrt(2) - 1


def ddpm(variance: float = 1.0, grid: Grid = UniformTime(), steps: int = 1000) -> Scheduled:
    """Ancestral sampling of DDPM; for a DDPM of 1000 timesteps ``grid=Timesteps(), steps=999``.

    Args:
        variance: 1 for σ² = β ("fixed large", as in the paper), 0 for that of the posterior.
        grid: the times of the steps.
        steps: N, the number of steps.

    Returns:
        The sampler with its grid.

    Example:
        >>> ddpm().sampler
        Ancestral(variance=1.0)

    References:
        Ho et al. 2020, arXiv:2006.11239, algorithm 2.
    """
    return Scheduled(Ancestral(variance), grid, steps)


def ddim(eta: float = 0.0, grid: Grid = UniformTime(), steps: int = 50) -> Scheduled:
    """DDIM: deterministic for eta = 0, the posterior of DDPM for eta = 1.

    Args:
        eta: η of the paper, in [0, 1].
        grid: the times of the steps; in the paper ``UniformTime(power=2)`` for CIFAR-10.
        steps: N, the number of steps.

    Returns:
        The sampler with its grid.

    Example:
        >>> ddim().sampler
        Exponential(order=1, eta=0.0, corrector=0, published=False)

    References:
        Song et al. 2021, arXiv:2010.02502, eqs. 12 and 16.
    """
    return Scheduled(Exponential(order=1, eta=DDIMNoise(eta) if eta else 0.0), grid, steps)


def pc(
    snr: float | None = None,
    corrections: int = 1,
    predictor: Sampler = ReverseDiffusion(),
    grid: Grid = UniformTime(),
    steps: int = 1000,
) -> Scheduled:
    """The predictor–corrector sampler of Song et al.

    =====================  ================================================================
    model                  snr
    =====================  ================================================================
    CIFAR-10, VE           0.16 (0.17 with ancestral steps, 0.22 without a predictor)
    CIFAR-10, VP           0.01 (0.04 with the probability flow, 0.27 without a predictor)
    CelebA 64²             0.17
    256², VE, 2000 steps   0.075
    1024², VE, 2000 steps  0.15
    =====================  ================================================================

    Args:
        snr: signal-to-noise ratio of a correction; None for the published 0.16 (VE) or 0.01 (VP).
        corrections: number of corrections at each time.
        predictor: the sampler that makes the step to the next time.
        grid: the times of the steps; in the paper ``UniformTime(end=1e-3)`` for VP and sub-VP.
        steps: N, the number of steps.

    Returns:
        The sampler with its grid.

    Example:
        >>> pc(snr=0.075, steps=2000).steps
        2000

    References:
        Song et al. 2021, arXiv:2011.13456, algorithms 1 to 5, appendix G and table 5.
    """
    return Scheduled(PredictorCorrector(predictor, Langevin(snr), corrections), grid, steps)


def annealed_langevin(
    snr: float = 0.176, corrections: int = 5, grid: Grid = UniformLogSNR(), steps: int = 231
) -> Scheduled:
    """Annealed Langevin dynamics of NCSN: no predictor, corrections at decreasing noise levels.

    N steps have N + 1 noise levels, and there are corrections at every level, the lowest included.

    Args:
        snr: √(ε/2)/σ_L of the paper: 0.316 (100 corrections, 10 levels) in NCSN; 0.176 (5, 232) for
            CIFAR-10, 0.128 (5, 500) for CelebA, 0.095 (3, 1086) for bedrooms in NCSNv2.
        corrections: number of corrections at each noise level.
        grid: the times of the noise levels.
        steps: N, the number of noise levels minus one.

    Returns:
        The sampler with its grid.

    Example:
        >>> annealed_langevin(snr=0.316, corrections=100, steps=9).steps  # the 10 levels of NCSN
        9

    References:
        Song & Ermon 2019, arXiv:1907.05600, algorithm 1; Song & Ermon, *Improved techniques for
        training score-based generative models*, 2020, arXiv:2006.09011.
    """
    return Scheduled(
        PredictorCorrector(NoPredictor(), AnnealedLangevin(snr), corrections), grid, steps
    )


def edm_heun(
    churn: float = 0.0,
    lowest: float = 0.05,
    highest: float = 50.0,
    inflation: float = 1.003,
    grid: Grid = Karras(),
    steps: int = 17,
) -> Scheduled:
    """The sampler of EDM: Heun's method in σ on the Karras grid, stochastic if churn > 0.

    17 steps and the final denoising are the 35 evaluations of N = 18 in the paper.

    Args:
        churn: S_churn; 0 for the deterministic sampler.
        lowest: S_min.
        highest: S_max.
        inflation: S_noise.
        grid: the times of the steps.
        steps: N, the number of steps.

    Returns:
        The sampler with its grid.

    Example:
        >>> edm_heun().sampler
        Heun(eta=0.0)
        >>> round(edm_heun(churn=40, steps=255).sampler.gamma, 4)
        0.1562

    References:
        Karras et al. 2022, arXiv:2206.00364, algorithm 2 and table 5.
    """
    if not check_nonnegative("churn", churn):
        return Scheduled(Heun(), grid, steps)
    gamma = min(churn / (steps + 1), _LARGEST_GAMMA)
    return Scheduled(Churn(Heun(), gamma, lowest, highest, inflation), grid, steps)


def dpm_solver(
    order: int = 2,
    eta: float = 0.0,
    published: bool = False,
    grid: Grid = UniformLogSNR(),
    steps: int = 20,
) -> Scheduled:
    """DPM-Solver++, multistep: 2M and 3M, as an ODE (eta = 0) or an SDE (eta = 1).

    Args:
        order: 2 or 3.
        eta: η.
        published: use the approximate coefficients of the paper.
        grid: the times of the steps.
        steps: N, the number of steps.

    Returns:
        The sampler with its grid.

    Example:
        >>> dpm_solver(3).sampler
        Exponential(order=3, eta=0.0, corrector=0, published=False)

    References:
        Lu et al. 2022, arXiv:2211.01095, algorithms 2 and 4.
    """
    return Scheduled(Exponential(order, eta, published=published), grid, steps)


def unipc(order: int = 3, grid: Grid = UniformLogSNR(), steps: int = 20) -> Scheduled:
    """UniPC with exact coefficients ("varying"): each step is corrected with its end value.

    Args:
        order: order of the predictor; the corrector has one order more.
        grid: the times of the steps.
        steps: N, the number of steps.

    Returns:
        The sampler with its grid.

    Example:
        >>> unipc().sampler
        Exponential(order=3, eta=0.0, corrector=4, published=False)

    References:
        Zhao et al. 2023, arXiv:2302.04867, algorithms 1 and 2.
    """
    return Scheduled(Exponential(order, corrector=order + 1), grid, steps)


def deis(order: int = 3, grid: Grid = UniformLogSNR(), steps: int = 20) -> Scheduled:
    """DEIS, multistep in log ρ.

    Args:
        order: number of noise predictions that are interpolated.
        grid: the times of the steps; in the paper ``UniformTime(power=2)`` for VP.
        steps: N, the number of steps.

    Returns:
        The sampler with its grid.

    Example:
        >>> deis().sampler
        DEIS(order=3, eta=0.0, corrector=0)

    References:
        Zhang & Chen 2023, arXiv:2204.13902, section 3.2.
    """
    return Scheduled(DEIS(order), grid, steps)


def sa_solver(
    order: int = 3, eta: float = 1.0, grid: Grid = UniformLogSNR(), steps: int = 50
) -> Scheduled:
    """SA-Solver: a stochastic Adams method, predictor and corrector with the same number of steps.

    Args:
        order: s, the number of steps of both.
        eta: τ of the paper.
        grid: the times of the steps.
        steps: N, the number of steps.

    Returns:
        The sampler with its grid.

    Example:
        >>> sa_solver().sampler
        Exponential(order=3, eta=1.0, corrector=4, published=False)

    References:
        Xue et al. 2023, arXiv:2309.05019, algorithm 1.
    """
    return Scheduled(Exponential(order, eta, corrector=order + 1), grid, steps)
