"""DDPM and NCSN trained like their continuous limits, on 8x8 digits.

One small U-Net, one preconditioning, one objective (the unweighted error of the noise) and one
budget; only the diffusion and the distribution of the times differ: 1000 timesteps of a table, or
the entire interval.

1. Trained on dequantized digits. For held-out ones, all as bits/dim of the levels under uniform
   dequantization: the variational bound of the chain with 1000 steps, that in continuous time, and
   the density of the probability flow with exact traces.
2. The chains trained on the levels themselves, as DDPM was published: the bound on −log₂ P by the
   discretized decoder.
3. Samples of the first, drawn in 1000 steps, compared with the held-out digits.

    python benchmarks/discrete.py            # about 10 minutes on one core
    python benchmarks/discrete.py --quick    # a minute, tiny networks: the numbers mean nothing
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from common import parser, table, write_page
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import TensorDataset

from scoresde import VESDE, VPSDE, GaussianSDE, UNet, bits_per_dim, fit, sample
from scoresde.commands.data import Quantization, digits, evaluation_set, training_set
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

LEVELS = Quantization(17)
SHAPE = (1, 8, 8)
VP, VE = VPSDE(), VESDE(0.01, 20.0)


@dataclass(frozen=True)
class Effort:
    """Sizes of the experiment."""

    N: int = 1000
    width: int = 16
    steps: int = 800
    evaluated: int = 32
    samples: int = 100


QUICK = Effort(N=20, width=4, steps=20, evaluated=4, samples=8)


@dataclass(frozen=True)
class Case:
    """A diffusion, the times of its training, and its samplers.

    Attributes:
        name: of the diffusion.
        sde: the diffusion.
        time_sampler: distribution of the times in training.
        times: the timesteps of the chain of the bound.
        samplers: the samplers, by name.
        is_chain: whether the diffusion is the chain itself, or its continuous limit.
    """

    name: str
    sde: GaussianSDE
    time_sampler: TimeSampler
    times: Tensor
    samplers: dict[str, Sampler]
    is_chain: bool


def cases(N: int) -> list[Case]:
    """Return the chains with N steps, each followed by its continuous limit."""
    made = []
    for name, chain, parent in (("DDPM", VP.discretize(N), VP), ("NCSN", VE.discretize(N), VE)):
        times, other = chain.times, type(parent).__name__
        own = {name: Scheduled(Ancestral(1.0), Timesteps(), N - 1)}
        even = {other: Scheduled(Ancestral(1.0), UniformTime(end=float(times[0])), N - 1)}
        made.append(Case(name, chain, Stratified(TableTimes(times)), times, own, True))
        made.append(Case(other, parent, Stratified(), times, even, False))
    levels = min(100, N - 1)
    langevin = annealed_langevin(0.16, corrections=10, grid=Timesteps(), steps=levels - 1)
    made[2].samplers[f"NCSN, annealed Langevin ({levels} levels, 10 each)"] = langevin
    return made


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
    """Return a mean with its standard error over the digits."""
    return f"{float(bits.mean()):.3f} ± {float(bits.std()) / math.sqrt(len(bits)):.3f}"


Row = tuple[str, ...]


def dequantized_row(case: Case, model: ScoreModel, x: Tensor) -> Row:
    """Return chain, continuous bound and exact density of points, in bits/dim."""
    chain = discrete_bound(model, x, times=case.times, generator=torch.Generator().manual_seed(1))
    first = {"t_min": float(case.times[0]), "generator": torch.Generator().manual_seed(2)}
    bound = variational_bound(model, x, samples=512, **first)
    exact = log_likelihood(model, x, trace=ExactTrace(), **first)
    bits = [in_bits(result.log_prob) for result in (chain, bound, exact)]
    difference = (bits[0] - bits[1]).mean()
    evaluations = float(exact.evaluations.double().mean())
    return case.name, *map(mean, bits), f"{float(difference):+.4f}", f"{evaluations:.0f}"


def level_rows(case: Case, model: ScoreModel, levels: Tensor) -> list[Row]:
    """Return the bound on −log₂ P of levels and its parts, for a chain and for its later part.

    The later part starts where the noise is a quarter of a bin, and its decoder has that width.
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
) -> Row:
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
        terms = " + ".join(f"{float(part.mean()) / unit:.3f}" for part in parts)
        cells.append(f"{mean(bound.bits_per_dim())} = {terms}")
    return name, *cells


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
    """Logistic regression on the training digits: how confident it is about a sample."""

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        from sklearn.linear_model import LogisticRegression

        self.model = LogisticRegression(max_iter=2000, C=0.1).fit(x.flatten(1).numpy(), labels)

    def confident(self, x: Tensor) -> float:
        """Return the fraction of samples with a class of probability above 0.9."""
        highest = self.model.predict_proba(x.flatten(1).double().numpy()).max(1)
        return float((highest > 0.9).mean())


def sample_row(name: str, x: Tensor, seen: Tensor, unseen: Tensor, judge: Classifier) -> Row:
    """Return statistics of samples."""
    return (
        name,
        f"{float(x.mean()):.3f}",
        f"{float(x.std()):.3f}",
        f"{nearest(x, seen):.2f}",
        f"{sliced(x, unseen):.3f}",
        f"{judge.confident(x):.2f}",
    )


