r"""What was measured: the likelihood p(y|x_0) that turns a prior into a posterior.

Either y = A x_0 + σ_y n for a linear operator A (:class:`Observation`), or y = F(x_0) + σ_y n for a
differentiable function (:class:`NonlinearObservation`), or any differentiable log-likelihood
(:class:`LogLikelihood`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from scoresde._core.checks import check_nonnegative, check_state, check_tensor
from scoresde._core.modules import FixedDtypeModule
from scoresde._core.random import normal_like
from scoresde._core.shapes import flatten
from scoresde.operators import LinearOperator


class Measurement(nn.Module, ABC):
    """A likelihood of clean data: define :meth:`log_prob`, and :meth:`rows` if it holds rows."""

    @property
    def batch(self) -> int:
        """How many measurements there are: one shared by all samples, or one per sample."""
        return 1

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(y|x_0 = x) ``(batch,)``, differentiable, for ``x`` ``(batch, *event)``."""

    def select(self, index: Tensor | slice) -> Measurement:
        """Return the measurements of a part of the batch."""
        return self

    def project(self, x: Tensor) -> Tensor:
        """Return the nearest to ``x`` that is possible at all, if not all is: shaped like ``x``."""
        return x

    def check_event(self, event_shape: Sequence[int]) -> None:
        """Refuse samples of a shape that can't have been measured."""

    def check_density(self) -> None:
        """Refuse a measurement that has no density."""


class LogLikelihood(Measurement):
    """Any differentiable log-likelihood, linear or not.

    Args:
        function: from clean data ``(batch, *event)`` to log p(y|x) ``(batch,)``, row by row, up to
            a constant.

    Example:
        >>> import torch
        >>> radius = LogLikelihood(lambda x: -50 * (x.norm(dim=1) - 1) ** 2)  # a ring
        >>> radius.log_prob(torch.tensor([[0.0, 1.0], [0.0, 2.0]]))
        tensor([ -0., -50.])
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        if not callable(function):
            raise TypeError(f"function: expected a callable, got {type(function).__name__}")
        self.function = function

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the function's value ``(batch,)``."""
        value = check_tensor("function", self.function(x))
        if value.shape != x.shape[:1]:
            raise ValueError(
                f"function: expected one log-likelihood per sample, shape ({x.shape[0]},), got "
                f"{tuple(value.shape)}; sum over all axes but the first"
            )
        return value


