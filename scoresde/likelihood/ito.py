r"""The Itô density estimator: log p along noised paths of the data, with no divergence.

In y = x/α and v = (σ/α)², every Gaussian diffusion is a Brownian motion, dY = dw_v, with densities
that satisfy ∂_v log p = ½(∇·s + |s|²), s = ∇_y log p. By Itô's formula, along its paths, ::

    d log p_v(Y_v) = ½(∇·s + |s|²) dv + s·dY + ½ ∇·s dv = ½ |s|² dv + s ⋆ dY,

where ⋆ evaluates s at the later end of each step: the divergences convert one Itô integral to the
other. For a true score, log p(x) = log p_T − ∫ (½ |s|² dv + s ⋆ dY) along every noised path of x.

In steps v_0 < … < v_N the estimate is that of a reverse chain with the kernels of the reverse
SDE, ::

    p(Y_k | Y_{k+1}) = N(Y_{k+1} + Δ s_{k+1}, Δ R_k),    q(Y_{k+1} | Y_k) = N(Y_k, Δ),

with Δ = v_{k+1} − v_k, and ::

    log w = log p_T(Y_T) + Σ_k log p(Y_k | Y_{k+1}) − log q(Y_{k+1} | Y_k).

With R = 1 the sum is Euler's for the integral above. Along the axes of known moments with variances
c, R = (c + v_k)/(c + v_{k+1}) makes the kernel of Gaussian data exact: for them log w is log p on
every path and for any N. For any score, E w is the density of the chain at x, so that the mean of
log (1/K) Σ w over K paths is a lower bound of its logarithm, tighter for larger K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde._core.checks import check_integer
from scoresde._core.shapes import flatten
from scoresde.flow.checkpointing import checkpointed
from scoresde.flow.coordinates import Standardized
from scoresde.likelihood.base import Likelihood, LikelihoodSettings, Method
from scoresde.likelihood.bound import check_gaussian
from scoresde.scores import Score


@dataclass(frozen=True)
class ItoEstimate(Method):
    r"""log p from the score along noised paths of x; no divergences, no ODE.

    The value is the density of the reverse SDE of this score, started from the distribution at T,
    which for a true score is also that of the flow. Two errors both lower it in the mean:

    * that of K paths: log (1/K) Σ w lies below log E w by Var(w)/(2K (E w)²) as K grows. With
      ``standard_error`` s this is ½s²; where s is not small, the bound is not tight, and s itself,
      estimated from the K weights, is too small.
    * that of N steps, of order 1/N. ``solver_error`` estimates it from the same paths in N/2 steps,
      without further evaluations; far off the data this needs at least a hundred steps.

    ``converged`` is whether the value is finite. ``latent`` is the mean of x_T given x. Tolerance,
    solver and trace of the settings are not used.

    Args:
        steps: N, a multiple of 2; uniform in the angle atan(σ/(α b)), b the scale of the data.
        samples: K, the number of Monte Carlo samples (paths), at least 2; N K evaluations.

    Raises:
        TypeError: when used with a diffusion that is not Gaussian.
        ValueError: if ``steps`` is not a positive multiple of 2, or ``samples`` is below 2.

    Example:
        >>> from scoresde import GaussianMixture, VPSDE, log_likelihood
        >>> means, covariances = torch.tensor([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.1)
        >>> mixture = GaussianMixture(torch.ones(2), means, covariances, VPSDE())
        >>> x, generator = torch.ones(1, 1), torch.Generator().manual_seed(0)
        >>> result = log_likelihood(mixture, x, method=ItoEstimate(), generator=generator)
        >>> bool((result.log_prob - mixture.log_prob(x)).abs() < 2 * result.error)
        True

    References:
        Huang, Lim & Courville 2021, arXiv:2106.02808, for the bound along paths; Skreta et al.,
        *The superposition of diffusion models using the Itô density estimator*, 2025,
        arXiv:2412.17762, theorem 1; Burda et al. 2016, arXiv:1509.00519, for several paths.
    """

    steps: int = 128
    samples: int = 8

    def __post_init__(self) -> None:
        check_integer("steps", self.steps, minimum=2)
        check_integer("samples", self.samples, minimum=2)
        if self.steps % 2:
            raise ValueError(
                f"steps: expected a multiple of 2, got {self.steps}; the error is estimated from "
                "the same paths in half as many steps"
            )

    def __call__(self, settings: LikelihoodSettings, x: Tensor, rows: Tensor) -> Likelihood:
        flow = settings.flow
        check_gaussian(self, flow.score)
        last, fine, coarse = self._paths(settings, x.double(), rows)
        sde = flow.score.sde
        terminal, mismatch = flow.terminal(flow.encode(last, flow.end), last, settings.prior)
        shrink, _ = sde.transition(flow.t_min, sde.T)
        ends = terminal - flow.log_volume(flow.end) + flow.dimension * math.log(float(shrink))
        log_weights = (ends + fine).unflatten(0, (len(x), self.samples))
        log_prob = torch.logsumexp(log_weights, 1) - math.log(self.samples)
        error = (coarse - fine).detach().unflatten(0, (len(x), self.samples)).mean(1).abs()
        weights = torch.softmax(log_weights.detach(), 1)  # w over K times their mean
        variance = self.samples / (self.samples - 1) * ((weights - 1 / self.samples) ** 2).sum(1)
        return Likelihood(
            log_prob=log_prob.to(x.dtype),
            standard_error=variance.sqrt().to(x.dtype),
            solver_error=error.nan_to_num(math.inf).to(x.dtype),
            prior_mismatch=mismatch.unflatten(0, (len(x), self.samples)).mean(1).to(x.dtype),
            latent=shrink * x,
            evaluations=torch.full_like(rows, self.steps * self.samples),
            divergences=torch.zeros_like(rows),
            converged=log_prob.isfinite(),
            t_min=flow.t_min,
            points=x,
        )

    def _paths(
        self, settings: LikelihoodSettings, x: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Noise x along K paths each.

        Returns:
            The ends of the paths ``(m K, *event)``; Σ log p/q over all steps ``(m K,)``; and the
            same over steps of twice the length.
        """
        row = rows.repeat_interleave(self.samples)
        path = torch.arange(self.samples, device=x.device).repeat(len(x))
        score = settings.flow.score.select(row)
        x = x.repeat_interleave(self.samples, dim=0)
        fine = coarse = x.new_zeros(len(x))
        times = self._times(settings).to(x.device)
        for k in range(0, self.steps, 2):
            joint = torch.zeros_like(x)
            for i in (k, k + 1):
                rng = settings.rng.at(row, path * self.steps + i)
                noise = rng.normals((settings.flow.dimension,)).reshape(x.shape)
                scale, std = score.sde.transition(times[i], times[i + 1])
                x, joint = scale * x + std * noise, scale * joint + std * noise
                value = _score(score, x, times[i + 1])
                fine = fine + _log_ratio(score, noise, value, times[i], times[i + 1])
            _, std = score.sde.transition(times[k], times[k + 2])
            coarse = coarse + _log_ratio(score, joint / std, value, times[k], times[k + 2])
        return x, fine, coarse

    def _times(self, settings: LikelihoodSettings) -> Tensor:
        """Return the times of the steps, ``(steps + 1,)``."""
        score = settings.flow.score
        angle = Standardized(score.moments.std)
        ends = torch.tensor([settings.flow.t_min, score.sde.T], dtype=torch.float64)
        first, last = angle.time(torch.exp(-score.sde.half_logsnr(score.sde.interior(ends))))
        fraction = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)[1:-1]
        inner = score.sde.time_at(-torch.log(angle.ratio(first + (last - first) * fraction)))
        return torch.cat([ends[:1], inner, ends[1:]])


def _score(score: Score, x: Tensor, t: Tensor) -> Tensor:
    """Return the score at one time for all rows, shaped like ``x``."""

    def evaluate(x: Tensor, index: Tensor | slice, _: bool) -> tuple[Tensor]:
        return (score.select(index)(x, t),)

    return checkpointed(evaluate, score, x)[0]


def _log_ratio(score: Score, noise: Tensor, value: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Return log p(Y_s | Y_t) − log q(Y_t | Y_s) for Y_t = Y_s + √Δ noise, ``(m,)``.

    It is ½ (|ε|² − |ε + κ s(x_t)|²/R − log R), summed over the axes, with κ = α √Δ.
    """
    sde, moments = score.sde, score.moments
    _, std = sde.transition(s, t)
    early, late = (moments.scale(sde.alpha(u), sde.sigma(u)) / sde.alpha(u) for u in (s, t))
    shrink = (early / late) ** 2
    residual = moments.rotate(flatten(noise + std * value))
    ratio: Tensor = 0.5 * (flatten(noise) ** 2 - residual**2 / shrink - shrink.log()).sum(1)
    return ratio
