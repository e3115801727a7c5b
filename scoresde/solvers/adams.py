r"""An adaptive exponential Adams–Bashforth–Moulton method with step sizes and orders per sample.

Every sample has its own time, step size h, order and history of k slopes. A step computes ::

    predictor    p = z + ∫ P_k,           P_k through the last k slopes (Adams–Bashforth),
    evaluation   v, q at (τ_n + h, p),
    corrector    z⁺ = z + ∫ P⁺_{k+1},     P⁺ through these and the new slope (Adams–Moulton),

and integrates q with the weights of the corrector. The defect e = z⁺ − p controls the step size;
for an exact integrand, so does the difference between its integrals of two orders.

A step uses the local coordinates ζ of its first point, in which a model of the flow is constant
(:mod:`scoresde.solvers.local_linearization`). It solves ζ′ = λ (ζ − ζ_n) + P(τ) exactly, where P
interpolates ζ′ − λ (ζ − ζ_n): an exponential Adams method. The order does not depend on the
coordinates or on λ. An accurate model leaves a small remainder and removes the stiffness that
restricts the steps of explicit methods, as at points off the data. If the coordinates include the
Jacobian, the new slope is moved from p to z⁺ to first order, which replaces the second evaluation
of a PECE scheme.

The integral of q differs from the change of log p along a path that is not exactly a solution. The
difference is the integral of a = ∇ log p along path − flow, which summation by parts transforms::

    Σ ½(a + a′)·(e′ − e)  =  a_N·e_N − Σ ½(a′ − a)·(e′ + e).

The terms on the right do not grow with the norm of a, which an imperfect score overestimates near
the data. These terms and the quadrature errors of q constitute the error estimate. Their signs
vary, so their squares are added. A stochastic integrand is excluded from step-size control and from
the error estimate, because its integrals of two orders differ by noise.

Gradients pass through states and integrals, not through step sizes or error estimates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from scoresde._core.checks import check_integer
from scoresde.solvers.base import Field, FieldEvaluation, Solution, Solver, Status
from scoresde.solvers.local_linearization import LocalCoordinates

_SAFETY = 0.8
_MIN_FACTOR, _MAX_FACTOR = 0.3, 2.0
_MIN_FACTOR_AFTER_REJECTION = 0.1
_TEST_STEP, _MAX_FIRST_STEP = 1e-4, 0.03
"""Lengths of the test step and of the longest first step, as fractions of the interval."""

_SERIES_RADIUS, _SERIES_TERMS = 2.0, 24
_ERROR_FACTOR = 5.0
"""Factor between the root of the sum of squares of the steps' error estimates and the result's."""
_PATH_ERROR_FACTOR = 12.0
"""Largest path error of a step, in units of its largest quadrature error. It exceeds 1 because
∇ log p is evaluated off the path, and is large at the first steps from points off the data."""


@dataclass
class AdamsState:
    """The samples whose integration is not finished, one row each."""

    rows: Tensor  # (m,) index in the batch
    tau: Tensor
    step: Tensor
    z: Tensor  # (m, d)
    integral: Tensor
    variance: Tensor  # of the integral, from nodes that are no longer in the history
    squared_variances: Tensor  # sum of squares of these nodes' contributions to it
    degrees_of_freedom: Tensor  # (m,) of each node's variance
    defect: Tensor  # (m, d) e of the last step
    gradient: Tensor  # (m, d) ∇ log p at the last node
    squared_error: Tensor  # sum of squares of the steps' estimated errors of log p
    order: Tensor  # (m,) number of slopes in the history
    rejected_step: Tensor  # |h| of the last rejected step from this τ, 0 if none was
    rejected_error: Tensor  # its error over the tolerance
    evaluations: Tensor
    nodes: Tensor  # (m, K) τ of the history, latest first
    states: Tensor  # (m, K, d) z at which the slopes were evaluated
    slopes: Tensor  # (m, K, d)
    rates: Tensor  # (m, K) mean estimate of q
    rate_variances: Tensor  # (m, K) variance of that mean
    weights: Tensor  # (m, K) weight of each node in the integral so far
    local: LocalCoordinates  # of the latest node

    def map(self, function: Callable[..., Tensor], *others: AdamsState) -> AdamsState:
        """Apply a function of tensors with a row per sample to each field."""
        states = (self, *others)
        local = self.local.map(function, *(state.local for state in others))
        tensors = {name: function(*(getattr(s, name) for s in states)) for name in _TENSORS}
        return replace(self, local=local, **tensors)


_TENSORS = tuple(f.name for f in fields(AdamsState) if f.name != "local")


@dataclass(frozen=True)
class Adams(Solver):
    r"""The adaptive Adams predictor–corrector method (PEC), one evaluation per step.

    Args:
        order: largest number of past slopes that the predictor interpolates, 1 to 8; the method
            converges with order + 1.
        max_evaluations: evaluations after which a sample stops at its last accepted step; at least
            3, for the initial slope, the test step and the first step.

    Raises:
        ValueError: if a number is out of range.

    References:
        Hairer, Nørsett & Wanner, *Solving ordinary differential equations I*, 1993, sections III.1
        and III.5 (variable steps); Hochbruck & Ostermann, *Exponential multistep methods of
        Adams-type*, BIT 51, 2011, section 3.
    """

    order: int = 5
    max_evaluations: int = 2000
    fresh = True
    differentiable = True
    local_coordinates = True

    def __post_init__(self) -> None:
        check_integer("order", self.order, minimum=1)
        check_integer("max_evaluations", self.max_evaluations, minimum=3)
        if self.order > 8:
            raise ValueError(f"order: expected at most 8, got {self.order}")

    @property
    def convergence_order(self) -> float:
        """``order`` + 1, because the corrector also uses the new slope."""
        return self.order + 1.0

    def solve(
        self,
        field: Field,
        z: Tensor,
        start: float,
        end: float,
        *,
        tolerance: float,
        noisy: bool = False,
    ) -> Solution:
        state = self._initial_state(field, z, start)
        results = Results(z)
        if start == end:
            results.record(state, torch.full_like(state.rows, int(Status.CONVERGED)))
            return results.solution()
        state = self._choose_first_step(field, state, end - start, tolerance, noisy)
        eps = torch.finfo(z.dtype).eps
        min_step = max(1e-12 * abs(end - start), 64 * eps * max(abs(start), abs(end)))
        while len(state.rows):
            remaining = end - state.tau
            step = torch.where(state.step.abs() < remaining.abs(), state.step, remaining)
            trial, error = self._try_step(field, state, step, tolerance, noisy)
            accepted, factor = error <= 1, _step_factor(state, step, error)
            at_end = accepted & (step == remaining)
            next_step = step * factor
            too_small = ~at_end & (next_step.abs() < min_step)
            exhausted = ~at_end & ~too_small & (trial.evaluations >= self.max_evaluations)
            finished = at_end | too_small | exhausted
            all_accepted, any_finished = torch.stack([accepted.all(), finished.any()]).tolist()
            if not all_accepted:
                rejected = replace(
                    state,
                    evaluations=trial.evaluations,
                    rejected_step=step.abs(),
                    rejected_error=error,
                )
                trial = _where(accepted, trial, rejected)
            state = trial
            state.tau = torch.where(at_end, end, state.tau)
            state.step = next_step
            if any_finished:
                status = torch.full_like(state.rows, int(Status.CONVERGED))
                status = torch.where(exhausted, int(Status.MAX_EVALUATIONS), status)
                status = torch.where(too_small, int(Status.STEP_TOO_SMALL), status)
                status = torch.where(too_small & error.isinf(), int(Status.NOT_FINITE), status)
                results.record(_select(state, finished), status[finished])
                state = _select(state, ~finished)
        return results.solution()

    def _initial_state(self, field: Field, z: Tensor, start: float) -> AdamsState:
        """Evaluate the field at the start."""
        n, K = len(z), max(self.order, 2)
        rows = torch.arange(n, device=z.device)
        zero = z.new_zeros(n)
        tau = torch.full_like(zero, start)
        counts = torch.zeros_like(rows)
        v, q, a, local = FieldEvaluation(*field(tau, z, rows, counts))
        mean, variance = _mean_and_variance(q)

        def history(value: Tensor) -> Tensor:  # one node is used; the copies fill the array
            return value.unsqueeze(1).expand(n, K, *value.shape[1:])

        return AdamsState(
            rows=rows,
            tau=tau,
            step=zero,
            z=z,
            integral=zero,
            variance=zero,
            squared_variances=zero,
            degrees_of_freedom=torch.full_like(zero, max(q.shape[1] - 1, 1)),
            defect=torch.zeros_like(z),
            gradient=torch.zeros_like(z) if a is None else a.detach(),
            squared_error=zero,
            order=torch.ones_like(rows),
            rejected_step=zero,
            rejected_error=zero,
            evaluations=counts + 1,
            nodes=history(tau),
            states=history(z),
            slopes=history(v),
            rates=history(mean),
            rate_variances=history(variance),
            weights=z.new_zeros(n, K),
            local=local,
        )

    def _choose_first_step(
        self, field: Field, state: AdamsState, length: float, tolerance: float, noisy: bool
    ) -> AdamsState:
        """Choose the first step by the error, of order 2, of a short test step, then discarded."""
        step = torch.full_like(state.tau, _TEST_STEP * length)
        trial, error = self._try_step(field, state, step, tolerance, noisy)
        factor = torch.sqrt(_SAFETY**2 / error.detach().clamp(min=1e-300))
        factor = factor.clamp(1e-3, _MAX_FIRST_STEP / _TEST_STEP)
        return replace(state, step=step * factor, evaluations=trial.evaluations)

    def _try_step(
        self, field: Field, state: AdamsState, step: Tensor, tolerance: float, noisy: bool
    ) -> tuple[AdamsState, Tensor]:
        """Return the state after a step, and the error of that step over the tolerance."""
        trial = TrialStep(state, step)
        p = trial.predict()
        v, q, a, local = FieldEvaluation(*field(trial.tau, p, state.rows, state.evaluations))
        mean, variance = _mean_and_variance(q)
        if noisy and q.shape[1] == 1:
            variance = _residual_variance(state, trial.tau, mean).detach()
        z, change, quadrature_error, weights = trial.correct(p, v, mean, exact=not noisy)
        defect = (z - p).detach()
        d = state.z.shape[1]
        error = _rms(defect / (1 + torch.maximum(state.z.abs(), z.abs()).detach())) / tolerance
        error = torch.maximum(error, quadrature_error.abs() / (d * tolerance))
        gradient = torch.zeros_like(z) if a is None else a.detach()
        gradient_change = gradient - state.gradient
        path_error = 0.5 * (gradient_change * (defect + state.defect)).sum(1)
        if q.shape[1]:  # without the previous defect, which the size of this step does not affect
            own_path_error = (gradient_change * defect).sum(1).nan_to_num(0.0, 0.0, 0.0).abs()
            error = torch.maximum(error, own_path_error / (_PATH_ERROR_FACTOR * d * tolerance))
        finite = error.isfinite() & z.isfinite().all(1) & mean.isfinite()
        error = torch.where(finite, error, torch.inf)
        weights = weights + torch.nn.functional.pad(state.weights, (1, 0))
        shifted_state, shifted_slope = local.relocate(trial.tau, p, v, z)
        contribution = weights[:, -1] ** 2 * state.rate_variances[:, -1]  # the oldest node leaves
        after = AdamsState(
            rows=state.rows,
            tau=trial.tau,
            step=step,
            z=z,
            integral=state.integral + change,
            variance=state.variance + contribution,
            squared_variances=state.squared_variances + contribution**2,
            degrees_of_freedom=state.degrees_of_freedom,
            defect=defect,
            gradient=gradient,
            squared_error=state.squared_error
            + quadrature_error**2
            + path_error.nan_to_num(torch.inf) ** 2,
            order=(state.order + 1).clamp(max=self.order),
            rejected_step=torch.zeros_like(state.rejected_step),
            rejected_error=torch.zeros_like(state.rejected_error),
            evaluations=state.evaluations + 1,
            nodes=_prepend(state.nodes, trial.tau),
            states=_prepend(state.states, shifted_state),
            slopes=_prepend(state.slopes, shifted_slope),
            rates=_prepend(state.rates, mean),
            rate_variances=_prepend(state.rate_variances, variance),
            weights=weights[:, :-1],
            local=local,
        )
        return after, error


class TrialStep:
    """A step of every sample in the local coordinates of its first point.

    Args:
        state: the samples before the step.
        step: h ``(m,)``.

    Attributes:
        tau: τ at the end of the step ``(m,)``.
    """

    def __init__(self, state: AdamsState, step: Tensor) -> None:
        self._state, self._step = state, step
        self.tau = state.tau + step
        h = step.unsqueeze(1)
        self._past = (state.nodes - state.tau.unsqueeze(1)) / h
        point = (state.tau, state.z, torch.zeros_like(state.z), torch.zeros_like(state.tau))
        self._start, *_ = state.local.to_local(*(value.unsqueeze(1) for value in point))
        self._history = state.local.to_local(state.nodes, state.states, state.slopes, state.rates)
        self._phi = _phi_moments(h, state.local.values, self._past.shape[1] + 1)

    def predict(self) -> Tensor:
        """Return z at the end from the slopes of the history (Adams–Bashforth)."""
        states, slopes, _ = self._history
        return self._advance(_interpolation_matrix(self._past, self._state.order), states, slopes)

    def correct(
        self, p: Tensor, v: Tensor, q: Tensor, exact: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Include the evaluation at the end (Adams–Moulton).

        Args:
            p: the predicted state ``(m, d)``.
            v: the velocity there ``(m, d)``.
            q: the integrand there ``(m,)``.
            exact: whether q is without noise, so that its quadrature error can be estimated.

        Returns:
            z at the end; the increase of the integral; its quadrature error, estimated by the
            difference to the integral of one order less (0 unless ``exact``); and the weights
            ``(m, K + 1)`` of the nodes in the integral, that of the end first.
        """
        order, local = self._state.order, self._state.local
        end = local.to_local(*(value.unsqueeze(1) for value in (self.tau, p, v, q)))
        joined = (torch.cat(pair, dim=1) for pair in zip(end, self._history, strict=True))
        states, slopes, rates = joined
        nodes = torch.cat([torch.ones_like(self._past[:, :1]), self._past], dim=1)
        matrix = _interpolation_matrix(nodes, order + 1)
        weights = self._step.unsqueeze(1) * _quadrature_weights(matrix)
        lower = weights
        if exact:
            lower = _quadrature_weights(_interpolation_matrix(nodes, order))
            lower = self._step.unsqueeze(1) * lower
        log_volume_change = local.log_volume(self.tau) - local.log_volume(self._state.tau)
        return (
            self._advance(matrix, states, slopes),
            (weights * rates).sum(1) + log_volume_change,
            ((weights - lower) * rates.detach()).sum(1),
            weights,
        )

    def _advance(self, matrix: Tensor, states: Tensor, slopes: Tensor) -> Tensor:
        """Solve ζ′ = λ (ζ − ζ_n) + P(τ), P through ζ′_j − λ (ζ_j − ζ_n); return z at the end."""
        local = self._state.local
        if local.values is not None:
            slopes = slopes - local.values.unsqueeze(1) * (states - self._start)
        coefficients = torch.einsum("mij,mjd->mid", matrix, slopes)
        mean_slope = (self._phi[:, : matrix.shape[1]] * coefficients).sum(1)
        return local.from_local(self.tau, self._start[:, 0] + self._step.unsqueeze(1) * mean_slope)


