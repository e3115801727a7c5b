"""A score evaluated in chunks of the batch, to limit memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scoresde._core.shapes import Time
from scoresde.scores.base import Score
from scoresde.scores.predictions import Prediction


class ChunkedScore(Score):
    """The same score, evaluated on at most ``batch_size`` samples at a time.

    Args:
        score: the score.
        batch_size: the largest number of samples in one call of the network.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> score = ChunkedScore(FunctionScore(lambda x, t: -x, VPSDE()), batch_size=2)
        >>> score(torch.ones(5, 3), 0.5).shape
        torch.Size([5, 3])
    """

    def __init__(self, score: Score, batch_size: int) -> None:
        super().__init__(score.sde, score.moments)
        self.score = score
        self.batch_size = batch_size

    def denoised(self, x: Tensor, t: Time) -> Tensor:
        return self._map(lambda part, x, t: part.denoised(x, t), x, t)

    def forward(self, x: Tensor, t: Time) -> Tensor:
        return self._map(lambda part, x, t: part(x, t), x, t)

    @property
    def log_prob(self) -> Callable[[Tensor, Time], Tensor]:
        """The density log p_t, ``(x, t) -> (batch,)``, of a score that has one."""
        self.score.log_prob  # noqa: B018
        return partial(self._map, lambda part, x, t: part.log_prob(x, t))

    def select(self, index: Tensor | slice) -> ChunkedScore:
        return ChunkedScore(self.score.select(index), self.batch_size)

    def predict(self, x: Tensor, t: Time, prediction: Prediction) -> Tensor:
        return self._map(lambda part, x, t: part.predict(x, t, prediction), x, t)

    def _map(self, evaluate: Callable[[Any, Tensor, Time], Tensor], x: Tensor, t: Time) -> Tensor:
        parts = []
        for first in range(0, x.shape[0], self.batch_size):
            rows = slice(first, first + self.batch_size)
            time = t[rows] if isinstance(t, Tensor) and t.ndim else t
            parts.append(evaluate(self.score.select(rows), x[rows], time))
        return torch.cat(parts)
