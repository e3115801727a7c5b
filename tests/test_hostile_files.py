"""Damaged, foreign and malicious files: every reader refuses them and executes nothing."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scoresde import MLP, VPSDE, ScoreModel, fit
from scoresde.__main__ import main
from scoresde.interop import diffusers, score_sde
from scoresde.networks import NCSNpp

Attack = Callable[[Path], object]


class ShellCommandPickle:
    """Its pickle runs a shell command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.fixture
def marker(tmp_path: Path):
    """A path that exists if a pickle was executed; the test fails if it exists at the end."""
    path = tmp_path / "executed"
    pickle.loads(pickle.dumps(ShellCommandPickle(path)))
    assert path.exists()  # a plain pickle.load runs it
    path.unlink()
    yield path
    assert not path.exists()


# --- readers, and a valid file for each


def model_file(folder: Path) -> Path:
    path = folder / "model.safetensors"
    ScoreModel(MLP((2,), width=8, depth=1), VPSDE()).save(path)
    return path


def checkpoint(folder: Path) -> Path:
    path = folder / "checkpoint.pth"
    network = NCSNpp(2, 8, (1, 2), 1, (1,), fourier_scale=16.0, scale_by_sigma=True, centered=False)
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    average = [p.detach() for p in network.parameters() if p.requires_grad]
    torch.save({"model": state, "ema": {"shadow_params": average}}, path)
    return path


def train(path: Path) -> object:
    model = ScoreModel(MLP((2,), width=8, depth=1), VPSDE())
    return fit(model, torch.randn(20, 2), steps=2, checkpoint=path, progress=False)


def run(folder: Path) -> Path:
    train(folder / "run.pt")
    return folder / "run.pt"


def inspect_file(path: Path) -> int:
    """``scoresde inspect``; raises where the command prints an error."""
    if (code := main(["inspect", str(path)])) == 2:
        raise ValueError("FILE")
    return code


READERS = {
    "ScoreModel.load": (model_file, ScoreModel.load, r"^path"),
    "score_sde.load": (checkpoint, score_sde.load, r"^(path|model|ema)"),
    "fit": (run, train, r"^checkpoint"),
    "inspect model": (model_file, inspect_file, "FILE"),
    "inspect checkpoint": (checkpoint, inspect_file, "FILE"),
}


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest, tmp_path: Path):
    make, read, named = READERS[request.param]
    path = make(tmp_path)
    read(path)
    return path, read, named


def bare_pickle(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps({"model": ShellCommandPickle(marker), "ema": {}}))


def archived_pickle(path: Path, marker: Path) -> None:
    torch.save(
        {"model": {}, "ema": {}, "format": "scoresde.fit", "x": ShellCommandPickle(marker)}, path
    )


def old_pickle(path: Path, marker: Path) -> None:
    torch.save([ShellCommandPickle(marker)], path, _use_new_zipfile_serialization=False)


def object_array(path: Path, marker: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([ShellCommandPickle(marker)], dtype=object), allow_pickle=True)


def object_archive(path: Path, marker: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, x=np.array([ShellCommandPickle(marker)], dtype=object))


@pytest.mark.parametrize(
    "write", [bare_pickle, archived_pickle, old_pickle, object_array, object_archive]
)
def test_nothing_is_executed(reader, write, marker):
    path, read, named = reader
    write(path, marker)
    with pytest.raises(ValueError, match=named) as caught:
        read(path)
    assert not marker.exists()
    assert str(marker) not in str(caught.value)


@pytest.mark.parametrize("length", [0, 1, 8, 9, 0.3, 0.99])
def test_truncated_files(reader, length):
    path, read, named = reader
    content = path.read_bytes()
    path.write_bytes(content[: length if isinstance(length, int) else int(length * len(content))])
    with pytest.raises(ValueError, match=named):
        read(path)


