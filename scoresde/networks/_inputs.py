"""Argument checks of the networks: shapes of batches and labels, classes, levels, choices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde._core.checks import check_floating, check_integers, check_tensor, summarize
from scoresde._core.shapes import has_concrete_value


def check_widths(name: str, multipliers: Sequence[int]) -> tuple[int, ...]:
    """Return the relative widths of the levels of a U-Net: at least one, all positive."""
    if len(checked := check_integers(name, multipliers, 1)) == 0:
        raise ValueError(f"{name}: expected at least one level, got none; try {name}=(1, 2)")
    return checked


def check_levels(name: str, levels: Sequence[int], count: int) -> tuple[int, ...]:
    """Return indices of the ``count`` levels of a U-Net; negative ones count from the lowest."""
    checked = check_integers(name, levels)
    for level in checked:
        if not -count <= level < count:
            raise ValueError(
                f"{name}: expected levels in {-count} … {count - 1}, got {level}; "
                "level 0 has the full resolution, level -1 the lowest"
            )
    return checked


def check_input(
    x: Tensor, label: Tensor, event_shape: Sequence[int | None], dtype: torch.dtype
) -> None:
    """Raise unless ``x`` is ``(batch, *event_shape)`` in ``dtype`` and ``label`` is ``(batch,)``.

    Args:
        x: the states.
        label: the labels.
        event_shape: shape of one sample; None is any size of at least 1.
        dtype: dtype of the network's parameters (any floating dtype is fine under autocast).

    Raises:
        TypeError: if ``x`` is no floating-point tensor of the network's dtype, or ``label`` no
            tensor.
        ValueError: if a shape is wrong.
    """
    check_floating("x", x)
    check_tensor("label", label)
    if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"x: expected {dtype} as the network's parameters, got {x.dtype}; "
            f"cast one of them: x.to({dtype}) or network.to({x.dtype})"
        )
    if x.ndim != 1 + len(event_shape) or any(
        n != expected if expected is not None else n == 0
        for n, expected in zip(x.shape[1:], event_shape, strict=True)
    ):
        sizes = ", ".join(["batch", *("any" if n is None else str(n) for n in event_shape)])
        raise ValueError(
            f"x: expected shape ({sizes}), got {tuple(x.shape)}; "
            "the first dimension counts samples (x.unsqueeze(0) makes a batch of one)"
        )
    if label.shape != x.shape[:1]:
        raise ValueError(
            f"label: expected shape ({x.shape[0]},) to go with x of shape {tuple(x.shape)}, "
            f"got {tuple(label.shape)}; give one label per sample, label.expand({x.shape[0]}) "
            "repeats a single one"
        )


def check_classes(classes: Tensor, count: int, batch: int) -> None:
    """Raise unless ``classes`` holds ``batch`` integers in 0 … ``count``, the null class.

    Values are checked on the CPU only, outside compiled and vectorized code.
    """
    check_tensor("classes", classes)
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise TypeError(
            f"classes: expected integers, got {summarize(classes)}; convert with classes.long()"
        )
    if classes.shape != (batch,):
        raise ValueError(
            f"classes: expected shape ({batch},), got {tuple(classes.shape)}; give one class per "
            f"sample, classes.expand({batch}) repeats a single one"
        )
    if not has_concrete_value(classes) or batch == 0:
        return
    low, high = (int(value) for value in torch.aminmax(classes))
    if low < 0 or high > count:
        raise ValueError(
            f"classes: expected integers in 0 … {count - 1} ({count} means no class), got "
            f"{low} … {high}; build the network with classes={high + 1} or renumber them from 0"
        )


def check_index(name: str, index: Tensor, count: int) -> None:
    """Raise if an index into a table of ``count`` noise levels is out of range.

    Values are checked on the CPU only, outside compiled and vectorized code.
    """
    if not has_concrete_value(index) or index.numel() == 0:
        return
    low, high = (float(value) for value in torch.aminmax(index.detach()))
    if not (low >= 0 and high < count):
        raise ValueError(
            f"{name}: expected indices of a table of {count} noise levels, 0 … {count - 1}, got "
            f"{low:g} … {high:g}; map times to indices, or build the network with more scales"
        )


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(
            f"{name}: expected one of {', '.join(map(repr, choices))}, got {summarize(value)}; "
            "check the spelling"
        )
