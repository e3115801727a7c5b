"""Inputs and outputs of the commands: data, files, user errors, help."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scoresde import MLP, VPSDE, Moments, ScoreModel
from scoresde.__main__ import main
from scoresde.commands import COMMANDS, Command
from scoresde.commands.data import (
    Quantization,
    digits,
    evaluation_set,
    open_data,
    split,
    training_set,
)
from scoresde.commands.sample import SAMPLERS
from scoresde.commands.train import SDES

POINTS = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
LEVELS = np.random.default_rng(1).integers(0, 256, size=(12, 4, 5)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with float and integer data and a small model of points in the plane."""
    monkeypatch.chdir(tmp_path)
    np.save("points.npy", POINTS)
    np.savez("two.npz", x=POINTS, levels=LEVELS)
    torch.manual_seed(0)
    moments = Moments(torch.zeros(2), torch.ones(2), known=True)
    ScoreModel(MLP((2,), width=8, depth=1), VPSDE(), moments=moments).save("model.safetensors")
    return tmp_path


def array(path: str) -> np.ndarray:
    with np.load(path) as file:
        return file[file.files[0]]


# --- data


def test_arrays_are_read_unchanged(folder: Path) -> None:
    np.save("doubles.npy", POINTS.astype(">f8"))
    np.save("halves.npy", POINTS.astype(np.float16))
    assert torch.equal(open_data("points.npy").read(), torch.from_numpy(POINTS))
    assert torch.equal(open_data("two.npz", "x").read(3, 7), torch.from_numpy(POINTS[3:7]))
    assert open_data("doubles.npy").read().dtype == torch.float64
    assert open_data("halves.npy").read().dtype == torch.float32
    levels = open_data("two.npz", "levels")
    assert levels.shape == (12, 4, 5)
    assert levels.levels is None
    assert torch.equal(levels.read(), torch.from_numpy(LEVELS))


@pytest.mark.parametrize(("mode", "shape"), [("L", (3, 1, 4, 5)), ("RGB", (3, 3, 4, 5))])
def test_images_are_read_in_the_order_of_their_names(
    folder: Path, mode: str, shape: tuple[int, ...]
) -> None:
    pillow = pytest.importorskip("PIL.Image")
    Path("photos").mkdir()
    Path("photos/notes.txt").write_text("no image")
    for name, pixels in zip(("b", "a", "c"), LEVELS[:3], strict=True):
        pillow.fromarray(pixels).convert(mode).save(f"photos/{name}.png")
    rows = open_data("photos")
    assert (rows.shape, rows.levels) == (shape, 256)
    found = rows.read()
    expected = torch.from_numpy(LEVELS[[1, 0, 2]])
    assert torch.equal(found, expected.unsqueeze(1).expand(shape))


def test_the_split_of_the_digits_is_fixed() -> None:
    pytest.importorskip("sklearn")
    complete, training, held_out = (digits(f"digits{part}") for part in ("", "-train", "-test"))
    assert (len(complete), len(training), len(held_out)) == (1797, 1500, 297)
    assert training.shape[1:] == (1, 8, 8)
    together = torch.cat([training.read(), held_out.read()]).flatten(1)
    assert torch.equal(
        together[np.lexsort(together.T.numpy())],
        (expected := complete.read().flatten(1))[np.lexsort(expected.T.numpy())],
    )
    assert torch.equal(training.read(), digits("digits-train").read())


def test_a_split_has_every_row_once() -> None:
    rows = torch.arange(20.0).unsqueeze(1)
    learned, held_out = split(rows, 0.25, seed=1)
    assert (len(learned), len(held_out)) == (15, 5)
    assert torch.cat([learned, held_out]).flatten().sort().values.tolist() == list(range(20))
    assert torch.equal(split(rows, 0.25, seed=1)[1], held_out)
    assert not torch.equal(split(rows, 0.25, seed=2)[1], held_out)


