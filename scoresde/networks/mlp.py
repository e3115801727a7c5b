r"""A residual network for vectors and other small samples, which are flattened.

The optimal prediction for Gaussian data is linear in ``x``, with a gain that depends only on the
noise level. The network contains this as a special case: a residual stream is linear in ``x`` from
the first layer to the last, blocks add nonlinear terms, and the label determines the scale γ and
shift β of the features of every block and of the output,

.. math::
    h_0 = W_{in} x, \qquad
    h_{k+1} = h_k + W_k'\, \mathrm{SiLU}(W_k (\gamma_k \odot \mathrm{LN}(h_k) + \beta_k)), \qquad
    \mathrm{out} = W_{out} (\gamma_K \odot h_K + \beta_K).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde._core.checks import check_between, check_integer, check_integers, check_positive
from scoresde._core.shapes import flatten
from scoresde.networks._inputs import check_input
from scoresde.networks.blocks import Conditioning
from scoresde.networks.initialization import zero_

__all__ = ["MLP"]


class MLP(nn.Module):
    r"""A residual multilayer perceptron with a time embedding, for samples of any shape.

    Samples are flattened. The output layer is initialized to zero: an untrained network predicts 0.

    Args:
        event_shape: shape of one sample, ``()`` for scalars.
        width: number of features of the residual stream.
        depth: number of residual blocks.
        classes: number of classes, for a network conditioned on one; None for no conditioning.
        dropout: probability with which a hidden feature is dropped in training.
        label_scale: factor on the label before its embedding; 100 suits a time in [0, 1], 0.1 an
            index of a table with 1000 entries.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if a size is below 1, ``dropout`` is outside [0, 1] or ``label_scale`` not
            positive.

    Example:
        >>> network = MLP((2,), width=16, depth=2)
        >>> x, label = torch.randn(5, 2), torch.rand(5)
        >>> network(x, label).shape
        torch.Size([5, 2])
        >>> bool((network(x, label) == 0).all())
        True

    References:
        He et al. 2016, "Identity mappings in deep residual networks" (the block);
        Peebles & Xie 2023, "Scalable diffusion models with transformers", section 3.2 (the
        modulation).
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        width: int = 256,
        depth: int = 4,
        classes: int | None = None,
        dropout: float = 0.0,
        label_scale: float = 100.0,
    ) -> None:
        super().__init__()
        self.event_shape = check_integers("event_shape", event_shape, 1)
        self.width = check_integer("width", width, 1)
        self.depth = check_integer("depth", depth, 1)
        self.classes = None if classes is None else check_integer("classes", classes, 1)
        self.dropout = check_between("dropout", dropout, 0.0, 1.0)
        self.label_scale = check_positive("label_scale", label_scale)
        size = math.prod(self.event_shape)
        features = max(self.width // 4, 8)
        self.conditioning = Conditioning(features, self.classes, self.label_scale)
        self.modulation = zero_(nn.Linear(features, 2 * self.width * (self.depth + 1)))
        nn.init.ones_(self.modulation.bias[: self.width * (self.depth + 1)])
        self.input = nn.Linear(size, self.width)
        self.blocks = nn.ModuleList(
            _ResidualLayer(self.width, self.dropout) for _ in range(self.depth)
        )
        self.output = zero_(nn.Linear(self.width, size))

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        """Predict.

        Args:
            x: ``(batch, *event_shape)``.
            label: ``(batch,)``.
            classes: ``(batch,)`` integers in 0 … ``classes - 1``; the integer ``classes`` is the
                null class, and None the null class for all samples.

        Returns:
            ``(batch, *event_shape)``.

        Raises:
            TypeError: if an argument is no tensor of the right dtype.
            ValueError: if an argument has the wrong shape, or a class does not exist.
        """
        check_input(x, label, self.event_shape, self.input.weight.dtype)
        modulation = self.modulation(self.conditioning(label, classes, x.dtype))
        scales, shifts = modulation.reshape(-1, 2, self.depth + 1, self.width).unbind(1)
        h = self.input(flatten(x))
        for k, block in enumerate(self.blocks):
            h = block(h, scales[:, k], shifts[:, k])
        h = torch.addcmul(shifts[:, -1], h, scales[:, -1])
        out: Tensor = self.output(h).reshape(x.shape)
        return out


class _ResidualLayer(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        h = torch.addcmul(shift, F.layer_norm(x, x.shape[1:]), scale)
        h = F.silu(self.hidden(h))
        out: Tensor = x + self.output(F.dropout(h, self.dropout, self.training))
        return out
