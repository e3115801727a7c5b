"""``scoresde inspect``: what a file is, told without running anything in it."""

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
from scoresde.commands.base import Command
from scoresde.interop import diffusers, score_sde
from scoresde.interop._files import read_pickle

__all__ = ["COMMAND"]

_SHOWN = 40
"""Rows of a table that are shown unless all are asked for."""

_LOOKED_AT = 1 << 20
"""Bytes of a file that are searched for words."""

_LONGEST = 60
"""Characters of a value that are shown."""


class Entry(NamedTuple):
    """One thing in a file: its name, and what it is."""

    name: str
    what: str


class Report(NamedTuple):
    """What a file is, in words, and what it holds."""

    summary: list[str]
    entries: list[Entry]


def inspect(path: Path) -> Report:
    """Return what a file or folder is; its kind is told by its content, not by its name.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is damaged, of an unknown kind, or could only be read by running code.
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
        f"got {path}, which is damaged or of another kind"
    )


# --- NumPy


def _array(path: Path) -> Report:
    try:
        return Report(["a NumPy array"], [Entry(path.name, _told(np.load(path, mmap_mode="r")))])
    except (ValueError, EOFError, OSError) as error:
        raise _unreadable(path, error) from None


def _arrays(path: Path) -> Report:
    try:
        with np.load(path) as archive:
            entries = [Entry(name, _told(archive[name])) for name in archive.files]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from None
    return Report([f"a NumPy archive of {len(entries)} arrays"], entries)


def _told(array: np.ndarray) -> str:
    text = f"{array.dtype} {array.shape}"
    if array.size == 0 or array.dtype.kind not in "biuf":
        return text
    return f"{text}, {array.min():.6g} … {array.max():.6g}"


# --- safetensors


def _safetensors(path: Path) -> Report:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
            kinds = {key: part.get_dtype() for key, part in slices.items()}
    except SafetensorError as error:
        raise _unreadable(path, error) from None
    entries = [Entry(key, f"{kinds[key]} {shapes[key]}") for key in shapes]
    if metadata.get("format") != "scoresde.ScoreModel":
        summary = [f"a safetensors file of another program, {_size(shapes)}"]
        summary += [f"{key}: {_short(value)}" for key, value in metadata.items()]
        return Report(summary, entries)
    return Report(_model(path, metadata, shapes), entries)


def _model(
    path: Path, metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    try:
        record = dict(json.loads(metadata["model"]))
        known, parts = record.pop("moments_known"), {key: _spelled(record[key]) for key in record}
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from None
    network = {key: shape for key, shape in shapes.items() if key.startswith("network.")}
    moments = (
        f"known, of events of shape {shapes.get('moments.mean')}, "
        f"{'full' if 'moments.basis' in shapes else 'diagonal'} covariance"
        if known
        else "not known"
    )
    return [
        f"a scoresde model, {_size(network)}",
        *(f"{key}: {value}" for key, value in parts.items()),
        f"moments of the data: {moments}",
    ]


def _spelled(record: Any) -> str:
    """A record of an object as one would write it: ``MLP(event_shape=(2,), width=64)``."""
    if isinstance(record, list):
        return f"({', '.join(map(_spelled, record))}{',' if len(record) == 1 else ''})"
    if not isinstance(record, dict):
        return repr(record)
    if "foreign" in record:
        return f"{record['foreign']} (not part of scoresde: hand it to ScoreModel.load)"
    if "tensor" in record:
        return _short(f"tensor({record['tensor']})")
    arguments = (f"{key}={_spelled(value)}" for key, value in record["arguments"].items())
    return f"{record['class']}({', '.join(arguments)})"


# --- diffusers


def _diffusers(path: Path) -> Report:
    found = diffusers.files(path)
    told = diffusers.forward_process(found.scheduler)
    summary = [
        f"a folder of diffusers: {found.unet.get('_class_name')} with "
        f"{found.scheduler['_class_name']}",
        f"sde: {told.sde}",
        f"prediction: {told.prediction}",
        f"label: {told.label}",
        *(f"{key}: {_short(str(value))}" for key, value in found.unet.items() if key[0] != "_"),
        f"read by: scoresde.interop.diffusers.load({str(path)!r})",
    ]
    weights = inspect(found.weights)
    return Report(summary, [Entry(found.weights.name, weights.summary[0]), *weights.entries])


# --- PyTorch


def _torch(path: Path) -> Report:
    try:
        state = read_pickle("FILE", path, "a checkpoint of tensors and plain values")
    except ValueError:
        if not _holds(path, b"torch_utils.persistence"):
            raise
        raise ValueError(
            f"FILE: expected data, got {path}, a pickle of EDM or StyleGAN, which holds program "
            "code; load it by its authors' program where you trust it, and hand the network to "
            "scoresde.interop.edm.wrap"
        ) from None
    if isinstance(state, dict):  # what has been learned before what learning needs
        state = dict(sorted(state.items(), key=lambda item: item[0] == "optimizer"))
    return Report(_checkpoint(path, state), list(_walk("", state)))


def _holds(path: Path, word: bytes) -> bool:
    """Whether a word stands near the beginning of a file."""
    with path.open("rb") as file:
        return word in file.read(_LOOKED_AT)


def _checkpoint(path: Path, state: Any) -> list[str]:
    """Tell whose checkpoint this is, and what reads it."""
    if isinstance(state, dict) and state.get("format") == "scoresde.fit":
        return [f"a training run of scoresde, after step {state.get('step')}"]
    if isinstance(state, dict) and {"model", "ema"} <= state.keys():
        return [
            f"a checkpoint of score_sde_pytorch, after step {state.get('step')}",
            *_score_sde(path, state),
        ]
    return ["a PyTorch file of tensors and plain values"]


def _score_sde(path: Path, state: Mapping[str, Any]) -> list[str]:
    """Tell the network and the diffusion, and how both are had."""
    try:
        network, parameters, ladder, sde = score_sde.summarize_checkpoint(state)
    except ValueError as error:
        return [f"network: none of scoresde's ({error})"]
    told, config = str(sde), ""
    if sde is None:
        told = "not in the file; see training.sde and training.continuous in its configuration"
        config = ", {'training.sde': …, 'training.continuous': …}"
    return [
        f"network: {network}, {parameters:,} parameters",
        f"noise levels: {len(ladder)}, {float(ladder[0]):g} … {float(ladder[-1]):g}",
        f"sde: {told}",
        f"read by: scoresde.interop.score_sde.load({str(path)!r}{config})",
    ]


def _walk(name: str, value: Any) -> Iterator[Entry]:
    """Tell of tensors and plain values, however deep in dictionaries and lists."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _walk(f"{name}.{key}" if name else str(key), item)
    elif isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
        for number, item in enumerate(value):
            yield from _walk(f"{name}.{number}", item)
    elif isinstance(value, Tensor):
        yield Entry(name, f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}")
    else:
        yield Entry(name, _short(repr(value)))


# --- words


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return ValueError(f"FILE: expected a whole file, got {path}, which can't be read ({reason})")


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
        help=f"list everything the file holds (default: the first {_SHOWN})",
    )


def run(options: Namespace) -> None:
    path = Path(options.file)
    path = path if path.is_dir() else check_file("FILE", options.file)
    summary, entries = inspect(path)
    print(f"{path}: {summary[0]}", *summary[1:], sep="\n  ")
    shown = entries if options.all else entries[:_SHOWN]
    width = max((len(entry.name) for entry in shown), default=0)
    for entry in shown:
        print(f"    {entry.name:<{width}}  {entry.what}")
    if len(shown) < len(entries):
        print(f"    … and {len(entries) - len(shown)} more (--all shows them)")


COMMAND = Command(
    name="inspect",
    summary="tell what a file is, without running anything in it",
    description="Tell what a file holds: the network, diffusion and moments of a model, the "
    "tensors of a checkpoint, the arrays of a NumPy file, the parts of a folder of diffusers. "
    "Nothing in it is executed.",
    example="""\
  scoresde inspect model.safetensors
  scoresde inspect checkpoint.pth --all
  scoresde inspect ddpm-cifar10-32/""",
    add_options=add_options,
    run=run,
)
