"""Randomness as a function of what it is for: nothing about chance needs to be stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def hash_of(*key: object) -> int:
    """A 63-bit number that looks random and is the same everywhere."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def private_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Give PyTorch's global random state back as it was; dropout has no generator of its own."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(hash_of("start", seed))
        yield
