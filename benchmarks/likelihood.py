"""Exact likelihoods: what an error costs, in evaluations of score and divergence.

    python benchmarks/likelihood.py [--out benchmarks/results/likelihood.md] [--points 16]

Mixtures whose log-density is known (smooth, hard with standard deviations from 0.01 to 0.05, and
anisotropic; d = 2, 16, 64) under VP, sub-VP and VE, points drawn from the data. Three ways through
the probability flow, each with the exact divergence and the true law at T, so that every error is
the solver's:

* ours, `log_likelihood` as it comes, at several tolerances;
* torchdiffeq's dopri5 on the flow in t, per-sample norm;
* the recipe of score_sde: SciPy's RK45 on the whole batch in t, one norm for all, whose right-hand
  side costs two forward passes.

An evaluation is one pass through the score with its divergence, by the whole batch; for ours, whose
samples have their own steps, it is the mean over samples. Told is the cheapest setting from which
on the largest error of the batch stays below the threshold; a dash where no setting does.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from scoresde import VESDE, VPSDE, GaussianMixture, SubVPSDE, log_likelihood
from scoresde._streams import Streams
from scoresde.coordinates import PlainFlow
from scoresde.likelihood import FlowIntegral, Query
from scoresde.solvers import SciPy, Solver, TorchDiffEq
from scoresde.traces import ExactTrace

THRESHOLDS = (1e-2, 1e-3, 1e-4)
TOLERANCES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
RTOLS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)


class Terminal:
    """The true law at T, where a prior is expected."""

    def __init__(self, score: GaussianMixture) -> None:
        self.score = score

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p_T."""
        return self.score.log_prob(x, self.score.sde.T)


def problem(kind: str, d: int, sde: VPSDE | SubVPSDE | VESDE) -> GaussianMixture:
    """Return one of the mixtures."""
    generator = torch.Generator().manual_seed(d)
    count = {"smooth": 5, "hard": 8, "aniso": 4}[kind]
    means = torch.randn(count, d, generator=generator, dtype=torch.float64) * math.sqrt(2 / d)
    if kind == "smooth":
        stds = torch.full((count, d), 0.5, dtype=torch.float64)
    elif kind == "hard":
        stds = torch.logspace(-2, math.log10(0.05), count, dtype=torch.float64)
        stds = stds.unsqueeze(1).expand(count, d)
    else:
        wide = max(1, d // 8)
        stds = torch.full((count, d), 0.03, dtype=torch.float64)
        stds[:, :wide] = torch.logspace(0, -1, wide, dtype=torch.float64)
    turned = torch.linalg.qr(torch.randn(count, d, d, generator=generator, dtype=torch.float64))[0]
    covariances = turned @ torch.diag_embed(stds**2) @ turned.mT
    return GaussianMixture(torch.ones(count), means, (covariances + covariances.mT) / 2, sde)


def errors_in_bits(score: GaussianMixture, x: Tensor, log_prob: Tensor) -> Tensor:
    """Return the errors of log p, in bits per dimension."""
    truth = score.log_prob(x, score.sde.t_min)
    return (log_prob - truth).abs() / (x.shape[1] * math.log(2))


def ours(score: GaussianMixture, x: Tensor) -> list[tuple[float, float]]:
    """Return cost and largest error at every tolerance."""
    rows = []
    for tolerance in TOLERANCES:
        prior = Terminal(score)
        result = log_likelihood(score, x, tolerance=tolerance, prior=prior, trace=ExactTrace())
        cost = float(result.evaluations.double().mean())
        rows.append((cost, float(errors_in_bits(score, x, result.log_prob).max())))
    return rows


def peer(score: GaussianMixture, x: Tensor, solver: type[Solver]) -> list[tuple[float, float]]:
    """Return cost and largest error of a solver library at every tolerance."""
    rows = []
    for rtol in RTOLS:
        if solver is SciPy:
            method: Solver = SciPy("RK45", rtol=rtol, atol=rtol, coupled=True)
        else:
            method = TorchDiffEq("dopri5", rtol=rtol, atol=rtol)
        flow = PlainFlow(score, x.shape[1:])
        streams = Streams.draw(len(x), torch.Generator().manual_seed(0))
        query = Query(flow, ExactTrace(), method, 1e-3, Terminal(score), streams)
        with torch.no_grad():
            result = FlowIntegral()(query, x, torch.arange(len(x)))
        cost = float(result.evaluations.double().max())
        rows.append((cost, float(errors_in_bits(score, x, result.log_prob).max())))
    return rows


def cheapest(rows: list[tuple[float, float]], threshold: float) -> float:
    """Cost of the first setting from which on the error stays below; infinite if there is none."""
    best = math.inf
    for cost, error in sorted(rows, reverse=True):
        if not error <= threshold:
            break
        best = cost
    return best


def main() -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the table there, as Markdown")
    parser.add_argument("--points", type=int, default=16, help="points per problem")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 16, 64])
    options = parser.parse_args()
    torch.set_num_threads(1)
    ways = {
        "ours": ours,
        "torchdiffeq dopri5": lambda score, x: peer(score, x, TorchDiffEq),
        "score_sde recipe": lambda score, x: peer(score, x, SciPy),
    }
    lines = [
        "| problem | " + " | ".join(ways) + " | ours at default: evaluations, largest error |",
        "|---|" + "---|" * (len(ways) + 1),
    ]
    means: dict[str, list[list[float]]] = {name: [[] for _ in THRESHOLDS] for name in ways}
    for sde in (VPSDE(), SubVPSDE(), VESDE()):
        for kind in ("smooth", "hard", "aniso"):
            for d in options.dimensions:
                began = time.perf_counter()
                score = problem(kind, d, sde)
                generator = torch.Generator().manual_seed(1)
                x = score.sample(options.points, sde.t_min, generator, dtype=torch.float64)
                cells = []
                for name, way in ways.items():
                    rows = way(score, x)
                    costs = [cheapest(rows, threshold) for threshold in THRESHOLDS]
                    for kept, cost in zip(means[name], costs, strict=True):
                        kept.append(cost)
                    cells.append(" / ".join(f"{c:.0f}" if c < math.inf else "–" for c in costs))
                default = log_likelihood(score, x, prior=Terminal(score))
                error = float(errors_in_bits(score, x, default.log_prob).max())
                cells.append(f"{default.evaluations.double().mean():.0f}, {error:.1e}")
                lines.append(f"| {type(sde).__name__} {kind} d={d} | " + " | ".join(cells) + " |")
                print(lines[-1], f"({time.perf_counter() - began:.0f} s)", flush=True)
    cells = []
    for name in ways:
        geometric = [
            math.exp(sum(math.log(c) for c in kept if c < math.inf) / max(1, n)) if n else math.nan
            for kept in means[name]
            for n in [sum(c < math.inf for c in kept)]
        ]
        reached = [sum(c < math.inf for c in kept) for kept in means[name]]
        cells.append(" / ".join(f"{g:.0f} ({n})" for g, n in zip(geometric, reached, strict=True)))
    lines.append("| **geometric mean (problems reached)** | " + " | ".join(cells) + " | |")
    print(lines[-1])
    if options.out:
        head = (
            "# Likelihood: evaluations to reach a largest error of 1e-2 / 1e-3 / 1e-4 bits/dim\n\n"
            "Made by `python benchmarks/likelihood.py`, on the CPU, float64. An evaluation of the "
            "score_sde recipe costs two forward passes, of the others one.\n\n"
        )
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
