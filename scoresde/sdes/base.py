"""General SDEs and their reversals.

An Itô diffusion with a scalar, state-independent noise level::

    dx = f(x, t) dt + g(t) dw,        t in [0, T], data at t = 0, noise at t = T,

has for a known score s = ∇ log p_t a family of reversals with the same marginals
(Anderson 1982; Song et al. 2021, eqs. 6 and 13; Huang et al. 2021)::

    dx = [f(x, t) − ½(1 + η²) g² s(x, t)] dt + η g dw̄,

run from T down to 0: η = 1 is the reverse SDE, η = 0 the probability flow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from scoresde._core.checks import check_nonnegative, check_ordered
from scoresde._core.modules import FixedDtypeModule
from scoresde._core.shapes import Time, as_time, check_batch, check_like, expand, like_time

ScoreFunction = Callable[[Tensor, Tensor], Tensor]
"""Anything called as ``score(x, t)`` that returns ∇ log p_t(x), shaped like ``x``."""


class SDE(FixedDtypeModule, ABC):
    r"""A diffusion dx = f(x, t) dt + g(t) dw on [0, T], given by its drift and its diffusion.

    A subclass defines :meth:`drift` and :meth:`diffusion`, and for samplers and likelihoods also
    :meth:`prior`; everything else is derived. It stores every constructor argument as an attribute
    of the same name, so that a model can be saved and rebuilt.

    The object has the interface of two solver libraries: ``sde(t, x)`` is the drift as
    ``torchdiffeq.odeint`` calls it, and ``f``, ``g``, ``noise_type``, ``sde_type`` make it an SDE
    of ``torchsde.sdeint`` on states ``(batch, d)``. Adaptive solvers of torchdiffeq step beyond the
    last requested time and interpolate: outside [0, T] these methods return the coefficients at the
    nearest end. ``options={"step_t": times[-1:]}`` makes such a solver stop there, which is more
    accurate.

    Attributes:
        T: the noise end of time.
        t_min: the data end of numerical work; samplers and likelihoods leave out [0, t_min], where
            scores diverge.

    Example:
        >>> class OrnsteinUhlenbeck(SDE):
        ...     def drift(self, x, t):
        ...         return -x
        ...
        ...     def diffusion(self, t):
        ...         return torch.full_like(torch.as_tensor(t, dtype=torch.float64), 2.0).sqrt()
        >>> reverse = OrnsteinUhlenbeck().reverse(lambda x, t: -x)  # its stationary score
        >>> reverse.drift(torch.ones(2, 3), 0.5)[0]
        tensor([1., 1., 1.])

    References:
        Song et al., *Score-based generative modeling through stochastic differential equations*,
        ICLR 2021, arXiv:2011.13456, eq. 5.
    """

    noise_type = "diagonal"
    sde_type = "ito"
    gaussian = False
    """Whether p(x_t | x_0) is N(α x_0, σ² I) with known α and σ: whether a denoiser exists."""
    direction = 1.0
    """+1 if time runs forward, −1 if it runs backward from T."""

    def __init__(self, T: float = 1.0, t_min: float = 1e-5) -> None:
        super().__init__()
        check_nonnegative("t_min", t_min)
        self.t_min, self.T = check_ordered("t_min", t_min, "T", T)

    @abstractmethod
    def drift(self, x: Tensor, t: Time) -> Tensor:
        """Return f(x, t), shaped like ``x`` ``(batch, *event)``."""

    @abstractmethod
    def diffusion(self, t: Time) -> Tensor:
        """Return g(t) >= 0, shaped like ``t``."""

    def prior(
        self,
        event_shape: Sequence[int],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Distribution:
        """Return the distribution at T, where samplers start and likelihoods end.

        Args:
            event_shape: shape of one sample.
            dtype: floating-point type, PyTorch's default if None.
            device: where its parameters live, the CPU if None.

        Returns:
            A distribution with ``event_shape`` as its event shape and no batch shape.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no prior: define `prior(event_shape, *, dtype, device)` as "
            "the distribution of x at T, or pass `start=` to a sampler and `prior=` to a likelihood"
        )

    def reverse(
        self,
        score: ScoreFunction,
        eta: float | Callable[[Tensor], Tensor] = 1.0,
        event_shape: Sequence[int] | None = None,
    ) -> ReverseSDE:
        """Return the reversal dx = [f − ½(1+η²) g² s] dt + η g dw̄ as an SDE from T to 0.

        Args:
            score: ∇ log p_t, called as ``score(x, t)``.
            eta: η >= 0, a number or a function of t ``(…)`` -> ``(…)``; 1 is the reverse SDE of
                Anderson, 0 the probability flow.
            event_shape: if given, the solver-facing ``f``, ``g`` and ``(t, x)`` call take flattened
                states ``(batch, d)``, as torchsde wants them, and unflatten them for the score.

        Returns:
            An SDE with the same T and t_min. Its ``drift`` and ``diffusion`` are functions of the
            diffusion time t; ``f`` and ``g`` run in s = T − t, since torchsde integrates forward.

        References:
            Anderson, *Reverse-time diffusion equation models*, 1982; Song et al. 2021, eqs. 6, 13.
        """
        return ReverseSDE(self, score, eta, event_shape)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the drift, with the arguments in torchdiffeq's order ``(t, x)``."""
        return self.drift(x, t.clamp(0.0, self.T))

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        """Return the drift in torchsde's increasing time: s = t, or T − t for a reversed SDE."""
        drift: Tensor = self(self._solver_time(s), y)
        return self.direction * drift

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        """Return the diagonal diffusion in torchsde's increasing time, shaped like ``y``."""
        return expand(self.diffusion(self._solver_time(s)), y).expand_as(y)

    def _solver_time(self, s: Tensor) -> Tensor:
        t = s if self.direction > 0 else self.T - s
        return t.clamp(0.0, self.T)


