"""The state of a training run, its step, its evaluation, and its checkpoint."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path
from typing import Any, Generic, cast

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from scoresde.scores import Score
from scoresde.training.checkpoint import check_settings, read_checkpoint, write_checkpoint
from scoresde.training.config import TrainingConfig
from scoresde.training.data import held_out_batches
from scoresde.training.losses import sample_losses
from scoresde.training.processes import ProcessGroup
from scoresde.training.randomness import derive_seed, seed_global_generators
from scoresde.training.result import AnyScore, FitResult, LossHistory

LOSS_INTERVAL = 50
"""Number of steps whose losses are copied from the device, and averaged in the record, at once."""


class Trainer(Generic[AnyScore]):
    """The weights, their average, the optimizer, and the record of losses.

    Args:
        score: the score, whose weights are trained in place.
        parameters: those of its parameters that require a gradient.
        config: the settings.
        group: the processes that train together.
        checkpoint: the file of the run, if there is one.
    """

    def __init__(
        self,
        score: AnyScore,
        parameters: list[torch.nn.Parameter],
        config: TrainingConfig,
        group: ProcessGroup,
        checkpoint: Path | None,
    ) -> None:
        self.config, self.group, self.checkpoint = config, group, checkpoint
        self.parameters = parameters
        self.device = parameters[0].device
        self.dtype = torch.promote_types(parameters[0].dtype, torch.float32)
        self.score = score.train()
        group.broadcast_([*score.parameters(), *score.buffers()])
        self.average = AveragedModel(score, multi_avg_fn=self._average_)
        self.average.n_averaged.fill_(1)  # the initial weights are the first in the average
        self.average.eval()
        self.optimizer = torch.optim.AdamW(
            parameters,
            lr=config.lr,
            weight_decay=config.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.generator = torch.Generator(self.device)
        self.history = LossHistory()
        self.step = self.steps_recorded = self.steps_saved = 0
        self.seconds_before, self.started = 0.0, time.perf_counter()
        self.pending = torch.zeros(2, LOSS_INTERVAL, device=self.device)  # losses, gradient norms

    @property
    def seconds(self) -> float:
        """Time taken so far, including that before a resumption."""
        return self.seconds_before + time.perf_counter() - self.started

    def train_step(self, x: Tensor, labels: Tensor | None) -> None:
        """Take one step on a batch: loss, gradient, optimizer, average.

        Its random numbers are a function of (seed, step, rank).
        """
        key = self.config.seed, self.step, self.group.rank
        self.generator.manual_seed(derive_seed("times and noise", *key))
        seed_global_generators(self.device, derive_seed("all the rest", *key))
        for options in self.optimizer.param_groups:
            options["lr"] = self.config.rate(self.step)
        loss = self.losses(self.score, x, labels, dropout=True).mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = self._prepare_gradients()
        self.optimizer.step()
        self.step += 1
        self.average.update_parameters(self.score)
        column = self.step - self.steps_recorded - 1
        self.pending[:, column] = torch.stack([loss.detach().to(norm), norm])

    def losses(self, score: Score, x: Tensor, labels: Tensor | None, *, dropout: bool) -> Tensor:
        """The loss of each sample, per element of its event, ``(batch,)``."""
        if (condition := self.config.labels) is not None:
            if labels is None:
                raise ValueError(
                    f"data: expected labels for condition={condition.name!r}, got samples alone; "
                    "let the loader give pairs (samples, labels)"
                )
            labels = labels.to(self.device, non_blocking=True)
            if dropout:
                labels = condition.drop(labels, self.generator)
            score = condition.condition(score, labels)
        x = x.to(self.device, self.dtype, non_blocking=True)
        amp = self.config.amp
        with torch.autocast(self.device.type, dtype=amp, enabled=amp is not None):
            losses = sample_losses(
                score, x, self.config.weighting, self.config.time_sampler, self.generator
            )
        return losses / math.prod(x.shape[1:])

    def record_losses(self) -> None:
        """Record the mean loss since the previous entry; raise if one was not finite."""
        if self.steps_recorded == self.step:
            return
        losses, norms = self.pending[:, : self.step - self.steps_recorded].double()
        self.group.average_([losses])
        finite = losses.isfinite() & norms.isfinite()
        if not bool(finite.all()):
            bad = int((~finite).nonzero()[0])
            found = f"loss {float(losses[bad]):g} and a gradient of norm {float(norms[bad]):g}"
            raise self._not_finite(found, self.steps_recorded + bad + 1)
        self.history.train.append((self.step, float(losses.mean())))
        self.steps_recorded = self.step

    @torch.no_grad()
    def evaluate(self, data: Dataset[Any] | DataLoader[Any]) -> None:
        """Record the loss of held-out data under the averaged weights, on the same draws."""
        self.record_losses()
        total = torch.zeros(2, dtype=torch.float64, device=self.device)  # loss, samples
        rank, size = self.group.rank, self.group.size
        batches = enumerate(held_out_batches(data, max(1, self.config.batch_size // size)))
        for number, (x, labels) in itertools.islice(batches, rank, None, size):
            self.generator.manual_seed(derive_seed("held out", self.config.seed, number))
            average = cast(Score, self.average.module)
            losses = self.losses(average, x, labels, dropout=False).double()
            total += torch.stack([losses.sum(), losses.new_tensor(len(losses))])
        self.group.average_([total])
        mean = float(total[0] / total[1])
        if not math.isfinite(mean):
            raise self._not_finite(f"held-out loss {mean:g}", self.step)
        self.history.held_out.append((self.step, mean))

    def result(self) -> FitResult[AnyScore]:
        """Return the scores and the record of the run."""
        average = cast(AnyScore, self.average.module)
        return FitResult(average, self.score, self.history, self.step, self.seconds)

    def save(self) -> None:
        """Write the checkpoint, if there is to be one, in the first process."""
        if self.checkpoint is None:
            return
        self.record_losses()
        self.steps_saved = self.step
        if self.group.rank > 0:
            return
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "settings": self.config.record(),
            "score": self.score.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "train": self.history.train,
            "held_out": self.history.held_out,
        }
        write_checkpoint(self.checkpoint, state)

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one."""
        path = self.checkpoint
        if path is None or not path.exists():
            return
        state = read_checkpoint(path, self.device)
        check_settings(path, state["settings"], self.config.record())
        try:
            self.score.load_state_dict(state["score"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"checkpoint: expected one of this score, got {path}, which does not fit: {error}"
            ) from None
        self.step = self.steps_recorded = self.steps_saved = state["step"]
        self.seconds_before = state["seconds"]
        self.history = LossHistory(state["train"], state["held_out"])
        hint = "write it to a disk that all of them share"
        self.group.check_equal("checkpoint", self.step, self.device, hint)

    def _prepare_gradients(self) -> Tensor:
        """Average the gradients over the processes, clip them, and return their norm before."""
        if self.group.size > 1:
            for parameter in self.parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.group.average_(gradients)
        norm = get_total_norm(gradients)
        if math.isfinite(self.config.clip):
            clip_grads_with_norm_(self.parameters, self.config.clip, norm)
        return norm

    def _average_(self, average: Any, current: Any, updates: Tensor | int) -> None:
        """The update of ``AveragedModel`` with the decay of this step, on lists of tensors."""
        get_ema_multi_avg_fn(self.config.decay(self.step))(average, current, updates)

    def _not_finite(self, found: str, step: int) -> FloatingPointError:
        path = self.checkpoint
        saved = (
            "pass checkpoint= a file to be able to resume"
            if path is None
            else f"{path} holds the run after step {self.steps_saved}"
            if self.steps_saved
            else f"{path} was not written yet"
        )
        return FloatingPointError(
            f"fit: expected finite losses and gradients, got {found} at step {step}; lower "
            f"lr={self.config.lr:g}, lengthen warmup={self.config.warmup} or search for extreme "
            f"values in the data; {saved}"
        )
