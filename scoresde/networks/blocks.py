"""Modules of several networks: conditioning, residual blocks, attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from scoresde.networks._inputs import check_classes
from scoresde.networks.embeddings import PositionalEmbedding
from scoresde.networks.initialization import scaled_, variance_scaling_


class Conditioning(nn.Module):
    """Conditioning features: the embedded label, plus a learned row per class if there are classes.

    Args:
        width: number of features.
        classes: number of classes or None; the table has one more row, for no class.
        label_scale: factor on the label before its positional embedding.
    """

    def __init__(self, width: int, classes: int | None, label_scale: float) -> None:
        super().__init__()
        self.embedding = PositionalEmbedding(max(width // 2, 2), label_scale)
        self.hidden = nn.Linear(self.embedding.dim, width)
        self.output = nn.Linear(width, width)
        self.table = None if classes is None else nn.Parameter(torch.randn(classes + 1, width))

    def forward(self, label: Tensor, classes: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return ``(batch, width)`` features in ``dtype`` from ``(batch,)`` labels and classes."""
        features = self.output(F.silu(self.hidden(self.embedding(label).to(dtype))))
        if self.table is not None:
            features = features + _class_rows(self.table, classes, len(label))
        elif classes is not None:
            raise ValueError(
                "classes: expected None for a network without classes, got a value; build it with "
                "classes=<number of classes>"
            )
        return F.silu(features)


def _class_rows(table: Tensor, classes: Tensor | None, batch: int) -> Tensor:
    null = len(table) - 1
    if classes is None:
        return table[null:].expand(batch, -1)
    check_classes(classes, null, batch)
    return lookup(table, classes)


def lookup(table: Tensor, index: Tensor) -> Tensor:
    """Return the rows ``table[index]``, and NaN where there is no such row.

    ``check_index`` refuses wrong indices on the CPU; elsewhere they give NaN instead of a row.
    """
    rows = table[index.clamp(0, len(table) - 1)]
    valid = (index >= 0) & (index < len(table))
    return torch.where(valid.reshape(-1, *(1,) * (table.ndim - 1)), rows, torch.nan)


