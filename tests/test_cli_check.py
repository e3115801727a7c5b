"""``scoresde check``: what it finds in a user's file, what it prints, and its exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scoresde.__main__ import main

MINE = """
import torch
from scoresde import VPSDE, FunctionScore
from scoresde.samplers import Sampler
from scoresde.testing.adapters import FunctionSDE

class Doubled(VPSDE):
    def diffusion(self, t):  # g² instead of g
        return super().diffusion(t) ** 2

class NotANumber(VPSDE):
    def log_sigma(self, t):
        return torch.log(torch.sqrt(-torch.expm1(-2 * self.log_alpha(t))))

class Parts:
    right = VPSDE()

def spring():
    return FunctionSDE(lambda x, t: -x, lambda t: (2 + 0 * t).sqrt())

def failing():
    raise RuntimeError("out of order")

def step(score, x, t, s, noise):
    return x

class Crashing(Sampler):
    def step(self, score, x, t, s, state, noise):
        raise RuntimeError("out of steps")

def needs(beta):
    return VPSDE(beta)

class Spring:
    noise_type, sde_type = "diagonal", "ito"

    def f(self, t, y):
        return -y

    def g(self, t, y):
        return torch.ones_like(y)

one_shape = FunctionScore(lambda x, t: -x[:, :3], VPSDE())
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    (tmp_path / "mine_to_check.py").write_text(MINE)
    (tmp_path / "half.py").write_text("import torch\nx = torch.zeros(3) + torch.zeros(2)\n")
    (tmp_path / "needy.py").write_text("import no_such_package\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(0)\n")
    for name in ("mine_to_check", "half", "needy", "leaving"):
        sys.modules.pop(name, None)
    return tmp_path


def test_a_failure_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["check", "mine_to_check:Doubled", "--only", "moment equations", "semigroup"]
    assert main([*line, "--examples", "3"]) == 1
    text = capsys.readouterr().out
    for part in (
        "Doubled(beta_min=0.1, beta_max=20.0, T=1.0, t_min=1e-05): properties of SDEs",
        "FAILED  moment equations",
        "passed  semigroup",
        "property (log α)′ = f",
        "where    t = ",
        "causes   g instead of g²",
        "Checked 2: 1 failed.",
    ):
        assert part in text


@pytest.mark.parametrize(
    "target",
    [
        "mine_to_check:Parts.right",
        "mine_to_check:spring",
        "mine_to_check:Spring",
        "mine_to_check.py:spring",
        "scoresde:VPSDE",
    ],
)
def test_correct_objects_pass(
    folder: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    line = ["check", target, "--only", "reversal", "purity", "--examples", "3", "--seed", "7"]
    assert main(line) == 0
    assert "Checked 2: no counterexample was found." in capsys.readouterr().out


def test_one_exception_is_reported_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [
        "check",
        "mine_to_check:Crashing",
        "--only",
        "grid",
        "generator",
        "chunks",
        "batch independence",
    ]
    assert main(line) == 1
    text = capsys.readouterr().out
    assert text.count("found    RuntimeError: out of steps (mine_to_check.py:") == 1
    assert "same     chunks, batch independence" in text
    assert "Checked 4: 3 failed. Fix the first and check again" in text


def test_properties_are_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "mine_to_check:spring", "--list"]) == 0
    text = capsys.readouterr().out
    assert "dx = [f − ½(1+η²) g² s] dt + η g dw̄" in text
    assert "semigroup" not in text  # of Gaussian diffusions


def test_a_score_is_checked_in_its_shape(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["check", "mine_to_check:one_shape", "--only", "predictions", "--examples", "5"]
    assert main([*line, "--shape", "3"]) == 0
    assert main(line) == 1
    text = capsys.readouterr().out
    assert "FAILED  predictions" in text
    assert "--shape 3 32 32" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("mine_to_check", "expected module:object"),
        ("nowhere:MySDE", "'nowhere', which is not found from"),
        ("nowhere.py:MySDE", "no file nowhere.py"),
        (
            "mine_to_check:Doubel",
            "it has Doubled, NotANumber, Parts, spring, failing, step, Crashing",
        ),
        ("half:x", "half.py:2"),
        ("needy:x", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("leaving:x", "SystemExit"),
        ("mine_to_check:failing", "RuntimeError: out of order"),
        ("mine_to_check:needs", "checked = needs(…)"),
        ("mine_to_check:step", "FunctionSampler(step)"),
        ("mine_to_check:number", "expected an SDE, a Score, a Sampler"),
        ("scoresde:VPSDE --only semigroups", "names of properties of SDEs, got 'semigroups'"),
        ("scoresde:VPSDE --examples 0", "--examples: expected an integer, at least 1"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    assert main(["check", *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("scoresde: error: ")
    assert error.count("\n") == 1


def test_a_nan_stops_the_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "mine_to_check:NotANumber"]) == 1
    text = capsys.readouterr().out
    assert "FAILED  finite" in text
    assert "the square root of a negative number" in text
    assert "others were not checked" in text


def test_an_observed_order_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["check", "scoresde.samplers:Heun", "--only", "convergence order", "--examples", "1"]
    assert main(line) == 0
    assert "passed  convergence order: measured 2" in capsys.readouterr().out


def test_it_runs_as_a_module(folder: Path) -> None:
    line = [sys.executable, "-m", "scoresde", "check", "mine_to_check:Doubled"]
    result = subprocess.run(
        [*line, "--only", "reversal"], capture_output=True, text=True, cwd=folder
    )
    assert result.returncode == 0, result.stderr
    assert "passed  reversal" in result.stdout
