r"""A lower bound of log p that needs no divergence: the variational bound, in continuous time.

With λ = log α − log σ falling from λ_0 at t_min to λ_T at T, and x_t = (α_t/α_0) x + κ_t ε the
forward diffusion from x at t_min,

    log p(x) ≥ log N_0(x) + E[log π(x_T) − log N_T(x_T)]
               + ∫_{λ_T}^{λ_0} σ² E[|ε/κ + s_N|² − |ε/κ + s|²] dλ,

where N_t is the law at t of Gaussian data with the moments that are known, s_N its score, and π the
law at T. N is a control variate: for it, and for its score, the two sides are equal. For the true
score of some data the bound is their log-density (the I-MMSE relation); for another score the
two differ by what separates the forward diffusion from the reverse SDE of this score.

The integrand is estimated at random λ, stratified over the interval, with pairs ±ε, whose first
orders in κ cancel where κ → 0.
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
"""Evaluations in each stratum: two independent draws, for the variance, each with ε and −ε."""


@dataclass(frozen=True)
class VariationalBound(Method):
    r"""An unbiased estimate of a lower bound of log p, with its standard error; no divergences.

    It bounds the density of the reverse SDE of this score, started from the law at T, which is not
    the density of its probability flow; all three agree for a true score. ``standard_error`` is the
    noise of the estimate and comes from the spread within the strata: right in the mean square for
    any number of samples, but few strata carry the noise, and a single standard error is to be
    trusted only where there are a few hundred samples. There is no discretisation,
    so that ``solver_error`` is 0. ``latent`` is the mean of x_T given x. The tolerance, the solver
    and the trace of the query play no part.

    Args:
        samples: evaluations of the score for each point, a multiple of 4: one stratum each.

    Raises:
        TypeError: when used with a diffusion that is not Gaussian.
        ValueError: unless ``samples`` is a positive multiple of 4.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> score = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I): no noise is left
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
                f"samples: expected a multiple of {_PER_STRATUM}, got {self.samples}; that many "
                "are drawn in every stratum"
            )

    def __call__(self, query: LikelihoodSettings, x: Tensor, rows: Tensor) -> Likelihood:
        """Return an estimate of the bound for some rows."""
        flow = query.flow
        if not flow.score.sde.gaussian:
            raise TypeError(
                "method: expected FlowIntegral() or PathIntegral() for a general SDE, got "
                f"{self!r}; the kernel from t_min to t is not known of "
                f"{type(flow.score.sde).__name__}"
            )
        strata = self.samples // _PER_STRATUM
        score = flow.score.select(rows.repeat(2))
        draws = [self._draw(query, score, x.double(), rows, i, strata) for i in range(2 * strata)]
        values = torch.stack([value for value, _ in draws]).unflatten(0, (strata, 2))
        mismatch = torch.stack([mismatch for _, mismatch in draws]).mean(0)
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

    def _draw(
        self, query: LikelihoodSettings, score: Score, x: Tensor, rows: Tensor, i: int, strata: int
    ) -> tuple[Tensor, Tensor]:
        """Return what draw ``i`` estimates beyond log N_0(x), and the prior's mismatch, ``(m,)``.

        Draws 2j and 2j + 1 are of stratum j.
        """
        flow, sde, m = query.flow, score.sde, len(x)
        rng = query.rng.at(rows, torch.full_like(rows, i))
        noise = rng.normals((flow.dimension,))
        noise = torch.cat([noise, -noise])
        both = torch.cat([x, x])
        high, low = float(sde.half_logsnr(sde.interior(flow.t_min))), float(sde.half_logsnr(sde.T))
        place = (i // 2 + rng.uniforms(())) / strata
        time = sde.time_at(high + (low - high) * place).clamp(flow.t_min, sde.T).repeat(2)

        def evaluate(x: Tensor, index: Tensor | slice, differentiable: bool) -> tuple[Tensor]:
            return (_excess(score.select(index), x, noise[index], flow.t_min, time[index]),)

        (excess,) = checkpointed(evaluate, score, both)
        last = _diffused(score, both, noise, flow.t_min, torch.full_like(time, sde.T))[0]
        z = flow.encode(last, flow.end)
        terminal, mismatch = flow.terminal(z, last, query.prior)
        value = (high - low) * excess + terminal - standard_normal(z)
        return value.reshape(2, m).mean(0), mismatch.reshape(2, m).mean(0)


def _diffused(
    score: Score, x: Tensor, noise: Tensor, start: float, time: Tensor
) -> tuple[Tensor, Tensor]:
    """Return x_t given x at ``start``, and its standard deviation κ ``(batch, 1)``."""
    scale, std = score.sde.transition(torch.full_like(time, start), time)
    std = std.clamp(min=torch.finfo(std.dtype).tiny)
    return expand(scale, x) * x + expand(std, x) * noise.reshape(x.shape), std.unsqueeze(1)


def _excess(score: Score, x: Tensor, noise: Tensor, start: float, time: Tensor) -> Tensor:
    """Return σ² (|ε/κ + s_N|² − |ε/κ + s|²) at x_t, ``(batch,)``, as a product of differences."""
    diffused, std = _diffused(score, x, noise, start, time)
    alpha, sigma = score.sde.alpha(time), score.sde.sigma(time)
    moments = score.moments
    scaled = moments.whiten(diffused, alpha, sigma) / moments.scale(alpha, sigma)
    gaussian = -moments.rotate_back(scaled)
    learned = flatten(score(diffused, time))
    product = (gaussian - learned) * (2 * noise / std + gaussian + learned)
    return sigma**2 * product.sum(1)


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
        samples: evaluations of the score for each point, a multiple of 4.
        generator: source of the noise; None for PyTorch's global one.
        batch_size: how many points to evaluate together; None for all.
        prior: the law at T; None as in :func:`log_likelihood`.
        t_min: the time at which x is taken to be a sample, the SDE's own by default.
        progress: show a bar.

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
