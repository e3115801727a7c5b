"""``scoresde restore``: every task and method, its files, and its messages for user errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scoresde import MLP, VPSDE, Moments, ScoreModel
from scoresde.__main__ import main
from scoresde.commands.restore import METHODS

IMAGES = np.random.default_rng(0).normal(size=(3, 3, 4, 6)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small model of images, images, and a mask."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    moments = Moments(torch.zeros(3, 4, 6), torch.ones(72), known=True)
    model = ScoreModel(MLP((3, 4, 6), width=8, depth=1), VPSDE(), moments=moments)
    model.save("m.safetensors")
    moments = Moments(torch.zeros(2), torch.ones(2), known=True)
    points = ScoreModel(MLP((2,), width=8, depth=1), VPSDE(), moments=moments)
    points.save("points.safetensors")
    np.save("images.npy", IMAGES)
    np.save("small.npy", IMAGES[..., ::2, ::2])
    np.save("points.npy", IMAGES[:, 0, 0, :2])
    np.save("mask.npy", np.arange(24).reshape(4, 6) % 3 == 0)
    np.save("first.npy", np.array([1, 0]))
    return tmp_path


def read(path: str) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize(
    ("task", "seen"),
    [
        ("inpaint --mask mask.npy", (24,)),
        ("inpaint --box 0 1 2 3", (54,)),
        ("super-resolve --factor 2", (3, 2, 3)),
        ("colorize", (1, 4, 6)),
        ("deblur --blur 0.3", (3, 4, 6)),
        ("denoise --sigma 0.5", (3, 4, 6)),
    ],
)
def test_every_task_degrades_restores_and_draws(
    folder: Path, capsys: pytest.CaptureFixture[str], task: str, seen: tuple[int, ...]
) -> None:
    pytest.importorskip("matplotlib")
    line = f"restore m.safetensors images.npy --degrade -n 2 --steps 3 --task {task}"
    assert main([*line.split(), "--out", "r.npz", "--grid", "r.png"]) == 0
    found = read("r.npz")
    assert found["samples"].shape == (3, 2, 3, 4, 6)
    assert found["mean"].shape == (3, 3, 4, 6)
    assert found["seen"].shape == (3, *seen)
    assert all(np.isfinite(array).all() for array in found.values())
    assert capsys.readouterr().out.count("PSNR") == 2
    assert Path("r.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_inpaints_points(folder: Path, method: str) -> None:
    sigma = "--sigma 0.1" if method in ("dps", "particles") else ""
    line = f"restore points.safetensors points.npy --task inpaint --mask first.npy {sigma}"
    line += f" --method {method} --steps 4 --particles 5 --rows 2 -n 3 --out r.npz"
    assert main(line.split()) == 0
    found = read("r.npz")
    assert found["samples"].shape == (2, 3, 2)
    np.testing.assert_array_equal(found["seen"], IMAGES[:2, 0, 0, :1])
    if not sigma:
        expected = np.broadcast_to(found["seen"][:, None], (2, 3, 1))
        np.testing.assert_allclose(found["samples"][..., :1], expected, atol=1e-6)


def test_observations_are_read_unchanged_and_samples_depend_on_the_seed(folder: Path) -> None:
    line = "restore m.safetensors small.npy --task super-resolve --factor 2 --steps 3 --seed"
    for out, words in (("a", "1"), ("b", "1 --batch-size 5"), ("c", "2")):
        assert main([*line.split(), *words.split(), "--out", f"{out}.npz"]) == 0
    a, b, c = (read(f"{name}.npz") for name in "abc")
    np.testing.assert_array_equal(a["seen"], IMAGES[..., ::2, ::2])
    means = a["samples"].reshape(3, 4, 3, 2, 2, 3, 2).mean((4, 6))
    expected = np.broadcast_to(a["seen"][:, None], means.shape)
    np.testing.assert_allclose(means, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(a["samples"], b["samples"], rtol=1e-3, atol=1e-3)
    assert (a["samples"] != c["samples"]).any()


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("m.safetensors images.npy", "--out, --grid"),
        ("m.safetensors images.npy --out r.txt", "--out"),
        ("m.safetensors images.npy --task inpaint --out r.npz", "--box"),
        ("m.safetensors images.npy --task inpaint --box 0 0 5 1 --out r.npz", "4 x 6 pixels"),
        ("m.safetensors images.npy --task inpaint --box 0 0 4 6 --out r.npz", "at least one true"),
        ("m.safetensors images.npy --task inpaint --mask first.npy --out r.npz", "--mask"),
        ("points.safetensors points.npy --task inpaint --box 0 0 1 1 --out r.npz", "--mask"),
        ("m.safetensors images.npy --task super-resolve --out r.npz", "--factor"),
        (
            "m.safetensors images.npy --task super-resolve --factor 2 --out r.npz",
            "(batch, 3, 2, 3)",
        ),
        ("m.safetensors small.npy --task super-resolve --factor 4 --out r.npz", "another factor"),
        ("m.safetensors images.npy --task deblur --out r.npz", "--blur"),
        ("m.safetensors images.npy --task colorize --out r.npz", "(batch, 1, 4, 6)"),
        ("m.safetensors small.npy --sigma 0.1 --out r.npz", "(batch, 3, 4, 6)"),
        ("m.safetensors images.npy --sigma -1 --out r.npz", "sigma"),
        ("m.safetensors images.npy --degrade --out r.npz", "--sigma"),
        ("m.safetensors images.npy -n 0 --out r.npz", "-n"),
        ("m.safetensors images.npy --rows 0 --out r.npz", "--rows"),
        (
            "m.safetensors images.npy --task deblur --blur 0.3 --method dps --out r.npz",
            "noise_std",
        ),
        (
            "m.safetensors images.npy --task deblur --blur 0.3 --method repaint --sigma 1 "
            "--out r.npz",
            "noise_std",
        ),
    ],
)
def test_user_errors_are_one_line_that_names_the_argument(
    folder: Path, capsys: pytest.CaptureFixture[str], line: str, word: str
) -> None:
    before = {file.name for file in folder.iterdir()}
    assert main(["restore", *line.split()]) == 2
    errors = [each for each in capsys.readouterr().err.splitlines() if "scoresde: error:" in each]
    assert len(errors) == 1
    assert word in errors[0]
    assert {file.name for file in folder.iterdir()} == before
