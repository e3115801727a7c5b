"""``scoresde inspect``: the content of a file, without executing anything in it."""

from __future__ import annotations

import json
import math
import zipfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scoresde._core.checks import check_file
from scoresde.commands.base import Command, first_line
from scoresde.interop import diffusers, score_sde
from scoresde.interop.files import read_pickle

__all__ = ["COMMAND"]

_SHOWN = 40
"""Number of items that are printed without ``--all``."""

_SEARCHED = 1 << 20
"""Number of bytes of a file that are searched for a word."""

_LONGEST = 60
"""Maximum number of printed characters of a value."""


class FileItem(NamedTuple):
    """An item in a file, such as a tensor: its name and a description."""

    name: str
    description: str


class FileSummary(NamedTuple):
    """A description of a file, line by line, and the items in it."""

    lines: list[str]
    items: list[FileItem]


def inspect(path: Path) -> FileSummary:
    """Return a summary of a file or folder; its format is detected from its content.

    Raises:
        OSError: if the file does not exist.
        ValueError: if it is damaged, of an unknown format, or contains code.
    """
    if path.is_dir():
        return _diffusers(path)
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith(b"\x93NUMPY"):
        return _array(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        return _torch(path) if any(name.endswith("data.pkl") for name in names) else _arrays(path)
    if head[8:] == b"{":
        return _safetensors(path)
    if head[:1] == b"\x80":
        return _torch(path)
    raise ValueError(
        f"FILE: expected a model (.safetensors), a checkpoint (.pt, .pth) or arrays (.npz, .npy), "
        f"got {path}, which is damaged or of another kind; get another copy of the file"
    )


# --- NumPy


def _array(path: Path) -> FileSummary:
    try:
        item = FileItem(path.name, _describe(np.load(path, mmap_mode="r")))
        return FileSummary(["a NumPy array"], [item])
    except (ValueError, EOFError, OSError) as error:
        raise _unreadable(path, error) from None


def _arrays(path: Path) -> FileSummary:
    try:
        with np.load(path) as archive:
            items = [FileItem(name, _describe(archive[name])) for name in archive.files]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from None
    return FileSummary([f"a NumPy archive of {len(items)} arrays"], items)


def _describe(array: np.ndarray) -> str:
    text = f"{array.dtype} {array.shape}"
    if array.size == 0 or array.dtype.kind not in "biuf":
        return text
    return f"{text}, {array.min():.6g} … {array.max():.6g}"


# --- safetensors


def _safetensors(path: Path) -> FileSummary:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            shapes = {key: tuple(tensor.get_shape()) for key, tensor in slices.items()}
            dtypes = {key: tensor.get_dtype() for key, tensor in slices.items()}
    except SafetensorError as error:
        raise _unreadable(path, error) from None
    items = [FileItem(key, f"{dtypes[key]} {shapes[key]}") for key in shapes]
    if metadata.get("format") != "scoresde.ScoreModel":
        lines = [f"a safetensors file of another program, {_size(shapes)}"]
        lines += [f"{key}: {_short(value)}" for key, value in metadata.items()]
        return FileSummary(lines, items)
    return FileSummary(_model(path, metadata, shapes), items)


def _model(
    path: Path, metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    try:
        record = dict(json.loads(metadata["model"]))
        known = record.pop("moments_known")
        attributes = {key: _as_code(value) for key, value in record.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from None
    network = {key: shape for key, shape in shapes.items() if key.startswith("network.")}
    moments = (
        f"known, events of shape {shapes.get('moments.mean')}, "
        f"{'full' if 'moments.basis' in shapes else 'diagonal'} covariance"
        if known
        else "not known"
    )
    return [
        f"a scoresde model, {_size(network)}",
        *(f"{key}: {value}" for key, value in attributes.items()),
        f"moments of the data: {moments}",
    ]


def _as_code(record: Any) -> str:
    """Return a serialized object as Python code: ``MLP(event_shape=(2,), width=64)``."""
    if isinstance(record, list):
        return f"({', '.join(map(_as_code, record))}{',' if len(record) == 1 else ''})"
    if not isinstance(record, dict):
        return repr(record)
    if "foreign" in record:
        return f"{record['foreign']} (not part of scoresde: pass it to ScoreModel.load)"
    if "tensor" in record:
        return _short(f"tensor({record['tensor']})")
    arguments = (f"{key}={_as_code(value)}" for key, value in record["arguments"].items())
    return f"{record['class']}({', '.join(arguments)})"


# --- diffusers


def _diffusers(path: Path) -> FileSummary:
    files = diffusers.files(path)
    process = diffusers.forward_process(files.scheduler)
    lines = [
        f"a folder of diffusers: {files.unet.get('_class_name')} with "
        f"{files.scheduler['_class_name']}",
        f"sde: {process.sde}",
        f"prediction: {process.prediction}",
        f"label: {process.label}",
        *(f"{key}: {_short(str(value))}" for key, value in files.unet.items() if key[0] != "_"),
        f"load with: scoresde.interop.diffusers.load({str(path)!r})",
    ]
    weights = inspect(files.weights)
    return FileSummary(lines, [FileItem(files.weights.name, weights.lines[0]), *weights.items])


# --- PyTorch


def _torch(path: Path) -> FileSummary:
    try:
        state = read_pickle("FILE", path, "a checkpoint of tensors and plain values")
    except ValueError:
        if not _contains(path, b"torch_utils.persistence"):
            raise
        raise ValueError(
            f"FILE: expected data, got {path}, a pickle of EDM or StyleGAN, which contains code; "
            "load it with EDM's own code if you trust it, and pass the network to "
            "scoresde.interop.edm.wrap"
        ) from None
    if isinstance(state, dict):  # the optimizer last
        state = dict(sorted(state.items(), key=lambda item: item[0] == "optimizer"))
    return FileSummary(_checkpoint(path, state), list(_items("", state)))


def _contains(path: Path, word: bytes) -> bool:
    """Whether the beginning of a file contains a word."""
    with path.open("rb") as file:
        return word in file.read(_SEARCHED)


def _checkpoint(path: Path, state: Any) -> list[str]:
    """Return the origin of a checkpoint and how to load it."""
    if isinstance(state, dict) and state.get("format") == "scoresde.fit":
        return [f"a training run of scoresde, after step {state.get('step')}"]
    if isinstance(state, dict) and {"model", "ema"} <= state.keys():
        return [
            f"a checkpoint of score_sde_pytorch, after step {state.get('step')}",
            *_score_sde(path, state),
        ]
    return ["a PyTorch file of tensors and plain values"]


def _score_sde(path: Path, state: Mapping[str, Any]) -> list[str]:
    """Return the network and the SDE of a checkpoint and how to load it."""
    try:
        network, parameters, sigmas, sde = score_sde.summarize_checkpoint(state)
    except ValueError as error:
        return [f"network: none of scoresde's ({error})"]
    sde_text, config = str(sde), ""
    if sde is None:
        sde_text = "not in the file; see training.sde and training.continuous in its configuration"
        config = ", {'training.sde': …, 'training.continuous': …}"
    return [
        f"network: {network}, {parameters:,} parameters",
        f"noise levels: {len(sigmas)}, {float(sigmas[0]):g} … {float(sigmas[-1]):g}",
        f"sde: {sde_text}",
        f"load with: scoresde.interop.score_sde.load({str(path)!r}{config})",
    ]


def _items(name: str, value: Any) -> Iterator[FileItem]:
    """Yield the tensors and plain values in nested dictionaries and lists."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _items(f"{name}.{key}" if name else str(key), item)
    elif isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
        for number, item in enumerate(value):
            yield from _items(f"{name}.{number}", item)
    elif isinstance(value, Tensor):
        yield FileItem(name, f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}")
    else:
        yield FileItem(name, _short(repr(value)))


# --- formatting


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"FILE: expected a complete file, got {path}, which can't be read; get another copy of the "
        f"file ({first_line(error)})"
    )


def _size(shapes: Mapping[str, tuple[int, ...]]) -> str:
    count = sum(math.prod(shape) for shape in shapes.values())
    return f"{count:,} numbers in {len(shapes)} tensors"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        help="a .safetensors, .npz, .npy, .pt or .pth file, or a folder of diffusers",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help=f"list all items in the file (default: the first {_SHOWN})",
    )


def run(options: Namespace) -> None:
    path = Path(options.file)
    path = path if path.is_dir() else check_file("FILE", options.file)
    lines, items = inspect(path)
    print(f"{path}: {lines[0]}", *lines[1:], sep="\n  ")
    shown = items if options.all else items[:_SHOWN]
    width = max((len(item.name) for item in shown), default=0)
    for item in shown:
        print(f"    {item.name:<{width}}  {item.description}")
    if len(shown) < len(items):
        print(f"    … and {len(items) - len(shown)} more (--all shows them)")


COMMAND = Command(
    name="inspect",
    summary="describe a file without executing anything in it",
    description="Describe a file: the network, SDE and data moments of a model, the tensors of a "
    "checkpoint, the arrays of a NumPy file, the configuration of a folder of diffusers. Nothing "
    "in the file is executed.",
    example="""\
  scoresde inspect model.safetensors
  scoresde inspect checkpoint.pth --all
  scoresde inspect ddpm-cifar10-32/""",
    add_options=add_options,
    run=run,
)
