"""A sampling loop as a sampler, by running it again from the start for each further step."""

from __future__ import annotations

# a dataclass field may declare what the base class computes
# pyright: reportIncompatibleMethodOverride=false
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoresde._core.shapes import Time, as_time, check_like
from scoresde.samplers import Noise, Sampler
from scoresde.scores import Score
from scoresde.scores.predictions import DATA, Prediction
from scoresde.testing.adapters.functions import Named, check_function


@dataclass(frozen=True, repr=False)
class LoopSampler(Named, Sampler):
    """A sampling loop ``(score, x, times, noise) -> x`` as a sampler.

    Most samplers are published as loops over all times. The state after k steps is the end of the
    loop over the first k + 1 times, so each further step runs the loop from the start again; the
    values of the score and the noise are stored, so that nothing is evaluated twice. The last state
    is that of the loop over all times.

    Args:
        function: the loop, from the state x at ``times[0]`` to ``times[-1]``; ``times`` are
            decreasing float64 ``(N+1,)``, and ``noise(x)`` draws independent N(0, 1) like x.
        convergence_order: the declared order, if any.
        deterministic: whether it draws no noise.

    Example:
        >>> def ddim(score, x, times, noise):
        ...     for t, s in zip(times, times[1:]):
        ...         x = score.sde.perturb(score.denoised(x, t), s, score.noise(x, t))
        ...     return x
        >>> LoopSampler(ddim, convergence_order=1, deterministic=True)
        LoopSampler(function=ddim, convergence_order=1, deterministic=True)
    """

    function: Callable[[Score, Tensor, Tensor, Noise], Tensor]
    convergence_order: float | None = None
    deterministic: bool = False

    def __post_init__(self) -> None:
        check_function("function", self.function, "(score, x, times, noise) -> x")

    def init(self, score: Score, x: Tensor, times: Tensor) -> _LoopState:
        """Return the start of the loop."""
        return _LoopState(x.clone(), [times.reshape(-1)[0]])

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: _LoopState, noise: Noise
    ) -> tuple[Tensor, _LoopState]:
        """Run the loop from the start to s."""
        state.times.append(s)
        stored = _StoredScore(score, state.values)
        end = self.function(
            stored, state.start.clone(), torch.stack(state.times), state.draw(noise)
        )
        return check_like("function", end, x), state


@dataclass
class _LoopState:
    """The start of a loop, its times so far, the values of the score, and the noise."""

    start: Tensor
    times: list[Tensor]
    values: list[tuple[Prediction, Tensor, Tensor, Tensor]] = field(default_factory=list)
    drawn: list[Tensor] = field(default_factory=list)

    def draw(self, noise: Noise) -> Noise:
        """Return a function that first returns the noise of the earlier runs."""
        count = 0

        def again(x: Tensor) -> Tensor:
            nonlocal count
            if count == len(self.drawn):
                self.drawn.append(noise(x))
            count += 1
            return self.drawn[count - 1]

        return again


class _StoredScore(Score):
    """A score that returns stored values, call by call, as long as the arguments are the same."""

    def __init__(self, score: Score, values: list[Any]) -> None:
        super().__init__(score.sde, score.moments)
        self.score = score
        self.values = values
        self.calls = 0

    def denoised(self, x: Tensor, t: Time) -> Tensor:
        """Return x̂."""
        return self.predict(x, t, DATA)

    def predict(self, x: Tensor, t: Time, prediction: Prediction) -> Tensor:
        time, number = as_time(t, self.sde.T), self.calls
        self.calls += 1
        if number < len(self.values):
            kind, state, stored_time, stored = self.values[number]
            if kind == prediction and torch.equal(stored_time, time) and torch.equal(state, x):
                copied: Tensor = stored.clone()
                return copied
            del self.values[number:]
        value = self.score.predict(x, t, prediction)
        self.values.append((prediction, x.clone(), time.clone(), value))
        return value.clone()
