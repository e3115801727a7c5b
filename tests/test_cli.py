"""The command line end to end on small data, and its messages for user errors."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from scoresde import MLP, VPSDE, ScoreModel, log_likelihood
from scoresde.__main__ import main
from scoresde.commands import COMMANDS

POINTS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("points.npy", POINTS)
    torch.manual_seed(0)
    ScoreModel(MLP((3,), width=16, depth=1), VPSDE()).save("model.safetensors")
    return tmp_path


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_help_is_complete(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "options:" in text
    assert f"scoresde {command}" in text


def test_train_sample_likelihood_inspect(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = (
        "train points.npy --steps 20 --width 16 --depth 1 --batch-size 16 --out made.safetensors"
    )
    assert main(train.split()) == 0
    draw = "sample made.safetensors -n 5 --steps 3 --sampler ancestral --out s.npz"
    assert main(draw.split()) == 0
    with np.load("s.npz") as drawn:
        samples = drawn[drawn.files[0]]
    assert samples.shape == (5, 3)
    assert np.isfinite(samples).all()
    likelihood = "likelihood made.safetensors points.npy --exact --batch-size 16 --out l.npz"
    assert main(likelihood.split()) == 0
    with np.load("l.npz") as rows:
        found = rows["log_prob"]
    model = ScoreModel.load("made.safetensors")
    truth = log_likelihood(model, torch.from_numpy(POINTS)).log_prob.numpy()
    np.testing.assert_allclose(found, truth, atol=1e-3)
    capsys.readouterr()
    assert main(["inspect", "made.safetensors"]) == 0
    text = capsys.readouterr().out
    assert "MLP" in text
    assert "VPSDE" in text


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("likelihood nowhere.safetensors points.npy", "nowhere.safetensors"),
        ("likelihood model.safetensors nowhere.npy", "nowhere.npy"),
        ("likelihood broken.safetensors points.npy", "broken.safetensors"),
        ("sample points.npy -n 2 --out s.npz", "points.npy"),
        ("sample model.safetensors -n 0 --out s.npz", "n"),
        ("train points.npy --steps 0", "steps"),
    ],
)
def test_user_errors_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], line: str, word: str
) -> None:
    content = Path("model.safetensors").read_bytes()
    Path("broken.safetensors").write_bytes(content[: len(content) // 2])
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert word in error
    assert "Traceback" not in error


def test_inspect_executes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (folder / "exploded",)

    Path("evil.pth").write_bytes(pickle.dumps({"model": Bomb()}))
    main(["inspect", "evil.pth"])
    assert not (folder / "exploded").exists()


def test_the_demo_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    assert main(["demo", "--fast", "--out", "made"]) == 0
    text = capsys.readouterr().out
    assert "mixture of 10 Gaussians" in text
    for name in ("demo.png", "model.safetensors", "samples.npz", "likelihood.npz"):
        assert (folder / "made" / name).stat().st_size > 0
