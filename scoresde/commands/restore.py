"""``scoresde restore``: a model file and what was seen → what it may have been."""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scoresde._core.checks import check_integer, check_nonnegative
from scoresde._core.random import normal_like
from scoresde.commands.base import (
    Command,
    add_device,
    add_seed,
    event_shape_of,
    read_model,
    replacing,
    writable,
)
from scoresde.commands.data import add_data, bins_of, evaluation_set, open_data
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
"""A picture shows so many rows at most."""


# --- what was done to the data


def _need(option: str, value: object, task: str) -> None:
    if value is None:
        raise ValueError(f"{option}: expected for --task {task}, got nothing; see --help")


def mask_of(options: Namespace, event_shape: tuple[int, ...]) -> Tensor:
    """Return which entries are known ``(*event)``: those of a file, or all but a box."""
    if (options.mask is None) == (options.box is None):
        raise ValueError(
            "--mask, --box: expected one of them for --task inpaint; try --box 2 2 4 4, the top, "
            "left, height and width of what is missing"
        )
    if options.mask is not None:
        raw = open_data(options.mask).read()
        known = (raw if raw.dtype == torch.bool else raw > 0.5).squeeze()
        try:
            return known.expand(event_shape)
        except RuntimeError:
            raise ValueError(
                f"--mask: expected a mask that expands to samples of shape {event_shape}, got "
                f"{tuple(raw.shape)} in {options.mask}"
            ) from None
    if len(event_shape) < 2:
        raise ValueError(
            f"--box: expected images to cut a box out of, got samples of shape {event_shape}; use "
            "--mask"
        )
    top, left, height, width = options.box
    rows, columns = event_shape[-2:]
    inside = 0 <= top < top + height <= rows and 0 <= left < left + width <= columns
    if not inside:
        raise ValueError(
            f"--box: expected TOP LEFT HEIGHT WIDTH inside {rows} x {columns} pixels, got "
            f"{top} {left} {height} {width}"
        )
    known = torch.ones(event_shape, dtype=torch.bool)
    known[..., top : top + height, left : left + width] = False
    return known


def _inpaint(options: Namespace, event_shape: tuple[int, ...]) -> LinearOperator:
    return Mask(mask_of(options, event_shape))


def _super_resolve(options: Namespace, event_shape: tuple[int, ...]) -> LinearOperator:
    _need("--factor", options.factor, "super-resolve")
    return AveragePool(options.factor)


def _colorize(options: Namespace, event_shape: tuple[int, ...]) -> LinearOperator:
    return Grayscale()


def _deblur(options: Namespace, event_shape: tuple[int, ...]) -> LinearOperator:
    _need("--blur", options.blur, "deblur")
    return Blur.gaussian(options.blur)


TASKS: dict[str, Callable[[Namespace, tuple[int, ...]], LinearOperator]] = {
    "inpaint": _inpaint,
    "super-resolve": _super_resolve,
    "colorize": _colorize,
    "deblur": _deblur,
}
"""The operator of each; ``denoise`` needs none."""


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model file written by scoresde train")
    add_data(parser)
    parser.add_argument(
        "--rows",
        type=int,
        metavar="N",
        help="restore the first N rows of DATA (default: all)",
    )
    group = parser.add_argument_group("what was seen")
    group.add_argument(
        "--task",
        choices=(*TASKS, "denoise"),
        default="denoise",
        help="inpaint: some entries are missing; super-resolve: DATA are averages of blocks of "
        "pixels; colorize: the mean of the channels; deblur: blurred; denoise: noisy "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--sigma",
        type=float,
        metavar="X",
        help="standard deviation of the noise on what was seen, in the model's coordinates "
        "(default: 0; denoise: estimated)",
    )
    group.add_argument(
        "--mask",
        metavar="FILE",
        help="inpaint: an .npy or .npz file, nonzero where an entry is known (default: none)",
    )
    group.add_argument(
        "--box",
        type=int,
        nargs=4,
        metavar=("TOP", "LEFT", "HEIGHT", "WIDTH"),
        help="inpaint: pixels that are missing (default: none)",
    )
    group.add_argument(
        "--factor",
        type=int,
        metavar="N",
        help="super-resolve: how many times larger images become (default: none)",
    )
    group.add_argument(
        "--blur",
        type=float,
        metavar="X",
        help="deblur: standard deviation of the Gaussian kernel, in pixels (default: none)",
    )
    group.add_argument(
        "--degrade",
        action="store_true",
        help="DATA are clean: do all that to them first, and tell how near the restored come "
        "(default: DATA are what was seen)",
    )
    group = parser.add_argument_group("restoration")
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
        help="how the posterior is sampled, by its name in the literature; particles are the most "
        "faithful; dps wants 1000 steps; denoise needs no method (default: %(default)s)",
    )
    group.add_argument(
        "--steps",
        type=int,
        default=100,
        metavar="N",
        help="steps from noise to data (default: %(default)s)",
    )
    group.add_argument(
        "--particles",
        type=int,
        default=256,
        metavar="N",
        help="particles for each row, of --method particles (default: %(default)s)",
    )
    group.add_argument(
        "--batch-size",
        type=int,
        default=256,
        metavar="N",
        help="samples the network sees at once; it changes memory, not the samples "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--shape",
        type=int,
        nargs="+",
        metavar="N",
        help="shape of one restored sample (default: what the model file tells)",
    )
    add_seed(parser, "all that is drawn")
    add_device(parser)
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="write the arrays 'samples' (rows, n, …), 'mean' and 'seen' to this .npz file "
        "(default: do not)",
    )
    parser.add_argument(
        "--grid",
        metavar="FILE",
        help=f"draw what was seen, samples and mean of the first {_SHOWN} rows to this .png or "
        ".pdf file (default: do not)",
    )


