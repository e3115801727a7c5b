r"""What multistep methods share: a memory of values, and polynomials through it.

A step of length h in a time τ goes from z_t to

    z_s = factor · z_t + gain ∫₀ʰ k(r) P(τ_t + r) dr + noise,

with P the polynomial through the last values and a kernel k that is the method's own. When the
value at the end is known, the corrector replaces P by a polynomial through it too, at no further
evaluation: the difference of the two integrals is added to the state. All that is a weighted sum
of the values, made in one go.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from scoresde._checks import check_integer
from scoresde.samplers.base import Noise, Sampler
from scoresde.score import Score

_LONGEST = 3.0
"""Steps longer than this many times the one before do not extrapolate: they are of order one."""


class Clocked(Protocol):
    """A moment, which has a time τ in the method's own units."""

    @property
    def time(self) -> float:
        """τ."""


class Value(NamedTuple):
    """What the score said at a time τ."""

    time: float
    value: Tensor


class Leg(NamedTuple):
    """A step that any polynomial completes, in numbers."""

    start: float
    """τ_t"""
    length: float
    """h"""
    gain: float
    kernel: float
    """What the kernel needs to know."""
    factor: float = 1.0
    weights: tuple[float, ...] = ()
    """Of the values it was made with, latest first."""


class Memory(NamedTuple):
    """What a step leaves to the next one."""

    values: tuple[Value, ...] = ()
    """Latest first."""
    leg: Leg | None = None
    frame: Any = None
    """What stays the same for the whole run."""
    reached: tuple[Tensor, Any] | None = None
    """The time t that was reached, and what was found out about it."""


class Multistep(Sampler):
    """A multistep method of given ``order``, with a ``corrector`` through so many values or 0."""

    order: int
    corrector: int

    def __post_init__(self) -> None:
        check_integer("order", self.order, minimum=1)
        check_integer("corrector", self.corrector, minimum=0)

    @property
    def default_steps(self) -> int:
        """How many steps are made where the user does not say."""
        return 50

    @property
    def convergence_order(self) -> float:
        """That of the last polynomial a step is made with; up to two where there is noise."""
        order = max(self.order, min(self.corrector, self.order + 1))
        return float(order if self.deterministic else min(order, 2))

    def init(self, score: Score, x: Tensor, t: Tensor) -> Memory:
        """Return an empty memory."""
        return Memory()

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Memory, noise: Noise
    ) -> tuple[Tensor, Memory]:
        """Go from t to s, both ``()``; one evaluation of the score."""
        known = state.reached is not None and state.reached[0] is t
        here = state.reached[1] if known else self.locate(score, t, state.frame)  # type: ignore[index]
        there = self.locate(score, s, state.frame)
        z, value = self.read(score, x, t, here)
        kept = max(self.order + bool(self.corrector), self.corrector)
        values = (Value(here.time, value), *state.values)[:kept]
        z, leg = self.base(z, here, there, noise)
        leg = leg._replace(weights=self._weights(leg, self.trusted(values, leg.length)))
        total = np.zeros(len(values))
        total[: len(leg.weights)] = leg.weights
        if self.corrector and state.leg is not None:
            total += leg.factor * self._correction(state.leg, values)
        for weight, (_, value) in zip(total.tolist(), values, strict=True):
            if weight:
                z.add_(value, alpha=weight)
        return self.leave(z, there), Memory(values, leg, state.frame, (s, there))

    @abstractmethod
    def locate(self, score: Score, t: Tensor, frame: Any) -> Clocked:
        """Return what the method needs to know of a time."""

    @abstractmethod
    def read(self, score: Score, x: Tensor, t: Tensor, here: Any) -> tuple[Tensor, Tensor]:
        """Return the state in the method's variables, and what is interpolated; one evaluation."""

    @abstractmethod
    def base(self, z: Tensor, here: Any, there: Any, noise: Noise) -> tuple[Tensor, Leg]:
        """Return factor · z + noise, as a tensor of its own, and what completes the step."""

    @abstractmethod
    def leave(self, z: Tensor, there: Any) -> Tensor:
        """Return the state x."""

    @abstractmethod
    def moments(self, kernel: float, count: int) -> np.ndarray:
        """Return ∫₀¹ k(u) uᵏ du for k < ``count``, the step's length taken as 1."""

    def trusted(self, values: tuple[Value, ...], h: float) -> tuple[Value, ...]:
        """Return the values that a step of length h extrapolates from."""
        if len(values) > 1:
            before = values[0].time - values[1].time
            if abs(h) > _LONGEST * abs(before):
                return values[:1]
        return values[: self.order]

    def _weights(self, leg: Leg, values: tuple[Value, ...]) -> tuple[float, ...]:
        nodes = [(value.time - leg.start) / leg.length for value in values]
        moments = self.moments(leg.kernel, len(values))
        weights = np.linalg.solve(np.vander(nodes, increasing=True).T, moments)
        return tuple((leg.gain * weights).tolist())

    def _correction(self, leg: Leg, values: tuple[Value, ...]) -> np.ndarray:
        """Return the weights of what the last step lacked."""
        better = self._weights(leg, values[: self.corrector])
        change = np.zeros(len(values))
        change[: len(better)] = better
        change[1 : 1 + len(leg.weights)] -= leg.weights
        return change