class Results:
    """The results of finished samples, in the order of the batch.

    Args:
        z: initial states ``(batch, d)``.
    """

    def __init__(self, z: Tensor) -> None:
        n = len(z)
        self._state = z
        self._columns = z.new_zeros(n, 4)
        self._counts = torch.zeros(n, 2, dtype=torch.int64, device=z.device)

    def record(self, state: AdamsState, status: Tensor) -> None:
        """Store the results of samples with their :class:`~scoresde.solvers.Status` codes."""
        contributions = state.weights**2 * state.rate_variances
        standard_error = _standard_error(
            state.variance + contributions.sum(1),
            state.squared_variances + contributions.square().sum(1),
            state.degrees_of_freedom,
        )
        boundary_term = (state.gradient * state.defect).sum(1).nan_to_num(torch.inf)
        error = _ERROR_FACTOR * (state.squared_error + boundary_term**2).sqrt()
        columns = torch.stack([state.integral, standard_error, error, state.tau], dim=1)
        self._state = self._state.index_copy(0, state.rows, state.z)
        self._columns = self._columns.index_copy(0, state.rows, columns)
        counts = torch.stack([state.evaluations, status], dim=1)
        self._counts = self._counts.index_copy(0, state.rows, counts)

    def solution(self) -> Solution:
        """Return the results of the batch."""
        return Solution(self._state, *self._columns.unbind(1), *self._counts.unbind(1))


