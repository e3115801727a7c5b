r"""The variational bound of a chain of N steps: that of DDPM, term by term.

The forward chain x_1, …, x_N has the times t_1 < … < t_N of a Gaussian diffusion and starts from
the data x_0. Each reverse step is a Gaussian, p(x_{i−1} | x_i) = N(μ, s²), whose mean is that of
the forward chain's posterior with the denoised x̂(x_i, t_i) for x_0, and ::

    log P(x_0) ≥ −E[L_0 + L_1 + … + L_N],
    L_N = KL(q(x_N | x_0) ‖ N(0, prior_scale²)),           the prior term,
    L_i = KL(q(x_i | x_{i+1}, x_0) ‖ p(x_i | x_{i+1})),    0 < i < N,
    L_0 = −log P(x_0 | x_1),                               the decoder.

With SNR = α²/σ² and s² = (posterior variance)^{1−v} (kernel variance)^v, whose ratio to the
posterior's is e^r = (σ_{i+1}/σ_i)^{2v}, ::

    L_i = ½ Σ_dimensions [r + e^{−r} − 1 + (SNR_i − SNR_{i+1}) e^{−r} (x_0 − x̂)²].

The decoder is the Gaussian N(x̂(x_1, t_1), s_1²): for continuous data L_0 has its density, for
integer data its mass in the bin of each level, where the two outermost bins are unbounded. The
posterior's variance is 0 at this step; that of the next step replaces it (Ho et al. 2020).

As N grows the sum tends to the bound in continuous time (:mod:`scoresde.likelihood.bound`): for
v = 1 and a density smooth on the scale of σ(t_1) the difference is of order 1/N. With v = 0 the
first steps are too narrow for smooth data, and a constant difference remains for every N.
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
    check_instance,
    check_integer,
    check_positive,
    check_state,
    check_tensor,
    summarize,
)
from scoresde._core.counter_rng import CounterRNG
from scoresde._core.shapes import check_like, expand, flatten
from scoresde.dequantization import (
    Dequantization,
    bits_per_dim,
    check_dequantized,
    dequantize,
)
from scoresde.dequantization.bounds import level_bits
from scoresde.scores import Score
from scoresde.scores.base import require_score
from scoresde.sdes import SDE, GaussianSDE

VarianceFunction = Callable[[Tensor, Tensor], Tensor]
"""v as a function of the state and the time: ``variance(x, t)``, shaped like ``x``."""


@dataclass(frozen=True)
class DiscreteBound:
    """The terms of the bound for every sample, in nats; all float64.

    Attributes:
        decoder: L_0 ``(batch,)``.
        steps: L_1 … L_{N−1} ``(batch, N − 1)``; estimates of strata if not all were evaluated.
        prior: L_N ``(batch,)``, exact.
        standard_error: of their sum, from the variance of the samples ``(batch,)``; NaN for a
            single sample of each term, which gives no estimate of the variance.
        evaluations: evaluations of the score ``(batch,)``, int64.
        points: the data in the model's coordinates ``(batch, *event)``.
        levels: number of levels of integer data; None if the bound is on a density.
    """

    decoder: Tensor
    steps: Tensor
    prior: Tensor
    standard_error: Tensor
    evaluations: Tensor
    points: Tensor
    levels: int | None = None

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.points.shape[1:])

    @property
    def terms(self) -> Tensor:
        """L_0, …, L_N in this order, ``(batch, N + 1)``."""
        return torch.cat([self.decoder[:, None], self.steps, self.prior[:, None]], dim=1)

    @property
    def log_prob(self) -> Tensor:
        """The lower bound on log P, or on the log-density: minus the sum of the terms."""
        return -self.terms.sum(1)

    def bits_per_dim(
        self, *, levels: int | None = None, scale: float | Tensor | None = None
    ) -> Tensor:
        """Return the upper bound on −log₂ P per dimension, or on −log₂ p, ``(batch,)``.

        Args:
            levels: number of levels. Of integer data None, or their own; of a density that of the
                (dequantized) integer data, None for continuous data.
            scale: total width of the levels in the model's coordinates; P does not depend on it.

        Returns:
            Bits per dimension ``(batch,)``.

        Raises:
            ValueError: if ``levels`` are not those of the integer data, or if points whose density
                is bounded appear not to be dequantized.
        """
        if self.levels is not None:
            return level_bits(self.log_prob, self.event_shape, self.levels, levels)
        check_dequantized("x", self.points)
        return bits_per_dim(self.log_prob, self.event_shape, levels=levels, scale=scale)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.prior)

    def __repr__(self) -> str:
        """Return the means of the sum and of its parts."""
        parts = (self.log_prob.neg(), self.decoder, self.steps.sum(1), self.prior)
        total, decoder, steps, prior = (
            float(bits_per_dim(-part, self.event_shape).mean()) for part in parts
        )
        return (
            f"DiscreteBound({len(self)} samples, mean {total:.4f} bits/dim = decoder "
            f"{decoder:.4f} + steps {steps:.4f} + prior {prior:.2g}; "
            f"{self.evaluations.double().mean():.0f} evaluations)"
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
    samples: int = 1,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> DiscreteBound:
    r"""Estimate the variational bound of a chain at the timesteps of a DDPM, an NCSN, or any grid.

    Each term is an expectation over x_i given x_0, estimated without bias by the mean of
    ``samples`` samples. The terms of a row do not depend on the other rows.

    Args:
        score: a score over a Gaussian diffusion.
        x: with ``levels``, integers from 0 to levels − 1 ``(batch, *event)``; without, points
            ``(batch, *event)``, floating point, whose density is bounded.
        levels: number of levels of integer data.
        scale: width of the range of all levels in the model's coordinates, see
            :func:`~scoresde.dequantization.dequantize`; the decoder puts each level at the center
            of its bin. DDPM's k ↦ 2k/255 − 1 is ``scale=512/255, shift=-256/255``.
        shift: lower end of that range.
        variance: v of every reverse step, as in :class:`~scoresde.samplers.Ancestral`: 0 is "fixed
            small", 1 "fixed large". A function ``(x, t) -> v``, x-shaped, is a learned variance:
            half the network's second output plus ½ in improved DDPM.
        decoder: standard deviation of the decoder, in the model's coordinates; None for s_1, by the
            rule of all steps. Ho et al.'s "fixed large" decodes with that of "fixed small", √β̃_2.
        times: t_1 < … < t_N, at least two, of any Gaussian diffusion; None for the table of a
            discretized one, a part of which is a respaced chain.
        strata: None to evaluate every term; else the number of strata, uniform in log-SNR. In each,
            one step is drawn with probability proportional to its length; the decoder is always
            evaluated.
        samples: number of samples of each term or stratum; at least 2 for a standard error.
        generator: source of randomness; None for PyTorch's global one.
        batch_size: number of evaluations in one batch; that of the rows of ``x`` if None.
        progress: show a progress bar.

    Returns:
        A :class:`DiscreteBound`.

    Raises:
        TypeError: if an argument is of the wrong type, the diffusion is not Gaussian, or it has no
            table and ``times`` is None.
        ValueError: if ``x`` is empty, not finite or not integers, or a number is out of range.

    Example:
        >>> from scoresde import DDPM, GaussianMixture
        >>> sde = DDPM.linear(N=50)
        >>> score = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None], sde)
        >>> bound = discrete_bound(score, torch.zeros(1, 2), samples=8)
        >>> bound.terms.shape, bound.evaluations
        (torch.Size([1, 51]), tensor([400]))
        >>> discrete_bound(score, torch.tensor([[3, 4]]), levels=8, scale=6.0, shift=-3.0)
        DiscreteBound(1 samples, mean ... bits/dim = decoder ... + steps ... + prior ...)

    References:
        Ho et al. 2020, arXiv:2006.11239, eqs. 5, 8 and 13 and section 3.3; Nichol & Dhariwal 2021,
        arXiv:2102.09672, eqs. 4 to 7 and 15; Kingma et al. 2021, arXiv:2107.00630, eqs. 13 and 14
        (v = 0); Sohl-Dickstein et al. 2015, arXiv:1503.03585.
    """
    require_score(score)
    if levels is None:
        points, edges = check_state("x", x).detach().double(), None
    else:
        points = dequantize(
            check_tensor("x", x).double(), levels, scale=scale, shift=shift, noise=_CenterNoise()
        )
        edges = _edges(x, points, levels, scale / levels)
    estimator = _TermEstimator(
        score,
        _ReverseChain.at(score.sde, times, decoder, points.device),
        points,
        edges,
        variance if callable(variance) else _constant(variance),
        CounterRNG.draw(len(points), generator, points.device),
        None if strata is None else check_integer("strata", strata, minimum=1),
    )
    check_integer("samples", samples, minimum=1)
    size = len(points) if batch_size is None else check_integer("batch_size", batch_size, minimum=1)
    with torch.no_grad():
        values, prior = estimator.sample(samples, size, progress), estimator.prior()
    nats = values.mean(2)
    variances = values.var(2) / samples if samples > 1 else torch.full_like(nats, math.nan)
    return DiscreteBound(
        decoder=nats[:, 0],
        steps=nats[:, 1:],
        prior=prior,
        standard_error=variances.sum(1).sqrt(),
        evaluations=torch.full((len(points),), values[0].numel(), device=points.device),
        points=points,
        levels=levels,
    )


@dataclass(frozen=True)
class _ReverseChain:
    """The chain at its times: entry i describes the step back from times[i], ``(N,)``, float64.

    Attributes:
        times: t_1, …, t_N.
        alpha: α.
        sigma: σ.
        half_logsnr: λ.
        log_variance: logarithm of the posterior's variance; entry 0 has that of entry 1.
        log_ratio: logarithm of the kernel's variance over the posterior's.
        snr_increase: increase of the SNR in the step; unused in entry 0, which ends without noise.
    """

    times: Tensor
    alpha: Tensor
    sigma: Tensor
    half_logsnr: Tensor
    log_variance: Tensor
    log_ratio: Tensor
    snr_increase: Tensor

    @classmethod
    def at(
        cls, sde: SDE, times: Tensor | None, decoder: float | None, device: torch.device
    ) -> _ReverseChain:
        """Return the chain at some times; ``decoder`` overrides the decoder's deviation."""
        sde = check_instance("score.sde", sde, GaussianSDE, "VPSDE()", "use log_likelihood")
        steps = _check_times(getattr(sde, "times", None) if times is None else times, sde)
        steps = steps.to(device, torch.float64)
        log_sigma, half_logsnr = sde.log_sigma(steps), sde.half_logsnr(steps)
        reduction = -torch.expm1(2 * half_logsnr.diff())  # relative, of SNR and of σ² of x_i
        log_variance = 2 * log_sigma[:-1] + reduction.log()
        first = log_variance[:1], -reduction[:1].log()
        if decoder is not None:
            log_decoder = 2 * math.log(check_positive("decoder", decoder))
            first = torch.full_like(log_variance[:1], log_decoder), torch.zeros_like(reduction[:1])
        return cls(
            times=steps,
            alpha=sde.alpha(steps),
            sigma=log_sigma.exp(),
            half_logsnr=half_logsnr,
            log_variance=torch.cat([first[0], log_variance]),
            log_ratio=torch.cat([first[1], 2 * log_sigma.diff()]),
            snr_increase=torch.cat([reduction[:1], reduction * torch.exp(2 * half_logsnr[:-1])]),
        )


