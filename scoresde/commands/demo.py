"""``scoresde demo``: learn handwritten digits, draw new ones, put a likelihood on unseen ones."""

from __future__ import annotations

import math
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoresde.commands.base import Command, add_seed, need, replacing
from scoresde.commands.data import Bins, digits, evaluation_set, training_set
from scoresde.commands.train import LABEL_SCALE, count_parameters, new_model, objective
from scoresde.dequantization import bits_per_dim
from scoresde.likelihood import Likelihood, log_likelihood
from scoresde.networks import UNet
from scoresde.plots import (
    figure,
    forward_path,
    likelihood_histogram,
    nearest_neighbours,
    path_strip,
    sample_grid,
    style,
)
from scoresde.samplers import ProbabilityFlow, Trajectory, pc, sample, trajectory
from scoresde.scores import ScoreModel
from scoresde.sdes import VPSDE
from scoresde.traces import ExactTrace, Hutchinson
from scoresde.training import FitResult, fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COMMAND"]

LEVELS = Bins(17)
TIMES = (0.0, 0.02, 0.06, 0.12, 0.2, 0.3, 0.45, 0.7, 1.0)
"""Where the picture looks at the forward and at the reverse process."""

PROBES = 8
"""Random probes of the trace at every evaluation: an eighth of the work of an exact one."""

_COLUMNS = (
    "log_prob",
    "standard_error",
    "solver_error",
    "prior_mismatch",
    "evaluations",
    "converged",
)

_SHOWN = (0, 3, 5)
"""Held-out digits whose way to noise is shown."""


@dataclass(frozen=True)
class Effort:
    """How much is done of everything.

    Attributes:
        width: channels of the network.
        steps: optimisation steps.
        evaluated: how many held-out digits get a likelihood.
        foreign: how many inputs of each other kind do.
        checked: how many held-out digits are evaluated a second time, with the exact trace.
        sampling_steps: steps of the predictor–corrector sampler.
    """

    width: int = 16
    steps: int = 2500
    evaluated: int = 297
    foreign: int = 60
    checked: int = 16
    sampling_steps: int = 500


FAST = Effort(width=4, steps=20, evaluated=8, foreign=2, checked=2, sampling_steps=10)


class Row(NamedTuple):
    """A line of the table; bits per dimension of every held-out digit."""

    name: str
    bits: Tensor
    seconds_learning: float
    seconds_evaluating: float
    evaluations: float = math.nan


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        default="demo_output",
        metavar="FOLDER",
        help="where the picture, the model, the samples and the likelihoods go; it is created if "
        "need be (default: %(default)s)",
    )
    parser.add_argument(
        "--fast",
        action="store_true",
        help="run through everything in seconds with a tiny network; the numbers mean nothing "
        "(default: the real thing, a few minutes)",
    )
    add_seed(parser, "the initial weights and all that is drawn")


def run(options: Namespace) -> None:
    need("matplotlib", "plots"), need("sklearn", "data")
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    effort = FAST if options.fast else Effort()
    generator = torch.Generator().manual_seed(options.seed)
    seen, unseen = digits("digits-train").read(), digits("digits-test").read()[: effort.evaluated]
    began = time.perf_counter()

    _say(f"learning from {len(seen)} handwritten digits, 8x8 pixels of 17 levels")
    result = learn(seen, effort, options.seed)
    with replacing(folder / "model.safetensors") as scratch:
        result.score.save(scratch)

    _say("drawing digits by predictor–corrector and by the probability flow")
    drawn = draw(result.score, effort, generator)
    with replacing(folder / "samples.npz") as scratch:
        np.savez_compressed(scratch, predictor_corrector=drawn.by_pc, flow=drawn.by_flow)

    _say(f"computing log-likelihoods of {len(unseen)} held-out digits and of foreign inputs")
    inputs = foreign_inputs(unseen[: effort.foreign], generator)
    seconds, likelihoods = {}, {}
    for name, levels in {"held-out digits": unseen, **inputs}.items():
        start = time.perf_counter()
        likelihoods[name] = evaluate(result.score, evaluation_set(levels, LEVELS), generator)
        seconds[name] = time.perf_counter() - start
    with replacing(folder / "likelihood.npz") as scratch:
        np.savez_compressed(scratch, **columns(likelihoods))  # type: ignore[arg-type]

    with replacing(folder / "demo.png") as scratch:
        picture(result.score, seen, unseen, drawn, likelihoods, generator).savefig(scratch)
    ours = likelihoods["held-out digits"]
    print(table([*baselines(seen, unseen), own_row(result, ours, seconds["held-out digits"])]))
    print(budget(result.score, ours, effort.checked))
    if options.fast:
        print("This was a fast run with a tiny network: the numbers and the picture mean nothing.")
    print(f"{time.perf_counter() - began:.0f} s in all; see {folder / 'demo.png'}")


