r"""Twisted sequential Monte Carlo: any approximate posterior made exact by particles.

A Markov chain q(x_0:T) = p(x_T) Π q(x_s|x_t) draws from the prior: with h = λ_s − λ_t, and x̂
extrapolated from this step and the previous one (x̂₋, at λ_t − h₋), the reverse SDE is solved by::

    x_s = (σ_s/σ_t) e^{−h} x_t + α_s [m_0 x̂ + m_1 (h/h₋)(x̂ − x̂₋)] + v z,    v = σ_s √(1 − e^{−2h}),

m_k = ∫₀¹ 2h e^{−2h(1−u)} uᵏ du. A posterior score defines the proposal q_y, whose mean is shifted
by δ = α_s m_0 (x̂_y − x̂), and the twist ψ_t(x_t) ≈ p(y|x_t). The weights::

    w_T = ψ_T(x_T),    w_s = w_t q(x_s|x_t) ψ_s(x_s) / (q_y(x_s|x_t) ψ_t(x_t)),    ψ_0 = p(y|x_0),

correct the errors of both; the two kernels are Gaussians of equal variance, so that::

    log q/q_y = −z·δ/v − |δ|²/(2v²).

The mean of the weights is an unbiased estimate of the chain's evidence ∫ q(x_0) p(y|x_0) dx_0, and
weighted particles converge to the posterior of the chain's distribution, which is the prior up to
the discretization error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde._core.checks import check_between, check_instance, check_integer, check_integers
from scoresde._core.conjugate_gradients import inner
from scoresde._core.modules import dtype_and_device, evaluation_mode
from scoresde._core.random import normal_like, temporarily_seeded, uniform
from scoresde._core.shapes import flatten
from scoresde.inverse_problems.posterior import PosteriorScore, Update
from scoresde.samplers import Grid, SamplingError, UniformLogSNR
from scoresde.samplers.base import noise_level_at
from scoresde.samplers.exponential import exponential_moments


@dataclass(frozen=True, repr=False)
class Particles:
    """Weighted samples of a posterior, for each observation.

    Its ``repr`` shows effective sample sizes and evidence. With log p(y) the density of any point
    follows by Bayes' theorem: log p(x|y) = log p(x) + log p(y|x) − log p(y), the first by
    :func:`~scoresde.log_likelihood`.

    Attributes:
        x: ``(observations, particles, *event)``.
        log_weights: normalized, ``(observations, particles)``.
        log_evidence: log p(y) in nats ``(observations,)``, its exponential unbiased; up to the
            constant that a LogLikelihood omits.
        smallest_ess: the smallest effective sample size over all steps ``(observations,)``; near 1
            the particles have collapsed and the results are not reliable.
        evaluations: evaluations of the posterior's score on each particle.
    """

    x: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    smallest_ess: Tensor
    evaluations: int

    @property
    def ess(self) -> Tensor:
        """Effective sample size 1/Σw² of the final weights ``(observations,)``."""
        return effective_sample_size(self.log_weights)

    def __repr__(self) -> str:
        observations, count, *event = self.x.shape
        sizes, least = self.ess, float(self.smallest_ess.min())
        return (
            f"Particles({observations} observation(s), {count} particles of shape {tuple(event)} "
            f"each; effective sample size {float(sizes.mean()):.1f} on average, "
            f"{float(sizes.min()):.1f} at least, {least:.1f} at least over all steps; log p(y) = "
            f"{float(self.log_evidence.mean()):.4f} nats on average; {self.evaluations} "
            "evaluations)"
        )

    def mean(self) -> Tensor:
        """Return the posterior mean ``(observations, *event)``."""
        return torch.einsum("bp,bp...->b...", self.log_weights.exp().to(self.x), self.x)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` of the particles by their weights, ``(observations, n, *event)``."""
        chosen = systematic_resampling(
            self.log_weights, check_integer("n", n, minimum=1), generator
        )
        return torch.stack([rows[index] for rows, index in zip(self.x, chosen, strict=True)])


