"""The door of training: its arguments are checked here, then a run is made of them."""

from __future__ import annotations

import os

import torch

from scoresde._core.checks import (
    check_between,
    check_integer,
    check_nonnegative,
    check_positive,
)
from scoresde.scores.moments import Moments
from scoresde.training.checkpoint import check_path
from scoresde.training.data import Data, some_samples, source_of
from scoresde.training.interruption import last_step
from scoresde.training.losses import (
    Simple,
    Stratified,
    TimeSampler,
    WeightFunction,
    check_objective,
)
from scoresde.training.processes import processes
from scoresde.training.randomness import private_randomness
from scoresde.training.recipe import Recipe, check_amp, check_clip, check_labels
from scoresde.training.result import AnyScore, FitResult
from scoresde.training.run import Plan, Run

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
        score: a Score with parameters to train, usually a :class:`~scoresde.scores.ScoreModel`.
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
        weighting: see :func:`~scoresde.training.losses.dsm_loss`.
        time_sampler: see :func:`~scoresde.training.losses.dsm_loss`; stratified, it has the least variance.
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
    check_objective(score, weighting, time_sampler)
    steps = check_integer("steps", steps, minimum=1)
    recipe = Recipe(
        batch_size=check_integer("batch_size", batch_size, minimum=1),
        lr=check_positive("lr", lr),
        weight_decay=check_nonnegative("weight_decay", weight_decay),
        warmup=check_integer("warmup", warmup, minimum=0),
        decay_steps=steps if cosine else None,
        clip=check_clip(clip),
        ema=check_between("ema", ema, 0.0, 1.0),
        weighting=weighting,
        time_sampler=time_sampler,
        labels=check_labels(score, condition, condition_dropout, null),
        amp=check_amp(amp),
        seed=check_integer("seed", seed),
    )
    source = source_of("data", data, condition)
    every = max(1, steps // 10) if evaluate_every is None else evaluate_every
    plan = Plan(
        steps=steps,
        held_out=None if held_out is None else source_of("held_out", held_out, condition),
        evaluate_every=check_integer("evaluate_every", every, minimum=1),
        checkpoint=None if checkpoint is None else check_path(checkpoint),
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
    with processes(device, recipe.batch_size) as group, private_randomness(device, recipe.seed):
        score.moments = Moments.of(some_samples(source, recipe, group)).to(device)
        run = Run(score, parameters, recipe, plan, group)
        try:
            with last_step() as interrupted:
                run.go(source, interrupted)
        finally:
            score.eval()
    return run.result()
