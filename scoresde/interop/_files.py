"""Others' files are data: what all readers share, and nothing here runs what a file holds.

Weights are read as tensors and plain values only, configurations as JSON, and a network takes
weights after every name and shape has been compared, so that a wrong file is refused before memory
is spent on it.
"""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from scoresde._core.checks import summarize

Weights = dict[str, Tensor]


def read_json(name: str, path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ValueError: if it is damaged or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{name}: expected JSON in {path}, which is damaged or of another kind "
            f"({type(error).__name__}); take another copy"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{name}: expected a JSON object in {path}, got {summarize(content)}; a configuration "
            "has names and values"
        )
    return content


def read_pickle(name: str, path: Path, kind: str) -> Any:
    """Return the tensors and plain values in a PyTorch file, whose pickle is not executed.

    Args:
        name: the argument's name in the message.
        path: the file.
        kind: what the file is expected to be, in words.

    Raises:
        ValueError: if it is damaged, foreign, or asks for more.
    """
    try:
        _check_sums(path)
        with torch.serialization.safe_globals(_allowed()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols, which it reads or refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may break any step of the reading
        raise ValueError(
            f"{name}: expected {kind}, got {path}, which is damaged, of another kind or holds code,"
            f" and was not executed; take another copy ({_reason(error)})"
        ) from error


def _check_sums(path: Path) -> None:
    """Raise if some parts of an archive have their checksum and others don't.

    PyTorch doesn't look at them when it reads, and can be told to write none.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        damaged = [name for name in archive.namelist() if not _has_its_sum(archive, name)]
        if 0 < len(damaged) < len(archive.namelist()):
            raise ValueError(f"the checksum of {damaged[0]} is wrong")


def _has_its_sum(archive: zipfile.ZipFile, name: str) -> bool:
    try:
        with archive.open(name) as part:
            while part.read(1 << 20):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def _allowed() -> list[Any]:
    """What a file may name besides tensors: NumPy's float64, as all versions write it.

    The learning rate of a warm-up is such a number.
    """
    scalar: Any = np.float64(0.0).__reduce__()[0]
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        np.dtypes.Float64DType,
    ]


def _reason(error: Exception) -> str:
    """Say what a file asks for, or else what the reader found, without its advice to run it."""
    if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it asks for {asked[1]}"
    found = re.search(r"WeightsUnpickler error:\s*([^\n]*)", str(error))
    said = found[1] if found else str(error).strip().split("\n")[0]
    return said or type(error).__name__


def read_safetensors(name: str, path: Path) -> Weights:
    """Return the tensors of a safetensors file.

    Raises:
        ValueError: if it is damaged or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{name}: expected a safetensors file, got {path}, which is damaged or of another kind "
            f"({error}); take another copy"
        ) from None


def check_numbers(name: str, key: str, value: object) -> Tensor:
    """Return a tensor of a file, if it is one of real numbers with all of its entries.

    Raises:
        ValueError: if it is not.
    """
    whole = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
    if not isinstance(value, Tensor) or not whole or not value.is_floating_point():
        raise ValueError(f"{name}: expected a tensor of numbers {key!r}, got {summarize(value)}")
    return value.detach()


def check_names_and_shapes(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not the network's, and name the first that differs.

    Raises:
        ValueError: if a tensor is missing, unexpected or of another shape.
    """
    expected = network.state_dict()
    for name, tensor in expected.items():
        if name not in weights:
            raise ValueError(
                f"model: expected a tensor {name!r} of shape {tuple(tensor.shape)} in the file, "
                "got none; compare the architecture with the configuration of the training"
            )
        if weights[name].shape != tensor.shape:
            raise ValueError(
                f"model: expected {name!r} of shape {tuple(tensor.shape)}, got "
                f"{tuple(weights[name].shape)} in the file; compare the architecture with the "
                "configuration of the training"
            )
    for name, tensor in weights.items():
        if name not in expected:
            raise ValueError(
                f"model: expected no tensor {name!r}, got one of shape {tuple(tensor.shape)}; the "
                "file belongs to a larger or another network"
            )