def run(options: Namespace) -> None:
    if options.out is None and options.grid is None:
        raise ValueError(
            "--out, --grid: expected at least one of them; try --grid restored.png for a picture"
        )
    hint = "--grid draws a picture"
    out = None if options.out is None else writable("--out", options.out, ".npz", hint=hint)
    grid = None if options.grid is None else writable("--grid", options.grid, ".png", ".pdf")
    count = check_integer("-n", options.number, 1)
    rows = open_data(options.data, options.key)
    limit = None if options.rows is None else check_integer("--rows", options.rows, 1)
    model = read_model(options.model, options.device)
    data = evaluation_set(rows.read(0, limit), bins_of(rows, options)).float().to(options.device)
    event_shape = event_shape_of(model) if options.shape is None else tuple(options.shape)
    generator = torch.Generator().manual_seed(options.seed)
    restored = _denoised if options.task == "denoise" else _restored
    seen, shown, samples, mean = (
        part.cpu() for part in restored(options, model, data, event_shape, count, generator)
    )
    if out is not None:
        arrays = {"samples": samples, "mean": mean, "seen": seen}
        with replacing(out) as scratch:
            np.savez_compressed(scratch, **{k: v.numpy() for k, v in arrays.items()})  # type: ignore[arg-type]
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
"""What was seen, the same as images, samples ``(rows, n, *event)``, their mean."""


def _restored(
    options: Namespace,
    model: ScoreModel,
    data: Tensor,
    event_shape: tuple[int, ...],
    count: int,
    generator: torch.Generator,
) -> Restored:
    """Restore by the method asked for."""
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
    seen = observation.y
    shown = seen if seen.shape[1:] == event_shape else operator.pseudo_inverse(seen)
    if options.task == "inpaint":
        shown = shown.masked_fill(operator.adjoint(torch.ones_like(seen)) == 0, torch.nan)
    return seen, shown, samples, samples.mean(1)


def _denoised(
    options: Namespace,
    model: ScoreModel,
    data: Tensor,
    event_shape: tuple[int, ...],
    count: int,
    generator: torch.Generator,
) -> Restored:
    """Denoise; the mean is exact."""
    y = data
    if options.degrade:
        _need("--sigma", options.sigma, "denoise with --degrade")
        y = y + check_nonnegative("--sigma", options.sigma) * normal_like(y, generator)
    size = options.batch_size
    mean = denoise(model, y, options.sigma, generator=generator, batch_size=size)
    samples = denoise(
        model, y, options.sigma,
        n=count, steps=options.steps, generator=generator, batch_size=size, progress=True,
    )  # fmt: skip
    return y, y, samples, mean


def draw(path: Path, shown: Tensor, samples: Tensor, mean: Tensor, limits: Sequence[float]) -> None:
    """Draw a line for each row: what was seen, samples, and their mean."""
    lines = torch.cat([shown.unsqueeze(1), samples, mean.unsqueeze(1)], dim=1)[:_SHOWN]
    columns = lines.shape[1]
    with style(), replacing(path) as scratch:
        canvas = figure(0.6 * max(columns, 4), 0.6 * max(len(lines), 3) + 0.3)
        sample_grid(
            lines.flatten(0, 1),
            columns=columns,
            limits=(limits[0], limits[1]),
            title="seen, samples, mean",
            ax=canvas.add_subplot(),
        )
        canvas.savefig(scratch)


COMMAND = Command(
    name="restore",
    summary="denoise, inpaint, super-resolve, colorize, deblur",
    description="Draw from the posterior of what was seen: samples of what it may have been, under "
    "a model that scoresde train has written.",
    example="""\
  scoresde restore m.safetensors digits-test --task super-resolve --factor 2 --degrade --grid x.png
  scoresde restore m.safetensors photos/ --task inpaint --box 8 8 16 16 --grid filled.png
  scoresde restore m.safetensors noisy.npy --sigma 0.3 --out clean.npz""",
    add_options=add_options,
    run=run,
)
