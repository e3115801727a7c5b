"""``scoresde restore``: a model file and observations → samples of the posterior."""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace, _ActionsContainer
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde._core.checks import check_integer, check_nonnegative
from scoresde._core.random import normal_like
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
from scoresde.commands.data import add_data, evaluation_set, open_data, quantization_of
from scoresde.inverse_problems import (
    DPS,
    MMPS,
    ConstrainedSampling,
    DiffPIR,
    Imputation,
    Observation,
    ParticleSampling,
    PiGDM,
    PosteriorSampler,
    PosteriorScoreSampling,
    RePaint,
    ddnm,
    denoise,
    restore,
)
from scoresde.operators import AveragePool, Blur, Grayscale, LinearOperator, Mask
from scoresde.plots import figure, sample_grid, style
from scoresde.samplers import Ancestral
from scoresde.scores import ScoreModel

__all__ = ["COMMAND"]

METHODS: dict[str, Callable[[Namespace], PosteriorSampler]] = {
    "mmps": lambda options: PosteriorScoreSampling(MMPS, steps=options.steps),
    "pigdm": lambda options: PosteriorScoreSampling(PiGDM, steps=options.steps),
    "dps": lambda options: PosteriorScoreSampling(DPS, Ancestral(), options.steps),
    "diffpir": lambda options: PosteriorScoreSampling(DiffPIR, steps=options.steps),
    "ddnm": lambda options: PosteriorScoreSampling(ddnm, steps=options.steps),
    "imputation": lambda options: ConstrainedSampling(
        partial(Imputation, Ancestral()), options.steps
    ),
    "repaint": lambda options: ConstrainedSampling(partial(RePaint, Ancestral()), options.steps),
    "particles": lambda options: ParticleSampling(MMPS, options.particles, options.steps),
}

_SHOWN = 20
"""Maximum number of rows in a picture."""


# --- operators


def _required(options: Namespace, name: str) -> Any:
    """Return an option that the task requires."""
    value = getattr(options, name)
    if value is None:
        raise ValueError(
            f"--{name}: expected a value, which --task {options.task} requires, got none; see "
            "scoresde restore --help"
        )
    return value


def mask_of(options: Namespace, event_shape: tuple[int, ...]) -> Tensor:
    """Return the mask of known entries ``(*event)``: that of a file, or all outside a box."""
    if (options.mask is None) == (options.box is None):
        raise ValueError(
            "--mask, --box: expected exactly one of them for --task inpaint, got "
            f"{'neither' if options.mask is None else 'both'}; try --box 2 2 4 4, the top, left, "
            "height and width of the missing pixels"
        )
    if options.mask is not None:
        raw = open_data(options.mask).read()
        known = (raw if raw.dtype == torch.bool else raw > 0.5).squeeze()
        try:
            return known.expand(event_shape)
        except RuntimeError:
            raise ValueError(
                f"--mask: expected a mask that expands to samples of shape {event_shape}, got "
                f"{tuple(raw.shape)} in {options.mask}; reshape the mask"
            ) from None
    if len(event_shape) < 2:
        raise ValueError(f"--box: expected images, got samples of shape {event_shape}; use --mask")
    top, left, height, width = options.box
    rows, columns = event_shape[-2:]
    inside = 0 <= top < top + height <= rows and 0 <= left < left + width <= columns
    if not inside:
        raise ValueError(
            f"--box: expected TOP LEFT HEIGHT WIDTH inside {rows} x {columns} pixels, got "
            f"{top} {left} {height} {width}; choose a smaller box"
        )
    known = torch.ones(event_shape, dtype=torch.bool)
    known[..., top : top + height, left : left + width] = False
    return known


TASKS: dict[str, Callable[[Namespace, tuple[int, ...]], LinearOperator]] = {
    "inpaint": lambda options, event_shape: Mask(mask_of(options, event_shape)),
    "super-resolve": lambda options, event_shape: AveragePool(_required(options, "factor")),
    "colorize": lambda options, event_shape: Grayscale(),
    "deblur": lambda options, event_shape: Blur.gaussian(_required(options, "blur")),
}
"""The operator of each task except ``denoise``."""


