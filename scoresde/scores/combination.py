r"""Scores made of scores.

Every view of a score (x̂, ε̂, s, v) is affine in it, by one map for all scores of a diffusion:

    s = Σ_i a_i s_i,  Σ_i a_i = 1    ⟺    x̂ = Σ_i a_i x̂_i.

Weights that do not sum to one are completed by that of the flat density, whose score is 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoresde._core.shapes import Time, as_time, check_batch, expand, has_concrete_value
from scoresde.scores.base import Score
from scoresde.scores.function import FunctionScore
from scoresde.scores.moments import Moments
from scoresde.scores.predictions import DATA, Prediction
from scoresde.sdes import SDE

_ONE_CURVE = 1e-6
"""How far log α and log σ may differ of diffusions that count as one: by rounding to float32."""


class Combination(Score, ABC):
    """A weighted sum of scores over one diffusion: define :meth:`weights_at` and :meth:`rows`.

    Parts that are one network under several conditions are evaluated in one batch, parts that weigh
    nothing are not evaluated at all.

    Args:
        scores: the parts.
        moments: mean and covariance of the data, if known; those of the first part are the guess.

    Raises:
        TypeError: if a part is not a Score.
        ValueError: if there is none, or the parts' diffusions differ.
    """

    def __init__(self, scores: Sequence[Score], moments: Moments | None = None) -> None:
        parts = check_scores(scores)
        sde, data = parts[0].sde, parts[0].moments
        guess = Moments(data.mean, data.variance, data.basis, known=False)
        super().__init__(sde, guess if moments is None else moments)
        self.scores = nn.ModuleList(parts)
        self._flat = FunctionScore(_zero, sde)

    @abstractmethod
    def weights_at(self, x: Tensor, t: Tensor) -> list[Tensor]:
        """Return the parts' weights at a float64 ``t``: float64, each ``()`` or ``(batch,)``.

        There may be one more than there are parts: that of the flat density.
        """

    def denoised(self, x: Tensor, t: Time) -> Tensor:
        """Return x̂, shaped like ``x`` ``(batch, *event)``."""
        return self.predict(x, t, DATA)

    def predict(self, x: Tensor, t: Time, prediction: Prediction) -> Tensor:
        time = as_time(t, self.sde.T)
        check_batch(time, x)
        weights_at = self.weights_at(x, time)
        parts = [*self.scores, self._flat][: len(weights_at)]
        weighty = [k for k, share in enumerate(weights_at) if not _vanishes(share)]
        values = _values([parts[k] for k in weighty], x, time, prediction)
        total = [expand(weights_at[k], x) * value for k, value in zip(weighty, values, strict=True)]
        return torch.stack(total).sum(0) if len(total) > 1 else total[0]


def check_scores(scores: Sequence[Score]) -> list[Score]:
    """Return scores over one diffusion as a list, or raise."""
    parts = list(scores) if isinstance(scores, Sequence | nn.ModuleList) else []
    if not parts:
        raise ValueError(f"scores: expected a sequence of at least one Score, got {scores!r}")
    for k, part in enumerate(parts):
        if not isinstance(part, Score):
            raise TypeError(
                f"scores[{k}]: expected a Score such as ScoreModel(…), got {type(part).__name__}"
            )
        if not _same(parts[0].sde, part.sde):
            raise ValueError(
                f"scores[{k}]: expected a score over the diffusion of the first, {parts[0].sde}, "
                f"got one over {part.sde}; noise levels must mean the same to all"
            )
    return parts


def _same(ours: SDE, theirs: SDE) -> bool:
    """Whether two diffusions are one: the same object, or the same two curves."""
    if ours is theirs:
        return True
    if not (ours.gaussian and theirs.gaussian and ours.T == theirs.T):
        return False
    fractions = torch.tensor([0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    one, other = _curves(ours, ours.T * fractions), _curves(theirs, ours.T * fractions)
    return torch.allclose(one, other, rtol=_ONE_CURVE, atol=_ONE_CURVE)


def _curves(sde: Any, t: Tensor) -> Tensor:
    return torch.stack([sde.log_alpha(t), sde.log_sigma(t)])


def _values(
    scores: list[Score], x: Tensor, t: Tensor, prediction: Prediction
) -> list[Tensor]:
    """Return what each score says, neighbours that can in one evaluation."""
    groups: list[tuple[Score, int]] = []
    for score in scores:
        if groups:
            before, count = groups[-1]
            both = before.concatenate(score, count * x.shape[0], x.shape[0])
            if both is not None:
                groups[-1] = both, count + 1
                continue
        groups.append((score, 1))
    values: list[Tensor] = []
    for score, count in groups:
        if count == 1:
            values.append(score.predict(x, t, prediction))
        else:
            times = t if t.ndim == 0 else t.repeat(count)
            values.extend(score.predict(torch.cat([x] * count), times, prediction).chunk(count))
    return values


def _vanishes(share: Tensor) -> bool:
    """Whether a weight is known to be zero, where looking is free."""
    return has_concrete_value(share) and not bool((share != 0).any())


def _zero(x: Tensor, t: Tensor) -> Tensor:
    return torch.zeros_like(x)
