"""Counter-based random numbers with one independent stream per sample.

Number n of stream s is a hash of (s, n), computed where and when it is needed, as in Philox and
Threefry. What a row draws is a function of its seed and counter alone: samples with their own time
steps, samples that finish early and other batch sizes do not change it.

References:
    Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, 2011 (Random123); Steele, Lea &
    Flood, *Fast splittable pseudorandom number generators*, 2014 (SplitMix64).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical (unsigned) shift to the right."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The output function of SplitMix64 in wrapping int64 arithmetic."""
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


@dataclass(frozen=True)
class CounterRNG:
    """Random numbers of ``m`` samples, each with its own stream and counter.

    Attributes:
        seeds: int64 ``(m,)``, the streams.
        counter: int64 ``(m,)``; different counters give independent numbers.
    """

    seeds: Tensor
    counter: Tensor

    @classmethod
    def draw(
        cls, n: int, generator: torch.Generator | None, device: torch.device | str = "cpu"
    ) -> CounterRNG:
        """Draw the seeds of ``n`` independent streams from a generator, with counter 0.

        Args:
            n: number of streams.
            generator: the source of the seeds; None for PyTorch's global generator.
            device: where the seeds are stored and the numbers computed.

        Returns:
            The streams.
        """
        source = "cpu" if generator is None else generator.device
        seeds = torch.randint(
            -(1 << 63), (1 << 63) - 1, (n,), generator=generator, device=source, dtype=torch.int64
        ).to(device)
        return cls(seeds, torch.zeros_like(seeds))

    def at(self, rows: Tensor | slice, counter: Tensor) -> CounterRNG:
        """Return the streams of some rows with the counters ``counter`` ``(len(rows),)``."""
        return CounterRNG(self.seeds[rows], counter)

    def bits(self, shape: tuple[int, ...], salt: int = 0) -> Tensor:
        """Return 64 independent random bits per element as int64 ``(m, *shape)``.

        Args:
            shape: shape of the numbers of one sample.
            salt: distinguishes draws at the same counter, which are independent.

        Returns:
            The bits.
        """
        start = _mix(self.seeds + _mix((self.counter + 1) * _GOLDEN + salt))
        count = math.prod(shape)
        index = torch.arange(1, count + 1, device=start.device) * _GOLDEN
        return _mix(start.unsqueeze(1) + index).reshape(len(start), *shape)

    def signs(self, shape: tuple[int, ...]) -> Tensor:
        """Return independent signs ±1 in float64, ``(m, *shape)``."""
        return 1.0 - 2.0 * (self.bits(shape) & 1).to(torch.float64)

    def uniforms(self, shape: tuple[int, ...]) -> Tensor:
        """Return independent numbers in (0, 1) in float64, ``(m, *shape)``."""
        return (_shift(self.bits(shape, salt=3), 11).to(torch.float64) + 0.5) * 2.0**-53

    def normals(self, shape: tuple[int, ...]) -> Tensor:
        """Return independent standard normals in float64, ``(m, *shape)`` (Box–Muller)."""
        scale = 2.0**-53
        radius = (_shift(self.bits(shape, salt=1), 11).to(torch.float64) + 0.5) * scale
        angle = _shift(self.bits(shape, salt=2), 11).to(torch.float64) * scale
        return torch.sqrt(-2 * torch.log(radius)) * torch.cos(2 * math.pi * angle)
