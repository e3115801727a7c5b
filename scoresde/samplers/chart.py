r"""The flow of a score in coordinates of one's choice, for integrators with given steps.

The flow is told as dz/dτ in the variables of :mod:`scoresde.variables`; a method of given order
does the rest. In the standardised variables, the default, the flow of Gaussian data stands still
and what is integrated is what the data have beyond a Gaussian.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde._shapes import flatten
from scoresde.samplers.base import Sampler, half_step, place
from scoresde.samplers.grids import LogMobius
from scoresde.score import Score
from scoresde.sdes import SDE
from scoresde.variables import Coordinates, Windowed

STRAIGHT = Windowed()
"""The coordinates in which paths bend least, in the mean over mixtures of all kinds."""


class Chart:
    """Coordinates of a score's flow; what does not depend on the time is made ready once.

    Args:
        coordinates: the variables, in units of the data's spread.
        score: the score, whose moments are used.
        x: a state, whose event shape, dtype and device are those of all states.
    """

    def __init__(self, coordinates: Coordinates, score: Score, x: Tensor) -> None:
        score.moments.check_event("x", x.shape[1:])
        self.coordinates = coordinates
        self.score = score
        self.event_shape = x.shape[1:]
        self.unit = score.moments.spread
        mean = score.moments.mean.expand(self.event_shape).reshape(1, -1)
        self.mean = score.moments.rotate(mean).squeeze(0).to(x)
        self.variance = score.moments.variance.to(x.device) / self.unit**2

    def at(self, t: Tensor) -> Point:
        """Return the chart at time t ``()``."""
        return Point(self, t)

    def between(self, first: Point, last: Point, part: float) -> Point:
        """Return the chart at τ = (1 − part) τ_first + part τ_last, 0 <= part <= 1."""
        if part in (0.0, 1.0):
            return last if part else first
        time = torch.tensor((1 - part) * first.time + part * last.time, dtype=torch.float64)
        ratio = self.unit * self.coordinates.ratio(time)
        return Point(self, self.score.sde.time_at(-torch.log(ratio)))


class Point:
    """A chart at one time: states in and out, and the slope of the flow.

    Attributes:
        time: τ.
    """

    def __init__(self, chart: Chart, t: Tensor) -> None:
        here, coordinates = place(chart.score.sde, t), chart.coordinates
        ratio = torch.tensor(here.ratio / chart.unit, dtype=torch.float64)
        scale = coordinates.scale(ratio, chart.variance)
        kept, fresh = coordinates.slope(ratio, chart.variance)
        # D = y − ρ ε̂ in S dz/dτ = p w − q D: no digits are lost near the data
        kept, fresh = kept - fresh, fresh * ratio / scale
        self.chart = chart
        self.t = t
        self.centre = here.alpha * chart.mean
        self.time = float(coordinates.time(ratio))
        self.scale = (here.alpha * chart.unit * scale).to(chart.mean)
        self.kept, self.fresh = kept.to(chart.mean), fresh.to(chart.mean)

    def enter(self, x: Tensor) -> Tensor:
        """Return z ``(batch, d)`` for a state x ``(batch, *event)``."""
        rotated = self.chart.score.moments.rotate(flatten(x))
        return torch.addcmul(-self.centre / self.scale, rotated, 1 / self.scale)

    def leave(self, z: Tensor) -> Tensor:
        """Return the state x ``(batch, *event)`` for z ``(batch, d)``."""
        rotated = torch.addcmul(self.centre, z, self.scale)
        x = self.chart.score.moments.rotate_back(rotated)
        return x.reshape(-1, *self.chart.event_shape)

    def slope(self, z: Tensor, x: Tensor) -> Tensor:
        """Return dz/dτ ``(batch, d)`` at z, which is the state x; one evaluation of the score."""
        noise = flatten(self.chart.score.noise(x, self.t))
        return (z * self.kept).addcmul_(self.chart.score.moments.rotate(noise), self.fresh)


class FlowSteps(Sampler):
    """What integrators of the flow share: no noise, coordinates, and a grid that suits them."""

    coordinates: Coordinates

    @property
    def default_steps(self) -> int:
        """How many steps are made where the user does not say."""
        return 20

    @property
    def deterministic(self) -> bool:
        """Whether no noise is drawn."""
        return True

    def grid(self, sde: SDE, steps: int, spread: float = 1.0) -> Tensor:
        """Return times ``(N+1,)`` that are fine where the data's structure appears."""
        return LogMobius(lower=0.04, upper=3.0)(sde, steps, spread)

    def end(self, score: Score, x: Tensor, t: Tensor) -> Tensor:
        """Return where the flow ends at 0 (:func:`half_step`); one evaluation."""
        return half_step(score, x, t)


def check_coordinates(coordinates: object) -> None:
    """Refuse what are no coordinates."""
    if not isinstance(coordinates, Coordinates):
        raise TypeError(f"coordinates: expected some such as Standardised(), got {coordinates!r}")