def test_training_data_have_new_noise_at_every_access_and_evaluation_data_fixed_noise() -> None:
    levels, quantization = torch.from_numpy(LEVELS).long(), Quantization(256, 0.0, 1.0)
    data = training_set(levels, quantization)
    index = torch.tensor([2, 0])
    (first,), (second,) = data[index], data[index]
    assert not torch.equal(first, second)
    for dequantized in (first, second):
        assert torch.equal(quantization.quantize(dequantized), levels[index])
    torch.manual_seed(1)
    (third,) = data[index]
    torch.manual_seed(1)
    assert torch.equal(data[index][0], third)  # fit seeds every step, so that runs can resume
    assert torch.equal(evaluation_set(levels, quantization), evaluation_set(levels, quantization))


# --- train


@pytest.mark.parametrize("sde", sorted(SDES))
@pytest.mark.parametrize("weighting", ["likelihood", "simple", "edm"])
def test_every_sde_can_be_trained(folder: Path, sde: str, weighting: str) -> None:
    line = f"train points.npy --sde {sde} --weighting {weighting} --steps 2 --width 8 --depth 1"
    assert main([*line.split(), "--out", "new.safetensors"]) == 0
    model = ScoreModel.load("new.safetensors")
    assert type(model.sde) is SDES[sde]
    assert torch.isfinite(model(torch.from_numpy(POINTS), 0.5 * model.sde.T)).all()


