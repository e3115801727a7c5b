"""Samplers and solvers of other libraries, checked by scoresde.testing.

    python benchmarks/others_checked.py [--quick] [--cache rows.json] [--out benchmarks/results]

Each is called through an adapter, as its library runs it, in double precision where possible. The
declared order is that of its documentation or paper. Every order that is not confirmed is derived
again below the table.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import azula.sample
import numpy as np
import torch
from azula.denoise import Denoiser, DiracPosterior
from common import table
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from flow_matching.solver import ODESolver
from scipy.integrate import solve_ivp
from torch import Tensor

from scoresde import VESDE, VPSDE, SubVPSDE
from scoresde.samplers import Exponential, Sampler, iterate
from scoresde.samplers.base import noise_level_at
from scoresde.scores import Score
from scoresde.testing import family_of
from scoresde.testing.adapters import FunctionSolver, LoopSampler, SchedulerSampler
from scoresde.testing.sampler_contract import logsnr_times, two_modes

PEERS = ("diffusers", "azula", "flow_matching", "torchdiffeq", "torch")

# --- as members of the families


def scheduler(kind: type, order: float, **settings: Any) -> Callable[[], Sampler]:
    """A scheduler of diffusers."""

    def make() -> Sampler:
        return SchedulerSampler(kind(**settings), convergence_order=order)

    return make


class _Denoiser(Denoiser):
    """A score as a denoiser of azula, on the schedule of its SDE."""

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score = score

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.score.sde.alpha(t), self.score.sde.sigma(t)

    def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> DiracPosterior:
        return DiracPosterior(mean=self.score.denoised(x_t, t))


@dataclass(frozen=True)
class AzulaRun:
    """A sampler of azula, on given times."""

    name: str
    order: int | None = None

    def __call__(self, score: Score, x: Tensor, times: Tensor, noise: Any) -> Tensor:
        kind = getattr(azula.sample, self.name)

        class Along(kind):  # type: ignore[misc, valid-type]
            timesteps = times

        options = {} if self.order is None else {"order": self.order}
        sampler = Along(_Denoiser(score), steps=len(times) - 1, silent=True, **options)
        return sampler(x)


@cache
def time_of(sde: Any, clock: float) -> Tensor:
    """Return the time of the SDE at flow_matching's t, where σ/α = (1 − t)/t."""
    return sde.time_at(torch.log(torch.tensor(clock / (1 - clock), dtype=torch.float64)))


@dataclass(frozen=True)
class FlowMatchingRun:
    """A solver of flow_matching with given steps, on its path x_t = t x_1 + (1 − t) x_0."""

    method: str

    def __call__(self, score: Score, x: Tensor, times: Tensor, noise: Any) -> Tensor:
        sde = score.sde
        clock = 1 / (1 + torch.exp(-sde.half_logsnr(times)))

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            time = time_of(sde, float(t)) if t < 1 else torch.zeros_like(t)
            clean = score.denoised(x / t * sde.alpha(time), time)
            return (clean - x) / (1 - t)

        start = x * (clock[0] / sde.alpha(times[0]))
        end = ODESolver(velocity).sample(
            start, step_size=None, method=self.method, time_grid=clock.clone()
        )
        return end * (sde.alpha(times[-1]) / clock[-1])


def loop(run: Any, order: float) -> Callable[[], Sampler]:
    """A sampling loop."""
    return lambda: LoopSampler(run, convergence_order=order, deterministic=True)


def adaptive() -> FunctionSolver:
    """flow_matching's adaptive solver, between two times, at a tolerance."""

    def dopri5(field: Any, z: Tensor, start: float, end: float, tolerance: float) -> Tensor:
        return ODESolver(lambda x, t: field(t, x)).sample(
            z,
            step_size=None,
            method="dopri5",
            atol=tolerance,
            rtol=tolerance,
            time_grid=torch.tensor([start, end], dtype=z.dtype),
        )

    return FunctionSolver(dopri5)


