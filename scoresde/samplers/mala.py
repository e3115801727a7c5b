"""The Metropolis-adjusted Langevin algorithm, for scores with a density."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde._core.checks import check_positive
from scoresde._core.shapes import expand, flatten
from scoresde.samplers.base import Noise, Sampler, check_gaussian
from scoresde.scores import Score


@dataclass(frozen=True)
class MALA(Sampler):
    r"""A Langevin step with a Metropolis test, which leaves p_t exactly invariant.

    The proposal ::

        x' = x + ε s(x, t) + √(2ε) z,      ε = 2 (r σ_t)²,

    is accepted with probability min(1, p_t(x') q(x|x') / p_t(x) q(x'|x)), where q is the density of
    the proposal. p_t is invariant for every r; the chain mixes best if about 60 % of the proposals
    are accepted.

    Args:
        snr: r > 0, signal-to-noise ratio of a proposal.
        log_prob: log p_t(x) up to a constant, called as ``log_prob(x, t)``, ``(batch,)``; None for
            the method ``log_prob`` of the score, as :class:`~scoresde.GaussianMixture` has one.

    Raises:
        TypeError: if ``log_prob`` is not callable; when run, if neither it nor the score gives a
            density.
        ValueError: unless ``snr`` is positive.

    Example:
        >>> MALA(snr=0.5)
        MALA(snr=0.5, log_prob=None)

    References:
        Roberts & Tweedie, *Exponential convergence of Langevin distributions and their discrete
        approximations*, 1996, section 1.4.
    """

    snr: float = 0.5
    log_prob: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        check_positive("snr", self.snr)
        if self.log_prob is not None and not callable(self.log_prob):
            raise TypeError(f"log_prob: expected a function (x, t), got {self.log_prob!r}")

    @property
    def corrects(self) -> bool:
        return True

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        """Correct at time t; two evaluations of the score and two of the density."""
        log_prob = self._density(score)
        size = 2 * (self.snr * check_gaussian(score.sde).sigma(t)) ** 2
        step, std = expand(size, x), expand((2 * size).sqrt(), x)
        z, value = noise(x), score(x, t)
        proposal = x + step * value + std * z
        reverse_z = (x - proposal - step * score(proposal, t)) / std
        transitions = 0.5 * (flatten(z).square().sum(1) - flatten(reverse_z).square().sum(1))
        log_ratio = log_prob(proposal, t) - log_prob(x, t) + transitions
        level = torch.special.log_ndtr(noise(log_ratio))  # the logarithm of a uniform number
        accepted = (level < log_ratio).reshape(-1, *(1,) * (x.ndim - 1))
        return torch.where(accepted, proposal, x), None

    def _density(self, score: Score) -> Callable[[Tensor, Tensor], Tensor]:
        density = self.log_prob or getattr(score, "log_prob", None)
        if density is None:
            raise TypeError(
                f"log_prob: expected a function (x, t), got None, and {type(score).__name__} has "
                "no method log_prob; use Langevin(), which needs none"
            )
        return density
