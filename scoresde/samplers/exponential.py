r"""Exponential integrators in the log-SNR: the linear part is solved, the network interpolated.

In the half log-SNR λ, with h = λ_s − λ_t > 0, κ = 1 + η² and η constant over the step, the family
of reverse SDEs is solved by

    x_s = (σ_s/σ_t) e^{−η²h} x_t + α_s ∫₀ʰ κ e^{−κ(h−r)} x̂(λ_t + r) dr + σ_s √(1 − e^{−2η²h}) z,

and in terms of the noise by

    x_s = (α_s/α_t) x_t − (1 + η²) σ_s ∫₀ʰ e^{h−r} ε̂(λ_t + r) dr + η σ_s √(e^{2h} − 1) z.

The unknown path of x̂ or ε̂ is replaced by the polynomial in λ through its last values. DDIM,
DPM-Solver++, DEIS, UniPC and SA-Solver differ only in η, the order and the corrector.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from scoresde._core.checks import check_between, check_nonnegative
from scoresde.samplers.base import Noise, NoiseLevel, TimeTable
from scoresde.samplers.grids import UniformLogSNR
from scoresde.samplers.multistep import Evaluation, History, Multistep, StepWeights
from scoresde.scores import Score
from scoresde.sdes import SDE

_RECURSION_FROM = 4.0
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_NODES, _WEIGHTS = 0.5 * (_NODES + 1), 0.5 * _WEIGHTS


@dataclass(frozen=True)
class DDIMNoise:
    r"""The η with the noise of DDIM, σ_DDIM = eta · σ_s √(1 − e^{−2h}), as a function of h.

    Args:
        eta: in [0, 1]; 0 is deterministic, 1 the posterior of DDPM.

    Example:
        >>> round(DDIMNoise(1.0)(0.5), 6), DDIMNoise(0.0)(0.5)
        (1.0, 0.0)

    References:
        Song et al., *Denoising diffusion implicit models*, 2021, arXiv:2010.02502, eq. 16.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        check_between("eta", self.eta, 0.0, 1.0)

    def __call__(self, h: float) -> float:
        """Return η = √(−ln(1 − eta² (1 − e^{−2h})) / 2h) for a step of length h in λ."""
        return math.sqrt(-math.log1p(self.eta**2 * math.expm1(-2 * h)) / (2 * h))