DPM, EDM = DPMSolverMultistepScheduler, EDMDPMSolverMultistepScheduler
SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "diffusers DDIM": scheduler(DDIMScheduler, 1),
    "diffusers EulerDiscrete": scheduler(EulerDiscreteScheduler, 1),
    "diffusers HeunDiscrete": scheduler(HeunDiscreteScheduler, 2),
    "diffusers DPMSolverMultistep, order 2": scheduler(DPM, 2),
    "diffusers DPMSolverMultistep, order 2, heun": scheduler(DPM, 2, solver_type="heun"),
    "diffusers DPMSolverMultistep, order 3": scheduler(DPM, 3, solver_order=3),
    "diffusers EDMDPMSolverMultistep, order 2": scheduler(EDM, 2),
    "diffusers EDMDPMSolverMultistep, order 3": scheduler(EDM, 3, solver_order=3),
    "diffusers UniPCMultistep, order 2": scheduler(UniPCMultistepScheduler, 3),
    "diffusers DEISMultistep, order 2": scheduler(DEISMultistepScheduler, 2),
    "diffusers DEISMultistep, order 3": scheduler(DEISMultistepScheduler, 3, solver_order=3),
    "azula EulerSampler": loop(AzulaRun("EulerSampler"), 1),
    "azula HeunSampler": loop(AzulaRun("HeunSampler"), 2),
    "azula zABSampler, order 2": loop(AzulaRun("zABSampler", 2), 2),
    "azula vABSampler, order 3": loop(AzulaRun("vABSampler", 3), 3),
    "azula zEABSampler, order 3": loop(AzulaRun("zEABSampler", 3), 3),
    "azula xEABSampler, order 3": loop(AzulaRun("xEABSampler", 3), 3),
    "azula REABSampler, order 2": loop(AzulaRun("REABSampler", 2), 2),
    "flow_matching euler": loop(FlowMatchingRun("euler"), 1),
    "flow_matching midpoint": loop(FlowMatchingRun("midpoint"), 2),
    "flow_matching heun3": loop(FlowMatchingRun("heun3"), 3),
    "flow_matching rk4": loop(FlowMatchingRun("rk4"), 4),
}
"""Each with its documented order; UniPC of order p with its corrector has p + 1."""

ENDS = (-3.9, 2.5)
"""The half log-SNRs between which orders are measured."""

ORDER = "convergence order"
"""The property that is measured by complete runs: a loop is run once, not step by step."""


# --- measured


@cache
def flow(kind: type) -> tuple[Tensor, Tensor]:
    """Return starts and ends of the flow of two modes, by scipy's DOP853 in dy/dλ = x̂ − y."""
    sde = kind()
    score, times = two_modes(sde), sde.time_at(torch.tensor(ENDS, dtype=torch.float64))
    start = score.sample(16, float(times[0]), torch.Generator().manual_seed(0), torch.float64)

    def slope(half_logsnr: float, flat: np.ndarray) -> np.ndarray:
        t = sde.time_at(torch.tensor(half_logsnr, dtype=torch.float64))
        y = torch.as_tensor(flat).reshape(start.shape)
        return (score.denoised(sde.alpha(t) * y, t) - y).reshape(-1).numpy()

    y = (start / sde.alpha(times[0])).reshape(-1).numpy()
    solution = solve_ivp(slope, ENDS, y, method="DOP853", rtol=1e-11, atol=1e-11)
    return start, sde.alpha(times[1]) * torch.as_tensor(solution.y[:, -1]).reshape(start.shape)


def ends(subject: Sampler, sde: Any, start: Tensor, steps: int) -> Tensor:
    """Return the samples of a sampler for the mixture of two modes."""
    times = logsnr_times(subject, sde, steps, ENDS)
    function = getattr(subject, "function", None)
    if function is not None:
        return function(two_modes(sde), start, times, torch.zeros_like)
    *_, (end, _) = iterate(two_modes(sde), start, times, subject, torch.zeros_like)
    return end


def order_of(subject: Sampler, sde: Any, counts: tuple[int, ...]) -> tuple[float, list[float]]:
    """Return the order observed in the last two doublings, and the errors."""
    start, exact = flow(type(sde))
    errors = [float((ends(subject, sde, start, n) - exact).square().mean().sqrt()) for n in counts]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    return sum(orders[-2:]) / 2, errors