def test_the_default_network_is_a_unet_for_images_and_else_an_mlp(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("images.npy", LEVELS[:, None])
    line = "train images.npy --levels 256 --steps 1 --width 4 --depth 1 --out new.safetensors"
    assert main(line.split()) == 0
    assert main(["inspect", "new.safetensors"]) == 0
    text = capsys.readouterr().out
    assert "UNet(channels=1" in text
    assert "held-out loss" in text
    assert main([*line.split(), "--network", "mlp"]) == 0
    assert main(["inspect", "new.safetensors"]) == 0
    assert "MLP(event_shape=(1, 4, 5)" in capsys.readouterr().out


def test_training_is_reproducible_and_resumes_from_its_checkpoint(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "train points.npy --steps 4 --width 8 --depth 1 --checkpoint run.pt --out"
    for name in ("a", "b"):  # b finds the run finished
        assert main([*line.split(), f"{name}.safetensors"]) == 0
    assert main([*line.replace("run", "other").split(), "c.safetensors"]) == 0
    assert main([*line.split(), "d.safetensors", "--lr", "0.5"]) == 2
    assert "lr=0.001 (now 0.5)" in capsys.readouterr().err
    first = load_file("a.safetensors")
    for name in ("b", "c"):
        again = load_file(f"{name}.safetensors")
        assert all(torch.equal(first[key], again[key]) for key in first)
    assert not Path("d.safetensors").exists()


# --- sample


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_sampler_can_be_named(folder: Path, sampler: str) -> None:
    line = f"sample model.safetensors -n 3 --sampler {sampler} --out s.npy"
    steps = [] if sampler in ("flow", "adaptive-sde") else ["--steps", "2"]
    assert main([*line.split(), *steps]) == 0
    samples = np.load("s.npy")
    assert samples.shape == (3, 2)
    assert np.isfinite(samples).all()


def test_samples_depend_on_the_seed_only(folder: Path) -> None:
    line = "sample model.safetensors -n 6 --sampler ancestral --steps 3 --seed"
    for out, words in (("a", "1"), ("b", "1 --batch-size 2"), ("c", "2")):
        assert main([*line.split(), *words.split(), "--out", f"{out}.npz"]) == 0
    np.testing.assert_allclose(array("a.npz"), array("b.npz"), atol=1e-6)
    assert (array("a.npz") != array("c.npz")).any()


def test_samples_are_written_as_levels_and_pictures(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    torch.manual_seed(0)
    ScoreModel(MLP((1, 4, 5), width=8, depth=1), VPSDE()).save("images.safetensors")
    line = "sample images.safetensors -n 5 --steps 2 --shape 1 4 5 --levels 8"
    assert main([*line.split(), "--out", "s.npz", "--grid", "s.png"]) == 0
    samples = array("s.npz")
    assert samples.dtype.kind == "i"
    assert samples.shape == (5, 1, 4, 5)
    assert samples.min() >= 0
    assert samples.max() <= 7
    assert Path("s.png").read_bytes().startswith(b"\x89PNG")
    assert {file.name for file in folder.iterdir() if file.name.startswith(".")} == set()


# --- inspect


def test_inspect_describes_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"w": torch.zeros(2, 3)}, "foreign.safetensors", metadata={"made by": "others"})
    torch.save({"state": {"w": torch.zeros(4)}, "epoch": 7}, "plain.pth")
    main(["train", "points.npy", "--steps", "1", "--width", "8", "--checkpoint", "run.pt"])
    Path("renamed.bin").write_bytes(Path("points.npy").read_bytes())
    expected = {
        "model.safetensors": ("a scoresde model", "MLP(event_shape=(2,)", "VPSDE(", "known"),
        "foreign.safetensors": ("another program", "made by: others", "F32 (2, 3)"),
        "plain.pth": ("PyTorch", "state.w", "float32 (4,)", "epoch", "7"),
        "run.pt": ("a training run of scoresde, after step 1",),
        "points.npy": ("float32 (30, 2)", f"{POINTS.max():.6g}"),
        "two.npz": ("2 arrays", "uint8 (12, 4, 5)"),
        "renamed.bin": ("float32 (30, 2)",),
    }
    for name, words in expected.items():
        capsys.readouterr()
        assert main(["inspect", name]) == 0
        text = capsys.readouterr().out
        assert [word for word in words if word not in text] == [], name


def test_long_lists_are_shortened_without_all(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({f"w{k}": torch.zeros(1) for k in range(60)}, "many.safetensors")
    main(["inspect", "many.safetensors"])
    assert "and 20 more" in capsys.readouterr().out
    main(["inspect", "many.safetensors", "--all"])
    assert capsys.readouterr().out.count("F32 (1,)") == 60


# --- user errors


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("train two.npz", "--key"),
        ("train two.npz --key y", "'y'"),
        ("train points.npy --key x", "--key"),
        ("train two.npz --key levels", "--levels"),
        ("train two.npz --key levels --levels 16", "levels=16"),
        ("train two.npz --key levels --levels 0", "--levels"),
        ("train two.npz --key levels --levels 256 --range 1 1", "--range"),
        ("train points.npy --held-out 1", "--held-out"),
        ("train points.npy --held-out 0.999", "--held-out"),
        ("train points.npy --network unet", "--network"),
        ("train points.npy --width 0", "width"),
        ("train points.npy --lr -1", "lr"),
        ("train points.npy --out model.pt", "--out"),
        ("train points.npy --out nowhere/model.safetensors", "nowhere"),
        ("train points.npy --device quantum", "--device"),
        ("train words.npy", "words.npy"),
        ("train objects.npy", "objects.npy"),
        ("train broken.npy", "broken.npy"),
        ("train broken.npz", "broken.npz"),
        ("train empty", "empty"),
        ("train holes.npy --steps 1", "NaN"),
        ("sample model.safetensors", "--grid"),
        ("sample model.safetensors --grid s.bmp", "--grid"),
        ("sample nomoments.safetensors --out s.npy", "--shape"),
        ("sample model.safetensors --grid s.png --steps 1", "images"),
        ("likelihood model.safetensors wide.npy", "(2,)"),
        ("likelihood model.safetensors points.npy --tolerance 0", "--tolerance"),
        ("likelihood model.safetensors points.npy --probes 0", "probes"),
        ("likelihood model.safetensors points.npy --batch-size 0", "--batch-size"),
        ("likelihood model.safetensors points.npy --out rows.txt", "--out"),
        ("likelihood broken.safetensors points.npy", "broken.safetensors"),
        ("inspect nowhere.npz", "nowhere.npz"),
        ("inspect empty", "empty"),
        ("inspect words.txt", "words.txt"),
        ("inspect broken.safetensors", "broken.safetensors"),
        ("inspect broken.npz", "broken.npz"),
        ("inspect broken.npy", "broken.npy"),
    ],
)
def test_user_errors_are_one_line_that_names_the_argument(
    folder: Path, capsys: pytest.CaptureFixture[str], line: str, word: str
) -> None:
    Path("empty").mkdir()
    np.save("wide.npy", np.ones((3, 5), np.float32) * np.random.default_rng(0).normal(size=(3, 5)))
    np.save("words.npy", np.array(["a", "b"]))
    np.save("objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    np.save("holes.npy", np.where(POINTS > 1, np.nan, POINTS))
    Path("words.txt").write_text("no file of ours")
    ScoreModel(MLP((2,), width=8, depth=1), VPSDE()).save("nomoments.safetensors")
    for name in ("points.npy", "two.npz", "model.safetensors"):
        content = Path(name).read_bytes()
        Path(f"broken{Path(name).suffix}").write_bytes(content[: len(content) // 2])
    before = {file.name for file in folder.iterdir()}
    assert main(line.split()) == 2
    errors = [each for each in capsys.readouterr().err.splitlines() if "scoresde: error:" in each]
    assert len(errors) == 1
    assert word in errors[0]
    written = {file.name for file in folder.iterdir()} - before
    assert written <= {"likelihood.npz.partial"}  # from which the run could be resumed


def test_debug_shows_the_traceback(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        main(["inspect", "nowhere.npz", "--debug"])


def test_ctrl_c_is_no_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt("stopped after step 3")

    monkeypatch.setattr("scoresde.commands.train.fit", interrupted)
    assert main(["train", "points.npy"]) == 130
    assert "stopped after step 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "line", "extra"),
    [
        ("matplotlib", "sample model.safetensors -n 1 --steps 1 --grid s.png", "plots"),
        ("matplotlib", "demo --fast", "plots"),
        ("sklearn", "demo --fast", "data"),
        ("sklearn", "train digits", "data"),
        ("pyarrow", "likelihood model.safetensors points.npy --out rows.parquet", "data"),
    ],
)
def test_a_missing_package_names_its_extra(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: str,
    line: str,
    extra: str,
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert main(line.split()) == 2
    assert f"pip install 'scoresde[{extra}]'" in capsys.readouterr().err


# --- help


@pytest.mark.parametrize("command", COMMANDS, ids=[command.name for command in COMMANDS])
def test_the_help_of_every_option_has_its_default(command: Command) -> None:
    parser = ArgumentParser(add_help=False)
    command.add_options(parser)
    for action in parser._actions:
        assert action.help, action.dest
        if action.option_strings:
            assert "(default" in action.help, action.dest
    assert all(line.startswith("  scoresde ") for line in command.example.splitlines())


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert [command.name for command in COMMANDS if command.summary not in text] == []
    assert main(["--version"]) == 0
    assert main([]) == 2
    assert main(["dance"]) == 2


def test_importing_is_light_and_silent() -> None:
    code = (
        "import sys, scoresde.__main__\n"
        "heavy = {'matplotlib', 'sklearn', 'pyarrow', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True
    )
    assert done.stdout == b""


def test_a_closed_pipe_is_no_error(folder: Path) -> None:
    """As in ``scoresde inspect model --all | head -1``."""
    words = [sys.executable, "-m", "scoresde", "inspect", "model.safetensors", "--all"]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("command", ["sample", "restore"])
def test_out_with_a_picture_suggests_grid(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command, "model.safetensors"]
    words += ["points.npy", "--task", "denoise"] if command == "restore" else []
    assert main([*words, "--out", "samples.png"]) == 2
    assert "--grid draws a picture" in capsys.readouterr().err
