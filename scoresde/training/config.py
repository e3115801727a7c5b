"""The settings that determine the weights, and the conditioning of the network on labels."""

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
from scoresde.training.time_samplers import TimeSampler
from scoresde.training.weightings import WeightFunction


@dataclass(frozen=True)
class LabelCondition:
    """The network's argument for labels, and how often a label is replaced by ``null``."""

    name: str
    dropout: float
    null: int | float | None

    def drop(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Replace labels ``(batch, …)`` by ``null``, each with probability ``dropout``."""
        if self.dropout == 0:
            return labels
        level = uniform(labels.shape[:1], generator=generator, device=labels.device)
        dropped = (level < self.dropout).reshape(-1, *(1,) * (labels.ndim - 1))
        return torch.where(dropped, torch.as_tensor(self.null).to(labels), labels)

    def condition(self, score: Any, labels: Tensor) -> Score:
        """Return the conditional score of a batch with labels ``(batch, …)``."""
        conditional: Score = score.given(**{self.name: labels})
        return conditional


@dataclass(frozen=True)
class TrainingConfig:
    """All settings that determine the weights; a run is resumed only with the same ones."""

    batch_size: int
    lr: float
    weight_decay: float
    warmup: int
    decay_steps: int | None
    clip: float
    ema: float
    weighting: WeightFunction
    time_sampler: TimeSampler
    labels: LabelCondition | None
    amp: torch.dtype | None
    seed: int

    def rate(self, step: int) -> float:
        """The learning rate of step number ``step``, counted from 0."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        if self.decay_steps is None:
            return self.lr * rise
        return self.lr * rise * 0.5 * (1 + math.cos(math.pi * step / self.decay_steps))

    def decay(self, updates: int) -> float:
        """The weight d_n of the previous average in update number ``updates``, counted from 1."""
        return min(self.ema, (1 + updates) / (10 + updates))

    def record(self) -> dict[str, str]:
        """The settings as a checkpoint stores them: ``repr`` of each, without addresses."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: re.sub(r" at 0x\w+", "", repr(value)) for name, value in values.items()}


def check_clip(clip: float) -> float:
    """Return the largest norm of a gradient, or raise."""
    if clip == math.inf:
        return clip
    return check_positive("clip", clip, "pass math.inf for no clipping")


def check_amp(amp: torch.dtype | None) -> torch.dtype | None:
    """Return the dtype of mixed precision, or raise."""
    if amp not in (None, torch.bfloat16):
        raise ValueError(
            f"amp: expected torch.bfloat16 or None, got {amp}; bfloat16 has the range of float32, "
            "so that gradients need no scaling"
        )
    return amp


def check_condition(
    score: Any, name: str | None, dropout: float, null: int | float | None
) -> LabelCondition | None:
    """Return how the network is conditioned on labels, None if it is not, or raise."""
    dropout = check_between("condition_dropout", dropout, 0.0, 1.0)
    if name is None:
        if dropout > 0:
            raise ValueError(
                "condition_dropout: expected 0 without condition=, got "
                f"{dropout:g}; pass the name of the network's argument for the labels"
            )
        return None
    if not hasattr(score, "given"):
        raise TypeError(
            f"condition: expected a ScoreModel, whose network takes {name!r}, got "
            f"{type(score).__name__}; wrap the network as ScoreModel(network, sde)"
        )
    score.given(**{name: None})  # raises if the network takes no such argument
    null = getattr(score.network, name, None) if null is None else null
    if dropout > 0 and null is None:
        raise ValueError(
            f"null: expected the label that means no {name}, got None; the network has no "
            f"attribute {name!r} that could be used instead"
        )
    return LabelCondition(name, dropout, null)
