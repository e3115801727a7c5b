"""A compact U-Net for images of any height and width.

The downward path halves height and width between levels of residual blocks; the upward path doubles
them, and each of its blocks has the output of a block of the downward path as a second input (skip
connections). The label enters every block. The lowest level has attention between all pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde._core.checks import check_between, check_integer, check_positive
from scoresde.networks._inputs import check_input, check_levels, check_widths
from scoresde.networks.blocks import (
    AttentionBlock,
    Chain,
    Conditioning,
    ResidualBlock,
    group_norm,
    recompute,
)
from scoresde.networks.initialization import scaled_, zero_
from scoresde.networks.resampling import Double, Halve, pad_to_multiple

__all__ = ["UNet"]


class UNet(nn.Module):
    """A small U-Net of residual blocks, with attention on chosen levels.

    Images can have any height and width: they are padded at the bottom and on the right to a
    multiple of ``2 ** (len(multipliers) - 1)``, and the output is cropped. The output layer is
    initialized to zero: an untrained network predicts 0.

    Args:
        channels: channels of the images.
        width: channels of the first level.
        multipliers: width of every level in units of ``width``, from full resolution down.
        blocks: number of residual blocks per level of the downward path; the upward path has one
            more.
        attention: levels with attention, by their index in ``multipliers``; negative ones count
            from the lowest level.
        classes: number of classes, for a network conditioned on one; None for no conditioning.
        dropout: probability with which a hidden feature is dropped in training.
        label_scale: factor on the label before its embedding; 100 suits a time in [0, 1], 0.1 an
            index of a table with 1000 entries.
        checkpointing: whether training uses gradient checkpointing: the activations of every block
            are recomputed in the backward pass instead of stored.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if a size is below 1, ``attention`` names no level, ``dropout`` is outside [0,
            1] or ``label_scale`` is not positive.

    Example:
        >>> network = UNet(channels=1, width=8)
        >>> x, label = torch.randn(3, 1, 7, 5), torch.rand(3)
        >>> network(x, label).shape
        torch.Size([3, 1, 7, 5])

    References:
        Ronneberger et al. 2015, "U-Net"; Ho et al. 2020, "Denoising diffusion probabilistic
        models", appendix B; Song et al. 2021, "Score-based generative modeling through stochastic
        differential equations", appendix H.
    """

    def __init__(
        self,
        channels: int,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 2,
        attention: Sequence[int] = (-1,),
        classes: int | None = None,
        dropout: float = 0.0,
        label_scale: float = 100.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.channels = check_integer("channels", channels, 1)
        self.width = check_integer("width", width, 1)
        self.multipliers = check_widths("multipliers", multipliers)
        self.blocks = check_integer("blocks", blocks, 1)
        self.attention = check_levels("attention", attention, len(self.multipliers))
        self.classes = None if classes is None else check_integer("classes", classes, 1)
        self.dropout = check_between("dropout", dropout, 0.0, 1.0)
        self.label_scale = check_positive("label_scale", label_scale)
        self.checkpointing = checkpointing

        widths = [self.width * multiplier for multiplier in self.multipliers]
        features = 4 * self.width
        attended = {level % len(widths) for level in self.attention}

        def block(n_in: int, n_out: int, resample: nn.Module | None = None) -> ResidualBlock:
            return ResidualBlock(n_in, n_out, features, self.dropout, resample)

        def step(n_in: int, level: int) -> Chain:
            chain = Chain([block(n_in, widths[level])])
            if level in attended:
                chain.append(AttentionBlock(widths[level]))
            return chain

        self.conditioning = Conditioning(features, self.classes, self.label_scale)
        self.input = scaled_(nn.Conv2d(self.channels, widths[0], 3, padding=1))
        skips = [widths[0]]
        self.down = nn.ModuleList()
        for level, n in enumerate(widths):
            for _ in range(self.blocks):
                self.down.append(step(skips[-1], level))
                skips.append(n)
            if level < len(widths) - 1:
                self.down.append(Chain([block(n, n, Halve())]))
                skips.append(n)
        n = widths[-1]
        self.middle = Chain([*step(n, len(widths) - 1), block(n, n)])
        self.up = nn.ModuleList()
        for level in reversed(range(len(widths))):
            chains: list[Chain] = []
            for _ in range(self.blocks + 1):
                chains.append(step(n + skips.pop(), level))
                n = widths[level]
            if level > 0:
                chains[-1].append(block(n, n, Double()))
            self.up.extend(chains)
        self.norm = group_norm(n)
        self.output = zero_(nn.Conv2d(n, self.channels, 3, padding=1))

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        """Predict.

        Args:
            x: ``(batch, channels, height, width)``.
            label: ``(batch,)``.
            classes: ``(batch,)`` integers in 0 … ``classes - 1``; the integer ``classes`` is the
                null class, and None the null class for all samples.

        Returns:
            ``(batch, channels, height, width)``.

        Raises:
            TypeError: if an argument is no tensor of the right dtype.
            ValueError: if an argument has the wrong shape, or a class does not exist.
        """
        check_input(x, label, (self.channels, None, None), self.input.weight.dtype)
        features = self.conditioning(label, classes, x.dtype)
        h = self.input(pad_to_multiple(x, 2 ** (len(self.multipliers) - 1)))
        skips = [h]
        for step in self.down:
            skips.append(self._call(step, skips[-1], features))
        h = self._call(self.middle, skips[-1], features)
        for step in self.up:
            h = self._call(step, torch.cat([h, skips.pop()], dim=1), features)
        h = self.output(F.silu(self.norm(h)))
        out: Tensor = h[..., : x.shape[-2], : x.shape[-1]]
        return out

    def _call(self, step: nn.Module, h: Tensor, features: Tensor) -> Tensor:
        out: Tensor = recompute(step, h, features) if self.checkpointing else step(h, features)
        return out