class GaussianMeasurement(FixedDtypeModule, Measurement):
    r"""y = F(x_0) + σ_y n: define :meth:`predict` and its derivative :meth:`linearised`.

        log p(y|x_0) = −‖y − F(x_0)‖²/(2σ_y²) − m log(σ_y √(2π)).

    Args:
        y: what was observed, ``(batch, *observed)``; a single row is shared by all samples.
        noise_std: σ_y >= 0, in the unit of ``y``.
    """

    y: Tensor

    def __init__(self, y: Tensor, noise_std: float) -> None:
        super().__init__()
        self.register_buffer("y", check_state("y", y).detach().clone())
        self.noise_std = check_nonnegative("noise_std", noise_std)

    @abstractmethod
    def predict(self, x: Tensor) -> Tensor:
        """Return F(x) ``(batch, *observed)`` for ``x`` ``(batch, *event)``."""

    @abstractmethod
    def linearised(self, x: Tensor) -> LinearOperator:
        """Return ∂F/∂x at ``x`` ``(batch, *event)``, each row's own."""

    @abstractmethod
    def with_y(self, y: Tensor) -> GaussianMeasurement:
        """Return the same measurement with other values."""

    @property
    def batch(self) -> int:
        """How many observations there are."""
        return self.y.shape[0]

    @property
    def variance(self) -> float:
        """σ_y²."""
        return self.noise_std**2

    @final
    def residual(self, x: Tensor) -> Tensor:
        """Return y − F(x) ``(batch, *observed)`` for ``x`` ``(batch, *event)``."""
        if self.batch not in (1, x.shape[0]):
            raise ValueError(
                f"y: expected 1 observation for all samples or {x.shape[0]}, one for each, got "
                f"{self.batch}; repeat them with y.repeat_interleave(samples, 0)"
            )
        return self.y.to(x) - self.predict(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(y|x_0 = x) in nats ``(batch,)``.

        Raises:
            ValueError: if σ_y = 0, where there is no density.
        """
        self.check_density()
        squares = flatten(self.residual(x)).square()
        constant = squares.shape[1] * math.log(self.noise_std * math.sqrt(2 * math.pi))
        return -0.5 * squares.sum(1) / self.variance - constant

    def select(self, index: Tensor | slice) -> GaussianMeasurement:
        """Return the observations of a part of the batch."""
        if self.batch == 1:
            return self
        return self.with_y(self.y[index.to(self.y.device) if isinstance(index, Tensor) else index])

    def check_density(self) -> None:
        """Refuse σ_y = 0, for what needs a density of y."""
        if self.noise_std == 0:
            raise ValueError(
                "noise_std: expected σ_y > 0, since this needs a density of y, got 0; give a small "
                "one, or take PiGDM, MMPS, DiffPIR or Imputation"
            )

    def extra_repr(self) -> str:
        """Show y and σ_y."""
        return f"y={tuple(self.y.shape)}, noise_std={self.noise_std:g}"


class Observation(GaussianMeasurement):
    r"""A linear observation with Gaussian noise, y = A x_0 + σ_y n.

        log p(y|x_0) = −‖y − A x_0‖²/(2σ_y²) − m log(σ_y √(2π)).

    Args:
        operator: A.
        y: what was observed, ``(batch, *observed)``; a single row is shared by all samples.
        noise_std: σ_y >= 0, in the unit of ``y``.

    Raises:
        TypeError: if ``operator`` is not a LinearOperator, or ``y`` not a floating-point tensor.
        ValueError: if ``y`` is not finite or σ_y negative; when used, if shapes do not fit.

    Example:
        >>> import torch
        >>> from scoresde.operators import AveragePool
        >>> seen = Observation(AveragePool(2), torch.zeros(1, 2, 2), noise_std=0.1)
        >>> seen.residual(torch.ones(5, 4, 4)).shape
        torch.Size([5, 2, 2])
    """

    def __init__(self, operator: LinearOperator, y: Tensor, noise_std: float = 0.0) -> None:
        if not isinstance(operator, LinearOperator):
            raise TypeError(
                f"operator: expected a LinearOperator such as Mask(mask), got {operator!r}; wrap a "
                "matrix as Matrix(a), a function as FunctionOperator(f, event_shape)"
            )
        super().__init__(y, noise_std)
        self.operator = operator

    @classmethod
    def draw(
        cls,
        operator: LinearOperator,
        x: Tensor,
        noise_std: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Observation:
        """Observe clean data ``x`` ``(batch, *event)``: y = A x + σ_y n with a fresh n.

        Example:
            >>> import torch
            >>> from scoresde.operators import Grayscale
            >>> Observation.draw(Grayscale(), torch.ones(2, 3, 4, 4)).y.shape
            torch.Size([2, 1, 4, 4])
        """
        y = operator(check_state("x", x))
        return cls(operator, y + noise_std * normal_like(y, generator), noise_std)

    def predict(self, x: Tensor) -> Tensor:
        """Return A x ``(batch, *observed)`` for ``x`` ``(batch, *event)``."""
        self.check_event(x.shape[1:])
        return self.operator(x)

    def linearised(self, x: Tensor) -> LinearOperator:
        """Return A, whatever ``x``."""
        return self.operator

    def with_y(self, y: Tensor) -> Observation:
        """Return another observation through the same operator."""
        return Observation(self.operator, y, self.noise_std)

    def project(self, x: Tensor) -> Tensor:
        """Return x + A⁺ (y − A x), the nearest to ``x`` that looks like y, if σ_y = 0; else x."""
        if self.noise_std > 0:
            return x
        return x + self.operator.pseudo_inverse(self.residual(x))

    def check_event(self, event_shape: Sequence[int]) -> None:
        """Refuse samples whose observation would not have the shape of y."""
        observed = self.operator.observed_shape(event_shape)
        if tuple(self.y.shape[1:]) != observed:
            raise ValueError(
                f"y: expected shape (batch, {', '.join(map(str, observed))}), what {self.operator} "
                f"makes of samples {tuple(event_shape)}, got {tuple(self.y.shape)}"
            )

    def check_noiseless(self) -> None:
        """Refuse σ_y > 0, for what reproduces y to the letter."""
        if self.noise_std != 0:
            raise ValueError(
                f"noise_std: expected 0, since this reproduces y to the letter, got "
                f"{self.noise_std:g}; take PiGDM, MMPS or DiffPIR"
            )


class NonlinearObservation(GaussianMeasurement):
    r"""An observation through any differentiable function, y = F(x_0) + σ_y n.

    Methods for linear observations take it as such near x̂: A is ∂F/∂x there, y − A x̂ is y − F(x̂).
    So their Kalman update is that of the extended Kalman filter, their step of least squares one of
    Gauss and Newton. Particles (:func:`twisted_smc`) correct for it.

    Args:
        function: F, from ``(batch, *event)`` to ``(batch, *observed)``, row by row; differentiable
            forwards and backwards by torch.func, so without changes in place.
        y: what was observed, ``(batch, *observed)``; a single row is shared by all samples.
        noise_std: σ_y >= 0, in the unit of ``y``.

    Raises:
        TypeError: if ``function`` can't be called, or ``y`` is not a floating-point tensor.
        ValueError: if ``y`` is not finite or σ_y negative; when used, if shapes do not fit.

    Example:
        >>> import torch
        >>> modulus = NonlinearObservation(lambda x: x.abs(), torch.ones(1, 2), noise_std=0.1)
        >>> modulus.residual(torch.tensor([[-1.0, 3.0]]))
        tensor([[ 0., -2.]])
        >>> modulus.linearised(torch.tensor([[-1.0, 3.0]]))(torch.ones(1, 2))
        tensor([[-1.,  1.]])

    References:
        Särkkä, *Bayesian filtering and smoothing*, 2013, algorithm 5.4.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], y: Tensor, noise_std: float = 0.0
    ) -> None:
        if not callable(function):
            raise TypeError(f"function: expected a callable, got {type(function).__name__}")
        super().__init__(y, noise_std)
        self.function = function

    def predict(self, x: Tensor) -> Tensor:
        """Return F(x) ``(batch, *observed)`` for ``x`` ``(batch, *event)``."""
        value = check_tensor("function", self.function(x))
        if value.shape != (expected := (x.shape[0], *self.y.shape[1:])):
            raise ValueError(
                f"function: expected values like y, shape {tuple(expected)} for {x.shape[0]} "
                f"samples, got {tuple(value.shape)}"
            )
        return value

    def linearised(self, x: Tensor) -> LinearOperator:
        """Return ∂F/∂x at ``x`` ``(batch, *event)``."""
        return _Tangent(self.predict, x, tuple(self.y.shape[1:]))

    def with_y(self, y: Tensor) -> NonlinearObservation:
        """Return another observation through the same function."""
        return NonlinearObservation(self.function, y, self.noise_std)


class _Tangent(LinearOperator):
    """The derivative of a function at a point, each row's own."""

    def __init__(
        self, function: Callable[[Tensor], Tensor], point: Tensor, observed: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.function, self.point, self.observed = function, point, observed

    def observed_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        return self.observed

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.jvp(self.function, (self.point,), (x,))[1]

    def adjoint(self, y: Tensor) -> Tensor:
        _, pull = torch.func.vjp(self.function, self.point)  # type: ignore[misc]
        return pull(y)[0]


def check_gaussian(measurement: Measurement) -> GaussianMeasurement:
    """Return what has Gaussian noise, and refuse what has not."""
    if not isinstance(measurement, GaussianMeasurement):
        raise TypeError(
            "observation: expected an Observation or a NonlinearObservation, of Gaussian noise, "
            f"got {measurement!r}; for other likelihoods take DPS"
        )
    return measurement


def check_observation(measurement: Measurement) -> Observation:
    """Return what is a linear observation, and refuse what is not."""
    if not isinstance(measurement, Observation):
        raise TypeError(
            f"observation: expected an Observation, which is linear, got {measurement!r}; for "
            "others take DPS, PiGDM, MMPS or DiffPIR"
        )
    return measurement
