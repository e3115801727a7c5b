"""``scoresde sample``: a model file → samples."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scoresde._core.checks import check_integer
from scoresde.commands.base import (
    Command,
    add_batch_size,
    add_device,
    add_model,
    add_option,
    add_outputs,
    add_seed,
    add_shape,
    atomic_write,
    event_shape_of,
    output_paths,
    read_model,
)
from scoresde.commands.data import Quantization, add_levels
from scoresde.plots import figure, sample_grid, style
from scoresde.samplers import (
    AdamsBashforth,
    AdaptiveSDE,
    Ancestral,
    EulerMaruyama,
    ProbabilityFlow,
    ReverseDiffusion,
    RungeKutta,
    Sampler,
    annealed_langevin,
    ddim,
    ddpm,
    deis,
    dpm_solver,
    edm_heun,
    pc,
    sa_solver,
    sample,
    unipc,
)

__all__ = ["COMMAND"]

SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "adams-bashforth": AdamsBashforth,
    "adaptive-sde": AdaptiveSDE,
    "ancestral": Ancestral,
    "annealed-langevin": annealed_langevin,
    "ddim": ddim,
    "ddpm": ddpm,
    "deis": deis,
    "dpm-solver": dpm_solver,
    "edm-heun": edm_heun,
    "euler-maruyama": EulerMaruyama,
    "flow": ProbabilityFlow,
    "pc": pc,
    "reverse-diffusion": ReverseDiffusion,
    "runge-kutta": RungeKutta,
    "sa-solver": sa_solver,
    "unipc": unipc,
}

_LARGEST_GRID = 400
"""Maximum number of samples in a picture."""

_INCHES_PER_COLUMN, _MOST_COLUMNS = 0.5, 20


def add_options(parser: ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "-n",
        "--number",
        type=int,
        default=64,
        metavar="N",
        help="number of samples (default: %(default)s)",
    )
    parser.add_argument(
        "--sampler",
        choices=sorted(SAMPLERS),
        default="adams-bashforth",
        help="the sampler, by its name in the literature; flow solves the probability flow ODE "
        "with adaptive steps, adams-bashforth and runge-kutta with few fixed steps (default: "
        "%(default)s)",
    )
    add_option(
        parser, "--steps", int, "N", "steps from noise to data",
        default_text="depends on the sampler",
    )  # fmt: skip
    add_batch_size(parser)
    add_shape(parser)
    add_levels(parser, "samples are rounded to integer levels 0 … N-1")
    add_seed(parser, "the samples")
    add_device(parser)
    add_outputs(
        parser,
        arrays=".npy or .npz file for the samples, the array 'samples'",
        picture=f".png or .pdf file for a picture of the first {_LARGEST_GRID} samples",
    )


def run(options: Namespace) -> None:
    out, grid = output_paths(options, ".npz", ".npy")
    count = check_integer("-n", options.number, 1)
    quantization = None if options.levels is None else Quantization(options.levels, *options.range)
    model = read_model(options.model, options.device)
    event_shape = event_shape_of(model, options)
    sampler = SAMPLERS[options.sampler]()
    samples = sample(
        model,
        (count, *event_shape),
        sampler,
        steps=options.steps,
        generator=torch.Generator().manual_seed(options.seed),
        progress=True,
        batch_size=options.batch_size,
    ).cpu()
    if out is not None:
        write_samples(out, samples if quantization is None else quantization.quantize(samples))
    if grid is not None:
        draw_samples(grid, samples[:_LARGEST_GRID], options.range)
    written = ", ".join(str(file) for file in (out, grid) if file is not None)
    print(f"{count} samples of shape {event_shape} by {sampler}: {written}")


def write_samples(path: Path, samples: Tensor) -> None:
    """Write samples as one array."""
    with atomic_write(path) as temporary:
        if path.suffix == ".npy":
            np.save(temporary, samples.numpy())
        else:
            np.savez_compressed(temporary, samples=samples.numpy())


def draw_samples(path: Path, samples: Tensor, limits: Sequence[float]) -> None:
    """Draw samples as one picture."""
    columns = min(_MOST_COLUMNS, int(np.ceil(np.sqrt(len(samples)))))
    rows = -(-len(samples) // columns)
    with style(), atomic_write(path) as temporary:
        canvas = figure(*(_INCHES_PER_COLUMN * max(n, 4) for n in (columns, rows)))
        sample_grid(
            samples, columns=columns, limits=(limits[0], limits[1]), ax=canvas.add_subplot()
        )
        canvas.savefig(temporary)


COMMAND = Command(
    name="sample",
    summary="draw samples from a model",
    description="Draw samples from a model file written by scoresde train, as arrays and as a "
    "picture. The samples depend on the seed, not on the batch size.",
    example="""\
  scoresde sample model.safetensors -n 100 --sampler pc --steps 500 --grid samples.png
  scoresde sample model.safetensors -n 1000 --sampler flow --levels 17 --out samples.npz""",
    add_options=add_options,
    run=run,
)
