r"""A lower bound of log p that needs no divergence: the variational bound, in continuous time.

With λ = log α − log σ, which decreases from λ_0 at t_min to λ_T at T, and the forward diffusion
x_t = (α_t/α_0) x + κ_t ε from x at t_min, ::

    log p(x) ≥ log N_0(x) + E[log π(x_T) − log N_T(x_T)]
               + ∫_{λ_T}^{λ_0} σ² E[|ε/κ + s_N|² − |ε/κ + s|²] dλ,

where N_t is the distribution at t of Gaussian data with the known moments, s_N its score, and π the
distribution at T. N is a control variate: for it and its score the two sides are equal. For the
true score of some data the bound is their log-density (the I-MMSE relation). For any other score
the difference is the divergence between the forward diffusion and the reverse SDE of this score.

The integrand is estimated at random λ, stratified over the interval, with antithetic pairs ±ε,
whose terms of first order in κ cancel as κ → 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from scoresde._core.checks import check_integer
from scoresde._core.shapes import expand, flatten
from scoresde.flow.checkpointing import checkpointed
from scoresde.flow.probability_flow import standard_normal
from scoresde.likelihood.base import Likelihood, LikelihoodSettings, Method
from scoresde.likelihood.log_likelihood import log_likelihood
from scoresde.scores import Score

_PER_STRATUM = 4
"""Evaluations in each stratum: two independent samples, for the variance, each with ε and −ε."""


@dataclass(frozen=True)
class VariationalBound(Method):
    r"""An unbiased estimate of a lower bound of log p, with its standard error; no divergences.

    The bound is on the density of the reverse SDE of this score, started from the distribution at
    T, which is not the density of its probability flow; for a true score they agree.
    ``standard_error`` is that of the estimate, from the variances within the strata. It is unbiased
    in the mean square for any number of samples; since few strata dominate the variance, that of a
    single row is accurate only with a few hundred samples. There is no discretization, so that
    ``solver_error`` is 0. ``latent`` is the mean of x_T given x. Tolerance, solver and trace of the
    settings are not used.

    Args:
        samples: number of Monte Carlo samples, evaluations of the score at each point; a multiple
            of 4, of which each stratum has 4.

    Raises:
        TypeError: when used with a diffusion that is not Gaussian.
        ValueError: unless ``samples`` is a positive multiple of 4.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> score = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I): no variance
        >>> result = log_likelihood(score, torch.zeros(1, 2), method=VariationalBound(samples=8))
        >>> result.log_prob, result.evaluations
        (tensor([-1.8379]), tensor([8]))

    References:
        Song et al., *Maximum likelihood training of score-based diffusion models*, 2021,
        arXiv:2101.09258, theorem 3; Huang et al. 2021, arXiv:2106.02808, theorem 3; Kingma et al.
        2021, arXiv:2107.00630, eq. 18; Kong et al., *Information-theoretic diffusion*, 2023,
        arXiv:2302.03792, eq. 9, for the Gaussian control variate.
    """

    samples: int = 128

    def __post_init__(self) -> None:
        check_integer("samples", self.samples, minimum=_PER_STRATUM)
        if self.samples % _PER_STRATUM:
            raise ValueError(
                f"samples: expected a multiple of {_PER_STRATUM}, got {self.samples}; as many "
                "samples are taken in every stratum"
            )

    def __call__(self, settings: LikelihoodSettings, x: Tensor, rows: Tensor) -> Likelihood:
        flow = settings.flow
        check_gaussian(self, flow.score)
        strata = self.samples // _PER_STRATUM
        score = flow.score.select(rows.repeat(2))
        pairs = [
            self._sample(settings, score, x.double(), rows, i, strata) for i in range(2 * strata)
        ]
        values = torch.stack([value for value, _ in pairs]).unflatten(0, (strata, 2))
        mismatch = torch.stack([mismatch for _, mismatch in pairs]).mean(0)
        z = flow.encode(x, flow.start)
        log_prob = standard_normal(z) - flow.log_volume(flow.start) + values.mean((0, 1))
        variance = values.detach().var(1).mean(0) / (2 * strata)
        scale, _ = flow.score.sde.transition(flow.t_min, flow.score.sde.T)
        return Likelihood(
            log_prob=log_prob.to(x.dtype),
            standard_error=variance.sqrt().to(x.dtype),
            solver_error=torch.zeros_like(log_prob).to(x.dtype),
            prior_mismatch=mismatch.to(x.dtype),
            latent=expand(scale, x) * x,
            evaluations=torch.full_like(rows, self.samples),
            divergences=torch.zeros_like(rows),
            converged=log_prob.isfinite(),
            t_min=flow.t_min,
            points=x,
        )

    def _sample(
        self,
        settings: LikelihoodSettings,
        score: Score,
        x: Tensor,
        rows: Tensor,
        i: int,
        strata: int,
    ) -> tuple[Tensor, Tensor]:
        """Return estimate ``i`` of the bound less log N_0(x), and the prior's mismatch, ``(m,)``.

        Estimates 2j and 2j + 1 are of stratum j.
        """
        flow, sde, m = settings.flow, score.sde, len(x)
        rng = settings.rng.at(rows, torch.full_like(rows, i))
        noise = rng.normals((flow.dimension,))
        noise = torch.cat([noise, -noise])
        both = torch.cat([x, x])
        high, low = float(sde.half_logsnr(sde.interior(flow.t_min))), float(sde.half_logsnr(sde.T))
        fraction = (i // 2 + rng.uniforms(())) / strata
        time = sde.time_at(high + (low - high) * fraction).clamp(flow.t_min, sde.T).repeat(2)

        def evaluate(x: Tensor, index: Tensor | slice, _: bool) -> tuple[Tensor]:
            return (_integrand(score.select(index), x, noise[index], flow.t_min, time[index]),)

        (integrand,) = checkpointed(evaluate, score, both)
        last = _diffused(score, both, noise, flow.t_min, torch.full_like(time, sde.T))[0]
        z = flow.encode(last, flow.end)
        terminal, mismatch = flow.terminal(z, last, settings.prior)
        value = (high - low) * integrand + terminal - standard_normal(z)
        return value.reshape(2, m).mean(0), mismatch.reshape(2, m).mean(0)


def check_gaussian(method: Method, score: Score) -> None:
    """Raise ``TypeError`` if a method that uses the kernels of the diffusion cannot have them."""
    if not score.sde.gaussian:
        raise TypeError(
            "method: expected FlowIntegral() or PathIntegral() for a general SDE, got "
            f"{method!r}; the kernel between two times of {type(score.sde).__name__} is not known"
        )


def _diffused(
    score: Score, x: Tensor, noise: Tensor, start: float, time: Tensor
) -> tuple[Tensor, Tensor]:
    """Return x_t given x at ``start``, and its standard deviation κ ``(batch, 1)``."""
    scale, std = score.sde.transition(torch.full_like(time, start), time)
    std = std.clamp(min=torch.finfo(std.dtype).tiny)
    return expand(scale, x) * x + expand(std, x) * noise.reshape(x.shape), std.unsqueeze(1)


def _integrand(score: Score, x: Tensor, noise: Tensor, start: float, time: Tensor) -> Tensor:
    """Return σ² (|ε/κ + s_N|² − |ε/κ + s|²) at x_t, ``(batch,)``, as a product of differences."""
    diffused, std = _diffused(score, x, noise, start, time)
    alpha, sigma = score.sde.alpha(time), score.sde.sigma(time)
    moments = score.moments
    scaled = moments.whiten(diffused, alpha, sigma) / moments.scale(alpha, sigma)
    gaussian = -moments.rotate_back(scaled)
    learned = flatten(score(diffused, time))
    product = (gaussian - learned) * (2 * noise / std + gaussian + learned)
    result: Tensor = sigma**2 * product.sum(1)
    return result


def variational_bound(
    score: Score,
    x: Tensor,
    *,
    samples: int = 128,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    prior: Distribution | None = None,
    t_min: float | None = None,
    progress: bool = False,
) -> Likelihood:
    """Estimate a lower bound of log p(x), with its standard error; see :class:`VariationalBound`.

    Args:
        score: a score of a Gaussian diffusion.
        x: points ``(batch, *event)``, floating point and finite.
        samples: number of Monte Carlo samples at each point, a multiple of 4.
        generator: source of randomness; None for PyTorch's global one.
        batch_size: number of points in one batch; None for all.
        prior: the distribution at T; None as in :func:`log_likelihood`.
        t_min: the time at which x is taken as a sample, the SDE's own by default.
        progress: show a progress bar.

    Returns:
        A :class:`Likelihood` whose ``log_prob`` is the estimate.

    Raises:
        TypeError: if ``x`` is not a floating-point tensor, or the diffusion is not Gaussian.
        ValueError: if ``x`` is empty or not finite, or a number is out of range.

    Example:
        >>> from scoresde import GaussianMixture, VPSDE
        >>> means, covariances = torch.tensor([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.1)
        >>> mixture = GaussianMixture(torch.ones(2), means, covariances, VPSDE())
        >>> generator = torch.Generator().manual_seed(0)
        >>> bound = variational_bound(mixture, torch.ones(1, 1), generator=generator)
        >>> bool((bound.log_prob - mixture.log_prob(torch.ones(1, 1))).abs() < 4 * bound.error)
        True
    """
    return log_likelihood(
        score,
        x,
        method=VariationalBound(samples),
        generator=generator,
        batch_size=batch_size,
        prior=prior,
        t_min=t_min,
        progress=progress,
    )
