"""DDPM and NCSN trained beside their continuous parents, on 8x8 digits.

One small U-Net, one preconditioning, one objective (the plain error of the noise) and one budget;
only the diffusion and the law of the times differ: 1000 knots of a table, or the whole interval.

1. Learned from dequantized digits. For held-out ones, all as bits/dim of the levels under uniform
   dequantization: the variational bound of the chain with 1000 steps, that in continuous time, and
   the density of the probability flow with exact traces.
2. The children learned from the levels themselves, as DDPM was published: the bound on −log₂ P by
   the discretised decoder.
3. Samples of the first, drawn in 1000 steps, beside the held-out digits.

    python benchmarks/discrete.py            # about 10 minutes on one core
    python benchmarks/discrete.py --quick    # a minute, tiny networks: the numbers mean nothing
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import TensorDataset

from scoresde import VESDE, VPSDE, GaussianSDE, UNet, bits_per_dim, fit, sample
from scoresde.commands.data import Bins, digits, evaluation_set, training_set
from scoresde.commands.train import LABEL_SCALE, count_parameters, new_model
from scoresde.likelihood import discrete_bound, log_likelihood, variational_bound
from scoresde.plots import figure, sample_grid, style
from scoresde.samplers import (
    Ancestral,
    Sampler,
    Scheduled,
    Timesteps,
    UniformTime,
    annealed_langevin,
)
from scoresde.scores import ScoreModel
from scoresde.traces import ExactTrace
from scoresde.training.losses import Simple, Stratified, TableTimes, TimeSampler

LEVELS = Bins(17)
SHAPE = (1, 8, 8)
VP, VE = VPSDE(), VESDE(0.01, 20.0)


@dataclass(frozen=True)
class Effort:
    """How much is done of everything."""

    N: int = 1000
    width: int = 16
    steps: int = 800
    evaluated: int = 32
    samples: int = 100


QUICK = Effort(N=20, width=4, steps=20, evaluated=4, samples=8)


@dataclass(frozen=True)
class Case:
    """A diffusion, how its times are drawn in training, and how it is sampled.

    Attributes:
        name: of the diffusion.
        sde: the diffusion.
        time_sampler: of the times in training.
        times: the knots of the chain whose bound is told.
        samplers: ways to draw samples, by name.
        is_chain: whether the diffusion is the chain itself, or its parent.
    """

    name: str
    sde: GaussianSDE
    time_sampler: TimeSampler
    times: Tensor
    samplers: dict[str, Sampler]
    is_chain: bool


def cases(N: int) -> list[Case]:
    """Return the chains with N steps, each before its parent."""
    found = []
    for name, chain, parent in (("DDPM", VP.discretize(N), VP), ("NCSN", VE.discretize(N), VE)):
        knots, other = chain.times, type(parent).__name__
        own = {name: Scheduled(Ancestral(1.0), Timesteps(), N - 1)}
        even = {other: Scheduled(Ancestral(1.0), UniformTime(end=float(knots[0])), N - 1)}
        found.append(Case(name, chain, Stratified(TableTimes(knots)), knots, own, True))
        found.append(Case(other, parent, Stratified(), knots, even, False))
    levels = min(100, N - 1)
    langevin = annealed_langevin(0.16, corrections=10, grid=Timesteps(), steps=levels)
    found[2].samplers[f"NCSN, annealed Langevin ({levels} levels, 10 each)"] = langevin
    return found


def learn(case: Case, data: TensorDataset, effort: Effort) -> tuple[ScoreModel, float]:
    """Return a trained model and the seconds it took."""
    torch.manual_seed(0)
    network = UNet(
        1, effort.width, multipliers=(1,), blocks=1, attention=(), label_scale=LABEL_SCALE
    )
    model = new_model(case.sde, network, float(data.tensors[0].std()))
    result = fit(
        model,
        data,
        steps=effort.steps,
        batch_size=64,
        lr=3e-3,
        cosine=True,
        weighting=Simple(),
        time_sampler=case.time_sampler,
        progress=False,
    )
    return result.score, result.seconds


# --- likelihoods


def in_bits(log_prob: Tensor) -> Tensor:
    """Return bits/dim of the levels from log-densities of dequantized points."""
    return bits_per_dim(log_prob.double(), SHAPE, levels=LEVELS.levels, scale=LEVELS.scale)


def mean(bits: Tensor) -> str:
    """Show a mean with its standard error over the digits."""
    return f"{float(bits.mean()):.3f} ± {float(bits.std()) / math.sqrt(len(bits)):.3f}"


def dequantized_row(case: Case, model: ScoreModel, x: Tensor) -> str:
    """Return chain, continuous bound and exact density of points, in bits/dim."""
    chain = discrete_bound(model, x, times=case.times, generator=torch.Generator().manual_seed(1))
    first = {"t_min": float(case.times[0]), "generator": torch.Generator().manual_seed(2)}
    bound = variational_bound(model, x, samples=512, **first)
    exact = log_likelihood(model, x, trace=ExactTrace(), **first)
    found = [in_bits(result.log_prob) for result in (chain, bound, exact)]
    difference = (found[0] - found[1]).mean()
    evaluations = float(exact.evaluations.double().mean())
    return (
        f"| {case.name} | {' | '.join(map(mean, found))} | {float(difference):+.4f} | "
        f"{evaluations:.0f} |"
    )


def level_rows(case: Case, model: ScoreModel, levels: Tensor) -> list[str]:
    """Return the bound on −log₂ P of levels and its parts, for all of a chain and for its rest.

    The rest begins where the noise is a quarter of a bin, and its decoder has that width.
    """
    sigma = torch.exp(-case.sde.half_logsnr(case.times))
    start = int((sigma < 0.25 * LEVELS.scale / LEVELS.levels).sum())
    return [
        level_row(f"{case.name}, all", model, levels, case.times, None),
        level_row(
            f"{case.name}, from step {start + 1}",
            model,
            levels,
            case.times[start:],
            float(sigma[start]),
        ),
    ]


def level_row(
    name: str, model: ScoreModel, levels: Tensor, times: Tensor, decoder: float | None
) -> str:
    """Return the bound on −log₂ P of levels by one chain, and its parts."""
    cells = []
    for variance in (1.0, 0.0):
        bound = discrete_bound(
            model,
            levels,
            levels=LEVELS.levels,
            scale=LEVELS.scale,
            shift=LEVELS.low,
            variance=variance,
            decoder=decoder,
            times=times,
            generator=torch.Generator().manual_seed(3),
        )
        unit = math.prod(SHAPE) * math.log(2)
        parts = (bound.decoder, bound.steps.sum(1), bound.prior)
        told = " + ".join(f"{float(part.mean()) / unit:.3f}" for part in parts)
        cells.append(f"{mean(bound.bits_per_dim)} = {told}")
    return f"| {name} | {' | '.join(cells)} |"


# --- samples


def nearest(x: Tensor, y: Tensor) -> float:
    """Return the median distance of x to the nearest of y."""
    return float(torch.cdist(x.flatten(1), y.flatten(1)).amin(1).median())


def sliced(x: Tensor, y: Tensor) -> float:
    """Return the 2-Wasserstein distance of the two samples, averaged over 500 directions."""
    directions = torch.randn(SHAPE[1] * SHAPE[2], 500, generator=torch.Generator().manual_seed(0))
    directions /= directions.norm(dim=0)
    level = (torch.arange(200) + 0.5) / 200
    ends = [torch.quantile(z.flatten(1).float() @ directions, level, dim=0) for z in (x, y)]
    return float((ends[0] - ends[1]).square().mean().sqrt())


class Classifier:
    """Logistic regression on the training digits: how sure it is of what a sample shows."""

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        from sklearn.linear_model import LogisticRegression

        self.model = LogisticRegression(max_iter=2000, C=0.1).fit(x.flatten(1).numpy(), labels)

    def sure(self, x: Tensor) -> float:
        """Return the part of samples that are given a class with a probability above 0.9."""
        highest = self.model.predict_proba(x.flatten(1).double().numpy()).max(1)
        return float((highest > 0.9).mean())


def sample_row(name: str, x: Tensor, seen: Tensor, unseen: Tensor, judge: Classifier) -> str:
    """Return statistics of samples."""
    return (
        f"| {name} | {float(x.mean()):.3f} | {float(x.std()):.3f} | {nearest(x, seen):.2f} | "
        f"{sliced(x, unseen):.3f} | {judge.sure(x):.2f} |"
    )


def draw(case: Case, model: ScoreModel, count: int) -> dict[str, Tensor]:
    """Return new digits in all the ways of a case."""
    return {
        name: sample(model, (count, *SHAPE), way, generator=torch.Generator().manual_seed(4))
        for name, way in case.samplers.items()
    }


# --- all of it


def main() -> None:
    """Make the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="run through it in a minute")
    parser.add_argument("--out", type=Path, help="folder for discrete.md and discrete.png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    effort = QUICK if options.quick else Effort()
    began = time.perf_counter()
    seen, unseen = digits("digits-train").read(), digits("digits-test").read()
    points, held_out = evaluation_set(seen, LEVELS), evaluation_set(unseen, LEVELS)
    centres = (seen.float() + 0.5) * (LEVELS.scale / LEVELS.levels) + LEVELS.low
    judge = Classifier(points, class_labels())

    tables: dict[str, list[str]] = {"dequantized": [], "levels": [], "samples": []}
    pictures = {"held-out digits": held_out}
    statistics = [sample_row("held-out digits", held_out, points, points, judge)]
    for case in cases(effort.N):
        model, seconds = learn(case, training_set(seen, LEVELS), effort)
        print(f"{case.name}: learned in {seconds:.0f} s", flush=True)
        row = dequantized_row(case, model, held_out[: effort.evaluated])
        tables["dequantized"].append(row)
        print(row, flush=True)
        for name, x in draw(case, model, effort.samples).items():
            pictures[name] = x
            statistics.append(sample_row(name, x, points, held_out, judge))
            print(statistics[-1], flush=True)
        if case.is_chain:
            model, _ = learn(case, TensorDataset(centres), effort)
            tables["levels"] += level_rows(case, model, unseen[: effort.evaluated])
            print(*tables["levels"][-2:], sep="\n", flush=True)
    text = report(tables["dequantized"], tables["levels"], statistics, effort, model)
    print(text, f"\n{time.perf_counter() - began:.0f} s in all")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "discrete.md").write_text(text, encoding="utf-8")
        picture(pictures).savefig(options.out / "discrete.png")