class ReverseSDE(SDE):
    """The reversal of an SDE under a score; made by :meth:`SDE.reverse`.

    The reversal of a reversal, with the same score and η = 1, has the drift of the original.
    """

    def __init__(
        self,
        sde: SDE,
        score: ScoreFunction,
        eta: float | Callable[[Tensor], Tensor] = 1.0,
        event_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(sde.T, sde.t_min)
        if not callable(score):
            raise TypeError(
                f"score: expected a callable (x, t) -> x-shaped, got {type(score).__name__}"
            )
        if not callable(eta) and not eta >= 0:
            raise ValueError(
                f"eta: expected a number >= 0 or a function of t, got {eta!r}; "
                "0 is the probability flow, 1 the reverse SDE"
            )
        self.sde = sde
        self.score = score
        self.eta = eta
        self.event_shape = None if event_shape is None else tuple(event_shape)
        self.direction = -sde.direction

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """Return f − ½(1+η²) g² s, the coefficient of dt (t running down), shaped like ``x``."""
        time = as_time(t, self.T)
        check_batch(time, x)
        weight = 0.5 * (1 + self._eta(time) ** 2) * self.sde.diffusion(time) ** 2
        correction = expand(weight, x) * check_like("score", self.score(x, time), x)
        return self.sde.drift(x, time) - self.sde.direction * correction

    def diffusion(self, t: Time) -> Tensor:
        """Return η g(t), shaped like ``t``."""
        time = as_time(t, self.T)
        return like_time(self._eta(time) * self.sde.diffusion(time), t)

    def prior(
        self,
        event_shape: Sequence[int],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Distribution:
        return self.sde.prior(event_shape, dtype=dtype, device=device)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the drift; with ``event_shape`` given, x and the result are ``(batch, d)``."""
        if self.event_shape is None:
            return super().forward(t, x)
        return super().forward(t, x.reshape(x.shape[0], *self.event_shape)).reshape(x.shape)

    def _eta(self, time: Tensor) -> Tensor:
        return self.eta(time) if callable(self.eta) else torch.full_like(time, self.eta)
