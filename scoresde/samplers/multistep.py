r"""What multistep methods share: a memory of values, and polynomials through it.

A step of length h in a time τ goes from z_t to

    z_s = factor · z_t + gain ∫₀ʰ k(r) P(τ_t + r) dr + noise,

with P the polynomial through the last values and a kernel k that is the method's own. When the
value at the end is known, the corrector replaces P by a polynomial through it too, at no further
evaluation: the difference of the two integrals is added to the state. All that is a weighted sum
of the values, made in one go; the weights are plain numbers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from scoresde._core.checks import check_integer
from scoresde.samplers.base import Noise, Sampler
from scoresde.scores import Score

_LONGEST = 3.0
"""Steps longer than this many times the one before do not extrapolate: they are of order one."""


class Clocked(Protocol):
    """A moment, which has a time τ in the method's own units."""

    @property
    def time(self) -> float:
        """τ."""


class Clock(Protocol):
    """What a method needs to know of times."""

    def at(self, t: Tensor) -> Clocked:
        """Return what it needs to know of a time ``()``."""


class Value(NamedTuple):
    """What the score said at a moment."""

    moment: Any
    value: Tensor

    @property
    def time(self) -> float:
        """τ."""
        return self.moment.time


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

    clock: Any
    """A :class:`Clock`, and what else a method asks of its own."""
    values: tuple[Value, ...] = ()
    """Latest first."""
    leg: Leg | None = None


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

    @property
    def kept(self) -> int:
        """How many values a step leaves to the next one."""
        return max(self.order + bool(self.corrector), self.corrector) - 1

    def init(self, score: Score, x: Tensor, times: Tensor) -> Memory:
        """Return an empty memory."""
        return Memory(self.clock(score, x, times))

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Memory, noise: Noise
    ) -> tuple[Tensor, Memory]:
        """Go from t to s, both ``()``; one evaluation of the score."""
        there = state.clock.at(s)
        z, value = self.read(score, x, t, s, state)
        values = (value, *state.values)
        z, leg = self.base(z, value.moment, there, noise)
        leg = leg._replace(weights=self._weights(leg, self.trusted(values, leg.length)))
        total = leg.weights
        if self.corrector and state.leg is not None:
            correction = self._correction(state.leg, values)
            total = _sum(total, tuple(leg.factor * weight for weight in correction))
        self._add(z, total, values, there)
        return self.decode(z, there), Memory(state.clock, values[: self.kept], leg)

    @abstractmethod
    def clock(self, score: Score, x: Tensor, times: Tensor) -> Clock:
        """Return what the method needs to know of the times ahead, ``(N+1,)``, and of others."""

    @abstractmethod
    def read(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Memory
    ) -> tuple[Tensor, Value]:
        """Return the state in the method's variables where the step begins, and the value there.

        That costs one evaluation.
        """

    @abstractmethod
    def base(self, z: Tensor, here: Any, there: Any, noise: Noise) -> tuple[Tensor, Leg]:
        """Return factor · z + noise, as a tensor of its own, and what completes the step."""

    def add(self, z: Tensor, weight: float, past: Value, there: Any) -> None:
        """Add ``weight`` times a value to z."""
        z.add_(past.value, alpha=weight)

    def decode(self, z: Tensor, there: Any) -> Tensor:
        """Return the state x; here z itself."""
        return z

    @abstractmethod
    def moments(self, kernel: float, count: int) -> Sequence[float]:
        """Return ∫₀¹ k(u) uᵏ du for k < ``count``, the step's length taken as 1."""

    def trusted(self, values: tuple[Value, ...], h: float) -> tuple[Value, ...]:
        """Return the values that a step of length h extrapolates from."""
        if len(values) > 1:
            before = values[0].time - values[1].time
            if abs(h) > _LONGEST * abs(before):
                return values[:1]
        return values[: self.order]

    def _add(
        self, z: Tensor, weights: Sequence[float], values: Sequence[Value], there: Any
    ) -> None:
        for weight, past in zip(weights, values, strict=False):
            if weight:
                self.add(z, weight, past, there)

    def _weights(self, leg: Leg, values: tuple[Value, ...]) -> tuple[float, ...]:
        nodes = [(value.time - leg.start) / leg.length for value in values]
        weights = _quadrature(nodes, self.moments(leg.kernel, len(values)))
        return tuple(leg.gain * weight for weight in weights)

    def _correction(self, leg: Leg, values: tuple[Value, ...]) -> tuple[float, ...]:
        """Return the weights of what the last step lacked."""
        better = self._weights(leg, values[: self.corrector])
        return _sum(better, (0.0, *(-weight for weight in leg.weights)))


def _sum(first: Sequence[float], second: Sequence[float]) -> tuple[float, ...]:
    return tuple(a + b for a, b in zip_longest(first, second, fillvalue=0.0))


def _quadrature(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Return the weights w of a quadrature with given moments, Σ_j w_j u_jᵏ = m_k.

    References:
        Björck & Pereyra, *Solution of Vandermonde systems of equations*, 1970.
    """
    weights, count = list(moments), len(nodes)
    for k in range(count - 1):
        for i in range(count - 1, k, -1):
            weights[i] -= nodes[k] * weights[i - 1]
    for k in range(count - 2, -1, -1):
        for i in range(k + 1, count):
            weights[i] /= nodes[i] - nodes[i - k - 1]
        for i in range(k, count - 1):
            weights[i] -= weights[i + 1]
    return weights
