"""``scoresde train``: data → a model file."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from scoresde._core.checks import check_state
from scoresde.commands.base import (
    Command,
    add_device,
    add_seed,
    device_of,
    replacing,
    writable,
)
from scoresde.commands.data import (
    add_data,
    bins_of,
    evaluation_set,
    open_data,
    split,
    training_set,
)
from scoresde.networks import MLP, UNet
from scoresde.scores import ScoreModel
from scoresde.scores.labels import by_half_logsnr
from scoresde.scores.predictions import edm
from scoresde.sdes import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineSDE,
    GaussianSDE,
    RectifiedFlow,
    SubVPSDE,
)
from scoresde.training import fit
from scoresde.training.losses import (
    EDMWeighting,
    ImportanceSampled,
    LikelihoodWeighting,
    LogNormal,
    Simple,
    Stratified,
    TimeSampler,
    Weighting,
)

__all__ = ["COMMAND", "Objective", "count_parameters", "new_model", "objective"]

SDES: dict[str, Callable[[], GaussianSDE]] = {
    "vp": VPSDE,
    "ve": VESDE,
    "subvp": SubVPSDE,
    "cosine": CosineSDE,
    "edm": EDMSDE,
    "rectified": RectifiedFlow,
}


LABEL_SCALE = 3.0
"""Factor on the log-SNR that networks see: smooth enough in it that solvers need few steps."""


@dataclass(frozen=True)
class Objective:
    """What is minimised: a weighting and the law of the times."""

    weighting: Weighting
    time_sampler: TimeSampler


def objective(name: str, std: float) -> Objective:
    """Return the objective of a name, for data of standard deviation ``std``."""
    return {
        "likelihood": Objective(LikelihoodWeighting(), Stratified(ImportanceSampled())),
        "simple": Objective(Simple(), Stratified()),
        "edm": Objective(EDMWeighting(std), Stratified(LogNormal())),
    }[name]


def new_model(sde: GaussianSDE, network: nn.Module, std: float) -> ScoreModel:
    """Return an untrained model in the preconditioning that makes all diffusions look alike.

    The network sees x/√(α² σ_d² + σ²), of unit variance, and the log-SNR, and what it has to put
    out has unit variance too, whatever the SDE.

    Args:
        sde: the diffusion.
        network: any network for events of this shape.
        spread: σ_d, the standard deviation of the data.
    """
    return ScoreModel(network, sde, prediction=edm(std), label=by_half_logsnr)


def network_for(event_shape: tuple[int, ...], options: Namespace) -> nn.Module:
    """Return the network that was asked for, or the usual one for such events."""
    is_image = len(event_shape) == 3 and event_shape[0] <= 4 and min(event_shape[1:]) >= 4
    kind = options.network or ("unet" if is_image else "mlp")
    if kind == "mlp":
        width, depth = _sizes(options, 256, 3)
        return MLP(event_shape, width, depth, dropout=options.dropout, label_scale=LABEL_SCALE)
    if len(event_shape) != 3:
        raise ValueError(
            f"--network: expected images (channels, height, width) for unet, got samples of shape "
            f"{event_shape}; use --network mlp"
        )
    width, depth = _sizes(options, 64, 2)
    return UNet(
        event_shape[0], width, blocks=depth, dropout=options.dropout, label_scale=LABEL_SCALE
    )


def _sizes(options: Namespace, width: int, depth: int) -> tuple[int, int]:
    return (
        width if options.width is None else options.width,
        depth if options.depth is None else options.depth,
    )


def count_parameters(network: nn.Module) -> int:
    """Return how many numbers the network learns."""
    return sum(parameter.numel() for parameter in network.parameters())


def add_options(parser: ArgumentParser) -> None:
    add_data(parser)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--sde",
        choices=sorted(SDES),
        default="vp",
        help="the diffusion (default: %(default)s)",
    )
    group.add_argument(
        "--network",
        choices=("mlp", "unet"),
        help="the network (default: unet for images, mlp for all else)",
    )
    group.add_argument(
        "--width",
        type=int,
        metavar="N",
        help="features of the mlp, channels of the unet's first level (default: 256, 64)",
    )
    group.add_argument(
        "--depth",
        type=int,
        metavar="N",
        help="residual blocks of the mlp, or per level of the unet (default: 3, 2)",
    )
    group.add_argument(
        "--dropout",
        type=float,
        default=0.0,
        metavar="P",
        help="probability with which a feature is dropped in training (default: %(default)s)",
    )
    group = parser.add_argument_group("training")
    group.add_argument(
        "--weighting",
        choices=("likelihood", "simple", "edm"),
        default="likelihood",
        help="likelihood: maximum likelihood, times even in log-SNR; simple: the plain error of "
        "the noise, times even in t; edm: EDM's weights and log-normal noise levels "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--steps",
        type=int,
        default=10_000,
        metavar="N",
        help="optimisation steps in all (default: %(default)s)",
    )
    group.add_argument(
        "--batch-size",
        type=int,
        default=128,
        metavar="N",
        help="samples per step (default: %(default)s)",
    )
    group.add_argument(
        "--lr",
        type=float,
        default=1e-3,
        metavar="X",
        help="largest learning rate of AdamW; it falls to 0 along a cosine (default: %(default)s)",
    )
    group.add_argument(
        "--weight-decay",
        type=float,
        default=0.0,
        metavar="X",
        help="decoupled weight decay of AdamW (default: %(default)s)",
    )
    group.add_argument(
        "--ema",
        type=float,
        default=0.999,
        metavar="X",
        help="decay per step of the average of the weights (default: %(default)s)",
    )
    group.add_argument(
        "--held-out",
        type=float,
        default=0.1,
        metavar="X",
        help="fraction of the rows, drawn by the seed, that is evaluated and not learned "
        "(default: %(default)s)",
    )
    add_seed(parser, "the split, the initial weights, and all that training draws")
    add_device(parser)
    group = parser.add_argument_group("files")
    group.add_argument(
        "--out",
        default="model.safetensors",
        metavar="FILE",
        help="the model file to write, .safetensors (default: %(default)s)",
    )
    group.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="keep the run in this file, and go on from it if it exists (default: keep nothing)",
    )


def run(options: Namespace) -> None:
    out = writable("--out", options.out, ".safetensors")
    if not 0 <= options.held_out < 1:
        raise ValueError(
            f"--held-out: expected a fraction in [0, 1), got {options.held_out:g}; 0.1 holds out a "
            "tenth of the rows"
        )
    rows = open_data(options.data, options.key)
    bins = bins_of(rows, options)
    learned, held_out = split(rows.read(), options.held_out, options.seed)
    data = training_set(learned, bins)
    std = float(check_state("data", data.tensors[0]).std())
    torch.manual_seed(options.seed)  # the initial weights
    network = network_for(rows.shape[1:], options)
    model = new_model(SDES[options.sde](), network, std).to(device_of(options.device))
    print(
        f"{rows.name}: {len(learned)} samples of shape {rows.shape[1:]} to learn, {len(held_out)} "
        f"held out, {'float data' if bins is None else bins}"
    )
    print(f"{type(network).__name__}, {count_parameters(network):,} parameters; {model.sde}")
    aim = objective(options.weighting, std)
    result = fit(
        model,
        data,
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        weight_decay=options.weight_decay,
        cosine=True,
        ema=options.ema,
        weighting=aim.weighting,
        time_sampler=aim.time_sampler,
        held_out=evaluation_set(held_out, bins) if len(held_out) else None,
        checkpoint=options.checkpoint,
        seed=options.seed,
    )
    with replacing(out) as scratch:
        result.score.save(scratch)
    print(f"{result.steps} steps in {result.seconds:.1f} s")
    for name, losses in (("training", result.history.train), ("held-out", result.history.held_out)):
        if losses:
            print(f"{name} loss {losses[-1][1]:.4f} ({options.weighting} weighting)")
    print(f"model: {out}")


COMMAND = Command(
    name="train",
    summary="learn a model from data",
    description="Learn a score from data by denoising score matching and write it as one "
    "safetensors file. Integer data are dequantized anew at every look.",
    example="""\
  scoresde train digits-train --steps 5000 --out digits.safetensors
  scoresde train photos/ --sde ve --steps 200000 --checkpoint run.pt --device cuda
  scoresde train points.npz --key x --network mlp --weighting simple""",
    add_options=add_options,
    run=run,
)
