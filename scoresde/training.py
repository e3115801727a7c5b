r"""A small training loop for scores.

Each step takes a batch of data, draws one time and one noise per row, and descends the gradient of
the denoising score matching loss (:mod:`scoresde.losses`) with AdamW. What is kept is not the last
weights θ_n but their exponential moving average,

    θ̄_n = d_n θ̄_{n−1} + (1 − d_n) θ_n,        d_n = min(d, (1 + n)/(10 + n)),

whose samples and likelihoods are better for the same work.

Every random number of step n is a function of (seed, n): nothing about chance needs to be stored,
and a run that was stopped goes on from its checkpoint as if nothing had happened, to the last bit
on a CPU.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, distributed
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from tqdm.auto import tqdm

from scoresde._checks import (
    check_between,
    check_floating,
    check_integer,
    check_nonnegative,
    check_positive,
    check_state,
    describe,
)
from scoresde._random import uniform
from scoresde.losses import (
    Simple,
    Stratified,
    TimeLaw,
    WeightFunction,
    check_objective,
    sample_losses,
)
from scoresde.moments import Moments
from scoresde.score import Score

__all__ = ["FitResult", "History", "fit"]

Data = Tensor | tuple[Tensor, Tensor] | Dataset | DataLoader
"""Samples ``(n, *event)``, with or without a label each, or a Dataset or DataLoader of them."""

Batch = tuple[Tensor, Tensor | None]

AnyScore = TypeVar("AnyScore", bound=Score)

_FORMAT = "scoresde.fit"

_WINDOW = 50
"""Losses are read from the device, and averaged for the record, this many steps at a time."""

_LARGEST_SAMPLE = 10_000
"""The data's moments are estimated from so many samples of a Dataset, and from all of a tensor."""


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