def _say(text: str) -> None:
    print(text, flush=True)


# --- learning and drawing


def learn(levels: Tensor, effort: Effort, seed: int) -> FitResult[ScoreModel]:
    """Fit a small convolutional network by maximum likelihood.

    Its size and settings were chosen on 260 of the training digits, never on held-out ones.
    """
    torch.manual_seed(seed)
    data = training_set(levels, LEVELS)
    std = float(data.tensors[0].std())
    network = UNet(
        1, effort.width, multipliers=(1,), blocks=1, attention=(), label_scale=LABEL_SCALE
    )
    model = new_model(VPSDE(), network, std)
    aim = objective("likelihood", std)
    return fit(
        model,
        data,
        steps=effort.steps,
        batch_size=64,
        lr=3e-3,
        cosine=True,
        weighting=aim.weighting,
        time_sampler=aim.time_sampler,
        seed=seed,
    )


class Drawn(NamedTuple):
    """New digits ``(24, 1, 8, 8)`` in two ways, and the first way from noise on."""

    by_pc: Tensor
    by_flow: Tensor
    way: Trajectory


def draw(model: ScoreModel, effort: Effort, generator: torch.Generator) -> Drawn:
    """Draw new digits."""
    shape = (24, 1, 8, 8)
    way = trajectory(
        model, shape, pc(), steps=effort.sampling_steps, generator=generator, progress=True
    )
    with torch.no_grad():
        by_pc = model.denoised(way.states[-1], way.times[-1])
    return Drawn(by_pc, sample(model, shape, ProbabilityFlow(), generator=generator), way)


# --- likelihoods


