"""A score as a ``torch.distributions.Distribution``: log_prob and sample of the same density.

The probability flow maps the distribution at T to a density at t_min: ``log_prob`` integrates it
from data to noise, ``sample`` from noise to data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from scoresde._core.checks import (
    check_floating,
    check_instance,
    check_integers,
    check_positive,
)
from scoresde._core.modules import evaluation_mode
from scoresde._core.random import normal, temporarily_seeded
from scoresde.flow.probability_flow import probability_flow
from scoresde.likelihood.base import Likelihood, Method
from scoresde.likelihood.log_likelihood import log_likelihood
from scoresde.scores import Score
from scoresde.solvers import Adams, Solver
from scoresde.traces import Trace

Draw = Callable[..., Tensor]
"""Called as ``draw(score, (n, *event), generator=generator)``; returns samples of that shape."""

_DRAW_TOLERANCE = 1e-4
"""Tolerance of each step of the flow in sampling, relative to 1 + |z|, z of unit variance."""


class ScoreDistribution(Distribution):
    r"""The distribution of a score, as a ``torch.distributions.Distribution``.

    The settings of :func:`log_likelihood` are given once, to the constructor, so that any code for
    distributions can call ``log_prob(value)`` and ``sample(shape)``. With ``generator``, here or in
    a call, PyTorch's global state does not change; that of a call takes precedence. ``rsample``
    returns samples with gradients with respect to the parameters of the score and of ``prior``;
    for ``log_prob`` see ``differentiable``.

    Args:
        score: the score.
        event_shape: shape of one sample.
        sampler: the sampling function, called as ``sampler(score, (n, *event),
            generator=generator)``, such as ``functools.partial(sample, sampler=Ancestral())``; None
            for the probability flow, whose samples have exactly the density of ``log_prob``.
        method: the estimator of the density (see :func:`log_likelihood` for this and all that
            follows).
        trace: the divergence estimator.
        solver: the integrator of the flow.
        tolerance: target error of log_prob in bits per dimension.
        prior: the distribution at T.
        t_min: the time at which points are taken as samples.
        batch_size: number of points integrated together.
        differentiable: whether log_prob has gradients; None where ``value`` requires one.
        generator: source of all randomness; None for PyTorch's global one.
        dtype: of the samples; PyTorch's default if None.
        validate_args: whether values are checked, as everywhere in ``torch.distributions``.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a value is not a real point of the event's shape, or a number is out of
            range.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> score = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I)
        >>> p = ScoreDistribution(score, (2,), generator=torch.Generator().manual_seed(0))
        >>> x = p.sample((4, 5))
        >>> x.shape, p.log_prob(x).shape
        (torch.Size([4, 5, 2]), torch.Size([4, 5]))
        >>> p.log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    has_rsample = True

    def __init__(
        self,
        score: Score,
        event_shape: Sequence[int],
        sampler: Draw | None = None,
        *,
        method: Method | None = None,
        trace: Trace | None = None,
        solver: Solver | None = None,
        tolerance: float = 1e-3,
        prior: Distribution | None = None,
        t_min: float | None = None,
        batch_size: int | None = None,
        differentiable: bool | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        validate_args: bool | None = None,
    ) -> None:
        hint = "wrap a network in ScoreModel(network, sde), a function in FunctionScore(f, sde)"
        check_instance("score", score, Score, "ScoreModel(network, sde)", hint)
        if sampler is not None and not callable(sampler):
            raise TypeError(
                "sampler: expected None or a function (score, shape, generator=…), got "
                f"{sampler!r}; for a Sampler pass functools.partial(sample, sampler=…)"
            )
        check_positive("tolerance", tolerance)
        self.score = score
        self.sampler = sampler
        self.method = method
        self.trace = trace
        self.solver = solver
        self.tolerance = tolerance
        self.prior = prior
        self.t_min = t_min
        self.batch_size = batch_size
        self.differentiable = differentiable
        self.generator = generator
        self.dtype = dtype
        event = torch.Size(check_integers("event_shape", event_shape, minimum=1))
        super().__init__(torch.Size(), event, validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """No constraints on parameters."""
        return {}

    @property
    def support(self) -> constraints.Constraint:
        """All of R^event."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(
        self, batch_shape: Sequence[int], _instance: ScoreDistribution | None = None
    ) -> ScoreDistribution:
        """Return ``batch_shape`` independent copies of this distribution."""
        new = cast(ScoreDistribution, self._get_checked_instance(ScoreDistribution, _instance))
        new.__dict__.update(self.__dict__, _batch_shape=torch.Size(batch_shape))
        return new

    def likelihood(self, value: Tensor, generator: torch.Generator | None = None) -> Likelihood:
        """Return log p of points ``(batch, *event)`` with its error budget.

        Args:
            value: the points.
            generator: source of the probes; None for that of the distribution.

        Returns:
            The result of :func:`log_likelihood`.
        """
        return log_likelihood(
            self.score,
            value,
            trace=self.trace,
            method=self.method,
            solver=self.solver,
            tolerance=self.tolerance,
            generator=self._source(generator),
            batch_size=self.batch_size,
            prior=self.prior,
            t_min=self.t_min,
            differentiable=self.differentiable,
        )

    def log_prob(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return log p in nats.

        Args:
            value: points ``(…, *event)``, to be broadcast with the batch shape.
            generator: source of the probes; None for that of the distribution.

        Returns:
            The log-densities ``(…)``.
        """
        check_floating("value", value)
        if self._validate_args:
            self._validate_sample(value)
        value = value.expand(torch.broadcast_shapes(value.shape, self._extended_shape()))
        lead = value.shape[: value.ndim - len(self.event_shape)]
        points = value.reshape(lead.numel(), *self.event_shape)
        return self.likelihood(points, generator).log_prob.reshape(lead)

    @torch.no_grad()
    def sample(
        self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw samples.

        Args:
            sample_shape: number of samples, as a shape.
            generator: source of randomness; None for that of the distribution.

        Returns:
            Points ``(*sample_shape, *batch_shape, *event)``.
        """
        draw = self._sample_flow if self.sampler is None else self.sampler
        return self._draw(draw, sample_shape, generator)

    def rsample(
        self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw samples of the flow as differentiable functions of the parameters.

        The gradient is that of the flow's map at a fixed sample of the distribution at T; for its
        memory see ``differentiable`` in :func:`log_likelihood`.

        Args:
            sample_shape: number of samples, as a shape.
            generator: source of randomness; None for that of the distribution.

        Returns:
            Points ``(*sample_shape, *batch_shape, *event)``, the same as those of :meth:`sample`.

        Raises:
            NotImplementedError: if the distribution has another sampler, or a solver without
                gradients.
        """
        if self.sampler is not None or not self._solver.differentiable:
            raise NotImplementedError(
                "rsample: expected the probability flow and a solver with gradients, "
                f"got sampler={self.sampler!r}, solver={self._solver!r}; use sample()"
            )
        return self._draw(self._sample_flow, sample_shape, generator)

    def _draw(
        self, draw: Draw, sample_shape: Sequence[int], generator: torch.Generator | None
    ) -> Tensor:
        """Return the samples of ``draw`` in the shape and dtype of the distribution."""
        shape = self._extended_shape(torch.Size(sample_shape))
        count = shape[: len(shape) - len(self.event_shape)].numel()
        if not count:
            return torch.zeros(shape, dtype=self.dtype)
        x = draw(self.score, (count, *self.event_shape), generator=self._source(generator))
        return x.reshape(shape).to(self.dtype or torch.get_default_dtype())

    @property
    def _solver(self) -> Solver:
        return Adams() if self.solver is None else self.solver

    def _source(self, generator: torch.Generator | None) -> torch.Generator | None:
        return self.generator if generator is None else generator

    def _sample_flow(
        self, score: Score, shape: tuple[int, ...], *, generator: torch.Generator | None
    ) -> Tensor:
        """Draw from the distribution at T of log_prob, and integrate the flow to t_min."""
        flow = probability_flow(score, self.event_shape, self.t_min)
        device = score.moments.mean.device

        if self.prior is None and score.moments.known:
            z = normal(
                (shape[0], flow.dimension), generator=generator, dtype=torch.float64, device=device
            )
        else:
            prior = self.prior or score.sde.prior(self.event_shape, dtype=torch.float64)
            with temporarily_seeded(generator):
                draw = prior.rsample if prior.has_rsample else prior.sample
                latent = draw(torch.Size(shape[:1])).to(device)
            z = flow.encode(latent, flow.end)
        with evaluation_mode(score):
            solution = self._solver.solve(
                flow.rhs(), z, flow.end, flow.start, tolerance=_DRAW_TOLERANCE
            )
        return flow.decode(solution.state, flow.start)

    def __repr__(self) -> str:
        """Return the shapes and the diffusion."""
        return (
            f"ScoreDistribution(event_shape={tuple(self.event_shape)}, "
            f"batch_shape={tuple(self.batch_shape)}, sde={self.score.sde!r})"
        )
