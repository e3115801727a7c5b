r"""How a score is learned: denoising score matching, as one formula.

The denoiser x̂ = E[x_0 | x_t] is a least-squares regression, so whatever is linear in it is one too.
We write the regression for the noise, x_t = α x_0 + σ ε,

    L = E_{t, x_0, ε} [ w(t) ‖ε̂(x_t, t) − ε‖² ],        ε̂ = −σ s = (x_t − α x̂)/σ,

because errors of all parametrisations are multiples of this one (ρ = σ/α),

    ‖s − s*‖² = ‖ε̂ − ε‖²/σ²,        ‖x̂ − x_0‖² = ρ² ‖ε̂ − ε‖².

The published losses differ in two arguments alone: the weighting w and the law of the time t. A law
that is not uniform either carries a weight that undoes it, so that only the variance changes
(:class:`Stratified`, :class:`ImportanceSampled`), or it is part of what is minimised
(:class:`LogNormal`, :class:`TableTimes`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scoresde._core.checks import (
    check_floating,
    check_number,
    check_positive,
    check_state,
    summarize,
)
from scoresde._core.random import normal_like, uniform
from scoresde._core.shapes import expand, flatten
from scoresde.scores import Score
from scoresde.scores.predictions import Prediction
from scoresde.sdes import GaussianSDE

__all__ = [
    "EDMWeighting",
    "ImportanceSampled",
    "LikelihoodWeighting",
    "LogNormal",
    "MinSNR",
    "PredictionWeighting",
    "Simple",
    "Stratified",
    "TableTimes",
    "TimeSampler",
    "Uniform",
    "Weighting",
    "dsm_loss",
]

WeightFunction = Callable[[GaussianSDE, Tensor], Tensor]
"""Anything called as ``weighting(sde, t)`` that returns w ``(batch,)``, the weight on ‖ε̂ − ε‖²."""

Reduction = Literal["mean", "sum", "none"]

_LEAST_MASS = 1e-6
"""A law of noise levels that leaves less than this to a diffusion is taken for a mistake."""


# --- weightings


@dataclass(frozen=True)
class Weighting(ABC):
    """A weight w(t) on ‖ε̂ − ε‖²; any function ``(sde, t) -> (batch,)`` will do as well."""

    @abstractmethod
    def __call__(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        """Return w >= 0 at float64 times ``(batch,)``, shaped like ``t``."""


@dataclass(frozen=True)
class Simple(Weighting):
    """The plain error of the noise, w = 1: L_simple of DDPM, λ(t) = σ² of Song et al.

    References:
        Ho et al. 2020, arXiv:2006.11239, eq. 14; Song et al. 2021, arXiv:2011.13456, eq. 7.
    """

    def __call__(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(t)


@dataclass(frozen=True)
class LikelihoodWeighting(Weighting):
    r"""The weight of maximum likelihood, w = g²/σ² = −2 λ′.

    Then g² ‖s − s*‖² is minimised, and ½ (T − t_min) times the loss (``reduction="sum"``), less its
    value at the exact score, plus KL(p_T ‖ prior), bounds the Kullback–Leibler divergence of the
    reverse SDE's samples from the data (at t_min).

    References:
        Song, Durkan, Murray & Ermon, *Maximum likelihood training of score-based diffusion models*,
        2021, arXiv:2101.09258, theorem 1; Kingma et al. 2021, arXiv:2107.00630, section 4.
    """

    def __call__(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        """Return g²/σ²."""
        time = sde.interior(t)
        return sde.rates(time)[1] * torch.exp(-2 * sde.log_sigma(time))


@dataclass(frozen=True)
class EDMWeighting(Weighting):
    r"""The weighting of EDM, (ρ² + σ_d²)/(ρ σ_d)² on ‖x̂ − x_0‖², that is w = 1 + (ρ/σ_d)².

    It is the plain error of the network that :func:`~scoresde.scores.predictions.edm` preconditions.

    Args:
        sigma_data: σ_d > 0, the standard deviation of the data, in their own unit.

    References:
        Karras et al. 2022, arXiv:2206.00364, table 1.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        check_positive("sigma_data", self.sigma_data)

    def __call__(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        """Return 1 + (ρ/σ_d)²."""
        return 1 + torch.exp(-2 * sde.half_logsnr(t)) / self.sigma_data**2


@dataclass(frozen=True)
class MinSNR(Weighting):
    r"""Min-SNR-γ, min(SNR, γ) on ‖x̂ − x_0‖², that is w = min(1, γ ρ²) since SNR = 1/ρ².

    Args:
        gamma: γ > 0; the weight is that of the noise below this signal-to-noise ratio, that of the
            data above it.

    References:
        Hang et al., *Efficient diffusion training via min-SNR weighting strategy*, 2023,
        arXiv:2303.09556, section 3.4.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        check_positive("gamma", self.gamma)

    def __call__(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        """Return min(1, γ ρ²)."""
        return (self.gamma * torch.exp(-2 * sde.half_logsnr(t))).clamp(max=1.0)


@dataclass(frozen=True)
class PredictionWeighting(Weighting):
    r"""The plain error ‖y − y*‖² of any parametrisation, whatever the network itself predicts.

    With x̂ = x/α + k x + c y (:mod:`scoresde.scores.predictions`) it is w = (ρ/c)². ``PredictionWeighting(NOISE)`` is
    :class:`Simple`, ``PredictionWeighting(edm(σ_d))`` is :class:`EDMWeighting`, ``PredictionWeighting(FLOW)`` with
    :class:`~scoresde.sdes.RectifiedFlow` is flow matching, ``PredictionWeighting(DATA)`` weights by ρ².

    Args:
        prediction: NOISE, DATA, SCORE, VELOCITY, FLOW or edm(sigma_data).

    References:
        Salimans & Ho 2022, arXiv:2202.00512, section 4; Lipman et al. 2022, arXiv:2210.02747,
        eq. 9.
    """

    prediction: Prediction

    def __post_init__(self) -> None:
        if not isinstance(self.prediction, Prediction):
            raise TypeError(
                "prediction: expected NOISE, DATA, SCORE, VELOCITY, FLOW or edm(sigma_data), got "
                f"{summarize(self.prediction)}; import one of them from scoresde"
            )

    def __call__(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        """Return (ρ/c)²."""
        time = sde.interior(t)
        output = self.prediction.coefficients(sde, time).output
        return (torch.exp(-sde.half_logsnr(time)) / output) ** 2


# --- laws of the time


@dataclass(frozen=True)
class TimeSampler(ABC):
    """A law of t on [t_min, T] as the image of uniform levels, and the weight that goes with it."""

    @abstractmethod
    def at(self, sde: GaussianSDE, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return the times, and their weights, that belong to levels in [0, 1].

        Args:
            sde: the diffusion.
            level: float64 ``(n,)``; if it is uniform, the times follow the law.

        Returns:
            t ``(n,)`` and weight ``(n,)``, in float64.
        """

    def draw(
        self,
        sde: GaussianSDE,
        n: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw ``n`` times.

        Args:
            sde: the diffusion.
            n: how many.
            generator: source of randomness; None for PyTorch's global one.
            device: where the results live, the CPU if None.

        Returns:
            t ``(n,)`` and weight ``(n,)``, in float64.
        """
        return self.at(sde, _levels(n, generator, device))


@dataclass(frozen=True)
class Uniform(TimeSampler):
    """Times uniform on [t_min, T], with weight 1.

    Example:
        >>> from scoresde import VPSDE
        >>> t, weight = Uniform().draw(VPSDE(), 1000, torch.Generator().manual_seed(0))
        >>> round(float(t.mean()), 1), float(weight.mean())
        (0.5, 1.0)
    """

    def at(self, sde: GaussianSDE, level: Tensor) -> tuple[Tensor, Tensor]:
        return sde.t_min + (sde.T - sde.t_min) * level, torch.ones_like(level)


@dataclass(frozen=True)
class Stratified(TimeSampler):
    """Any law with one draw in each of n strata of equal probability, in random order.

    Every single time follows ``law``; together they cover it evenly, so that means over a batch
    have a smaller variance. The expectation is unchanged.

    Args:
        law: the law to stratify.

    Example:
        >>> from scoresde import VPSDE
        >>> t, weight = Stratified().draw(VPSDE(), 4, torch.Generator().manual_seed(0))
        >>> sorted((4 * t).int().tolist())
        [0, 1, 2, 3]

    References:
        Kingma et al. 2021, arXiv:2107.00630, appendix I.1 (where one offset shifts all strata).
    """

    law: TimeSampler = Uniform()

    def __post_init__(self) -> None:
        _check_law("law", self.law)

    def at(self, sde: GaussianSDE, level: Tensor) -> tuple[Tensor, Tensor]:
        return self.law.at(sde, level)

    def draw(
        self,
        sde: GaussianSDE,
        n: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, Tensor]:
        within = _levels(n, generator, device)
        source = within.device if generator is None else generator.device
        strata = torch.randperm(n, generator=generator, device=source).to(within.device)
        return self.law.at(sde, (strata + within) / n)


@dataclass(frozen=True)
class ImportanceSampled(TimeSampler):
    r"""Times with density proportional to g²/σ² = −2 λ′, that is uniform in the half log-SNR λ.

    With :class:`LikelihoodWeighting` the product of the two weights is constant, and the variance that the
    weight brings near t = 0 is gone; weight = (λ(t_min) − λ(T)) / ((T − t_min) (−λ′)).

    Example:
        >>> from scoresde import VPSDE
        >>> sde = VPSDE()
        >>> t, weight = ImportanceSampled().draw(sde, 1000, torch.Generator().manual_seed(0))
        >>> product = weight * LikelihoodWeighting()(sde, t)
        >>> bool(torch.allclose(product, product[0]))
        True

    References:
        Song, Durkan, Murray & Ermon 2021, arXiv:2101.09258, on variance reduction; Kingma et al.
        2021, arXiv:2107.00630, section 5 (a loss that depends on λ alone).
    """

    def at(self, sde: GaussianSDE, level: Tensor) -> tuple[Tensor, Tensor]:
        high, low = _ends(sde)
        t = sde.time_at(high - (high - low) * level)
        slope = 0.5 * LikelihoodWeighting()(sde, t)
        return t, (high - low) / ((sde.T - sde.t_min) * slope)


@dataclass(frozen=True)
class LogNormal(TimeSampler):
    r"""Noise levels ρ = σ/α with ln ρ ~ N(mean, std²), cut to those of [t_min, T]; weight 1.

    EDM's law. It is part of EDM's objective and is not undone by a weight. Under
    :class:`~scoresde.sdes.RectifiedFlow` ln ρ = logit t, and it is the logit-normal law of flow
    matching: ``LogNormal(0, 1)``.

    Args:
        mean: mean of ln ρ.
        std: standard deviation of ln ρ.

    Raises:
        ValueError: if ``std`` is not positive, or, when drawn, if the diffusion has none of these
            noise levels.

    Example:
        >>> from scoresde import EDMSDE
        >>> t, weight = LogNormal().draw(EDMSDE(), 10_000, torch.Generator().manual_seed(0))
        >>> round(float(t.log().mean()), 1), round(float(t.log().std()), 1)
        (-1.2, 1.2)

    References:
        Karras et al. 2022, arXiv:2206.00364, table 1; Esser et al., *Scaling rectified flow
        transformers*, 2024, arXiv:2403.03206, section 3.1.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        check_number("mean", self.mean)
        check_positive("std", self.std)

    def at(self, sde: GaussianSDE, level: Tensor) -> tuple[Tensor, Tensor]:
        high, low = _ends(sde)
        first, last = (self._cdf(-end) for end in (high, low))
        if last - first < _LEAST_MASS:
            raise ValueError(
                f"mean, std: expected a law of ln(sigma/alpha) that meets its range {-high:.3g} … "
                f"{-low:.3g} on this SDE, got {self}; its mean is in natural logarithms"
            )
        normal = torch.special.ndtri(first + (last - first) * level)
        log_ratio = (self.mean + self.std * normal).clamp(-high, -low)
        return sde.time_at(-log_ratio), torch.ones_like(level)

    def _cdf(self, log_ratio: float) -> float:
        return 0.5 * math.erfc((self.mean - log_ratio) / (self.std * math.sqrt(2)))


@dataclass(frozen=True, eq=False, repr=False)
class TableTimes(TimeSampler):
    """Times drawn from a table with equal probability, weight 1: the discrete losses of DDPM, NCSN.

    Args:
        times: the knots ``(N,)``, such as those of a discretised diffusion.

    Raises:
        TypeError: if ``times`` is no floating-point tensor.
        ValueError: if it is empty, not finite, negative, or has more than one dimension.

    Example:
        >>> from scoresde import VPSDE
        >>> law = TableTimes(torch.tensor([0.25, 0.5, 1.0]))
        >>> t, weight = law.draw(VPSDE(), 100, torch.Generator().manual_seed(0))
        >>> t.unique().tolist()
        [0.25, 0.5, 1.0]
    """

    times: Tensor

    def __post_init__(self) -> None:
        times = check_floating("times", self.times)
        if times.ndim != 1 or times.numel() == 0 or not bool(times.isfinite().all()):
            raise ValueError(
                f"times: expected a tensor (N,) of finite times, N >= 1, got {summarize(times)}; "
                "pass the knots of the table"
            )
        if bool((times < 0).any()):
            raise ValueError(
                f"times: expected times in [0, T], got {float(times.min()):g}; 0 is the data end"
            )
        object.__setattr__(self, "times", times.detach().to(torch.float64).clone())

    def at(self, sde: GaussianSDE, level: Tensor) -> tuple[Tensor, Tensor]:
        times = self.times.to(level.device)
        index = (level * len(times)).long().clamp(max=len(times) - 1)
        return times[index], torch.ones_like(level)

    def __repr__(self) -> str:
        low, high = (float(end) for end in torch.aminmax(self.times))
        return f"Knots({len(self.times)} times in [{low:g}, {high:g}])"


def _levels(n: int, generator: torch.Generator | None, device: torch.device | str | None) -> Tensor:
    return uniform((n,), generator=generator, dtype=torch.float64, device=device)


def _ends(sde: GaussianSDE) -> tuple[float, float]:
    """λ at t_min, the data end, and at T."""
    ends = sde.half_logsnr(sde.interior(torch.tensor([sde.t_min, sde.T], dtype=torch.float64)))
    high, low = ends.tolist()
    return high, low


def _check_law(name: str, law: object) -> None:
    if not isinstance(law, TimeSampler):
        raise TypeError(
            f"{name}: expected a law of the time such as Uniform(), got {summarize(law)}; "
            "make an instance, with parentheses, of a TimeSampler"
        )


# --- the loss


def dsm_loss(
    score: Score,
    x0: Tensor,
    *,
    weighting: WeightFunction = Simple(),
    time_sampler: TimeSampler = Uniform(),
    generator: torch.Generator | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Return the denoising score matching loss E[w(t) ‖ε̂(x_t, t) − ε‖²] on a batch of clean data.

    One t and one ε are drawn for every row of ``x0``; t follows ``time_sampler``, ε ~ N(0, I),
    x_t = α x_0 + σ ε. Differentiate the result in the parameters of the score.

    Published losses are arguments of this one. Those of Song et al. (2021) are ``reduction="mean"``
    for VP and sub-VP and half of ``reduction="sum"`` for VE; their likelihood weighting is
    :class:`LikelihoodWeighting`. DDPM's and NCSN's are the same with a discretised SDE and
    ``TableTimes(sde.times)``. EDM's is ``weighting=EDMWeighting(sigma_data)``, ``time_sampler=LogNormal()`` and
    ``reduction="sum"``. Flow matching's is ``weighting=PredictionWeighting(FLOW)`` with
    :class:`~scoresde.sdes.RectifiedFlow`.

    Args:
        score: any Score over a Gaussian SDE; in training a :class:`~scoresde.scores.ScoreModel`.
        x0: clean data ``(batch, *event)``, floating point; half precision is computed in float32.
        weighting: w, the weight on ‖ε̂ − ε‖²: :class:`Simple`, :class:`LikelihoodWeighting`, :class:`EDMWeighting`,
            :class:`MinSNR`, :class:`PredictionWeighting` or any function ``(sde, t) -> (batch,)``.
        time_sampler: the law of t: :class:`Uniform`, :class:`Stratified`, :class:`ImportanceSampled`,
            :class:`LogNormal` or :class:`TableTimes`.
        generator: source of randomness; None for PyTorch's global one.
        reduction: ``"mean"`` over the batch and the elements of the event; ``"sum"`` over the
            event, then the mean over the batch; ``"none"`` sums over the event alone.

    Returns:
        The loss, ``()``, or ``(batch,)`` for ``"none"``, in the dtype of ``x0`` (at least float32).

    Raises:
        TypeError: if ``x0`` is not floating point, the score's SDE not Gaussian, or ``weighting``
            or ``time_sampler`` not what it should be.
        ValueError: if ``x0`` is empty or not finite, or ``reduction`` unknown.

    Example:
        >>> from scoresde import MLP, ScoreModel, VPSDE
        >>> model = ScoreModel(MLP((2,), width=16, depth=1), VPSDE())  # untrained: ε̂ = 0
        >>> x0 = torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0))
        >>> loss = dsm_loss(model, x0, generator=torch.Generator().manual_seed(1))
        >>> round(loss.item(), 1)  # E[ε²]
        1.0

    References:
        Vincent, *A connection between score matching and denoising autoencoders*, 2011; Song et al.
        2021, arXiv:2011.13456, eq. 7.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(
            f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}; 'mean' is over the "
            "batch and the elements of the event"
        )
    check_objective(score, weighting, time_sampler)
    losses = sample_losses(score, check_state("x0", x0), weighting, time_sampler, generator)
    if reduction == "none":
        return losses
    return losses.mean() / (math.prod(x0.shape[1:]) if reduction == "mean" else 1)