def foreign_inputs(levels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Return levels that are no digits: their negatives, and noise."""
    noise = torch.randint(LEVELS.levels, levels.shape, generator=generator)
    return {"inverted digits": LEVELS.levels - 1 - levels, "uniform noise": noise}


def evaluate(model: ScoreModel, x: Tensor, generator: torch.Generator) -> Likelihood:
    """Return likelihoods by random probes, fresh at every evaluation: unbiased, with error bars."""
    return log_likelihood(
        model, x, trace=Hutchinson(PROBES), generator=generator, batch_size=100, progress=True
    )


def bits_of(likelihood: Likelihood) -> Tensor:
    """Return bits per dimension of the integer levels ``(n,)``, float64."""
    return likelihood.bits_per_dim(levels=LEVELS.levels, scale=LEVELS.scale).double()


def columns(likelihoods: Mapping[str, Likelihood]) -> dict[str, np.ndarray]:
    """Return the results of every group of inputs as named arrays."""
    found = {}
    for group, result in likelihoods.items():
        prefix = group.replace(" ", "_").replace("-", "_")
        found[f"{prefix}.bits_per_dim"] = bits_of(result).numpy()
        for name in _COLUMNS:
            found[f"{prefix}.{name}"] = getattr(result, name).numpy()
    return found


# --- the table


def baselines(seen: Tensor, unseen: Tensor) -> list[Row]:
    """Score the same held-out points under densities fitted to the same digits.

    They see every training digit under several draws of the dequantization noise, as the network
    does. The ridge on the covariances was chosen without the held-out digits.
    """
    mixtures = need("sklearn.mixture", "data")
    draws = [LEVELS.dequantize(seen, torch.Generator().manual_seed(k)) for k in range(8)]
    points = torch.cat(draws).flatten(1).double().numpy()
    held_out = evaluation_set(unseen, LEVELS).flatten(1).double().numpy()
    rows = [Row("uniform", torch.full((len(unseen),), math.log2(LEVELS.levels)), 0.0, 0.0)]
    for name, components, ridge in (
        ("Gaussian, full covariance", 1, 0.0),
        ("mixture of 10 Gaussians", 10, 1e-3),
    ):
        start = time.perf_counter()
        law = mixtures.GaussianMixture(components, reg_covar=ridge, random_state=0).fit(points)
        middle = time.perf_counter()
        nats = torch.from_numpy(law.score_samples(held_out))
        bits = bits_per_dim(nats, unseen.shape[1:], levels=LEVELS.levels, scale=LEVELS.scale)
        rows.append(Row(name, bits, middle - start, time.perf_counter() - middle))
    return rows


def own_row(result: FitResult[ScoreModel], likelihood: Likelihood, seconds: float) -> Row:
    """Return our line of the table."""
    name = f"score SDE ({count_parameters(result.score.network):,} parameters)"
    evaluations = float(likelihood.evaluations.double().mean())
    return Row(name, bits_of(likelihood), result.seconds, seconds, evaluations)


def table(rows: list[Row]) -> str:
    """Return the table as text."""
    n = len(rows[0].bits)
    lines = [
        f"\n{n} held-out digits, −log₂ p per pixel under uniform dequantization: lower is better\n",
        f"{'model':<34}{'bits/dim':>9}{'± s.e.':>9}{'evaluations':>13}{'learned in':>12}"
        f"{'evaluated in':>14}",
    ]
    for row in rows:
        error = float(row.bits.std()) / math.sqrt(n)
        evaluations = "" if math.isnan(row.evaluations) else f"{row.evaluations:.1f}"
        lines.append(
            f"{row.name:<34}{row.bits.mean():>9.3f}{error:>9.3f}{evaluations:>13}"
            f"{row.seconds_learning:>10.1f} s{row.seconds_evaluating:>12.1f} s"
        )
    return "\n".join(lines) + "\n"


def budget(model: ScoreModel, likelihood: Likelihood, checked: int) -> str:
    """Tell what the numbers of our line are worth, and hold some against exact traces."""
    bit = likelihood.points[0].numel() * math.log(2)
    solver, mismatch = likelihood.solver_error.max(), likelihood.prior_mismatch.abs().max()
    exact = log_likelihood(model, likelihood.points[:checked], trace=ExactTrace())
    error = likelihood.standard_error[:checked]
    distance = (likelihood.log_prob[:checked] - exact.log_prob) / error
    return (
        f"each digit: standard error of {PROBES} random probes "
        f"{float(likelihood.standard_error.mean()) / bit:.3f} bits/dim, solver error at most "
        f"{float(solver) / bit:.1e}, choice of the terminal law at most "
        f"{float(mismatch) / bit:.1e}; {int(likelihood.converged.sum())} of {len(likelihood)} "
        f"converged\nexact traces of {checked} digits differ from these by "
        f"{float(distance.square().mean().sqrt()):.2f} standard errors (root mean square)"
    )


# --- the picture


def picture(
    model: ScoreModel,
    seen: Tensor,
    unseen: Tensor,
    drawn: Drawn,
    likelihoods: Mapping[str, Likelihood],
    generator: torch.Generator,
) -> Figure:
    """Draw everything the demo has made."""
    ink = "gray_r"  # black on white
    with style():
        canvas = figure(10.67, 7.8, dpi=150)
        parts: Any = canvas.subfigures(3, 1, height_ratios=(2.6, 2.8, 2.4))
        strips, grids, bottom = parts
        forward, reverse = strips.subplots(1, 2)
        path = forward_path(
            model.sde, evaluation_set(unseen[list(_SHOWN)], LEVELS), TIMES, generator
        )
        path_strip(path, TIMES, cmap=ink, title="Forward: data to noise", ax=forward)
        backwards = tuple(reversed(TIMES))
        at = [int((drawn.way.times - t).abs().argmin()) for t in backwards]
        states = drawn.way.states[at, : len(_SHOWN)]
        path_strip(states, backwards, cmap=ink, title="Reverse: noise to data", ax=reverse)

        left, middle, right = grids.subplots(1, 3)
        sample_grid(
            drawn.by_pc, columns=6, cmap=ink, title="New digits by predictor–corrector", ax=left
        )
        sample_grid(
            drawn.by_flow,
            columns=6,
            cmap=ink,
            title="New digits by the probability flow",
            ax=middle,
        )
        nearest_neighbours(
            drawn.by_pc[:12],
            evaluation_set(seen, LEVELS),
            columns=6,
            cmap=ink,
            title="The training digits nearest to new ones",
            ax=right,
        )
        likelihood_histogram(
            {name: bits_of(result) for name, result in likelihoods.items()},
            marks={"uniform on all images": math.log2(LEVELS.levels)},
            bins=80,
            unit="−log₂ p in bits per pixel",
            title="Likelihoods of digits never seen, and of what is no digit",
            ax=bottom.subplots(),
        )
    return canvas


COMMAND = Command(
    name="demo",
    summary="learn handwritten digits, draw new ones, put a likelihood on unseen ones",
    description="Learn 1500 of scikit-learn's handwritten digits, draw new ones, compute "
    "log-likelihoods of the 297 others beside simpler densities, and draw a picture of it all. "
    "Takes a few minutes on two cores.",
    example="""\
  scoresde demo
  scoresde demo --out results --seed 1""",
    add_options=add_options,
    run=run,
)
