r"""The flow of a score in coordinates of one's choice, for integrators with given steps.

The flow is told as dz/dτ in the variables of :mod:`scoresde.flow.coordinates`; a method of given order
does the rest. In the standardised variables, the default, the flow of Gaussian data stands still
and what is integrated is what the data have beyond a Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde._core.shapes import flatten
from scoresde.flow.coordinates import Coordinates, Windowed
from scoresde.samplers.base import Sampler, gaussian, half_step
from scoresde.samplers.grids import LogMobius
from scoresde.scores import Score
from scoresde.scores.predictions import NOISE, Coefficients, Prediction
from scoresde.sdes import SDE, GaussianSDE

STRAIGHT = Windowed()
"""The coordinates in which paths bend least, in the mean over mixtures of all kinds."""

Number = Any
"""A plain number, or a vector of them ``(d,)`` like the states."""

_BLOCK = 2**20
"""Numbers that are made ready at once, in each of a chart's tables."""


class FixedGridFlow:
    """Coordinates of a score's flow; what does not depend on the state is made ready at once.

    Args:
        coordinates: the variables, in units of the data's spread.
        score: the score, whose moments are used.
        x: a state, whose event shape, dtype and device are those of all states.
        times: the times ahead ``(n,)``, on the CPU.
        stages: parts of the way from one of them to the next where the chart is needed too, in τ.
    """

    def __init__(
        self,
        coordinates: Coordinates,
        score: Score,
        x: Tensor,
        times: Tensor,
        stages: Sequence[float] = (),
    ) -> None:
        moments = score.moments
        moments.check_event("x", x.shape[1:])
        self.coordinates = coordinates
        self.score = score
        self.event_shape = x.shape[1:]
        self.unit = moments.std
        self.variance = _ready(moments.variance, x) / self.unit**2
        self.mean = torch.zeros((), dtype=torch.float64)
        if bool(moments.mean.any()):
            mean = moments.mean.expand(self.event_shape).reshape(1, -1)
            self.mean = _ready(moments.rotate(mean).squeeze(0), x)
        self.dtype = x.dtype
        self._between: dict[tuple[float, float, float], Tensor] = {}
        times = times.reshape(-1)
        if stages:
            inner = self._inner(times[:-1], times[1:], stages)
            for pair, row in zip(pairwise(times.tolist()), inner, strict=True):
                self._between |= {
                    (*pair, part): time for part, time in zip(stages, row, strict=True)
                }
            times = torch.cat([torch.cat([times[:-1, None], inner], 1).reshape(-1), times[-1:]])
        self._times = times
        self._index = {t: i for i, t in enumerate(times.tolist())}
        self._points: dict[float, GridPoint] = {}

    def at(self, t: Tensor) -> GridPoint:
        """Return the chart at time t ``()``."""
        key = float(t)
        if key not in self._points:
            if key not in self._index:
                return self._made(t.reshape(1))[0]
            size = max(1, _BLOCK // max(self.variance.numel(), self.mean.numel()))
            ahead = self._times[self._index[key] :][:size]
            self._points = dict(zip(ahead.tolist(), self._made(ahead), strict=True))
        return self._points[key]

    def ratio(self, t: Tensor) -> float:
        """Return ρ at time t ``()``, in units of the data's spread."""
        sde = gaussian(self.score.sde)
        return math.exp(-float(sde.half_logsnr(sde.interior(t)))) / float(self.unit)

    def origin(self) -> GridPoint:
        """Return the chart at the data, ρ = 0, where y = x; the flow is not told there."""
        zero = torch.zeros(1, 1, dtype=torch.float64)
        scale = self.coordinates.scale(zero.to(self.variance), self.variance)
        (size,), (centre,) = self._rows(self.unit * scale), self._rows(self.mean.reshape(1, -1))
        time = float(self.coordinates.time(zero))
        return GridPoint(self, zero[0, 0], time, size, gain=0.0, lead=0.0, centre=centre)

    def between(self, t: Tensor, s: Tensor, part: float) -> GridPoint:
        """Return the chart at τ = (1 − part) τ_t + part τ_s."""
        if part in (0.0, 1.0):
            return self.at(s if part else t)
        key = float(t), float(s), part
        if key not in self._between:
            self._between[key] = self._inner(t.reshape(1), s.reshape(1), [part])[0, 0]
        return self.at(self._between[key])

    def _inner(self, first: Tensor, last: Tensor, parts: Sequence[float]) -> Tensor:
        """Return the times at parts of the ways between pairs of times ``(m,)``: ``(m, parts)``."""
        sde, part = gaussian(self.score.sde), torch.tensor(parts, dtype=torch.float64)
        ends = (torch.exp(-sde.half_logsnr(sde.interior(t))) / self.unit for t in (first, last))
        start, stop = (self.coordinates.time(ratio).unsqueeze(1) for ratio in ends)
        ratio = self.coordinates.ratio((1 - part) * start + part * stop)
        return sde.time_at(-torch.log(self.unit * ratio))

    def _made(self, times: Tensor) -> list[GridPoint]:
        """Return the chart at times ``(n,)``."""
        curves, coordinates = gaussian(self.score.sde), self.coordinates
        inside = curves.interior(times)
        ratio = torch.exp(-curves.half_logsnr(inside)) / self.unit
        moments = coordinates.time(ratio).tolist()
        alpha, sigma, ratio = (
            v.unsqueeze(1) for v in (curves.alpha(inside), curves.sigma(inside), ratio)
        )
        there = ratio.to(self.variance)
        scale = coordinates.scale(there, self.variance)
        kept, rate = coordinates.slope(there, self.variance)
        tables = (
            (self.unit * alpha).to(scale) * scale,
            rate * there / scale,
            (kept / rate - 1) / sigma.to(scale),
            alpha.to(self.mean) * self.mean,
        )
        rows = zip(*(self._rows(table) for table in tables), strict=True)
        return [
            GridPoint(self, t, tau, *row)
            for t, tau, row in zip(times.unbind(), moments, rows, strict=True)
        ]

    def _rows(self, table: Tensor) -> Sequence[Number]:
        """Return the rows ``(d,)`` of a table ``(n, d)``, as plain numbers if d = 1."""
        if table.shape[1] == 1 and table.device.type == "cpu":
            return table.squeeze(1).tolist()
        return table.to(self.dtype).unbind()


class GridPoint(NamedTuple):
    r"""A chart at one time: states in and out, and the slope of the flow.

    With w = Eᵀ x and z = (w − αEᵀm)/(αS), the flow is

        dz/dτ = (ρ/S) d ln ρ/dτ · u,      u = ε̂ + (A − 1)/σ · (w − αEᵀm),

    where ε̂ stands for Eᵀ ε̂: no digits are lost near the data, as they would be by D − y. Steps are
    told as those of w, which is the state itself where E = 1.
    """

    chart: FixedGridFlow
    t: Tensor
    time: float
    """τ"""
    scale: Number
    """αS"""
    gain: Number
    """ρ/S · d ln ρ/dτ"""
    lead: Number
    """(A − 1)/σ"""
    centre: Number
    """αEᵀm"""

    def encode(self, x: Tensor) -> Tensor:
        """Return w ``(batch, d)`` for a state x ``(batch, *event)``."""
        return self.chart.score.moments.rotate(flatten(x))

    def decode(self, w: Tensor) -> Tensor:
        """Return the state x ``(batch, *event)`` for w ``(batch, d)``."""
        x = self.chart.score.moments.rotate_back(w)
        return x.reshape(-1, *self.chart.event_shape)

    def slope(self, w: Tensor, x: Tensor) -> Tensor:
        """Return u ``(batch, d)`` at w, which is the state x; one evaluation of the score."""
        if isinstance(self.lead, Tensor):
            slope = _plus(self.encode(self.chart.score.noise(x, self.t)), self.lead, w)
        else:
            slope = self.encode(self.chart.score.predict(ShiftedNoise(self.lead), x, self.t))
        if isinstance(self.centre, Tensor):
            slope = slope - self.lead * self.centre
        return slope

    def rescale(self, w: Tensor, start: GridPoint) -> Tensor:
        """Return, as a tensor of its own, where w at ``start`` goes while z rests."""
        growth = self.scale / start.scale
        if not isinstance(self.centre, Tensor):
            return w * growth
        return _plus(self.centre - growth * start.centre, growth, w)

    def add(self, w: Tensor, weight: float, u: Tensor, at: GridPoint) -> None:
        """Add to w what ``weight`` times the slope at another point adds to z."""
        factor = weight * self.scale * at.gain
        if isinstance(factor, Tensor):
            w.addcmul_(u, factor)
        else:
            w.add_(u, alpha=factor)


@dataclass(frozen=True)
class ShiftedNoise(Prediction):
    """What a network would put out that predicts ε̂ + lead · x."""

    lead: float

    def coefficients(self, sde: GaussianSDE, t: Tensor) -> Coefficients:
        """Return (lead · σ/α, −σ/α)."""
        ratio = torch.exp(-sde.half_logsnr(t))
        return Coefficients(self.lead * ratio, -ratio)

    def directly(self, source: Prediction, output: Tensor, x: Tensor) -> Tensor | None:
        """Return ε̂ + lead · x of a network that predicts ε̂."""
        if source == NOISE:
            return torch.add(output, x, alpha=self.lead)
        return super().directly(source, output, x)


def _plus(x: Tensor, factor: Number, y: Tensor) -> Tensor:
    """Return x + factor · y."""
    if isinstance(factor, Tensor):
        return torch.addcmul(x, y, factor)
    return torch.add(x, y, alpha=factor)


def _ready(v: Tensor, x: Tensor) -> Tensor:
    """Return a vector on the device of x, and a single number on the host."""
    return v.to(x.device if v.ndim else "cpu")


class FlowSampler(Sampler):
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

    def grid(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        """Return times ``(N+1,)`` that are fine where the data's structure appears."""
        return LogMobius(lower=0.04, upper=3.0)(sde, steps, std)

    def end(self, score: Score, x: Tensor, t: Tensor, state: Any) -> Tensor:
        """Return where the flow ends at 0 (:func:`half_step`); one evaluation."""
        return half_step(score, x, t)


def check_coordinates(coordinates: object) -> None:
    """Refuse what are no coordinates."""
    if not isinstance(coordinates, Coordinates):
        raise TypeError(f"coordinates: expected some such as Standardized(), got {coordinates!r}")
