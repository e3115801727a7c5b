"""The U-Net of DDPM as Song et al. published it: NCSN++ without its additions."""

from __future__ import annotations

from collections.abc import Sequence

from scoresde._core.checks import check_integer
from scoresde.networks.ncsnpp import NCSNpp

__all__ = ["DDPMUNet"]


class DDPMUNet(NCSNpp):
    """The U-Net of DDPM: residual blocks, convolutions that change the resolution, attention.

    Images can have any height and width: they are padded at the bottom and on the right to a
    multiple of ``2 ** (len(multipliers) - 1)``, and the output is cropped. Layers are in one flat
    list, with the names and shapes of the network of Song et al., which has one attention per level
    in the upward path, where that of Ho et al. has one after every block. The channels form 32
    groups for normalization if ``width`` is a multiple of 32. Use a width of at least 64: with
    groups of a single channel the normalization removes the label, which is added per channel.

    Args:
        channels: channels of the images.
        width: channels of the first level.
        multipliers: width of every level in units of ``width``, from full resolution down.
        blocks: number of residual blocks per level of the downward path; the upward path has one
            more.
        attention: levels with attention, by their index in ``multipliers``; negative ones count
            from the lowest level.
        dropout: probability with which a hidden feature is dropped in training.
        label_scale: factor on the label before its embedding; 1 suits labels 0 … 999.
        scale_by_sigma: whether the output is divided by the standard deviation of the noise level
            with the label as index.
        centered: whether images are in [-1, 1]; if not, the first layer is applied to ``2 x - 1``.
        sigma_min: standard deviation of the lowest noise level.
        sigma_max: standard deviation of the highest noise level.
        scales: number of noise levels.
        checkpointing: whether training uses gradient checkpointing: the activations of every block
            are recomputed in the backward pass instead of stored.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if an argument is outside its range.

    Example:
        >>> import torch
        >>> network = DDPMUNet(width=32, multipliers=(1, 1), blocks=1)
        >>> x, label = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 900.0])
        >>> network(x, label).shape
        torch.Size([2, 3, 8, 8])

    References:
        Ho et al. 2020, "Denoising diffusion probabilistic models", arXiv:2006.11239, appendix B.
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        dropout: float = 0.1,
        *,
        label_scale: float = 1.0,
        scale_by_sigma: bool = False,
        centered: bool = True,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        scales: int = 1000,
        checkpointing: bool = False,
    ) -> None:
        width = check_integer("width", width, 4)
        super().__init__(
            channels,
            width,
            multipliers,
            blocks,
            attention,
            dropout,
            biggan=False,
            taps=None,
            progressive_input="none",
            rescale=False,
            label_scale=label_scale,
            scale_by_sigma=scale_by_sigma,
            centered=centered,
            group_size=1 if width % 32 == 0 else 4,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            scales=scales,
            checkpointing=checkpointing,
        )