def group_norm(channels: int, group_size: int = 4) -> nn.GroupNorm:
    """Group normalization over groups of at least ``group_size`` channels, 32 groups at most."""
    groups = math.gcd(channels, min(max(channels // group_size, 1), 32))
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    r"""The convolutional residual block of DDPM, BigGAN and NCSN++.

    .. math::
        h = \mathrm{Conv}_0(R\, \mathrm{act}(\mathrm{GN}_0(x))) + \mathrm{Dense}_0(e), \qquad
        \mathrm{out} = c\, (\mathrm{Conv}_2(R x)
        + \mathrm{Conv}_1(\mathrm{act}(\mathrm{GN}_1(h))))

    with features ``e`` and an optional change ``R`` of the resolution; the shortcut has a
    convolution only where the shape changes.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        features: number of conditioning features.
        dropout: probability with which a hidden feature is dropped in training.
        resample: a change ``R`` of the resolution, or None.
        rescale: whether ``c`` is 1/√2, which preserves the variance, or 1.
        group_size: least number of channels in a group of the normalization.
        init_scale: variance scale of the last convolution at the start.
        nin: whether the shortcut is stored as a "network in network" layer, as in DDPM.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: int,
        dropout: float = 0.0,
        resample: nn.Module | None = None,
        *,
        rescale: bool = True,
        group_size: int = 4,
        init_scale: float = 0.0,
        nin: bool = False,
    ) -> None:
        super().__init__()
        self.GroupNorm_0 = group_norm(in_channels, group_size)
        self.Conv_0 = scaled_(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.Dense_0 = scaled_(nn.Linear(features, out_channels))
        self.GroupNorm_1 = group_norm(out_channels, group_size)
        self.Conv_1 = scaled_(nn.Conv2d(out_channels, out_channels, 3, padding=1), init_scale)
        reshapes = resample is not None or in_channels != out_channels
        self.Conv_2 = self.NIN_0 = None
        if reshapes and nin:
            self.NIN_0 = NIN(in_channels, out_channels)
        elif reshapes:
            self.Conv_2 = scaled_(nn.Conv2d(in_channels, out_channels, 1))
        self.dropout = dropout
        self.resample = resample
        self.scale = math.sqrt(0.5) if rescale else 1.0

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Map ``(batch, in_channels, height, width)`` and ``(batch, features)`` to the output."""
        h = F.silu(self.GroupNorm_0(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.Conv_0(h) + self.Dense_0(features)[:, :, None, None]
        h = F.dropout(F.silu(self.GroupNorm_1(h)), self.dropout, self.training)
        h = self.Conv_1(h)
        shortcut = self.Conv_2 or self.NIN_0
        out: Tensor = (h + (x if shortcut is None else shortcut(x))) * self.scale
        return out


class NIN(nn.Module):
    """A 1x1 convolution with a weight of shape ``(in, out)``: a "network in network" layer."""

    def __init__(self, in_channels: int, out_channels: int, init_scale: float = 0.1) -> None:
        super().__init__()
        self.W = nn.Parameter(variance_scaling_(torch.empty(in_channels, out_channels), init_scale))
        self.b = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in, height, width)`` to ``(batch, out, height, width)``."""
        return F.conv2d(x, self.W.t()[:, :, None, None], self.b)


class AttentionBlock(nn.Module):
    """Self-attention between the pixels of an image, with one head, inside a residual connection.

    Args:
        channels: channels of the input and the output.
        rescale: whether the sum is divided by √2, which preserves the variance.
        group_size: least number of channels in a group of the normalization.
        init_scale: variance scale of the last layer at the start.
    """

    def __init__(
        self,
        channels: int,
        *,
        rescale: bool = True,
        group_size: int = 4,
        init_scale: float = 0.0,
    ) -> None:
        super().__init__()
        self.GroupNorm_0 = group_norm(channels, group_size)
        self.NIN_0 = NIN(channels, channels)
        self.NIN_1 = NIN(channels, channels)
        self.NIN_2 = NIN(channels, channels)
        self.NIN_3 = NIN(channels, channels, init_scale)
        self.scale = math.sqrt(0.5) if rescale else 1.0

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Map ``(batch, channels, height, width)`` to the same shape; ``features`` are not used."""
        h = self.GroupNorm_0(x)
        q, k, v = (nin(h).flatten(2).mT for nin in (self.NIN_0, self.NIN_1, self.NIN_2))
        h = attention(q, k, v).mT.reshape(x.shape)
        out: Tensor = (x + self.NIN_3(h)) * self.scale
        return out


class Chain(nn.ModuleList):
    """A sequence of blocks ``(h, features) -> h``."""

    def forward(self, h: Tensor, features: Tensor) -> Tensor:
        """Apply all blocks."""
        for block in self:
            h = block(h, features)
        return h


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    r"""Scaled dot-product attention :math:`\mathrm{softmax}(q k^T / \sqrt d)\, v`.

    It has forward-mode and second derivatives, which the fused kernels of PyTorch lack; these are
    used only where no derivative can be taken. A compiler fuses the explicit formula itself.

    Args:
        q: queries ``(..., tokens, d)``.
        k: keys, of the same shape.
        v: values, of the same shape.

    Returns:
        ``(..., tokens, d)``.
    """
    if _derivatives_possible():
        weights = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1)
        return weights @ v
    return F.scaled_dot_product_attention(q, k, v)


def _derivatives_possible() -> bool:
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return True
    return forward_ad._current_level >= 0  # noqa: SLF001 (there is no public name)


def recompute(layer: nn.Module, *inputs: Tensor) -> Tensor:
    """Return ``layer(*inputs)`` with gradient checkpointing in training.

    In evaluation mode and without gradients it is a plain call, to which the transforms of
    ``torch.func`` apply.
    """
    if layer.training and torch.is_grad_enabled():
        out: Tensor = checkpoint(layer, *inputs, use_reentrant=False)
    else:
        out = layer(*inputs)
    return out
