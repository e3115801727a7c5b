r"""The variational bound of a chain with N steps: that of DDPM, term by term.

The data x_0 are followed by x_1, …, x_N at times t_1 < … < t_N of a Gaussian diffusion. Going
back, each step is a Gaussian, p(x_{i−1} | x_i) = N(μ, s²) with the mean of the forward chain's
posterior, the denoised x̂(x_i, t_i) in the place of x_0, and

    log P(x_0) ≥ −E[L_0 + L_1 + … + L_N],
    L_N = KL(q(x_N | x_0) ‖ N(0, prior_scale²)),           what is left of the data in the noise,
    L_i = KL(q(x_i | x_{i+1}, x_0) ‖ p(x_i | x_{i+1})),    0 < i < N,
    L_0 = −log P(x_0 | x_1),                               the decoder.

With SNR = α²/σ² and s² = (posterior variance)^{1−v} (kernel variance)^v, whose ratio to the
posterior's is e^r = (σ_{i+1}/σ_i)^{2v},

    L_i = ½ Σ_dimensions [r + e^{−r} − 1 + (SNR_i − SNR_{i+1}) e^{−r} (x_0 − x̂)²].

The decoder is the Gaussian N(x̂(x_1, t_1), s_1²): its density for continuous data, its mass in the
bin of each level for integer data, where the outermost bins reach to infinity. There the
posterior's variance is 0, and that of the next step takes its place (Ho et al. 2020).

As N grows the sum tends to the bound in continuous time (:mod:`scoresde.likelihood.bound`): for
v = 1 and a density smooth on the scale of σ(t_1) it does so like 1/N. With v = 0 the first steps
claim more than can be known of smooth data, and cost a constant however many there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from scoresde._core.checks import (
    check_between,
    check_floating,
    check_integer,
    check_positive,
    check_state,
    check_tensor,
    summarize,
)
from scoresde._core.counter_rng import CounterRNG
from scoresde._core.shapes import check_like, expand, flatten
from scoresde.dequantization import bits_per_dim, dequantize
from scoresde.scores import Score
from scoresde.sdes import SDE, GaussianSDE

VarianceFunction = Callable[[Tensor, Tensor], Tensor]
"""v as a function of the state and the time: ``variance(x, t)``, shaped like ``x``."""


@dataclass(frozen=True)
class DiscreteBound:
    """The terms of the bound for every sample, in nats; all float64.

    Attributes:
        decoder: L_0 ``(batch,)``.
        steps: L_1 … L_{N−1} ``(batch, N − 1)``; the strata's estimates if not all were evaluated.
        prior: L_N ``(batch,)``, exact.
        standard_error: of their sum, from the spread of the draws ``(batch,)``; NaN if there was
            one draw of each, which tells nothing of its spread.
        evaluations: evaluations of the score for each sample.
        event_shape: shape of one sample.
    """

    decoder: Tensor
    steps: Tensor
    prior: Tensor
    standard_error: Tensor
    evaluations: int
    event_shape: tuple[int, ...]

    @property
    def terms(self) -> Tensor:
        """L_0, …, L_N in this order, ``(batch, N + 1)``."""
        return torch.cat([self.decoder[:, None], self.steps, self.prior[:, None]], dim=1)

    @property
    def log_prob(self) -> Tensor:
        """The lower bound on log P, or on the log-density, minus the sum of the terms."""
        return -self.terms.sum(1)

    @property
    def bits_per_dim(self) -> Tensor:
        """The upper bound on −log₂ P per dimension, ``(batch,)``.

        For a density of dequantized points, ``bits_per_dim(bound.log_prob, bound.event_shape,
        levels=…, scale=…)`` counts in the unit of the levels.
        """
        return bits_per_dim(self.log_prob, self.event_shape)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.prior)

    def __repr__(self) -> str:
        """Show the mean of the sum and of its parts."""
        parts = (self.bits_per_dim, self.decoder, self.steps.sum(1), self.prior)
        unit = max(1, math.prod(self.event_shape)) * math.log(2)
        total, decoder, steps, prior = (float(part.mean()) for part in parts)
        return (
            f"DiscreteBound({len(self)} samples, mean {total:.4f} bits/dim = decoder "
            f"{decoder / unit:.4f} + steps {steps / unit:.4f} + prior {prior / unit:.2g}; "
            f"{self.evaluations} evaluations)"
        )


def discrete_bound(
    score: Score,
    x: Tensor,
    *,
    levels: int | None = None,
    scale: float = 1.0,
    shift: float = 0.0,
    variance: float | VarianceFunction = 1.0,
    decoder: float | None = None,
    times: Tensor | None = None,
    strata: int | None = None,
    draws: int = 1,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> DiscreteBound:
    r"""Estimate the variational bound of the chain at the knots of a DDPM, an NCSN, or any grid.

    Each term is an expectation over x_i given x_0 of which ``draws`` samples are taken, without
    bias; a sample's terms do not depend on its batch-mates.

    Args:
        score: a score over a Gaussian diffusion.
        x: with ``levels``, integers from 0 to levels − 1 ``(batch, *event)``; without, points
            ``(batch, *event)``, floating point, whose density is bounded.
        levels: number of levels of integer data.
        scale: width of the range of all levels in the model's coordinates, see
            :func:`~scoresde.dequantization.dequantize`; the decoder takes each level for the centre
            of its bin. DDPM's k ↦ 2k/255 − 1 is ``scale=512/255, shift=-256/255``.
        shift: lower end of that range.
        variance: v, of every reverse step, as in :class:`~scoresde.samplers.Ancestral`: 0 is "fixed
            small", 1 "fixed large". A function ``(x, t) -> v``, x-shaped, is a learned variance:
            half the network's second output plus ½ in improved DDPM.
        decoder: standard deviation of the decoder, in the model's coordinates; None for the rule of
            all steps. Ho et al.'s "fixed large" decodes with that of "fixed small", √β̃_2.
        times: t_1 < … < t_N, two at least; None for the table of a discretised diffusion. Any
            Gaussian diffusion will do, and a part of a table is a respaced chain.
        strata: None for every term. Else the number of strata, even in log-SNR, in each of which
            the step from which to estimate is drawn with probability proportional to its length;
            the decoder is always evaluated.
        draws: of each term or stratum; 2 at least for a standard error.
        generator: source of the noise; None for PyTorch's global one.
        batch_size: evaluations at a time; as many as there are samples if None.
        progress: show a bar.

    Returns:
        A :class:`DiscreteBound`.

    Raises:
        TypeError: if an argument is of the wrong kind or the diffusion not Gaussian, or has no
            table and ``times`` is None.
        ValueError: if ``x`` is empty, not finite or no integers, or a number out of range.

    Example:
        >>> from scoresde import DDPM, GaussianMixture
        >>> sde = DDPM.linear(N=50)
        >>> law = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None], sde)
        >>> bound = discrete_bound(law, torch.zeros(1, 2), draws=8)
        >>> bound.terms.shape, bound.evaluations
        (torch.Size([1, 51]), 400)
        >>> discrete_bound(law, torch.tensor([[3, 4]]), levels=8, scale=6.0, shift=-3.0)
        DiscreteBound(1 samples, mean ... bits/dim = decoder ... + steps ... + prior ...)

    References:
        Ho et al. 2020, arXiv:2006.11239, eqs. 5, 8 and 13 and section 3.3; Nichol & Dhariwal 2021,
        arXiv:2102.09672, eqs. 4 to 7 and 15; Kingma et al. 2021, arXiv:2107.00630, eqs. 13 and 14
        (v = 0); Sohl-Dickstein et al. 2015, arXiv:1503.03585.
    """
    if not isinstance(score, Score):
        raise TypeError(f"score: expected a Score, got {type(score).__name__}; use ScoreModel(...)")
    if levels is None:
        points, edges = check_state("x", x).detach().double(), None
    else:
        points = dequantize(
            check_tensor("x", x).double(), levels, scale=scale, shift=shift, law=_Centre()
        )
        edges = _edges(x, points, levels, scale / levels)
    bound = _Bound(
        score,
        _Chain.at(score.sde, times, decoder, points.device),
        points,
        edges,
        variance if callable(variance) else _constant(variance),
        CounterRNG.draw(len(points), generator, points.device),
        None if strata is None else check_integer("strata", strata, minimum=1),
    )
    check_integer("draws", draws, minimum=1)
    size = len(points) if batch_size is None else check_integer("batch_size", batch_size, minimum=1)
    with torch.no_grad():
        values, prior = bound.draws(draws, size, progress), bound.prior()
    nats = values.mean(2)
    variances = values.var(2) / draws if draws > 1 else torch.full_like(nats, math.nan)
    return DiscreteBound(
        decoder=nats[:, 0],
        steps=nats[:, 1:],
        prior=prior,
        standard_error=variances.sum(1).sqrt(),
        evaluations=values[0].numel(),
        event_shape=tuple(points.shape[1:]),
    )


@dataclass(frozen=True)
class _Chain:
    """The chain at its knots: entry i is about the step back from knot i, ``(N,)``, float64.

    Attributes:
        times: the knots.
        alpha: α.
        sigma: σ.
        half_logsnr: λ.
        log_small: logarithm of the posterior's variance; entry 0 has that of entry 1.
        log_ratio: that of the kernel's variance, less that of the posterior's.
        snr_gained: what the step back adds to the SNR; unused in entry 0, whose end has no noise.
    """

    times: Tensor
    alpha: Tensor
    sigma: Tensor
    half_logsnr: Tensor
    log_small: Tensor
    log_ratio: Tensor
    snr_gained: Tensor

    @classmethod
    def at(
        cls, sde: SDE, times: Tensor | None, decoder: float | None, device: torch.device
    ) -> _Chain:
        """Return the chain at some knots, with a given standard deviation of the decoder or not."""
        if not isinstance(sde, GaussianSDE):
            raise TypeError(
                "score: expected one over a GaussianSDE, whose chains are Gaussian, got one over "
                f"{type(sde).__name__}; use log_likelihood"
            )
        knots = _check_times(getattr(sde, "times", None) if times is None else times, sde)
        knots = knots.to(device, torch.float64)
        log_sigma, half_logsnr = sde.log_sigma(knots), sde.half_logsnr(knots)
        part = -torch.expm1(2 * half_logsnr.diff())  # by which SNR and σ² of x_i are to be reduced
        log_small = 2 * log_sigma[:-1] + part.log()
        first = log_small[:1], -part[:1].log()
        if decoder is not None:
            log_decoder = 2 * math.log(check_positive("decoder", decoder))
            first = torch.full_like(log_small[:1], log_decoder), torch.zeros_like(log_small[:1])
        return cls(
            times=knots,
            alpha=sde.alpha(knots),
            sigma=log_sigma.exp(),
            half_logsnr=half_logsnr,
            log_small=torch.cat([first[0], log_small]),
            log_ratio=torch.cat([first[1], 2 * log_sigma.diff()]),
            snr_gained=torch.cat([part[:1], part * torch.exp(2 * half_logsnr[:-1])]),
        )


@dataclass(frozen=True)
class _Bound:
    """The terms of the bound for some points, each with a random stream of its own."""

    score: Score
    chain: _Chain
    points: Tensor
    edges: tuple[Tensor, Tensor] | None
    variance: VarianceFunction
    rng: CounterRNG
    strata: int | None

    def draws(self, number: int, size: int, progress: bool) -> Tensor:
        """Return draws of L_0 and of every step or stratum, ``(n, 1 + strata, number)``."""
        count, n = 1 + (self.strata or len(self.chain.times) - 1), len(self.points)
        jobs = torch.arange(count * number * n, device=self.points.device)
        found = []
        with tqdm(total=len(jobs), disable=not progress, unit="evaluation") as bar:
            for job in jobs.split(size):
                counter, rows = job // n, job % n
                found.append(self._term(counter // number, rows, self.rng.at(rows, counter)))
                bar.update(len(job))
        return torch.cat(found).reshape(count, number, n).permute(2, 0, 1)

    def prior(self) -> Tensor:
        """Return KL(N(α x_0, σ²) ‖ N(0, prior_scale²)) at the last knot, ``(n,)``."""
        scale = self.score.sde.prior_scale()
        mean = flatten(self.points) * self.chain.alpha[-1] / scale
        std = self.chain.sigma[-1] / scale
        return 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()).sum(1)

    def _term(self, term: Tensor, rows: Tensor, rng: CounterRNG) -> Tensor:
        """Return one draw each of some terms of some rows, ``(m,)``."""
        knot, weight = self._knot(term, rng)
        x0, alpha, sigma = self.points[rows], self.chain.alpha[knot], self.chain.sigma[knot]
        noise = rng.normals((math.prod(x0.shape[1:]),)).reshape(x0.shape)
        x, time = expand(alpha, x0) * x0 + expand(sigma, x0) * noise, self.chain.times[knot]
        mean = self.score.select(rows).denoised(x, time)
        share = check_like("variance", self.variance(x, time), x)
        ratio = share.double() * expand(self.chain.log_ratio[knot], x)
        last = knot == 0
        nats = torch.empty_like(x)
        nats[last] = self._decoded(mean[last], ratio[last], rows[last])
        gained = expand(self.chain.snr_gained[knot], x)[~last]
        nats[~last] = _step(x0[~last] - mean[~last], ratio[~last], gained)
        return weight * flatten(nats).sum(1)

    def _knot(self, term: Tensor, rng: CounterRNG) -> tuple[Tensor, Tensor]:
        """Return the knot where a term, or the step drawn for a stratum, begins, and its weight."""
        if self.strata is None:
            return term, torch.ones_like(self.chain.times[term])
        half_logsnr = self.chain.half_logsnr
        length = half_logsnr[0] - half_logsnr[-1]
        level = half_logsnr[0] - length * (term - 1 + rng.uniforms(())) / self.strata
        knot = torch.searchsorted(-half_logsnr, -level).clamp(1, len(half_logsnr) - 1)
        weight = length / (self.strata * (half_logsnr[knot - 1] - half_logsnr[knot]))
        decodes = term == 0
        return knot.masked_fill(decodes, 0), weight.masked_fill(decodes, 1.0)

    def _decoded(self, mean: Tensor, log_ratio: Tensor, rows: Tensor) -> Tensor:
        """Return −log P(x_0 | x_1) of every dimension."""
        log_std = 0.5 * (self.chain.log_small[0] + log_ratio)
        if self.edges is None:
            z = (self.points[rows] - mean) * torch.exp(-log_std)
            return 0.5 * (z**2 + math.log(2 * math.pi)) + log_std
        low, high = ((edge[rows] - mean) * torch.exp(-log_std) for edge in self.edges)
        return -_log_mass(low, high)


def _step(error: Tensor, log_ratio: Tensor, snr_gained: Tensor) -> Tensor:
    """Return KL(q ‖ p) of every dimension from x_0 − x̂ and the log-ratio of their variances."""
    mismatch = log_ratio + torch.expm1(-log_ratio)
    return 0.5 * (mismatch + snr_gained * torch.exp(-log_ratio) * error**2)


def _log_mass(low: Tensor, high: Tensor) -> Tensor:
    """Return log(Φ(high) − Φ(low)) with all its digits in both tails."""
    upper = low + high > 0  # there, as many digits as in the lower tail after a reflection
    low, high = torch.where(upper, -high, low), torch.where(upper, -low, high)
    log_high = torch.special.log_ndtr(high)
    return log_high + torch.log(-torch.expm1(torch.special.log_ndtr(low) - log_high))


def _edges(x: Tensor, points: Tensor, levels: int, width: float) -> tuple[Tensor, Tensor]:
    """Return the ends of the bins of levels, the outermost at infinity."""
    low = torch.where(x <= 0, -math.inf, points - width / 2)
    return low, torch.where(x >= levels - 1, math.inf, points + width / 2)


class _Centre:
    """The law of a point that is always at the centre of its bin."""

    def sample(
        self, centre: Tensor, width: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        return torch.zeros_like(centre)

    def log_prob(self, u: Tensor, centre: Tensor, width: Tensor) -> Tensor:
        return torch.zeros_like(u)


def _constant(variance: float) -> VarianceFunction:
    check_between("variance", variance, 0.0, 1.0)
    return lambda x, t: torch.full_like(x, variance)


def _check_times(times: object, sde: GaussianSDE) -> Tensor:
    """Return the knots of a chain, or raise."""
    if times is None:
        raise TypeError(
            f"times: expected the knots of the chain, got None and a {type(sde).__name__}, which "
            "has no table; pass times, or a score over a discretised diffusion such as DDPM"
        )
    knots = check_floating("times", times)
    rising = knots.ndim == 1 and len(knots) > 1 and bool((knots.diff() > 0).all())
    if not rising or not 0 < float(knots[0]) <= float(knots[-1]) <= sde.T * (1 + 1e-6):
        raise ValueError(
            f"times: expected at least two rising times in (0, {sde.T:g}], got {summarize(knots)}; "
            "t_1, where the decoder begins, comes first"
        )
    return knots.detach()
