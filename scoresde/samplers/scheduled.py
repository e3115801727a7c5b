"""A sampler with a grid and a number of steps of its own: how published settings are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoresde._core.checks import check_instance, check_integer
from scoresde.samplers.base import Noise, Sampler
from scoresde.samplers.grids import Grid
from scoresde.scores import Score
from scoresde.sdes import SDE


@dataclass(frozen=True)
class Scheduled(Sampler):
    """The same steps on another grid.

    Args:
        sampler: makes the steps.
        grid: the rule ``grid(sde, steps, std)`` for the times of the steps.
        steps: N, the number of steps unless :func:`~scoresde.samplers.sample` is given another.

    Example:
        >>> from scoresde.samplers import Ancestral, Timesteps
        >>> Scheduled(Ancestral(variance=1.0), Timesteps(), 999)
        Scheduled(sampler=Ancestral(variance=1.0), grid=Timesteps(), steps=999)
    """

    sampler: Sampler
    grid: Grid
    steps: int = 1000

    def __post_init__(self) -> None:
        check_instance("sampler", self.sampler, Sampler, "Heun()")
        if not callable(self.grid):
            raise TypeError(f"grid: expected a Grid such as Karras(), got {self.grid!r}")
        check_integer("steps", self.steps, minimum=1)

    @property
    def default_steps(self) -> int:
        return self.steps

    @property
    def deterministic(self) -> bool:
        return self.sampler.deterministic

    @property
    def convergence_order(self) -> float | None:
        return self.sampler.convergence_order

    @property
    def corrects(self) -> bool:
        return self.sampler.corrects

    def times(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        """Return the grid's times ``(N+1,)``."""
        return self.grid(sde, steps, std)

    def init(self, score: Score, x: Tensor, times: Tensor) -> Any:
        """Return what the sampler starts with."""
        return self.sampler.init(score, x, times)

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        """Make the sampler's step from t to s."""
        return self.sampler.step(score, x, t, s, state, noise)

    def end(self, score: Score, x: Tensor, t: Tensor, state: Any) -> Tensor:
        """Return the sampler's sample of the last state."""
        return self.sampler.end(score, x, t, state)
