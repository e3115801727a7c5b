"""Restoration of held-out digits, against baselines without diffusion.

    python benchmarks/restoration.py [--quick] [--out benchmarks/results]

A small U-Net (that of `scoresde demo`) is trained on 1500 digits, 8 × 8 pixels in [−1, 1]. Held-out
ones are observed through a mask, as means of 2 × 2 or 4 × 4 pixels, or with noise, and restored.

* PSNR: 10 log₁₀ (2²/mean square error) in dB, of one sample and of the posterior mean: by Bayes'
  theorem an exact sample has twice the error of the exact mean, 3 dB. The means of Wiener and
  `denoise` are exact, the others averages of the samples, with their Monte Carlo error;
* bits/dim: −log₂ p per pixel by the model itself (of samples, for methods that draw them): near
  that of the truth is right, above is unlike a digit, below is too smooth.

The baselines use the same training digits: their mean; the one that fits y best; the Gaussian of
their mean and covariance, whose posterior mean is the Wiener filter.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from common import table
from density import problems
from torch import Tensor

from scoresde import GaussianMixture, Moments, ScoreModel, log_likelihood
from scoresde.commands import demo
from scoresde.commands.data import digits, evaluation_set
from scoresde.inverse_problems import (
    Observation,
    ParticleSampling,
    PiGDM,
    PosteriorScoreSampling,
    denoise,
    restore,
)
from scoresde.operators import AveragePool, LinearOperator, Mask, Matrix
from scoresde.plots import figure, sample_grid, style
from scoresde.traces import Hutchinson

EVENT = (1, 8, 8)
NOISE_STD = 0.05
FIRST, DIGITS, SAMPLES = 12, 36, 8
"""The default method was chosen on the twelve held-out digits before these."""
LEGEND = __doc__.split("\n\n", 2)[2]


def half() -> Mask:
    """Return the mask of the left half."""
    return Mask((torch.arange(8) < 4).expand(EVENT))


def scattered() -> Mask:
    """Return the mask of a third of the pixels, drawn once."""
    return Mask(torch.rand(EVENT, generator=torch.Generator().manual_seed(0)) < 1 / 3)


@dataclass(frozen=True)
class Task:
    """What is seen of every digit."""

    name: str
    operator: LinearOperator
    noise_std: float
    seen: Tensor

    @classmethod
    def draw(cls, name: str, operator: LinearOperator, noise_std: float, x: Tensor) -> Task:
        """See digits."""
        source = torch.Generator().manual_seed(1)
        return cls(name, operator, noise_std, Observation.draw(operator, x, noise_std, source).y)

    @property
    def observation(self) -> Observation:
        """What methods get."""
        return Observation(self.operator, self.seen, self.noise_std)

    @property
    def denoises(self) -> bool:
        """Whether nothing is hidden but by noise."""
        return self.name.startswith("denoising")

    def shown(self) -> Tensor:
        """Return what was seen as an image, with NaN where there is nothing."""
        if self.seen.ndim > 2:
            return self.seen.repeat_interleave(k := 8 // self.seen.shape[-1], -1).repeat_interleave(
                k, -2
            )
        hidden = self.operator.adjoint(torch.ones_like(self.seen)) == 0
        image = self.operator.adjoint(self.seen).reshape(-1, *EVENT)
        return image.masked_fill(hidden.reshape(image.shape), torch.nan)


def tasks(x: Tensor) -> list[Task]:
    """Return all there is to do."""
    identity = Matrix(torch.eye(64), EVENT)
    return [
        Task.draw("inpainting the right half", half(), NOISE_STD, x),
        Task.draw("inpainting two thirds of the pixels", scattered(), NOISE_STD, x),
        Task.draw("super-resolution 2×", AveragePool(2), NOISE_STD, x),
        Task.draw("super-resolution 4×", AveragePool(4), NOISE_STD, x),
        *(Task.draw(f"denoising, σ = {std}", identity, std, x) for std in (0.25, 0.5, 1.0)),
    ]


@dataclass(frozen=True)
class Known:
    """The prior knowledge: the network, and the digits it was trained on."""

    model: ScoreModel
    train: Tensor
    gaussian: GaussianMixture


Outcome = tuple[Tensor | None, Tensor]
"""Samples ``(n, samples, *event)`` if there are any, and the estimate ``(n, *event)``."""
Restorer = Callable[[Known, Task, torch.Generator], Outcome]


def mean_image(known: Known, task: Task, source: torch.Generator) -> Outcome:
    """Return the mean of the training digits, whatever the observation."""
    del source  # nothing is drawn
    return None, known.train.mean(0).expand(len(task.seen), *EVENT)


def nearest(known: Known, task: Task, source: torch.Generator) -> Outcome:
    """Return the training digit whose observation is nearest to y."""
    del source  # nothing is drawn
    observed = task.operator(known.train).flatten(1)
    return None, known.train[torch.cdist(task.seen.flatten(1), observed).argmin(1)]


def wiener(known: Known, task: Task, source: torch.Generator) -> Outcome:
    """Return samples and mean of the posterior under a Gaussian prior."""
    posteriors = [known.gaussian.posterior(task.operator, y, task.noise_std) for y in task.seen]
    drawn = torch.stack([p.sample(SAMPLES, generator=source) for p in posteriors])
    return drawn, torch.stack([p.means[0] for p in posteriors]).float()


def by(method: PosteriorScoreSampling | ParticleSampling) -> Restorer:
    """Restore by a method."""

    def restorer(known: Known, task: Task, source: torch.Generator) -> Outcome:
        x = restore(
            known.model, task.observation, EVENT,
            n=SAMPLES, method=method, generator=source, batch_size=1024,
        )  # fmt: skip
        return x, x.mean(1)

    return restorer


def plain(known: Known, task: Task, source: torch.Generator) -> Outcome:
    """Denoise: one evaluation for the mean, a sampler that starts at y for samples."""
    x = denoise(
        known.model, task.seen.reshape(-1, *EVENT), task.noise_std,
        n=SAMPLES, generator=source, batch_size=1024,
    )  # fmt: skip
    return x, denoise(known.model, task.seen.reshape(-1, *EVENT), task.noise_std)


BASELINES: dict[str, Restorer] = {
    "the mean digit": mean_image,
    "nearest training digit": nearest,
    "Gaussian posterior (Wiener)": wiener,
}
RESTORERS: dict[str, Restorer] = {
    "**MMPS**, the default": by(PosteriorScoreSampling()),
    "**particles** on ΠGDM, 16": by(ParticleSampling(PiGDM, particles=16)),
}
DENOISERS: dict[str, Restorer] = {"**denoise**": plain}


def psnr(found: Tensor, truth: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB, by the mean square error over all."""
    error = (found - truth).double().square().mean()
    return 10 * math.log10(4 / float(error))


