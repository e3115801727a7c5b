"""Runge–Kutta methods for the probability flow, in any coordinates and on any grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from scoresde._core.checks import check_instance, check_integer
from scoresde.flow.coordinates import Coordinates
from scoresde.flow.fixed_grid import FixedGridFlow, GridPoint
from scoresde.samplers.base import Noise
from scoresde.samplers.flow_sampler import DEFAULT_COORDINATES, FlowSampler
from scoresde.scores import Score


@dataclass(frozen=True)
class Tableau:
    r"""An explicit Runge–Kutta method, k_i = f(τ + c_i h, z + h Σ_j a_ij k_j), z + h Σ b_i k_i.

    Args:
        weights: b, one for each stage.
        matrix: the rows of a below its diagonal, for all stages but the first; their sums are c.
        order: the order of convergence. The order conditions up to 4 are checked; if 0, it is as
            many of them as hold.

    Raises:
        ValueError: unless row i has i entries and the weights sum to one, or if the order
            conditions of the declared order do not hold.

    Example:
        >>> Tableau(weights=(0.0, 1.0), matrix=((0.5,),)) == MIDPOINT
        True
    """

    weights: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...] = ()
    order: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        lengths = [len(row) for row in self.matrix]
        if lengths != list(range(1, len(self.weights))) or abs(sum(self.weights) - 1) > 1e-9:
            raise ValueError(
                "weights, matrix: expected weights that sum to 1 and rows of 1, 2, … entries, one "
                f"row less than weights, got {self.weights} and {self.matrix}; MIDPOINT is "
                "Tableau(weights=(0.0, 1.0), matrix=((0.5,),))"
            )
        check_integer("order", self.order, minimum=0)
        found = self._conditions_hold_up_to()
        if min(self.order, 4) > found:
            raise ValueError(
                f"order: expected at most {found}, up to which the order conditions hold, got "
                f"{self.order}; compare the coefficients with their source"
            )
        object.__setattr__(self, "order", self.order or found)

    def _conditions_hold_up_to(self) -> int:
        """Return up to which order, at most 4, all order conditions hold.

        b·1 = 1;  b·c = 1/2;  b·c² = 1/3, b·Ac = 1/6;  b·c³ = 1/4, b·(c ∘ Ac) = 1/8, b·Ac² = 1/12,
        b·AAc = 1/24.
        """
        stages = len(self.weights)
        a = np.array([(*row, *(0.0,) * (stages - len(row))) for row in ((), *self.matrix)])
        b, c = np.array(self.weights), a.sum(1)
        levels = (
            {1 / 2: c},
            {1 / 3: c**2, 1 / 6: a @ c},
            {1 / 4: c**3, 1 / 8: c * (a @ c), 1 / 12: a @ c**2, 1 / 24: a @ a @ c},
        )
        holds = [
            all(abs(b @ tree - value) < 1e-9 for value, tree in level.items()) for level in levels
        ]
        return 1 + [*holds, False].index(False)


HEUN = Tableau((1 / 2, 1 / 2), ((1.0,),))
MIDPOINT = Tableau((0.0, 1.0), ((1 / 2,),))
RALSTON = Tableau((1 / 4, 3 / 4), ((2 / 3,),))
HEUN3 = Tableau((1 / 4, 0.0, 3 / 4), ((1 / 3,), (0.0, 2 / 3)))
KUTTA3 = Tableau((1 / 6, 2 / 3, 1 / 6), ((1 / 2,), (-1.0, 2.0)))
RK4 = Tableau((1 / 6, 1 / 3, 1 / 3, 1 / 6), ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)))


@dataclass(frozen=True)
class RungeKutta(FlowSampler):
    r"""An explicit Runge–Kutta method: one evaluation per stage of each step.

    In the coordinates ``VarianceExploding()``, ``HEUN`` is the deterministic sampler of EDM.

    Args:
        tableau: HEUN, MIDPOINT, RALSTON (order 2), HEUN3, KUTTA3 (3), RK4 (4), or another.
        coordinates: coordinates of the flow.

    Raises:
        TypeError: if an argument is of the wrong type.

    Example:
        >>> RungeKutta(MIDPOINT).coordinates
        Windowed(lower=0.23, upper=1.9)

    References:
        Hairer, Nørsett & Wanner 1993, section II.1; Karras et al. 2022, arXiv:2206.00364,
        algorithm 1.
    """

    tableau: Tableau = HEUN
    coordinates: Coordinates = DEFAULT_COORDINATES

    def __post_init__(self) -> None:
        check_instance("tableau", self.tableau, Tableau, "HEUN")
        super().__post_init__()

    def init(self, score: Score, x: Tensor, times: Tensor) -> FixedGridFlow:
        nodes = dict.fromkeys(sum(row) for row in self.tableau.matrix)
        return self.tabulate(score, x, times, [c for c in nodes if c not in (0.0, 1.0)])

    @property
    def convergence_order(self) -> float:
        return float(self.tableau.order)

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: FixedGridFlow, noise: Noise
    ) -> tuple[Tensor, FixedGridFlow]:
        """One evaluation for each stage (see :meth:`Sampler.step`)."""
        start, end = state.at(t), state.at(s)
        h, w = end.time - start.time, start.encode(x)
        slopes = [(start, start.slope(w, x))]
        for row in self.tableau.matrix:
            point = state.between(t, s, sum(row))
            stage = _combine(w, start, point, h, row, slopes)
            slopes.append((point, point.slope(stage, point.decode(stage))))
        return end.decode(_combine(w, start, end, h, self.tableau.weights, slopes)), state


def _combine(
    w: Tensor,
    start: GridPoint,
    end: GridPoint,
    h: float,
    weights: Sequence[float],
    slopes: Sequence[tuple[GridPoint, Tensor]],
) -> Tensor:
    """Return z_start + h Σ weight · slope, as w at the end."""
    w = end.rescale(w, start)
    for weight, (point, slope) in zip(weights, slopes, strict=True):
        if weight:
            end.add(w, h * weight, slope, point)
    return w
