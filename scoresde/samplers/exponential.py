r"""The exact log-SNR step: what is linear is solved, what the network says is interpolated.

In the half log-SNR λ, with h = λ_s − λ_t > 0, κ = 1 + η² and η constant over the step, the reverse
family is solved by

    x_s = (σ_s/σ_t) e^{−η²h} x_t + α_s ∫₀ʰ κ e^{−κ(h−r)} x̂(λ_t + r) dr + σ_s √(1 − e^{−2η²h}) z,

and in terms of the noise by

    x_s = (α_s/α_t) x_t − (1 + η²) σ_s ∫₀ʰ e^{h−r} ε̂(λ_t + r) dr + η σ_s √(e^{2h} − 1) z.

The unknown path of x̂ or ε̂ is replaced by the polynomial in λ through its last values. That is all
there is to DDIM, DPM-Solver++, DEIS, UniPC and SA-Solver.
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
from scoresde.samplers.multistep import Leg, Memory, Multistep, Value
from scoresde.scores import Score
from scoresde.sdes import SDE

_RECURSION_FROM = 4.0
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_NODES, _WEIGHTS = 0.5 * (_NODES + 1), 0.5 * _WEIGHTS


@dataclass(frozen=True)
class DDIMNoise:
    r"""The η that adds DDIM's noise: σ_DDIM = eta · σ_s √(1 − e^{−2h}), as a rule of the step.

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
    """What :class:`Exponential` and :class:`DEIS` share: the half log-SNR as time, and η."""

    eta: float | Callable[[float], float]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.eta):
            check_nonnegative("eta", self.eta)

    @property
    def deterministic(self) -> bool:
        """Whether no noise is drawn."""
        return self.eta == 0

    def times(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        """Return times ``(N+1,)`` equidistant in log-SNR."""
        return UniformLogSNR()(sde, steps, std)

    def clock(self, score: Score, x: Tensor, times: Tensor) -> TimeTable:
        """Return the places of the times on the two curves."""
        return TimeTable(score.sde, times)

    def moments(self, kernel: float, count: int) -> list[float]:
        """Return ∫₀¹ c e^{−c(1−u)} uᵏ du for k < ``count``, with c = κh the kernel."""
        return exponential_moments(kernel, count)

    def noise_level(self, h: float) -> float:
        """Return η for a step of length h."""
        return float(self.eta(h)) if callable(self.eta) else self.eta


@dataclass(frozen=True)
class Exponential(ExponentialMultistep):
    r"""The exact step in log-SNR, with x̂ interpolated: one evaluation a step, any order, any η.

        x_s = (σ_s/σ_t) e^{−η²h} x_t + α_s ∫₀ʰ κ e^{−κ(h−r)} P(λ_t + r) dr + σ_s √(1 − e^{−2η²h}) z

    with P the polynomial through the last ``order`` values of x̂. The first steps are of order 1,
    2, …, as are steps more than three times as long as the one before them.

    | setting | published name |
    |---|---|
    | order 1, η = 0 | DDIM, Euler in σ/α |
    | order 1, ``eta=DDIMNoise(e)`` | DDIM(e) |
    | order 1, η = 1 | DDPM's posterior, SMLD's ancestral step |
    | order 2 or 3, η = 0 | DPM-Solver++(2M), (3M) |
    | order 2 or 3, η = 1 | their SDE forms |
    | η = 0, ``corrector=order + 1`` | UniPC |
    | any η, with corrector | SA-Solver |

    Args:
        order: how many values the polynomial goes through; the order of convergence as an ODE
            solver.
        eta: η >= 0, or a function of the step's length h in λ; 0 is the probability flow, 1 the
            reverse SDE. The law does not depend on it, how errors add up does.
        corrector: when the value at the end of a step is known, remake the step with a polynomial
            through ``corrector`` values including that one; 0 does not. It costs no evaluation.
        published: use the papers' approximate coefficients, to reproduce old results: the slope
            weighed as at mid-step (2M), half the weight of the curvature (3M, which makes its order
            2).

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
        """That of the polynomial, but two for the published (3M)."""
        order = super().convergence_order
        return min(order, 2.0) if self.published else order

    def read(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Memory
    ) -> tuple[Tensor, Value]:
        """Return x and x̂."""
        return x, Value(state.clock.at(t), score.denoised(x, t))

    def base(
        self, x: Tensor, here: NoiseLevel, there: NoiseLevel, noise: Noise
    ) -> tuple[Tensor, Leg]:
        """Return the step in terms of x̂."""
        h = there.time - here.time
        eta = self.noise_level(h)
        factor = math.exp(there.log_sigma - here.log_sigma - eta**2 * h)
        base = x * factor
        if eta:
            std = there.sigma * math.sqrt(-math.expm1(-2 * eta**2 * h))
            base.add_(noise(x), alpha=std)
        return base, Leg(here.time, h, there.alpha, (1 + eta**2) * h, factor)

    def trusted(self, values: tuple[Value, ...], h: float) -> tuple[Value, ...]:
        """Return the values to extrapolate from; the papers' methods trust all."""
        return values[: self.order] if self.published else super().trusted(values, h)

    def moments(self, kernel: float, count: int) -> list[float]:
        """Return ∫₀¹ c e^{−c(1−u)} uᵏ du, or what was published for it."""
        exact = exponential_moments(kernel, count)
        if self.published and count == self.order == 2:
            exact[1] = 0.5 * exact[0]
        if self.published and count == self.order == 3:
            exact[2] = 0.5 * exact[2]
        return exact


@dataclass(frozen=True)
class DEIS(ExponentialMultistep):
    r"""The exact step in log-SNR, with ε̂ interpolated.

        x_s = (α_s/α_t) x_t − (1 + η²) σ_s ∫₀ʰ e^{h−r} P(λ_t + r) dr + η σ_s √(e^{2h} − 1) z

    with P the polynomial in λ through the last ``order`` values of ε̂.

    Args:
        order: how many values the polynomial goes through.
        eta: η >= 0, or a function of the step's length h in λ.
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

    def read(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Memory
    ) -> tuple[Tensor, Value]:
        """Return x and ε̂."""
        return x, Value(state.clock.at(t), score.noise(x, t))

    def base(
        self, x: Tensor, here: NoiseLevel, there: NoiseLevel, noise: Noise
    ) -> tuple[Tensor, Leg]:
        """Return the step in terms of ε̂; its integral is that of x̂ with κ = −1."""
        h = there.time - here.time
        eta = self.noise_level(h)
        factor = math.exp(there.log_alpha - here.log_alpha)
        base = x * factor
        if eta:
            base.add_(noise(x), alpha=eta * there.sigma * math.sqrt(math.expm1(2 * h)))
        return base, Leg(here.time, h, (1 + eta**2) * there.sigma, -h, factor)


def exponential_moments(c: float, count: int) -> list[float]:
    """Return m_k = ∫₀¹ c e^{−c(1−u)} uᵏ du, 0 <= k < ``count``, for any real c.

    By quadrature where the recursion m_k = 1 − (k/c) m_{k−1} would lose digits.
    """
    if abs(c) < _RECURSION_FROM:
        powers = np.vander(_NODES, count, increasing=True)
        return ((c * _WEIGHTS * np.exp(-c * (1 - _NODES))) @ powers).tolist()
    moments = [-math.expm1(-c)]
    for k in range(1, count):
        moments.append(1 - k / c * moments[-1])
    return moments
