"""Adams methods for the probability flow, in any coordinates and on any grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from scoresde._core.checks import check_positive
from scoresde.flow.coordinates import Coordinates
from scoresde.flow.fixed_grid import FixedGridFlow, GridPoint
from scoresde.samplers.base import Noise, half_step
from scoresde.samplers.flow_sampler import STRAIGHTEST, FlowSampler
from scoresde.samplers.grids import LogMobius
from scoresde.samplers.multistep import Leg, Memory, Multistep, Value
from scoresde.scores import Score
from scoresde.sdes import SDE

_FARTHEST = 0.5
"""How far the last polynomial is followed to the end of the flow, in lengths of the step before."""


@dataclass(frozen=True)
class AdamsBashforth(FlowSampler, Multistep):
    r"""The Adams methods: one evaluation a step, on any grid.

        z_s = z_t + ∫ P dτ        from τ_t to τ_s,

    with P the polynomial in τ through the last ``order`` slopes (Bashforth). When the slope at the
    end of a step is known, the step is remade through ``corrector`` slopes including that one
    (Moulton), which costs no evaluation. The first steps are of order 1, 2, …; later ones of less
    where the last slopes are too far away to tell what is to come.

    Evaluations are not spent where nothing is to be learnt. Where all is noise z rests, in
    standardised coordinates, and the first slope is taken in the middle of the first step instead
    of at its start. Where almost none is left, the flow is followed to the data by the last
    polynomial (:meth:`end`).

    Args:
        order: how many slopes the polynomial goes through, the order of convergence.
        corrector: how many the corrector's goes through; its order of convergence, up to
            ``order + 1``; 0 does not correct.
        coordinates: variables of the flow.
        reach: how far back in τ the predictor's polynomial goes; by default to where there was
            about five times the noise. Few steps are then of order 2, many of order 4.

    Raises:
        TypeError: if ``coordinates`` are none.
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
        >>> torch.allclose(one, many, rtol=1e-4)  # the flow of Gaussian data stands still
        True

    References:
        Hairer, Nørsett & Wanner, *Solving ordinary differential equations I*, 1993, section III.5
        (variable steps).
    """

    order: int = 4
    corrector: int = 4
    coordinates: Coordinates = STRAIGHTEST
    reach: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        FlowSampler.__post_init__(self)
        check_positive("reach", self.reach)

    def times(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        """Return times ``(N+1,)`` that are fine where the data's structure appears.

        The first step, which is of order one, is the longest of few and the shortest of many, like
        N⁻², so that its error falls as fast as that of the others.
        """
        first = min(3.5, 30 / steps) if math.isfinite(self.coordinates.stationary_above) else 1.0
        return LogMobius(lower=0.045, upper=5.0).through(sde, steps, std, first)

    def clock(self, score: Score, x: Tensor, times: Tensor) -> FixedGridFlow:
        """Return the chart."""
        return self.tabulate(score, x, times)

    def read(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Memory
    ) -> tuple[Tensor, Value]:
        """Return w and what its slope is proportional to.

        In the first step, where z rests, those in its middle: z goes there at rest, and again with
        the slope found there (Euler's implicit step, with one iteration).
        """
        here = state.clock.at(t)
        w = here.encode(x)
        if state.values or state.clock.ratio(t) < self.coordinates.stationary_above:
            return w, Value(here, here.slope(w, x))
        middle = state.clock.between(t, s, 0.5)
        w = middle.rescale(w, here)
        value = Value(middle, middle.slope(w, middle.decode(w)))
        middle.add(w, middle.time - here.time, value.value, middle)
        return w, value

    def base(
        self, w: Tensor, here: GridPoint, there: GridPoint, noise: Noise
    ) -> tuple[Tensor, Leg]:
        """Return where w goes without a slope."""
        h = there.time - here.time
        return there.rescale(w, here), Leg(here.time, h, gain=h, kernel=0.0)

    def add(self, w: Tensor, weight: float, past: Value, there: GridPoint) -> None:
        """Add ``weight`` times a slope, in the scale of the step's end."""
        there.add(w, weight, past.value, past.moment)

    def trusted(self, values: tuple[Value, ...], h: float) -> tuple[Value, ...]:
        """Return the values within reach."""
        near = tuple(v for v in values if abs(v.time - values[0].time) <= self.reach)
        return super().trusted(near, h)

    def decode(self, w: Tensor, there: GridPoint) -> Tensor:
        """Return the state x."""
        return there.decode(w)

    @property
    def kept(self) -> int:
        """How many values a step leaves: those that the next one or the end ask for."""
        return max(super().kept, self.order)

    def end(self, score: Score, x: Tensor, t: Tensor, state: Memory) -> Tensor:
        """Return where the flow ends at 0: by the last polynomial, at no evaluation.

        Where that would be followed farther than half of the step before, as with many steps, by
        :func:`half_step`, which asks the score once.
        """
        here, origin = state.clock.at(t), state.clock.origin()
        latest, *before = state.values
        ahead = origin.time - latest.time
        farthest = _FARTHEST * abs(latest.time - before[0].time) if before else math.inf
        if not (math.isfinite(ahead) and abs(ahead) <= farthest):
            return half_step(score, x, t)
        h = origin.time - here.time
        w = origin.rescale(here.encode(x), here)
        leg = Leg(here.time, h, gain=h, kernel=0.0)
        weights = self._weights(leg, self.trusted(state.values, ahead))
        self._add(w, weights, state.values, origin)
        return origin.decode(w)

    def moments(self, kernel: float, count: int) -> list[float]:
        """Return ∫₀¹ uᵏ du for k < ``count``."""
        return [1 / (k + 1) for k in range(count)]
