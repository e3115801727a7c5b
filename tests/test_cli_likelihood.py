"""``scoresde likelihood``: finished rows are stored, and results depend on seed and row only."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from scoresde import MLP, VPSDE, Moments, ScoreModel, log_likelihood
from scoresde.__main__ import main
from scoresde.commands import likelihood as command

LEVELS = np.random.default_rng(0).integers(0, 4, size=(7, 1, 2, 2)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with integer data of four levels, and a model with the moments of such data."""
    monkeypatch.chdir(tmp_path)
    np.savez("levels.npz", x=LEVELS, other=LEVELS[:3])
    torch.manual_seed(0)
    network = MLP((1, 2, 2), width=8, depth=1)
    torch.nn.init.normal_(network.output.weight, std=0.1)
    moments = Moments(torch.zeros(1, 2, 2), 0.3 * torch.ones(4), known=True)
    ScoreModel(network, VPSDE(), moments=moments).save("model.safetensors")
    return tmp_path


def compute(words: str, out: str = "rows.npz") -> int:
    line = f"likelihood model.safetensors levels.npz --key x --levels 4 --tolerance 0.01 {words}"
    return main([*line.split(), "--out", out])


def rows(path: str = "rows.npz") -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def numbers(found: dict[str, np.ndarray]) -> dict[str, list[float]]:
    return {name: found[name].tolist() for name in found if name != "seconds"}


class InterruptionError(Exception):
    """Represents a failure of the machine during a run."""


