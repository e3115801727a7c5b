"""What benchmarks compare with is what it claims to be, and each benchmark runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scoresde import VESDE
from scoresde.samplers import Exponential, Karras, sample, transport

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the parts of benchmarks/samplers.py be imported."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.usefixtures("sampling")
def test_scores_of_the_sampler_benchmark_are_ours() -> None:
    from sampling.problems import PROBLEMS, held_out

    for problem in (*PROBLEMS, *held_out()):
        for ratio in (30.0, 1.0, 0.02):
            y = ratio * torch.randn(3, problem.dimension, dtype=torch.float64)
            torch.testing.assert_close(problem.denoised(y, ratio), problem.data.denoised(y, ratio))


@pytest.mark.usefixtures("sampling")
def test_reference_of_the_sampler_benchmark_is_the_flow() -> None:
    from sampling.problems import Reference, gmm16

    problem = gmm16()
    noise = torch.randn(2, 16, dtype=torch.float64)
    flow = Reference(problem, noise)
    ours = transport(problem.data, 50.0 * noise, 50.0, 0.01, tolerance=1e-7)
    torch.testing.assert_close(flow(50.0, 0.01), ours, atol=1e-5, rtol=0)
    near = flow(50.0, 2e-4)
    half_step = near + 0.5 * (problem.denoised(near, 2e-4) - near)
    torch.testing.assert_close(flow(50.0, 0.0), half_step, atol=1e-9, rtol=0)


@pytest.mark.usefixtures("sampling")
def test_transcribed_dpm_solver_is_the_published_one() -> None:
    from sampling.methods import DPMSolver2M, karras
    from sampling.problems import gmm16

    problem, sde = gmm16(), VESDE()
    high, low = float(sde.sigma(sde.T)), float(sde.sigma(sde.t_min))
    noise = torch.randn(4, 16, dtype=torch.float64)
    theirs = DPMSolver2M("2M", karras, high, low)(problem, noise, 12)
    ours = sample(
        problem.mixture(sde), None, Exponential(order=2, published=True), times=Karras(), steps=12,
        start=high * noise, denoise=False,
    )  # fmt: skip
    assert theirs.evaluations == 12
    torch.testing.assert_close(theirs.y, ours)


RUNS = {  # script -> its smallest run, and what it needs beside the development tools
    "conditional.py": (["--quick"], []),
    "discrete.py": (["--quick"], []),
    "false_alarms.py": (["--only", "solvers", "--examples", "1"], []),
    "likelihood.py": (["--quick"], ["flow_matching", "torchode", "zuko"]),
    "mutation.py": (
        ["--only", "traces", "--sample", "1", "--seconds", "5", "--tests", "tests/test_traces.py"],
        ["cosmic_ray", "coverage"],
    ),
    "networks.py": (["--quick", "--eager"], []),
    "others_checked.py": (["--quick"], ["azula", "flow_matching"]),
    "posterior.py": (["--quick"], []),
    "restoration.py": (["--quick"], []),
    "samplers.py": (["--quick"], ["azula", "flow_matching"]),
    "trace_memory.py": (["--chunks", "1024", "--batch", "1"], []),
}
FAST = {"trace_memory.py"}
PRINTING = {"trace_memory.py"}  # without a page


def test_every_benchmark_is_run() -> None:
    scripts = {path.name for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text()}
    assert scripts == set(RUNS)


@pytest.mark.parametrize(
    "script",
    [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in RUNS],
)
def test_benchmark_runs(script: str, tmp_path: Path) -> None:
    options, needed = RUNS[script]
    for package in needed:
        pytest.importorskip(package)
    command = [sys.executable, str(BENCHMARKS / script), *options]
    if script not in PRINTING:
        command += ["--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS.parent)
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.strip()
    assert script in PRINTING or list(tmp_path.glob("*.md"))
