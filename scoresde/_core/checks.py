"""Argument checks of public functions: messages say what was expected, what came, and a hint.

A public function checks its arguments once, on entry; the loops inside do not check again. Every
check returns the value: tensors unchanged, numbers and paths as plain ``float``, ``int`` or
``Path``, so that a constructor writes ``self.beta_min = check_positive("beta_min", beta_min)``
for Python's and NumPy's scalars alike. ``bool`` is never a number here.

Wrong types raise ``TypeError``, wrong values ``ValueError``, missing files ``FileNotFoundError``.
A check for non-finite values synchronizes with the device: call it on entry, never in a loop.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "check_between",
    "check_file",
    "check_finite",
    "check_floating",
    "check_instance",
    "check_integer",
    "check_integers",
    "check_nonnegative",
    "check_number",
    "check_ordered",
    "check_positive",
    "check_state",
    "check_tensor",
    "summarize",
]


def summarize(value: object) -> str:
    """Return a value in a few words: dtype and shape of arrays, the ``repr`` of anything else."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} NumPy array of shape {value.shape}"
    text = repr(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"{text} ({type(value).__name__})"


def _message(name: str, expected: str, value: object, hint: str) -> str:
    return f"{name}: expected {expected}, got {summarize(value)}; {hint}"


# --- types

T = TypeVar("T")


def check_instance(
    name: str, value: object, kind: type[T], example: str, hint: str | None = None
) -> T:
    """Return the value, if it is an instance of ``kind``; ``TypeError`` otherwise.

    Args:
        name: the argument's name in the message.
        value: what the user passed.
        kind: the class, abstract or not.
        example: code that makes one, such as ``"Adams()"``.
        hint: the end of the message, where the usual advice to pass ``example`` is not the best.
    """
    if isinstance(value, kind):
        return value
    if isinstance(value, type) and issubclass(value, kind):
        hint = f"pass an instance, {value.__name__}(…), not the class"
    elif hint is None:
        is_name = isinstance(value, str)
        hint = f"pass the object {example}, not a name" if is_name else f"pass {example}"
    article = "an" if kind.__name__[0] in "AEIO" or kind.__name__.startswith("SDE") else "a"
    raise TypeError(_message(name, f"{article} {kind.__name__} such as {example}", value, hint))


# --- tensors


def check_tensor(name: str, x: object) -> Tensor:
    """Return the value, if it is a tensor; ``TypeError`` otherwise."""
    if not isinstance(x, Tensor):
        hint = f"convert it with torch.as_tensor({name})"
        raise TypeError(_message(name, "a torch.Tensor", x, hint))
    return x


def check_floating(name: str, x: object) -> Tensor:
    """Return the value, if it is a real floating-point tensor; ``TypeError`` otherwise."""
    x = check_tensor(name, x)
    if not x.is_floating_point():
        hint = f"torch.view_as_real({name})" if x.is_complex() else f"{name}.float()"
        raise TypeError(_message(name, "a floating-point tensor", x, f"convert it with {hint}"))
    return x


def check_finite(name: str, x: Tensor) -> Tensor:
    """Return the tensor, if all is finite; the ``ValueError`` reports number and first index."""
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        bad = (~finite).nonzero()
        first = tuple(bad[0].tolist())
        raise ValueError(
            f"{name}: expected finite values, got {summarize(x)} with {len(bad)} NaN or infinite "
            f"entries (the first at index {first}); remove those rows or repair them with "
            f"torch.nan_to_num({name})"
        )
    return x


def check_state(name: str, x: object, event_shape: Sequence[int] | None = None) -> Tensor:
    """Return the value, if it is a state: finite, of shape ``(batch, *event)``, not empty.

    Args:
        name: the argument's name in the message.
        x: what the user passed.
        event_shape: the expected shape of one sample; any shape when None.

    Raises:
        TypeError: if ``x`` is no floating-point tensor.
        ValueError: if it lacks a batch dimension, is empty, not finite or of another event shape.
    """
    x = check_floating(name, x)
    shape, unsqueeze = tuple(x.shape), f"add the batch dimension with {name}.unsqueeze(0)"
    if not shape:
        raise ValueError(_message(name, "shape (batch, *event)", x, unsqueeze))
    if event_shape is not None and shape[1:] != (event := tuple(event_shape)):
        expected = f"shape ({', '.join(map(str, ('batch', *event)))})"
        hint = unsqueeze if shape == event else f"reshape each sample to {event}"
        raise ValueError(_message(name, expected, x, hint))
    if x.numel() == 0:
        raise ValueError(_message(name, "at least one sample", x, "check the slice or the loader"))
    return check_finite(name, x)


# --- numbers


def check_number(
    name: str, value: object, expected: str = "a finite number", hint: str | None = None
) -> float:
    """Return the value as a ``float``, if it is a finite real number and not a bool."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real:
        item = isinstance(value, Tensor | np.ndarray) and math.prod(value.shape) == 1
        usual = f"take the number out with {name}.item()" if item else "pass a plain number"
        raise TypeError(_message(name, expected, value, hint or usual))
    number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number):
        raise ValueError(_message(name, expected, value, hint or "pass a finite number"))
    return number


def _require(holds: bool, name: str, expected: str, value: object, hint: str) -> None:
    if not holds:
        raise ValueError(_message(name, expected, value, hint))


def check_positive(name: str, value: object, hint: str | None = None) -> float:
    """Return the value as a ``float``, if it is a finite number above zero."""
    expected = "a positive finite number"
    number = check_number(name, value, expected, hint)
    _require(number > 0, name, expected, value, hint or "pass a number above zero")
    return number


def check_nonnegative(name: str, value: object, hint: str | None = None) -> float:
    """Return the value as a ``float``, if it is a finite number not below zero."""
    expected = "a nonnegative finite number"
    number = check_number(name, value, expected, hint)
    _require(number >= 0, name, expected, value, hint or "pass zero or a number above it")
    return number


def check_between(
    name: str,
    value: object,
    lower: float,
    upper: float,
    *,
    exclusive: bool = False,
    hint: str | None = None,
) -> float:
    """Return the value as a ``float``, if in [lower, upper] or, ``exclusive``, (lower, upper)."""
    interval = f"({lower:g}, {upper:g})" if exclusive else f"[{lower:g}, {upper:g}]"
    expected = f"a number in {interval}"
    number = check_number(name, value, expected, hint)
    inside = lower < number < upper if exclusive else lower <= number <= upper
    _require(inside, name, expected, value, hint or "choose it within these bounds")
    return number


def check_ordered(
    lower_name: str, lower: object, upper_name: str, upper: object
) -> tuple[float, float]:
    """Return both values as ``float``, if they are finite numbers and ``lower < upper``."""
    pair = check_number(lower_name, lower), check_number(upper_name, upper)
    if not pair[0] < pair[1]:
        raise ValueError(
            f"{lower_name}, {upper_name}: expected {lower_name} < {upper_name}, "
            f"got {lower_name}={lower!r} and {upper_name}={upper!r}; "
            "swap or separate them"
        )
    return pair


def check_integer(
    name: str, value: object, minimum: int | None = None, hint: str | None = None
) -> int:
    """Return the value as an ``int``, if it is an integer (not a bool) and at least ``minimum``."""
    expected = "an integer" if minimum is None else f"an integer, at least {minimum}"
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(_message(name, expected, value, hint or f"pass int({name})"))
    number = int(value)
    if minimum is not None:
        _require(number >= minimum, name, expected, value, hint or f"pass {minimum} or more")
    return number


def check_integers(name: str, values: object, minimum: int | None = None) -> tuple[int, ...]:
    """Return the sequence as a tuple of ``int``, if all are integers and at least ``minimum``."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        hint = f"for a single one write ({values!r},)"
        raise TypeError(_message(name, "a sequence of integers", values, hint))
    return tuple(check_integer(f"{name}[{i}]", value, minimum) for i, value in enumerate(values))


# --- files


def check_file(name: str, path: object) -> Path:
    """Return the path as a ``Path``, if it names an existing file.

    Raises:
        TypeError: if ``path`` is neither a string nor path-like.
        FileNotFoundError: if nothing is there; the message names what the folder holds instead.
        IsADirectoryError: if it is a folder.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(_message(name, "the path of a file", path, "pass a string or a Path"))
    file = Path(path)
    if file.is_dir():
        raise IsADirectoryError(
            _message(name, "the path of a file", str(file), "it is a folder: name a file inside it")
        )
    if not file.is_file():
        parent = file.resolve().parent
        raise FileNotFoundError(
            _message(name, "the path of an existing file", str(file), _nearby(parent))
        )
    return file


def _nearby(folder: Path) -> str:
    """Return the hint for a missing file: what its folder holds, or that the folder is missing."""
    if not folder.is_dir():
        return f"there is no folder {folder}: check the spelling"
    files = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    listed = ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")
    return f"{folder} holds {listed or 'no files'}: check the spelling"
