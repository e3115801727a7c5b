"""Networks ``(x, label, **condition) -> x-shaped``.

A network is an ``nn.Module`` that takes states ``x`` ``(batch, *event)`` and one label per sample
``(batch,)`` for the noise level, and returns something of the shape of ``x``.  What the label is
and what the output means (noise, data, score or velocity) is the business of the score that holds
the network. Any module with this signature will do; these are ours.  Each keeps its constructor's
arguments as attributes of the same names, so that a saved model can be rebuilt from them.

A new network is one file and one line in ``__all__`` here.
"""

from scoresde.networks.ddpm import DDPMUNet
from scoresde.networks.dit import DiT
from scoresde.networks.embeddings import FourierEmbedding, PositionalEmbedding
from scoresde.networks.mlp import MLP
from scoresde.networks.ncsnpp import NCSNpp
from scoresde.networks.ncsnv2 import NCSNv2
from scoresde.networks.unet import UNet

__all__ = [
    "MLP",
    "DDPMUNet",
    "DiT",
    "FourierEmbedding",
    "NCSNpp",
    "NCSNv2",
    "PositionalEmbedding",
    "UNet",
]