class ExponentialMultistep(Multistep):
    """The common part of :class:`Exponential` and :class:`DEIS`: λ as time, and η."""

    eta: float | Callable[[float], float]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.eta):
            check_nonnegative("eta", self.eta)

    @property
    def deterministic(self) -> bool:
        return self.eta == 0

    def times(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        """Return times ``(N+1,)`` equidistant in log-SNR."""
        return UniformLogSNR()(sde, steps, std)

    def tabulate(self, score: Score, x: Tensor, times: Tensor) -> TimeTable:
        return TimeTable(score.sde, times)

    def phi_moments(self, kernel: float, count: int) -> list[float]:
        """Return ∫₀¹ c e^{−c(1−u)} uᵏ du for k < ``count``, with c = κh the kernel."""
        return exponential_moments(kernel, count)

    def eta_at(self, h: float) -> float:
        """Return η for a step of length h."""
        return float(self.eta(h)) if callable(self.eta) else self.eta


@dataclass(frozen=True)
class Exponential(ExponentialMultistep):
    r"""The exact step in log-SNR with x̂ interpolated: one evaluation a step, any order, any η.

    The step is ::

        x_s = (σ_s/σ_t) e^{−η²h} x_t + α_s ∫₀ʰ κ e^{−κ(h−r)} P(λ_t + r) dr + σ_s √(1 − e^{−2η²h}) z

    with P the polynomial through the last ``order`` values of x̂. The first steps are of order 1,
    2, …; a step more than three times as long as the previous one is of order 1.

    =============================  =============================================
    setting                        published name
    =============================  =============================================
    order 1, η = 0                 DDIM, Euler in σ/α
    order 1, ``DDIMNoise(e)``      DDIM(e)
    order 1, η = 1                 posterior of DDPM, ancestral sampling of SMLD
    order 2 or 3, η = 0            DPM-Solver++(2M), (3M)
    order 2 or 3, η = 1            SDE-DPM-Solver++(2M), (3M)
    η = 0, corrector = order + 1   UniPC
    any η, with a corrector        SA-Solver
    =============================  =============================================

    Args:
        order: number of values that the polynomial interpolates; the order of convergence as an
            ODE solver.
        eta: η >= 0, or a function of the step length h in λ; 0 is the probability flow, 1 the
            reverse SDE. The exact solution has the same distribution for every η; the accumulation
            of errors differs.
        corrector: number of values, including the one at the end of the step, that the corrector's
            polynomial interpolates once that value is known; 0 for no corrector. It costs no
            evaluation.
        published: use the approximate coefficients of the papers, to reproduce published results:
            the slope weighted as at mid-step (2M), half the weight of the curvature (3M, which
            reduces its order to 2).

    Raises:
        ValueError: if a number is out of range, or ``published`` has no published coefficients.

    Example:
        >>> Exponential(order=3, eta=1.0)
        Exponential(order=3, eta=1.0, corrector=0, published=False)

    References:
        Song et al. 2021, arXiv:2010.02502; Lu et al., *DPM-Solver++*, 2022, arXiv:2211.01095, eqs.
        9 and 14; Zhao et al., *UniPC*, 2023, arXiv:2302.04867; Xue et al., *SA-Solver*, 2023,
        arXiv:2309.05019; Gonzalez et al., *SEEDS*, 2023, arXiv:2305.14267.
    """

    order: int = 2
    eta: float | Callable[[float], float] = 0.0
    corrector: int = 0
    published: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.published and (self.order > 3 or self.corrector):
            raise ValueError(
                "published: expected order 1, 2 or 3 and no corrector, got "
                f"order={self.order}, corrector={self.corrector}; elsewhere the exact "
                "coefficients are the published ones"
            )

    @property
    def convergence_order(self) -> float:
        """The order of the polynomial; two for the published (3M)."""
        order = super().convergence_order
        return min(order, 2.0) if self.published else order

    def evaluate(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: History
    ) -> tuple[Tensor, Evaluation]:
        """Return x and x̂."""
        return x, Evaluation(state.table.at(t), score.denoised(x, t))

    def linear_step(
        self, z: Tensor, start: NoiseLevel, end: NoiseLevel, noise: Noise
    ) -> tuple[Tensor, StepWeights]:
        h = end.time - start.time
        eta = self.eta_at(h)
        factor = math.exp(end.log_sigma - start.log_sigma - eta**2 * h)
        result = z * factor
        if eta:
            std = end.sigma * math.sqrt(-math.expm1(-2 * eta**2 * h))
            result.add_(noise(z), alpha=std)
        return result, StepWeights(start.time, h, end.alpha, (1 + eta**2) * h, factor)

    def usable_history(
        self, evaluations: tuple[Evaluation, ...], h: float
    ) -> tuple[Evaluation, ...]:
        """Return the evaluations to extrapolate from; with ``published`` the last ``order``."""
        return (
            evaluations[: self.order] if self.published else super().usable_history(evaluations, h)
        )

    def phi_moments(self, kernel: float, count: int) -> list[float]:
        """Return ∫₀¹ c e^{−c(1−u)} uᵏ du, or the published approximation."""
        exact = exponential_moments(kernel, count)
        if self.published and count == self.order == 2:
            exact[1] = 0.5 * exact[0]
        if self.published and count == self.order == 3:
            exact[2] = 0.5 * exact[2]
        return exact


@dataclass(frozen=True)
class DEIS(ExponentialMultistep):
    r"""The exact step in log-SNR with ε̂ interpolated.

    The step is ::

        x_s = (α_s/α_t) x_t − (1 + η²) σ_s ∫₀ʰ e^{h−r} P(λ_t + r) dr + η σ_s √(e^{2h} − 1) z

    with P the polynomial in λ through the last ``order`` values of ε̂.

    Args:
        order: number of values that the polynomial interpolates.
        eta: η >= 0, or a function of the step length h in λ.
        corrector: as in :class:`Exponential`.

    Example:
        >>> DEIS()
        DEIS(order=3, eta=0.0, corrector=0)

    References:
        Zhang & Chen, *Fast sampling of diffusion models with exponential integrator*, 2023,
        arXiv:2204.13902, eq. 14 (in log ρ); Lu et al., *DPM-Solver*, 2022, arXiv:2206.00927, eq.
        3.4.
    """

    order: int = 3
    eta: float | Callable[[float], float] = 0.0
    corrector: int = 0

    def evaluate(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: History
    ) -> tuple[Tensor, Evaluation]:
        """Return x and ε̂."""
        return x, Evaluation(state.table.at(t), score.noise(x, t))

    def linear_step(
        self, z: Tensor, start: NoiseLevel, end: NoiseLevel, noise: Noise
    ) -> tuple[Tensor, StepWeights]:
        h = end.time - start.time
        eta = self.eta_at(h)
        factor = math.exp(end.log_alpha - start.log_alpha)
        result = z * factor
        if eta:
            result.add_(noise(z), alpha=eta * end.sigma * math.sqrt(math.expm1(2 * h)))
        # the integral is that of x̂ with κ = −1
        return result, StepWeights(start.time, h, (1 + eta**2) * end.sigma, -h, factor)


def exponential_moments(c: float, count: int) -> list[float]:
    """Return m_k = ∫₀¹ c e^{−c(1−u)} uᵏ du, 0 <= k < ``count``, for any real c.

    For small c by quadrature, where the recursion m_k = 1 − (k/c) m_{k−1} would lose digits.
    """
    if abs(c) < _RECURSION_FROM:
        powers = np.vander(_NODES, count, increasing=True)
        integrals: list[float] = ((c * _WEIGHTS * np.exp(-c * (1 - _NODES))) @ powers).tolist()
        return integrals
    moments = [-math.expm1(-c)]
    for k in range(1, count):
        moments.append(1 - k / c * moments[-1])
    return moments
