r"""What a sampler is: a grid of times, and a step from one of them to the next.

Noise becomes data along times T = t_0 > t_1 > … > t_N = t_min. A member of the family knows how to
go from t to s < t, and nothing else; the one loop of :mod:`scoresde.samplers.sample` does the rest:

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

from scoresde._core.checks import check_integer
from scoresde.scores import Score
from scoresde.sdes import SDE, GaussianSDE

Noise = Callable[[Tensor], Tensor]
"""Draws independent N(0, 1) like its argument; a step gets all its randomness from it."""


@dataclass(frozen=True)
class Sampler(ABC):
    """A way from noise to data: define :meth:`step`, and :meth:`init` if it has a memory.

    Members are frozen dataclasses: recipes that print themselves and hold no state of a run.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> from scoresde.samplers import sample
        >>> @dataclass(frozen=True)
        ... class Jump(Sampler):
        ...     "Denoise, and noise again: consistency sampling."
        ...
        ...     def step(self, score, x, t, s, state, noise):
        ...         return score.sde.perturb(score.denoised(x, t), s, noise(x)), state
        >>> score = FunctionScore(lambda x, t: -x, VPSDE())
        >>> sample(score, (3, 2), Jump(), steps=2).shape
        torch.Size([3, 2])
    """

    @property
    def default_steps(self) -> int:
        """How many steps are made where the user does not say."""
        return 1000

    @property
    def deterministic(self) -> bool:
        """Whether no noise is drawn, so that the way can be gone back (:func:`encode`)."""
        return False

    @property
    def convergence_order(self) -> float | None:
        """p, if errors fall like N⁻ᵖ: of the end if deterministic, else of mean and variance."""
        return None

    @property
    def corrects(self) -> bool:
        """Whether a step stays at its time t and moves samples towards p_t."""
        return False

    def times(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        """Return the times of ``steps`` steps, here equidistant in t.

        Args:
            sde: the diffusion.
            steps: N >= 1.
            spread: root of the mean variance of the data, 1 if unknown; grids that are fine where
                the data's structure appears take it as their unit.

        Returns:
            Float64 times ``(N+1,)`` on the CPU, falling from ``sde.T`` to ``sde.t_min``.
        """
        check_integer("steps", steps, minimum=1)
        return torch.linspace(sde.T, sde.t_min, steps + 1, dtype=torch.float64)

    def init(self, score: Score, x: Tensor, times: Tensor) -> Any:
        """Return what the first step is to find as its ``state``; None here.

        Args:
            score: the score.
            x: the first state, ``(batch, *event)``.
            times: the way that lies ahead ``(N+1,)``, float64 on the CPU, so that what all steps
                need can be worked out at once; steps between other times must be possible too.
        """
        return None

    @abstractmethod
    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        """Go from time t to time s < t.

        Args:
            score: the score, which knows its diffusion.
            x: the state at t, ``(batch, *event)``.
            t: where we are, float64, ``()``, on the CPU whatever the device of ``x``.
            s: where we go, likewise.
            state: what :meth:`init` or the step before returned.
            noise: ``noise(x)`` draws independent N(0, 1) like ``x``.

        Returns:
            The state at s, shaped like ``x``, and what the next step is to find.
        """

    def end(self, score: Score, x: Tensor, t: Tensor, state: Any) -> Tensor:
        """Return the sample that is made of the last state; at most one evaluation of the score.

        Here x̂(x, t), the mean of the data given the state, where the diffusion is Gaussian, so that
        there is one, else the state itself.

        Args:
            score: the score.
            x: the last state ``(batch, *event)``.
            t: where it is, ``()``.
            state: what the last step returned.
        """
        return score.denoised(x, t) if score.sde.gaussian else x


def half_step(score: Score, x: Tensor, t: Tensor) -> Tensor:
    """Follow the probability flow from t, where little noise is left, down to 0.

    The flow moves by half of what the score says, dy/dρ² = −½ ∇ log p for y = x/α, so that it ends
    in x/α + ½ (σ²/α) s = ½ (x/α + x̂), up to O(ρ⁴). x̂ itself goes twice as far: its law is too
    narrow by as much as that of x/α is too wide.

    Args:
        score: the score; of a diffusion that is not Gaussian the state is returned as it is.
        x: states at t ``(batch, *event)``.
        t: where they are, ``()``.

    Returns:
        The states at 0, shaped like ``x``.

    Example:
        >>> from scoresde import GaussianMixture, VESDE
        >>> data = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1, 1), VESDE())
        >>> t = torch.tensor(0.4, dtype=torch.float64)  # where σ = 0.30
        >>> x = torch.ones(1, 1)  # the flow takes it to 1/√(1 + σ²)
        >>> [round(float(v), 3) for v in (half_step(data, x, t), 1 / (1 + 0.3**2) ** 0.5)]
        [0.958, 0.958]
    """
    if not score.sde.gaussian:
        return x
    return (x / noise_level_at(score.sde, t).alpha).add_(score.denoised(x, t)).mul_(0.5)


class NoiseLevel(NamedTuple):
    """A time as a Gaussian diffusion sees it, in plain numbers that cost a device nothing."""

    log_alpha: float
    log_sigma: float

    @property
    def half_logsnr(self) -> float:
        """λ = log α − log σ."""
        return self.log_alpha - self.log_sigma

    @property
    def time(self) -> float:
        """λ, as the time of methods that count in it."""
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
    """Where times lie on the two curves of a diffusion: those ahead, found at once, and others.

    Args:
        sde: the diffusion.
        times: those ahead ``(n,)``, on the CPU.

    Raises:
        TypeError: if the diffusion is not Gaussian.
    """

    def __init__(self, sde: SDE, times: Tensor) -> None:
        self._sde = check_gaussian(sde)
        self._known: dict[float, NoiseLevel] = {}
        self._add(times.reshape(-1))

    def at(self, t: Tensor) -> NoiseLevel:
        """Return the place of a time ``()``."""
        found = self._known.get(float(t))
        if found is None:
            self._add(t.reshape(1))
            found = self._known[float(t)]
        return found

    def _add(self, times: Tensor) -> None:
        inside = self._sde.interior(times)
        curves = self._sde.log_alpha(inside).tolist(), self._sde.log_sigma(inside).tolist()
        self._known |= zip(times.tolist(), map(NoiseLevel, *curves), strict=True)


def noise_level_at(sde: SDE, t: Tensor) -> NoiseLevel:
    """Return where a time ``()`` lies on the two curves.

    Raises:
        TypeError: if the diffusion has none.
    """
    return TimeTable(sde, t).at(t)


def check_gaussian(sde: SDE) -> GaussianSDE:
    """Return the diffusion, for steps that need its α and σ.

    Raises:
        TypeError: if it is a general SDE, of which only drift and diffusion are known.
    """
    if not isinstance(sde, GaussianSDE):
        raise TypeError(
            "sampler: expected one for a general SDE, since α and σ are not known of "
            f"{type(sde).__name__}; use EulerMaruyama() or TorchSDE()"
        )
    return sde