@pytest.mark.parametrize("reads", ["score_sde.load", "inspect checkpoint"])
def test_a_flipped_bit(tmp_path, reads):
    """Only the checksum shows it: PyTorch loads the file."""
    make, read, named = READERS[reads]
    path = make(tmp_path)
    with zipfile.ZipFile(path) as archive:
        tensors = [info for info in archive.infolist() if "/data/" in info.filename]
        largest = max(tensors, key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 200] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    with pytest.raises(ValueError, match=named):
        read(path)


def test_archives_without_checksums(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = checkpoint(tmp_path)
    finally:
        torch.serialization.set_crc32_options(before)
    score_sde.load(path)


@pytest.mark.parametrize("name", ["module.sigmas", "module.all_modules.0.W", "average"])
@pytest.mark.parametrize("kind", ["sparse", "meta", "complex", "integer", "quadratic"])
def test_tensors_of_other_kinds(tmp_path, name, kind):
    path = checkpoint(tmp_path)
    state = torch.load(path, weights_only=True)
    tensors, key = (
        (state["ema"]["shadow_params"], 0) if name == "average" else (state["model"], name)
    )
    tensor = tensors[key]
    tensors[key] = {
        "sparse": tensor.to_sparse(),
        "meta": tensor.to("meta"),
        "complex": tensor.to(torch.complex64),
        "integer": tensor.long(),
        "quadratic": tensor.new_ones(1).expand(10**6, 10**6),  # stored as one number
    }[kind]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"^(model|ema): "):
        score_sde.load(path)
    inspect_file(path)


@pytest.mark.parametrize("kind", ["words", "zeros", "noise", "archive", "foreign", "json"])
def test_files_of_another_kind(reader, kind, marker):
    path, read, named = reader
    path.unlink()
    if kind == "archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"not a pickle")
    elif kind == "foreign":
        save_file({"w": torch.zeros(2)}, path, metadata={"format": "pt"})
        if read is inspect_file:  # it describes any safetensors file
            read(path)
            return
    else:
        noise = np.random.default_rng(0).bytes(1000)
        content = {"words": b"no model", "zeros": bytes(1000), "noise": noise, "json": b"{}"}
        path.write_bytes(content[kind])
    with pytest.raises(ValueError, match=named):
        read(path)


def test_links_that_lead_nowhere_are_missing_files(reader):
    path, read, _ = reader
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("nowhere"))
    if read is not train:  # it starts a new run
        with pytest.raises((FileNotFoundError, ValueError)):
            read(path)


# --- safetensors


def with_header(path: Path, header: bytes, length: int | None = None, data: bytes = b"") -> None:
    size = len(header) if length is None else length
    path.write_bytes(struct.pack("<Q", size) + header + data)


@pytest.mark.parametrize("load", [ScoreModel.load, inspect_file])
@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b'{"w":', 1 << 60),  # more than the file has
        (b"{", 99_000_000),
        (b'{"w": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4]}}', None),
        (b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4000000]}}', None),
        (b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}', None),
        (b'{"w": {"dtype": "Python", "shape": [1], "data_offsets": [0, 4]}}', None),
        (b"{" + b'"a": {' * 10_000, None),
        (b"\xff\xfe{}", None),
    ],
    ids=["huge", "large", "shape", "beyond", "backwards", "dtype", "deep", "bytes"],
)
def test_wrong_headers(tmp_path, load, header, length):
    path = tmp_path / "model.safetensors"
    with_header(path, header, length, bytes(4))
    with pytest.raises(ValueError, match=r"FILE|path"):
        load(path)


