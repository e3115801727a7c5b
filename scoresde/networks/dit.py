r"""A transformer on patches of an image.

Each patch of the image becomes a token, with a fixed positional embedding of its row and column.
The tokens pass through transformer blocks, where the label determines the scale γ and shift β of
every layer normalization and the gate g of every residual branch,

.. math::
    h \leftarrow h + g_1 \odot \mathrm{Attention}(\gamma_1 \odot \mathrm{LN}(h) + \beta_1), \qquad
    h \leftarrow h + g_2 \odot \mathrm{MLP}(\gamma_2 \odot \mathrm{LN}(h) + \beta_2),

and become patches again. All gates are initialized to zero, so that every block is the identity at
first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde._core.checks import check_between, check_integer, check_positive
from scoresde.networks._inputs import check_input
from scoresde.networks.blocks import Conditioning, attention, recompute
from scoresde.networks.embeddings import PositionalEmbedding
from scoresde.networks.initialization import scaled_, zero_
from scoresde.networks.resampling import pad_to_multiple

__all__ = ["DiT"]


class DiT(nn.Module):
    """A diffusion transformer.

    Images can have any height and width: they are padded at the bottom and on the right to a
    multiple of ``patch``, and the output is cropped. The output layer is initialized to zero: an
    untrained network predicts 0.

    Args:
        channels: channels of the images.
        width: number of features of a token, a multiple of ``heads`` and at least 4.
        depth: number of transformer blocks.
        heads: number of attention heads.
        patch: height and width of a patch in pixels.
        classes: number of classes, for a network conditioned on one; None for no conditioning.
        dropout: probability with which a hidden feature is dropped in training.
        label_scale: factor on the label before its embedding; 100 suits a time in [0, 1], 0.1 an
            index of a table with 1000 entries.
        checkpointing: whether training uses gradient checkpointing: the activations of every block
            are recomputed in the backward pass instead of stored.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if a size is below 1, ``heads`` does not divide ``width``, ``dropout`` is
            outside [0, 1] or ``label_scale`` is not positive.

    Example:
        >>> network = DiT(channels=1, width=16, depth=2, heads=2)
        >>> x, label = torch.randn(3, 1, 8, 6), torch.rand(3)
        >>> network(x, label).shape
        torch.Size([3, 1, 8, 6])

    References:
        Peebles & Xie 2023, "Scalable diffusion models with transformers", arXiv:2212.09748,
        section 3.
    """

    def __init__(
        self,
        channels: int,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        patch: int = 2,
        classes: int | None = None,
        dropout: float = 0.0,
        label_scale: float = 100.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.channels = check_integer("channels", channels, 1)
        self.width = check_integer("width", width, 4)
        self.depth = check_integer("depth", depth, 1)
        self.heads = check_integer("heads", heads, 1)
        if self.width % self.heads:
            raise ValueError(
                f"heads: expected a divisor of width={width}, got {heads}; "
                f"pass width={self.heads * -(-self.width // self.heads)}"
            )
        self.patch = check_integer("patch", patch, 1)
        self.classes = None if classes is None else check_integer("classes", classes, 1)
        self.dropout = check_between("dropout", dropout, 0.0, 1.0)
        self.label_scale = check_positive("label_scale", label_scale)
        self.checkpointing = checkpointing
        self.conditioning = Conditioning(self.width, self.classes, self.label_scale)
        self.input = scaled_(nn.Conv2d(self.channels, self.width, self.patch, stride=self.patch))
        self.rows = PositionalEmbedding(self.width // 2)
        self.columns = PositionalEmbedding(self.width - self.width // 2)
        self.blocks = nn.ModuleList(
            _TransformerBlock(self.width, self.heads, self.dropout) for _ in range(self.depth)
        )
        self.modulation = zero_(nn.Linear(self.width, 2 * self.width))
        self.output = zero_(nn.Linear(self.width, self.channels * self.patch**2))

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
        grid = self.input(pad_to_multiple(x, self.patch))
        h = (grid + self._positions(grid)).flatten(2).mT
        for block in self.blocks:
            h = recompute(block, h, features) if self.checkpointing else block(h, features)
        shift, scale = self.modulation(features)[:, None].chunk(2, dim=-1)
        patches = self.output(_normalize(h, shift, scale)).mT.unflatten(2, grid.shape[2:])
        return F.pixel_shuffle(patches, self.patch)[..., : x.shape[-2], : x.shape[-1]]

    def _positions(self, grid: Tensor) -> Tensor:
        rows, columns = (torch.arange(n, device=grid.device) for n in grid.shape[2:])
        by_row = self.rows(rows).mT[:, :, None].expand(-1, -1, len(columns))
        by_column = self.columns(columns).mT[:, None].expand(-1, len(rows), -1)
        return torch.cat([by_row, by_column]).to(grid.dtype)


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.modulation = zero_(nn.Linear(width, 6 * width))
        self.qkv = scaled_(nn.Linear(width, 3 * width))
        self.mix = scaled_(nn.Linear(width, width))
        self.hidden = scaled_(nn.Linear(width, 4 * width))
        self.output = scaled_(nn.Linear(4 * width, width))

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        modulation = self.modulation(features)[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        x = x + gate1 * self._attend(_normalize(x, shift1, scale1))
        h = F.gelu(self.hidden(_normalize(x, shift2, scale2)), approximate="tanh")
        out: Tensor = x + gate2 * self.output(F.dropout(h, self.dropout, self.training))
        return out

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.mix(attention(q, k, v).transpose(1, 2).flatten(2))
        return out


def _normalize(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)