def _step_factor(state: AdamsState, step: Tensor, error: Tensor) -> Tensor:
    """Return the ratio of the next step size to this one from the order of the error.

    After two rejections at one τ, the order observed from their errors replaces a larger nominal
    one, which overestimates it where the solution changes faster than the history shows. A step
    that follows a rejection is not enlarged.
    """
    order = (state.order + 1).to(error.dtype)
    after_rejection = state.rejected_step > 0
    smaller = (error > 1) & (error < state.rejected_error) & state.rejected_error.isfinite()
    rejected_again = after_rejection & smaller
    ratio = torch.where(rejected_again, state.rejected_step / step.abs(), 2.0)
    observed = torch.log(state.rejected_error / error) / torch.log(ratio)
    order = torch.where(rejected_again, observed.clamp(min=1.0).minimum(order), order)
    factor = _SAFETY * error.clamp(min=1e-10) ** (-1 / order)
    smallest = torch.where(rejected_again, _MIN_FACTOR_AFTER_REJECTION, _MIN_FACTOR)
    return factor.clamp(smallest, torch.where(after_rejection, 1.0, _MAX_FACTOR))


def _interpolation_matrix(nodes: Tensor, count: Tensor) -> Tensor:
    """Matrix ``(m, n, n)`` from values at the first ``count`` nodes to coefficients of x^i."""
    n = nodes.shape[1]
    power = torch.arange(n, device=nodes.device)
    used = power < count.unsqueeze(1)
    square = used.unsqueeze(2) & used.unsqueeze(1)
    vandermonde = nodes.unsqueeze(2) ** power.to(nodes.dtype)
    identity = torch.eye(n, dtype=nodes.dtype, device=nodes.device)
    inverse = torch.linalg.inv_ex(torch.where(square, vandermonde, identity)).inverse
    return torch.where(square, inverse, 0.0)


