"""The processes that train one model together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Group:
    """The processes that train one model."""

    rank: int
    size: int

    def average_(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their means over the processes."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= self.size
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Replace tensors by those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor.detach(), 0)

    def agree(self, name: str, number: Tensor) -> None:
        """Raise unless the number is the same in all processes."""
        mean = number.double()
        self.average_([mean])
        if bool(mean != number):
            raise ValueError(
                f"{name}: expected the same file in all processes, got different ones; put it on a "
                "disk that they share"
            )


@contextmanager
def processes(device: torch.device, batch_size: int) -> Iterator[Group]:
    """The processes of ``torch.distributed``, which is initialised here if torchrun asks for it."""
    own = (
        distributed.is_available()
        and not distributed.is_initialized()
        and int(os.environ.get("WORLD_SIZE", "1")) > 1
    )
    if own:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        joined = distributed.is_available() and distributed.is_initialized()
        size = distributed.get_world_size() if joined else 1
        if batch_size % size:
            raise ValueError(
                f"batch_size: expected a multiple of the number of processes, {size}, got "
                f"{batch_size}; every process takes an equal part"
            )
        yield Group(distributed.get_rank() if joined else 0, size)
    finally:
        if own:
            distributed.destroy_process_group()
