"""Peak memory and time of the exact trace at d = 3072, by chunk.

Each chunk is measured in its own process, as the growth of the peak resident set over the
evaluation of the network alone. The network is a residual convolution on 3 × 32 × 32 images.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import torch
from torch import Tensor, nn

from scoresde._core.counter_rng import CounterRNG
from scoresde.traces import ExactTrace

EVENT = (3, 32, 32)
DIMENSION = 3072


class ConvolutionalField(nn.Module):
    """Two convolutions around a nonlinearity, on flattened images."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.inward = nn.Conv2d(3, channels, 3, padding=1)
        self.outward = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.nn.functional.silu(self.inward(x.reshape(-1, *EVENT)))
        return (x.reshape(-1, *EVENT) + self.outward(h)).reshape(x.shape)


def peak() -> float:
    """Return the peak resident set of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(chunk: int, batch: int) -> None:
    """Print the cost of one exact trace."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    field, x = ConvolutionalField(), torch.randn(batch, DIMENSION)
    torch.autograd.grad(field(x.requires_grad_()).sum(), x)
    before, start = peak(), time.perf_counter()
    _, divergence = ExactTrace(chunk)(field, x.detach(), CounterRNG.draw(batch, None))
    seconds = time.perf_counter() - start
    value = float(divergence.mean())
    print(f"{chunk:6d} {peak() - before:14.0f} {seconds:10.1f} {value:14.3f}", flush=True)


def main() -> None:
    """Measure several chunks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        measure(options.alone, options.batch)
        return
    print(f"{'chunk':>6} {'peak, MiB more':>14} {'seconds':>10} {'divergence':>14}", flush=True)
    for chunk in options.chunks:
        command = [sys.executable, __file__, "--alone", str(chunk), "--batch", str(options.batch)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