def verdicts(subject: Any, skip: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield each property with the error found, empty if it holds."""
    family = family_of(subject)
    names = [p.name for p in family.properties if p.applies(subject) and p.name not in skip]
    for result in family.results(subject, only=names, examples=1):
        found = result.counterexample
        yield result.checked.name, "" if found is None else str(found.error)


def short(text: str, most: int = 110) -> str:
    """Return the beginning of a message in one line of a table."""
    line = " ".join(text.split(";")[0].split()).replace("|", "\\|")
    return line if len(line) <= most else f"{line[: most - 1]}…"


def row(name: str, quick: bool) -> list[str]:
    """Check all properties of a sampler; return a row of the table."""
    counts = (20, 40, 80) if quick else (40, 80, 160, 320)
    subject = SAMPLERS[name]()
    orders = [order_of(subject, sde(), counts)[0] for sde in (VPSDE, SubVPSDE, VESDE)]
    declared = float(subject.convergence_order or 0)
    failed = [] if min(orders) >= declared - 0.35 else [ORDER]
    found = list(verdicts(subject, (ORDER,)))
    failed += [f"{each} ({short(text)})" for each, text in found if text]
    number = len(found) + 1
    observed = " / ".join(f"{order:.2f}" for order in orders)
    hold = f"{number - len(failed)} of {number}"
    return [name, f"{declared:g}", observed, hold, "; ".join(failed) or "none"]


def samplers(quick: bool, cache: Path | None) -> str:
    """Check every sampler; finished rows are stored in a file, so that a run may be interrupted."""
    rows = json.loads(cache.read_text()) if cache is not None and cache.exists() else {}
    for name in SAMPLERS:
        if name not in rows:
            rows[name] = row(name, quick)
            print(f"{name}: {rows[name]}", flush=True)
            if cache is not None:
                cache.write_text(json.dumps(rows))
    heads = ("sampler", "declared order", "observed on VP / sub-VP / VE", "hold", "do not hold")
    return table(heads, rows.values())


def solver() -> str:
    """Check all properties of flow_matching's adaptive solver."""
    rows = [(name, short(text, 160) or "holds") for name, text in verdicts(adaptive())]
    return table(("property of solvers", "found"), rows)


# --- derived again


class Rosenbrock(Sampler):
    """The two-value method of REABSampler's documentation, with any last factor."""

    deterministic = True

    def __init__(self, sigma_of: Callable[[Any, Any], float]) -> None:
        object.__setattr__(self, "sigma_of", sigma_of)

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Any
    ) -> tuple[Tensor, Any]:
        here, there = noise_level_at(score.sde, t), noise_level_at(score.sde, s)
        before, after = (math.hypot(p.alpha, p.sigma) for p in (here, there))
        f = before / here.sigma * (here.alpha * x / before**2 - score.denoised(x, t))
        a, b = -here.half_logsnr, -there.half_logsnr
        u = torch.linspace(a, b, 513, dtype=torch.float64)
        weight = torch.exp(u) / (1 + torch.exp(2 * u))
        slope = 0 * f if state is None else (f - state[1]) / (a - state[0])
        integral = torch.trapezoid(weight, u) * f + torch.trapezoid(weight * (u - a), u) * slope
        gain = math.hypot(there.alpha, self.sigma_of(here, there))  # type: ignore[attr-defined]
        return after / before * x + gain * integral, (a, f)


