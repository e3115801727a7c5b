r"""Measurements: the likelihood p(y|x_0) of an observation y.

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

from scoresde._core.checks import check_instance, check_nonnegative, check_state, check_tensor
from scoresde._core.modules import FixedDtypeModule
from scoresde._core.random import normal_like
from scoresde._core.shapes import flatten
from scoresde.operators import LinearOperator


class Measurement(nn.Module, ABC):
    """A likelihood p(y|x_0) of clean data: define :meth:`log_prob`.

    If it has one observation per sample, define :attr:`batch` and :meth:`select` as well.
    """

    @property
    def batch(self) -> int:
        """Number of observations: 1 is shared by all samples, otherwise one per sample."""
        return 1

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(y|x_0 = x) ``(batch,)``, differentiable, for ``x`` ``(batch, *event)``."""

    def select(self, index: Tensor | slice) -> Measurement:
        """Return the measurement of some rows of the batch.

        Args:
            index: integers ``(rows,)``, a mask, or a slice.
        """
        return self

    def project(self, x: Tensor) -> Tensor:
        """Return the data-consistency projection of ``x`` ``(batch, *event)``.

        That is the nearest point with p(y|x) > 0 if the measurement is noiseless, else ``x``.
        """
        return x

    def check_event(self, event_shape: Sequence[int]) -> None:
        """Check that samples of a shape can have been measured; ``ValueError`` otherwise."""

    def check_density(self) -> None:
        """Check that p(y|x_0) is a density; ``ValueError`` otherwise."""


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
        value = check_tensor("function", self.function(x))
        if value.shape != x.shape[:1]:
            raise ValueError(
                f"function: expected one log-likelihood per sample, shape ({x.shape[0]},), got "
                f"{tuple(value.shape)}; sum over all axes but the first"
            )
        return value