def interrupt_after(batches: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until ``batches`` batches are finished, then raise."""
    calls = 0

    def failing(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls > batches:
            raise InterruptionError
        return log_likelihood(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(command, "log_likelihood", failing)
        with pytest.raises(InterruptionError):
            compute(words)


def test_results_equal_those_of_the_library(folder: Path) -> None:
    assert compute("--exact --seed 3") == 0
    found = rows()
    assert found["row"].tolist() == list(range(7))
    quantization = command.Quantization(4)
    settings = command.EvaluationSettings(quantization, None, 0.01, 3)
    x = settings.points(torch.from_numpy(LEVELS), 0)
    assert torch.equal(quantization.quantize(x), torch.from_numpy(LEVELS).long())
    truth = log_likelihood(ScoreModel.load("model.safetensors"), x, tolerance=0.01)
    np.testing.assert_allclose(found["log_prob"], truth.log_prob.numpy(), atol=1e-5)
    bits = truth.bits_per_dim(levels=4, scale=2.0)
    np.testing.assert_allclose(found["bits_per_dim"], bits.numpy(), atol=1e-5)
    assert found["converged"].dtype == bool
    assert (found["evaluations"] > 0).all()


@pytest.mark.parametrize("trace", ["--exact", "--probes 2"])
def test_results_do_not_depend_on_the_batch_size(folder: Path, trace: str) -> None:
    # The difference is the rounding of matrix products of other sizes, amplified by the step-size
    # control; other probes or other noise would change log_prob by about 0.3.
    for size in (3, 64):
        assert compute(f"{trace} --batch-size {size}", f"{size}.npz") == 0
    small, large = rows("3.npz"), rows("64.npz")
    for name in ("log_prob", "standard_error"):
        np.testing.assert_allclose(small[name], large[name], atol=5e-3)


def test_another_seed_gives_other_results(folder: Path) -> None:
    assert compute("--seed 1", "1.npz") == 0
    assert compute("--seed 2", "b.npz") == 0
    assert (rows("1.npz")["log_prob"] != rows("b.npz")["log_prob"]).all()


@pytest.mark.parametrize("trace", ["--exact", "--probes 1"])
def test_an_interrupted_run_resumes_after_its_last_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trace: str
) -> None:
    words = f"{trace} --batch-size 2"
    interrupt_after(2, words, monkeypatch)
    assert not Path("rows.npz").exists()
    partial = Path("rows.npz.partial")
    lines = partial.read_text().splitlines()
    assert len(lines) == 1 + 4
    assert compute(words) == 0
    assert "resuming after row 4 of 7" in capsys.readouterr().out
    assert not partial.exists()
    assert compute(words, "straight.npz") == 0
    assert numbers(rows()) == numbers(rows("straight.npz"))
    assert rows()["row"].tolist() == list(range(7))


def test_an_incomplete_line_is_recomputed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_after(1, "--batch-size 2", monkeypatch)
    partial = Path("rows.npz.partial")
    partial.write_bytes(partial.read_bytes()[:-20])
    assert compute("--batch-size 2") == 0
    assert compute("--batch-size 2", "straight.npz") == 0
    found, straight = rows(), rows("straight.npz")
    np.testing.assert_allclose(found["log_prob"], straight["log_prob"], atol=5e-3)
    assert found["row"].tolist() == list(range(7))


@pytest.mark.parametrize("words", ["--seed 1", "--exact", "--range 0 1"])
def test_rows_of_another_run_are_refused(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
) -> None:
    interrupt_after(1, "--batch-size 2", monkeypatch)
    before = Path("rows.npz.partial").read_bytes()
    assert compute(words) == 2
    assert "--restart" in capsys.readouterr().err
    assert Path("rows.npz.partial").read_bytes() == before
    assert compute(f"{words} --restart") == 0
    assert len(rows()["row"]) == 7


def test_a_foreign_partial_file_is_not_overwritten(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("rows.npz.partial").write_text("dear diary\n")
    assert compute("") == 2
    assert "rows.npz.partial" in capsys.readouterr().err
    assert Path("rows.npz.partial").read_text() == "dear diary\n"


def test_all_formats_have_the_same_content(folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert compute("") == 0
    assert compute("", "rows.csv") == 0
    assert compute("", "rows.parquet") == 0
    truth = numbers(rows())
    with Path("rows.csv").open() as file:
        lines = list(csv.DictReader(file))
    table = parquet.read_table("rows.parquet").to_pydict()
    for name in ("log_prob", "bits_per_dim", "solver_error"):
        assert [float(line[name]) for line in lines] == truth[name]
        assert table[name] == truth[name]
    assert [line["converged"] == "True" for line in lines] == truth["converged"]
    assert table["converged"] == truth["converged"]


def test_the_summary_has_a_standard_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compute("--probes 2") == 0
    text = capsys.readouterr().out
    found = rows()
    bits = found["bits_per_dim"]
    assert f"{bits.mean():.4f} ± {bits.std(ddof=1) / 7**0.5:.4f} bits/dim" in text
    assert f"{int(found['converged'].sum())} of 7 converged" in text
    assert f"{found['evaluations'].mean():.1f} evaluations" in text
    assert f"{found['standard_error'].max():.2g} nats" in text


def test_several_methods_are_compared(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Columns and a summary line for each further method, also after an interruption."""
    interrupt_after(1, "--method flow path bound --batch-size 4", monkeypatch)
    assert compute("--method flow path bound") == 0
    text = capsys.readouterr().out
    found = rows()
    gap = found["path_log_prob"] - found["log_prob"]
    assert f"path: log p differs by {gap.mean():.3f} nats" in text
    assert "bound: log p differs" in text
    assert found["bound_error"].shape == (7,)
    assert compute("--method path", "path.npz") == 0
    path = rows("path.npz")
    np.testing.assert_allclose(path["log_prob"], found["path_log_prob"], atol=5e-3)
    assert "path_log_prob" not in path
    assert compute("--method flow path", "both.csv") == 0
    with Path("both.csv").open() as file:
        lines = list(csv.DictReader(file))
    np.testing.assert_allclose(
        [float(line["path_log_prob"]) for line in lines], path["log_prob"], atol=5e-3
    )
    assert compute("--method guess") == 2


def test_quantized_floats_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("floats.npy", LEVELS.astype(np.float32) / 2 - 1)
    assert main(["likelihood", "model.safetensors", "floats.npy"]) == 2
    assert "--levels" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_process_loses_no_finished_row(folder: Path) -> None:
    np.savez("levels.npz", x=np.tile(LEVELS, (20, 1, 1, 1)))
    words = "likelihood model.safetensors levels.npz --levels 4 --batch-size 4 --out rows.npz"
    line = [sys.executable, "-m", "scoresde", *words.split()]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        line, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    partial = Path("rows.npz.partial")
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.read_text().count("\n") > 8):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = partial.read_text().count("\n") - 1
    assert 8 <= done < 140
    resumed = subprocess.run(line, env=environment, check=True, capture_output=True, text=True)
    assert "resuming after row" in resumed.stdout
    assert rows()["row"].tolist() == list(range(140))
