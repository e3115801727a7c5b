"""Serialization of objects as JSON records: the class and the arguments of its constructor.

A class can be serialized if it stores every constructor argument as an attribute of the same name.
Only classes of a given catalog are rebuilt; nothing is imported or executed by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Catalog = Mapping[str, type]


def serialize(value: Any, known: Catalog) -> Any:
    """Return ``value`` as JSON data, or raise ``TypeError`` if it cannot be rebuilt from them."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, list | tuple):
        return [serialize(item, known) for item in value]
    name = type(value).__name__
    if known.get(name) is not type(value):
        raise TypeError(f"{name}: expected a class of scoresde, which can be rebuilt by name")
    arguments = inspect.signature(type(value)).parameters
    return {
        "class": name,
        "arguments": {key: serialize(getattr(value, key), known) for key in arguments},
    }


def deserialize(record: Any, known: Catalog) -> Any:
    """Return the object that :func:`serialize` recorded, or raise ``ValueError`` if that fails."""
    if isinstance(record, list):
        return tuple(deserialize(item, known) for item in record)
    if not isinstance(record, dict):
        return record
    if "tensor" in record:
        return _rebuild_tensor(record)
    name, arguments = record.get("class"), record.get("arguments")
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"class: expected one of {sorted(known)}, got {name!r}")
    if not isinstance(arguments, dict):
        raise ValueError(f"arguments of {name}: expected a record, got {arguments!r}")
    values = {key: deserialize(item, known) for key, item in arguments.items()}
    try:
        return known[name](**values)
    except TypeError as error:
        raise ValueError(f"arguments of {name}: {error}") from None


def _rebuild_tensor(record: Mapping[str, Any]) -> Tensor:
    dtype = vars(torch).get(str(record.get("dtype")))
    try:
        return torch.tensor(record["tensor"], dtype=dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"tensor: {error}") from None
