"""Adams methods for the probability flow, in any coordinates and on any grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde._core.checks import check_positive
from scoresde.flow.coordinates import Coordinates
from scoresde.flow.fixed_grid import FixedGridFlow, GridPoint
from scoresde.samplers.base import Noise, half_step
from scoresde.samplers.flow_sampler import DEFAULT_COORDINATES, FlowSampler
from scoresde.samplers.grids import LogMobius
from scoresde.samplers.multistep import Evaluation, History, Multistep, StepWeights
from scoresde.scores import Score
from scoresde.sdes import SDE

_MAX_EXTRAPOLATION = 0.5
"""How far the last polynomial is extrapolated to ρ = 0, in units of the previous step."""


@dataclass(frozen=True)
class AdamsBashforth(FlowSampler, Multistep):
    r"""Adams methods: one evaluation of the score per step, on any grid.

    The step is ::

        z_s = z_t + ∫ P dτ        from τ_t to τ_s,

    where P is the polynomial in τ through the last ``order`` slopes (Adams–Bashforth). Once the
    slope at the end of a step is known, the step is corrected with the polynomial through
    ``corrector`` slopes including that one (Adams–Moulton), which costs no evaluation. The first
    steps are of order 1, 2, …; later steps are of a lower order where the previous slopes are
    farther away than ``max_lookback``.

    The two ends need no evaluation of their own. At high noise z is constant for Gaussian data in
    standardized coordinates, and the first slope is evaluated at the midpoint of the first step. At
    low noise the last polynomial is integrated to ρ = 0 (:meth:`end`).

    Args:
        order: number of slopes that the predictor's polynomial interpolates; the order of
            convergence.
        corrector: the same for the corrector, whose order of convergence is at most ``order + 1``;
            0 for no corrector.
        coordinates: coordinates of the flow.
        max_lookback: how far back in τ the predictor uses slopes; the default reaches back to about
            five times the noise ratio. A few long steps are then of order 2, many short ones of
            order 4.

    Raises:
        TypeError: if ``coordinates`` is not a Coordinates.
        ValueError: if a number is out of range.

    Example:
        >>> import torch
        >>> from scoresde import GaussianMixture, VESDE
        >>> from scoresde.samplers import sample
        >>> data = GaussianMixture(torch.ones(1), torch.ones(1, 2), torch.eye(2)[None], VESDE())
        >>> start = torch.tensor([[30.0, -20.0]])
        >>> one, many = (
        ...     sample(data, None, AdamsBashforth(), start=start, steps=n) for n in (1, 50)
        ... )
        >>> torch.allclose(one, many, rtol=1e-4)  # exact for Gaussian data
        True

    References:
        Hairer, Nørsett & Wanner, *Solving ordinary differential equations I*, 1993, section III.5
        (variable steps).
    """

    order: int = 4
    corrector: int = 4
    coordinates: Coordinates = DEFAULT_COORDINATES
    max_lookback: float = 1.5

    def __post_init__(self) -> None:
        Multistep.__post_init__(self)
        FlowSampler.__post_init__(self)
        check_positive("max_lookback", self.max_lookback)

    def times(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        """Return times ``(N+1,)``, dense at noise levels near the scale of the data.

        The first step is of order one. It is longer than the others if N is small, and its length
        falls like N⁻² if N is large, so that its error falls as fast as theirs.
        """
        first = min(3.5, 30 / steps) if math.isfinite(self.coordinates.stationary_above) else 1.0
        return LogMobius(lower=0.045, upper=5.0).times_to_data(sde, steps, std, first)

    def evaluate(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: History
    ) -> tuple[Tensor, Evaluation]:
        """Return w and the slope of the flow, up to a factor that the table holds.

        In a first step at high noise, both at the midpoint: z there is the initial z plus half a
        step along the slope at that z (implicit Euler with one iteration).
        """
        start = state.table.at(t)
        w = start.encode(x)
        if state.evaluations or state.table.ratio(t) < self.coordinates.stationary_above:
            return w, Evaluation(start, start.slope(w, x))
        middle = state.table.between(t, s, 0.5)
        w = middle.rescale(w, start)
        evaluation = Evaluation(middle, middle.slope(w, middle.decode(w)))
        middle.add(w, middle.time - start.time, evaluation.value, middle)
        return w, evaluation

    def linear_step(
        self, z: Tensor, start: GridPoint, end: GridPoint, noise: Noise
    ) -> tuple[Tensor, StepWeights]:
        h = end.time - start.time
        return end.rescale(z, start), StepWeights(start.time, h, gain=h, kernel=0.0)

    def add(self, z: Tensor, weight: float, evaluation: Evaluation, end: GridPoint) -> None:
        end.add(z, weight, evaluation.value, evaluation.point)

    def usable_history(
        self, evaluations: tuple[Evaluation, ...], h: float
    ) -> tuple[Evaluation, ...]:
        latest = evaluations[0].time
        near = tuple(e for e in evaluations if abs(e.time - latest) <= self.max_lookback)
        return super().usable_history(near, h)

    def decode(self, z: Tensor, end: GridPoint) -> Tensor:
        return end.decode(z)

    @property
    def history_length(self) -> int:
        """Number of evaluations that a step passes to the next one, or to :meth:`end`."""
        return max(super().history_length, self.order)

    def end(self, score: Score, x: Tensor, t: Tensor, state: History) -> Tensor:
        """Return the end of the flow at ρ = 0, by integrating the last polynomial; no evaluation.

        Where this would extrapolate by more than half of the previous step, as with many steps, by
        :func:`half_step` instead, with one evaluation.
        """
        table: FixedGridFlow = state.table
        start, origin = table.at(t), table.origin()
        latest, *previous = state.evaluations
        distance = origin.time - latest.time
        limit = math.inf
        if previous:
            limit = _MAX_EXTRAPOLATION * abs(latest.time - previous[0].time)
        if not (math.isfinite(distance) and abs(distance) <= limit):
            return half_step(score, x, t)
        w, step = self.linear_step(start.encode(x), start, origin, torch.zeros_like)
        usable = self.usable_history(state.evaluations, distance)
        self._add(w, self._weights(step, usable), state.evaluations, origin)
        return origin.decode(w)

    def phi_moments(self, kernel: float, count: int) -> list[float]:
        return [1 / (k + 1) for k in range(count)]