def draw(case: Case, model: ScoreModel, count: int) -> dict[str, Tensor]:
    """Return new digits by all samplers of a case."""
    return {
        name: sample(model, (count, *SHAPE), sampler, generator=torch.Generator().manual_seed(4))
        for name, sampler in case.samplers.items()
    }


# --- main


def main() -> None:
    """Make the tables and the figure."""
    options = parser(__doc__, out="folder for discrete.md and discrete.png").parse_args()
    torch.set_num_threads(1)
    effort = QUICK if options.quick else Effort()
    began = time.perf_counter()
    seen, unseen = digits("digits-train").read(), digits("digits-test").read()
    points, held_out = evaluation_set(seen, LEVELS), evaluation_set(unseen, LEVELS)
    centers = (seen.float() + 0.5) * (LEVELS.scale / LEVELS.levels) + LEVELS.low
    judge = Classifier(points, class_labels())

    tables: dict[str, list[Row]] = {"dequantized": [], "levels": [], "samples": []}
    pictures = {"held-out digits": held_out}
    statistics = [sample_row("held-out digits", held_out, points, points, judge)]
    for case in cases(effort.N):
        model, seconds = learn(case, training_set(seen, LEVELS), effort)
        print(f"{case.name}: trained in {seconds:.0f} s", flush=True)
        row = dequantized_row(case, model, held_out[: effort.evaluated])
        tables["dequantized"].append(row)
        print(*row, sep=" | ", flush=True)
        for name, x in draw(case, model, effort.samples).items():
            pictures[name] = x
            statistics.append(sample_row(name, x, points, held_out, judge))
            print(*statistics[-1], sep=" | ", flush=True)
        if case.is_chain:
            model, _ = learn(case, TensorDataset(centers), effort)
            tables["levels"] += level_rows(case, model, unseen[: effort.evaluated])
            print(*tables["levels"][-2:], sep="\n", flush=True)
    text = report(tables["dequantized"], tables["levels"], statistics, effort, model)
    write_page(options.out, "discrete.md", text)
    print(f"{time.perf_counter() - began:.0f} s in total")
    if options.out:
        picture(pictures).savefig(options.out / "discrete.png")


def class_labels() -> Tensor:
    """Return the classes of the training digits."""
    from sklearn.datasets import load_digits

    source = load_digits()
    rows = {
        image.tobytes(): label for image, label in zip(source.images, source.target, strict=True)
    }
    return torch.tensor(
        [int(rows[x.double().numpy().tobytes()]) for x in digits("digits-train").read()[:, 0]]
    )


DEQUANTIZED = (
    "model",
    "chain",
    "continuous bound",
    "flow",
    "chain − continuous",
    "evaluations of the flow",
)
SAMPLES = ("samples", "mean", "standard deviation", "nearest", "sliced W2", "confident")


def report(
    dequantized: list[Row],
    levels: list[Row],
    statistics: list[Row],
    effort: Effort,
    model: ScoreModel,
) -> str:
    """Return the tables as Markdown."""
    return f"""# DDPM and NCSN compared with their continuous limits

Made by `python benchmarks/discrete.py` on one core. 8x8 digits, 17 levels; a U-Net with
{count_parameters(model.network):,} parameters, {effort.steps} steps of 64 digits, the
unweighted error of the noise as the loss, averaged weights. DDPM and NCSN have {effort.N} steps and
are trained at their timesteps only; VPSDE and VESDE at all times. {effort.evaluated} held-out
digits, the same noise for all; ± is the standard error over digits.

## Trained on dequantized digits, bits/dim

Chain: the variational bound with {effort.N} steps, fixed large variance, one sample each.
Continuous: the bound without discretization, 512 samples. Flow: the density itself, exact traces.
All take the digits as samples at t_1, where the chains start.

{table(DEQUANTIZED, dequantized)}

## Trained on the levels, bits/dim by the discretized decoder

Each is the sum L_0 (decoder) + (L_1 + … + L_{{N−1}}) + L_N (prior), of the entire chain, and of the
chain that starts where the noise is a quarter of a bin. Without a model, a level costs
{math.log2(LEVELS.levels):.2f} bits.

{table(("chain", "fixed large", "fixed small"), levels)}

## Samples of the first models, {effort.samples} each

Ancestral sampling in {effort.N - 1} steps and a final denoising. Nearest: median distance to the
nearest training digit. Sliced W2: to the held-out digits (of these, to the training digits).
Confident: how often logistic regression on the training digits gives a class more than 0.9.

{table(SAMPLES, statistics)}
"""


def picture(samples: dict[str, Tensor]) -> Figure:
    """Draw samples of all models next to each other."""
    with style():
        canvas = figure(2.4 * len(samples), 3.4)
        for ax, (name, x) in zip(canvas.subplots(1, len(samples)), samples.items(), strict=True):
            title = name.replace(" (", "\n(").replace(", ", ",\n")
            sample_grid(x[:40], columns=5, cmap="gray_r", title=title, ax=ax)
    return canvas


if __name__ == "__main__":
    main()
