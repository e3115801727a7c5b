"""Modules: numbers that must not be rounded, modes that must not be forgotten, where they live."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class FixedDtypeModule(nn.Module):
    """A module whose buffers move between devices but keep their dtype.

    A schedule or a data covariance in half precision would be another one: ``module.half()`` is
    meant for the weights of a network, not for these.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FixedDtypeModule:
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            self._buffers[name] = buffer.to(fn(buffer).device)
        return self


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put all modules into evaluation mode: dropout blurs results, batch norms couple rows.

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
    """Where a network lives; what has buffers only is exact, and used in the default dtype."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return parameter.dtype, parameter.device
    buffer = next(module.buffers(), torch.empty(()))
    return torch.get_default_dtype(), buffer.device
