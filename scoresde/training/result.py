"""The result of a training run: the scores, and the record of their losses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from scoresde.scores import Score

__all__ = ["AnyScore", "FitResult", "LossHistory"]

AnyScore = TypeVar("AnyScore", bound=Score)


@dataclass(frozen=True)
class LossHistory:
    """Losses during training, as pairs (step, loss).

    Attributes:
        train: mean loss of the training batches since the previous entry.
        held_out: loss of the held-out data under the averaged weights, each time with the same
            times and noise.
    """

    train: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)

    def __str__(self) -> str:
        pairs = (("loss", self.train), ("held-out", self.held_out))
        return ", ".join(f"{name} {losses[-1][1]:.4g}" for name, losses in pairs if losses)


@dataclass(frozen=True, repr=False)
class FitResult(Generic[AnyScore]):
    """What :func:`fit` returns.

    Attributes:
        score: the score with averaged weights, in evaluation mode: the one to use.
        raw: the score that was passed in, with the weights of the last step, in evaluation mode.
        history: the losses during training.
        steps: number of optimization steps, including those before a resumption.
        seconds: time taken, including that before a resumption.
    """

    score: AnyScore
    raw: AnyScore
    history: LossHistory
    steps: int
    seconds: float

    def __repr__(self) -> str:
        parts = [f"{self.steps} steps in {self.seconds:.1f} s"]
        for name, losses in (("training", self.history.train), ("held-out", self.history.held_out)):
            if losses:
                parts.append(f"{name} loss {losses[-1][1]:.4g}")
        return f"FitResult({', '.join(parts)})"
