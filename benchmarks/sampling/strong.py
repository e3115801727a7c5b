"""Strong error: the distance from the end of the exact flow with the same start.

The median over 512 paths (128 for all samplers) of the root-mean-square error per coordinate, in VE
coordinates y = x/α, against DOP853 at 1e-10 between the first and the last time of the method.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import torch

from sampling.lineup import DEFAULT, SDES, default_on, deterministic, label
from sampling.methods import DPMSolver2M, Method, karras, uniform_logsnr, uniform_time
from sampling.peers import DIFFUSERS_2M, PEERS
from sampling.problems import PROBLEMS, Problem, Reference, held_out
from sampling.tables import number, table
from scoresde import GaussianSDE

BUDGETS = (5, 10, 20, 50)
ORDERS = (50, 200, 400)
GRIDS = {"log-SNR": uniform_logsnr, "Karras": karras, "uniform t": uniform_time}


def error(method: Method, reference: Reference, evaluations: int) -> tuple[int, float]:
    """Return the evaluations made and the median error; infinite where it cannot or blows up."""
    outcome = method(reference.problem, reference.noise, evaluations)
    if outcome is None:
        return evaluations, math.inf
    off = outcome.y - reference(outcome.start, outcome.end)
    median = float(off.square().mean(1).sqrt().median())
    return outcome.evaluations, median if math.isfinite(median) else math.inf


def make_reference(problem: Problem, paths: int) -> Reference:
    """Return the flow of a problem from ``paths`` seeded starts."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(paths, problem.dimension, generator=generator, dtype=torch.float64)
    return Reference(problem, noise)


def rivals(sde: GaussianSDE) -> tuple[Method, ...]:
    """Return DPM-Solver++(2M) on every published grid and end, from the start of a diffusion."""
    start, own = (math.exp(-float(sde.half_logsnr(t))) for t in (sde.T, sde.t_min))
    ends = sorted({0.01, 0.002, own})
    methods = [
        DPMSolver2M(f"2M, {name} to {end:.2g}", spacing, start, end)
        for name, spacing in GRIDS.items()
        for end in ends
    ]
    return (*methods, *(DIFFUSERS_2M if label(sde) == "VP" else ()))


def headline(problems: Sequence[Problem], paths: int) -> str:
    """Return the table of our one default against DPM-Solver++(2M) at its best."""
    rows, ratios = [], {kind: {n: [] for n in BUDGETS} for kind in ("known", "unknown")}
    for problem in problems:
        reference = make_reference(problem, paths)
        for sde in SDES:
            ours = {
                kind: [error(default_on(sde, kind == "known"), reference, n)[1] for n in BUDGETS]
                for kind in ratios
            }
            theirs = [
                min((error(method, reference, n)[1], method.name) for method in rivals(sde))
                for n in BUDGETS
            ]
            for kind, errors in ours.items():
                for n, mine, (best, _) in zip(BUDGETS, errors, theirs, strict=True):
                    ratios[kind][n].append(mine / best)
            names = [name.removeprefix("2M, ").removeprefix("diffusers ") for _, name in theirs]
            rows.append(
                [
                    f"{problem.name} {label(sde)}",
                    " / ".join(number(e) for e in ours["known"]),
                    " / ".join(number(best) for best, _ in theirs),
                    " / ".join(f"{ratios['known'][n][-1]:.2g}" for n in BUDGETS),
                    " / ".join(f"{ratios['unknown'][n][-1]:.2g}" for n in BUDGETS),
                    f"{names[1]}; {names[2]}",
                ]
            )
            print(" | ".join(rows[-1]), flush=True)
    means = [
        " / ".join(f"**{_geometric(values[n]):.2g}**" for n in BUDGETS)
        for values in ratios.values()
    ]
    rows.append(["**geometric mean**", "", "", *means, ""])
    at = " / ".join(map(str, BUDGETS))
    head = [
        "problem", f"ours at {at}", f"2M, best grid, at {at}", "ratio", "ratio, moments unknown",
        "2M's best grid at 10; 20",
    ]  # fmt: skip
    return table(head, rows)


def all_samplers(problems: Sequence[Problem], paths: int, orders: bool = True) -> str:
    """Return the table of all deterministic methods, ours under VP."""
    references = [make_reference(problem, paths) for problem in problems]
    rows = []
    for method in (*deterministic(SDES[0]), *(peer for peer in PEERS if not peer.random)):
        cells = [
            " / ".join(number(error(method, reference, n)[1]) for n in BUDGETS)
            for reference in references
        ]
        rows.append([method.name, *cells, _orders(method, references[-1]) if orders else "–"])
        print(" | ".join(rows[-1]), flush=True)
    spans = ", ".join(f"{a}→{b}" for a, b in pairwise(ORDERS))
    head = ["method", *(p.name for p in problems), f"order {spans} ({problems[-1].name})"]
    return table(head, rows)


def _orders(method: Method, reference: Reference) -> str:
    few = Reference(reference.problem, reference.noise[:64])
    points = [error(method, few, n) for n in ORDERS]
    slopes = []
    for (n, coarse), (m, fine) in pairwise(points):
        known = 0 < fine < math.inf and coarse < math.inf
        slopes.append(f"{math.log(coarse / fine) / math.log(m / n):.1f}" if known else "–")
    return ", ".join(slopes)


def _geometric(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def run(quick: bool, _out: Path | None) -> str:
    """Measure, and return the report."""
    problems = PROBLEMS[:2] if quick else PROBLEMS
    paths = 32 if quick else 512
    parts = [
        f"### One default, no tuning: `{DEFAULT}`\n",
        headline(problems, paths),
        "\nThe same on problems that were not used to choose any setting:\n",
        headline(held_out()[:1] if quick else held_out(), paths),
        "\n### All samplers, error at " + " / ".join(map(str, BUDGETS)) + " evaluations\n",
        all_samplers(problems[:1] if quick else problems, 32 if quick else 128, orders=not quick),
    ]
    return "\n".join(parts)