def class_labels() -> Tensor:
    """Return what the training digits show."""
    from sklearn.datasets import load_digits

    source = load_digits()
    rows = {
        image.tobytes(): label for image, label in zip(source.images, source.target, strict=True)
    }
    return torch.tensor(
        [int(rows[x.double().numpy().tobytes()]) for x in digits("digits-train").read()[:, 0]]
    )


def report(
    dequantized: list[str],
    levels: list[str],
    statistics: list[str],
    effort: Effort,
    model: ScoreModel,
) -> str:
    """Return the tables as Markdown."""
    return f"""# DDPM and NCSN beside their continuous parents

Made by `python benchmarks/discrete.py` on one core. 8x8 digits, 17 levels; a U-Net with
{count_parameters(model.network):,} parameters, {effort.steps} steps of 64 digits, the plain error
of the noise as the loss, averaged weights. DDPM and NCSN have {effort.N} steps and learn at their
knots alone; VPSDE and VESDE at all times. {effort.evaluated} held-out digits, the same noise for
all; ± is the standard error over digits.

## Learned from dequantized digits, bits/dim

Chain: the variational bound with {effort.N} steps, fixed large variance, one draw each.
Continuous: the bound without discretisation, 512 draws. Flow: the density itself, exact traces.
All take the digits for samples at t_1, where the chains begin.

| model | chain | continuous bound | flow | chain − continuous | evaluations of the flow |
|---|---|---|---|---|---|
{chr(10).join(dequantized)}

## Learned from the levels, bits/dim by the discretised decoder

Each is the sum L_0 (decoder) + (L_1 + … + L_{{N−1}}) + L_N (prior), of the whole chain, and of the
chain that begins where the noise is a quarter of a bin. Knowing nothing, a level costs
{math.log2(LEVELS.levels):.2f} bits.

| chain | fixed large | fixed small |
|---|---|---|
{chr(10).join(levels)}

## Samples of the first models, {effort.samples} each

Ancestral sampling in {effort.N - 1} steps and a last denoising. Nearest: median distance to the
nearest training digit. Sliced W2: to the held-out digits (of these, to the training digits). Sure:
how often logistic regression, which knows the training digits, gives a class more than 0.9.

| samples | mean | standard deviation | nearest | sliced W2 | sure |
|---|---|---|---|---|---|
{chr(10).join(statistics)}
"""


def picture(samples: dict[str, Tensor]) -> Figure:
    """Draw samples of all models side by side."""
    with style():
        canvas = figure(2.4 * len(samples), 3.4)
        for ax, (name, x) in zip(canvas.subplots(1, len(samples)), samples.items(), strict=True):
            title = name.replace(" (", "\n(").replace(", ", ",\n")
            sample_grid(x[:40], columns=5, cmap="gray_r", title=title, ax=ax)
    return canvas


if __name__ == "__main__":
    main()
