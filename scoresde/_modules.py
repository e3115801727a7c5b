"""Modules that carry numbers which must not be rounded."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class ExactModule(nn.Module):
    """A module whose buffers move between devices but keep their dtype.

    A schedule or a data covariance in half precision would be another one: ``module.half()`` is
    meant for the weights of a network, not for these.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ExactModule:
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            self._buffers[name] = buffer.to(fn(buffer).device)
        return self
