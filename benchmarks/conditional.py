"""Digits by class: guidance against fidelity and variety, and a classifier made of likelihoods.

One conditional network learns 1500 handwritten digits (8x8, 17 levels) with one label in ten
dropped.

1. Samples of every class by classifier-free guidance, at all noise levels and in an interval of
   them, by autoguidance and by a noise-conditional classifier, against the weight: how often a
   support vector machine, which has seen no sample, finds the class that was asked for, and how
   varied the samples of a class are beside its held-out digits.
2. Held-out digits classified by the class under which they are most likely, log p(x|y), beside
   scikit-learn's logistic regression and support vector machine.
3. A picture: classes by rows, weights by columns, one noise per row.

    python benchmarks/conditional.py            # about two minutes on one core
    python benchmarks/conditional.py --quick    # a minute, a tiny network: the numbers mean nothing
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from scoresde import MLP, VPSDE, Hutchinson, Score, ScoreModel, fit, log_likelihood, sample
from scoresde.commands.data import DequantizedDataset, Quantization, digits, evaluation_set
from scoresde.commands.train import LABEL_SCALE, count_parameters, new_model, objective
from scoresde.guidance import (
    GuidanceInterval,
    NoisyClassifier,
    autoguidance,
    classification_loss,
    classifier_free_guidance,
    classifier_guidance,
)
from scoresde.plots import figure, sample_grid, style

LEVELS = Quantization(17)
SHAPE = (1, 8, 8)
CLASSES = 10
INTERVAL = (0.2, 4.0)


@dataclass(frozen=True)
class Effort:
    """How much is done of everything."""

    width: int = 192
    depth: int = 3
    steps: int = 2500
    classifier_steps: int = 1000
    per_class: int = 30
    evaluated: int = 297
    weights: tuple[float, ...] = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
    probes: int = 1


QUICK = Effort(16, 1, 30, 10, per_class=4, evaluated=6, weights=(0.0, 1.0, 3.0), probes=1)


class LabeledDataset(TensorDataset):
    """Integer levels with labels, dequantized with new noise at every access."""

    def __init__(self, levels: Tensor, labels: Tensor) -> None:
        self.points = DequantizedDataset(levels, LEVELS)
        super().__init__(*self.points.tensors, labels)

    def __getitem__(self, index: Tensor | slice) -> tuple[Tensor, ...]:
        return (*self.points[index], self.tensors[1][index])


def labels_of(levels: Tensor) -> Tensor:
    """Return what digits show, the labels of scikit-learn."""
    from sklearn.datasets import load_digits

    source = load_digits()
    pairs = zip(source.images, source.target, strict=True)
    known = {image.tobytes(): int(label) for image, label in pairs}
    return torch.tensor([known[x.double().numpy().tobytes()] for x in levels[:, 0]])


# --- what is learned


def learn(data: LabeledDataset, effort: Effort, width: int, steps: int) -> tuple[ScoreModel, float]:
    """Return a conditional model and the seconds it took."""
    torch.manual_seed(0)
    std = float(data.tensors[0].std())
    network = MLP(SHAPE, width, effort.depth, classes=CLASSES, dropout=0.1, label_scale=LABEL_SCALE)
    aim = objective("likelihood", std)
    result = fit(
        new_model(VPSDE(), network, std),
        data,
        steps=steps,
        batch_size=128,
        lr=2e-3,
        cosine=True,
        weighting=aim.weighting,
        time_sampler=aim.time_sampler,
        condition="classes",
        condition_dropout=0.1,
        progress=False,
    )
    return result.score, result.seconds


class Reader(nn.Module):
    """Logits of a noisy digit, from the digit and its half log-SNR."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64 + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, CLASSES),
        )  # fmt: skip

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Return ``(batch, 10)``."""
        return self.layers(torch.cat([x.flatten(1), 0.3 * label[:, None]], dim=1))


def learn_classifier(data: LabeledDataset, effort: Effort) -> NoisyClassifier:
    """Return a classifier of noisy digits."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    classifier = NoisyClassifier(Reader(effort.width), VPSDE(), std=float(data.tensors[0].std()))
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(effort.classifier_steps):
        index = torch.randint(len(data), (128,), generator=generator)
        optimizer.zero_grad()
        classification_loss(classifier, *data[index], generator=generator).backward()
        optimizer.step()
    return classifier.eval()


# --- samples by class


