"""Wall time of a whole solve over that of its bare network calls."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from density.problems import OneProductTrace, Problem
from density.tables import table
from density.ways import OURS, PEERS, ScoreSDE, TorchDiffEq, Way
from torch import Tensor, nn

from scoresde import VPSDE, ScoreModel
from scoresde.networks import UNet
from scoresde.traces import Hutchinson


class Recorded(nn.Module):
    """A network that notes how it is called."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls: list[tuple[Tensor, Tensor, bool]] = []

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Note the input and whether a gradient will be asked for."""
        self.calls.append((x.detach().clone(), label.detach().clone(), torch.is_grad_enabled()))
        return self.network(x, label)


def bare(network: nn.Module, calls: list[tuple[Tensor, Tensor, bool]]) -> None:
    """Repeat calls, each with one product if it came with gradients."""
    for x, label, backward in calls:
        with torch.set_grad_enabled(backward):
            y = network(x.requires_grad_(backward), label)
            if backward:
                torch.autograd.grad(y, x, torch.ones_like(y))


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def run(quick: bool, out: Path | None) -> str:
    """Time every library on two networks, and the same calls without it."""
    small, larger = (8, (3, 8, 8), 4), (16, (3, 8, 8), 4)
    if not quick:
        small, larger = (16, (3, 16, 16), 8), (32, (3, 32, 32), 8)
    peers = [way for way in PEERS if isinstance(way, TorchDiffEq | ScoreSDE)]
    return "\n\n".join(
        (
            "Part of what a solve takes beyond its calls is memory that a call gives back to the "
            "system and the next one asks for again. The bare calls, whose last result lives on, "
            "have a third of the page faults; without any (`MALLOC_TRIM_THRESHOLD_` and "
            "`MALLOC_MMAP_THRESHOLD_` set high) calls in a solve take as long as bare ones.",
            section(*small, (OURS, *PEERS), 1 if quick else 5),
            section(*larger, (OURS, *peers), 1 if quick else 2),
        )
    )


def section(
    width: int, event: tuple[int, ...], size: int, ways: Sequence[Way], repeats: int
) -> str:
    """Time libraries on a U-Net."""
    torch.manual_seed(0)
    network = Recorded(UNet(event[0], width=width))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.02)
    model = ScoreModel(network, VPSDE())
    x = torch.randn(size, *event, generator=torch.Generator().manual_seed(1))
    prior = model.sde.prior(event, dtype=torch.float64)
    problem = Problem("U-Net", model, model, None, prior, x, torch.zeros(size, dtype=torch.float64))
    rows = [row(way, problem, network, repeats) for way in ways]
    heads = ("library", "evaluations", "network calls", "solve, s", "bare calls, s", "ratio")
    parameters = sum(p.numel() for p in network.parameters())
    return (
        f"A U-Net of {parameters:,} parameters on {size} images of shape {event} in float32, one "
        f"probe, untrained; least of {repeats} times each, taken in turn.\n\n" + table(heads, rows)
    )


def row(way: Way, problem: Problem, network: Recorded, repeats: int) -> tuple[str, ...]:
    """Time one library."""
    trace = Hutchinson() if way is OURS else OneProductTrace()
    tolerance = 1e-3 if way is OURS else 1e-4

    def solve() -> None:
        outcome.append(way.solve(problem, tolerance, trace).evaluations)

    outcome: list[float] = []
    solve()
    network.calls.clear()
    whole, calls = math.inf, math.inf
    for _ in range(repeats):
        network.calls.clear()
        whole = min(whole, seconds(solve))
        recorded = list(network.calls)
        again = partial(bare, network.network, recorded)
        calls = min(calls, seconds(again))
    return (
        way.name,
        f"{outcome[-1]:.0f}",
        str(len(recorded)),
        f"{whole:.2f}",
        f"{calls:.2f}",
        f"{whole / calls:.2f}",
    )
