"""Random numbers as a function of (purpose, seed, step): no generator state has to be stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(*key: object) -> int:
    """Return a hash of the key with 63 bits, the same in every process and on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_global_generators(device: torch.device, seed: int) -> None:
    """Seed the global generators that dropout draws from: the CPU's and that of a CUDA device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextmanager
def private_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seed PyTorch's global generator at the start, and restore the global state at the end."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(derive_seed("start", seed))
        yield