@dataclass(frozen=True)
class Judge:
    """Classifiers of clean digits that have seen the training digits alone."""

    machine: object
    regression: object

    @classmethod
    def learned(cls, x: Tensor, labels: Tensor) -> Judge:
        """Fit both; the support vector machine's width is scikit-learn's default."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.svm import SVC

        points, target = x.flatten(1).numpy(), labels.numpy()
        return cls(
            SVC(C=10.0).fit(points, target),
            LogisticRegression(max_iter=5000, C=0.1).fit(points, target),
        )


def right(model: object, x: Tensor, labels: Tensor) -> Tensor:
    """Return which points are given their label."""
    return torch.as_tensor(model.predict(x.flatten(1).numpy()) == labels.numpy())  # type: ignore[attr-defined]


def spread_within(x: Tensor, labels: Tensor) -> float:
    """Return the root mean square distance to the mean of one's class."""
    squares = [(v - v.mean(0)).square().sum((1, 2, 3)) for v in (x[labels == k] for k in range(10))]
    counts = [len(v) / max(len(v) - 1, 1) for v in squares]
    return float(torch.cat([v * c for v, c in zip(squares, counts, strict=True)]).mean().sqrt())


def share(hits: Tensor) -> str:
    """Show a relative frequency in percent with its standard error."""
    p = float(hits.double().mean())
    return f"{100 * p:.1f} ± {100 * math.sqrt(p * (1 - p) / len(hits)):.1f}"


def draw(score: Score, count: int) -> Tensor:
    """Return samples, from the same noise for every score."""
    return sample(score, (count, *SHAPE), steps=40, generator=torch.Generator().manual_seed(4))


# --- likelihood by class


def by_class(model: ScoreModel, x: Tensor, probes: int) -> tuple[Tensor, Tensor, float]:
    """Return log p(x|y) of all classes ``(n, 10)``, its standard errors, and how much converged.

    All classes of a digit see the same probes, so that much of their noise cancels in differences.
    """
    results = [
        log_likelihood(
            model.given(classes=k),
            x,
            trace=Hutchinson(probes=probes),
            tolerance=1e-2,
            generator=torch.Generator().manual_seed(5),
        )
        for k in range(CLASSES)
    ]
    converged = torch.stack([result.converged for result in results]).double().mean()
    log_prob = torch.stack([result.log_prob for result in results], dim=1).double()
    error = torch.stack([result.standard_error for result in results], dim=1).double()
    return log_prob, error, float(converged)


def likelihood_rows(log_prob: Tensor, error: Tensor, labels: Tensor) -> tuple[list[str], Tensor]:
    """Return statistics of the likelihoods as rows of a table, and which digits are right."""
    found = log_prob.argmax(1)
    hits = found == labels
    ordered = log_prob.sort(dim=1, descending=True).values
    margin = ordered[:, 0] - ordered[:, 1]
    noise = error.mean(1) * math.sqrt(2)
    probability = torch.softmax(log_prob, 1).gather(1, labels.unsqueeze(1)).squeeze(1)
    surprise = float(-probability.clamp(min=1e-300).log().mean())
    rows = [
        f"| margin to the next class, median (nats) | {float(margin.median()):.1f} |",
        f"| standard error of one log p(x\\|y) by the trace, median (nats) | "
        f"{float(error.median()):.2f} |",
        f"| digits whose margin is below two standard errors of a difference, taken as independent "
        f"| {int((margin < 2 * noise).sum())} of {len(hits)} |",
        f"| mean −log p(y\\|x) by Bayes' theorem (nats) | {surprise:.2f} |",
    ]
    return rows, hits


# --- all of it


