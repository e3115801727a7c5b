r"""Multistep methods: polynomial interpolation of the last evaluations of the score.

A step of length h in a time τ goes from z_t to

    z_s = factor · z_t + gain ∫₀ʰ k(r) P(τ_t + r) dr + noise,

where P is the polynomial through the last evaluations and the kernel k belongs to the method. Once
the evaluation at the end of a step is known, the corrector replaces P by a polynomial through that
one too, without a further evaluation: the difference of the two integrals is added to the state.
Each step is therefore a weighted sum of evaluations, and the weights are plain numbers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from torch import Tensor

from scoresde._core.checks import check_integer
from scoresde.samplers.base import Noise, Sampler
from scoresde.scores import Score

_MAX_STEP_RATIO = 3.0
"""A step longer than this many times the previous one does not extrapolate: it is of order one."""


class Evaluation(NamedTuple):
    """An evaluation of the score at one time."""

    point: Any
    """The entry of the method's table at that time; its ``time`` is τ."""
    value: Tensor

    @property
    def time(self) -> float:
        """τ."""
        return float(self.point.time)


class StepWeights(NamedTuple):
    """A step as plain numbers; the polynomial through any evaluations completes it."""

    start: float
    """τ_t"""
    length: float
    """h"""
    gain: float
    kernel: float
    """The parameter of the kernel, as :meth:`Multistep.phi_moments` takes it."""
    factor: float = 1.0
    weights: tuple[float, ...] = ()
    """The weights of the evaluations that the predictor used, latest first."""


class History(NamedTuple):
    """The state of a multistep method between two steps."""

    table: Any
    """What :meth:`Multistep.tabulate` returned."""
    evaluations: tuple[Evaluation, ...] = ()
    """Latest first."""
    step: StepWeights | None = None
    """The last step."""


class Multistep(Sampler):
    """A multistep method.

    Attributes:
        order: number of evaluations that the predictor's polynomial interpolates.
        corrector: the same for the corrector, 0 for none.
    """

    order: int
    corrector: int

    def __post_init__(self) -> None:
        check_integer("order", self.order, minimum=1)
        check_integer("corrector", self.corrector, minimum=0)

    @property
    def default_steps(self) -> int:
        return 50

    @property
    def convergence_order(self) -> float:
        """The order of the last polynomial of each step; at most two with noise."""
        order = max(self.order, min(self.corrector, self.order + 1))
        return float(order if self.deterministic else min(order, 2))

    @property
    def history_length(self) -> int:
        """Number of evaluations that a step passes to the next one."""
        return max(self.order + bool(self.corrector), self.corrector) - 1

    def init(self, score: Score, x: Tensor, times: Tensor) -> History:
        return History(self.tabulate(score, x, times))

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: History, noise: Noise
    ) -> tuple[Tensor, History]:
        """One evaluation of the score (see :meth:`Sampler.step`)."""
        end = state.table.at(s)
        z, evaluation = self.evaluate(score, x, t, s, state)
        evaluations = (evaluation, *state.evaluations)
        z, step = self.linear_step(z, evaluation.point, end, noise)
        usable = self.usable_history(evaluations, step.length)
        step = step._replace(weights=self._weights(step, usable))
        total = step.weights
        if self.corrector and state.step is not None:
            correction = self._correction(state.step, evaluations)
            total = _sum(total, tuple(step.factor * weight for weight in correction))
        self._add(z, total, evaluations, end)
        history = History(state.table, evaluations[: self.history_length], step)
        return self.decode(z, end), history

    @abstractmethod
    def tabulate(self, score: Score, x: Tensor, times: Tensor) -> Any:
        """Return a table of the method's coefficients, computed for the times ``(N+1,)`` at once.

        Its method ``at(t)`` returns the entry at any time ``()``, whose ``time`` is τ.
        """

    @abstractmethod
    def evaluate(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: History
    ) -> tuple[Tensor, Evaluation]:
        """Return z at the start of the step, and the evaluation of the score there."""

    @abstractmethod
    def linear_step(
        self, z: Tensor, start: Any, end: Any, noise: Noise
    ) -> tuple[Tensor, StepWeights]:
        """Return factor · z + noise as a new tensor, and the step that remains to be completed."""

    def add(self, z: Tensor, weight: float, evaluation: Evaluation, end: Any) -> None:
        """Add ``weight`` times an evaluation to z, in place."""
        z.add_(evaluation.value, alpha=weight)

    def decode(self, z: Tensor, end: Any) -> Tensor:
        """Return the state x at the end of the step; here z itself."""
        return z

    @abstractmethod
    def phi_moments(self, kernel: float, count: int) -> Sequence[float]:
        """Return ∫₀¹ k(u) uᵏ du for k < ``count``, for a step of length 1.

        For exponential kernels these are φ-functions.
        """

    def usable_history(
        self, evaluations: tuple[Evaluation, ...], h: float
    ) -> tuple[Evaluation, ...]:
        """Return the evaluations that a step of length h extrapolates from."""
        if len(evaluations) > 1:
            previous = evaluations[0].time - evaluations[1].time
            if abs(h) > _MAX_STEP_RATIO * abs(previous):
                return evaluations[:1]
        return evaluations[: self.order]

    def _add(
        self, z: Tensor, weights: Sequence[float], evaluations: Sequence[Evaluation], end: Any
    ) -> None:
        for weight, evaluation in zip(weights, evaluations, strict=False):
            if weight:
                self.add(z, weight, evaluation, end)

    def _weights(self, step: StepWeights, evaluations: tuple[Evaluation, ...]) -> tuple[float, ...]:
        nodes = [(evaluation.time - step.start) / step.length for evaluation in evaluations]
        weights = _quadrature(nodes, self.phi_moments(step.kernel, len(evaluations)))
        return tuple(step.gain * weight for weight in weights)

    def _correction(
        self, step: StepWeights, evaluations: tuple[Evaluation, ...]
    ) -> tuple[float, ...]:
        """Return the weights of the corrector minus those of the predictor."""
        corrected = self._weights(step, evaluations[: self.corrector])
        return _sum(corrected, (0.0, *(-weight for weight in step.weights)))


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
