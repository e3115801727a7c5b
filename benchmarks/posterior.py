"""Posterior sampling: how far each method's samples are from the exact posterior.

    python benchmarks/posterior.py [--quick] [--out benchmarks/results]

Mixtures of eight Gaussians with standard deviations from 0.15 to 0.5 in d = 2, 16 and 64 under VP,
observed through a random matrix of d/4 rows (one for d = 2), noise σ_y = 0.1: the posterior is a
mixture again, in closed form. The score is exact, so that the error is that of the method alone.
Every method draws as many samples for each of several observations; figures are their means:

* mean: distance of the means over √(tr C), C the covariance of the posterior;
* trace: that of the samples' covariance over tr C; 1 is right, below is too narrow;
* covariance: Frobenius norm of the error of the samples' covariance over that of C;
* modes: half the L1 distance of the mode weights, between 0 and 1;
* SW2: sliced 2-Wasserstein distance to exact samples, over √(tr C/d);
* misfit: E‖y − A x‖² over its value under the posterior.

Exact samples show the sampling error of each. An evaluation is one call of the denoiser on a
sample, products are those with its Jacobian, a backward pass each; for particles they are per
particle.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scoresde import VPSDE, GaussianMixture, Moments, Score, sample
from scoresde.inverse_problems import (
    DPS,
    MMPS,
    DiffPIR,
    Imputation,
    NormalizedDPS,
    Observation,
    Particles,
    PiGDM,
    PosteriorScore,
    RePaint,
    restore,
    twisted_smc,
)
from scoresde.operators import Matrix
from scoresde.samplers import Ancestral, Exponential, Sampler, UniformLogSNR

FLOW, SDE = Exponential(3), Exponential(3, eta=1.0)
NOISE_STD = 0.1
EXACT = "exact samples (sampling error)"
LEGEND = __doc__.split("\n\n", 2)[2]


@dataclass(frozen=True)
class Problem:
    """A prior, what is seen of a draw from it, and the exact posterior."""

    prior: GaussianMixture
    seen: Observation
    exact: GaussianMixture

    @classmethod
    def draw(cls, d: int, seed: int) -> Problem:
        """Return the problem with the given seed; the prior depends on d alone."""
        fixed = torch.Generator().manual_seed(d)
        means = 1.5 * _normal(fixed, 8, d) * math.sqrt(2 / d)
        stds = 0.15 + 0.35 * torch.rand(8, d, generator=fixed, dtype=torch.float64)
        turned = torch.linalg.qr(_normal(fixed, 8, d, d))[0]
        covariances = turned @ torch.diag_embed(stds**2) @ turned.mT
        weights = torch.rand(8, generator=fixed, dtype=torch.float64) + 0.2
        prior = GaussianMixture(weights, means, 0.5 * (covariances + covariances.mT), VPSDE())
        operator = Matrix(_normal(fixed, max(1, d // 4), d) / math.sqrt(d))
        own = torch.Generator().manual_seed(1000 + seed)
        clean = operator(prior.sample(1, generator=own, dtype=torch.float64))
        y = clean + NOISE_STD * _normal(own, *clean.shape)
        exact = prior.posterior(operator, y[0], NOISE_STD)
        return cls(prior, Observation(operator, y, NOISE_STD), exact)

    @property
    def d(self) -> int:
        """The dimension."""
        return self.prior.event_shape[0]

    @property
    def evidence(self) -> float:
        """Log p(y)."""
        return float(self.prior.evidence(self.seen.operator, self.seen.y, NOISE_STD))

    @property
    def noiseless(self) -> Observation:
        """The observation as the methods see it that reproduce y to the letter."""
        return Observation(self.seen.operator, self.seen.y)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


Method = Callable[[Problem, int, torch.Generator], Tensor]


def by_score(make: Callable[[Problem], Score], sampler: Sampler = SDE, steps: int = 100) -> Method:
    """Draw from a posterior score with a sampler."""

    def draw(problem: Problem, n: int, generator: torch.Generator) -> Tensor:
        options = {"steps": steps, "times": UniformLogSNR(), "generator": generator}
        return sample(make(problem), (n, problem.d), sampler, **options)

    return draw


def by_steps(make: Callable[[Observation], Sampler], seen: str, steps: int = 100) -> Method:
    """Draw from the prior with a sampler built from the observation."""

    def draw(problem: Problem, n: int, generator: torch.Generator) -> Tensor:
        options = {"steps": steps, "times": UniformLogSNR(), "generator": generator}
        sampler = make(getattr(problem, seen))
        return sample(problem.prior, (n, problem.d), sampler, **options)

    return draw


def by_particles(make: Callable[[Problem], PosteriorScore], particles: int) -> Method:
    """Draw from the weighted particles of one run."""

    def draw(problem: Problem, n: int, generator: torch.Generator) -> Tensor:
        return cloud(problem, make(problem), particles, generator).draw(n, generator)[0]

    return draw


def cloud(
    problem: Problem, posterior: PosteriorScore, particles: int, generator: torch.Generator
) -> Particles:
    """Run particles."""
    options = {"steps": 100, "generator": generator, "batch_size": 4096}
    return twisted_smc(posterior, (particles, problem.d), **options)


def exact_samples(problem: Problem, n: int, generator: torch.Generator) -> Tensor:
    """Draw from the exact posterior."""
    return problem.exact.sample(n, generator=generator)


def by_default(problem: Problem, n: int, generator: torch.Generator) -> Tensor:
    """Draw with the default method of ``restore``."""
    return restore(problem.prior, problem.seen, (problem.d,), n=n, generator=generator)[0]


def damped(problem: Problem) -> DPS:
    """Return DPS with the curvature of the likelihood."""
    norm = float(torch.linalg.matrix_norm(problem.seen.operator.matrix((problem.d,)), 2))
    return DPS(problem.prior, problem.seen, curvature=(norm / NOISE_STD) ** 2)


METHODS: dict[str, tuple[Method, str]] = {
    EXACT: (exact_samples, "–"),
    "the prior, y ignored": (by_score(lambda p: p.prior), "100"),
    "Imputation": (by_steps(lambda o: Imputation(Ancestral(), o), "noiseless"), "100"),
    "RePaint, 10 rounds": (by_steps(lambda o: RePaint(Ancestral(), o), "noiseless"), "1000"),
    "DDNM": (by_score(lambda p: DiffPIR(p.prior, p.seen, weight=0.0)), "100"),
    "DiffPIR, λ = 1": (by_score(lambda p: DiffPIR(p.prior, p.seen)), "100"),
    "DPS as published, ζ = 0.3": (
        by_steps(lambda o: NormalizedDPS(Ancestral(), o, step_size=0.3), "seen", 1000),
        "2000 + 1000 products",
    ),
    "DPS as Bayes' theorem": (
        by_score(lambda p: DPS(p.prior, p.seen), Ancestral(), 1000),
        "1000 + 1000 products",
    ),
    "DPS, curvature ‖A‖²/σ_y²": (by_score(damped), "100 + 100 products"),
    "ΠGDM, variance 1": (
        by_score(lambda p: PiGDM(p.prior, p.seen, Moments())),
        "100 + 100 products",
    ),
    "ΠGDM, the data's moments": (
        by_score(lambda p: PiGDM(p.prior, p.seen)),
        "100 + 100 products",
    ),
    "the same by the flow": (
        by_score(lambda p: PiGDM(p.prior, p.seen), FLOW, 30),
        "30 + 30 products",
    ),
    "MMPS": (by_score(lambda p: MMPS(p.prior, p.seen)), "100 + at most 600 products"),
    "MMPS as `restore` uses it": (by_default, "100 + at most 600 products"),
    "MMPS by the flow": (
        by_score(lambda p: MMPS(p.prior, p.seen), FLOW, 30),
        "30 + at most 180 products",
    ),
}
"""Each method, and its evaluations for a sample."""

PARTICLES = (16, 64, 256, 1024)
for _count in PARTICLES:
    METHODS[f"**particles** on MMPS, {_count}"] = (
        by_particles(lambda p: MMPS(p.prior, p.seen), _count),
        "101 + at most 600 products",
    )
METHODS["**particles** on ΠGDM, 1024"] = (
    by_particles(lambda p: PiGDM(p.prior, p.seen), 1024),
    "101 + 100 products",
)


def errors(problem: Problem, x: Tensor) -> list[float]:
    """Return the distances of samples ``(n, d)`` from the exact posterior."""
    exact, x = problem.exact, x.double()
    trace = float(exact.moments.variance.sum())
    basis, variance = exact.moments.basis, exact.moments.variance
    assert basis is not None
    covariance = basis @ variance.diag() @ basis.T
    source = torch.Generator().manual_seed(7)
    directions = torch.nn.functional.normalize(_normal(source, problem.d, 64), dim=0)
    reference = exact.sample(len(x), generator=source, dtype=torch.float64)
    a, b = ((v @ directions).sort(dim=0).values for v in (x, reference))
    components = torch.distributions.MultivariateNormal(exact.means, exact.covariances)
    modes = torch.softmax(exact.weights.log() + components.log_prob(x.unsqueeze(1)), 1).mean(0)
    misfit, exact_misfit = (
        float(problem.seen.residual(v).square().sum(1).mean()) for v in (x, reference)
    )
    return [
        float((x.mean(0) - exact.moments.mean).norm()) / math.sqrt(trace),
        float(x.var(0).sum()) / trace,
        float((torch.cov(x.T) - covariance).norm() / covariance.norm()),
        0.5 * float((modes - exact.weights).abs().sum()),
        float((a - b).square().mean().sqrt()) / math.sqrt(trace / problem.d),
        misfit / exact_misfit,
    ]


SW2 = 4
"""Index of the error in the summary sentence."""


def summary(rows: dict[str, list[float]]) -> str:
    """Return a sentence about a table: the most and least accurate methods."""
    found = {name: values[SW2] for name, values in rows.items() if name != EXACT}
    exact = {name: value for name, value in found.items() if "particles" in name}
    near = sorted(found.keys() - exact.keys(), key=lambda name: found[name])
    words = "; ".join(f"{name} {found[name]:.2g}" for name in near[:4])
    ends = "; ".join(f"{name.replace('**', '')} {value:.2g}" for name, value in exact.items())
    worst = f"{near[-2]} {found[near[-2]]:.2g}"
    return (
        f"SW2 of exact samples is {rows[EXACT][SW2]:.2g}. Most accurate without particles: {words}"
        f"; least accurate: {worst}; the prior itself: {found['the prior, y ignored']:.2g}. "
        f"With particles: {ends}."
    )


def table(d: int, observations: int, n: int) -> list[str]:
    """Return the lines of the table of one dimension."""
    problems = [Problem.draw(d, seed) for seed in range(observations)]
    lines = [
        f"## d = {d}",
        "",
        "| method | mean | trace | covariance | modes | SW2 | misfit | evaluations of a sample |",
        "|---|---|---|---|---|---|---|---|",
    ]
    means: dict[str, list[float]] = {}
    for name, (method, cost) in METHODS.items():
        began = time.perf_counter()
        rows = []
        for k, problem in enumerate(problems):
            x = method(problem, n, torch.Generator().manual_seed(k))
            rows.append(errors(problem, x))
        means[name] = torch.tensor(rows).mean(0).tolist()
        cells = " | ".join(f"{value:.3g}" for value in means[name])
        lines.append(f"| {name} | {cells} | {cost} |")
        print(d, lines[-1], f"({time.perf_counter() - began:.0f} s)", flush=True)
    return [*lines, "", summary(means), ""]


def growth(dimensions: list[int], runs: int, counts: tuple[int, ...]) -> list[str]:
    """Return tables of the errors against the number of particles, over independent runs."""
    heads = "| d | " + " | ".join(f"{count} particles" for count in counts) + " |"
    rule, means, logs = "|---" * (len(counts) + 1) + "|", [], []
    for d in dimensions:
        problem = Problem.draw(d, 0)
        seen = Observation(problem.seen.operator, problem.seen.y.repeat(runs, 1), NOISE_STD)
        exact, scale = problem.exact.moments.mean, problem.exact.moments.variance.sum().sqrt()
        cells: tuple[list[str], list[str]] = [], []
        for count in counts:
            source = torch.Generator().manual_seed(count)
            found = cloud(problem, MMPS(problem.prior, seen), count, source)
            mean_error = (found.mean().double() - exact).square().sum(1).mean().sqrt() / scale
            error = found.log_evidence - problem.evidence
            cells[0].append(f"{mean_error:.3f} (ESS {float(found.ess.mean()) / count:.0%})")
            cells[1].append(f"{error.mean():+.3f} ± {error.std():.3f}")
            print(d, count, cells[0][-1], cells[1][-1], flush=True)
        for lines, values in zip((means, logs), cells, strict=True):
            lines.append(f"| {d} | " + " | ".join(values) + " |")
    return [
        "## Convergence in the number of particles",
        "",
        f"Particles on MMPS, {runs} independent runs on one observation. Posterior mean: root mean "
        "square of its error over √(tr C), and the effective sample size of the final weights; "
        "without bias it is proportional to 1/√particles.",
        "",
        *(heads, rule, *means),
        "",
        "log p(y) in nats: mean and standard deviation over runs of its error.",
        "",
        *(heads, rule, *logs),
        "",
    ]


SHOWN = (
    EXACT,
    "Imputation",
    "RePaint, 10 rounds",
    "DiffPIR, λ = 1",
    "ΠGDM, the data's moments",
    "MMPS",
    "DPS as Bayes' theorem",
    "**particles** on MMPS, 1024",
)


def picture(path: Path, n: int) -> None:
    """Draw samples of some methods over the exact posterior of a problem in the plane."""
    import matplotlib.pyplot as plt

    def modes(problem: Problem) -> float:
        return float(1 / problem.exact.weights.square().sum())

    problem = max((Problem.draw(2, seed) for seed in range(50)), key=modes)
    exact = problem.exact.sample(4000, generator=torch.Generator().manual_seed(0))
    middle, reach = exact.mean(0), 1.1 * float((exact - exact.mean(0)).abs().max())
    line = torch.linspace(-reach, reach, 200)
    grid = torch.cartesian_prod(line, line) + middle
    density = problem.exact.log_prob(grid, 1e-4).exp().reshape(200, 200).T.sqrt()
    figure, axes = plt.subplots(2, 4, figsize=(12, 6.2), layout="constrained")
    extent = [float(middle[i] + sign * reach) for i in (0, 1) for sign in (-1, 1)]
    for axis, name in zip(axes.flat, SHOWN, strict=True):
        x = METHODS[name][0](problem, n, torch.Generator().manual_seed(1))
        axis.imshow(density, origin="lower", extent=extent, cmap="Blues", aspect="equal")
        axis.plot(*x.T, ".", color="#c0392b", markersize=1.5, alpha=0.6)
        distance = errors(problem, x)[4]
        axis.set_title(f"{name.replace('**', '')}\nSW2 {distance:.2f}", fontsize=9)
        axis.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


def main() -> None:
    """Make the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one observation, few samples")
    parser.add_argument("--out", type=Path, help="folder for posterior.md and posterior.png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dimensions, observations, n = ([2], 1, 200) if options.quick else ([2, 16, 64], 6, 500)
    lines = [line for d in dimensions for line in table(d, observations, n)]
    counts, runs = ((16, 64), 3) if options.quick else ((16, 64, 256, 1024), 8)
    lines += growth(dimensions, runs, counts)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        head = (
            "# Posterior samples against the exact posterior\n\n"
            f"Made by `python benchmarks/posterior.py`: {n} samples for each of {observations} "
            "observations, CPU, one thread.\n\n"
            f"{LEGEND}\n"
        )
        (options.out / "posterior.md").write_text("\n".join([head, *lines]), encoding="utf-8")
        picture(options.out / "posterior.png", n)


if __name__ == "__main__":
    main()
