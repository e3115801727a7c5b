"""What a training run leaves: the scores and the record of their losses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from scoresde.scores import Score

__all__ = ["AnyScore", "FitResult", "History"]

AnyScore = TypeVar("AnyScore", bound=Score)


@dataclass(frozen=True)
class History:
    """Losses along the way, as pairs (step, loss).

    Attributes:
        train: mean loss of the training batches since the entry before.
        held_out: loss of the held-out data under the averaged weights, the same times and noise
            each time.
    """

    train: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True, repr=False)
class FitResult(Generic[AnyScore]):
    """What :func:`fit` returns.

    Attributes:
        score: the score with averaged weights, in evaluation mode: the one to use.
        raw: the score that was passed in, with the weights of the last step, in evaluation mode.
        history: the losses along the way.
        steps: number of optimisation steps taken, those before a resumption included.
        seconds: time spent, likewise.
    """

    score: AnyScore
    raw: AnyScore
    history: History
    steps: int
    seconds: float

    def __repr__(self) -> str:
        parts = [f"{self.steps} steps in {self.seconds:.1f} s"]
        for name, losses in (("training", self.history.train), ("held-out", self.history.held_out)):
            if losses:
                parts.append(f"{name} loss {losses[-1][1]:.4g}")
        return f"FitResult({', '.join(parts)})"
