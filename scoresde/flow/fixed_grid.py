r"""The probability flow tabulated on a fixed grid of times, for integrators with given steps.

A table holds the coefficients of the flow (:class:`~scoresde.flow.coordinates.FlowCoefficients`)
at all times of the grid, computed before the first step: what a step needs is a row of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde._core.shapes import flatten
from scoresde.flow.coordinates import Coordinates, DataCoordinates
from scoresde.scores import Score
from scoresde.scores.predictions import NOISE, Coefficients, Prediction
from scoresde.sdes import GaussianSDE

Number = Any
"""A plain number, or a vector of them ``(d,)`` like the states."""

_BLOCK = 2**20
"""Numbers that are computed together in each column of a table."""


class FixedGridFlow:
    """The flow of a score with a Gaussian SDE, tabulated at given times.

    Args:
        coordinates: S and τ, in units of the standard deviation of the data.
        score: the score, whose moments are used.
        x: a state, whose event shape, dtype and device are those of all states.
        times: the times of the grid ``(n,)``, on the CPU.
        stages: fractions of a step in τ at which the flow is needed too.
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
        self.score = score
        self.event_shape = x.shape[1:]
        self.dtype = x.dtype
        self.coordinates = DataCoordinates(
            coordinates, moments.std, _on_device(moments.variance, x)
        )
        self._sde: GaussianSDE = score.sde
        self._mean = torch.zeros((), dtype=torch.float64)
        if bool(moments.mean.any()):
            mean = moments.mean.expand(self.event_shape).reshape(1, -1)
            self._mean = _on_device(moments.rotate(mean).squeeze(0), x)
        self._stages: dict[tuple[float, float, float], Tensor] = {}
        times = times.reshape(-1)
        if stages:
            inner = self._inside(times[:-1], times[1:], stages)
            for pair, row in zip(pairwise(times.tolist()), inner, strict=True):
                self._stages |= {
                    (*pair, fraction): time for fraction, time in zip(stages, row, strict=True)
                }
            times = torch.cat([torch.cat([times[:-1, None], inner], 1).reshape(-1), times[-1:]])
        self._times = times
        self._index = {t: i for i, t in enumerate(times.tolist())}
        self._block: dict[float, GridPoint] = {}

    def at(self, t: Tensor) -> GridPoint:
        """Return the flow at time t ``()``."""
        key = float(t)
        if key not in self._block:
            if key not in self._index:
                return self._rows(t.reshape(1))[0]
            columns = max(self.coordinates.variance.numel(), self._mean.numel())
            following = self._times[self._index[key] :][: max(1, _BLOCK // columns)]
            self._block = dict(zip(following.tolist(), self._rows(following), strict=True))
        return self._block[key]

    def ratio(self, t: Tensor) -> float:
        """Return ρ at time t ``()``, in units of the standard deviation of the data."""
        return float(self._ratio(t)) / self.coordinates.std

    def origin(self) -> GridPoint:
        """Return the coordinates at the data, ρ = 0, where y = x; the flow has no slope there."""
        zero = torch.zeros(1, 1, dtype=torch.float64)
        scale = self.coordinates.scale(zero.to(self.coordinates.variance))
        (size,), (center,) = self._unbind(scale), self._unbind(self._mean.reshape(1, -1))
        time = float(self.coordinates.time(zero))
        return GridPoint(self, zero[0, 0], time, size, gain=0.0, lead=0.0, center=center)

    def between(self, t: Tensor, s: Tensor, fraction: float) -> GridPoint:
        """Return the flow at τ = (1 − fraction) τ_t + fraction τ_s."""
        if fraction in (0.0, 1.0):
            return self.at(s if fraction else t)
        key = float(t), float(s), fraction
        if key not in self._stages:
            self._stages[key] = self._inside(t.reshape(1), s.reshape(1), [fraction])[0, 0]
        return self.at(self._stages[key])

    def _ratio(self, times: Tensor) -> Tensor:
        return torch.exp(-self._sde.half_logsnr(self._sde.interior(times)))

    def _inside(self, first: Tensor, last: Tensor, fractions: Sequence[float]) -> Tensor:
        """Return times inside steps between pairs of times ``(m,)``: ``(m, fractions)``."""
        fraction = torch.tensor(fractions, dtype=torch.float64)
        start, stop = (self.coordinates.time(self._ratio(t)).unsqueeze(1) for t in (first, last))
        ratio = self.coordinates.ratio((1 - fraction) * start + fraction * stop)
        return self._sde.time_at(-torch.log(ratio))

    def _rows(self, times: Tensor) -> list[GridPoint]:
        """Return the flow at times ``(n,)``."""
        sde = self._sde
        inside, ratio = sde.interior(times), self._ratio(times)
        alpha = sde.alpha(inside)
        scale, gain, lead, _ = self.coordinates.coefficients(alpha, sde.sigma(inside), ratio)
        center = alpha.unsqueeze(1).to(self._mean) * self._mean
        columns = (self._unbind(column) for column in (scale, gain, lead, center))
        tau = self.coordinates.time(ratio).tolist()
        return [
            GridPoint(self, t, *row) for t, *row in zip(times.unbind(), tau, *columns, strict=True)
        ]

    def _unbind(self, column: Tensor) -> Sequence[Number]:
        """Return the rows ``(d,)`` of a column ``(n, d)``, as plain numbers if d = 1."""
        if column.shape[1] == 1 and column.device.type == "cpu":
            return column.squeeze(1).tolist()
        return column.to(self.dtype).unbind()


class GridPoint(NamedTuple):
    r"""The flow at one time of the grid.

    In terms of w = Eᵀx, which is the state itself where E = 1, z = (w − αEᵀm)/(αS) and

        dz/dτ = gain · u,      u = Eᵀε̂ + lead · (w − αEᵀm).

    Steps change w in place of z.
    """

    flow: FixedGridFlow
    t: Tensor
    time: float
    """τ"""
    scale: Number
    """αS"""
    gain: Number
    """(ρ/S) d ln ρ/dτ"""
    lead: Number
    """(A − 1)/σ"""
    center: Number
    """αEᵀm"""

    def encode(self, x: Tensor) -> Tensor:
        """Return w ``(batch, d)`` for a state x ``(batch, *event)``."""
        return self.flow.score.moments.rotate(flatten(x))

    def decode(self, w: Tensor) -> Tensor:
        """Return the state x ``(batch, *event)`` for w ``(batch, d)``."""
        x = self.flow.score.moments.rotate_back(w)
        return x.reshape(-1, *self.flow.event_shape)

    def slope(self, w: Tensor, x: Tensor) -> Tensor:
        """Return u ``(batch, d)`` at w, the coordinates of the state x; one evaluation."""
        if isinstance(self.lead, Tensor):
            slope = _add(self.encode(self.flow.score.noise(x, self.t)), self.lead, w)
        else:
            slope = self.encode(self.flow.score.predict(x, self.t, ShiftedNoise(self.lead)))
        if isinstance(self.center, Tensor):
            slope = slope - self.lead * self.center
        return slope

    def rescale(self, w: Tensor, start: GridPoint) -> Tensor:
        """Return, as a new tensor, w here for the same z as w at ``start``."""
        growth: Number = self.scale / start.scale
        if not isinstance(self.center, Tensor):
            return torch.mul(w, growth)
        return _add(self.center - growth * start.center, growth, w)

    def add(self, w: Tensor, weight: float, u: Tensor, at: GridPoint) -> None:
        """Add to w the effect on it of adding ``weight`` times the slope at another point to z."""
        factor = weight * self.scale * at.gain
        if isinstance(factor, Tensor):
            w.addcmul_(u, factor)
        else:
            w.add_(u, alpha=factor)


@dataclass(frozen=True)
class ShiftedNoise(Prediction):
    """The prediction ε̂ + lead · x."""

    lead: float

    def coefficients(self, sde: GaussianSDE, t: Tensor) -> Coefficients:
        """Return (lead · σ/α, −σ/α)."""
        ratio = torch.exp(-sde.half_logsnr(t))
        return Coefficients(self.lead * ratio, -ratio)

    def directly(self, source: Prediction, output: Tensor, x: Tensor) -> Tensor | None:
        if source == NOISE:
            return torch.add(output, x, alpha=self.lead)
        return super().directly(source, output, x)


def _add(x: Tensor, factor: Number, y: Tensor) -> Tensor:
    """Return x + factor · y."""
    if isinstance(factor, Tensor):
        return torch.addcmul(x, y, factor)
    return torch.add(x, y, alpha=factor)


def _on_device(v: Tensor, x: Tensor) -> Tensor:
    """Return a vector on the device of x, and a single number on the host."""
    return v.to(x.device if v.ndim else "cpu")