class GaussianMeasurement(FixedDtypeModule, Measurement):
    r"""y = F(x_0) + σ_y n: define :meth:`predict`, :meth:`linearize` and :meth:`with_y`.

    ::

        log p(y|x_0) = −‖y − F(x_0)‖²/(2σ_y²) − m log(σ_y √(2π)).

    Args:
        y: the observations ``(batch, *observed)``; a single row is shared by all samples.
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
    def linearize(self, x: Tensor) -> LinearOperator:
        """Return the Jacobian ∂F/∂x at ``x`` ``(batch, *event)``, row by row, as an operator."""

    @abstractmethod
    def with_y(self, y: Tensor) -> GaussianMeasurement:
        """Return the same measurement of other observations ``y``."""

    @property
    def batch(self) -> int:
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
        if self.batch == 1:
            return self
        return self.with_y(self.y[index.to(self.y.device) if isinstance(index, Tensor) else index])

    def check_density(self) -> None:
        if self.noise_std == 0:
            raise ValueError(
                "noise_std: expected σ_y > 0, since this needs a density of y, got 0; pass a small "
                "one, or use PiGDM, MMPS, DiffPIR or Imputation"
            )

    def extra_repr(self) -> str:
        return f"y={tuple(self.y.shape)}, noise_std={self.noise_std:g}"


class Observation(GaussianMeasurement):
    r"""A linear observation with Gaussian noise, y = A x_0 + σ_y n.

    ::

        log p(y|x_0) = −‖y − A x_0‖²/(2σ_y²) − m log(σ_y √(2π)).

    Args:
        operator: A.
        y: the observations ``(batch, *observed)``; a single row is shared by all samples.
        noise_std: σ_y >= 0, in the unit of ``y``.

    Raises:
        TypeError: if ``operator`` is not a LinearOperator, or ``y`` not a floating-point tensor.
        ValueError: if ``y`` is not finite or σ_y negative; when used, if shapes do not fit.

    Example:
        >>> import torch
        >>> from scoresde.operators import AveragePool
        >>> observation = Observation(AveragePool(2), torch.zeros(1, 2, 2), noise_std=0.1)
        >>> observation.residual(torch.ones(5, 4, 4)).shape
        torch.Size([5, 2, 2])
    """

    def __init__(self, operator: LinearOperator, y: Tensor, noise_std: float = 0.0) -> None:
        super().__init__(y, noise_std)
        self.operator = check_instance(
            "operator",
            operator,
            LinearOperator,
            "Mask(mask)",
            "wrap a matrix as Matrix(a), a function as FunctionOperator(f, event_shape)",
        )

    @classmethod
    def draw(
        cls,
        operator: LinearOperator,
        x: Tensor,
        noise_std: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Observation:
        """Simulate an observation of clean data: y = A x + σ_y n with a new n.

        Args:
            operator: A.
            x: clean data ``(batch, *event)``.
            noise_std: σ_y >= 0.
            generator: source of randomness; None for PyTorch's global one.

        Returns:
            The observation, of one row per sample.

        Example:
            >>> import torch
            >>> from scoresde.operators import Grayscale
            >>> Observation.draw(Grayscale(), torch.ones(2, 3, 4, 4)).y.shape
            torch.Size([2, 1, 4, 4])
        """
        y = operator(check_state("x", x))
        return cls(operator, y + noise_std * normal_like(y, generator), noise_std)

    def predict(self, x: Tensor) -> Tensor:
        self.check_event(x.shape[1:])
        y: Tensor = self.operator(x)
        return y

    def linearize(self, x: Tensor) -> LinearOperator:
        return self.operator

    def with_y(self, y: Tensor) -> Observation:
        return Observation(self.operator, y, self.noise_std)

    def project(self, x: Tensor) -> Tensor:
        """Return x + A⁺ (y − A x), which satisfies A x = y, if σ_y = 0; else ``x``."""
        if self.noise_std > 0:
            return x
        return x + self.operator.pseudo_inverse(self.residual(x))

    def check_event(self, event_shape: Sequence[int]) -> None:
        observed = self.operator.observed_shape(event_shape)
        if tuple(self.y.shape[1:]) != observed:
            raise ValueError(
                f"y: expected shape (batch, {', '.join(map(str, observed))}), that of "
                f"{self.operator} for samples {tuple(event_shape)}, got {tuple(self.y.shape)}"
            )

    def check_noiseless(self) -> None:
        """Check that σ_y = 0; ``ValueError`` otherwise."""
        if self.noise_std != 0:
            raise ValueError(
                f"noise_std: expected 0, since samples will satisfy A x = y exactly, got "
                f"{self.noise_std:g}; use PiGDM, MMPS or DiffPIR"
            )


class NonlinearObservation(GaussianMeasurement):
    r"""An observation through any differentiable function, y = F(x_0) + σ_y n.

    Methods for linear observations linearize it at x̂: A is ∂F/∂x there, y − A x̂ is y − F(x̂). Their
    Kalman update is then that of the extended Kalman filter, their least-squares step a
    Gauss–Newton step. Particles (:func:`twisted_smc`) correct for the linearization error.

    Args:
        function: F, from ``(batch, *event)`` to ``(batch, *observed)``, row by row; differentiable
            by torch.func in forward and reverse mode, so without in-place operations.
        y: the observations ``(batch, *observed)``; a single row is shared by all samples.
        noise_std: σ_y >= 0, in the unit of ``y``.

    Raises:
        TypeError: if ``function`` is not callable, or ``y`` is not a floating-point tensor.
        ValueError: if ``y`` is not finite or σ_y negative; when used, if shapes do not fit.

    Example:
        >>> import torch
        >>> modulus = NonlinearObservation(lambda x: x.abs(), torch.ones(1, 2), noise_std=0.1)
        >>> modulus.residual(torch.tensor([[-1.0, 3.0]]))
        tensor([[ 0., -2.]])
        >>> modulus.linearize(torch.tensor([[-1.0, 3.0]]))(torch.ones(1, 2))
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
        value = check_tensor("function", self.function(x))
        if value.shape != (expected := (x.shape[0], *self.y.shape[1:])):
            raise ValueError(
                f"function: expected values like y, shape {tuple(expected)} for {x.shape[0]} "
                f"samples, got {tuple(value.shape)}"
            )
        return value

    def linearize(self, x: Tensor) -> LinearOperator:
        return _Jacobian(self.predict, x, tuple(self.y.shape[1:]))

    def with_y(self, y: Tensor) -> NonlinearObservation:
        return NonlinearObservation(self.function, y, self.noise_std)


class _Jacobian(LinearOperator):
    """The Jacobian of a function at a batch of points, row by row."""

    def __init__(
        self, function: Callable[[Tensor], Tensor], point: Tensor, observed: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.function, self.point, self.observed = function, point, observed

    def observed_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        return self.observed

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = torch.func.jvp(self.function, (self.point,), (x,))[1]
        return product

    def adjoint(self, y: Tensor) -> Tensor:
        _, vjp = torch.func.vjp(self.function, self.point)  # type: ignore[misc]
        gradient: Tensor = vjp(y)[0]
        return gradient


def check_measurement(measurement: object) -> Measurement:
    """Return the value, if it is a Measurement; ``TypeError`` otherwise."""
    return check_instance(
        "measurement",
        measurement,
        Measurement,
        "Observation(operator, y, noise_std)",
        "pass an Observation, a NonlinearObservation or a LogLikelihood",
    )


def check_gaussian_measurement(measurement: object) -> GaussianMeasurement:
    """Return the value, if it is a measurement with Gaussian noise; ``TypeError`` otherwise."""
    return check_instance(
        "observation",
        measurement,
        GaussianMeasurement,
        "Observation(operator, y, noise_std)",
        "for other likelihoods use DPS",
    )


def check_observation(observation: object) -> Observation:
    """Return the value, if it is a linear observation; ``TypeError`` otherwise."""
    return check_instance(
        "observation",
        observation,
        Observation,
        "Observation(operator, y, noise_std)",
        "this method needs one that is linear; for others use DPS, PiGDM, MMPS or DiffPIR",
    )