def derivations(quick: bool) -> str:
    """Compare the two methods of lower order with their formulas."""
    counts = (20, 40, 80) if quick else (40, 80, 160, 320)
    sde = VPSDE()
    start, _ = flow(VPSDE)
    theirs = SAMPLERS["azula REABSampler, order 2"]()
    of_t = Rosenbrock(lambda here, there: here.sigma)
    of_s = Rosenbrock(lambda here, there: there.sigma)
    difference = float((ends(theirs, sde, start, 40) - ends(of_t, sde, start, 40)).abs().max())
    orders = {
        "Rosenbrock step, √(α_s² + σ_t²)": order_of(of_t, sde, counts),
        "Rosenbrock step, √(α_s² + σ_s²)": order_of(of_s, sde, counts),
        "DPM-Solver++(3M), D₂ as published": order_of(
            Exponential(order=3, published=True), sde, counts
        ),
        "DPM-Solver++(3M), twice that D₂": order_of(Exponential(order=3), sde, counts),
    }
    rows = [
        (name, f"{order:.2f}", ", ".join(f"{e:.2g}" for e in errors))
        for name, (order, errors) in orders.items()
    ]
    heads = ("step, on VP", "order", f"errors at {', '.join(map(str, counts))} steps")
    return f"""{table(heads, rows)}

- **DPM-Solver++(3M)** (DPMSolverMultistep and EDMDPMSolverMultistep of order 3). With h = λ_s −
  λ_t, r₀ h and r₁ h the two steps before, and D₁₀, D₁₁ the first differences, x̂(λ_t + u h) = x̂ +
  D₁ u + ½ D₂ u² with D₂ = h² x̂″ = 2 (D₁₀ − D₁₁)/(r₀ + r₁), as the differences belong to points
  ½ (r₀ + r₁) h apart. The code has D₂ = (D₁₀ − D₁₁)/(r₀ + r₁), and the weight of ½ D₂ u² beside it.
  With the factor 2, which `scheduling_dpmsolver_singlestep.py` has, the order is 3; azula's
  xEABSampler of order 3 is the same method with it. With few steps the
  difference is small: a fifth of the error at 40.
- **azula's REABSampler.** Its documentation has √(1 + e^{{2s}}), which is √(α_s² + σ_s²)/α_s; the
  last line of its loop has `torch.sqrt(alpha_s**2 + sigma_t**2)`. A step written after the
  documentation with σ_t for σ_s differs from the sampler by {difference:.1e} after 40 steps; with
  σ_s it is of the second order."""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, to test the script")
    parser.add_argument("--cache", type=Path, help="file of finished rows, to resume from")
    parser.add_argument("--out", type=Path, help="folder for the page; printed only if left out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)  # of diffusers, about NumPy
    versions = ", ".join(f"{name} {version(name)}" for name in PEERS)
    page = f"""# Samplers and solvers of other libraries, checked by scoresde.testing

Made by `python benchmarks/others_checked.py` on one CPU core: {versions}, Python
{platform.python_version()}.

{INTRODUCTION}

{samplers(options.quick, options.cache)}

## Derived again

{derivations(options.quick)}

{NOTES}

## flow_matching's adaptive solver

`ODESolver.sample(method="dopri5")`, state and integral as one system.

{solver()}

"underflow in dt" is the `AssertionError` of torchdiffeq, which stops the batch if one sample fails
or the batch is empty; the solvers of scoresde give the failed sample a status and continue the
others.
"""
    print(page)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "others_checked.md").write_text(page, encoding="utf-8")


INTRODUCTION = """\
Nearly all properties hold. The steps are tested on times equidistant in log-SNR, for a mixture of
two modes whose flow is known to 1e-11; orders are those of the last two doublings up to 320 steps,
compared with the declared order less 0.35. What the libraries do around their steps (grids,
clipping, last steps to σ = 0 of lower order) is not tested. Steps that depend on λ alone have one
order for all SDEs. UniPC of order p has p + 1 with its corrector. None of the properties was
written for these libraries, and some require what they do not claim."""

NOTES = """\
The other properties that do not hold, and why:

- *inverse* requires that a step also goes from s back to t. That of DDIMScheduler contains the
  square root of a variance, which is negative there; diffusers has a DDIMInverseScheduler for
  encoding.
- *endpoints* requires a run to t = 0, where this VP SDE has σ = 0. HeunSampler divides by σ_s,
  xEABSampler and REABSampler take its logarithm; azula's own schedules stop at σ = 0.001, where
  this does not happen. The rk4 of torchdiffeq evaluates the velocity (x̂ − x)/(1 − t) at the end
  t = 1, where it is 0/0 for an exact denoiser; a network that predicts it has a value there."""


if __name__ == "__main__":
    main()
