"""The common part of integrators of the probability flow with given steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from scoresde._core.checks import check_instance
from scoresde.flow.coordinates import Coordinates, Windowed
from scoresde.flow.fixed_grid import FixedGridFlow
from scoresde.samplers.base import Sampler, check_gaussian, half_step
from scoresde.samplers.grids import LogMobius
from scoresde.scores import Score
from scoresde.sdes import SDE

DEFAULT_COORDINATES = Windowed()
"""The coordinates in which paths of mixtures of many kinds were straightest on average."""


class FlowSampler(Sampler):
    """A deterministic integrator of the flow in given coordinates."""

    coordinates: Coordinates

    def __post_init__(self) -> None:
        check_instance("coordinates", self.coordinates, Coordinates, "Standardized()")

    @property
    def default_steps(self) -> int:
        return 20

    @property
    def deterministic(self) -> bool:
        return True

    def times(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        """Return times ``(N+1,)``, dense at noise levels near the scale of the data."""
        return LogMobius(lower=0.04, upper=3.0)(sde, steps, std)

    def tabulate(
        self, score: Score, x: Tensor, times: Tensor, stages: Sequence[float] = ()
    ) -> FixedGridFlow:
        """Return the flow of a score at given times (see :class:`FixedGridFlow`)."""
        check_gaussian(score.sde)
        return FixedGridFlow(self.coordinates, score, x, times, stages)

    def end(self, score: Score, x: Tensor, t: Tensor, state: Any) -> Tensor:
        """Return the end of the flow at 0 (:func:`half_step`); one evaluation."""
        return half_step(score, x, t)
