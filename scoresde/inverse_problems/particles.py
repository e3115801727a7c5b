r"""Twisted sequential Monte Carlo: any approximate posterior made exact by particles.

A chain q(x_0:T) = p(x_T) Π q(x_s|x_t) draws from the prior: with h = λ_s − λ_t, and x̂ extrapolated
from this step and the one before (x̂₋, at λ_t − h₋), the reverse SDE is solved by

    x_s = (σ_s/σ_t) e^{−h} x_t + α_s [m_0 x̂ + m_1 (h/h₋)(x̂ − x̂₋)] + v z,    v = σ_s √(1 − e^{−2h}),

m_k = ∫₀¹ 2h e^{−2h(1−u)} uᵏ du. A posterior score proposes steps that look ahead to y, pushed by δ
= α_s m_0 (x̂_y − x̂), and tells by ψ_t(x_t) ≈ p(y|x_t) how good a state is. The weights

    w_T = ψ_T(x_T),    w_s = w_t q(x_s|x_t) ψ_s(x_s) / (q_y(x_s|x_t) ψ_t(x_t)),    ψ_0 = p(y|x_0),

correct whatever is wrong with both; the two kernels are Gaussians of equal variance, so that

    log q/q_y = −z·δ/v − |δ|²/(2v²).

The mean of the weights is an unbiased estimate of the chain's evidence ∫ q(x_0) p(y|x_0) dx_0, and
weighted particles converge to the posterior of the chain's law, which is the prior's up to what its
steps leave out.
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

from scoresde._core.checks import check_between, check_integer, check_integers
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

    It prints what they are worth. With log p(y) the density of any point follows by Bayes' theorem:
    log p(x|y) = log p(x) + log p(y|x) − log p(y), the first by :func:`log_likelihood`.

    Attributes:
        x: ``(observations, particles, *event)``.
        log_weights: normalised, ``(observations, particles)``.
        log_evidence: log p(y) in nats ``(observations,)``, its exponential unbiased; up to the
            constant that a LogLikelihood leaves out.
        smallest_ess: the least effective sample size on the way ``(observations,)``; where it is
            near 1, a single particle has won and nothing here is to be trusted.
        evaluations: calls of the posterior's score on each particle.
    """

    x: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    smallest_ess: Tensor
    evaluations: int

    @property
    def ess(self) -> Tensor:
        """Effective sample size 1/Σw² of the final weights ``(observations,)``."""
        return effective(self.log_weights)

    def __repr__(self) -> str:
        """Show effective sample sizes and evidence."""
        observations, count, *event = self.x.shape
        sizes, least = self.ess, float(self.smallest_ess.min())
        return (
            f"Particles({observations} observation(s), {count} particles of shape {tuple(event)} "
            f"each; effective sample size {float(sizes.mean()):.1f} on average, "
            f"{float(sizes.min()):.1f} at least, {least:.1f} at least on the way; log p(y) = "
            f"{float(self.log_evidence.mean()):.4f} nats on average; {self.evaluations} "
            "evaluations)"
        )

    def mean(self) -> Tensor:
        """Return the posterior mean ``(observations, *event)``."""
        return torch.einsum("bp,bp...->b...", self.log_weights.exp().to(self.x), self.x)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` of the particles by their weights, ``(observations, n, *event)``."""
        chosen = systematic(self.log_weights, check_integer("n", n, minimum=1), generator)
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

    Any posterior score proposes; the better it is, the fewer particles are needed. Exact as their
    number grows, up to the prior chain's own discretisation.

    Args:
        posterior: proposal and twist, such as ``MMPS(score, observation)``; its measurement must
            have a density (σ_y > 0).
        shape: ``(particles, *event)``, for each observation.
        steps: how many steps are made.
        grid: of times; equidistant in log-SNR if None.
        resample_below: particles are resampled when their effective sample size falls below this
            part of their number; 0 never does, 1 (almost) always.
        generator: source of all randomness; None for PyTorch's global one.
        batch_size: how many rows the network sees at once.
        progress: show a progress bar.

    Returns:
        The particles, for every observation of the posterior's measurement. They share nothing
        across observations.

    Raises:
        TypeError: if ``posterior`` is not a PosteriorScore.
        ValueError: if σ_y = 0, or a number is out of range.
        SamplingError: if the particles of some observation are not finite or weigh nothing; it
            carries all of them, and which observations are well.

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
    if not isinstance(posterior, PosteriorScore):
        raise TypeError(f"posterior: expected a PosteriorScore such as MMPS, got {posterior!r}")
    posterior.measurement.check_density()
    particles, *event = check_integers("shape", shape, minimum=1)
    threshold = check_between("resample_below", resample_below, 0.0, 1.0) * particles
    times = (UniformLogSNR() if grid is None else grid)(posterior.sde, steps)
    rows = torch.arange(posterior.measurement.batch).repeat_interleave(particles)
    size = len(rows) if batch_size is None else check_integer("batch_size", batch_size, minimum=1)
    run = _Filter(posterior, rows, size, generator)
    run.start(event)
    with (
        evaluation_mode(posterior),
        tqdm(total=len(times), disable=not progress, unit="step") as bar,
    ):
        for t, s in pairwise(times.unbind()):
            run.weigh(t)
            run.resample(threshold)
            run.step(t, s)
            bar.update()
        run.finish(times[-1])
        bar.update()
    return run.particles(len(times))


class _Filter:
    """A run: the particles of all observations row by row, ``(observations · particles, *event)``.

    Weights are float64 and ``(observations, particles)``; what belongs to a particle besides, the
    last updates, is resampled with it.
    """

    def __init__(
        self,
        posterior: PosteriorScore,
        rows: Tensor,
        size: int,
        generator: torch.Generator | None,
    ) -> None:
        self.posterior = posterior.select(rows)
        self.groups, self.size = posterior.measurement.batch, size
        self.count = len(rows)
        self.generator = generator
        self.before: tuple[Tensor, float] | None = None  # x̂ and h of the step before
        weights = torch.zeros(self.groups, self.count // self.groups, dtype=torch.float64)
        self.log_weights, self.twist = weights, weights
        self.log_evidence = weights[:, 0]
        self.smallest = torch.full_like(self.log_evidence, weights.shape[1])

    def start(self, event: Sequence[int]) -> None:
        """Draw the particles from the prior at T."""
        dtype, device = dtype_and_device(self.posterior)
        wide = torch.promote_types(dtype, torch.float32)
        with temporarily_seeded(self.generator):
            prior = self.posterior.sde.prior(tuple(event), dtype=wide)
            self.x = prior.sample(torch.Size((self.count,))).to(device)

    def weigh(self, t: Tensor) -> None:
        """Exchange the twist of the time before for that of t."""
        parts = self._each(lambda posterior, x: posterior.update(x, t))
        self.update = Update(*(torch.cat(part) for part in zip(*parts, strict=True)))
        self._retwist(self.update.log_likelihood)

    def resample(self, threshold: float) -> None:
        """Replace the particles of observations with an effective sample size below a threshold."""
        sizes = effective(self.log_weights)
        self.smallest = torch.minimum(self.smallest, sizes)
        poor = sizes < threshold
        if not bool(poor.any()):
            return
        groups, particles = self.log_weights.shape
        chosen = systematic(self.log_weights, particles, self.generator)
        chosen = torch.where(poor.unsqueeze(1), chosen, torch.arange(particles))
        total = torch.logsumexp(self.log_weights, 1) - math.log(particles)
        self.log_evidence = torch.where(poor, self.log_evidence + total, self.log_evidence)
        self.log_weights = self.log_weights.masked_fill(poor.unsqueeze(1), 0.0)
        self.twist = self.twist.gather(1, chosen)
        index = (chosen + particles * torch.arange(groups).unsqueeze(1)).reshape(-1)
        index = index.to(self.x.device)
        self.x, self.update = self.x[index], Update(*(part[index] for part in self.update))
        if self.before is not None:
            self.before = self.before[0][index], self.before[1]

    def step(self, t: Tensor, s: Tensor) -> None:
        """Make the chain's step, pushed by what the posterior knows, and weigh the push."""
        here, there = noise_level_at(self.posterior.sde, t), noise_level_at(self.posterior.sde, s)
        h = there.half_logsnr - here.half_logsnr
        level, slope = exponential_moments(2 * h, 2)
        clean, std = self.update.prior, there.sigma * math.sqrt(level)
        push = (there.alpha * level) * (self.update.posterior - clean)
        z = normal_like(self.x, self.generator)
        mean = math.exp(there.log_sigma - here.log_sigma - h) * self.x + there.alpha * level * clean
        if self.before is not None:
            last, length = self.before
            mean = mean + (there.alpha * slope * h / length) * (clean - last)
        self.x, self.before = mean + push + std * z, (clean, h)
        shift = (push / std).double()
        self.log_weights = self.log_weights - self._by_group(inner(z + 0.5 * shift, shift))

    def finish(self, t: Tensor) -> None:
        """Denoise, and exchange the twist for the likelihood itself."""
        self.x = torch.cat(self._each(lambda posterior, x: posterior.score.denoised(x, t)))
        self._retwist(self.posterior.measurement.log_prob(self.x))

    def particles(self, evaluations: int) -> Particles:
        """Return what has come out."""
        total = torch.logsumexp(self.log_weights, 1)
        x = self.x.reshape(*self.log_weights.shape, *self.x.shape[1:])
        finite = total.isfinite() & self._by_group(flatten(self.x).isfinite().all(1)).bool().all(1)
        if not bool(finite.all()):
            raise SamplingError(
                f"particles: those of {int((~finite).sum())} of {len(finite)} observations are not "
                "finite, or weigh nothing; check the score and the likelihood, or take more steps",
                x,
                finite,
            )
        return Particles(
            x,
            self.log_weights - total.unsqueeze(1),
            self.log_evidence + total - math.log(self.log_weights.shape[1]),
            torch.minimum(self.smallest, effective(self.log_weights)),
            evaluations,
        )

    def _retwist(self, value: Tensor) -> None:
        twist = self._by_group(value)
        self.log_weights = self.log_weights + twist - self.twist
        self.twist = twist

    def _by_group(self, value: Tensor) -> Tensor:
        return value.to("cpu", torch.float64).reshape(self.log_weights.shape)

    def _each(self, act: Callable[[PosteriorScore, Tensor], Any]) -> list[Any]:
        """Apply to all particles, a few rows at a time."""
        slices = [slice(i, i + self.size) for i in range(0, self.count, self.size)]
        return [act(self.posterior.select(rows), self.x[rows]) for rows in slices]


def effective(log_weights: Tensor) -> Tensor:
    """Return the effective sample size (Σw)²/Σw² of weights ``(…, n)``."""
    total, squares = (torch.logsumexp(k * log_weights, -1) for k in (1, 2))
    return torch.exp(2 * total - squares)


def systematic(log_weights: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Return ``n`` indices per row of weights ``(rows, particles)``, n·w copies of each, ± 1.

    References:
        Kitagawa, *Monte Carlo filter and smoother for non-Gaussian nonlinear state space models*,
        1996.
    """
    edges = torch.softmax(log_weights, 1).cumsum(1)[:, :-1].contiguous()
    offset = uniform((len(edges), 1), generator=generator, dtype=torch.float64, device=edges.device)
    levels = (torch.arange(n, device=edges.device) + offset) / n
    return torch.searchsorted(edges, levels, right=True)