def add_options(parser: ArgumentParser) -> None:
    add_model(parser)
    add_data(parser)
    add_option(parser, "--rows", int, "N", "restore the first N rows of DATA", default_text="all")
    _add_observation(parser.add_argument_group("observation"))
    _add_restoration(parser.add_argument_group("restoration"))
    add_seed(parser, "all random numbers")
    add_device(parser)
    add_outputs(
        parser,
        arrays=".npz file for the arrays 'samples' (rows, n, ...), 'mean' and 'seen', the "
        "observations",
        picture=".png or .pdf file for a picture of observations, samples and means of the first "
        f"{_SHOWN} rows",
    )


def _add_observation(group: _ActionsContainer) -> None:
    group.add_argument(
        "--task",
        choices=(*TASKS, "denoise"),
        default="denoise",
        help="inpaint: some entries are missing; super-resolve: DATA are averages of blocks of "
        "pixels; colorize: DATA are means of the channels; deblur: DATA are blurred; denoise: DATA "
        "are noisy (default: %(default)s)",
    )
    add_option(
        group, "--sigma", float, "X",
        "standard deviation of the noise of the observation, in the model's coordinates",
        default_text="0; for denoise it is estimated",
    )  # fmt: skip
    add_option(
        group, "--mask", str, "FILE",
        "inpaint: .npy or .npz file, nonzero where an entry is known",
        default_text="none",
    )  # fmt: skip
    group.add_argument(
        "--box",
        type=int,
        nargs=4,
        metavar=("TOP", "LEFT", "HEIGHT", "WIDTH"),
        help="inpaint: the missing pixels (default: none)",
    )
    add_option(
        group, "--factor", int, "N",
        "super-resolve: factor by which height and width grow",
        default_text="none",
    )  # fmt: skip
    add_option(
        group, "--blur", float, "X",
        "deblur: standard deviation of the Gaussian kernel, in pixels",
        default_text="none",
    )  # fmt: skip
    group.add_argument(
        "--degrade",
        action="store_true",
        help="DATA are clean: make observations of them, restore these and print the PSNR "
        "(default: DATA are observations)",
    )


def _add_restoration(group: _ActionsContainer) -> None:
    group.add_argument(
        "-n",
        "--number",
        type=int,
        default=4,
        metavar="N",
        help="samples of the posterior for each row (default: %(default)s)",
    )
    group.add_argument(
        "--method",
        choices=sorted(METHODS),
        default="mmps",
        help="sampler of the posterior, by its name in the literature; particles is the most "
        "accurate; dps needs about 1000 steps; not used by denoise (default: %(default)s)",
    )
    add_option(group, "--steps", int, "N", "steps from noise to data", default=100)
    add_option(
        group, "--particles", int, "N", "particles for each row, for --method particles",
        default=256,
    )  # fmt: skip
    add_batch_size(group)
    add_shape(group)


def run(options: Namespace) -> None:
    out, grid = output_paths(options, ".npz")
    count = check_integer("-n", options.number, 1)
    source = open_data(options.data, options.key)
    limit = None if options.rows is None else check_integer("--rows", options.rows, 1)
    model = read_model(options.model, options.device)
    raw, quantization = source.read(0, limit), quantization_of(source, options)
    data = evaluation_set(raw, quantization).float().to(options.device)
    event_shape = event_shape_of(model, options)
    generator = torch.Generator().manual_seed(options.seed)
    if options.task == "denoise":
        results = _denoise(options, model, data, count, generator)
    else:
        results = _restore(options, model, data, event_shape, count, generator)
    observed, shown, samples, mean = (result.cpu() for result in results)
    if out is not None:
        arrays = {"samples": samples, "mean": mean, "seen": observed}
        with atomic_write(out) as temporary:
            np.savez_compressed(temporary, **{k: v.numpy() for k, v in arrays.items()})  # type: ignore[arg-type]
    if grid is not None:
        draw(grid, shown, samples, mean, options.range)
    written = ", ".join(str(file) for file in (out, grid) if file is not None)
    print(f"{len(data)} rows, {count} samples of shape {event_shape} for each: {written}")
    if options.degrade:
        peak = options.range[1] - options.range[0]
        for name, found in (("a sample", samples[:, 0]), ("the mean", mean)):
            error = float((found - data.cpu()).square().mean())
            print(f"PSNR of {name}: {10 * math.log10(peak**2 / error):.2f} dB")


