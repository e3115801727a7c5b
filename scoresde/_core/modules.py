"""Helpers for modules: buffers of fixed dtype, evaluation mode, dtype and device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class FixedDtypeModule(nn.Module):
    """A module whose buffers move between devices but keep their dtype.

    A schedule or a data covariance rounded to half precision would be a different one;
    ``module.half()`` is meant for the weights of a network.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FixedDtypeModule:
        buffers = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in buffers.items():
            self._buffers[name] = buffer.to(fn(buffer).device)
        return self


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module and its parts into evaluation mode, and restore the modes afterwards.

    In training mode dropout is random and batch normalization couples the samples.

    Example:
        >>> dropout = nn.Dropout()
        >>> with evaluation_mode(dropout):
        ...     dropout.training
        False
        >>> dropout.training
        True
    """
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def dtype_and_device(module: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Return dtype and device of a network; without parameters, the default dtype."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return parameter.dtype, parameter.device
    buffer = next(module.buffers(), torch.empty(()))
    return torch.get_default_dtype(), buffer.device