def sample_losses(
    score: Score,
    x0: Tensor,
    weighting: WeightFunction,
    time_sampler: TimeSampler,
    generator: torch.Generator | None,
) -> Tensor:
    """Return the loss of each sample, summed over its event, ``(batch,)``; checks nothing."""
    x0 = x0.to(torch.promote_types(x0.dtype, torch.float32))
    t, weight = time_sampler.draw(score.sde, x0.shape[0], generator, x0.device)
    noise = normal_like(x0, generator)
    errors = noise_errors(score, x0, t, noise)
    return expand(weight, errors) * expand(weighting(score.sde, t), errors) * errors


def noise_errors(score: Score, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Return ‖ε̂(x_t, t) − ε‖² of each sample ``(batch,)`` for given times and noise."""
    x = score.sde.perturb(x0, t, noise)
    return flatten(score.noise(x, t) - noise).square().sum(1)


def check_objective(score: object, weighting: object, time_sampler: object) -> None:
    """Raise a ``TypeError`` unless the three fit together as a denoising score matching loss."""
    if not isinstance(score, Score):
        raise TypeError(
            f"score: expected a Score, got {type(score).__name__}; wrap a network as "
            "ScoreModel(network, sde)"
        )
    if not isinstance(score.sde, GaussianSDE):
        raise TypeError(
            f"score: expected a Score over a GaussianSDE, got one over {type(score.sde).__name__}; "
            "denoising score matching needs α and σ"
        )
    if isinstance(weighting, type) or not callable(weighting):
        raise TypeError(
            f"weighting: expected a weighting such as Simple(), got {summarize(weighting)}; make an "
            "instance, with parentheses, or pass a function (sde, t) -> weight"
        )
    _check_law("time_sampler", time_sampler)