@torch.no_grad()
def twisted_smc(
    posterior: PosteriorScore,
    shape: Sequence[int],
    *,
    steps: int = 100,
    grid: Grid | None = None,
    resample_below: float = 0.5,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Particles:
    r"""Sample from p(x_0|y) with particles, and estimate the evidence log p(y).

    Any posterior score is a valid proposal; the more accurate, the fewer particles are needed.
    Exact as their number grows, up to the discretization error of the prior chain.

    Args:
        posterior: proposal and twist, such as ``MMPS(score, observation)``; its measurement must
            have a density (σ_y > 0).
        shape: ``(particles, *event)``, for each observation.
        steps: number of steps.
        grid: the time grid; equidistant in log-SNR if None.
        resample_below: particles are resampled when their effective sample size falls below this
            fraction of their number; 0 for never, 1 for (almost) always.
        generator: source of all randomness; None for PyTorch's global one.
        batch_size: number of rows in one call of the network; all if None.
        progress: show a progress bar.

    Returns:
        The particles of every observation of the posterior's measurement, independent across
        observations.

    Raises:
        TypeError: if ``posterior`` is not a PosteriorScore.
        ValueError: if σ_y = 0, or a number is out of range.
        SamplingError: if the particles of some observation are not finite or all weights are 0; it
            has all particles, and a mask of the observations that are finite.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> from scoresde.inverse_problems import PiGDM, Observation
        >>> from scoresde.operators import Matrix
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I)
        >>> total = Observation(Matrix(torch.ones(1, 2)), torch.full((1, 1), 2.0), noise_std=1.0)
        >>> generator = torch.Generator().manual_seed(0)
        >>> cloud = twisted_smc(PiGDM(prior, total), (500, 2), steps=30, generator=generator)
        >>> exact = torch.distributions.Normal(0.0, 3**0.5).log_prob(torch.tensor([2.0]))
        >>> bool((cloud.log_evidence - exact).abs() < 0.05)
        True

    References:
        Wu et al., *Practical and asymptotically exact conditional sampling in diffusion models*,
        2023, arXiv:2306.17775, algorithm 1; Del Moral, *Feynman–Kac formulae*, 2004, section 7.4.1
        (unbiased evidence); Chopin & Papaspiliopoulos, *An introduction to sequential Monte Carlo*,
        2020, chapters 10 and 17.
    """
    check_instance(
        "posterior",
        posterior,
        PosteriorScore,
        "MMPS(score, observation)",
    )
    posterior.measurement.check_density()
    particles, *event = check_integers("shape", shape, minimum=1)
    threshold = check_between("resample_below", resample_below, 0.0, 1.0) * particles
    times = (UniformLogSNR() if grid is None else grid)(posterior.sde, steps)
    rows = torch.arange(posterior.measurement.batch).repeat_interleave(particles)
    size = len(rows) if batch_size is None else check_integer("batch_size", batch_size, minimum=1)
    run = _ParticleFilter(posterior, rows, size, generator)
    run.start(event)
    with (
        evaluation_mode(posterior),
        tqdm(total=len(times), disable=not progress, unit="step") as bar,
    ):
        for t, s in pairwise(times.unbind()):
            run.reweight(t)
            run.resample(threshold)
            run.step(t, s)
            bar.update()
        run.finish(times[-1])
        bar.update()
    return run.particles(len(times))


class _ParticleFilter:
    """A run: the particles of all observations as rows, ``(observations · particles, *event)``.

    Weights are float64 and ``(observations, particles)``; the last updates of a particle are
    resampled with it.
    """

    def __init__(
        self,
        posterior: PosteriorScore,
        rows: Tensor,
        batch_size: int,
        generator: torch.Generator | None,
    ) -> None:
        self.posterior = posterior.select(rows)
        self.observations, self.batch_size = posterior.measurement.batch, batch_size
        self.count = len(rows)
        self.generator = generator
        self.previous: tuple[Tensor, float] | None = None  # x̂ and h of the previous step
        weights = torch.zeros(
            self.observations, self.count // self.observations, dtype=torch.float64
        )
        self.log_weights, self.twist = weights, weights
        self.log_evidence = weights[:, 0]
        self.smallest_ess = torch.full_like(self.log_evidence, weights.shape[1])

    def start(self, event: Sequence[int]) -> None:
        """Draw the particles from the prior at T."""
        dtype, device = dtype_and_device(self.posterior)
        wide = torch.promote_types(dtype, torch.float32)
        with temporarily_seeded(self.generator):
            prior = self.posterior.sde.prior(tuple(event), dtype=wide)
            self.x = prior.sample(torch.Size((self.count,))).to(device)

    def reweight(self, t: Tensor) -> None:
        """Replace the twist of the previous time by that of t."""
        parts = self._in_batches(lambda posterior, x: posterior.update(x, t))
        self.update = Update(*(torch.cat(part) for part in zip(*parts, strict=True)))
        self._replace_twist(self.update.log_likelihood)

    def resample(self, threshold: float) -> None:
        """Replace the particles of observations with an effective sample size below a threshold."""
        sizes = effective_sample_size(self.log_weights)
        self.smallest_ess = torch.minimum(self.smallest_ess, sizes)
        low = sizes < threshold
        if not bool(low.any()):
            return
        observations, particles = self.log_weights.shape
        chosen = systematic_resampling(self.log_weights, particles, self.generator)
        chosen = torch.where(low.unsqueeze(1), chosen, torch.arange(particles))
        total = torch.logsumexp(self.log_weights, 1) - math.log(particles)
        self.log_evidence = torch.where(low, self.log_evidence + total, self.log_evidence)
        self.log_weights = self.log_weights.masked_fill(low.unsqueeze(1), 0.0)
        self.twist = self.twist.gather(1, chosen)
        index = (chosen + particles * torch.arange(observations).unsqueeze(1)).reshape(-1)
        index = index.to(self.x.device)
        self.x, self.update = self.x[index], Update(*(part[index] for part in self.update))
        if self.previous is not None:
            self.previous = self.previous[0][index], self.previous[1]

    def step(self, t: Tensor, s: Tensor) -> None:
        """Draw from the proposal q_y(x_s|x_t) and multiply the weights by q/q_y."""
        start, end = noise_level_at(self.posterior.sde, t), noise_level_at(self.posterior.sde, s)
        h = end.half_logsnr - start.half_logsnr
        m0, m1 = exponential_moments(2 * h, 2)
        clean, std = self.update.prior, end.sigma * math.sqrt(m0)
        shift = (end.alpha * m0) * (self.update.posterior - clean)
        z = normal_like(self.x, self.generator)
        mean = math.exp(end.log_sigma - start.log_sigma - h) * self.x + end.alpha * m0 * clean
        if self.previous is not None:
            last, length = self.previous
            mean = mean + (end.alpha * m1 * h / length) * (clean - last)
        self.x, self.previous = mean + shift + std * z, (clean, h)
        scaled = (shift / std).double()
        self.log_weights = self.log_weights - self._per_observation(inner(z + 0.5 * scaled, scaled))

    def finish(self, t: Tensor) -> None:
        """Denoise, and replace the twist by the likelihood of x_0."""
        self.x = torch.cat(self._in_batches(lambda posterior, x: posterior.score.denoised(x, t)))
        self._replace_twist(self.posterior.measurement.log_prob(self.x))

    def particles(self, evaluations: int) -> Particles:
        """Return the particles with normalized weights."""
        total = torch.logsumexp(self.log_weights, 1)
        x = self.x.reshape(*self.log_weights.shape, *self.x.shape[1:])
        finite = total.isfinite() & self._per_observation(
            flatten(self.x).isfinite().all(1)
        ).bool().all(1)
        if not bool(finite.all()):
            raise SamplingError(
                f"particles: those of {int((~finite).sum())} of {len(finite)} observations are not "
                "finite, or all their weights are 0; check the score and the likelihood, or "
                "take more steps",
                x,
                finite,
            )
        return Particles(
            x,
            self.log_weights - total.unsqueeze(1),
            self.log_evidence + total - math.log(self.log_weights.shape[1]),
            torch.minimum(self.smallest_ess, effective_sample_size(self.log_weights)),
            evaluations,
        )

    def _replace_twist(self, value: Tensor) -> None:
        twist = self._per_observation(value)
        self.log_weights = self.log_weights + twist - self.twist
        self.twist = twist

    def _per_observation(self, value: Tensor) -> Tensor:
        return value.to("cpu", torch.float64).reshape(self.log_weights.shape)

    def _in_batches(self, function: Callable[[PosteriorScore, Tensor], Any]) -> list[Any]:
        """Apply a function to all particles, ``batch_size`` rows at a time."""
        slices = [slice(i, i + self.batch_size) for i in range(0, self.count, self.batch_size)]
        return [function(self.posterior.select(rows), self.x[rows]) for rows in slices]


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """Return the effective sample size (Σw)²/Σw² of weights ``(…, n)``."""
    total, squares = (torch.logsumexp(k * log_weights, -1) for k in (1, 2))
    return torch.exp(2 * total - squares)


def systematic_resampling(
    log_weights: Tensor, n: int, generator: torch.Generator | None = None
) -> Tensor:
    """Return ``n`` indices per row of weights ``(rows, particles)``, n·w copies of each, ± 1.

    References:
        Kitagawa, *Monte Carlo filter and smoother for non-Gaussian nonlinear state space models*,
        1996.
    """
    edges = torch.softmax(log_weights, 1).cumsum(1)[:, :-1].contiguous()
    offset = uniform((len(edges), 1), generator=generator, dtype=torch.float64, device=edges.device)
    levels = (torch.arange(n, device=edges.device) + offset) / n
    return torch.searchsorted(edges, levels, right=True)
