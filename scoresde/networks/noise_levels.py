"""Networks with a table of noise levels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde._core.checks import check_integer, check_ordered, check_positive
from scoresde._core.modules import FixedDtypeModule
from scoresde.networks._inputs import check_index
from scoresde.networks.blocks import lookup


class NoiseLevelNetwork(FixedDtypeModule):
    r"""A network with noise levels in geometric progression, the highest first.

    .. math::
        \sigma_i = \sigma_{max} (\sigma_{min} / \sigma_{max})^{i / (N - 1)}, \quad
        i = 0, \dots, N - 1

    They are a float64 buffer, ``sigmas``, which is saved with the weights and stays in float64
    when the network is converted.

    Args:
        sigma_min: smallest standard deviation.
        sigma_max: largest standard deviation.
        scales: number ``N`` of noise levels.
    """

    sigmas: Tensor

    def __init__(self, sigma_min: float, sigma_max: float, scales: int) -> None:
        super().__init__()
        check_positive("sigma_min", sigma_min)
        self.sigma_min, self.sigma_max = check_ordered(
            "sigma_min", sigma_min, "sigma_max", sigma_max
        )
        self.scales = check_integer("scales", scales, 1)
        ends = math.log(self.sigma_max), math.log(self.sigma_min)
        sigmas = torch.linspace(*ends, self.scales, dtype=torch.float64).exp()
        self.register_buffer("sigmas", sigmas)

    def sigma_at(self, label: Tensor) -> Tensor:
        """Return σ at labels ``(batch,)``: indices, whose fractions are truncated."""
        check_index("label", label, self.scales)
        return lookup(self.sigmas, label.long())