def _quadrature_weights(matrix: Tensor) -> Tensor:
    """Weights ``(m, n)`` of ∫₀¹ of the interpolating polynomial."""
    power = torch.arange(matrix.shape[1], device=matrix.device)
    return (matrix / (power + 1.0).unsqueeze(1)).sum(1)


def _phi_moments(h: Tensor, values: Tensor | None, n: int) -> Tensor:
    """Return i! φ_{i+1}(x) = ∫₀¹ e^{(1−s)x} s^i ds at x = hλ for i < n, stacked in dimension 1.

    The recurrence i ψ_{i−1} = x ψ_i + 1 is stable downwards for small x, starting from the Taylor
    series of the last, and upwards for large x.

    Args:
        h: step sizes ``(m, 1)``.
        values: λ ``(m, d)``; None for zero.
        n: number of moments.

    Returns:
        The moments ``(m, n, d)``, or 1/(i + 1) ``(1, n, 1)`` for λ = 0.
    """
    if values is None:
        return 1 / torch.arange(1, n + 1, dtype=h.dtype, device=h.device).reshape(1, n, 1)
    x = h * values
    small = torch.where(x.abs() < _SERIES_RADIUS, x, 0.0)
    large = torch.where(x.abs() < _SERIES_RADIUS, 1.0, x)
    tail = torch.zeros_like(x)
    for k in range(n + _SERIES_TERMS, n, -1):
        tail = (1 + small * tail) / k
    down, up = [(1 + small * tail) / n], [torch.expm1(large) / large]
    for i in range(1, n):
        down.insert(0, (1 + small * down[0]) / (n - i))
        up.append((i * up[-1] - 1) / large)
    near = (x.abs() < _SERIES_RADIUS).unsqueeze(1)
    return torch.where(near, torch.stack(down, dim=1), torch.stack(up, dim=1))