def main() -> None:
    """Make the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="run through it in a minute")
    parser.add_argument("--out", type=Path, help="folder for conditional.md and conditional.png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    effort = QUICK if options.quick else Effort()
    began = time.perf_counter()

    seen, unseen = digits("digits-train").read(), digits("digits-test").read()
    data = LabeledDataset(seen, labels_of(seen))
    x, y = evaluation_set(unseen, LEVELS)[: effort.evaluated], labels_of(unseen)[: effort.evaluated]
    judge = Judge.learned(*data.tensors)
    model, seconds = learn(data, effort, effort.width, effort.steps)
    worse, _ = learn(data, effort, max(effort.width // 4, 8), effort.steps // 8)
    classifier = learn_classifier(data, effort)
    print(f"learned: {count_parameters(model.network):,} parameters, {seconds:.0f} s", flush=True)

    wanted = torch.arange(CLASSES).repeat_interleave(effort.per_class)
    conditional, null = model.given(classes=wanted), model.given(classes=CLASSES)
    ways: dict[str, Callable[[float], Score]] = {
        "classifier-free": lambda w: classifier_free_guidance(conditional, w),
        "classifier-free, in an interval": lambda w: classifier_free_guidance(
            conditional, GuidanceInterval(w, *INTERVAL)
        ),
        "autoguidance": lambda w: autoguidance(conditional, worse.given(classes=wanted), w),
        "classifier": lambda w: classifier_guidance(null, classifier, wanted, w),
    }
    table, pictures = [], []
    for w in effort.weights:
        cells = []
        for name, way in ways.items():
            drawn = draw(way(w), len(wanted))
            cells += [
                share(right(judge.machine, drawn, wanted)),
                f"{spread_within(drawn, wanted):.2f}",
            ]
            if name == "classifier-free":
                pictures.append(drawn[:: effort.per_class])
        table.append(f"| {w:g} | {' | '.join(cells)} |")
        print(table[-1], flush=True)

    log_prob, error, converged = by_class(model, x, effort.probes)
    details, hits = likelihood_rows(log_prob, error, y)
    accuracies = [
        f"| class of the largest log p(x\\|y) | {share(hits)} |",
        f"| logistic regression | {share(right(judge.regression, x, y))} |",
        f"| support vector machine | {share(right(judge.machine, x, y))} |",
    ]
    print("\n".join([*accuracies, *details]), flush=True)
    held_out = f"{share(right(judge.machine, x, y))} %, spread {spread_within(x, y):.2f}"
    text = report(table, list(ways), held_out, accuracies, details, converged, effort, model)
    print(text, f"\n{time.perf_counter() - began:.0f} s in all")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "conditional.md").write_text(text, encoding="utf-8")
        picture(pictures, effort.weights).savefig(options.out / "conditional.png")


def report(
    table: Sequence[str],
    names: Sequence[str],
    held_out: str,
    accuracies: Sequence[str],
    details: Sequence[str],
    converged: float,
    effort: Effort,
    model: ScoreModel,
) -> str:
    """Return the tables as Markdown."""
    heads = " | ".join(f"{name}: accuracy | spread" for name in names)
    low, high = INTERVAL
    return f"""# Digits by class

Made by `python benchmarks/conditional.py` on one core. 8x8 digits, 17 levels; an MLP with
{count_parameters(model.network):,} parameters, {effort.steps} steps of 128 digits,
maximum likelihood weighting, one label in ten dropped. The worse model of autoguidance has a
quarter of the width and an eighth of the steps; the classifier of noisy digits learned for
{effort.classifier_steps} steps.

## Samples against the guidance weight

{effort.per_class} samples of each class, 40 steps of the default sampler, the same noise
everywhere. Accuracy: how often (%) a support vector machine trained on the same digits
finds the class asked for; ± is the standard error. Spread: root mean square distance to the mean of
one's class. Held-out digits: {held_out}. The interval is {low:g} < σ/α <= {high:g};
outside, the weight is 1. Weight 0 is no condition (autoguidance: the worse model alone), 1 the
conditional model, or Bayes' theorem for the classifier.

| weight | {heads} |
|---|{"---|" * (2 * len(names))}
{chr(10).join(table)}

## A classifier made of likelihoods

{effort.evaluated} held-out digits, dequantized once; log p(x|y) of each class by the
probability flow, its trace by {effort.probes} probe(s), fresh at every evaluation and the same for
all classes of a digit; {100 * converged:.1f} % of all integrations converged. The class is the most
likely one, all equally probable beforehand.

| | accuracy (%) |
|---|---|
{chr(10).join(accuracies)}

| likelihoods by class | |
|---|---|
{chr(10).join(details)}
"""


def picture(columns: Sequence[Tensor], weights: Sequence[float]) -> Figure:
    """Draw one sample of each class by rows, at each weight by columns."""
    with style():
        canvas = figure(0.62 * len(weights) + 0.8, 6.4)
        ax = canvas.subplots()
        images = torch.stack(list(columns), dim=1).flatten(0, 1)
        sample_grid(images, columns=len(weights), cmap="gray_r", ax=ax)
        ax.set_xticks(np.arange(len(weights)) * 9 + 4.5, [f"{w:g}" for w in weights])
        ax.set_yticks(np.arange(CLASSES) * 9 + 4.5, [str(k) for k in range(CLASSES)])
        ax.tick_params(length=0)
        ax.set_xlabel("guidance weight")
        ax.set_ylabel("class")
    return canvas


if __name__ == "__main__":
    main()
