"""Does any number of steps give a NaN?

Each sampler with each diffusion, from eight starts, on a mixture of two narrow modes. The table
gives the number of values of N that were tried, and those that failed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sampling.lineup import DEFAULT, PRESETS, SDES, label
from sampling.methods import Method, Ours
from sampling.peers import PEERS
from sampling.problems import Problem
from sampling.tables import table
from scoresde.samplers import SamplingError

SPARSE = (1, 2, 3, 4, 5, 7, 10, 20, 50, 100, 200, 500, 999, 1000, 1001, 2000)
DENSE = tuple(range(1, 201))


def two_modes() -> Problem:
    """Return two narrow modes in the plane."""
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
    covariances = 0.05**2 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    return Problem("two modes", (torch.ones(2), means, covariances))


def failures(method: Method, problem: Problem, noise: Tensor, counts: tuple[int, ...]) -> list[str]:
    """Return which numbers of evaluations fail, and how."""
    failed = []
    for count in counts:
        try:
            outcome = method(problem, noise, count)
        except SamplingError:
            failed.append(f"{count}: NaN")
        except Exception as failure:  # what a peer raises is a result here
            failed.append(f"{count}: {type(failure).__name__}")
        else:
            if outcome is not None and not bool(outcome.y.isfinite().all()):
                failed.append(f"{count}: NaN")
    return failed


def run(quick: bool, _out: Path | None) -> str:
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
            method = Ours(f"{name}, {label(sde)}", sampler, sde, denoise=None)
            cells.append("; ".join(failures(method, problem, noise, counts)) or "none")
        rows.append([name, str(len(counts)), *cells])
    for method in PEERS:
        failed = "; ".join(failures(method, problem, noise, sparse)) or "none"
        rows.append([method.name, str(len(sparse)), failed, "", ""])
        print(rows[-1], flush=True)
    head = ["method", "numbers of evaluations tried", *(f"failed, {label(s)}" for s in SDES)]
    return table(head, rows)
