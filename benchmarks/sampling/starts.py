"""The law again, from many starts: what is the sampler's and what is the draw's.

A set of samples has a distance of its own from the law, and so has a set that a sampler makes of
its starts: one set of 20 000 tells a sampler from the exact law only roughly. Here every way runs
from eight sets of starts. Told are mean and standard deviation over them of sliced W2 over its
floor and of NLL − H over its limit, both as on the page of the law, and in the first row those of
exact sets: a sampler is at the floor where its means are those of the exact sets within their
error, which is the standard deviation over √8, and its law is right where both are at most 1.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import torch

from sampling.law import Judge, Law, _noises
from sampling.lineup import SDES, default_on
from sampling.peers import DIFFUSERS_2M, PEERS
from sampling.problems import PROBLEMS
from sampling.tables import table
from sampling.ways import Way

LADDER = (10, 12, 16, 20, 30, 50)
STARTS = tuple(range(100, 108))
RIVALS = ("diffusers DPM++2M (Lu)", "flow_matching heun3")


def told(laws: list[Law]) -> str:
    """Return the means and standard deviations of both measures."""
    if not all(math.isfinite(law.excess) for law in laws):
        return "NaN"
    columns = [law.sliced for law in laws], [law.nll for law in laws]
    return "; ".join(
        f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" for values in columns
    )


def ways() -> list[Way]:
    """Return our default, and the rivals that come nearest."""
    ours = [default_on(sde, denoise=None) for sde in SDES]
    rivals = {way.name: way for way in (*DIFFUSERS_2M, *PEERS) if way.name in RIVALS}
    return [*ours, *rivals.values()]


def run(quick: bool, out: Path | None) -> str:
    """Measure, and return the report."""
    ladder, starts = ((8, 12), STARTS[:2]) if quick else (LADDER, STARTS)
    parts = []
    for problem in PROBLEMS[: 1 if quick else 2]:
        judge = Judge(problem, 500 if quick else problem.samples, 5 if quick else 40)
        generator = torch.Generator().manual_seed(77)
        exact = [judge(judge._exact(generator)) for _ in range(3 * len(starts))]
        rows = [["exact sets", *([told(exact)] * len(ladder))]]
        for way in ways():
            cells = []
            for evaluations in ladder:
                outcomes = [
                    way(problem, noise, evaluations)
                    for noise in _noises(judge.samples, problem.dimension, starts)
                ]
                laws = [judge(outcome.y) for outcome in outcomes if outcome is not None]
                cells.append(told(laws) if laws else "–")
            rows.append([way.name, *cells])
            print(problem.name, " | ".join(rows[-1]), flush=True)
        head = ["W2 over floor; NLL − H over limit", *map(str, ladder)]
        parts.append(f"## {problem.name}\n\n{table(head, rows)}")
    return "\n\n".join(parts)
