r"""NCSNv2: a RefineNet for all noise levels, whose output is divided by σ.

A RefineNet has residual stages on its downward path, the last of which are dilated instead of
halving the resolution, and refinement blocks on its upward path, each of which fuses a stage with
the output of the block below and pools over windows of increasing size. The label enters only as a
factor: the network can infer the noise level from the image, and the score of data with noise of
standard deviation σ has magnitude 1/σ,

.. math::
    s(x, i) = f(x) / \sigma_i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde._core.checks import check_integer
from scoresde._core.shapes import expand
from scoresde.networks._inputs import check_input
from scoresde.networks.noise_levels import NoiseLevelNetwork
from scoresde.networks.resampling import pad_to_multiple

__all__ = ["NCSNv2"]


class Stage(NamedTuple):
    """A stage of the downward path, and the block that fuses it on the upward path."""

    name: str
    widening: int
    dilation: int
    refinement: str


# Keys are the image sizes in pixels that the architectures are designed for. Stages after the first
# halve the resolution if they are not dilated.
STAGES = {
    64: (
        Stage("1", 1, 1, "4"),
        Stage("2", 2, 1, "3"),
        Stage("3", 2, 2, "2"),
        Stage("4", 2, 4, "1"),
    ),
    128: (
        Stage("1", 1, 1, "5"),
        Stage("2", 2, 1, "4"),
        Stage("3", 2, 1, "3"),
        Stage("4", 4, 2, "2"),
        Stage("5", 4, 4, "1"),
    ),
    256: (
        Stage("1", 1, 1, "5"),
        Stage("2", 2, 1, "4"),
        Stage("3", 2, 1, "3"),
        Stage("31", 2, 1, "31"),
        Stage("4", 4, 2, "2"),
        Stage("5", 4, 4, "1"),
    ),
}


class NCSNv2(NoiseLevelNetwork):
    """The noise-conditional score network, version 2.

    Images can have any height and width: they are padded at the bottom and on the right to a
    multiple of 2, 4 or 8 (with ``design`` 64, 128, 256), and the output is cropped. Names and
    shapes of the parameters are those of the networks published with score SDEs.

    Args:
        channels: channels of the images.
        width: channels of the first stage, at least 2.
        design: image size for which the network is designed, 64, 128 or 256: it has four, five or
            six stages.
        centered: whether images are in [-1, 1]; if not, the first layer is applied to ``2 x - 1``.
        sigma_min: standard deviation of the lowest noise level.
        sigma_max: standard deviation of the highest noise level.
        scales: number of noise levels.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if an argument is outside its range.

    Example:
        >>> network = NCSNv2(channels=1, width=4, scales=10)
        >>> x, label = torch.randn(2, 1, 8, 8), torch.tensor([0, 9])
        >>> network(x, label).shape
        torch.Size([2, 1, 8, 8])

    References:
        Song & Ermon 2020, "Improved techniques for training score-based generative models",
        arXiv:2006.09011, appendix B; Lin et al. 2017, "RefineNet", arXiv:1611.06612.
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 128,
        design: int = 64,
        *,
        centered: bool = False,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        scales: int = 232,
    ) -> None:
        super().__init__(sigma_min, sigma_max, scales)
        self.channels = check_integer("channels", channels, 1)
        self.width = check_integer("width", width, 2)
        if check_integer("design", design) not in STAGES:
            raise ValueError(
                f"design: expected 64, 128 or 256, got {design}; images of other sizes "
                "fit too, larger designs have a larger receptive field"
            )
        self.design = design
        self.centered = centered
        stages = STAGES[design]
        widths = [self.width * stage.widening for stage in stages]

        self.begin_conv = nn.Conv2d(self.channels, self.width, 3, padding=1)
        self.normalizer = InstanceNormPlus(self.width)
        self.end_conv = nn.Conv2d(self.width, self.channels, 3, padding=1)
        n_in = self.width
        for stage, n in zip(stages, widths, strict=True):
            first = _Residual(n_in, n, stage.dilation, down=stage is not stages[0])
            self.add_module(
                f"res{stage.name}", nn.ModuleList([first, _Residual(n, n, stage.dilation)])
            )
            n_in = n
        for stage in sorted(stages, key=lambda stage: stage.refinement):
            k = stages.index(stage)
            inputs = 1 if stage is stages[-1] else 2
            refine = _Refine(inputs, widths[k], widths[max(k - 1, 0)], last=k == 0)
            self.add_module(f"refine{stage.refinement}", refine)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Predict the score.

        Args:
            x: ``(batch, channels, height, width)``.
            label: ``(batch,)`` indices of noise levels, 0 for the highest; fractions are truncated.

        Returns:
            ``(batch, channels, height, width)``.

        Raises:
            TypeError: if an argument is no tensor of the right dtype.
            ValueError: if an argument has the wrong shape, or an index is out of range.
        """
        check_input(x, label, (self.channels, None, None), self.begin_conv.weight.dtype)
        stages = STAGES[self.design]
        halvings = sum(stage.dilation == 1 for stage in stages[1:])
        h = self.begin_conv(pad_to_multiple(x if self.centered else 2 * x - 1, 2**halvings))
        maps = []
        for stage in stages:
            first, second = self.get_submodule(f"res{stage.name}").children()
            h = second(first(h))
            maps.append(h)
        below: list[Tensor] = []
        for stage in reversed(stages):
            below = [self.get_submodule(f"refine{stage.refinement}")([maps.pop(), *below])]
        h = self.end_conv(F.elu(self.normalizer(below[0])))
        out: Tensor = h[..., : x.shape[-2], : x.shape[-1]] / expand(self.sigma_at(label), h)
        return out


class InstanceNormPlus(nn.Module):
    r"""Instance normalization plus the means of the channels, normalized over the channels.

    .. math::
        \gamma \left( \frac{x - \mu}{\sqrt{v + \epsilon}}
        + \alpha \frac{\mu - \bar\mu}{\sqrt{w + \epsilon}} \right) + \beta

    with mean ``mu`` and variance ``v`` of a channel over the pixels, and mean and (unbiased)
    variance ``w`` of ``mu`` over the channels.

    Args:
        channels: number of channels, at least 2.

    References:
        Song & Ermon 2019, "Generative modeling by estimating gradients of the data distribution",
        arXiv:1907.05600, appendix A.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(1 + 0.02 * torch.randn(channels))
        self.gamma = nn.Parameter(1 + 0.02 * torch.randn(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, channels, height, width)`` to the same shape."""
        variance, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
        over_channels = torch.var_mean(mean, dim=1, keepdim=True)
        h = (x - mean) * torch.rsqrt(variance + 1e-5)
        means = (mean - over_channels[1]) * torch.rsqrt(over_channels[0] + 1e-5)
        alpha, gamma, beta = (p[:, None, None] for p in (self.alpha, self.gamma, self.beta))
        return gamma * (h + alpha * means) + beta


def _convolution(n_in: int, n_out: int, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=dilation, dilation=dilation, bias=bias)


class _ConvolveAndHalve(nn.Module):
    def __init__(self, n_in: int, n_out: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, size, padding=size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(x), 2)


class _Residual(nn.Module):
    def __init__(self, n_in: int, n_out: int, dilation: int, down: bool = False) -> None:
        super().__init__()
        self.conv1 = _convolution(n_in, n_in if down else n_out, dilation)
        self.normalize2 = InstanceNormPlus(n_in if down else n_out)
        self.conv2: nn.Module
        self.shortcut: nn.Module
        if down and dilation == 1:
            self.conv2 = _ConvolveAndHalve(n_in, n_out, 3)
            self.shortcut = _ConvolveAndHalve(n_in, n_out, 1)
        elif down:
            self.conv2 = _convolution(n_in, n_out, dilation)
            self.shortcut = _convolution(n_in, n_out, dilation)
        else:
            self.conv2 = _convolution(n_out, n_out, dilation)
            self.shortcut = nn.Identity()
        self.normalize1 = InstanceNormPlus(n_in)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.elu(self.normalize1(x)))
        out: Tensor = self.shortcut(x) + self.conv2(F.elu(self.normalize2(h)))
        return out


class _Convolutions(nn.Module):
    """Residual units, each of two convolutions after an activation."""

    def __init__(self, n: int, units: int) -> None:
        super().__init__()
        for unit in range(1, units + 1):
            for step in (1, 2):
                self.add_module(f"{unit}_{step}_conv", _convolution(n, n, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        convolutions = list(self.children())
        for first, second in zip(convolutions[::2], convolutions[1::2], strict=True):
            x = x + second(F.elu(first(F.elu(x))))
        return x


class _Fusion(nn.Module):
    """The sum of maps of different sizes, interpolated to the size of the first."""

    def __init__(self, n_in: int, n_out: int, inputs: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_convolution(n_in, n_out) for _ in range(inputs))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        size = maps[0].shape[-2:]
        convolved = [conv(h) for conv, h in zip(self.convs, maps, strict=True)]
        resized = [
            F.interpolate(h, size=size, mode="bilinear", align_corners=True) for h in convolved
        ]
        return torch.stack(resized).sum(0)


class _Pooling(nn.Module):
    """Chained pooling: maxima over growing windows, each convolved and added."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_convolution(n, n, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        out = path = F.elu(x)
        for convolution in self.convs:
            path = convolution(F.max_pool2d(path, 5, stride=1, padding=2))
            out = out + path
        return out


class _Refine(nn.Module):
    """A refinement block: adapt every input, fuse them, pool, and convolve."""

    def __init__(self, inputs: int, n_in: int, n_out: int, last: bool) -> None:
        super().__init__()
        self.adapt_convs = nn.ModuleList(_Convolutions(n_in, 2) for _ in range(inputs))
        self.output_convs = _Convolutions(n_out, 3 if last else 1)
        self.msf = _Fusion(n_in, n_out, inputs) if inputs > 1 else None
        self.crp = _Pooling(n_out)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        adapted = [adapt(h) for adapt, h in zip(self.adapt_convs, maps, strict=True)]
        h = adapted[0] if self.msf is None else self.msf(adapted)
        out: Tensor = self.output_convs(self.crp(h))
        return out
