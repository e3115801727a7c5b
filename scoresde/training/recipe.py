"""All that decides the weights but the data, and how labels reach the network."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from scoresde._core.checks import check_between, check_positive
from scoresde._core.random import uniform
from scoresde.scores import Score
from scoresde.training.losses import TimeSampler, WeightFunction


@dataclass(frozen=True)
class Labels:
    """How labels reach the network: its argument, and how often ``null`` takes their place."""

    name: str
    dropout: float
    null: int | float | None

    def bind(self, score: Any, labels: Tensor, generator: torch.Generator) -> Score:
        """Return the conditional score of a batch with labels ``(batch, …)``, some dropped."""
        if self.dropout > 0:
            level = uniform(labels.shape[:1], generator=generator, device=labels.device)
            dropped = (level < self.dropout).reshape(-1, *(1,) * (labels.ndim - 1))
            labels = torch.where(dropped, torch.as_tensor(self.null).to(labels), labels)
        return self.bind_all(score, labels)

    def bind_all(self, score: Any, labels: Tensor) -> Score:
        """Return the conditional score of a batch with labels ``(batch, …)``."""
        return score.given(**{self.name: labels})


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights but the data; a run goes on only under the same recipe."""

    batch_size: int
    lr: float
    weight_decay: float
    warmup: int
    decay_steps: int | None
    clip: float
    ema: float
    weighting: WeightFunction
    time_sampler: TimeSampler
    labels: Labels | None
    amp: torch.dtype | None
    seed: int

    def rate(self, step: int) -> float:
        """The learning rate of step number ``step``, counted from 0."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        if self.decay_steps is None:
            return self.lr * rise
        return self.lr * rise * 0.5 * (1 + math.cos(math.pi * step / self.decay_steps))

    def decay(self, updates: int) -> float:
        """The weight of the past in the average after ``updates`` updates, this one included."""
        return min(self.ema, (1 + updates) / (10 + updates))

    def record(self) -> dict[str, str]:
        """What a checkpoint tells of the recipe: every setting as it prints, without addresses."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: re.sub(r" at 0x\w+", "", repr(value)) for name, value in values.items()}


def check_clip(clip: float) -> float:
    """Return the largest norm of a gradient, or raise."""
    return (
        clip if clip == math.inf else check_positive("clip", clip, "pass math.inf to clip nothing")
    )


def check_amp(amp: torch.dtype | None) -> torch.dtype | None:
    """Return the dtype of mixed precision, or raise."""
    if amp not in (None, torch.bfloat16):
        raise ValueError(
            f"amp: expected torch.bfloat16 or None, got {amp}; its range is float32's, so that "
            "gradients need no scaling"
        )
    return amp


def check_labels(
    score: Any, name: str | None, dropout: float, null: int | float | None
) -> Labels | None:
    """Return how labels reach the network, None if they do not, or raise."""
    dropout = check_between("condition_dropout", dropout, 0.0, 1.0)
    if name is None:
        if dropout > 0:
            raise ValueError(
                "condition_dropout: expected 0 without condition=, got "
                f"{dropout:g}; name the network's argument for the labels"
            )
        return None
    if not hasattr(score, "given"):
        raise TypeError(
            f"condition: expected a ScoreModel, whose network can be given {name!r}, got "
            f"{type(score).__name__}"
        )
    score.given(**{name: None})  # raises if the network takes no such argument
    null = getattr(score.network, name, None) if null is None else null
    if dropout > 0 and null is None:
        raise ValueError(
            f"null: expected the label that stands for no {name}, got None; the network has no "
            f"attribute {name!r} that could tell"
        )
    return Labels(name, dropout, null)