def bits(known: Known, x: Tensor) -> tuple[float, float]:
    """Return the mean of the model's −log₂ p per pixel, and its standard error over digits."""
    source = torch.Generator().manual_seed(3)
    found = log_likelihood(known.model, x.float(), trace=Hutchinson(4), generator=source)
    each = demo.bits_of(found)
    return float(each.mean()), float(each.std()) / math.sqrt(len(each))


def compare(known: Known, task: Task, truth: Tensor) -> tuple[str, dict[str, Outcome]]:
    """Return the table of a task, and the results."""
    rows, outcomes = [("the truth", "", "", "{:.2f} ± {:.2f}".format(*bits(known, truth)))], {}
    for name, restorer in (BASELINES | (DENOISERS if task.denoises else RESTORERS)).items():
        began = time.perf_counter()
        drawn, mean = restorer(known, task, torch.Generator().manual_seed(2))
        outcomes[name] = drawn, mean
        one = "" if drawn is None else f"{psnr(drawn, truth.unsqueeze(1)):.2f}"
        code_length = "{:.2f} ± {:.2f}".format(*bits(known, mean if drawn is None else drawn[:, 0]))
        rows.append((name, one, f"{psnr(mean, truth):.2f}", code_length))
        print(task.name, rows[-1], f"({time.perf_counter() - began:.0f} s)", flush=True)
    heads = ("", "PSNR of a sample, dB", "PSNR of the estimate, dB", "bits/dim")
    return f"## {task.name[:1].upper()}{task.name[1:]}\n\n{table(heads, rows)}\n", outcomes


