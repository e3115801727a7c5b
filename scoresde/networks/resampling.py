r"""Changes of resolution by a factor of two.

Halving averages blocks of 2x2 pixels, doubling repeats pixels. With the taps of a low-pass filter
the image is smoothed before it is halved, or after it is doubled, which avoids aliasing,

.. math::
    (\mathrm{halve}\, x)_{ij} = \sum_{kl} w_k w_l\, x_{2i-k,\, 2j-l}, \qquad
    (\mathrm{double}\, x)_{ij} = 4 \sum_{kl} w_k w_l\, (\uparrow x)_{i-k,\, j-l}, \qquad
    \sum_k w_k = 1,

with zeros beyond the border and :math:`\uparrow x` the image with zeros between its pixels. A
convolution may be fused with either; then the filtered image extends one pixel beyond the border.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde._core.checks import check_number
from scoresde.networks.initialization import scaled_

Taps = tuple[float, ...]


def check_taps(name: str, taps: Sequence[float]) -> Taps:
    """Return the taps of a filter: an even number of them, at least four, with a positive sum."""
    checked = tuple(check_number(f"{name}[{i}]", tap) for i, tap in enumerate(taps))
    if len(checked) < 4 or len(checked) % 2 or sum(checked) <= 0:
        raise ValueError(
            f"{name}: expected an even number of taps, at least four, with a positive sum, "
            f"got {checked}; the usual ones are (1, 3, 3, 1)"
        )
    return checked


class _Filter(nn.Module):
    kernel: Tensor

    def __init__(self, taps: Taps) -> None:
        super().__init__()
        kernel = torch.outer(torch.tensor(taps), torch.tensor(taps))
        self.register_buffer("kernel", kernel / kernel.sum(), persistent=False)
        self.half_width = len(taps) // 2

    def weight(self, x: Tensor) -> Tensor:
        return self.kernel.to(x.dtype).expand(x.shape[1], 1, -1, -1)

    def down(self, x: Tensor, stride: int, margin: int = 0) -> Tensor:
        """Smooth ``x``, extended by ``margin`` pixels, and return every ``stride``-th pixel."""
        padding = self.half_width - 1 + margin
        weight = self.weight(x).flip(-1, -2)
        return F.conv2d(x, weight, stride=stride, padding=padding, groups=x.shape[1])

    def up(self, x: Tensor, margin: int = 0) -> Tensor:
        """Double ``x``, extended by ``margin`` pixels."""
        padding = self.half_width - 1 - margin
        weight = 4 * self.weight(x)
        return F.conv_transpose2d(x, weight, stride=2, padding=padding, groups=x.shape[1])


class Halve(nn.Module):
    """Halve an even height and width: by averaging, or through a filter if ``taps`` are given."""

    def __init__(self, taps: Taps | None = None) -> None:
        super().__init__()
        self.filter = None if taps is None else _Filter(taps)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, channels, height, width)`` to half the height and width."""
        return F.avg_pool2d(x, 2) if self.filter is None else self.filter.down(x, stride=2)


class Double(nn.Module):
    """Double height and width: by repeating, or through a filter if ``taps`` are given."""

    def __init__(self, taps: Taps | None = None) -> None:
        super().__init__()
        self.filter = None if taps is None else _Filter(taps)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, channels, height, width)`` to twice the height and width."""
        if self.filter is None:
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return self.filter.up(x)


class HalveAndConvolve(nn.Module):
    """Halve an even height and width by a 3x3 convolution, smoothing first if there are taps."""

    def __init__(self, in_channels: int, out_channels: int, taps: Taps | None = None) -> None:
        super().__init__()
        convolution = scaled_(nn.Conv2d(in_channels, out_channels, 3, stride=2))
        if taps is None:
            self.Conv_0 = convolution
        else:
            self.filter, self.Conv2d_0 = _Filter(taps), convolution
        self.taps = taps

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        """Map ``(batch, channels, height, width)`` to half the size; ``features`` are not used."""
        if self.taps is None:
            out: Tensor = self.Conv_0(F.pad(x, (0, 1, 0, 1)))
        else:
            out = self.Conv2d_0(self.filter.down(x, stride=1, margin=1))
        return out


class DoubleAndConvolve(nn.Module):
    """Double height and width, by a filter if there are taps, and convolve with a 3x3 kernel."""

    def __init__(self, in_channels: int, out_channels: int, taps: Taps | None = None) -> None:
        super().__init__()
        if taps is None:
            self.Conv_0 = scaled_(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        else:
            self.filter = _Filter(taps)
            self.Conv2d_0 = scaled_(nn.Conv2d(in_channels, out_channels, 3))
        self.taps = taps

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        """Map ``(batch, channels, height, width)`` to twice the size; ``features`` are not used."""
        if self.taps is None:
            out: Tensor = self.Conv_0(F.interpolate(x, scale_factor=2, mode="nearest"))
        else:
            out = self.Conv2d_0(self.filter.up(x, margin=1))
        return out


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Append zeros below and to the right until height and width are multiples of ``multiple``."""
    bottom, right = -x.shape[-2] % multiple, -x.shape[-1] % multiple
    return F.pad(x, (0, right, 0, bottom)) if bottom or right else x
