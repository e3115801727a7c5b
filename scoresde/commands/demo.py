"""``scoresde demo``: train on handwritten digits, sample, and evaluate held-out likelihoods."""

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

from scoresde.commands.base import Command, add_option, add_seed, atomic_write, need
from scoresde.commands.data import Quantization, digits, evaluation_set, training_set
from scoresde.commands.train import LABEL_SCALE, count_parameters, new_model, objective
from scoresde.dequantization import bits_per_dim
from scoresde.likelihood import Likelihood, log_likelihood
from scoresde.networks import UNet
from scoresde.plots import (
    figure,
    forward_path,
    likelihood_histogram,
    nearest_neighbors,
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

QUANTIZATION = Quantization(17)
TIMES = (0.0, 0.02, 0.06, 0.12, 0.2, 0.3, 0.45, 0.7, 1.0)
"""Times of the forward and reverse processes in the picture."""

PROBES = 8
"""Random probes of the trace per evaluation: an eighth of the cost of an exact trace."""

_COLUMNS = (
    "log_prob",
    "standard_error",
    "solver_error",
    "prior_mismatch",
    "evaluations",
    "converged",
)

_SHOWN = (0, 3, 5)
"""Held-out digits whose forward process is shown."""


@dataclass(frozen=True)
class Effort:
    """Sizes of the demo's computations.

    Attributes:
        width: channels of the network.
        steps: optimization steps.
        evaluated: number of held-out digits whose likelihood is computed.
        foreign: number of inputs of each kind that is no digit.
        checked: number of held-out digits that are evaluated again with the exact trace.
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
    """A line of the table.

    Attributes:
        name: the model.
        bits: bits per dimension of each held-out digit.
        training_seconds: time of the training.
        evaluation_seconds: time of the likelihoods.
        evaluations: mean number of evaluations of the network per digit.
    """

    name: str
    bits: Tensor
    training_seconds: float
    evaluation_seconds: float
    evaluations: float = math.nan


def add_options(parser: ArgumentParser) -> None:
    add_option(
        parser, "--out", str, "FOLDER",
        "folder of the picture, the model, the samples and the likelihoods; created if missing",
        default="demo_output",
    )  # fmt: skip
    parser.add_argument(
        "--fast",
        action="store_true",
        help="test run of a few seconds with a tiny network and meaningless results "
        "(default: the full demo, a few minutes)",
    )
    add_seed(parser, "the initial weights and all random numbers")


def run(options: Namespace) -> None:
    need("matplotlib", "plots")
    need("sklearn", "data")
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    effort = FAST if options.fast else Effort()
    generator = torch.Generator().manual_seed(options.seed)
    training = digits("digits-train").read()
    held_out = digits("digits-test").read()[: effort.evaluated]
    began = time.perf_counter()

    _log(f"training on {len(training)} handwritten digits, 8x8 pixels of 17 levels")
    result = train(training, effort, options.seed)
    with atomic_write(folder / "model.safetensors") as temporary:
        result.score.save(temporary)

    _log("sampling digits by predictor–corrector and by the probability flow")
    drawn = draw(result.score, effort, generator)
    with atomic_write(folder / "samples.npz") as temporary:
        np.savez_compressed(temporary, predictor_corrector=drawn.by_pc, flow=drawn.by_flow)

    _log(f"computing log-likelihoods of {len(held_out)} held-out digits and of other inputs")
    inputs = foreign_inputs(held_out[: effort.foreign], generator)
    seconds, likelihoods = {}, {}
    for name, levels in {"held-out digits": held_out, **inputs}.items():
        start = time.perf_counter()
        likelihoods[name] = evaluate(result.score, evaluation_set(levels, QUANTIZATION), generator)
        seconds[name] = time.perf_counter() - start
    with atomic_write(folder / "likelihood.npz") as temporary:
        np.savez_compressed(temporary, **columns(likelihoods))  # type: ignore[arg-type]

    with atomic_write(folder / "demo.png") as temporary:
        picture(result.score, training, held_out, drawn, likelihoods, generator).savefig(temporary)
    ours = likelihoods["held-out digits"]
    print(
        table([*baselines(training, held_out), own_row(result, ours, seconds["held-out digits"])])
    )
    print(budget(result.score, ours, effort.checked))
    if options.fast:
        print("This was a test run with a tiny network: its numbers and picture are meaningless.")
    print(f"{time.perf_counter() - began:.0f} s in total; see {folder / 'demo.png'}")


def _log(text: str) -> None:
    print(text, flush=True)


# --- training and sampling


def train(levels: Tensor, effort: Effort, seed: int) -> FitResult[ScoreModel]:
    """Return a small convolutional network trained by maximum likelihood.

    Size and settings were selected on 260 of the training digits, without the held-out digits.
    """
    torch.manual_seed(seed)
    data = training_set(levels, QUANTIZATION)
    std = float(data.tensors[0].std())
    network = UNet(
        1, effort.width, multipliers=(1,), blocks=1, attention=(), label_scale=LABEL_SCALE
    )
    model = new_model(VPSDE(), network, std)
    loss = objective("likelihood", std)
    return fit(
        model,
        data,
        steps=effort.steps,
        batch_size=64,
        lr=3e-3,
        cosine=True,
        weighting=loss.weighting,
        time_sampler=loss.time_sampler,
        seed=seed,
        progress=True,
    )


class Samples(NamedTuple):
    """New digits ``(24, 1, 8, 8)`` by two samplers, and the trajectory of the first."""

    by_pc: Tensor
    by_flow: Tensor
    path: Trajectory


def draw(model: ScoreModel, effort: Effort, generator: torch.Generator) -> Samples:
    """Return new digits."""
    shape = (24, 1, 8, 8)
    path = trajectory(
        model, shape, pc(), steps=effort.sampling_steps, generator=generator, progress=True
    )
    with torch.no_grad():
        by_pc = model.denoised(path.states[-1], path.times[-1])
    return Samples(by_pc, sample(model, shape, ProbabilityFlow(), generator=generator), path)


# --- likelihoods


def foreign_inputs(levels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Return levels of images that are no digits: inverted digits, and noise."""
    noise = torch.randint(QUANTIZATION.levels, levels.shape, generator=generator)
    return {"inverted digits": QUANTIZATION.levels - 1 - levels, "uniform noise": noise}


def evaluate(model: ScoreModel, x: Tensor, generator: torch.Generator) -> Likelihood:
    """Return unbiased likelihoods by random probes, redrawn at every evaluation."""
    return log_likelihood(
        model, x, trace=Hutchinson(PROBES), generator=generator, batch_size=100, progress=True
    )


def bits_of(likelihood: Likelihood) -> Tensor:
    """Return bits per dimension of the integer levels ``(n,)``, float64."""
    return likelihood.bits_per_dim(levels=QUANTIZATION.levels, scale=QUANTIZATION.scale).double()


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


def baselines(training: Tensor, held_out: Tensor) -> list[Row]:
    """Return the likelihoods of the same held-out points under simpler densities.

    They are fitted to the same digits, with several draws of the dequantization noise. The ridge of
    the covariances was selected without the held-out digits.
    """
    mixtures = need("sklearn.mixture", "data")
    draws = [QUANTIZATION.dequantize(training, torch.Generator().manual_seed(k)) for k in range(8)]
    points = torch.cat(draws).flatten(1).double().numpy()
    evaluated = evaluation_set(held_out, QUANTIZATION).flatten(1).double().numpy()
    levels, scale = QUANTIZATION.levels, QUANTIZATION.scale
    rows = [Row("uniform", torch.full((len(held_out),), math.log2(levels)), 0.0, 0.0)]
    for name, components, ridge in (
        ("Gaussian, full covariance", 1, 0.0),
        ("mixture of 10 Gaussians", 10, 1e-3),
    ):
        start = time.perf_counter()
        density = mixtures.GaussianMixture(components, reg_covar=ridge, random_state=0).fit(points)
        fitted = time.perf_counter()
        nats = torch.from_numpy(density.score_samples(evaluated))
        bits = bits_per_dim(nats, held_out.shape[1:], levels=levels, scale=scale)
        rows.append(Row(name, bits, fitted - start, time.perf_counter() - fitted))
    return rows


def own_row(result: FitResult[ScoreModel], likelihood: Likelihood, seconds: float) -> Row:
    """Return the line of the score model."""
    name = f"score SDE ({count_parameters(result.score.network):,} parameters)"
    evaluations = float(likelihood.evaluations.double().mean())
    return Row(name, bits_of(likelihood), result.seconds, seconds, evaluations)


def table(rows: list[Row]) -> str:
    """Return the table as text."""
    n = len(rows[0].bits)
    lines = [
        f"\n{n} held-out digits, −log₂ p per pixel under uniform dequantization: lower is better\n",
        f"{'model':<34}{'bits/dim':>9}{'± s.e.':>9}{'evaluations':>13}{'training':>12}"
        f"{'evaluation':>14}",
    ]
    for row in rows:
        error = float(row.bits.std()) / math.sqrt(n)
        evaluations = "" if math.isnan(row.evaluations) else f"{row.evaluations:.1f}"
        lines.append(
            f"{row.name:<34}{row.bits.mean():>9.3f}{error:>9.3f}{evaluations:>13}"
            f"{row.training_seconds:>10.1f} s{row.evaluation_seconds:>12.1f} s"
        )
    return "\n".join(lines) + "\n"


def budget(model: ScoreModel, likelihood: Likelihood, checked: int) -> str:
    """Return the errors of the score model's line and a comparison with exact traces, as text."""
    bit = likelihood.points[0].numel() * math.log(2)
    solver, mismatch = likelihood.solver_error.max(), likelihood.prior_mismatch.abs().max()
    exact = log_likelihood(model, likelihood.points[:checked], trace=ExactTrace())
    error = likelihood.standard_error[:checked]
    distance = (likelihood.log_prob[:checked] - exact.log_prob) / error
    return (
        f"each digit: standard error of {PROBES} random probes "
        f"{float(likelihood.standard_error.mean()) / bit:.3f} bits/dim, solver error at most "
        f"{float(solver) / bit:.1e}, mismatch of the prior at most "
        f"{float(mismatch) / bit:.1e}; {int(likelihood.converged.sum())} of {len(likelihood)} "
        f"converged\nexact traces of {checked} digits differ from these by "
        f"{float(distance.square().mean().sqrt()):.2f} standard errors (root mean square)"
    )


# --- the picture


def picture(
    model: ScoreModel,
    training: Tensor,
    held_out: Tensor,
    drawn: Samples,
    likelihoods: Mapping[str, Likelihood],
    generator: torch.Generator,
) -> Figure:
    """Return a figure of all results."""
    ink = "gray_r"  # black on white
    with style():
        canvas = figure(10.67, 7.8, dpi=150)
        parts: Any = canvas.subfigures(3, 1, height_ratios=(2.6, 2.8, 2.4))
        strips, grids, bottom = parts
        forward, reverse = strips.subplots(1, 2)
        path = forward_path(
            model.sde, evaluation_set(held_out[list(_SHOWN)], QUANTIZATION), TIMES, generator
        )
        path_strip(path, TIMES, cmap=ink, title="Forward: data to noise", ax=forward)
        decreasing = tuple(reversed(TIMES))
        indices = [int((drawn.path.times - t).abs().argmin()) for t in decreasing]
        states = drawn.path.states[indices, : len(_SHOWN)]
        path_strip(states, decreasing, cmap=ink, title="Reverse: noise to data", ax=reverse)

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
        nearest_neighbors(
            drawn.by_pc[:12],
            evaluation_set(training, QUANTIZATION),
            columns=6,
            cmap=ink,
            title="Training digits nearest to new ones",
            ax=right,
        )
        likelihood_histogram(
            {name: bits_of(result) for name, result in likelihoods.items()},
            marks={"uniform on all images": math.log2(QUANTIZATION.levels)},
            bins=80,
            unit="−log₂ p in bits per pixel",
            title="Likelihoods of held-out digits and of other images",
            ax=bottom.subplots(),
        )
    return canvas


COMMAND = Command(
    name="demo",
    summary="train on handwritten digits, sample, and evaluate held-out likelihoods",
    description="Train a score model on 1500 of scikit-learn's handwritten digits, sample new "
    "digits, compute log-likelihoods of the 297 held-out digits and compare them with those of "
    "simpler densities, and draw a picture of the results. Takes a few minutes on two cores.",
    example="""\
  scoresde demo
  scoresde demo --out results --seed 1""",
    add_options=add_options,
    run=run,
)