def picture(path: Path, truth: Tensor, shown: list[tuple[Task, dict[str, Outcome]]]) -> None:
    """Draw observations and results, a panel for each task."""
    count = 8
    with style():
        canvas = figure(11.0, 8.6, dpi=130)
        for k, (task, outcomes) in enumerate(shown):
            axis = canvas.add_subplot(2, 2, k + 1)
            ours = next(iter(DENOISERS if task.denoises else RESTORERS))
            drawn, mean = outcomes[ours]
            assert drawn is not None
            rows = {
                "truth": truth,
                "seen": task.shown(),
                "sample": drawn[:, 0],
                "another": drawn[:, 1],
                "a third": drawn[:, 2],
                "mean": mean,
                "Wiener": outcomes["Gaussian posterior (Wiener)"][1],
                "nearest": outcomes["nearest training digit"][1],
            }
            images = torch.cat([images[:count].float() for images in rows.values()])
            title = f"{task.name[:1].upper()}{task.name[1:]}"
            sample_grid(images, columns=count, cmap="gray_r", title=title, ax=axis)
            axis.set_yticks([1 + 9 * i + 3.5 for i in range(len(rows))], rows)
            axis.tick_params(axis="y", length=0)
        canvas.savefig(path)


def model(quick: bool) -> ScoreModel:
    """Return the network of `scoresde demo`; trained once, then loaded from the cache."""
    path = problems.CACHE / "restoration.safetensors"
    if quick:
        return problems.model(quick=True)
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        demo.train(digits("digits-train").read(), demo.Effort(), seed=0).score.save(path)
    return ScoreModel.load(path)


def main() -> None:
    """Make the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few digits, a poor network")
    parser.add_argument("--out", type=Path, help="folder for restoration.md and restoration.png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    count = 3 if options.quick else DIGITS
    truth = evaluation_set(digits("digits-test").read()[FIRST : FIRST + count], demo.QUANTIZATION)
    train = evaluation_set(digits("digits-train").read(), demo.QUANTIZATION)
    moments = Moments.of(train)
    assert moments.basis is not None
    covariance = moments.basis @ moments.variance.diag() @ moments.basis.T
    ridge = 1e-4 * torch.eye(64, dtype=torch.float64)
    network = model(options.quick)
    gaussian = GaussianMixture(
        torch.ones(1), moments.mean[None], (covariance + ridge)[None], network.sde
    )
    known = Known(network, train, gaussian)
    chosen = tasks(truth)[2:3] if options.quick else tasks(truth)
    lines, outcomes = [], []
    for task in chosen:
        text, found = compare(known, task, truth)
        lines.append(text)
        outcomes.append((task, found))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        head = (
            "# Held-out digits restored\n\n"
            f"Made by `python benchmarks/restoration.py`: {count} digits, {SAMPLES} samples for "
            f"each, σ_y = {NOISE_STD} unless stated otherwise; CPU, one thread.\n\n{LEGEND}\n"
        )
        (options.out / "restoration.md").write_text("\n".join([head, *lines]), encoding="utf-8")
        panels = [outcomes[i] for i in ((0,) if options.quick else (0, 2, 3, 5))]
        picture(options.out / "restoration.png", truth, panels)


if __name__ == "__main__":
    main()
