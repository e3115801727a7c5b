"""Forward and training-step time of NCSN++ and DDPM++, as ratios on one machine.

The networks of the CIFAR-10 configurations with half the width and one block per level, on batches
of 32x32 images: eager, with `torch.compile`, in channels-last layout, in bfloat16 by autocast, and
in a straightforward implementation with the same weights and, up to rounding, the same output, by
einsum, reshapes and one filtered channel at a time. Every round runs all variants in turn, and a
ratio is the median over rounds of the ratio within a round, so that other load on the machine
affects all variants equally.

    python benchmarks/networks.py            # a quarter of an hour, most of it compiling
    python benchmarks/networks.py --quick    # tiny networks, to test the script
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from scoresde.networks import NCSNpp
from scoresde.networks.resampling import Double, Halve

Call = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Size:
    """Sizes of the networks and their inputs."""

    width: int = 64
    blocks: int = 1
    batch: int = 8
    pixels: int = 32
    rounds: int = 4


QUICK = Size(width=32, blocks=1, batch=2, pixels=16, rounds=2)


@dataclass(frozen=True)
class Variant:
    """A network in one mode, with the function to call and its inputs."""

    name: str
    network: nn.Module
    call: Call
    x: Tensor
    label: Tensor
    setup_seconds: float = 0.0

    def forward(self) -> None:
        """Evaluate without gradients."""
        with torch.no_grad():
            self.call(self.x, self.label)

    def train(self) -> None:
        """Evaluate and differentiate in the parameters."""
        self.network.zero_grad()
        self.call(self.x, self.label).float().square().mean().backward()


def ours(size: Size, plus: bool) -> NCSNpp:
    """Return NCSN++, or DDPM++, in evaluation mode, with no layer initialized to nearly zero."""
    torch.manual_seed(0)
    options = {} if plus else {"taps": None, "progressive_input": "none"}
    return NCSNpp(width=size.width, blocks=size.blocks, init_scale=1.0, **options).eval()


class Straightforward:
    """A straightforward implementation of NCSN++ and DDPM++ with the weights of a given network."""

    def __init__(self, network: NCSNpp) -> None:
        self.network = network
        self.half = network.width // 2

    def __call__(self, x: Tensor, label: Tensor) -> Tensor:
        """Return the network's output."""
        network = self.network
        layers = iter(network.all_modules)
        frequencies = torch.exp(-math.log(10000) * torch.arange(self.half) / (self.half - 1))
        angles = label[:, None] * frequencies
        features = next(layers)(torch.cat([torch.sin(angles), torch.cos(angles)], dim=1))
        features = next(layers)(F.silu(features))
        pyramid, h = x, next(layers)(x)
        skips, lowest = [h], len(network.multipliers) - 1
        for level in range(lowest + 1):
            for _ in range(network.blocks):
                h = self.block(next(layers), h, features)
                if level in network.attention:
                    h = self.attention(next(layers), h)
                skips.append(h)
            if level < lowest:
                h = self.block(next(layers), h, features)
                if network.progressive_input == "residual":
                    convolution = next(layers).Conv2d_0
                    pyramid = convolution(self.filtered(pyramid, network.taps, (2, 2)))
                    h = pyramid = (pyramid + h) / math.sqrt(2)
                skips.append(h)
        h = self.block(next(layers), h, features)
        h = self.attention(next(layers), h)
        h = self.block(next(layers), h, features)
        for level in reversed(range(lowest + 1)):
            for _ in range(network.blocks + 1):
                h = self.block(next(layers), torch.cat([h, skips.pop()], dim=1), features)
            if level in network.attention:
                h = self.attention(next(layers), h)
            if level > 0:
                h = self.block(next(layers), h, features)
        h = F.silu(next(layers)(h))
        return next(layers)(h)

    def block(self, layer: nn.Module, x: Tensor, features: Tensor) -> Tensor:
        """Return the output of a residual block."""
        h = F.silu(layer.GroupNorm_0(x))
        change = {Halve: self.halved, Double: self.doubled}.get(type(layer.resample))
        if change is not None:
            h, x = change(h), change(x)
        h = layer.Conv_0(h)
        h = h + layer.Dense_0(F.silu(features))[:, :, None, None]
        h = layer.Conv_1(F.dropout(F.silu(layer.GroupNorm_1(h)), 0.1, training=False))
        if layer.Conv_2 is not None:
            x = layer.Conv_2(x)
        return (x + h) / math.sqrt(2)

    def attention(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return the output of an attention block."""
        batch, channels, height, width = x.shape
        h = layer.GroupNorm_0(x)
        q, k, v = (
            torch.einsum("bchw,cd->bdhw", h, nin.W) + nin.b[:, None, None]
            for nin in (layer.NIN_0, layer.NIN_1, layer.NIN_2)
        )
        w = torch.einsum("bchw,bcij->bhwij", q, k) / math.sqrt(channels)
        w = torch.softmax(w.reshape(batch, height, width, -1), dim=-1)
        w = w.reshape(batch, height, width, height, width)
        h = torch.einsum("bhwij,bcij->bchw", w, v)
        h = torch.einsum("bchw,cd->bdhw", h, layer.NIN_3.W) + layer.NIN_3.b[:, None, None]
        return (x + h) / math.sqrt(2)

    def halved(self, x: Tensor) -> Tensor:
        """Return an image of half the size."""
        if self.network.taps is not None:
            return self.filtered(x, self.network.taps, (1, 1))[:, :, ::2, ::2]
        batch, channels, height, width = x.shape
        return x.reshape(batch, channels, height // 2, 2, width // 2, 2).mean(dim=(3, 5))

    def doubled(self, x: Tensor) -> Tensor:
        """Return an image of twice the size."""
        batch, channels, height, width = x.shape
        x = x.reshape(batch, channels, height, 1, width, 1)
        if self.network.taps is None:
            x = x.repeat(1, 1, 1, 2, 1, 2)
            return x.reshape(batch, channels, 2 * height, 2 * width)
        x = F.pad(x, (0, 1, 0, 0, 0, 1)).reshape(batch, channels, 2 * height, 2 * width)
        return self.filtered(x, [2 * tap for tap in self.network.taps], (2, 1))

    def filtered(self, x: Tensor, taps: Sequence[float], pad: tuple[int, int]) -> Tensor:
        """Return an image, padded before and behind, filtered one channel at a time."""
        batch, channels, height, width = x.shape
        kernel = torch.outer(torch.tensor(taps), torch.tensor(taps)) / sum(self.network.taps) ** 2
        x = F.pad(x.reshape(-1, 1, height, width), (*pad, *pad))
        x = F.conv2d(x, kernel.flip(0, 1)[None, None])
        return x.reshape(batch, channels, *x.shape[2:])


def variants(size: Size, plus: bool, compiling: bool) -> list[Variant]:
    """Return all variants of one network, the eager one first and the straightforward one last."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size.batch, 3, size.pixels, size.pixels, generator=generator)
    label = 999 * torch.rand(size.batch, generator=generator)
    last = x.to(memory_format=torch.channels_last)

    def lowered(network: nn.Module) -> Call:
        def call(x: Tensor, label: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return network(x, label)

        return call

    eager, flipped, low, plain = (ours(size, plus) for _ in range(4))
    straightforward = Straightforward(plain)
    torch.testing.assert_close(straightforward(x, label), eager(x, label), rtol=1e-4, atol=1e-4)
    flipped = flipped.to(memory_format=torch.channels_last)
    found = [
        Variant("eager", eager, eager, x, label),
        Variant("channels last", flipped, flipped, last, label),
        Variant("bfloat16 autocast", low, lowered(low), x, label),
        Variant("straightforward", plain, straightforward, x, label),
    ]
    if compiling:
        network = ours(size, plus)
        compiled = Variant("torch.compile", network, torch.compile(network), x, label)
        began = time.perf_counter()
        compiled.forward(), compiled.train()
        seconds = time.perf_counter() - began
        found.insert(1, Variant("torch.compile", network, compiled.call, x, label, seconds))
    return found


def seconds_of(action: Callable[[], None]) -> float:
    """Return the processor time of one call, which other load on the machine hardly changes."""
    began = time.process_time()
    action()
    return time.process_time() - began


def measure(members: list[Variant], rounds: int) -> list[tuple[list[float], list[float]]]:
    """Return the times of forward passes and training steps, a list over rounds each."""
    for member in members:
        member.forward(), member.train()
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in members]
    for _ in range(rounds):
        for member, (forward, train) in zip(members, found, strict=True):
            forward.append(seconds_of(member.forward))
            train.append(seconds_of(member.train))
    return found


def flops_of(member: Variant) -> float:
    """Return the floating-point operations of one forward pass."""
    with FlopCounterMode(display=False) as counter:
        member.forward()
    return counter.get_total_flops()


def table(name: str, size: Size, plus: bool, compiling: bool) -> str:
    """Measure one network in all variants."""
    members = variants(size, plus, compiling)
    times = measure(members, size.rounds)
    lines = [
        f"## {name}\n",
        "| | parameters | Gflop | forward, ms | ratio | training step, ms | ratio | set up, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for member, both in zip(members, times, strict=True):
        count = sum(p.numel() for p in member.network.parameters())
        flops = flops_of(members[0] if member.setup_seconds else member)
        cells = [member.name, f"{count / 1e6:.2f} M", f"{flops / 1e9:.2f}"]
        for own, first in zip(both, times[0], strict=True):
            ratio = statistics.median(a / b for a, b in zip(own, first, strict=True))
            cells += [f"{1e3 * statistics.median(own):.0f}", f"{ratio:.2f}"]
        cells.append(f"{member.setup_seconds:.0f}" if member.setup_seconds else "")
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny networks, two rounds")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--out", type=Path, help="folder for networks.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = QUICK if options.quick else Size()
    compiling = not options.eager and bool(shutil.which("g++") or shutil.which("clang++"))
    text = f"""# Time of the networks

Made by `python benchmarks/networks.py` on one core, torch {torch.__version__}. The CIFAR-10
configurations reduced to width {size.width} and {size.blocks} block per level (published: 128 and
4), batches of {size.batch} images 3x{size.pixels}x{size.pixels}, float32; processor time of one
thread. Ratios are to the eager network in the same round, medians over {size.rounds} rounds: below
1 is faster. Set up: wall time of compiling both, with other load on the machine. Straightforward:
the same network, weights and output, by einsum, reshapes and one filtered channel at a time.
"""
    for name, plus in (("NCSN++ (VP)", True), ("DDPM++", False)):
        text += "\n" + table(name, size, plus, compiling)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "networks.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
