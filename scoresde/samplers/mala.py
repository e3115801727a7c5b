"""A corrector without bias, where the density is known."""

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
    r"""A Langevin step that is accepted or refused, so that p_t stays exactly as it is.

        x' = x + ε s(x, t) + √(2ε) z,      ε = 2 (r σ_t)²,

    is taken with probability min(1, p_t(x') q(x|x') / p_t(x) q(x'|x)), q being the law of the
    proposal (MALA). Whatever r is, the law is kept; r is best where about 60 % are accepted.

    Args:
        snr: r > 0, signal-to-noise ratio of a proposal.
        log_prob: log p_t(x) up to a constant, called as ``log_prob(x, t)``, ``(batch,)``; the
            score's own ``log_prob`` if None, as :class:`~scoresde.GaussianMixture` has it.

    Raises:
        TypeError: when run, if no density is known.

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
        """Yes: it stays at its time."""
        return True

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        """Correct at time t, whatever s; two evaluations of the score and two of the density."""
        log_prob = self._density(score)
        size = 2 * (self.snr * check_gaussian(score.sde).sigma(t)) ** 2
        step, std = expand(size, x), expand((2 * size).sqrt(), x)
        z, forward = noise(x), score(x, t)
        proposal = x + step * forward + std * z
        back = (x - proposal - step * score(proposal, t)) / std
        moves = 0.5 * (flatten(z).square().sum(1) - flatten(back).square().sum(1))
        log_ratio = log_prob(proposal, t) - log_prob(x, t) + moves
        level = torch.special.log_ndtr(noise(log_ratio))  # log of a uniform number
        accepted = (level < log_ratio).reshape(-1, *(1,) * (x.ndim - 1))
        return torch.where(accepted, proposal, x), None

    def _density(self, score: Score) -> Callable[[Tensor, Tensor], Tensor]:
        density = self.log_prob or getattr(score, "log_prob", None)
        if density is None:
            raise TypeError(
                f"log_prob: expected a function (x, t), got None, and {type(score).__name__} has "
                "no density of its own; use Langevin(), which needs none"
            )
        return density
