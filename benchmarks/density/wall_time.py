"""Wall time of a solve over that of its network calls alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from common import seconds, table
from density.libraries import OTHERS, OURS, Library, ScoreSDE, TorchDiffEq
from density.problems import OneProductTrace, Problem
from torch import Tensor, nn

from scoresde import VPSDE, ScoreModel
from scoresde.networks import UNet
from scoresde.traces import Hutchinson


class RecordingNetwork(nn.Module):
    """A network that records its calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls: list[tuple[Tensor, Tensor, bool]] = []

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Record the input and whether gradients are enabled."""
        self.calls.append((x.detach().clone(), label.detach().clone(), torch.is_grad_enabled()))
        return self.network(x, label)


def repeat(network: nn.Module, calls: list[tuple[Tensor, Tensor, bool]]) -> None:
    """Repeat calls, each with one product if it came with gradients."""
    for x, label, backward in calls:
        with torch.set_grad_enabled(backward):
            y = network(x.requires_grad_(backward), label)
            if backward:
                torch.autograd.grad(y, x, torch.ones_like(y))


def run(quick: bool, _: Path | None) -> str:
    """Time every library on two networks, and the same calls without it."""
    small, larger = (8, (3, 8, 8), 4), (16, (3, 8, 8), 4)
    if not quick:
        small, larger = (16, (3, 16, 16), 8), (32, (3, 32, 32), 8)
    some = [library for library in OTHERS if isinstance(library, TorchDiffEq | ScoreSDE)]
    return "\n\n".join(
        (
            "Part of the time of a solve beyond its calls is memory that a call returns to the "
            "system and the next one allocates again. The calls alone, whose last result is not "
            "freed, have a third of the page faults; without any (`MALLOC_TRIM_THRESHOLD_` and "
            "`MALLOC_MMAP_THRESHOLD_` set high) calls in a solve take as long as those alone.",
            section(*small, (OURS, *OTHERS), 1 if quick else 5),
            section(*larger, (OURS, *some), 1 if quick else 2),
        )
    )


def section(
    width: int, event: tuple[int, ...], size: int, libraries: Sequence[Library], repeats: int
) -> str:
    """Time libraries on a U-Net."""
    torch.manual_seed(0)
    network = RecordingNetwork(UNet(event[0], width=width))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.02)
    model = ScoreModel(network, VPSDE())
    x = torch.randn(size, *event, generator=torch.Generator().manual_seed(1))
    prior = model.sde.prior(event, dtype=torch.float64)
    problem = Problem("U-Net", model, model, None, prior, x, torch.zeros(size, dtype=torch.float64))
    rows = [row(library, problem, network, repeats) for library in libraries]
    heads = ("library", "evaluations", "network calls", "solve, s", "calls alone, s", "ratio")
    parameters = sum(p.numel() for p in network.parameters())
    return (
        f"A U-Net of {parameters:,} parameters on {size} images of shape {event} in float32, one "
        f"probe, untrained; minimum of {repeats} alternating runs each.\n\n" + table(heads, rows)
    )


def row(
    library: Library, problem: Problem, network: RecordingNetwork, repeats: int
) -> tuple[str, ...]:
    """Time one library."""
    trace = Hutchinson() if library is OURS else OneProductTrace()
    tolerance = 1e-3 if library is OURS else 1e-4

    def solve() -> None:
        outcome.append(library.solve(problem, tolerance, trace).evaluations)

    outcome: list[float] = []
    solve()
    network.calls.clear()
    solving, calls = math.inf, math.inf
    for _ in range(repeats):
        network.calls.clear()
        solving = min(solving, seconds(solve))
        recorded = list(network.calls)
        calls_alone = partial(repeat, network.network, recorded)
        calls = min(calls, seconds(calls_alone))
    return (
        library.name,
        f"{outcome[-1]:.0f}",
        str(len(recorded)),
        f"{solving:.2f}",
        f"{calls:.2f}",
        f"{solving / calls:.2f}",
    )
