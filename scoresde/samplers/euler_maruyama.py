"""The Euler–Maruyama method, for any SDE."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from scoresde._core.checks import check_nonnegative
from scoresde.samplers.base import Noise, Sampler
from scoresde.scores import Score


@dataclass(frozen=True)
class EulerMaruyama(Sampler):
    r"""The Euler–Maruyama method for the family of reverse SDEs; it applies to any SDE.

    The step is ::

        x_s = x − (t − s) [f(x, t) − ½(1+η²) g² s(x, t)] + η g √(t − s) z

    Weak order 1, strong order 1 (the diffusion coefficient does not depend on the state).

    Args:
        eta: η >= 0, a number or a function of t; 1 is the reverse SDE, 0 the probability flow.

    Raises:
        ValueError: if ``eta`` is a negative number.

    Example:
        >>> EulerMaruyama()
        EulerMaruyama(eta=1.0)

    References:
        Song et al. 2021, arXiv:2011.13456, eq. 6 and appendix D; Kloeden & Platen, *Numerical
        solution of stochastic differential equations*, 1992, section 10.2.
    """

    eta: float | Callable[[Tensor], Tensor] = 1.0

    def __post_init__(self) -> None:
        if not callable(self.eta):
            check_nonnegative("eta", self.eta)

    @property
    def deterministic(self) -> bool:
        return self.eta == 0

    @property
    def convergence_order(self) -> float:
        return 1.0

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        """One evaluation of the score (see :meth:`Sampler.step`)."""
        h, g = float(t - s), float(score.sde.diffusion(t))
        eta = float(self.eta(t)) if callable(self.eta) else self.eta
        mean = x.sub(score.sde.drift(x, t), alpha=h)
        mean.add_(score(x, t), alpha=0.5 * (1 + eta**2) * g**2 * h)
        if self.deterministic:
            return mean, None
        return mean.add_(noise(x), alpha=eta * g * math.sqrt(h)), None
