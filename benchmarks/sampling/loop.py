"""What a loop costs beside the network, in units of one in-place axpy on the state.

The state is 64 × 3 × 32 × 32 in float32, and the network returns a constant tensor at no cost. The
table gives the time per step of a run of 50 steps, relative to that of ``x.add_(y, alpha=a)``: the
smallest of several interleaved repetitions, of wall time and of CPU time. For our samplers it
includes all of `sample`, with a ScoreModel that predicts noise, so that conversions to x̂ are
included, or with a Score that returns x̂; for others, the steps of their schedulers. All allocate
memory: if the C library returns freed memory to the system, the next state costs 192 page faults,
some 10 axpys. Whether it does depends on the history of the process, so that results of several
runs differ by 5.

Reads from and writes to the device are counted per step on PyTorch's meta device, where a read
raises: the host needs the value of a tensor, or copies a tensor to the device.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sampling.lineup import DEFAULT, PRESETS
from sampling.peers import PEERS, Diffusers
from sampling.tables import table
from scoresde import NOISE, VESDE, VPSDE, GaussianSDE, Score, ScoreModel
from scoresde.samplers import Sampler, iterate, sample

SHAPE = (64, 3, 32, 32)


class FreeNetwork(nn.Module):
    """A network of no cost."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.register_buffer("output_value", answer)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Return the constant."""
        return self.output_value


class FreeScore(Score):
    """A score whose x̂ has no cost."""

    def __init__(self, sde: GaussianSDE, answer: Tensor) -> None:
        super().__init__(sde)
        self.output_value = answer

    def denoised(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the constant."""
        return self.output_value


class Traffic(TorchDispatchMode):
    """Counts transfers between the host and the device 'meta'."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = self.writes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the transfers of one operation."""
        result = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        if name in ("_to_copy", "copy_"):
            source, target = (args[1], args[0]) if name == "copy_" else (args[0], result)
            if source.is_meta != target.is_meta:
                self.reads += source.is_meta
                self.writes += target.is_meta
        return result


Run = Callable[[int], object]
"""Makes so many steps."""


def ours(sampler: Sampler, score: Score, x: Tensor) -> Run:
    """Return `sample` without the denoising at the end."""
    generator = torch.Generator().manual_seed(0)

    def run(steps: int) -> Tensor:
        return sample(
            score, None, sampler, steps=steps, start=x, denoise=False, generator=generator
        )

    return run


def scheduler(method: Diffusers, answer: Tensor, x: Tensor) -> Run:
    """Return the loop of a scheduler of diffusers."""

    def run(steps: int) -> Tensor:
        made, state = method.make(), x
        made.set_timesteps(steps)
        for t in made.timesteps:
            state = made.step(answer, t, state).prev_sample
        return state

    return run


def per_step(runs: dict[str, Run], steps: int, rounds: int) -> dict[str, list[float]]:
    """Return wall and CPU seconds per step of each run, smallest of ``rounds``."""
    best: dict[str, list[float]] = {name: [float("inf")] * 2 for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run(steps)
            spent = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = [min(a, b / steps) for a, b in zip(best[name], spent, strict=True)]
    return best


def axpys(x: Tensor, y: Tensor) -> Run:
    """Return the loop of the unit, one axpy per step."""
    state = x.clone()

    def run(steps: int) -> Tensor:
        for _ in range(steps):
            state.add_(y, alpha=1e-9)
        return state

    return run


def traffic(sampler: Sampler, sde: GaussianSDE) -> str:
    """Return reads and writes of the device per step, from runs of 4 and 8 steps."""
    counts = []
    for steps in (4, 8):
        x = torch.empty(SHAPE, device="meta")
        score = FreeScore(sde, torch.empty(SHAPE, device="meta"))
        try:
            with torch.no_grad(), Traffic() as seen:
                times = sampler.times(sde, steps)
                deque(iterate(score, x, times, sampler, torch.zeros_like), maxlen=0)
        except (RuntimeError, NotImplementedError) as failure:
            return f"reads ({str(failure).splitlines()[0][:40]})"
        counts.append((seen.reads, seen.writes))
    return " / ".join(f"{(b - a) / 4:g}" for a, b in zip(*counts, strict=True))


def run(quick: bool, _out: Path | None) -> str:
    """Measure, and return the report."""
    generator = torch.Generator().manual_seed(0)
    x, answer = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    steps, rounds = (5, 1) if quick else (50, 9)
    samplers = {"ours: default": DEFAULT, **PRESETS}
    runs: dict[str, Run] = {}
    for sde in (VPSDE(), VESDE()):
        kind = type(sde).__name__.removesuffix("SDE")
        network = ScoreModel(FreeNetwork(answer), sde, NOISE)
        for name, sampler in samplers.items():
            runs[f"{name}, {kind}, network"] = ours(sampler, network, x)
            runs[f"{name}, {kind}, x̂"] = ours(sampler, FreeScore(sde, answer), x)
    for method in PEERS:
        if isinstance(method, Diffusers) and not method.random:
            runs[method.name] = scheduler(method, answer, x)
    runs["axpy"] = axpys(x, answer)
    seconds = per_step(runs, steps, rounds)
    unit = seconds["axpy"]
    rows = []
    for name, sampler in samplers.items():
        cells = [
            f"{seconds[f'{name}, {kind}, {view}'][0] / unit[0]:.0f}"
            f" ({seconds[f'{name}, {kind}, {view}'][1] / unit[1]:.0f})"
            for kind in ("VP", "VE")
            for view in ("network", "x̂")
        ]
        rows.append([name, *cells, traffic(sampler, VPSDE())])
    for method in PEERS:
        if method.name in seconds:
            wall, cpu = seconds[method.name]
            rows.append(
                [method.name, f"{wall / unit[0]:.0f} ({cpu / unit[1]:.0f})", "", "", "", ""]
            )
    views = [f"{kind}, {view}" for kind in ("VP", "VE") for view in ("network", "x̂")]
    head = ["axpys per step: wall (CPU)", *views, "reads / writes per step"]
    return f"One axpy: {1e6 * unit[0]:.0f} µs.\n\n{table(head, rows)}"
