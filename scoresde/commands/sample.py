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
    add_device,
    add_seed,
    event_shape_of,
    read_model,
    replacing,
    writable,
)
from scoresde.commands.data import Bins, add_levels
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
"""A picture shows so many samples at most."""

_INCHES_PER_COLUMN, _MOST_COLUMNS = 0.5, 20


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model file written by scoresde train")
    parser.add_argument(
        "-n",
        "--number",
        type=int,
        default=64,
        metavar="N",
        help="how many samples to draw (default: %(default)s)",
    )
    parser.add_argument(
        "--sampler",
        choices=sorted(SAMPLERS),
        default="adams-bashforth",
        help="the sampler, by its name in the literature; flow is the probability flow with "
        "adaptive steps, adams-bashforth and runge-kutta follow it in few (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="steps from noise to data (default: the sampler's own)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=256,
        metavar="N",
        help="samples the network sees at once; it changes memory, not the samples "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--shape",
        type=int,
        nargs="+",
        metavar="N",
        help="shape of one sample (default: what the model file tells)",
    )
    add_levels(parser, "samples are rounded to integer levels 0 … N-1")
    add_seed(parser, "all that is drawn")
    add_device(parser)
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="write the samples to this .npy or .npz file, the array 'samples' (default: do not)",
    )
    parser.add_argument(
        "--grid",
        metavar="FILE",
        help=f"draw the first {_LARGEST_GRID} samples to this .png or .pdf file (default: do not)",
    )


def run(options: Namespace) -> None:
    if options.out is None and options.grid is None:
        raise ValueError(
            "--out, --grid: expected at least one of them; try --grid samples.png for a picture"
        )
    hint = "--grid draws a picture"
    out = None if options.out is None else writable("--out", options.out, ".npz", ".npy", hint=hint)
    grid = None if options.grid is None else writable("--grid", options.grid, ".png", ".pdf")
    count = check_integer("-n", options.number, 1)
    bins = None if options.levels is None else Bins(options.levels, *options.range)
    model = read_model(options.model, options.device)
    event_shape = event_shape_of(model) if options.shape is None else tuple(options.shape)
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
        write_samples(out, samples if bins is None else bins.quantize(samples))
    if grid is not None:
        draw_samples(grid, samples[:_LARGEST_GRID], options.range)
    written = ", ".join(str(file) for file in (out, grid) if file is not None)
    print(f"{count} samples of shape {event_shape} by {sampler}: {written}")


def write_samples(path: Path, samples: Tensor) -> None:
    """Write samples as one array."""
    with replacing(path) as scratch:
        if path.suffix == ".npy":
            np.save(scratch, samples.numpy())
        else:
            np.savez_compressed(scratch, samples=samples.numpy())


def draw_samples(path: Path, samples: Tensor, limits: Sequence[float]) -> None:
    """Draw samples as one picture."""
    columns = min(_MOST_COLUMNS, int(np.ceil(np.sqrt(len(samples)))))
    rows = -(-len(samples) // columns)
    with style(), replacing(path) as scratch:
        canvas = figure(*(_INCHES_PER_COLUMN * max(n, 4) for n in (columns, rows)))
        sample_grid(
            samples, columns=columns, limits=(limits[0], limits[1]), ax=canvas.add_subplot()
        )
        canvas.savefig(scratch)


COMMAND = Command(
    name="sample",
    summary="draw samples from a model",
    description="Draw samples from a model that scoresde train has written.",
    example="""\
  scoresde sample model.safetensors -n 100 --sampler pc --steps 500 --grid samples.png
  scoresde sample model.safetensors -n 1000 --sampler flow --levels 17 --out samples.npz""",
    add_options=add_options,
    run=run,
)