def _mean_and_variance(q: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the estimates ``(m, k)`` and the variance of that mean (0 for a single one)."""
    k = q.shape[1]
    if k == 0:
        return q.new_zeros(len(q)), q.new_zeros(len(q))
    mean = q.mean(1)
    return mean, q.detach().var(1) / k if k > 1 else torch.zeros_like(mean)


def _standard_error(
    variance: Tensor, squared_variances: Tensor, degrees_of_freedom: Tensor
) -> Tensor:
    """Return a standard error such that two of them cover as much as two known normal ones.

    The variance is itself estimated, from few nodes with few probes each. With ν degrees of freedom
    Student's t distribution has wider tails than the normal one. By Satterthwaite's approximation,
    1/ν = Σ s²/(n + 2) over (Σ s)² for contributions s of nodes with n degrees of freedom, and the
    normal quantile at 2 grows by the factor 1 + 5/(4ν) + 49/(32ν²) (Fisher's expansion).
    """
    inverse = squared_variances / (degrees_of_freedom + 2) / variance.square().clamp(min=1e-300)
    return variance.sqrt() * (1 + 1.25 * inverse + 1.53125 * inverse**2)


def _residual_variance(state: AdamsState, tau: Tensor, rate: Tensor) -> Tensor:
    """Variance of a single estimate of q, from its distance to the line through the last two."""
    (t1, t2), (q1, q2) = state.nodes[:, :2].unbind(1), state.rates[:, :2].unbind(1)
    slope_known = state.order > 1
    position = torch.where(slope_known, (tau - t1) / (t1 - t2), 0.0)
    residual = rate - q1 - position * torch.where(slope_known, q1 - q2, 0.0)
    return residual**2 / (1 + (1 + position) ** 2 + position**2)


def _prepend(history: Tensor, value: Tensor) -> Tensor:
    return torch.cat([value.unsqueeze(1), history[:, :-1]], dim=1)


def _rms(e: Tensor) -> Tensor:
    return e.square().mean(1).sqrt()


def _select(state: AdamsState, index: Tensor) -> AdamsState:
    return state.map(lambda rows: rows[index])


def _where(mask: Tensor, new: AdamsState, old: AdamsState) -> AdamsState:
    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return new.map(choose, old)
