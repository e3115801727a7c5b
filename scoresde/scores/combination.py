r"""Scores made of scores.

Every parametrization (x̂, ε̂, s, v) is affine in the score, by
one map for all scores of a diffusion::

    s = Σ_i a_i s_i,  Σ_i a_i = 1    ⟺    x̂ = Σ_i a_i x̂_i.

Weights that do not sum to one are completed by the flat density, whose score is 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoresde._core.checks import check_instance
from scoresde._core.shapes import Time, as_time, check_batch, expand, has_concrete_value
from scoresde.scores.base import Score
from scoresde.scores.function import FunctionScore
from scoresde.scores.moments import Moments
from scoresde.scores.predictions import DATA, Prediction
from scoresde.sdes import SDE

_EQUAL = 1e-6
"""Largest difference of log α and log σ between equal diffusions: the rounding of float32."""


class Combination(Score, ABC):
    """A weighted sum of scores over one diffusion: define :meth:`weights_at` and :meth:`select`.

    One network under several conditions is evaluated in one batch; parts of weight zero are not
    evaluated.

    Args:
        scores: the parts.
        moments: mean and covariance of the data, if known; if None those of the first part, marked
            as not known.

    Raises:
        TypeError: if a part is not a Score.
        ValueError: if there is none, or the parts' diffusions differ.
    """

    def __init__(self, scores: Sequence[Score], moments: Moments | None = None) -> None:
        parts = check_scores(scores)
        sde, first = parts[0].sde, parts[0].moments
        default = Moments(first.mean, first.variance, first.basis, known=False)
        super().__init__(sde, default if moments is None else moments)
        self.scores = nn.ModuleList(parts)
        self._flat = FunctionScore(lambda x, _: torch.zeros_like(x), sde)

    @abstractmethod
    def weights_at(self, x: Tensor, t: Tensor) -> list[Tensor]:
        """Return the parts' weights at a float64 ``t``: float64, each ``()`` or ``(batch,)``.

        One more weight than there are parts is that of the flat density.
        """

    def denoised(self, x: Tensor, t: Time) -> Tensor:
        return self.predict(x, t, DATA)

    def predict(self, x: Tensor, t: Time, prediction: Prediction) -> Tensor:
        time = as_time(t, self.sde.T)
        check_batch(time, x)
        weights = self.weights_at(x, time)
        parts = [*self.scores, self._flat][: len(weights)]
        used = [k for k, weight in enumerate(weights) if not _vanishes(weight)]
        values = _values([parts[k] for k in used], x, time, prediction)
        terms = [expand(weights[k], x) * value for k, value in zip(used, values, strict=True)]
        return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]


def check_scores(scores: Sequence[Score]) -> list[Score]:
    """Return scores over one diffusion as a list, or raise."""
    parts = list(scores) if isinstance(scores, Sequence | nn.ModuleList) else []
    if not parts:
        raise ValueError(f"scores: expected a sequence of at least one Score, got {scores!r}")
    for k, part in enumerate(parts):
        check_instance(f"scores[{k}]", part, Score, "ScoreModel(network, sde)")
        if not _equal(parts[0].sde, part.sde):
            raise ValueError(
                f"scores[{k}]: expected a score over the diffusion of the first, {parts[0].sde}, "
                f"got one over {part.sde}; all must have the same noise levels at all times"
            )
    return parts


def _equal(ours: SDE, theirs: SDE) -> bool:
    """Whether two diffusions are equal: the same object, or the same two curves."""
    if ours is theirs:
        return True
    if not (ours.gaussian and theirs.gaussian and ours.T == theirs.T):
        return False
    fractions = torch.tensor([0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    one, other = _curves(ours, ours.T * fractions), _curves(theirs, ours.T * fractions)
    return torch.allclose(one, other, rtol=_EQUAL, atol=_EQUAL)


def _curves(sde: Any, t: Tensor) -> Tensor:
    return torch.stack([sde.log_alpha(t), sde.log_sigma(t)])


def _values(scores: list[Score], x: Tensor, t: Tensor, prediction: Prediction) -> list[Tensor]:
    """Return each score's prediction; consecutive ones that can be are evaluated in one batch."""
    groups: list[tuple[Score, int]] = []
    for score in scores:
        if groups:
            last, count = groups[-1]
            both = last.concatenate(score, count * x.shape[0], x.shape[0])
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


def _vanishes(weight: Tensor) -> bool:
    """Whether a weight is zero for all samples; False where no concrete value is available."""
    return has_concrete_value(weight) and not bool((weight != 0).any())
