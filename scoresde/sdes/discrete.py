r"""DDPM and NCSN: Gaussian diffusions given by a table.

A chain x_0 → x_1 → … → x_N of Gaussian steps is a diffusion at the timesteps t_i = i T/N whose
curves interpolate those of the chain::

    DDPM   x_i = √(1−β_i) x_{i−1} + √β_i ε          log α(t_i) = ½ Σ log(1−β_j), σ² = 1 − α²
    NCSN   x_i = x_{i−1} + √(σ_i² − σ_{i−1}²) ε     α = 1, σ(t_i) = σ_i

The chain's kernel is ``transition`` between consecutive timesteps. The loss of DDPM or NCSN is
denoising score matching at the timesteps, Ho's sampler is the ancestral one with the timesteps as
its grid, and a network's label is the index in the table.

Between the timesteps both are continuous diffusions, for any grid and solver. log α, or log σ, is a
monotone cubic through the timesteps: drift and diffusion are continuous, as ODE solvers of higher
order need, and the curve is within O(1/N²) of the piecewise linear one. The geometric noise levels
of NCSN are those of the variance-exploding SDE, at times that differ by O(1/N).

A table's entries are numbered 0 … N−1 in the order of time, smallest noise first; entry i belongs
to ``times[i]`` = (i + 1) T/N.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from scoresde._core.checks import check_between, check_integer, check_ordered, check_positive
from scoresde._core.shapes import Time, as_time, like_time
from scoresde.sdes.gaussian import GaussianSDE, log_complement

_ZERO_SIGNAL = -24 * math.log(2)
"""log α, at most, after a last step with β = 1: the rounding of float32."""


class _Table(GaussianSDE):
    """A diffusion given by one of its curves at 0 and at N equally spaced timesteps.

    Attributes:
        times: the timesteps (i + 1) T/N, ``(N,)``, float64.
    """

    times: Tensor
    _grid: Tensor
    _curve: Tensor
    _slope: Tensor

    def __init__(self, curve: Tensor, T: float, t_min: float | None) -> None:
        N = len(curve) - 1
        grid = torch.linspace(0.0, check_positive("T", T), N + 1, dtype=torch.float64)
        super().__init__(T, float(grid[1]) if t_min is None else t_min)
        secant = curve.diff() / grid.diff()
        inner = 2 * secant[1:] * secant[:-1] / (secant[1:] + secant[:-1])
        self._register("times", grid[1:])
        self._register("_grid", grid)
        self._register("_curve", curve)
        self._register("_slope", torch.cat([secant[:1], inner, secant[-1:]]))

    def index_at(self, t: Time) -> Tensor:
        """Return the index of ``t`` in the table, 0 … N−1, shaped like ``t``.

        An integer at the timesteps, linear between them, 0 up to the first.
        """
        time = as_time(t, self.T)
        end, part = self._locate(time.reshape(-1))
        return like_time((end - 2 + part).clamp(min=0.0).reshape(time.shape), t)

    def _register(self, name: str, values: Tensor) -> None:
        """Register a buffer that is derived from the constructor's arguments, and not saved."""
        self.register_buffer(name, values, persistent=False)

    def _interpolate(self, t: Tensor) -> Tensor:
        """Return the curve: exact at 0 and the timesteps, a monotone cubic in between.

        References:
            Fritsch & Butland, *A method for constructing local monotone piecewise cubic
            interpolants*, 1984 (the slopes: harmonic means of adjacent secants).
        """
        end, part = self._locate(t.reshape(-1))
        grid, curve, slope = (v.to(t.device) for v in (self._grid, self._curve, self._slope))
        low, high, width = curve[end - 1], curve[end], grid[end] - grid[end - 1]
        bend = (1 - part) * (slope[end - 1] * width - (high - low))
        bend = bend - part * (slope[end] * width - (high - low))
        return (torch.lerp(low, high, part) + part * (1 - part) * bend).reshape(t.shape)

    def _locate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each t ``(n,)`` the index of the next grid point and the fraction up to t."""
        grid = self._grid.to(t.device)
        # under vmap a tensor may say that it is contiguous where its memory is not: clone it
        t_in_memory = t.detach().clone(memory_format=torch.contiguous_format)
        end = torch.searchsorted(grid, t_in_memory).clamp(1, len(grid) - 1)
        return end, (t - grid[end - 1]) / (grid[end] - grid[end - 1])


class DDPM(_Table):
    r"""The diffusion of DDPM: variance preserving, with the rate β_i in step i.

    ::

        log α(t_i) = ½ Σ_{j<=i} log(1 − β_j),      σ² = 1 − α².

    Args:
        betas: β_i ``(N,)``, N >= 2, in the order of time, in (0, 1). The last may be 1 (zero
            terminal signal-to-noise ratio): α(T) is then 2⁻²⁴, below the precision of float32, or
            α(t_{N−2})/2 if that is less, so that log α is finite and decreasing.
        T: noise end of time.
        t_min: data end of numerical work; the first timestep if None, where the table begins.

    Attributes:
        betas: the table, ``(N,)``, float64.
        times: the timesteps (i + 1) T/N, ``(N,)``, float64.

    Raises:
        TypeError: if ``betas`` is no sequence of real numbers.
        ValueError: if it is not one-dimensional with at least two entries in (0, 1).

    Example:
        >>> sde = DDPM.linear()
        >>> sde.alphas_cumprod[[0, -1]]
        tensor([9.9990e-01, 4.0358e-05], dtype=torch.float64)
        >>> scale, std = sde.transition(sde.times[499], sde.times[500])
        >>> bool(torch.isclose(std**2, sde.betas[500]))
        True

    References:
        Ho et al., *Denoising diffusion probabilistic models*, 2020, arXiv:2006.11239, eqs. 2 and 4;
        Song et al. 2021, arXiv:2011.13456, eq. 10 and appendix E.
    """

    betas: Tensor

    def __init__(self, betas: Tensor, T: float = 1.0, t_min: float | None = None) -> None:
        table = _check_table("betas", betas)
        inside = (table > 0) & (table < 1)
        if not bool(inside[:-1].all()) or not 0 < float(table[-1]) <= 1:
            raise ValueError(
                "betas: expected numbers in (0, 1), the last up to 1, got "
                f"{float(table.min()):g} … {float(table.max()):g}; each is the variance that its "
                "step adds: take more steps if they are too large"
            )
        log_alpha = torch.cat([table.new_zeros(1), 0.5 * torch.log1p(-table).cumsum(0)])
        last = min(_ZERO_SIGNAL, float(log_alpha[-2]) - math.log(2))
        super().__init__(log_alpha.nan_to_num(neginf=last), T, t_min)
        self._register("betas", table)

    @classmethod
    def linear(
        cls, beta_start: float = 1e-4, beta_end: float = 0.02, N: int = 1000, T: float = 1.0
    ) -> Self:
        """Return β_i rising linearly (Ho et al. 2020, section 4)."""
        return cls(_ramp(beta_start, beta_end, N), T)

    @classmethod
    def scaled_linear(
        cls, beta_start: float = 0.00085, beta_end: float = 0.012, N: int = 1000, T: float = 1.0
    ) -> Self:
        """Return √β_i rising linearly (Rombach et al. 2022, arXiv:2112.10752)."""
        check_positive("beta_start", beta_start)
        return cls(_ramp(math.sqrt(beta_start), math.sqrt(beta_end), N).square(), T)

    @classmethod
    def sigmoid(
        cls, beta_start: float = 1e-4, beta_end: float = 0.02, N: int = 1000, T: float = 1.0
    ) -> Self:
        """Return β_i rising along a sigmoid from −6 to 6 (Xu et al. 2022, arXiv:2203.02923)."""
        check_ordered("beta_start", beta_start, "beta_end", beta_end)
        rise = torch.sigmoid(_ramp(-6.0, 6.0, N))
        return cls(beta_start + (beta_end - beta_start) * rise, T)

    @classmethod
    def cosine(
        cls, N: int = 1000, s: float = 0.008, beta_max: float = 0.999, T: float = 1.0
    ) -> Self:
        """Return the table with ᾱ_i ∝ cos²((π/2)(i/N + s)/(1 + s)) and β clipped at ``beta_max``.

        References:
            Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17.
        """
        check_between("beta_max", beta_max, 0.0, 1.0)
        angle = 0.5 * math.pi * (_ramp(0.0, 1.0, check_integer("N", N, 2) + 1) + s) / (1 + s)
        late, early = angle[1:], angle[:-1]
        # cos² a − cos² b = sin(a + b) sin(b − a)
        betas = torch.sin(early + late) * torch.sin(late - early) / torch.cos(early).square()
        return cls(betas.clamp(max=beta_max), T)

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ_i = Π_{j<=i} (1 − β_j) = α(t_i)², ``(N,)``, float64."""
        return torch.exp(2 * self._curve[1:])

    def zero_terminal_snr(self) -> Self:
        """Return the table shifted and scaled in √ᾱ so that its last step leaves no signal.

        References:
            Lin et al., *Common diffusion noise schedules and sample steps are flawed*, 2024,
            arXiv:2305.08891, algorithm 1.
        """
        root = self.alphas_cumprod.sqrt()
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        alphas = torch.cat([root[:1], root[1:] / root[:-1]]).square()
        return type(self)(1 - alphas, self.T, self.t_min)

    def log_alpha(self, t: Tensor) -> Tensor:
        return self._interpolate(t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return log_complement(self.log_alpha(t))

    def prior_scale(self) -> float:
        return 1.0

    def extra_repr(self) -> str:
        return f"N={len(self.betas)}, betas={float(self.betas[0]):g} … {float(self.betas[-1]):g}"


class NCSN(_Table):
    r"""The diffusion of NCSN (SMLD): a sequence of noise levels on clean data.

    ::

        α = 1,      σ(t_i) = σ_i,      σ(0) = σ_0²/σ_1.

    Time 0 is one step below the lowest noise level, small enough to be negligible in the data.

    Args:
        sigmas: N >= 2 different noise levels, in units of the data and any order; stored in the
            order of time, smallest first (NCSN's papers list the largest first).
        T: noise end of time.
        t_min: data end of numerical work; the first timestep if None, where the table begins.

    Attributes:
        sigmas: the noise levels, ``(N,)``, ascending, float64.
        times: the timesteps (i + 1) T/N, ``(N,)``, float64.

    Raises:
        TypeError: if ``sigmas`` is no sequence of real numbers.
        ValueError: if it is not one-dimensional with at least two different positive entries.

    Example:
        >>> sde = NCSN.geometric(0.01, 1.0, 10)  # the noise levels of the first NCSN
        >>> sde.sigma(sde.times[[0, 4, 9]])
        tensor([0.0100, 0.0774, 1.0000], dtype=torch.float64)

    References:
        Song & Ermon, *Generative modeling by estimating gradients of the data distribution*, 2019,
        arXiv:1907.05600; Song et al. 2021, arXiv:2011.13456, eq. 8 and appendix B.
    """

    sigmas: Tensor

    def __init__(self, sigmas: Tensor, T: float = 1.0, t_min: float | None = None) -> None:
        levels = _check_table("sigmas", sigmas).sort().values
        if not float(levels[0]) > 0 or not bool((levels.diff() > 0).all()):
            raise ValueError(
                f"sigmas: expected positive numbers that all differ, got {levels.tolist()}; each "
                "is a noise level: leave out repeated ones"
            )
        log_sigma = levels.log()
        super().__init__(torch.cat([2 * log_sigma[:1] - log_sigma[1:2], log_sigma]), T, t_min)
        self._register("sigmas", levels)

    @classmethod
    def geometric(
        cls, sigma_min: float = 0.01, sigma_max: float = 50.0, N: int = 1000, T: float = 1.0
    ) -> Self:
        """Return N geometric noise levels from ``sigma_min`` to ``sigma_max``.

        References:
            Song & Ermon, *Improved techniques for training score-based generative models*, 2020,
            arXiv:2006.09011, section 3.1.
        """
        check_positive("sigma_min", sigma_min)
        check_ordered("sigma_min", sigma_min, "sigma_max", sigma_max)
        return cls(_ramp(math.log(sigma_min), math.log(sigma_max), N).exp(), T)

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return self._interpolate(t)

    def extra_repr(self) -> str:
        return (
            f"N={len(self.sigmas)}, sigmas={float(self.sigmas[0]):g} … {float(self.sigmas[-1]):g}"
        )


def _ramp(first: float, last: float, N: int) -> Tensor:
    """Return N numbers from ``first`` to ``last``, equally spaced, float64."""
    return torch.linspace(first, last, check_integer("N", N, 2), dtype=torch.float64)


def _check_table(name: str, values: object) -> Tensor:
    """Return a table as a new float64 tensor, or raise."""
    try:
        table = torch.as_tensor(values, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{name}: expected a tensor (N,) of numbers, got {type(values).__name__}; convert it "
            "with torch.as_tensor"
        ) from None
    if table.ndim != 1 or len(table) < 2 or not bool(table.isfinite().all()):
        raise ValueError(
            f"{name}: expected a finite tensor (N,) with N >= 2, got shape {tuple(table.shape)}; "
            "one entry per step, in one dimension"
        )
    return table
