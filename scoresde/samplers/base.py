r"""The interface of a sampler: a grid of times, and a step from one time to the next.

Noise is transformed to data along times T = t_0 > t_1 > … > t_N = t_min. A sampler defines the step
from t to s < t; the loop is the same for all (:func:`scoresde.samplers.iterate`)::

    state = sampler.init(score, x, times)
    for t, s in pairwise(times):
        x, state = sampler.step(score, x, t, s, state, noise)
    x = sampler.end(score, x, times[-1], state)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde._core.checks import check_instance, check_integer
from scoresde.scores import Score
from scoresde.sdes import SDE, GaussianSDE

Noise = Callable[[Tensor], Tensor]
"""Draws independent N(0, 1) like its argument; the only source of randomness of a step."""


@dataclass(frozen=True)
class Sampler(ABC):
    """A method that transforms noise to data: define :meth:`step`, and :meth:`init` for its state.

    Samplers are frozen dataclasses of settings; the state of a run is passed from step to step.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> from scoresde.samplers import sample
        >>> @dataclass(frozen=True)
        ... class Jump(Sampler):
        ...     "Denoise, then add noise again: consistency sampling."
        ...
        ...     def step(self, score, x, t, s, state, noise):
        ...         return score.sde.perturb(score.denoised(x, t), s, noise(x)), state
        >>> score = FunctionScore(lambda x, t: -x, VPSDE())
        >>> sample(score, (3, 2), Jump(), steps=2).shape
        torch.Size([3, 2])
    """

    @property
    def default_steps(self) -> int:
        """Number of steps unless the user gives one."""
        return 1000

    @property
    def deterministic(self) -> bool:
        """Whether no noise is drawn, so that the map can be inverted (:func:`encode`)."""
        return False

    @property
    def convergence_order(self) -> float | None:
        """The p of an error O(N⁻ᵖ): of the samples if deterministic, else of mean and variance."""
        return None

    @property
    def corrects(self) -> bool:
        """Whether a step from t leaves p_t invariant, instead of going from p_t to p_s."""
        return False

    def times(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        """Return the times of ``steps`` steps, here equidistant in t.

        Args:
            sde: the diffusion.
            steps: N >= 1.
            std: standard deviation of the data (the root of their mean variance), 1 if unknown; the
                unit of the noise ratio for grids that depend on it.

        Returns:
            Float64 times ``(N+1,)`` on the CPU, decreasing from ``sde.T`` to ``sde.t_min``.
        """
        check_integer("steps", steps, minimum=1)
        return torch.linspace(sde.T, sde.t_min, steps + 1, dtype=torch.float64)

    def init(self, score: Score, x: Tensor, times: Tensor) -> Any:
        """Return the ``state`` of the first step; None here.

        Args:
            score: the score.
            x: the initial state, ``(batch, *event)``.
            times: the times of all steps ``(N+1,)``, float64 on the CPU, so that coefficients can
                be computed at once; steps between other times must be possible too.

        Returns:
            Anything that :meth:`step` takes as its ``state``.
        """
        return None

    @abstractmethod
    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        """Make a step from time t to time s < t.

        Args:
            score: the score, with its diffusion ``score.sde``.
            x: the state at t, ``(batch, *event)``.
            t: the current time, float64, ``()``, on the CPU for any device of ``x``.
            s: the next time, likewise.
            state: returned by :meth:`init` or the previous step.
            noise: ``noise(x)`` draws independent N(0, 1) like ``x``.

        Returns:
            The state at s, shaped like ``x``, and the ``state`` of the next step.
        """

    def end(self, score: Score, x: Tensor, t: Tensor, state: Any) -> Tensor:
        """Return the sample for the last state; at most one evaluation of the score.

        Here x̂(x, t), the mean of the data given the state, if the diffusion is Gaussian; otherwise
        the state itself.

        Args:
            score: the score.
            x: the last state ``(batch, *event)``.
            t: its time, ``()``.
            state: returned by the last step.

        Returns:
            The samples, shaped like ``x``.
        """
        return score.denoised(x, t) if score.sde.gaussian else x


def half_step(score: Score, x: Tensor, t: Tensor) -> Tensor:
    """Integrate the probability flow from a time t with little noise to ρ = 0, in one Euler step.

    With dy/dρ² = −½ ∇ log p for y = x/α, the flow ends in x/α + ½ (σ²/α) s = ½ (x/α + x̂), up to
    O(ρ⁴). Denoising makes a step twice as long: to first order, the variance of x̂ is too small by
    as much as that of x/α is too large.

    Args:
        score: the score; if its diffusion is not Gaussian, the states are returned unchanged.
        x: states at t ``(batch, *event)``.
        t: their time, ``()``.

    Returns:
        The states at 0, shaped like ``x``.

    Example:
        >>> from scoresde import GaussianMixture, VESDE
        >>> data = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1, 1), VESDE())
        >>> t = torch.tensor(0.4, dtype=torch.float64)  # σ = 0.30
        >>> x = torch.ones(1, 1)  # the exact flow ends at 1/√(1 + σ²)
        >>> [round(float(v), 3) for v in (half_step(data, x, t), 1 / (1 + 0.3**2) ** 0.5)]
        [0.958, 0.958]
    """
    if not score.sde.gaussian:
        return x
    return (x / noise_level_at(score.sde, t).alpha).add_(score.denoised(x, t)).mul_(0.5)


class NoiseLevel(NamedTuple):
    """log α and log σ at one time as Python floats, so that no step synchronizes with a device."""

    log_alpha: float
    log_sigma: float

    @property
    def half_logsnr(self) -> float:
        """λ = log α − log σ."""
        return self.log_alpha - self.log_sigma

    @property
    def time(self) -> float:
        """λ, the time variable of :class:`~scoresde.samplers.Exponential`."""
        return self.half_logsnr

    @property
    def alpha(self) -> float:
        """α."""
        return math.exp(self.log_alpha)

    @property
    def sigma(self) -> float:
        """σ."""
        return math.exp(self.log_sigma)

    @property
    def ratio(self) -> float:
        """ρ = σ/α."""
        return math.exp(-self.half_logsnr)


class TimeTable:
    """The noise levels of a diffusion at given times, computed at once; others on demand.

    Args:
        sde: the diffusion.
        times: the given times ``(n,)``, on the CPU.

    Raises:
        TypeError: if the diffusion is not Gaussian.
    """

    def __init__(self, sde: SDE, times: Tensor) -> None:
        self._sde = check_gaussian(sde)
        self._levels: dict[float, NoiseLevel] = {}
        self._add(times.reshape(-1))

    def at(self, t: Tensor) -> NoiseLevel:
        """Return the noise level at a time ``()``."""
        found = self._levels.get(float(t))
        if found is None:
            self._add(t.reshape(1))
            found = self._levels[float(t)]
        return found

    def _add(self, times: Tensor) -> None:
        inside = self._sde.interior(times)
        curves = self._sde.log_alpha(inside).tolist(), self._sde.log_sigma(inside).tolist()
        self._levels |= zip(times.tolist(), map(NoiseLevel, *curves), strict=True)


def noise_level_at(sde: SDE, t: Tensor) -> NoiseLevel:
    """Return the noise level at a time ``()``.

    Raises:
        TypeError: if the diffusion is not Gaussian.
    """
    return TimeTable(sde, t).at(t)


def check_gaussian(sde: SDE) -> GaussianSDE:
    """Return the diffusion, for steps that need its α and σ.

    Raises:
        TypeError: if it is a general SDE, which has only a drift and a diffusion coefficient.
    """
    hint = "a general SDE has no α and σ: use EulerMaruyama() or TorchSDE()"
    return check_instance("score.sde", sde, GaussianSDE, "VPSDE()", hint)
