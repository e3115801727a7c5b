"""Adams methods for the probability flow, in any coordinates and on any grid."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scoresde._checks import check_positive
from scoresde.samplers.base import Noise
from scoresde.samplers.chart import STRAIGHT, Chart, FlowSteps, Point, check_coordinates
from scoresde.samplers.multistep import Leg, Multistep, Value
from scoresde.score import Score
from scoresde.variables import Coordinates


@dataclass(frozen=True)
class AdamsBashforth(FlowSteps, Multistep):
    r"""The Adams methods: one evaluation a step, on any grid.

        z_s = z_t + ∫ P dτ        from τ_t to τ_s,

    with P the polynomial in τ through the last ``order`` slopes (Bashforth). When the slope at the
    end of a step is known, the step is remade through ``corrector`` slopes including that one
    (Moulton), which costs no evaluation. The first steps are of order 1, 2, …; later ones of less
    where the last slopes are too far away to tell what is to come.

    Args:
        order: how many slopes the polynomial goes through, the order of convergence.
        corrector: how many the corrector's goes through; its order of convergence, up to
            ``order + 1``; 0 does not correct.
        coordinates: variables of the flow.
        reach: how far back in τ the predictor's polynomial goes; by default to where there was
            five times the noise. Few steps are then of order 2, many of order 4.

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
    coordinates: Coordinates = STRAIGHT
    reach: float = 1.6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_coordinates(self.coordinates)
        check_positive("reach", self.reach)

    def clock(self, score: Score, x: Tensor, times: Tensor) -> Chart:
        """Return the chart."""
        return Chart(self.coordinates, score, x, times)

    def read(self, score: Score, x: Tensor, t: Tensor, here: Point) -> tuple[Tensor, Tensor]:
        """Return w and what its slope is proportional to."""
        w = here.enter(x)
        return w, here.pull(w, x)

    def base(self, w: Tensor, here: Point, there: Point, noise: Noise) -> tuple[Tensor, Leg]:
        """Return where w goes without a slope."""
        h = there.time - here.time
        return there.carry(w, here), Leg(here.time, h, gain=h, kernel=0.0)

    def add(self, w: Tensor, weight: float, past: Value, there: Point) -> None:
        """Add ``weight`` times a slope, in the scale of the step's end."""
        there.add(w, weight, past.value, past.moment)

    def trusted(self, values: tuple[Value, ...], h: float) -> tuple[Value, ...]:
        """Return the values within reach."""
        near = tuple(v for v in values if abs(v.time - values[0].time) <= self.reach)
        return super().trusted(near, h)

    def leave(self, w: Tensor, there: Point) -> Tensor:
        """Return the state x."""
        return there.leave(w)

    def moments(self, kernel: float, count: int) -> list[float]:
        """Return ∫₀¹ uᵏ du for k < ``count``."""
        return [1 / (k + 1) for k in range(count)]