def fit(
    score: AnyScore,
    data: Data,
    *,
    steps: int,
    batch_size: int = 256,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    warmup: int = 100,
    cosine: bool = False,
    clip: float = 1.0,
    ema: float = 0.999,
    weighting: WeightFunction = Simple(),
    time_law: TimeLaw = Stratified(),
    condition: str | None = None,
    condition_dropout: float = 0.0,
    null: int | float | None = None,
    held_out: Data | None = None,
    evaluate_every: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1000,
    resume: bool = True,
    amp: torch.dtype | None = None,
    seed: int = 0,
    progress: bool = True,
) -> FitResult[AnyScore]:
    r"""Train a score on data by denoising score matching.

    The weights of ``score`` are trained in place, and its ``moments`` are set to those of the data;
    the result holds a copy with averaged weights. The learning rate rises linearly over ``warmup``
    steps and then stays, or falls to 0 along a cosine. PyTorch's global random state is left as it
    was.

    Ctrl-C ends the step in progress, writes the checkpoint, if there is to be one, and raises
    ``KeyboardInterrupt``; the same call takes up the run where it was.

    Under ``torchrun``, or where ``torch.distributed`` has been initialised, all processes train one
    model: each takes its part of every batch of a tensor or Dataset (a DataLoader is taken as it
    is), gradients are averaged, the first process writes the checkpoint, and all read it. On GPUs,
    put the score on its process's own device before.

    To compile the network, call ``network.compile()`` before.

    Args:
        score: a Score with parameters to train, usually a :class:`~scoresde.score.ScoreModel`.
        data: samples ``(n, *event)``, a pair of samples and labels ``(n, …)``, or a Dataset or
            DataLoader of samples or such pairs. Labels are ignored without ``condition``.
        steps: number of optimisation steps, in all.
        batch_size: samples per step, over all processes; a DataLoader has its own.
        lr: largest learning rate of AdamW.
        weight_decay: decoupled weight decay of AdamW.
        warmup: number of steps over which the learning rate rises.
        cosine: whether the learning rate falls to 0 at ``steps`` along a cosine.
        clip: largest norm of the gradient; ``math.inf`` for no clipping.
        ema: decay d of the average of the weights, per step.
        weighting: see :func:`~scoresde.losses.dsm_loss`.
        time_law: see :func:`~scoresde.losses.dsm_loss`; stratified, it has the least variance.
        condition: the network's keyword argument for the labels.
        condition_dropout: probability with which a label is replaced by ``null`` in training, for
            classifier-free guidance.
        null: the label that stands for none. If None, the attribute of the network that has the
            argument's name, which is the null class of this library's networks.
        held_out: data of the same kind that are evaluated, not learned.
        evaluate_every: steps between evaluations; a tenth of ``steps`` if None.
        checkpoint: the file that keeps the run.
        checkpoint_every: steps between writing it; it is also written at the end.
        resume: whether to go on from the checkpoint if it exists; if not, it is overwritten. The
            order of the data goes on too, but for a DataLoader or stream, which starts a new pass.
        amp: ``torch.bfloat16`` for automatic mixed precision in the network; None for none.
        seed: decides the order of the data, times, noise and dropout.
        progress: whether to show a progress bar.

    Returns:
        The averaged score, the raw one, and the record of the run.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if a number is out of range, the data are empty or not finite, the score has
            nothing to train, or the checkpoint is damaged, foreign or of another run.
        FloatingPointError: if the loss or its gradient stops being finite; the message names the
            step, and the last checkpoint is kept as it was.
        KeyboardInterrupt: on Ctrl-C, after the checkpoint is written.

    Example:
        >>> from scoresde import MLP, ScoreModel, VPSDE
        >>> x = 0.1 * torch.randn(512, 2, generator=torch.Generator().manual_seed(0))
        >>> model = ScoreModel(MLP((2,), width=16, depth=1), VPSDE())
        >>> result = fit(model, x, steps=20, batch_size=64, lr=1e-2, progress=False)
        >>> result.steps, result.score.moments.known
        (20, True)

    References:
        Song et al. 2021, arXiv:2011.13456, appendix H (warm-up, clipping, average); Ho & Salimans,
        *Classifier-free diffusion guidance*, 2022, arXiv:2207.12598, algorithm 1.
    """
    check_objective(score, weighting, time_law)
    steps = check_integer("steps", steps, minimum=1)
    recipe = _Recipe(
        batch_size=check_integer("batch_size", batch_size, minimum=1),
        lr=check_positive("lr", lr),
        weight_decay=check_nonnegative("weight_decay", weight_decay),
        warmup=check_integer("warmup", warmup, minimum=0),
        decay_steps=steps if cosine else None,
        clip=_check_clip(clip),
        ema=check_between("ema", ema, 0.0, 1.0),
        weighting=weighting,
        time_law=time_law,
        labels=_check_labels(score, condition, condition_dropout, null),
        amp=_check_amp(amp),
        seed=check_integer("seed", seed),
    )
    source = _source("data", data, condition)
    every = max(1, steps // 10) if evaluate_every is None else evaluate_every
    plan = _Plan(
        steps=steps,
        held_out=None if held_out is None else _source("held_out", held_out, condition),
        evaluate_every=check_integer("evaluate_every", every, minimum=1),
        checkpoint=None if checkpoint is None else _check_path(checkpoint),
        checkpoint_every=check_integer("checkpoint_every", checkpoint_every, minimum=1),
        resume=resume,
        progress=progress,
    )
    parameters = [p for p in score.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            "score: expected parameters that require a gradient, got none; only a network learns"
        )
    device = parameters[0].device
    with _processes(device, recipe) as group, _private_randomness(device, recipe.seed):
        score.moments = Moments.of(_sample(source, recipe, group)).to(device)
        run = _Run(score, parameters, recipe, plan, group)
        try:
            with _last_step() as interrupted:
                run.go(source, interrupted)
        finally:
            score.eval()
    return run.result()


@dataclass(frozen=True)
class _Plan:
    """How far a run goes, and what it stops for on the way."""

    steps: int
    held_out: Dataset | DataLoader | None
    evaluate_every: int
    checkpoint: Path | None
    checkpoint_every: int
    resume: bool
    progress: bool


# --- one run


@dataclass(frozen=True)
class _Labels:
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
class _Recipe:
    """All that decides the weights but the data; a run goes on only under the same recipe."""

    batch_size: int
    lr: float
    weight_decay: float
    warmup: int
    decay_steps: int | None
    clip: float
    ema: float
    weighting: WeightFunction
    time_law: TimeLaw
    labels: _Labels | None
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


class _Run(Generic[AnyScore]):
    """The state of a run: weights, their average, the optimiser, and the record."""

    def __init__(
        self,
        score: AnyScore,
        parameters: list[torch.nn.Parameter],
        recipe: _Recipe,
        plan: _Plan,
        group: _Group,
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
        batches = _endless(source, self.recipe, self.group, self.step)
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
                    _interrupt(self.step, plan.checkpoint)

    def reseed(self) -> None:
        """Make all randomness of the coming step a function of (seed, step, rank)."""
        where = self.recipe.seed, self.step, self.group.rank
        self.generator.manual_seed(_hash("times and noise", *where))
        torch.default_generator.manual_seed(_hash("all the rest", *where))
        if self.device.type == "cuda":
            torch.cuda.manual_seed(_hash("all the rest", *where))

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
        own = itertools.islice(enumerate(_once(data, size)), self.group.rank, None, self.group.size)
        for number, (x, labels) in own:
            self.generator.manual_seed(_hash("held out", self.recipe.seed, number))
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
            "format": _FORMAT,
            "version": 1,
            "step": self.step,
            "seconds": self.seconds + time.perf_counter() - self.started,
            "recipe": self.recipe.record(),
            "score": self.score.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "train": self.history.train,
            "held_out": self.history.held_out,
        }
        partial = path.with_name(f"{path.name}.partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Take up the run that a checkpoint keeps."""
        state = _read_checkpoint(path, self.device)
        _check_recipe(path, state["recipe"], self.recipe.record())
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
            losses = sample_losses(score, x, self.recipe.weighting, self.recipe.time_law, generator)
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


def _hash(*key: object) -> int:
    """A 63-bit number that looks random and is the same everywhere."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


# --- data


def _source(name: str, data: Any, condition: str | None) -> Dataset | DataLoader:
    """Return data of any accepted kind as a Dataset or DataLoader; tensors are checked here."""
    if isinstance(data, Tensor):
        data = TensorDataset(check_state(name, data))
    elif isinstance(data, tuple) and len(data) == 2:
        x, labels = check_state(f"{name}[0]", data[0]), torch.as_tensor(data[1])
        if labels.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"{name}: expected one label per sample, got {describe(labels)} for {len(x)} "
                "samples; pass (samples, labels)"
            )
        data = TensorDataset(x, labels)
    if not isinstance(data, Dataset | DataLoader):
        raise TypeError(
            f"{name}: expected a tensor, a pair (samples, labels), a Dataset or a DataLoader, got "
            f"{describe(data)}; convert arrays with torch.as_tensor"
        )
    if condition is not None and isinstance(data, TensorDataset) and len(data.tensors) < 2:
        raise ValueError(
            f"{name}: expected labels for condition={condition!r}, got samples alone; pass the "
            "pair (samples, labels)"
        )
    return data


def _endless(
    data: Dataset | DataLoader, recipe: _Recipe, group: _Group, start: int
) -> Iterator[Batch]:
    """Batches of this process, from step ``start`` on: shuffled passes through the data."""
    local = recipe.batch_size // group.size
    if isinstance(data, DataLoader):
        return _passes(data)
    if isinstance(data, IterableDataset):
        return _passes(DataLoader(data, batch_size=local))
    order = _order(len(data), recipe.batch_size, recipe.seed, start)  # type: ignore[arg-type]
    own = (index[group.rank :: group.size] for index in order)
    if isinstance(data, TensorDataset):
        return (_pair(data[index]) for index in own)
    return map(_pair, DataLoader(data, batch_sampler=(index.tolist() for index in own)))


def _order(n: int, batch_size: int, seed: int, start: int) -> Iterator[Tensor]:
    """Indices of the batches from number ``start`` on, cut from one row of shuffled passes."""

    def shuffled(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(_hash("pass", seed, number))
        return torch.randperm(n, generator=generator)

    number, done = divmod(start * batch_size, n)
    row = shuffled(number)[done:]
    while True:
        while len(row) < batch_size:
            number += 1
            row = torch.cat([row, shuffled(number)])
        yield row[:batch_size]
        row = row[batch_size:]


def _passes(loader: DataLoader) -> Iterator[Batch]:
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield _pair(batch)
        if empty:
            raise ValueError("data: expected at least one batch, got an empty pass of the loader")


def _once(data: Dataset | DataLoader, size: int) -> Iterator[Batch]:
    """One pass through the data, in their own order."""
    if isinstance(data, TensorDataset):
        return (_pair(data[i : i + size]) for i in range(0, len(data), size))
    loader = data if isinstance(data, DataLoader) else DataLoader(data, batch_size=size)
    return map(_pair, loader)


def _pair(batch: Any) -> Batch:
    """Read a batch as samples and labels, if it has any."""
    x, labels = (batch, None) if isinstance(batch, Tensor) else (*batch, None)[:2]
    return check_floating("data", x), labels


def _sample(data: Dataset | DataLoader, recipe: _Recipe, group: _Group) -> Tensor:
    """Samples to estimate the moments from: all of a tensor, the first few thousand otherwise."""
    if isinstance(data, TensorDataset):
        return data.tensors[0]
    rows = data.dataset if isinstance(data, DataLoader) else data
    wanted = min(_LARGEST_SAMPLE, len(rows)) if hasattr(rows, "__len__") else _LARGEST_SAMPLE
    found: list[Tensor] = []
    for x, _ in _endless(data, recipe, group, 0):
        found.append(x.cpu())
        if sum(map(len, found)) >= wanted:
            break
    return check_state("data", torch.cat(found))


# --- processes, randomness, interruption


@dataclass(frozen=True)
class _Group:
    """The processes that train one model."""

    rank: int
    size: int

    def average_(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their means over the processes."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= self.size
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Replace tensors by those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor.detach(), 0)

    def agree(self, name: str, number: Tensor) -> None:
        """Raise unless the number is the same in all processes."""
        mean = number.double()
        self.average_([mean])
        if bool(mean != number):
            raise ValueError(
                f"{name}: expected the same file in all processes, got different ones; put it on a "
                "disk that they share"
            )


@contextmanager
def _processes(device: torch.device, recipe: _Recipe) -> Iterator[_Group]:
    """The processes of ``torch.distributed``, which is initialised here if torchrun asks for it."""
    own = (
        distributed.is_available()
        and not distributed.is_initialized()
        and int(os.environ.get("WORLD_SIZE", "1")) > 1
    )
    if own:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        joined = distributed.is_available() and distributed.is_initialized()
        size = distributed.get_world_size() if joined else 1
        if recipe.batch_size % size:
            raise ValueError(
                f"batch_size: expected a multiple of the number of processes, {size}, got "
                f"{recipe.batch_size}; every process takes an equal part"
            )
        yield _Group(distributed.get_rank() if joined else 0, size)
    finally:
        if own:
            distributed.destroy_process_group()


@contextmanager
def _private_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Give PyTorch's global random state back as it was; dropout has no generator of its own."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(_hash("start", seed))
        yield


@contextmanager
def _last_step() -> Iterator[Callable[[], bool]]:
    """Tell whether Ctrl-C was pressed, instead of breaking off a step; twice breaks off."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield lambda: False
        return
    pressed = False

    def note(number: int, frame: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(step: int, path: Path | None) -> None:
    kept = "score holds the weights so far" if path is None else f"call fit again to go on ({path})"
    raise KeyboardInterrupt(f"stopped after step {step}; {kept}")


# --- checks


def _check_clip(clip: float) -> float:
    return (
        clip if clip == math.inf else check_positive("clip", clip, "pass math.inf to clip nothing")
    )


def _check_amp(amp: torch.dtype | None) -> torch.dtype | None:
    if amp not in (None, torch.bfloat16):
        raise ValueError(
            f"amp: expected torch.bfloat16 or None, got {amp}; its range is float32's, so that "
            "gradients need no scaling"
        )
    return amp


def _check_labels(
    score: Any, name: str | None, dropout: float, null: int | float | None
) -> _Labels | None:
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
    return _Labels(name, dropout, null)


def _check_path(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"checkpoint: expected the path of a file, got {describe(path)}; pass a string or Path"
        )
    file = Path(path)
    if file.is_dir():
        raise IsADirectoryError(
            f"checkpoint: expected the path of a file, got the folder {file}; name a file inside it"
        )
    if not file.parent.is_dir():
        raise FileNotFoundError(
            f"checkpoint: expected a path in an existing folder, got {file}; create {file.parent}"
        )
    return file


def _read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    cure = "pass another file, or resume=False to overwrite this one"
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whatever the bytes make of the reader
        raise ValueError(
            f"checkpoint: expected a file written by fit, got {path}, which is damaged or of "
            f"another kind ({type(error).__name__}); {cure}"
        ) from None
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError(
            f"checkpoint: expected a file written by fit, got {path}, a file of another program; "
            f"{cure}"
        )
    return state


def _check_recipe(path: Path, kept: dict[str, str], asked: dict[str, str]) -> None:
    changed = [name for name in asked if kept.get(name) != asked[name]]
    if changed:
        told = ", ".join(f"{name}={kept.get(name)} (now {asked[name]})" for name in changed)
        raise ValueError(
            f"checkpoint: expected a run with the same settings, got {path} with {told}; go on "
            "with those, pass another file, or resume=False to start anew"
        )
