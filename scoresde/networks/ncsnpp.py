r"""The U-Nets of Song et al. (2021): NCSN++ and DDPM++; DDPM is in :mod:`scoresde.networks.ddpm`.

All are one network with options. An embedding and two dense layers map the label to features ``e``,
which enter every residual block of a U-Net; some levels, and the bottom, have attention. NCSN++
adds three things to DDPM's network: resolution changes inside residual blocks (as in BigGAN) with
low-pass filters (as in StyleGAN2); a pyramid of the input, joined to the downward path, or of the
output, summed along the upward path; and the division of the output by the standard deviation of
the noise, which makes it a score.

======================  ============  =====================  =================  =====  ========
network                 ``taps``      ``progressive_input``  ``fourier_scale``  by σ   centered
======================  ============  =====================  =================  =====  ========
NCSN++, VE, continuous  (1, 3, 3, 1)  "residual"             16                 True   False
NCSN++, VE, discrete    (1, 3, 3, 1)  "residual"             None               True   False
NCSN++, VP and sub-VP   (1, 3, 3, 1)  "residual"             None               False  True
DDPM++, VP and sub-VP   None          "none"                 None               False  True
======================  ============  =====================  =================  =====  ========

The layers are in one flat list in the order of their use, with the names and shapes of the networks
published with the paper, so that weights can be exchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde._core.checks import check_between, check_integer, check_nonnegative, check_positive
from scoresde._core.shapes import expand
from scoresde.networks._inputs import check_choice, check_input, check_levels, check_widths
from scoresde.networks.blocks import AttentionBlock, ResidualBlock, group_norm, recompute
from scoresde.networks.embeddings import FourierEmbedding, PositionalEmbedding
from scoresde.networks.initialization import scaled_
from scoresde.networks.noise_levels import NoiseLevelNetwork
from scoresde.networks.resampling import (
    Double,
    DoubleAndConvolve,
    Halve,
    HalveAndConvolve,
    check_taps,
    pad_to_multiple,
)

__all__ = ["NCSNpp"]


class NCSNpp(NoiseLevelNetwork):
    r"""NCSN++ and DDPM++, the U-Nets of Song et al. (2021).

    Images can have any height and width: they are padded at the bottom and on the right to a
    multiple of ``2 ** (len(multipliers) - 1)``, and the output is cropped. The table in the
    module's docstring has the settings of the published networks; the defaults are those of NCSN++,
    VP, CIFAR-10.

    Args:
        channels: channels of the images.
        width: channels of the first level.
        multipliers: width of every level in units of ``width``, from full resolution down.
        blocks: number of residual blocks per level of the downward path; the upward path has one
            more.
        attention: levels with attention, by their index in ``multipliers``; negative ones count
            from the lowest level.
        dropout: probability with which a hidden feature is dropped in training.
        biggan: whether the resolution changes inside residual blocks (BigGAN) or between them
            (DDPM).
        taps: low-pass filter of the resolution changes; None averages and repeats pixels.
        progressive_input: "none"; "input_skip", where the halved image is combined with every level
            by a 1x1 convolution; "residual", where it is convolved and added.
        progressive: the same for the output: "none", "output_skip" or "residual".
        combine: whether "input_skip" adds the image ("sum") or appends it as channels ("cat").
        rescale: whether sums of two paths are divided by √2.
        fourier_scale: scale of random Fourier features of ``log label``, for labels that are
            standard deviations; None for the positional embedding of the label.
        label_scale: factor on the label before the positional embedding; 1 suits labels 0 … 999.
        scale_by_sigma: whether the output is divided by σ, which is the label (Fourier features) or
            that of the noise level with the label as index (positional embedding).
        centered: whether images are in [-1, 1]; if not, the first layer is applied to ``2 x - 1``.
        group_size: least number of channels in a group of the normalization.
        init_scale: initial variance scale of the last layer of every path; 0 means 1e-10.
        sigma_min: standard deviation of the lowest noise level.
        sigma_max: standard deviation of the highest noise level.
        scales: number of noise levels.
        checkpointing: whether training uses gradient checkpointing: the activations of every block
            are recomputed in the backward pass instead of stored.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if an argument is outside its range.

    Example:
        >>> network = NCSNpp(width=8, multipliers=(1, 2), blocks=1)
        >>> x, label = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 900.0])
        >>> network(x, label).shape
        torch.Size([2, 3, 8, 8])

    References:
        Song et al. 2021, "Score-based generative modeling through stochastic differential
        equations", arXiv:2011.13456, section 4.4 and appendix H;
        Ho et al. 2020, "Denoising diffusion probabilistic models", arXiv:2006.11239, appendix B;
        Brock et al. 2019, "Large scale GAN training", arXiv:1809.11096, appendix B;
        Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN",
        arXiv:1912.04958, section 4.
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (1,),
        dropout: float = 0.1,
        *,
        biggan: bool = True,
        taps: Sequence[float] | None = (1.0, 3.0, 3.0, 1.0),
        progressive_input: Literal["none", "input_skip", "residual"] = "residual",
        progressive: Literal["none", "output_skip", "residual"] = "none",
        combine: Literal["sum", "cat"] = "sum",
        rescale: bool = True,
        fourier_scale: float | None = None,
        label_scale: float = 1.0,
        scale_by_sigma: bool = False,
        centered: bool = True,
        group_size: int = 4,
        init_scale: float = 0.0,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        scales: int = 1000,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(sigma_min, sigma_max, scales)
        self.channels = check_integer("channels", channels, 1)
        self.width = check_integer("width", width, 4)
        self.multipliers = check_widths("multipliers", multipliers)
        self.blocks = check_integer("blocks", blocks, 1)
        self.attention = check_levels("attention", attention, len(self.multipliers))
        self.dropout = check_between("dropout", dropout, 0.0, 1.0)
        self.biggan = biggan
        self.taps = None if taps is None else check_taps("taps", taps)
        check_choice("progressive_input", progressive_input, ("none", "input_skip", "residual"))
        self.progressive_input = progressive_input
        check_choice("progressive", progressive, ("none", "output_skip", "residual"))
        self.progressive = progressive
        check_choice("combine", combine, ("sum", "cat"))
        self.combine = combine
        self.rescale = rescale
        self.fourier_scale = (
            None if fourier_scale is None else check_positive("fourier_scale", fourier_scale)
        )
        self.label_scale = check_positive("label_scale", label_scale)
        self.scale_by_sigma = scale_by_sigma
        self.centered = centered
        self.group_size = check_integer("group_size", group_size, 1)
        self.init_scale = check_nonnegative("init_scale", init_scale)
        self.checkpointing = checkpointing
        self._attended = {level % len(self.multipliers) for level in self.attention}
        self.all_modules = nn.ModuleList(self._layers())
        self.image_down, self.image_up = Halve(self.taps), Double(self.taps)
        if self.fourier_scale is None:
            self.embedding = PositionalEmbedding(self.width, self.label_scale)

    # --- the layers, in the order of their use

    def _layers(self) -> Iterator[nn.Module]:
        features = 4 * self.width
        if self.fourier_scale is not None:
            yield FourierEmbedding(2 * self.width, self.fourier_scale)
        yield scaled_(nn.Linear(self.width * (1 if self.fourier_scale is None else 2), features))
        yield scaled_(nn.Linear(features, features))
        yield self._convolution(self.channels, self.width)
        skips = [self.width]
        yield from self._layers_down(skips)
        n = skips[-1]
        yield self._block(n, n)
        yield self._attention(n)
        yield self._block(n, n)
        yield from self._layers_up(skips)

    def _layers_down(self, skips: list[int]) -> Iterator[nn.Module]:
        pyramid, n = self.channels, self.width
        for level, multiplier in enumerate(self.multipliers):
            for _ in range(self.blocks):
                yield self._block(n, self.width * multiplier)
                n = self.width * multiplier
                if level in self._attended:
                    yield self._attention(n)
                skips.append(n)
            if level == len(self.multipliers) - 1:
                return
            if self.biggan:
                yield self._block(n, n, Halve(self.taps))
            else:
                yield HalveAndConvolve(n, n, self.taps)
            if self.progressive_input == "residual":
                yield HalveAndConvolve(pyramid, n, self.taps)
                pyramid = n
            elif self.progressive_input == "input_skip":
                yield _Combine(pyramid, n, self.combine)
                n = n if self.combine == "sum" else 2 * n
            skips.append(n)

    def _layers_up(self, skips: list[int]) -> Iterator[nn.Module]:
        lowest = len(self.multipliers) - 1
        n = pyramid = skips[-1]
        for level in reversed(range(lowest + 1)):
            for _ in range(self.blocks + 1):
                yield self._block(n + skips.pop(), self.width * self.multipliers[level])
                n = self.width * self.multipliers[level]
            if level in self._attended:
                yield self._attention(n)
            if self.progressive == "output_skip":
                yield group_norm(n, self.group_size)
                yield self._convolution(n, self.channels, self.init_scale)
            elif self.progressive == "residual":
                if level < lowest:
                    yield DoubleAndConvolve(pyramid, n, self.taps)
                else:
                    yield group_norm(n, self.group_size)
                    yield self._convolution(n, n)
                pyramid = n
            if level > 0 and self.biggan:
                yield self._block(n, n, Double(self.taps))
            elif level > 0:
                yield DoubleAndConvolve(n, n, self.taps)
        if self.progressive != "output_skip":
            yield group_norm(n, self.group_size)
            yield self._convolution(n, self.channels, self.init_scale)

    def _block(self, n_in: int, n_out: int, resample: nn.Module | None = None) -> ResidualBlock:
        return ResidualBlock(
            n_in,
            n_out,
            4 * self.width,
            self.dropout,
            resample,
            rescale=self.rescale,
            group_size=self.group_size,
            init_scale=self.init_scale,
            nin=not self.biggan,
        )

    def _attention(self, n: int) -> AttentionBlock:
        return AttentionBlock(
            n, rescale=self.rescale, group_size=self.group_size, init_scale=self.init_scale
        )

    def _convolution(self, n_in: int, n_out: int, scale: float = 1.0) -> nn.Conv2d:
        return scaled_(nn.Conv2d(n_in, n_out, 3, padding=1), scale)

    # --- the forward pass

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Predict.

        Args:
            x: ``(batch, channels, height, width)``.
            label: ``(batch,)``; σ > 0 with Fourier features, an index or a scaled time otherwise.

        Returns:
            ``(batch, channels, height, width)``.

        Raises:
            TypeError: if an argument is no tensor of the right dtype.
            ValueError: if an argument has the wrong shape, or a label is no index of a noise level
                and ``scale_by_sigma`` needs one.
        """
        layers = iter(self.all_modules)
        check_input(x, label, (self.channels, None, None), next(self.parameters()).dtype)
        features = self._features(layers, label, x.dtype)
        image = pad_to_multiple(x if self.centered else 2 * x - 1, 2 ** (len(self.multipliers) - 1))
        skips = self._down(layers, image, features)
        h = skips[-1]
        for _ in range(3):
            h = self._call(next(layers), h, features)
        h = self._up(layers, h, skips, features)[..., : x.shape[-2], : x.shape[-1]]
        if self.scale_by_sigma:
            h = h / expand(label if self.fourier_scale else self.sigma_at(label), h)
        return h

    def _features(self, layers: Iterator[nn.Module], label: Tensor, dtype: torch.dtype) -> Tensor:
        if self.fourier_scale is None:
            embedding = self.embedding(label)
        else:
            embedding = next(layers)(label.log())
        h = F.silu(next(layers)(embedding.to(dtype)))
        return F.silu(next(layers)(h))

    def _down(self, layers: Iterator[nn.Module], image: Tensor, features: Tensor) -> list[Tensor]:
        h = next(layers)(image)
        skips = [h]
        for level in range(len(self.multipliers)):
            for _ in range(self.blocks):
                h = self._call(next(layers), skips[-1], features)
                if level in self._attended:
                    h = self._call(next(layers), h, features)
                skips.append(h)
            if level == len(self.multipliers) - 1:
                break
            h = self._call(next(layers), h, features)
            if self.progressive_input == "residual":
                image = h = self._sum(next(layers)(image), h)
            elif self.progressive_input == "input_skip":
                image = self.image_down(image)
                h = next(layers)(image, h)
            skips.append(h)
        return skips

    def _up(
        self, layers: Iterator[nn.Module], h: Tensor, skips: list[Tensor], features: Tensor
    ) -> Tensor:
        lowest = len(self.multipliers) - 1
        image = h
        for level in reversed(range(lowest + 1)):
            for _ in range(self.blocks + 1):
                h = self._call(next(layers), torch.cat([h, skips.pop()], dim=1), features)
            if level in self._attended:
                h = self._call(next(layers), h, features)
            if self.progressive == "output_skip":
                new = self._output(layers, h)
                image = new if level == lowest else self.image_up(image) + new
            elif self.progressive == "residual" and level < lowest:
                image = h = self._sum(next(layers)(image), h)
            elif self.progressive == "residual":
                image = self._output(layers, h)
            if level > 0:
                h = self._call(next(layers), h, features)
        return image if self.progressive == "output_skip" else self._output(layers, h)

    def _output(self, layers: Iterator[nn.Module], h: Tensor) -> Tensor:
        h = F.silu(next(layers)(h))
        out: Tensor = next(layers)(h)
        return out

    def _sum(self, a: Tensor, b: Tensor) -> Tensor:
        return (a + b) * math.sqrt(0.5) if self.rescale else a + b

    def _call(self, layer: nn.Module, h: Tensor, features: Tensor) -> Tensor:
        return recompute(layer, h, features) if self.checkpointing else layer(h, features)


class _Combine(nn.Module):
    """Combine an image with features after a 1x1 convolution: their sum or their channels."""

    def __init__(self, n_image: int, n: int, how: str) -> None:
        super().__init__()
        self.Conv_0 = scaled_(nn.Conv2d(n_image, n, 1))
        self.how = how

    def forward(self, image: Tensor, h: Tensor) -> Tensor:
        """Map ``(batch, n_image, ...)`` and ``(batch, n, ...)`` to n or 2 n channels."""
        image = self.Conv_0(image)
        return image + h if self.how == "sum" else torch.cat([image, h], dim=1)
