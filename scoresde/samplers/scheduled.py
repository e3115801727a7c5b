"""A sampler with a grid and a number of steps of its own: how published settings are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoresde._core.checks import check_integer
from scoresde.samplers.base import Noise, Sampler
from scoresde.samplers.grids import Grid
from scoresde.scores import Score
from scoresde.sdes import SDE


@dataclass(frozen=True)
class Scheduled(Sampler):
    """The same steps on another grid.

    Args:
        sampler: makes the steps.
        spacing: the grid.
        count: how many steps are made where the user does not say.

    Example:
        >>> from scoresde.samplers import Ancestral, Timesteps
        >>> Scheduled(Ancestral(variance=1.0), Timesteps(), 999)
        Scheduled(sampler=Ancestral(variance=1.0), spacing=Knots(), count=999)
    """

    sampler: Sampler
    spacing: Grid
    count: int = 1000

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, Sampler):
            raise TypeError(f"sampler: expected a Sampler such as Heun(), got {self.sampler!r}")
        if not callable(self.spacing):
            raise TypeError(f"spacing: expected a Grid such as Karras(), got {self.spacing!r}")
        check_integer("count", self.count, minimum=1)

    @property
    def default_steps(self) -> int:
        """Return ``count``."""
        return self.count

    @property
    def deterministic(self) -> bool:
        """Whether no noise is drawn."""
        return self.sampler.deterministic

    @property
    def convergence_order(self) -> float | None:
        """That of the sampler."""
        return self.sampler.convergence_order

    @property
    def corrects(self) -> bool:
        """Whether the sampler stays at its time."""
        return self.sampler.corrects

    def grid(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        """Return the grid's times ``(N+1,)``."""
        return self.spacing(sde, steps, std)

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
