r"""Denoisers of EDM and k-diffusion: functions D(y, ρ) of y = x_0 + ρ ε.

In the variables ::

    y = x/α,   ρ = σ/α

every Gaussian diffusion is EDM's. A denoiser is therefore a score under any of them,
x̂(x, t) = D(x/α, σ/α), and every score is a denoiser, D(y, ρ) = x̂(α y, t) at the t with σ/α = ρ.

A bare network F inside EDM's preconditioning is
``ScoreModel(F, EDMSDE(), edm(sigma_data), LogSNRLabel(-0.25))``.

The pickled files of EDM contain program code and are not read here: load them with EDM's own code
if you trust them, and pass the network to :func:`wrap`.

References:
    Karras et al., *Elucidating the design space of diffusion-based generative models*, 2022,
    arXiv:2206.00364, eqs. 2, 3 and algorithm 1; Crowson, *k-diffusion*,
    github.com/crowsonkb/k-diffusion.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from scoresde._core.checks import check_instance, check_integer, check_tensor, summarize
from scoresde._core.shapes import as_time, check_batch, expand, has_concrete_value
from scoresde.samplers import Grid, Karras
from scoresde.scores import Score, ScoreModel
from scoresde.scores.labels import by_ratio
from scoresde.scores.predictions import DENOISER
from scoresde.sdes import EDMSDE, GaussianSDE

__all__ = ["Denoiser", "to_kdiffusion", "wrap"]

_RELATIVE_TOLERANCE = 1e-3
"""Relative distance by which a noise level may leave the diffusion's range: grids in float32."""


def wrap(denoiser: Callable[..., Tensor], sde: GaussianSDE = EDMSDE()) -> ScoreModel:
    r"""Return a denoiser as a score under any Gaussian diffusion, x̂(x, t) = D(x/α, σ/α).

    Args:
        denoiser: called as ``D(y, sigma, **condition)`` with ``y`` ``(batch, *event)`` and
            ``sigma`` ``(batch,)``, such as an ``EDMPrecond`` or a ``K.Denoiser``; returns y-shaped.
        sde: the diffusion; its range of ρ = σ/α should be the one of the denoiser's training.

    Returns:
        The model; conditions are bound by name, ``model.given(class_labels=onehot)``.

    Raises:
        TypeError: if ``denoiser`` is not callable or ``sde`` is no :class:`GaussianSDE`.

    Example:
        >>> from scoresde import VPSDE
        >>> model = wrap(lambda y, sigma: y / (1 + sigma[:, None] ** 2), VPSDE())  # data N(0, I)
        >>> x = torch.ones(2, 3)
        >>> torch.allclose(model(x, 0.7), -x)
        True
    """
    return ScoreModel(denoiser, sde, DENOISER, by_ratio)


class Denoiser(nn.Module):
    """A score as a denoiser D(y, σ) for the samplers of k-diffusion and EDM.

    :func:`to_kdiffusion` makes one.

    Attributes:
        score: the score.
        sigma_min: ρ at ``t_min``, the lowest noise level.
        sigma_max: ρ at ``T``, the highest noise level.
    """

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score = check_instance(
            "score",
            score,
            Score,
            "ScoreModel(network, sde)",
            "wrap a plain function as FunctionScore(function, sde)",
        )
        check_instance(
            "score.sde",
            score.sde,
            GaussianSDE,
            "VPSDE()",
            "a general SDE has no noise level",
        )
        ends = torch.tensor([score.sde.t_min, score.sde.T], dtype=torch.float64)
        self.sigma_min, self.sigma_max = torch.exp(-score.sde.half_logsnr(ends)).tolist()

    def forward(self, x: Tensor, sigma: Tensor, class_labels: None = None) -> Tensor:
        """Return D(x, σ), shaped like ``x``.

        Args:
            x: clean data plus noise of size σ, ``(batch, *event)``.
            sigma: the noise level, ``()`` or ``(batch,)``.
            class_labels: None; bind conditions with ``to_kdiffusion(score.given(…))``.

        Raises:
            ValueError: if a noise level is outside the range of the diffusion, or if
                ``class_labels`` is not None.
        """
        if class_labels is not None:
            raise ValueError(
                f"class_labels: expected None, got {summarize(class_labels)}; bind conditions to "
                "the score, to_kdiffusion(score.given(…))"
            )
        ratio = as_time(check_tensor("sigma", sigma), name="sigma")
        check_batch(ratio, x, "sigma")
        sde = self.score.sde
        t = sde.time_at(-torch.log(ratio))
        self._check_range(ratio, torch.exp(-sde.half_logsnr(t)))
        return self.score.denoised(expand(sde.alpha(t), x) * x, t)

    def get_sigmas(self, n: int, grid: Grid = Karras()) -> Tensor:
        """Return n decreasing noise levels and 0, ``(n+1,)``, float32, for k-diffusion's samplers.

        Args:
            n: number of noise levels, at least 2.
            grid: spacing of the noise levels.

        Raises:
            TypeError: if ``grid`` is no :class:`Grid`, or ``n`` no integer.
            ValueError: if ``n`` is below 2.
        """
        check_instance("grid", grid, Grid, "Karras()")
        check_integer("n", n, minimum=2)
        sigmas = torch.exp(-self.score.sde.half_logsnr(grid(self.score.sde, n - 1)))
        return torch.cat([sigmas, sigmas.new_zeros(1)]).float()

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """Return the noise level unchanged: EDM's sampler calls this for networks with a table."""
        return torch.as_tensor(sigma)

    def _check_range(self, sigma: Tensor, nearest: Tensor) -> None:
        """Raise unless the noise levels equal the nearest ones of the diffusion."""
        difference = (sigma - nearest).abs()
        if has_concrete_value(sigma) and bool((difference > _RELATIVE_TOLERANCE * nearest).any()):
            raise ValueError(
                f"sigma: expected noise levels of the diffusion, at most {self.sigma_max:g}, got "
                f"{float(sigma.min()):g} … {float(sigma.max()):g}; set the sampler's sigma_min and "
                "sigma_max to those of the denoiser and reduce its churn"
            )


def to_kdiffusion(score: Score) -> Denoiser:
    r"""Return a score as a denoiser D(y, ρ) = x̂(α y, t) with σ(t)/α(t) = ρ.

    The samplers ``sample_…(model, x, sigmas)`` of k-diffusion and ``edm_sampler(net, latents)`` of
    EDM take it as their model; both start from noise of standard deviation ``sigma_max``.

    Args:
        score: any score of a Gaussian diffusion, with its conditions bound.

    Returns:
        A module called as ``D(x, sigma)``, with ``sigma_min``, ``sigma_max``, ``get_sigmas(n)``.

    Raises:
        TypeError: if ``score`` is no :class:`Score`, or its SDE no :class:`GaussianSDE`.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> D = to_kdiffusion(FunctionScore(lambda x, t: -x, VPSDE()))  # data N(0, I)
        >>> D(torch.ones(1, 2), torch.tensor(2.0))
        tensor([[0.2000, 0.2000]])
        >>> D.get_sigmas(3)
        tensor([1.5217e+02, 3.8285e+00, 1.0005e-03, 0.0000e+00])
    """
    return Denoiser(score)
