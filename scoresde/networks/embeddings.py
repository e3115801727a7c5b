r"""Embeddings of the noise level.

The noise level of a sample is given to the network as one number, its label: a time, an index of a
table, a standard deviation or a log-SNR. Networks learn functions of a single number poorly, and
better from its sines and cosines at a range of frequencies,

.. math::
    \ell \mapsto (\sin \omega_i \ell, \cos \omega_i \ell)_i,

which are in geometric progression (positional embedding) or random (Fourier features). Angles are
computed at least in float32, whatever the dtype of the network.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from scoresde._core.checks import check_integer, check_positive

__all__ = ["FourierEmbedding", "PositionalEmbedding"]


class PositionalEmbedding(nn.Module):
    r"""Sines and cosines at frequencies in geometric progression.

    .. math::
        \omega_i = s \, P^{-i / (h - 1)}, \quad i = 0, \dots, h - 1, \quad h = \lfloor d / 2 \rfloor

    with scale ``s`` and ``P = max_period``; sines come first, an odd ``d`` is padded with a zero.
    With ``P = 10000`` and ``s = 1`` this is the embedding of DDPM for labels 0 … 999; a time in
    ``[0, 1]`` needs ``s = 1000``, which resolves differences down to about 1e-3.

    Args:
        dim: length ``d`` of the embedding, at least 2.
        scale: factor ``s`` on the label.
        max_period: ratio ``P`` of the highest and the lowest frequency.

    Raises:
        ValueError: if ``dim`` is below 2, or ``scale`` or ``max_period`` is not positive.

    Example:
        >>> embedding = PositionalEmbedding(4, scale=1000.0)
        >>> embedding(torch.tensor([0.0, 0.5])).shape
        torch.Size([2, 4])
        >>> embedding(torch.tensor([0.0]))
        tensor([[0., 0., 1., 1.]])

    References:
        Vaswani et al. 2017, "Attention is all you need", section 3.5;
        Ho et al. 2020, "Denoising diffusion probabilistic models", appendix B.
    """

    def __init__(self, dim: int, scale: float = 1.0, max_period: float = 10000.0) -> None:
        super().__init__()
        self.dim = check_integer("dim", dim, 2)
        self.scale = check_positive("scale", scale)
        self.max_period = check_positive("max_period", max_period)

    def forward(self, label: Tensor) -> Tensor:
        """Embed labels.

        Args:
            label: ``(batch,)``.

        Returns:
            ``(batch, dim)``, in the dtype of ``label`` or float32, whichever is wider.
        """
        label = _at_least_float32(label)
        half = self.dim // 2
        index = torch.arange(half, dtype=label.dtype, device=label.device)
        frequencies = torch.exp(index * (-math.log(self.max_period) / max(half - 1, 1)))
        angles = (self.scale * label)[:, None] * frequencies
        embedding = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return nn.functional.pad(embedding, (0, self.dim % 2))

    def extra_repr(self) -> str:
        return f"{self.dim}, scale={self.scale:g}, max_period={self.max_period:g}"


class FourierEmbedding(nn.Module):
    r"""Random Fourier features with frozen frequencies.

    .. math::
        \ell \mapsto (\sin 2 \pi W \ell, \cos 2 \pi W \ell), \quad W \sim N(0, s^2 I)

    ``W`` is a parameter without gradient: it is drawn once and saved with the model. NCSN++ embeds
    ``label = log sigma`` with ``scale = 16``.

    Args:
        dim: length of the embedding, even.
        scale: standard deviation ``s`` of the frequencies.

    Raises:
        ValueError: if ``dim`` is not even and positive, or ``scale`` is not positive.

    Example:
        >>> embedding = FourierEmbedding(6)
        >>> embedding(torch.tensor([0.0, 0.5])).shape
        torch.Size([2, 6])
        >>> embedding.W.requires_grad
        False

    References:
        Tancik et al. 2020, "Fourier features let networks learn high frequency functions in low
        dimensional domains"; Song et al. 2021, "Score-based generative modeling through stochastic
        differential equations", appendix C.
    """

    def __init__(self, dim: int, scale: float = 16.0) -> None:
        super().__init__()
        self.dim = check_integer("dim", dim, 2)
        if self.dim % 2:
            raise ValueError(f"dim: expected an even number, got {dim}; pass {dim + 1}")
        self.scale = check_positive("scale", scale)
        self.W = nn.Parameter(torch.randn(self.dim // 2) * self.scale, requires_grad=False)

    def forward(self, label: Tensor) -> Tensor:
        """Embed labels.

        Args:
            label: ``(batch,)``.

        Returns:
            ``(batch, dim)``, in the dtype of ``label`` or float32, whichever is wider.
        """
        label = _at_least_float32(label)
        angles = label[:, None] * self.W.to(label.dtype) * 2 * math.pi
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def extra_repr(self) -> str:
        return f"{self.dim}, scale={self.scale:g}"


def _at_least_float32(label: Tensor) -> Tensor:
    return label.to(torch.promote_types(label.dtype, torch.float32))
