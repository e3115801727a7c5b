"""The distribution of the samples from many starts: the error of the sampler and that of the draw.

A finite set of exact samples has a distance from the distribution of the data, and so has a set of
samples from any starts: one set of 20 000 samples measures the error of a sampler only roughly.
Here each method runs from eight sets of starts. The table gives mean and standard deviation over
them of sliced W2 relative to its 95 % quantile and of NLL − H relative to its limit, both as in
samplers_distribution.md, and in the first row those of exact sets. No error of a sampler is found
where its means agree with those of the exact sets within their standard error, which is the
standard deviation over √8; its distribution is right where both are at most 1.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import torch

from sampling.distribution import Comparison, Discrepancy, noises
from sampling.lineup import SDES, default_on
from sampling.methods import Method
from sampling.peers import DIFFUSERS_2M, PEERS
from sampling.problems import PROBLEMS
from sampling.tables import table

EVALUATIONS = (10, 12, 16, 20, 30, 50)
STARTS = tuple(range(100, 108))
RIVALS = ("diffusers DPM++2M (Lu)", "flow_matching heun3")


def summary(found: list[Discrepancy]) -> str:
    """Return the means and standard deviations of both measures."""
    if not all(math.isfinite(d.excess) for d in found):
        return "NaN"
    columns = [d.sliced for d in found], [d.nll for d in found]
    return "; ".join(
        f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" for values in columns
    )


def methods() -> list[Method]:
    """Return our default, and the closest competitors."""
    ours = [default_on(sde, denoise=None) for sde in SDES]
    rivals = {method.name: method for method in (*DIFFUSERS_2M, *PEERS) if method.name in RIVALS}
    return [*ours, *rivals.values()]


def run(quick: bool, _out: Path | None) -> str:
    """Measure, and return the report."""
    numbers, starts = ((8, 12), STARTS[:2]) if quick else (EVALUATIONS, STARTS)
    parts = []
    for problem in PROBLEMS[: 1 if quick else 2]:
        comparison = Comparison(problem, 500 if quick else problem.samples, 5 if quick else 40)
        generator = torch.Generator().manual_seed(77)
        exact = [comparison(comparison._exact(generator)) for _ in range(3 * len(starts))]
        rows = [["exact sets", *([summary(exact)] * len(numbers))]]
        for method in methods():
            cells = []
            for evaluations in numbers:
                outcomes = [
                    method(problem, noise, evaluations)
                    for noise in noises(comparison.samples, problem.dimension, starts)
                ]
                found = [comparison(outcome.y) for outcome in outcomes if outcome is not None]
                cells.append(summary(found) if found else "–")
            rows.append([method.name, *cells])
            print(problem.name, " | ".join(rows[-1]), flush=True)
        head = ["W2 / quantile; (NLL − H) / limit", *map(str, numbers)]
        parts.append(f"## {problem.name}\n\n{table(head, rows)}")
    return "\n\n".join(parts)
