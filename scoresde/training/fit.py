"""The public function of training: argument checks, and the loop over steps."""

from __future__ import annotations

import os

import torch
from tqdm.auto import tqdm

from scoresde._core.checks import (
    check_between,
    check_instance,
    check_integer,
    check_nonnegative,
    check_positive,
)
from scoresde.scores.moments import Moments
from scoresde.training.checkpoint import check_path
from scoresde.training.config import TrainingConfig, check_amp, check_clip, check_condition
from scoresde.training.data import Data, as_dataset, moment_samples, training_batches
from scoresde.training.interruption import deferred_interrupt
from scoresde.training.losses import check_objective
from scoresde.training.processes import process_group
from scoresde.training.randomness import private_randomness
from scoresde.training.result import AnyScore, FitResult
from scoresde.training.time_samplers import Stratified, TimeSampler
from scoresde.training.trainer import LOSS_INTERVAL, Trainer
from scoresde.training.weightings import Simple, WeightFunction

__all__ = ["fit"]


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
    time_sampler: TimeSampler = Stratified(),
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
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> FitResult[AnyScore]:
    r"""Train a score on data by denoising score matching.

    The weights of ``score`` are trained in place, and its ``moments`` are set to those of the data;
    the result holds a copy with averaged weights. The learning rate rises linearly over ``warmup``
    steps and is then constant, or falls to 0 along a cosine.

    Random numbers of step n are a function of (seed, n), so that a run continues from a checkpoint
    with the same numbers. Therefore ``fit`` takes a ``seed``, whose default is fixed, where other
    functions take a ``generator`` alone and None means PyTorch's global one; a ``generator`` given
    here is used once, to draw the seed. PyTorch's global random state is unchanged afterwards.

    Ctrl-C ends training after the step in progress: the checkpoint is written, if there is to be
    one, and ``KeyboardInterrupt`` is raised; the same call resumes the run.

    Under ``torchrun``, or where ``torch.distributed`` has been initialized, all processes train one
    model: each takes its part of every batch of a tensor or Dataset (a DataLoader is used
    unchanged), gradients are averaged, the first process writes the checkpoint, and all load it.
    On GPUs, move the score to the device of its process before.

    To compile the network, call ``network.compile()`` before.

    Args:
        score: a Score with parameters to train, usually a :class:`~scoresde.scores.ScoreModel`.
        data: samples ``(n, *event)``, a pair of samples and labels ``(n, …)``, or a Dataset or
            DataLoader of samples or such pairs. Labels are ignored without ``condition``.
        steps: number of optimization steps, including those before a resumption.
        batch_size: samples per step, over all processes; a DataLoader has its own.
        lr: largest learning rate of AdamW.
        weight_decay: decoupled weight decay of AdamW.
        warmup: number of steps over which the learning rate rises.
        cosine: whether the learning rate falls to 0 at ``steps`` along a cosine.
        clip: largest norm of the gradient; ``math.inf`` for no clipping.
        ema: decay d of the exponential moving average of the weights, per step.
        weighting: see :func:`~scoresde.training.losses.dsm_loss`.
        time_sampler: see :func:`~scoresde.training.losses.dsm_loss`; stratified sampling has the
            least variance.
        condition: the network's keyword argument for the labels.
        condition_dropout: probability with which a label is replaced by ``null`` in training, for
            classifier-free guidance.
        null: the label that means no label. If None, the attribute of the network that has the
            argument's name, which is the null class of this library's networks.
        held_out: data of the same kind on which the loss is evaluated.
        evaluate_every: steps between evaluations; a tenth of ``steps`` if None.
        checkpoint: the file to which the run is saved.
        checkpoint_every: steps between writing it; it is also written at the end.
        resume: whether to continue from the checkpoint if it exists; if not, it is overwritten. The
            order of the data continues too, except for a DataLoader or stream, which starts a new
            pass.
        amp: ``torch.bfloat16`` for automatic mixed precision in the network; None for none.
        seed: determines the order of the data, times, noise and dropout.
        generator: if given, ``seed`` is drawn from it; a call that resumes a run needs one in the
            same state, as do all processes.
        progress: show a progress bar.

    Returns:
        The averaged score, the raw one, and the record of the run.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if a number is out of range, the data are empty or not finite, the score has
            nothing to train, or the checkpoint is damaged, foreign or of another run.
        FloatingPointError: if the loss or its gradient is not finite; the message names the step,
            and the last checkpoint is left unchanged.
        KeyboardInterrupt: on Ctrl-C, after the checkpoint is written.

    Example:
        >>> from scoresde import MLP, ScoreModel, VPSDE
        >>> x = 0.1 * torch.randn(512, 2, generator=torch.Generator().manual_seed(0))
        >>> model = ScoreModel(MLP((2,), width=16, depth=1), VPSDE())
        >>> result = fit(model, x, steps=20, batch_size=64, lr=1e-2)
        >>> result.steps, result.score.moments.known
        (20, True)

    References:
        Song et al. 2021, arXiv:2011.13456, appendix H (warm-up, clipping, average); Ho & Salimans,
        *Classifier-free diffusion guidance*, 2022, arXiv:2207.12598, algorithm 1.
    """
    check_objective(score, weighting, time_sampler)
    steps = check_integer("steps", steps, minimum=1)
    if generator is not None:
        check_instance("generator", generator, torch.Generator, "torch.Generator()")
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    config = TrainingConfig(
        batch_size=check_integer("batch_size", batch_size, minimum=1),
        lr=check_positive("lr", lr),
        weight_decay=check_nonnegative("weight_decay", weight_decay),
        warmup=check_integer("warmup", warmup, minimum=0),
        decay_steps=steps if cosine else None,
        clip=check_clip(clip),
        ema=check_between("ema", ema, 0.0, 1.0),
        weighting=weighting,
        time_sampler=time_sampler,
        labels=check_condition(score, condition, condition_dropout, null),
        amp=check_amp(amp),
        seed=check_integer("seed", seed),
    )
    dataset = as_dataset("data", data, condition)
    evaluated = None if held_out is None else as_dataset("held_out", held_out, condition)
    evaluate_every = max(1, steps // 10) if evaluate_every is None else evaluate_every
    check_integer("evaluate_every", evaluate_every, minimum=1)
    check_integer("checkpoint_every", checkpoint_every, minimum=1)
    path = None if checkpoint is None else check_path(checkpoint)
    parameters = [p for p in score.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            "score: expected parameters that require a gradient, got none; only a network learns"
        )
    device = parameters[0].device
    with process_group(device, config) as group, private_randomness(device, config.seed):
        score.moments = Moments.of(moment_samples(dataset, config, group)).to(device)
        trainer = Trainer(score, parameters, config, group, path)
        try:
            if resume:
                trainer.resume()
            batches = training_batches(dataset, config, group, trainer.step)
            bar = tqdm(
                total=steps,
                initial=trainer.step,
                desc="fit",
                unit="step",
                disable=not progress or group.rank > 0,
            )
            with deferred_interrupt() as interrupted, bar:
                while trainer.step < steps:
                    trainer.train_step(*next(batches))
                    bar.update()
                    step, last = trainer.step, trainer.step == steps
                    stop = interrupted() and not last
                    if step % LOSS_INTERVAL == 0 or last or stop:
                        trainer.record_losses()
                    if evaluated is not None and (step % evaluate_every == 0 or last):
                        trainer.evaluate(evaluated)
                    if step % checkpoint_every == 0 or last or stop:
                        trainer.save()
                    if trainer.steps_recorded == step:
                        bar.set_postfix_str(str(trainer.history))
                    if stop:
                        hint = (
                            "score holds its weights"
                            if path is None
                            else f"call fit again to resume from {path}"
                        )
                        raise KeyboardInterrupt(f"stopped after step {step}; {hint}")
        finally:
            score.eval()
    return trainer.result()
