"""One run: its state, its steps, and what it does on the way."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, cast

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from scoresde.scores import Score
from scoresde.training.checkpoint import check_recipe, read_checkpoint, write_checkpoint
from scoresde.training.data import endless, once
from scoresde.training.interruption import interrupt
from scoresde.training.losses import sample_losses
from scoresde.training.processes import Group
from scoresde.training.randomness import hash_of
from scoresde.training.recipe import Recipe
from scoresde.training.result import AnyScore, FitResult, History

_WINDOW = 50
"""Losses are read from the device, and averaged for the record, this many steps at a time."""


@dataclass(frozen=True)
class Plan:
    """How far a run goes, and what it stops for on the way."""

    steps: int
    held_out: Dataset | DataLoader | None
    evaluate_every: int
    checkpoint: Path | None
    checkpoint_every: int
    resume: bool
    progress: bool


class Run(Generic[AnyScore]):
    """The state of a run: weights, their average, the optimiser, and the record."""

    def __init__(
        self,
        score: AnyScore,
        parameters: list[torch.nn.Parameter],
        recipe: Recipe,
        plan: Plan,
        group: Group,
    ) -> None:
        self.recipe, self.plan, self.group = recipe, plan, group
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
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.generator = torch.Generator(self.device)
        self.history = History()
        self.step, self.seconds, self.kept = 0, 0.0, 0
        self.read, self.started = 0, time.perf_counter()
        self.window = torch.zeros(2, _WINDOW, device=self.device)  # losses, norms of gradients

    def go(self, source: Dataset | DataLoader, interrupted: Callable[[], bool]) -> None:
        """Take the steps that are left, and record, evaluate and keep the run on the way."""
        plan = self.plan
        if plan.checkpoint is not None and plan.resume and plan.checkpoint.exists():
            self.load(plan.checkpoint)
        batches = endless(source, self.recipe, self.group, self.step)
        with self._bar() as bar:
            while self.step < plan.steps:
                self.reseed()
                self.advance(*next(batches))
                bar.update()
                done = self.step == plan.steps
                stop = interrupted() and not done
                if self._due(_WINDOW, done or stop):
                    self.read_losses()
                if plan.held_out is not None and self._due(plan.evaluate_every, done):
                    self.evaluate(plan.held_out)
                if plan.checkpoint is not None and self._due(plan.checkpoint_every, done or stop):
                    self.save(plan.checkpoint)
                if self.read == self.step:
                    bar.set_postfix_str(self._losses_so_far())
                if stop:
                    interrupt(self.step, plan.checkpoint)

    def reseed(self) -> None:
        """Make all randomness of the coming step a function of (seed, step, rank)."""
        where = self.recipe.seed, self.step, self.group.rank
        self.generator.manual_seed(hash_of("times and noise", *where))
        torch.default_generator.manual_seed(hash_of("all the rest", *where))
        if self.device.type == "cuda":
            torch.cuda.manual_seed(hash_of("all the rest", *where))

    def advance(self, x: Tensor, labels: Tensor | None) -> None:
        """Take one step of optimisation on a batch."""
        rate = self.recipe.rate(self.step)
        for options in self.optimizer.param_groups:
            options["lr"] = rate
        score = self._given(self.score, labels, drop=True)
        loss = self._losses(score, x, self.generator).mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = self._prepare_gradients()
        self.optimizer.step()
        self.step += 1
        self.average.update_parameters(self.score)
        self.window[:, self.step - self.read - 1] = torch.stack([loss.detach().to(norm), norm])

    def read_losses(self) -> None:
        """Record the mean loss since the last time; raise if one was not finite."""
        if self.read == self.step:
            return
        losses, norms = self.window[:, : self.step - self.read].double()
        self.group.average_([losses])
        finite = losses.isfinite() & norms.isfinite()
        if not bool(finite.all()):
            bad = int((~finite).nonzero()[0])
            found = f"loss {float(losses[bad]):g} and a gradient of norm {float(norms[bad]):g}"
            self._refuse(found, self.read + bad + 1)
        self.history.train.append((self.step, float(losses.mean())))
        self.read = self.step

    @torch.no_grad()
    def evaluate(self, data: Dataset | DataLoader) -> None:
        """Record the loss of held-out data under the averaged weights, with fixed draws."""
        self.read_losses()
        total = torch.zeros(2, dtype=torch.float64, device=self.device)  # loss, samples
        size = max(1, self.recipe.batch_size // self.group.size)
        own = itertools.islice(enumerate(once(data, size)), self.group.rank, None, self.group.size)
        for number, (x, labels) in own:
            self.generator.manual_seed(hash_of("held out", self.recipe.seed, number))
            score = self._given(cast(Score, self.average.module), labels, drop=False)
            losses = self._losses(score, x, self.generator).double()
            total += torch.stack([losses.sum(), losses.new_tensor(len(losses))])
        self.group.average_([total])
        mean = float(total[0] / total[1])
        if not math.isfinite(mean):
            self._refuse(f"held-out loss {mean:g}", self.step)
        self.history.held_out.append((self.step, mean))

    def result(self) -> FitResult[AnyScore]:
        """Return what the run has come to."""
        seconds = self.seconds + time.perf_counter() - self.started
        average = cast(AnyScore, self.average.module)
        return FitResult(average, self.score, self.history, self.step, seconds)

    def save(self, path: Path) -> None:
        """Write the checkpoint, in the first process: the new one replaces the old in one piece."""
        self.read_losses()
        self.kept = self.step
        if self.group.rank > 0:
            return
        state = {
            "step": self.step,
            "seconds": self.seconds + time.perf_counter() - self.started,
            "recipe": self.recipe.record(),
            "score": self.score.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "train": self.history.train,
            "held_out": self.history.held_out,
        }
        write_checkpoint(path, state)

    def load(self, path: Path) -> None:
        """Take up the run that a checkpoint keeps."""
        state = read_checkpoint(path, self.device)
        check_recipe(path, state["recipe"], self.recipe.record())
        try:
            self.score.load_state_dict(state["score"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"checkpoint: expected one of this score, got {path}, which does not fit: {error}"
            ) from None
        self.step = self.read = self.kept = state["step"]
        self.seconds = state["seconds"]
        self.history = History(state["train"], state["held_out"])
        self.group.agree("checkpoint", torch.tensor([self.step], device=self.device))

    def _given(self, score: Score, labels: Tensor | None, *, drop: bool) -> Score:
        if self.recipe.labels is None:
            return score
        if labels is None:
            raise ValueError(
                f"data: expected labels for condition={self.recipe.labels.name!r}, got samples "
                "alone; let the loader give pairs (samples, labels)"
            )
        labels = labels.to(self.device, non_blocking=True)
        if drop:
            return self.recipe.labels.bind(score, labels, self.generator)
        return self.recipe.labels.bind_all(score, labels)

    def _losses(self, score: Score, x: Tensor, generator: torch.Generator) -> Tensor:
        """The loss of each sample, per element of its event, ``(batch,)``."""
        x = x.to(self.device, self.dtype, non_blocking=True)
        amp = self.recipe.amp
        with torch.autocast(self.device.type, dtype=amp, enabled=amp is not None):
            losses = sample_losses(
                score, x, self.recipe.weighting, self.recipe.time_sampler, generator
            )
        return losses / math.prod(x.shape[1:])

    def _prepare_gradients(self) -> Tensor:
        """Average the gradients over the processes, clip them, and return their norm before."""
        if self.group.size > 1:
            for parameter in self.parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.group.average_(gradients)
        norm = get_total_norm(gradients)
        if math.isfinite(self.recipe.clip):
            clip_grads_with_norm_(self.parameters, self.recipe.clip, norm)
        return norm

    def _average_(self, average: Any, current: Any, updates: Tensor | int) -> None:
        """The rule of ``AveragedModel``, in place on lists of tensors."""
        torch._foreach_lerp_(average, current, 1 - self.recipe.decay(self.step))

    def _due(self, every: int, last: bool) -> bool:
        return last or self.step % every == 0

    def _bar(self) -> tqdm:
        return tqdm(
            total=self.plan.steps,
            initial=self.step,
            desc="fit",
            unit="step",
            disable=not self.plan.progress or self.group.rank > 0,
        )

    def _losses_so_far(self) -> str:
        pairs = (("loss", self.history.train), ("held-out", self.history.held_out))
        return ", ".join(f"{name} {losses[-1][1]:.4g}" for name, losses in pairs if losses)

    def _refuse(self, found: str, step: int) -> None:
        path = self.plan.checkpoint
        kept = (
            "give checkpoint= a file to have a way back"
            if path is None
            else f"{path} keeps the run as it was after step {self.kept}"
            if self.kept
            else f"{path} was not written yet"
        )
        raise FloatingPointError(
            f"fit: expected finite losses and gradients, got {found} at step {step}; lower "
            f"lr={self.recipe.lr:g}, lengthen warmup={self.recipe.warmup} or look for extreme "
            f"values in the data; {kept}"
        )
