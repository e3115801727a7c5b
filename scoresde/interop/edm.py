r"""Denoisers of EDM and k-diffusion: functions D(y, ρ) of clean data plus noise of size ρ.

    y = x/α,   ρ = σ/α:   every Gaussian diffusion is EDM's seen in these variables,

so that one denoiser serves them all, x̂(x, t) = D(x/α, σ/α), and every score of the library is such
a denoiser, D(y, ρ) = x̂(α y, t) at the t where σ/α = ρ.

A network F inside of EDM's preconditioning needs neither: it is
``ScoreModel(F, EDMSDE(), edm(sigma_data), LogSNRLabel(-0.25))``.

The pickled files of EDM hold program code and are not read here. Load them with their authors'
program where you trust it, and hand the network to :func:`wrap`.

References:
    Karras et al., *Elucidating the design space of diffusion-based generative models*, 2022,
    arXiv:2206.00364, eqs. 2, 3 and algorithm 1; Crowson, *k-diffusion*,
    github.com/crowsonkb/k-diffusion.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from scoresde._core.checks import check_tensor
from scoresde._core.shapes import as_time, check_batch, expand, has_concrete_value
from scoresde.samplers import Grid, Karras
from scoresde.scores import Score, ScoreModel
from scoresde.scores.labels import by_ratio
from scoresde.scores.predictions import DENOISER
from scoresde.sdes import EDMSDE, GaussianSDE

__all__ = ["Denoiser", "to_kdiffusion", "wrap"]

_BEYOND = 1e-3
"""How far from a diffusion's range a noise level may be, relative: float32 grids round."""


def wrap(denoiser: Callable[..., Tensor], sde: GaussianSDE = EDMSDE()) -> ScoreModel:
    r"""Return a denoiser as a score under any Gaussian diffusion, x̂(x, t) = D(x/α, σ/α).

    Args:
        denoiser: called as ``D(y, sigma, **condition)`` with ``y`` ``(batch, *event)`` and
            ``sigma`` ``(batch,)``, such as an ``EDMPrecond`` or a ``K.Denoiser``; returns y-shaped.
        sde: the diffusion; keep its ρ = σ/α where the denoiser was trained.

    Returns:
        The model; conditions are bound by name, ``model.given(class_labels=onehot)``.

    Raises:
        TypeError: if ``denoiser`` is not callable or ``sde`` not Gaussian.

    Example:
        >>> from scoresde import VPSDE
        >>> model = wrap(lambda y, sigma: y / (1 + sigma[:, None] ** 2), VPSDE())  # data N(0, I)
        >>> x = torch.ones(2, 3)
        >>> torch.allclose(model(x, 0.7), -x)
        True
    """
    return ScoreModel(denoiser, sde, DENOISER, by_ratio)


class Denoiser(nn.Module):
    """A score as a denoiser D(y, σ), for samplers of k-diffusion and EDM; see `to_kdiffusion`.

    Attributes:
        score: the score.
        sigma_min: ρ at ``t_min``, the lowest noise level.
        sigma_max: ρ at ``T``, the highest.
    """

    def __init__(self, score: Score) -> None:
        super().__init__()
        if not isinstance(score, Score):
            raise TypeError(
                f"score: expected a Score such as ScoreModel(…), got {type(score).__name__}; wrap "
                "a plain function as FunctionScore(function, sde)"
            )
        if not isinstance(score.sde, GaussianSDE):
            raise TypeError(
                f"score: expected one of a GaussianSDE, got {type(score.sde).__name__}; a general "
                "diffusion has no noise level"
            )
        self.score = score
        ends = torch.tensor([score.sde.t_min, score.sde.T], dtype=torch.float64)
        self.sigma_min, self.sigma_max = torch.exp(-score.sde.half_logsnr(ends)).tolist()

    def forward(self, x: Tensor, sigma: Tensor, class_labels: None = None) -> Tensor:
        """Return D(x, σ), shaped like ``x``.

        Args:
            x: clean data plus noise of size σ, ``(batch, *event)``.
            sigma: the noise level, ``()`` or ``(batch,)``.
            class_labels: None; conditions are bound before, ``to_kdiffusion(score.given(…))``.

        Raises:
            ValueError: if a noise level lies outside of the diffusion's, or a class is given.
        """
        if class_labels is not None:
            raise ValueError(
                "class_labels: expected None, since conditions are bound to the score; use "
                "to_kdiffusion(score.given(…))"
            )
        ratio = as_time(check_tensor("sigma", sigma), name="sigma")
        check_batch(ratio, x, "sigma")
        sde = self.score.sde
        t = sde.time_at(-torch.log(ratio))
        self._check_range(ratio, torch.exp(-sde.half_logsnr(t)))
        return self.score.denoised(expand(sde.alpha(t), x) * x, t)

    def get_sigmas(self, n: int, grid: Grid = Karras()) -> Tensor:
        """Return n falling noise levels and 0, ``(n+1,)``, float32, as k-diffusion's loops want.

        Args:
            n: how many, at least 2; as many evaluations for a sampler of one a step.
            grid: where.
        """
        sigmas = torch.exp(-self.score.sde.half_logsnr(grid(self.score.sde, n - 1)))
        return torch.cat([sigmas, sigmas.new_zeros(1)]).float()

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """Return the noise level itself, as EDM's loop asks: all of them are known."""
        return torch.as_tensor(sigma)

    def _check_range(self, asked: Tensor, known: Tensor) -> None:
        if has_concrete_value(asked) and bool(((asked - known).abs() > _BEYOND * known).any()):
            raise ValueError(
                f"sigma: expected noise levels up to {self.sigma_max:g}, and not below those of the"
                f" diffusion, got {float(asked.min()):g} … {float(asked.max()):g}; choose the "
                "sampler's range by sigma_min and sigma_max, its churn below them"
            )


def to_kdiffusion(score: Score) -> Denoiser:
    r"""Return a score as a denoiser D(y, σ) = x̂(α y, t), σ/α = σ_t, that others' samplers take.

    k-diffusion's ``sample_…(model, x, sigmas)`` and EDM's ``edm_sampler(net, latents)`` call it as
    it is; both begin with noise of size ``sigma_max``.

    Args:
        score: any score of a Gaussian diffusion, conditions bound.

    Returns:
        A module called as ``D(x, sigma)``, with ``sigma_min``, ``sigma_max``, ``get_sigmas(n)``.

    Raises:
        TypeError: if it is no score, or one of a general diffusion.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> D = to_kdiffusion(FunctionScore(lambda x, t: -x, VPSDE()))  # data N(0, I)
        >>> D(torch.ones(1, 2), torch.tensor(2.0))
        tensor([[0.2000, 0.2000]])
        >>> D.get_sigmas(3)
        tensor([1.5217e+02, 3.8285e+00, 1.0005e-03, 0.0000e+00])
    """
    return Denoiser(score)
