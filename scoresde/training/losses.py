r"""Denoising score matching: one loss, with a weighting and a distribution of the time.

The denoiser x̂ = E[x_0 | x_t] is the solution of a least-squares regression, and so is every linear
function of it. We write the regression for the noise, x_t = α x_0 + σ ε,

    L = E_{t, x_0, ε} [ w(t) ‖ε̂(x_t, t) − ε‖² ],        ε̂ = −σ s = (x_t − α x̂)/σ,

because the errors of the other predictions are multiples of its error (ρ = σ/α),

    ‖s − s*‖² = ‖ε̂ − ε‖²/σ²,        ‖x̂ − x_0‖² = ρ² ‖ε̂ − ε‖².

The published losses differ only in the weighting w (:mod:`scoresde.training.weightings`) and in the
distribution of t (:mod:`scoresde.training.time_samplers`). Both modules' names can be imported from
here as well.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from scoresde._core.checks import check_instance, check_state, summarize
from scoresde._core.random import normal_like
from scoresde._core.shapes import expand, flatten
from scoresde.scores import Score
from scoresde.scores.base import require_score
from scoresde.sdes import GaussianSDE
from scoresde.training.time_samplers import (
    ImportanceSampled,
    LogNormal,
    Stratified,
    TableTimes,
    TimeSampler,
    Uniform,
)
from scoresde.training.weightings import (
    EDMWeighting,
    LikelihoodWeighting,
    MinSNR,
    PredictionWeighting,
    Simple,
    WeightFunction,
    Weighting,
)

__all__ = [
    "EDMWeighting",
    "ImportanceSampled",
    "LikelihoodWeighting",
    "LogNormal",
    "MinSNR",
    "PredictionWeighting",
    "Simple",
    "Stratified",
    "TableTimes",
    "TimeSampler",
    "Uniform",
    "Weighting",
    "dsm_loss",
]

Reduction = Literal["mean", "sum", "none"]


def dsm_loss(
    score: Score,
    x0: Tensor,
    *,
    weighting: WeightFunction = Simple(),
    time_sampler: TimeSampler = Uniform(),
    generator: torch.Generator | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Return the denoising score matching loss E[w(t) ‖ε̂(x_t, t) − ε‖²] on a batch of clean data.

    One t and one ε are drawn for every row of ``x0``; t has the distribution ``time_sampler``,
    ε ~ N(0, I), x_t = α x_0 + σ ε. Differentiate the result in the parameters of the score.

    Published losses are special cases:

    ==================  ============================================================================
    Song et al. (2021)  ``reduction="mean"`` for VP and sub-VP; half of ``reduction="sum"`` for VE
    likelihood          ``weighting=LikelihoodWeighting()``
    DDPM, NCSN          a discretized SDE with ``time_sampler=TableTimes(sde.times)``
    EDM                 ``weighting=EDMWeighting(sigma_data)``, ``time_sampler=LogNormal()``,
                        ``reduction="sum"``
    flow matching       ``weighting=PredictionWeighting(FLOW)`` with
                        :class:`~scoresde.sdes.RectifiedFlow`
    ==================  ============================================================================

    Args:
        score: any Score over a Gaussian SDE; in training a :class:`~scoresde.scores.ScoreModel`.
        x0: clean data ``(batch, *event)``, floating point; half precision is computed in float32.
        weighting: w, the weight on ‖ε̂ − ε‖²: :class:`Simple`, :class:`LikelihoodWeighting`,
            :class:`EDMWeighting`, :class:`MinSNR`, :class:`PredictionWeighting` or any function
            ``(sde, t) -> (batch,)``.
        time_sampler: the distribution of t: :class:`Uniform`, :class:`Stratified`,
            :class:`ImportanceSampled`, :class:`LogNormal` or :class:`TableTimes`.
        generator: source of randomness; None for PyTorch's global one.
        reduction: ``"mean"`` over the batch and the elements of the event; ``"sum"`` over the
            event, then the mean over the batch; ``"none"`` sums over the event alone.

    Returns:
        The loss, ``()``, or ``(batch,)`` for ``"none"``, in the dtype of ``x0`` (at least float32).

    Raises:
        TypeError: if ``x0`` is not floating point, ``score`` is no Score over a Gaussian SDE,
            ``weighting`` cannot be called, or ``time_sampler`` is no TimeSampler.
        ValueError: if ``x0`` is empty or not finite, or ``reduction`` unknown.

    Example:
        >>> from scoresde import MLP, ScoreModel, VPSDE
        >>> model = ScoreModel(MLP((2,), width=16, depth=1), VPSDE())  # untrained: ε̂ = 0
        >>> x0 = torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0))
        >>> loss = dsm_loss(model, x0, generator=torch.Generator().manual_seed(1))
        >>> round(loss.item(), 1)  # E[ε²]
        1.0

    References:
        Vincent, *A connection between score matching and denoising autoencoders*, 2011; Song et al.
        2021, arXiv:2011.13456, eq. 7.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(
            f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}; 'mean' is over the "
            "batch and the elements of the event"
        )
    check_objective(score, weighting, time_sampler)
    losses = sample_losses(score, check_state("x0", x0), weighting, time_sampler, generator)
    if reduction == "none":
        return losses
    return losses.mean() / (math.prod(x0.shape[1:]) if reduction == "mean" else 1)


def sample_losses(
    score: Score,
    x0: Tensor,
    weighting: WeightFunction,
    time_sampler: TimeSampler,
    generator: torch.Generator | None,
) -> Tensor:
    """Return the loss of each sample, summed over its event, ``(batch,)``; checks nothing."""
    x0 = x0.to(torch.promote_types(x0.dtype, torch.float32))
    t, weight = time_sampler.draw(score.sde, x0.shape[0], generator, x0.device)
    errors = noise_errors(score, x0, t, normal_like(x0, generator))
    return expand(weight, errors) * expand(weighting(score.sde, t), errors) * errors


def noise_errors(score: Score, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Return ‖ε̂(x_t, t) − ε‖² of each sample ``(batch,)`` for given times and noise."""
    x = score.sde.perturb(x0, t, noise)
    return flatten(score.noise(x, t) - noise).square().sum(1)


def check_objective(score: object, weighting: object, time_sampler: object) -> None:
    """Raise a ``TypeError`` unless the three define a denoising score matching loss."""
    sde = require_score(score).sde
    hint = "denoising score matching needs α and σ"
    check_instance("score.sde", sde, GaussianSDE, "VPSDE()", hint)
    if isinstance(weighting, type) or not callable(weighting):
        raise TypeError(
            f"weighting: expected a weighting such as Simple(), got {summarize(weighting)}; pass "
            "an instance, with parentheses, or a function (sde, t) -> weight"
        )
    check_instance("time_sampler", time_sampler, TimeSampler, "Uniform()")
