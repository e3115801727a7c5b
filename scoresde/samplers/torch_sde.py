"""torchsde as a backend: its methods on our reversed SDE, with our noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchsde
from torch import Tensor

from scoresde._core.checks import check_nonnegative
from scoresde._core.shapes import flatten
from scoresde.samplers.base import Noise, Sampler
from scoresde.scores import Score
from scoresde.sdes import SDE, Reverse

_METHODS = {"euler": 1.0, "milstein": 1.0, "srk": 2.0}
"""Weak orders, for a noise that does not depend on the state."""


@dataclass(frozen=True)
class TorchSDE(Sampler):
    r"""Hand the reversed SDE to ``torchsde.sdeint``, one of its steps for each of ours.

    torchsde ignores ``torch.manual_seed`` and has its own Brownian motion; here its increments come
    from the same noise as everybody's, so that a generator, recorded noise and rows that do not
    know each other work as everywhere. Slower than a plain loop; useful as a second opinion, and
    for ``srk``.

    Args:
        method: an Itô method of torchsde: ``"euler"``, ``"milstein"``, or ``"srk"`` (strong order
            1.5, 4 evaluations a step).
        eta: η >= 0, a number or a function of t; 1 is the reverse SDE, 0 the probability flow.

    Raises:
        ValueError: if torchsde has no such method for an Itô SDE.

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

    def init(self, score: Score, x: Tensor, times: Tensor) -> Reverse:
        """Return the reversed SDE, in the flattened form that torchsde takes."""
        return score.sde.reverse(score, self.eta, event_shape=x.shape[1:])

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Reverse, noise: Noise
    ) -> tuple[Tensor, Reverse]:
        """Go from t to s < t; one evaluation of the score, four for ``srk``."""
        y = flatten(x)
        span = state.T - torch.stack([t, s])
        _, end = torchsde.sdeint(
            _Remembering(state), y, span, bm=_Brownian(y, noise), method=self.method, dt=t - s
        )
        return end.reshape(x.shape), state


class _Remembering:
    """An SDE that does not evaluate twice what torchsde asks for twice.

    That is the drift at one point, and the diffusion, the same for all states, at one time.
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
            self.drifts[key] = y, self.sde.f(s, y)  # y is kept, so that its id stays its own
        return self.drifts[key][1]

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        key = float(s)
        if key not in self.diffusions:
            self.diffusions[key] = self.sde.g(s, y)
        return self.diffusions[key]


class _Brownian(torchsde.BaseBrownian):
    """Brownian increments of adjoining intervals, each asked for once, drawn by ``noise``."""

    levy_area_approximation = "space-time"
    dtype = property(lambda self: self.like.dtype)
    device = property(lambda self: self.like.device)
    shape = property(lambda self: self.like.shape)

    def __init__(self, like: Tensor, noise: Noise) -> None:
        super().__init__()
        self.like = like
        self.noise = noise

    def __repr__(self) -> str:
        return f"_Brownian(shape={tuple(self.shape)})"

    def __call__(
        self, ta: Tensor, tb: Tensor, return_U: bool = False, return_A: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return W(tb) − W(ta) and, if asked for, its integral U = ∫ (W(u) − W(ta)) du."""
        h = tb - ta
        increment = h.sqrt() * self.noise(self.like)
        if not return_U:
            return increment
        bridge = (h / 12).sqrt() * self.noise(self.like)
        return increment, h * (0.5 * increment + bridge)