def changed_record(path: Path, change: Callable[[dict], object]) -> None:
    """Change a model's metadata in its file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["model"])
    change(record)
    save_file(load_file(path), path, metadata | {"model": json.dumps(record)})


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["network"].update({"class": "os.system"}),
        lambda record: record["network"].update({"class": "Module"}),
        lambda record: record["network"].update({"arguments": {"command": "touch x"}}),
        lambda record: record["network"]["arguments"].update({"width": -1}),
        lambda record: record["network"]["arguments"].update({"width": 16}),
        lambda record: record["network"]["arguments"].update({"event_shape": "(2,)"}),
        lambda record: record["sde"].update({"class": "GaussianSDE"}),
        lambda record: record["sde"]["arguments"].update({"beta_max": None}),
        lambda record: record.update({"sde": {"tensor": [[1], [2, 3]], "dtype": "float32"}}),
        lambda record: record.update({"prediction": 7}),
        lambda record: record.update({"label": ["TimeLabel"]}),
        lambda record: record.pop("network"),
    ],
)
def test_records_of_other_objects(tmp_path, change):
    path = model_file(tmp_path)
    changed_record(path, change)
    with pytest.raises((ValueError, TypeError), match=r"^[a-z_, ]+: "):
        ScoreModel.load(path)


@pytest.mark.parametrize("kind", ["missing", "extra", "shape", "moments"])
def test_tensors_of_another_model(tmp_path, kind):
    path = model_file(tmp_path)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    first = min(name for name in tensors if name.startswith("network."))
    if kind == "missing":
        del tensors[first]
    elif kind == "extra":
        tensors["network.extra"] = torch.zeros(1)
    elif kind == "shape":
        tensors[first] = torch.zeros(3, 3, 3)
    else:
        del tensors["moments.mean"]
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=r"^(network|path): "):
        ScoreModel.load(path)


# --- folders of diffusers


UNET = {
    "_class_name": "UNet2DModel",
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": [8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pytest.importorskip("diffusers")
    from diffusers import UNet2DModel

    root = tmp_path / "pipeline"
    for name in ("unet", "scheduler"):
        (root / name).mkdir(parents=True)
    network = UNet2DModel(**{k: v for k, v in UNET.items() if k[0] != "_"})
    save_file(network.state_dict(), root / "unet/diffusion_pytorch_model.safetensors")
    (root / "unet/config.json").write_text(json.dumps(UNET))
    scheduler = {"_class_name": "DDPMScheduler", "num_train_timesteps": 100}
    (root / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    diffusers.load(root)
    return root


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CONFIGS = ["unet/config.json", "scheduler/scheduler_config.json"]


@pytest.mark.parametrize("write", [bare_pickle, archived_pickle, old_pickle])
@pytest.mark.parametrize("name", [WEIGHTS, WEIGHTS.replace("safetensors", "bin")])
def test_weights_of_a_folder_are_not_executed(folder, name, write, marker):
    (folder / WEIGHTS).unlink()
    write(folder / name, marker)
    with pytest.raises(ValueError, match=r"^unet: "):
        diffusers.load(folder)
    assert main(["inspect", str(folder)]) in (0, 2)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"a": ', b"[1, 2]", b"7", b"\xff\xfe", b"[" * 100_000, b"__import__('os')"],
    ids=["empty", "open", "cut", "list", "number", "bytes", "deep", "code"],
)
def test_broken_configurations(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"^(unet|scheduler): expected"):
        diffusers.load(folder)
    assert main(["inspect", str(folder)]) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "os.system"},
        {"_class_name": "UNet2DConditionModel"},
        {"auto_map": "evil.Model"},
        {"down_block_types": ["os.system"]},
        {"down_block_types": 5},
        {"block_out_channels": [10**9]},  # refused before it is allocated
        {"block_out_channels": [-8]},
        {"act_fn": "exec"},
        {"layers_per_block": 2},
        {"norm_num_groups": 0},
        {"time_embedding_type": "none"},
    ],
    ids=str,
)
def test_networks_that_are_not_built(folder, change):
    (folder / "unet/config.json").write_text(json.dumps(UNET | change))
    with pytest.raises(ValueError, match=r"^(unet|model): expected"):
        diffusers.load(folder)


def test_weights_of_another_network(folder):
    tensors = load_file(folder / WEIGHTS)
    first = min(tensors)

    def refused(message: str, changed: dict) -> None:
        save_file(changed, folder / WEIGHTS)
        with pytest.raises(ValueError, match=message):
            diffusers.load(folder)

    refused("^model: expected a tensor", {k: v for k, v in tensors.items() if k != first})
    refused("^model: expected no tensor 'extra'", tensors | {"extra": torch.zeros(1)})
    refused(f"^model: expected '{first}' of shape", tensors | {first: torch.zeros(7)})
    refused(
        "^unet: expected a dense floating-point tensor", tensors | {first: torch.zeros(7).bool()}
    )


@pytest.mark.parametrize("name", [*CONFIGS, WEIGHTS])
def test_links_that_lead_out_of_a_folder(folder, tmp_path, name):
    outside = tmp_path / "outside"
    shutil.move(folder / name, outside)
    with pytest.raises(FileNotFoundError, match=r"^folder: "):
        diffusers.load(folder)
    (folder / name).symlink_to(outside)
    with pytest.raises(ValueError, match=r"^folder: .*leads out"):
        diffusers.load(folder)
    assert main(["inspect", str(folder)]) == 2
    (folder / name).unlink()
    shutil.move(outside, folder / "inside")
    (folder / name).symlink_to(folder / "inside")
    diffusers.load(folder)


def test_missing_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^folder: .*nothing is downloaded"):
        diffusers.load("google/ddpm-cifar10-32")
    with pytest.raises(FileNotFoundError, match=r"^folder: .*scheduler_config.json"):
        diffusers.load(tmp_path)
    with pytest.raises(TypeError, match=r"^folder: "):
        diffusers.load(7)


# --- inspect


def test_inspect_shows_the_origin_of_a_file(folder, tmp_path, capsys):
    path = checkpoint(tmp_path)
    assert main(["inspect", str(path), "--all"]) == 0
    text = capsys.readouterr().out
    count = sum(p.numel() for p in score_sde.load(path).network.parameters())
    for word in ("score_sde_pytorch", "NCSNpp(channels=2, width=8", f"{count:,} parameters"):
        assert word in text
    assert "sde: VESDE(sigma_min=0.01, sigma_max=50)" in text
    assert text.index("model.module.sigmas") < text.index("ema.shadow_params.0")
    assert main(["inspect", str(folder)]) == 0
    text = capsys.readouterr().out
    for word in ("UNet2DModel with DDPMScheduler", "DDPM(N=100", "NoisePrediction", "conv_in.bias"):
        assert word in text


def test_inspect_shows_what_is_missing_in_a_checkpoint(tmp_path, capsys):
    path, network = tmp_path / "vp.pth", NCSNpp(2, 8, (1, 2), 1, (1,))
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"model": state, "ema": {}}, path)
    assert main(["inspect", str(path)]) == 0
    assert "not in the file; see training.sde" in capsys.readouterr().out
    torch.save({"model": {"w": torch.zeros(2)}, "ema": {}}, path)
    assert main(["inspect", str(path)]) == 0
    assert "network: none of scoresde's" in capsys.readouterr().out


@pytest.mark.parametrize("write", [bare_pickle, archived_pickle, old_pickle])
def test_messages_do_not_advise_to_execute_a_file(tmp_path, write, marker):
    """Unlike PyTorch's message."""
    write(tmp_path / "evil.pth", marker)
    with pytest.raises(ValueError, match="was not executed") as caught:
        score_sde.load(tmp_path / "evil.pth")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("protocol", [2, 4])
def test_inspect_recognizes_the_pickles_of_edm(tmp_path, monkeypatch, capsys, protocol):
    """Their pickles contain the source of the networks."""
    persistence = types.ModuleType("torch_utils.persistence")
    exec("def _reconstruct_persistent_obj(meta): raise SystemExit", vars(persistence))
    for name in ("torch_utils", "torch_utils.persistence"):
        monkeypatch.setitem(sys.modules, name, persistence)

    class Persistent:
        def __reduce__(self):
            return persistence._reconstruct_persistent_obj, ({"module_src": "import os"},)

    path = tmp_path / "edm.pkl"
    path.write_bytes(pickle.dumps({"ema": Persistent()}, protocol))
    assert main(["inspect", str(path)]) == 2
    assert "EDM or StyleGAN" in capsys.readouterr().err


def test_inspect_names_the_function_in_a_pickle(tmp_path, marker, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"model": ShellCommandPickle(marker)}, path)
    assert main(["inspect", str(path)]) == 2
    assert "posix.system" in capsys.readouterr().err
