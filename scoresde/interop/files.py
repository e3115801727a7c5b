"""Safe loading of foreign files, shared by all readers; no code in a file is executed.

Weights are loaded as tensors and plain values only, configurations as JSON. The names and shapes
of all tensors are compared with those of the network before the network is allocated.
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
        ValueError: if the file is damaged or contains something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{name}: expected JSON in {path}, which is damaged or of another kind "
            f"({type(error).__name__}); get another copy of the file"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{name}: expected a JSON object in {path}, got {summarize(content)}; a configuration "
            "maps names to values"
        )
    return content


def read_pickle(name: str, path: Path, kind: str) -> Any:
    """Return the tensors and plain values in a PyTorch file; its pickle cannot execute code.

    Args:
        name: the argument's name in the message.
        path: the file.
        kind: the expected content, for the message.

    Raises:
        ValueError: if the file is damaged, of another format, or refers to other classes or
            functions.
    """
    try:
        _check_checksums(path)
        with torch.serialization.safe_globals(_allowed_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: errors are enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise any exception
        raise ValueError(
            f"{name}: expected {kind}, got {path}, which is damaged, of another kind or holds code,"
            f" and was not executed; get another copy of the file ({_reason(error)})"
        ) from error


def _check_checksums(path: Path) -> None:
    """Raise if the checksums of some parts of an archive are right and those of others wrong.

    PyTorch does not verify checksums on loading, and has an option to write none.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        damaged = [name for name in archive.namelist() if not _has_valid_checksum(archive, name)]
        if 0 < len(damaged) < len(archive.namelist()):
            raise ValueError(f"the checksum of {damaged[0]} is wrong")


def _has_valid_checksum(archive: zipfile.ZipFile, name: str) -> bool:
    try:
        with archive.open(name) as part:
            while part.read(1 << 20):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def _allowed_globals() -> list[Any]:
    """Return the globals a pickle may refer to: NumPy's float64, as all versions of NumPy write it.

    Checkpoints store the learning rate of a warm-up as such a number.
    """
    scalar: Any = np.float64(0.0).__reduce__()[0]
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        np.dtypes.Float64DType,
    ]


def _reason(error: Exception) -> str:
    """Return the first line of PyTorch's message, without its advice to disable the safe mode."""
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it refers to {found[1]}"
    found = re.search(r"WeightsUnpickler error:\s*([^\n]*)", str(error))
    reason = found[1] if found else str(error).strip().split("\n")[0]
    return reason or type(error).__name__


def read_safetensors(name: str, path: Path) -> Weights:
    """Return the tensors of a safetensors file.

    Raises:
        ValueError: if the file is damaged or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{name}: expected a safetensors file, got {path}, which is damaged or of another kind "
            f"({error}); get another copy of the file"
        ) from None


def check_numbers(name: str, key: str, value: object) -> Tensor:
    """Return a value of a file, if it is a dense floating-point tensor.

    Raises:
        ValueError: if it is not.
    """
    is_dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
    if not isinstance(value, Tensor) or not is_dense or not value.is_floating_point():
        raise ValueError(
            f"{name}: expected a dense floating-point tensor {key!r}, got {summarize(value)}; get "
            "another copy of the file"
        )
    return value.detach()


def check_names_and_shapes(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise unless the weights have the names and shapes of the network's.

    Raises:
        ValueError: if a tensor is missing, unexpected or of another shape; the message names the
            first such tensor.
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
