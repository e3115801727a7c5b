"""Does any number of steps give a NaN?

Every sampler under every diffusion from eight starts, with each N listed, on a mixture of two
narrow modes; told is the number of settings of N tried, and those that failed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sampling.lineup import DEFAULT, PRESETS, SDES, label
from sampling.peers import PEERS
from sampling.problems import Problem
from sampling.tables import table
from sampling.ways import Ours, Way
from scoresde.samplers import SamplingError

SPARSE = (1, 2, 3, 4, 5, 7, 10, 20, 50, 100, 200, 500, 999, 1000, 1001, 2000)
DENSE = tuple(range(1, 201))


def two_modes() -> Problem:
    """Return two narrow modes in the plane."""
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
    covariances = 0.05**2 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    return Problem("two modes", (torch.ones(2), means, covariances))


def failures(way: Way, problem: Problem, noise: Tensor, counts: tuple[int, ...]) -> list[str]:
    """Return which numbers of evaluations fail, and how."""
    failed = []
    for count in counts:
        try:
            outcome = way(problem, noise, count)
        except SamplingError:
            failed.append(f"{count}: NaN")
        except Exception as failure:  # what a peer raises is a result here
            failed.append(f"{count}: {type(failure).__name__}")
        else:
            if outcome is not None and not bool(outcome.y.isfinite().all()):
                failed.append(f"{count}: NaN")
    return failed


def run(quick: bool, out: Path | None) -> str:
    """Measure, and return the report."""
    problem = two_modes()
    noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sparse = SPARSE[:7] if quick else SPARSE
    dense = DENSE[:10] if quick else tuple(sorted({*DENSE, *SPARSE}))
    rows = []
    for name, sampler in {"ours: default": DEFAULT, **PRESETS}.items():
        counts = dense if sampler is DEFAULT else sparse
        cells = []
        for sde in SDES:
            way = Ours(f"{name}, {label(sde)}", sampler, sde, denoise=None)
            cells.append("; ".join(failures(way, problem, noise, counts)) or "none")
        rows.append([name, str(len(counts)), *cells])
    for way in PEERS:
        failed = "; ".join(failures(way, problem, noise, sparse)) or "none"
        rows.append([way.name, str(len(sparse)), failed, "", ""])
        print(rows[-1], flush=True)
    head = ["way", "numbers of evaluations tried", *(f"failed, {label(s)}" for s in SDES)]
    return table(head, rows)
