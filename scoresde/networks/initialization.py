"""Initialization of weights."""

from __future__ import annotations

import math
from typing import TypeVar

from torch import Tensor, nn

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def zero_(layer: Layer) -> Layer:
    """Set the weight and the bias of a layer to zero, and return it."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def scaled_(layer: Layer, scale: float = 1.0) -> Layer:
    """Draw the weight of a layer as in DDPM, set its bias to zero, and return it."""
    variance_scaling_(layer.weight, scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def variance_scaling_(weight: Tensor, scale: float = 1.0) -> Tensor:
    """Fill a weight with uniform draws of variance ``scale`` over the mean of fan-in and fan-out.

    A scale of 0 means 1e-10: the output is nearly zero, but the gradients do not vanish.

    Returns:
        The weight.
    """
    return nn.init.xavier_uniform_(weight, gain=math.sqrt(scale or 1e-10))
