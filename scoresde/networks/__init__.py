"""Networks: modules ``forward(x, label, **condition)`` with output shaped like ``x``.

A network takes states ``x`` ``(batch, *event)`` and one label per sample ``(batch,)``, which is a
function of the noise level. The score that holds the network determines what the label is (a time,
an index, a standard deviation, a log-SNR) and what the output predicts (noise, data, score or
velocity). Any ``nn.Module`` with these properties can be used in place of those of this package:

* The output has the shape, dtype and device of ``x``, for a batch of any size.
* ``x``, ``label`` and conditions are not modified in place.
* In evaluation mode the output is a function of the inputs: no random number is drawn. In training
  mode dropout may use PyTorch's global generator, which :func:`~scoresde.training.fit` seeds.
* In evaluation mode samples are independent: row i of the output depends on row i of the inputs
  only. Batch normalization in training mode violates this.
* Double backward, ``torch.func.jvp`` and ``torch.func.vmap`` work: divergence estimators and
  guidance use them. PyTorch's fused attention kernels do not have these derivatives;
  :func:`scoresde.networks.blocks.attention` does.

Conditions are keyword arguments, bound by :meth:`~scoresde.scores.ScoreModel.given`. A network with
classes has the number of the null class as attribute ``classes``.

The networks here store the arguments of their constructors as attributes of the same names, from
which a saved model is rebuilt. A new network is one file, one import here, and one line in
:data:`MEMBERS`, which the contract tests of :mod:`scoresde.testing` run through.
"""

from collections.abc import Callable

from torch import nn

from scoresde.networks.ddpm import DDPMUNet
from scoresde.networks.dit import DiT
from scoresde.networks.embeddings import FourierEmbedding, PositionalEmbedding
from scoresde.networks.mlp import MLP
from scoresde.networks.ncsnpp import NCSNpp
from scoresde.networks.ncsnv2 import NCSNv2
from scoresde.networks.unet import UNet

__all__ = [
    "MEMBERS",
    "MLP",
    "DDPMUNet",
    "DiT",
    "FourierEmbedding",
    "NCSNpp",
    "NCSNv2",
    "PositionalEmbedding",
    "UNet",
]

MEMBERS: tuple[Callable[[], tuple[nn.Module, tuple[int, ...]]], ...] = (
    lambda: (MLP((3,), width=16, depth=2), (3,)),
    lambda: (MLP((2, 3), width=16, depth=1, classes=3), (2, 3)),
    lambda: (UNet(1, width=8, blocks=1), (1, 5, 6)),
    lambda: (DiT(1, width=16, depth=2, heads=2, classes=3), (1, 4, 6)),
    lambda: (DDPMUNet(1, width=8, multipliers=(1, 2), blocks=1), (1, 4, 6)),
    lambda: (NCSNpp(1, width=8, multipliers=(1, 2), blocks=1), (1, 4, 6)),
    lambda: (NCSNv2(1, width=4, scales=10), (1, 8, 8)),
)
"""Factories of a small network and the shape of one sample, for the contract tests."""