Restored = tuple[Tensor, Tensor, Tensor, Tensor]
"""Observations, the same as images, samples ``(rows, n, *event)``, their mean."""


def _restore(
    options: Namespace,
    model: ScoreModel,
    data: Tensor,
    event_shape: tuple[int, ...],
    count: int,
    generator: torch.Generator,
) -> Restored:
    operator = TASKS[options.task](options, event_shape).to(data.device)
    sigma = check_nonnegative("--sigma", 0.0 if options.sigma is None else options.sigma)
    if options.degrade:
        observation = Observation.draw(operator, data, sigma, generator)
    else:
        y = operator(data) if options.task == "inpaint" else data
        observation = Observation(operator, y, sigma)
    samples = restore(
        model, observation, event_shape,
        n=count, method=METHODS[options.method](options),
        generator=generator, batch_size=options.batch_size, progress=True,
    )  # fmt: skip
    y = observation.y
    shown = y if y.shape[1:] == event_shape else operator.pseudo_inverse(y)
    if options.task == "inpaint":
        shown = shown.masked_fill(operator.adjoint(torch.ones_like(y)) == 0, torch.nan)
    return y, shown, samples, samples.mean(1)


def _denoise(
    options: Namespace,
    model: ScoreModel,
    data: Tensor,
    count: int,
    generator: torch.Generator,
) -> Restored:
    y = data
    if options.degrade:
        sigma = check_nonnegative("--sigma", _required(options, "sigma"))
        y = y + sigma * normal_like(y, generator)
    size = options.batch_size
    mean = denoise(model, y, options.sigma, generator=generator, batch_size=size)
    samples = denoise(
        model, y, options.sigma,
        n=count, steps=options.steps, generator=generator, batch_size=size, progress=True,
    )  # fmt: skip
    return y, y, samples, mean


def draw(path: Path, shown: Tensor, samples: Tensor, mean: Tensor, limits: Sequence[float]) -> None:
    """Draw a picture with a line for each row: observation, samples, and their mean."""
    lines = torch.cat([shown.unsqueeze(1), samples, mean.unsqueeze(1)], dim=1)[:_SHOWN]
    columns = lines.shape[1]
    with style(), atomic_write(path) as temporary:
        canvas = figure(0.6 * max(columns, 4), 0.6 * max(len(lines), 3) + 0.3)
        sample_grid(
            lines.flatten(0, 1),
            columns=columns,
            limits=(limits[0], limits[1]),
            title="observation, samples, mean",
            ax=canvas.add_subplot(),
        )
        canvas.savefig(temporary)


COMMAND = Command(
    name="restore",
    summary="denoise, inpaint, super-resolve, colorize, deblur",
    description="Draw samples of the posterior of clean data given observations that are noisy, "
    "incomplete, of low resolution, gray or blurred. The prior is a model file written by scoresde "
    "train.",
    example="""\
  scoresde restore m.safetensors digits-test --task super-resolve --factor 2 --degrade --grid x.png
  scoresde restore m.safetensors photos/ --task inpaint --box 8 8 16 16 --grid filled.png
  scoresde restore m.safetensors noisy.npy --sigma 0.3 --out clean.npz""",
    add_options=add_options,
    run=run,
)
