"""Data-parallel training over the processes of ``torch.distributed``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from scoresde.training.config import TrainingConfig


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train one model, and the number ``rank`` of this one."""

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

    def check_equal(self, name: str, number: int, device: torch.device, hint: str) -> None:
        """Raise unless the number, modulo 2⁴⁰, is the same in all processes."""
        if self.size == 1:
            return
        own = torch.tensor([number % 2**40], dtype=torch.float64, device=device)
        mean = own.clone()
        self.average_([mean])
        if bool(mean != own):
            raise ValueError(
                f"{name}: expected the same in all processes, got different ones; {hint}"
            )


@contextmanager
def process_group(device: torch.device, config: TrainingConfig) -> Iterator[ProcessGroup]:
    """The processes of ``torch.distributed``, which is initialized here under torchrun."""
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
        if config.batch_size % size:
            raise ValueError(
                f"batch_size: expected a multiple of the number of processes, {size}, got "
                f"{config.batch_size}; every process takes an equal part"
            )
        group = ProcessGroup(distributed.get_rank() if joined else 0, size)
        group.check_equal("seed", config.seed, device, "seed the generators equally")
        yield group
    finally:
        if own:
            distributed.destroy_process_group()
