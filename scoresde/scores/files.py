"""Model files: safetensors with JSON metadata. Nothing in a file is executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from scoresde import networks, sdes
from scoresde._core.serialization import deserialize, serialize
from scoresde.scores import labels, predictions
from scoresde.scores.moments import Moments

_FORMAT = "scoresde.ScoreModel"
_RECORDED = {"network": networks, "sde": sdes, "prediction": predictions, "label": labels}
"""The parts of a model in the metadata, and the module whose classes each may name."""


def write_model(model: Any, path: Path) -> None:
    """Write weights, buffers and a record of the parts of a :class:`~scoresde.ScoreModel`."""
    record = {
        name: _serialize_or_name(getattr(model, name), _classes(module))
        for name, module in _RECORDED.items()
    }
    record["moments_known"] = model.moments.known
    tensors = {
        f"{part}.{name}": tensor.detach().cpu().clone().contiguous()
        for part in ("network", "sde", "moments")
        for name, tensor in getattr(model, part).state_dict().items()
    }
    metadata = {"format": _FORMAT, "version": "1", "model": json.dumps(record)}
    save_file(tensors, path, metadata=metadata)


@dataclass(frozen=True)
class ModelFile:
    """The contents of a model file.

    Attributes:
        path: the file.
        tensors: weights and buffers, by ``part.name``.
        record: the description of each part.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]

    def build(self, name: str, given: Any, module: ModuleType) -> Any:
        """Return ``given``, or if None the object that the record describes.

        Raises:
            ValueError: if the record names a class of another program, or is damaged.
        """
        if given is not None:
            return given
        recorded = self.record[name]
        if isinstance(recorded, dict) and "foreign" in recorded:
            raise ValueError(
                f"{name}: expected the {recorded['foreign']} that the file was written with, got "
                f"None; it is not part of scoresde, so build it and pass {name}="
            )
        try:
            return deserialize(recorded, _classes(module))
        except ValueError as error:
            raise ValueError(
                f"{name}: the file's record of it cannot be rebuilt: {error}"
            ) from None

    def moments(self) -> Moments:
        """Return the moments of the data."""
        for name in ("moments.mean", "moments.variance"):
            if name not in self.tensors:
                raise ValueError(
                    f"path: expected a tensor {name!r} in the file, got {sorted(self.tensors)}"
                )
        return Moments(
            self.tensors["moments.mean"],
            self.tensors["moments.variance"],
            self.tensors.get("moments.basis"),
            known=self.record["moments_known"],
        )

    def load_weights(self, part: str, module: nn.Module, *, keep_dtype: bool) -> None:
        """Load the weights of a part; ``keep_dtype``: in the file's dtype, not the module's."""
        prefix = f"{part}."
        state = {
            key.removeprefix(prefix): value
            for key, value in self.tensors.items()
            if key.startswith(prefix)
        }
        try:
            module.load_state_dict(state, assign=keep_dtype)
        except RuntimeError as error:
            raise ValueError(f"{part}: the weights in {self.path} do not fit it: {error}") from None


def read_model(path: Path) -> ModelFile:
    """Return the contents of a file written by :func:`write_model`.

    Raises:
        ValueError: if the file is damaged or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"path: expected a safetensors file written by ScoreModel.save, got {path}, which is "
            f"damaged or of another kind ({error})"
        ) from None
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"path: expected a file written by ScoreModel.save, got {path}, a safetensors file of "
            f"another program (metadata {sorted(metadata) or 'absent'})"
        )
    return ModelFile(path, tensors, _read_record(metadata.get("model", ""), path))


def _read_record(text: str, path: Path) -> dict[str, Any]:
    parts = {*_RECORDED, "moments_known"}
    try:
        record = json.loads(text)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not parts <= record.keys():
        raise ValueError(
            f"path: expected metadata with {sorted(parts)} as ScoreModel.save writes them, got "
            f"{path}, where they are damaged; take another copy of the file"
        )
    return record


def _classes(module: ModuleType) -> dict[str, type]:
    """Return the public classes of one of this library's modules: those a saved model may name."""
    return {
        name: vars(module)[name] for name in module.__all__ if isinstance(vars(module)[name], type)
    }


def _serialize_or_name(value: Any, known: Mapping[str, type]) -> Any:
    try:
        return serialize(value, known)
    except (TypeError, AttributeError):
        return {"foreign": getattr(value, "__qualname__", type(value).__qualname__)}
