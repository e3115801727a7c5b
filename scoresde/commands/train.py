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
    add_option,
    add_seed,
    atomic_write,
    device_of,
    writable,
)
from scoresde.commands.data import (
    add_data,
    evaluation_set,
    open_data,
    quantization_of,
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
"""Factor of the networks' label, the log-SNR: smooth enough for solvers to take few steps."""


@dataclass(frozen=True)
class Objective:
    """A training objective.

    Attributes:
        weighting: weighting of the denoising errors.
        time_sampler: distribution of the training times.
    """

    weighting: Weighting
    time_sampler: TimeSampler


def objective(name: str, std: float) -> Objective:
    """Return the objective of a name, for data with standard deviation ``std``."""
    return {
        "likelihood": Objective(LikelihoodWeighting(), Stratified(ImportanceSampled())),
        "simple": Objective(Simple(), Stratified()),
        "edm": Objective(EDMWeighting(std), Stratified(LogNormal())),
    }[name]


def new_model(sde: GaussianSDE, network: nn.Module, std: float) -> ScoreModel:
    """Return an untrained model with EDM's preconditioning for any Gaussian diffusion.

    The inputs of the network are x/√(α² σ_d² + σ²), of unit variance, and the log-SNR; its target
    has unit variance for every SDE.

    Args:
        sde: the diffusion.
        network: any network for events of this shape.
        std: σ_d, the standard deviation of the data.
    """
    return ScoreModel(network, sde, prediction=edm(std), label=by_half_logsnr)


def network_for(event_shape: tuple[int, ...], options: Namespace) -> nn.Module:
    """Return the network of the options; by default a U-Net for images and an MLP otherwise."""
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
    """Return the number of parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def add_options(parser: ArgumentParser) -> None:
    add_data(parser)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--sde", choices=sorted(SDES), default="vp", help="the SDE (default: %(default)s)"
    )
    group.add_argument(
        "--network",
        choices=("mlp", "unet"),
        help="the network (default: unet for images, else mlp)",
    )
    add_option(
        group, "--width", int, "N",
        "hidden features of the mlp, or channels of the unet's first level",
        default_text="256, 64",
    )  # fmt: skip
    add_option(
        group, "--depth", int, "N", "residual blocks of the mlp, or per level of the unet",
        default_text="3, 2",
    )  # fmt: skip
    add_option(group, "--dropout", float, "P", "dropout probability", default=0.0)
    group = parser.add_argument_group("training")
    group.add_argument(
        "--weighting",
        choices=("likelihood", "simple", "edm"),
        default="likelihood",
        help="likelihood: maximum likelihood, times uniform in log-SNR; simple: unweighted error "
        "of the noise, times uniform in t; edm: EDM's weighting and log-normal noise levels "
        "(default: %(default)s)",
    )
    add_option(group, "--steps", int, "N", "total number of optimization steps", default=10_000)
    add_option(group, "--batch-size", int, "N", "samples per step", default=128)
    add_option(
        group, "--lr", float, "X", "initial learning rate of AdamW, annealed to 0 along a cosine",
        default=1e-3,
    )  # fmt: skip
    add_option(group, "--weight-decay", float, "X", "weight decay of AdamW", default=0.0)
    add_option(
        group, "--ema", float, "X", "decay per step of the moving average of the weights",
        default=0.999,
    )  # fmt: skip
    add_option(
        group, "--held-out", float, "X",
        "fraction of the rows, chosen at random, on which the loss is only evaluated",
        default=0.1,
    )  # fmt: skip
    add_seed(parser, "the held-out rows, the initial weights and all random numbers of training")
    add_device(parser)
    group = parser.add_argument_group("files")
    add_option(
        group, "--out", str, "FILE", "the model file to write, .safetensors",
        default="model.safetensors",
    )  # fmt: skip
    add_option(
        group, "--checkpoint", str, "FILE",
        "checkpoint of the run; training resumes from it if it exists",
        default_text="none",
    )  # fmt: skip


def run(options: Namespace) -> None:
    out = writable("--out", options.out, ".safetensors")
    if not 0 <= options.held_out < 1:
        raise ValueError(
            f"--held-out: expected a fraction in [0, 1), got {options.held_out:g}; 0.1 holds out "
            "10 % of the rows"
        )
    source = open_data(options.data, options.key)
    quantization = quantization_of(source, options)
    training, held_out = split(source.read(), options.held_out, options.seed)
    data = training_set(training, quantization)
    std = float(check_state("data", data.tensors[0]).std())
    torch.manual_seed(options.seed)  # the initial weights
    network = network_for(source.shape[1:], options)
    model = new_model(SDES[options.sde](), network, std).to(device_of(options.device))
    print(
        f"{source.name}: {len(training)} samples of shape {source.shape[1:]} for training, "
        f"{len(held_out)} held out, {quantization or 'float data'}"
    )
    print(f"{type(network).__name__}, {count_parameters(network):,} parameters; {model.sde}")
    loss = objective(options.weighting, std)
    result = fit(
        model,
        data,
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        weight_decay=options.weight_decay,
        cosine=True,
        ema=options.ema,
        weighting=loss.weighting,
        time_sampler=loss.time_sampler,
        held_out=evaluation_set(held_out, quantization) if len(held_out) else None,
        checkpoint=options.checkpoint,
        seed=options.seed,
        progress=True,
    )
    with atomic_write(out) as temporary:
        result.score.save(temporary)
    print(f"{result.steps} steps in {result.seconds:.1f} s")
    for name, losses in (("training", result.history.train), ("held-out", result.history.held_out)):
        if losses:
            print(f"{name} loss {losses[-1][1]:.4f} ({options.weighting} weighting)")
    print(f"model: {out}")


COMMAND = Command(
    name="train",
    summary="train a model on data",
    description="Train a score model on data by denoising score matching and write it to a "
    "safetensors file. Integer data are dequantized with new noise in every batch.",
    example="""\
  scoresde train digits-train --steps 5000 --out digits.safetensors
  scoresde train photos/ --sde ve --steps 200000 --checkpoint run.pt --device cuda
  scoresde train points.npz --key x --network mlp --weighting simple""",
    add_options=add_options,
    run=run,
)
