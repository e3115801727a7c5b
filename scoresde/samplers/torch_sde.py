"""The methods of torchsde for the reverse SDE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchsde
from torch import Tensor

from scoresde._core.checks import check_nonnegative
from scoresde._core.shapes import flatten
from scoresde.samplers.base import Noise, Sampler
from scoresde.scores import Score
from scoresde.sdes import SDE, ReverseSDE

_METHODS = {"euler": 1.0, "milstein": 1.0, "srk": 2.0}
"""Weak orders, for a noise that does not depend on the state."""


@dataclass(frozen=True)
class TorchSDE(Sampler):
    r"""Solve the reverse SDE by ``torchsde.sdeint``, with one of its steps for each of ours.

    torchsde ignores ``torch.manual_seed`` and draws its own Brownian motion. Here the increments
    are drawn by the ``noise`` of the step as in every sampler, so that a generator and recorded
    noise work. It is slower than a plain loop; use it as an independent implementation, and for
    ``srk``.

    Args:
        method: an Itô method of torchsde: ``"euler"``, ``"milstein"``, or ``"srk"`` (strong order
            1.5, 4 evaluations per step).
        eta: η >= 0, a number or a function of t; 1 is the reverse SDE, 0 the probability flow.

    Raises:
        ValueError: if torchsde has no such method for an Itô SDE, or ``eta`` is a negative number.

    Example:
        >>> TorchSDE("srk")
        TorchSDE(method='srk', eta=1.0)

    References:
        Li et al., *Scalable gradients for stochastic differential equations*, 2020,
        arXiv:2001.01328; Rößler, *Runge–Kutta methods for the strong approximation of solutions of
        stochastic differential equations*, 2010 (``srk``).
    """

    method: str = "euler"
    eta: float | Callable[[Tensor], Tensor] = 1.0

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            raise ValueError(
                f"method: expected one of {', '.join(_METHODS)}, got {self.method!r}; these are "
                "torchsde's methods for Itô SDEs with diagonal noise"
            )
        if not callable(self.eta):
            check_nonnegative("eta", self.eta)

    @property
    def convergence_order(self) -> float:
        """The weak order of the method."""
        return _METHODS[self.method]

    def init(self, score: Score, x: Tensor, times: Tensor) -> ReverseSDE:
        """Return the reverse SDE on flattened states, as torchsde takes it."""
        reverse: ReverseSDE = score.sde.reverse(score, self.eta, event_shape=x.shape[1:])
        return reverse

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: ReverseSDE, noise: Noise
    ) -> tuple[Tensor, ReverseSDE]:
        """One evaluation of the score, four for ``srk`` (see :meth:`Sampler.step`)."""
        y = flatten(x)
        span = state.T - torch.stack([t, s])
        _, end = torchsde.sdeint(
            _CachedSDE(state), y, span, bm=_Brownian(y, noise), method=self.method, dt=t - s
        )
        return end.reshape(x.shape), state


class _CachedSDE:
    """An SDE that stores its values, since torchsde evaluates some of them twice.

    The drift is stored by time and state, the diffusion, which is the same for all states, by time.
    """

    def __init__(self, sde: SDE) -> None:
        self.sde = sde
        self.noise_type = sde.noise_type
        self.sde_type = sde.sde_type
        self.drifts: dict[tuple[float, int], tuple[Tensor, Tensor]] = {}
        self.diffusions: dict[float, Tensor] = {}

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        key = (float(s), id(y))
        if key not in self.drifts:
            self.drifts[key] = y, self.sde.f(s, y)  # y is stored so that its id is not reused
        return self.drifts[key][1]

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        key = float(s)
        if key not in self.diffusions:
            self.diffusions[key] = self.sde.g(s, y)
        return self.diffusions[key]


class _Brownian(torchsde.BaseBrownian):  # type: ignore[misc]
    """Brownian increments of consecutive intervals, each drawn once, by ``noise``."""

    def __init__(self, like: Tensor, noise: Noise) -> None:
        super().__init__()
        self.like = like
        self.noise = noise

    @property
    def levy_area_approximation(self) -> str:
        return "space-time"

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        return self.like.device

    @property
    def shape(self) -> torch.Size:
        return self.like.shape

    def __repr__(self) -> str:
        return f"_Brownian(shape={tuple(self.shape)})"

    def __call__(
        self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return W(tb) − W(ta), with ``return_U`` also the integral U = ∫ (W(u) − W(ta)) du."""
        h = tb - ta
        increment: Tensor = h.sqrt() * self.noise(self.like)
        if not return_U:
            return increment
        bridge = (h / 12).sqrt() * self.noise(self.like)
        return increment, h * (0.5 * increment + bridge)