@dataclass(frozen=True)
class _TermEstimator:
    """Monte Carlo estimates of the terms for some points, with independent streams per row."""

    score: Score
    chain: _ReverseChain
    points: Tensor
    edges: tuple[Tensor, Tensor] | None
    variance: VarianceFunction
    rng: CounterRNG
    strata: int | None

    def sample(self, number: int, size: int, progress: bool) -> Tensor:
        """Return samples of L_0 and of every step or stratum, ``(n, 1 + strata, number)``."""
        count, n = 1 + (self.strata or len(self.chain.times) - 1), len(self.points)
        jobs = torch.arange(count * number * n, device=self.points.device)
        values = []
        with tqdm(total=len(jobs), disable=not progress, unit="evaluation") as bar:
            for job in jobs.split(size):
                counter, rows = job // n, job % n
                values.append(self._term(counter // number, rows, self.rng.at(rows, counter)))
                bar.update(len(job))
        return torch.cat(values).reshape(count, number, n).permute(2, 0, 1)

    def prior(self) -> Tensor:
        """Return KL(N(α x_0, σ²) ‖ N(0, prior_scale²)) at t_N, ``(n,)``."""
        scale = self.score.sde.prior_scale()
        mean = flatten(self.points) * self.chain.alpha[-1] / scale
        std = self.chain.sigma[-1] / scale
        nats: Tensor = 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()).sum(1)
        return nats

    def _term(self, term: Tensor, rows: Tensor, rng: CounterRNG) -> Tensor:
        """Return one sample each of some terms of some rows, ``(m,)``."""
        index, weight = self._step_of(term, rng)
        x0, alpha, sigma = self.points[rows], self.chain.alpha[index], self.chain.sigma[index]
        noise = rng.normals((math.prod(x0.shape[1:]),)).reshape(x0.shape)
        x, time = expand(alpha, x0) * x0 + expand(sigma, x0) * noise, self.chain.times[index]
        mean = self.score.select(rows).denoised(x, time)
        v = check_like("variance", self.variance(x, time), x)
        log_ratio = v.double() * expand(self.chain.log_ratio[index], x)
        decodes = index == 0
        nats = torch.empty_like(x)
        nats[decodes] = self._decoded(mean[decodes], log_ratio[decodes], rows[decodes])
        increase = expand(self.chain.snr_increase[index], x)[~decodes]
        nats[~decodes] = _divergence(x0[~decodes] - mean[~decodes], log_ratio[~decodes], increase)
        return weight * flatten(nats).sum(1)

    def _step_of(self, term: Tensor, rng: CounterRNG) -> tuple[Tensor, Tensor]:
        """Return the step of a term, or one drawn from its stratum, and its weight."""
        if self.strata is None:
            return term, torch.ones_like(self.chain.times[term])
        half_logsnr = self.chain.half_logsnr
        length = half_logsnr[0] - half_logsnr[-1]
        level = half_logsnr[0] - length * (term - 1 + rng.uniforms(())) / self.strata
        index = torch.searchsorted(-half_logsnr, -level).clamp(1, len(half_logsnr) - 1)
        weight = length / (self.strata * (half_logsnr[index - 1] - half_logsnr[index]))
        decodes = term == 0
        return index.masked_fill(decodes, 0), weight.masked_fill(decodes, 1.0)

    def _decoded(self, mean: Tensor, log_ratio: Tensor, rows: Tensor) -> Tensor:
        """Return −log P(x_0 | x_1) of every dimension."""
        log_std = 0.5 * (self.chain.log_variance[0] + log_ratio)
        if self.edges is None:
            z = (self.points[rows] - mean) * torch.exp(-log_std)
            return 0.5 * (z**2 + math.log(2 * math.pi)) + log_std
        low, high = ((edge[rows] - mean) * torch.exp(-log_std) for edge in self.edges)
        return -_log_mass(low, high)


def _divergence(error: Tensor, log_ratio: Tensor, snr_increase: Tensor) -> Tensor:
    """Return KL(q ‖ p) of every dimension from x_0 − x̂ and the log-ratio of their variances."""
    mismatch = log_ratio + torch.expm1(-log_ratio)
    result: Tensor = 0.5 * (mismatch + snr_increase * torch.exp(-log_ratio) * error**2)
    return result


def _log_mass(low: Tensor, high: Tensor) -> Tensor:
    """Return log(Φ(high) − Φ(low)), accurate in both tails."""
    upper = low + high > 0  # reflect the upper tail to the lower
    low, high = torch.where(upper, -high, low), torch.where(upper, -low, high)
    log_high = torch.special.log_ndtr(high)
    log_mass: Tensor = log_high + torch.log(-torch.expm1(torch.special.log_ndtr(low) - log_high))
    return log_mass


def _edges(x: Tensor, points: Tensor, levels: int, width: float) -> tuple[Tensor, Tensor]:
    """Return the edges of the bins of levels, the outermost at infinity."""
    low = torch.where(x <= 0, -math.inf, points - width / 2)
    return low, torch.where(x >= levels - 1, math.inf, points + width / 2)


class _CenterNoise(Dequantization):
    """No noise: every point is the center of its bin."""

    def sample(
        self, center: Tensor, width: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        return torch.zeros_like(center)

    def log_prob(self, u: Tensor, center: Tensor, width: Tensor) -> Tensor:
        raise NotImplementedError("a point mass has no density")


def _constant(variance: float) -> VarianceFunction:
    """Return the function of a constant variance."""
    check_between("variance", variance, 0.0, 1.0)
    return lambda x, t: torch.full_like(x, variance)


def _check_times(times: object, sde: GaussianSDE) -> Tensor:
    """Return the timesteps of a chain, or raise."""
    if times is None:
        raise TypeError(
            f"times: expected the timesteps of the chain, got None and a {type(sde).__name__}, "
            "which has no table; pass times, or a score over a discretized diffusion such as DDPM"
        )
    steps = check_floating("times", times)
    increasing = steps.ndim == 1 and len(steps) > 1 and bool((steps.diff() > 0).all())
    if not increasing or not 0 < float(steps[0]) <= float(steps[-1]) <= sde.T * (1 + 1e-6):
        raise ValueError(
            f"times: expected at least two increasing times in (0, {sde.T:g}], got "
            f"{summarize(steps)}; t_1, where the decoder starts, is the first"
        )
    return steps.detach()
