"""A whole run as a sampler, by running it again from the start for each further step."""

from __future__ import annotations

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
    """A whole run ``(score, x, times, noise) -> x`` as a sampler.

    Most samplers are published as loops over all times. The state after k steps is what the run
    along the first k + 1 times ends in, so each further step is the run from the start again; what
    the score said and what noise was drawn is remembered, so that it costs no evaluation twice.
    The last state is that of the run along all times.

    Args:
        function: the run, from the state x at ``times[0]`` to ``times[-1]``; ``times`` are falling
            float64 ``(N+1,)``, and ``noise(x)`` draws independent N(0, 1) like x.
        convergence_order: the order that it is held to, if any.
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

    def init(self, score: Score, x: Tensor, times: Tensor) -> _Run:
        """Return a run that has not begun."""
        return _Run(x.clone(), [times.reshape(-1)[0]])

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: _Run, noise: Noise
    ) -> tuple[Tensor, _Run]:
        """Run from the start to s."""
        state.times.append(s)
        told = _Told(score, state.said)
        end = self.function(told, state.start.clone(), torch.stack(state.times), state.draw(noise))
        return check_like("function", end, x), state


@dataclass
class _Run:
    """What a run knows of itself: where it began, its times, what the score said, the noise."""

    start: Tensor
    times: list[Tensor]
    said: list[tuple[Prediction, Tensor, Tensor, Tensor]] = field(default_factory=list)
    drawn: list[Tensor] = field(default_factory=list)

    def draw(self, noise: Noise) -> Noise:
        """Return a source that begins with the noise of the runs before."""
        count = 0

        def again(x: Tensor) -> Tensor:
            nonlocal count
            if count == len(self.drawn):
                self.drawn.append(noise(x))
            count += 1
            return self.drawn[count - 1]

        return again


class _Told(Score):
    """A score that says again what it said before, call by call, as long as the questions agree."""

    def __init__(self, score: Score, said: list[Any]) -> None:
        super().__init__(score.sde, score.moments)
        self.score = score
        self.said = said
        self.asked = 0

    def denoised(self, x: Tensor, t: Time) -> Tensor:
        """Return x̂."""
        return self.predict(x, t, DATA)

    def predict(self, x: Tensor, t: Time, prediction: Prediction) -> Tensor:
        time, number = as_time(t, self.sde.T), self.asked
        self.asked += 1
        if number < len(self.said):
            before, at, when, value = self.said[number]
            if before == prediction and torch.equal(when, time) and torch.equal(at, x):
                return value.clone()
            del self.said[number:]
        value = self.score.predict(x, t, prediction)
        self.said.append((prediction, x.clone(), time.clone(), value))
        return value.clone()
