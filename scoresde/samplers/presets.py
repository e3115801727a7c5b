"""Samplers under the names and with the settings of their papers.

Each is a recipe of the members of this folder, which prints itself.
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
    """DDPM's ancestral sampling; on a DDPM's own table take ``grid=Timesteps(), steps=999``.

    Args:
        variance: 1 for σ² = β ("fixed large", the paper's), 0 for the posterior's.
        grid: where the steps are made.
        steps: how many.

    Example:
        >>> ddpm().sampler
        Ancestral(variance=1.0)

    References:
        Ho et al. 2020, arXiv:2006.11239, algorithm 2.
    """
    return Scheduled(Ancestral(variance), grid, steps)


def ddim(eta: float = 0.0, grid: Grid = UniformTime(), steps: int = 50) -> Scheduled:
    """DDIM; deterministic with eta = 0, DDPM's posterior with eta = 1.

    Args:
        eta: the paper's η, in [0, 1].
        grid: where the steps are made; ``UniformTime(power=2)`` is the paper's for CIFAR-10.
        steps: how many.

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
    """Song et al.'s predictor–corrector sampler.

    | model | snr |
    |---|---|
    | CIFAR-10, VE | 0.16 (0.17 after ancestral steps, 0.22 without any) |
    | CIFAR-10, VP | 0.01 (0.04 after the probability flow, 0.27 without any) |
    | CelebA 64² | 0.17 |
    | 256², VE (2000 steps) | 0.075 |
    | 1024², VE (2000 steps) | 0.15 |

    Args:
        snr: signal-to-noise ratio of a correction; None for the published 0.16 (VE) or 0.01 (VP).
        corrections: how many at each time.
        predictor: what goes on to the next time.
        grid: where; the paper ends VP and sub-VP at 1e-3, ``UniformTime(end=1e-3)``.
        steps: how many.

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
    """NCSN's annealed Langevin dynamics: no prediction, corrections at falling noise levels.

    Args:
        snr: √(ε/2)/σ_L of the paper: 0.316 (100 corrections, 10 levels) in NCSN; 0.176 (5, 232) for
            CIFAR-10, 0.128 (5, 500) for CelebA, 0.095 (3, 1086) for bedrooms in NCSNv2.
        corrections: how many at each noise level.
        grid: the noise levels.
        steps: how many.

    Example:
        >>> annealed_langevin(snr=0.316, corrections=100, steps=10).steps
        10

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
    """EDM's sampler: Heun in σ on the Karras grid, with noise added before each step if asked for.

    17 steps and the denoising at the end are the 35 evaluations of the paper's N = 18.

    Args:
        churn: S_churn; 0 is deterministic.
        lowest: S_min.
        highest: S_max.
        inflation: S_noise.
        grid: where the steps are made.
        steps: how many.

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
        published: the paper's approximate coefficients.
        grid: where the steps are made.
        steps: how many.

    Example:
        >>> dpm_solver(3).sampler
        Exponential(order=3, eta=0.0, corrector=0, published=False)

    References:
        Lu et al. 2022, arXiv:2211.01095, algorithms 2 and 4.
    """
    return Scheduled(Exponential(order, eta, published=published), grid, steps)


def unipc(order: int = 3, grid: Grid = UniformLogSNR(), steps: int = 20) -> Scheduled:
    """UniPC with exact coefficients ("varying"): every step is remade when its end is known.

    Args:
        order: of the predictor; the corrector is of one more.
        grid: where the steps are made.
        steps: how many.

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
        order: of the polynomial through the noise.
        grid: where the steps are made; ``UniformTime(power=2)`` is the paper's for VP.
        steps: how many.

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
    """SA-Solver: stochastic Adams, predictor and corrector of the same number of steps.

    Args:
        order: s, of both.
        eta: the paper's τ.
        grid: where the steps are made.
        steps: how many.

    Example:
        >>> sa_solver().sampler
        Exponential(order=3, eta=1.0, corrector=4, published=False)

    References:
        Xue et al. 2023, arXiv:2309.05019, algorithm 1.
    """
    return Scheduled(Exponential(order, eta, corrector=order + 1), grid, steps)
