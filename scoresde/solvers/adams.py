r"""A per-sample adaptive Adams method: one evaluation a step, path and integral together.

Every sample has its own time, step, order and history of k slopes. A step of size h from τ

    predicts   p = z + ∫ P_k,           P_k through the last k slopes (Adams–Bashforth),
    evaluates  v, q at (τ + h, p),
    corrects   z⁺ = z + ∫ P⁺_{k+1},     P⁺ through these and the new slope (Adams–Moulton),

and integrates q with the same weights. The defect e = z⁺ − p controls the step; if the integrand is
exact, so does the difference between two orders of its integral.

A step is told in the frame ζ of its first point (:mod:`scoresde.solvers.local_linearization`), where a model of
the flow stands still, and ζ′ = λ (ζ − ζ_n) + P(τ) is solved exactly, with P through ζ′ − λ (ζ −
ζ_n): the exponential Adams method. Any frame and any λ give the same order; good ones leave little
to do, and take the stiffness out, by which explicit methods crawl at points off the data. One that
knows the Jacobian also moves the new slope from p to z⁺, as a second evaluation would.

Along any path, the integral of q misses the change of log p by the work of a = ∇log p along path −
flow, Σ ½(a + a′)·(e′ − e) or, summed by parts, a_N·e_N − Σ ½(a′ − a)·(e′ + e). The terms of the
latter do not grow with the size of a, which an imperfect score overstates near the data. They and
the doubts about the integral make up the error estimate; their signs vary, so that squares are
summed. A noisy integrand neither steers nor doubts: two orders of its integral differ by noise.

Gradients pass through states and integrals, not through what controls the steps or tells the error.
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
_SHRINK, _GROW = 0.3, 2.0
_SHRINK_AGAIN = 0.1
_PROBE, _FIRST = 1e-4, 0.03
"""Lengths of the step that is only tried and of the longest first one, in units of the way."""

_SERIES, _TERMS = 2.0, 24
_CAUTION = 5.0
"""What multiplies the root of the sum of squares of the steps' own error estimates."""
_DETOUR = 12.0
"""What a step may miss log p by, for the density's slope is taken beside the path, in units of what
it may miss the integral by. On the way into the flow, off the data, slopes are steep."""


@dataclass
class _Walk:
    """The samples still under way, one row each."""

    rows: Tensor  # (m,) index in the batch
    tau: Tensor
    step: Tensor
    z: Tensor  # (m, d)
    integral: Tensor
    variance: Tensor  # of the integral, from nodes that left the history
    scatter: Tensor  # sum of squares of their shares in it
    freedom: Tensor  # (m,) degrees of freedom of each node's variance
    defect: Tensor  # (m, d) e of the last step
    gradient: Tensor  # (m, d) ∇ log p at the last node
    error: Tensor  # sum of squares of the steps' estimated errors of log p
    order: Tensor  # (m,) slopes in the history
    rejected: Tensor  # |h| of the last step that failed from here, 0 if none did
    excess: Tensor  # its error over the allowed one
    evaluations: Tensor
    nodes: Tensor  # (m, K) τ of the history, latest first
    states: Tensor  # (m, K, d) z where the slopes were taken
    slopes: Tensor  # (m, K, d)
    rates: Tensor  # (m, K) mean estimate of q
    spreads: Tensor  # (m, K) variance of that mean
    weights: Tensor  # (m, K) weight each node has in the integral so far
    local: LocalCoordinates  # of the latest node

    def map(self, function: Callable[..., Tensor], *others: _Walk) -> _Walk:
        """Apply a function of tensors with a row per sample to all."""
        walks = (self, *others)
        local = self.local.map(function, *(w.local for w in others))
        found = {name: function(*(getattr(w, name) for w in walks)) for name in _TENSORS}
        return replace(self, local=local, **found)


_TENSORS = tuple(f.name for f in fields(_Walk) if f.name != "frame")


@dataclass(frozen=True)
class Adams(Solver):
    r"""The adaptive Adams predictor–corrector (PEC), one evaluation a step.

    Args:
        order: most slopes that a polynomial goes through, 1 to 8.
        max_evaluations: where a sample gives up, with the best it has; at least 3, for the start,
            the length of the first step, and that step.

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
        """One more than the slopes kept, for the new slope corrects."""
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
        """Integrate every sample with its own steps (see :meth:`Solver.solve`)."""
        walk = self._begin(field, z, start)
        out = _Arrivals(z)
        if start == end:
            out.record(walk, torch.full_like(walk.rows, int(Status.CONVERGED)))
            return out.solution()
        walk = self._probe(field, walk, end - start, tolerance, noisy)
        eps = torch.finfo(z.dtype).eps
        smallest = max(1e-12 * abs(end - start), 64 * eps * max(abs(start), abs(end)))
        while len(walk.rows):
            left = end - walk.tau
            step = torch.where(walk.step.abs() < left.abs(), walk.step, left)
            trial, error = self._step(field, walk, step, tolerance, noisy)
            accepted, factor = error <= 1, _factor(walk, step, error)
            arrived = accepted & (step == left)
            following = step * factor
            stuck = ~arrived & (following.abs() < smallest)
            spent = ~arrived & ~stuck & (trial.evaluations >= self.max_evaluations)
            done = arrived | stuck | spent
            smooth, over = torch.stack([accepted.all(), done.any()]).tolist()
            if not smooth:
                counted = replace(walk, evaluations=trial.evaluations)
                trial = _merge(accepted, trial, replace(counted, rejected=step.abs(), excess=error))
            walk = trial
            walk.tau = torch.where(arrived, end, walk.tau)
            walk.step = following
            if over:
                status = torch.full_like(walk.rows, int(Status.CONVERGED))
                status = torch.where(spent, int(Status.MAX_EVALUATIONS), status)
                status = torch.where(stuck, int(Status.STEP_TOO_SMALL), status)
                status = torch.where(stuck & error.isinf(), int(Status.NOT_FINITE), status)
                out.record(_take(walk, done), status[done])
                walk = _take(walk, ~done)
        return out.solution()

    def _begin(self, field: Field, z: Tensor, start: float) -> _Walk:
        """Evaluate at the start."""
        n, K = len(z), max(self.order, 2)
        rows = torch.arange(n, device=z.device)
        zero = z.new_zeros(n)
        tau = torch.full_like(zero, start)
        counts = torch.zeros_like(rows)
        v, q, a, local = FieldEvaluation(*field(tau, z, rows, counts))
        mean, std = _average(q)

        def history(value: Tensor) -> Tensor:  # one slope counts, the others only fill the rows
            return value.unsqueeze(1).expand(n, K, *value.shape[1:])

        return _Walk(
            rows=rows,
            tau=tau,
            step=zero,
            z=z,
            integral=zero,
            variance=zero,
            scatter=zero,
            freedom=torch.full_like(zero, max(q.shape[1] - 1, 1)),
            defect=torch.zeros_like(z),
            gradient=torch.zeros_like(z) if a is None else a.detach(),
            error=zero,
            order=torch.ones_like(rows),
            rejected=zero,
            excess=zero,
            evaluations=counts + 1,
            nodes=history(tau),
            states=history(z),
            slopes=history(v),
            rates=history(mean),
            spreads=history(std),
            weights=z.new_zeros(n, K),
            local=local,
        )

    def _probe(self, field: Field, walk: _Walk, way: float, tolerance: float, noisy: bool) -> _Walk:
        """Choose the first step by the error, of order 2, of a short one that is not taken."""
        step = torch.full_like(walk.tau, _PROBE * way)
        trial, error = self._step(field, walk, step, tolerance, noisy)
        length = torch.sqrt(_SAFETY**2 / error.detach().clamp(min=1e-300))
        length = length.clamp(1e-3, _FIRST / _PROBE)
        return replace(walk, step=step * length, evaluations=trial.evaluations)

    def _step(
        self, field: Field, w: _Walk, step: Tensor, tolerance: float, noisy: bool
    ) -> tuple[_Walk, Tensor]:
        """Try one step; return the state after it, and its error over the allowed one."""
        reach = _Reach(w, step)
        p = reach.predict()
        v, q, a, local = FieldEvaluation(*field(reach.tau, p, w.rows, w.evaluations))
        mean, std = _average(q)
        if noisy and q.shape[1] == 1:
            std = _roughness(w, reach.tau, mean).detach()
        z, change, doubt, weights = reach.correct(p, v, mean, doubted=not noisy)
        defect = (z - p).detach()
        d = w.z.shape[1]
        error = _rms(defect / (1 + torch.maximum(w.z.abs(), z.abs()).detach())) / tolerance
        error = torch.maximum(error, doubt.abs() / (d * tolerance))
        gradient = torch.zeros_like(z) if a is None else a.detach()
        turn = gradient - w.gradient
        detour = 0.5 * (turn * (defect + w.defect)).sum(1)
        if q.shape[1]:  # by this step, for no length mends what the last one did
            aside = (turn * defect).sum(1).nan_to_num(0.0, 0.0, 0.0).abs()
            error = torch.maximum(error, aside / (_DETOUR * d * tolerance))
        finite = error.isfinite() & z.isfinite().all(1) & mean.isfinite()
        error = torch.where(finite, error, torch.inf)
        weights = weights + torch.nn.functional.pad(w.weights, (1, 0))
        seat, lean = local.relocate(reach.tau, p, v, z)
        share = weights[:, -1] ** 2 * w.spreads[:, -1]
        after = _Walk(
            rows=w.rows,
            tau=reach.tau,
            step=step,
            z=z,
            integral=w.integral + change,
            variance=w.variance + share,
            scatter=w.scatter + share**2,
            freedom=w.freedom,
            defect=defect,
            gradient=gradient,
            error=w.error + doubt**2 + detour.nan_to_num(torch.inf) ** 2,
            order=(w.order + 1).clamp(max=self.order),
            rejected=torch.zeros_like(w.rejected),
            excess=torch.zeros_like(w.excess),
            evaluations=w.evaluations + 1,
            nodes=_push(w.nodes, reach.tau),
            states=_push(w.states, seat),
            slopes=_push(w.slopes, lean),
            rates=_push(w.rates, mean),
            spreads=_push(w.spreads, std),
            weights=weights[:, :-1],
            local=local,
        )
        return after, error


class _Reach:
    """A step of every sample, told in the frame of its first point."""

    def __init__(self, w: _Walk, step: Tensor) -> None:
        self._w, self._step = w, step
        self.tau = w.tau + step
        h = step.unsqueeze(1)
        self._past = (w.nodes - w.tau.unsqueeze(1)) / h
        point = (w.tau, w.z, torch.zeros_like(w.z), torch.zeros_like(w.tau))
        self._here, *_ = w.local.to_local(*(v.unsqueeze(1) for v in point))
        self._told = w.local.to_local(w.nodes, w.states, w.slopes, w.rates)
        self._moments = _exponential_moments(h, w.local.values, self._past.shape[1] + 1)

    def predict(self) -> Tensor:
        """Return z at the end, by the slopes so far (Adams–Bashforth)."""
        states, slopes, _ = self._told
        return self._follow(_fit(self._past, self._w.order), states, slopes)

    def correct(
        self, p: Tensor, v: Tensor, q: Tensor, doubted: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take in the slope and the integrand at the end, evaluated at ``p`` (Adams–Moulton).

        Returns:
            z there, the increase of the integral, what it differs by from that of one order less
            (0 unless ``doubted``),
            and the weights ``(m, K + 1)`` of the nodes in it, the end's first.
        """
        k, local = self._w.order, self._w.local
        there = local.to_local(*(value.unsqueeze(1) for value in (self.tau, p, v, q)))
        both = (torch.cat(pair, dim=1) for pair in zip(there, self._told, strict=True))
        states, slopes, rates = both
        nodes = torch.cat([torch.ones_like(self._past[:, :1]), self._past], dim=1)
        fit = _fit(nodes, k + 1)
        weights = self._step.unsqueeze(1) * _integrate(fit)
        lower = self._step.unsqueeze(1) * _integrate(_fit(nodes, k)) if doubted else weights
        swelling = local.log_volume(self.tau) - local.log_volume(self._w.tau)
        return (
            self._follow(fit, states, slopes),
            (weights * rates).sum(1) + swelling,
            ((weights - lower) * rates.detach()).sum(1),
            weights,
        )

    def _follow(self, fit: Tensor, states: Tensor, slopes: Tensor) -> Tensor:
        """Solve ζ′ = λ (ζ − ζ_n) + P(τ), P through ζ′_j − λ (ζ_j − ζ_n); return z at the end."""
        local = self._w.local
        if local.values is not None:
            slopes = slopes - local.values.unsqueeze(1) * (states - self._here)
        coefficients = torch.einsum("mij,mjd->mid", fit, slopes)
        relocate = (self._moments[:, : fit.shape[1]] * coefficients).sum(1)
        return local.from_local(self.tau, self._here[:, 0] + self._step.unsqueeze(1) * relocate)


class _Arrivals:
    """Where finished samples are written, in the order of the batch."""

    def __init__(self, z: Tensor) -> None:
        n = len(z)
        self._state = z
        self._columns = z.new_zeros(n, 4)
        self._counts = torch.zeros(n, 2, dtype=torch.int64, device=z.device)

    def record(self, walk: _Walk, status: Tensor) -> None:
        weights_at = walk.weights**2 * walk.spreads
        noise = _noise(
            walk.variance + weights_at.sum(1),
            walk.scatter + weights_at.square().sum(1),
            walk.freedom,
        )
        last = (walk.gradient * walk.defect).sum(1).nan_to_num(torch.inf)
        error = _CAUTION * (walk.error + last**2).sqrt()
        columns = torch.stack([walk.integral, noise, error, walk.tau], dim=1)
        self._state = self._state.index_copy(0, walk.rows, walk.z)
        self._columns = self._columns.index_copy(0, walk.rows, columns)
        counts = torch.stack([walk.evaluations, status], dim=1)
        self._counts = self._counts.index_copy(0, walk.rows, counts)

    def solution(self) -> Solution:
        integral, noise, error, reached = self._columns.unbind(1)
        evaluations, status = self._counts.unbind(1)
        return Solution(self._state, integral, noise, error, reached, evaluations, status)


def _factor(walk: _Walk, step: Tensor, error: Tensor) -> Tensor:
    """Return the next step over this one, by the order of the error.

    Beyond what the history knows of, as where another mode comes into sight, the order is not that
    of the method: two steps rejected at one place tell it. After a rejection no step grows.
    """
    order = (walk.order + 1).to(error.dtype)
    retried = walk.rejected > 0
    again = retried & (error > 1) & (error < walk.excess) & walk.excess.isfinite()
    ratio = torch.where(again, walk.rejected / step.abs(), 2.0)
    seen = torch.log(walk.excess / error) / torch.log(ratio)
    order = torch.where(again, seen.clamp(min=1.0).minimum(order), order)
    factor = _SAFETY * error.clamp(min=1e-10) ** (-1 / order)
    least, most = torch.where(again, _SHRINK_AGAIN, _SHRINK), torch.where(retried, 1.0, _GROW)
    return factor.clamp(least, most)


def _fit(nodes: Tensor, count: Tensor) -> Tensor:
    """Matrix ``(m, n, n)`` from values at the first ``count`` nodes to coefficients of x^i."""
    n = nodes.shape[1]
    power = torch.arange(n, device=nodes.device)
    used = power < count.unsqueeze(1)
    square = used.unsqueeze(2) & used.unsqueeze(1)
    vandermonde = nodes.unsqueeze(2) ** power.to(nodes.dtype)
    identity = torch.eye(n, dtype=nodes.dtype, device=nodes.device)
    inverse = torch.linalg.inv_ex(torch.where(square, vandermonde, identity)).inverse
    return torch.where(square, inverse, 0.0)


def _integrate(fit: Tensor) -> Tensor:
    """Weights ``(m, n)`` of ∫₀¹ of the fitted polynomial."""
    power = torch.arange(fit.shape[1], device=fit.device)
    return (fit / (power + 1.0).unsqueeze(1)).sum(1)


def _exponential_moments(h: Tensor, values: Tensor | None, n: int) -> Tensor:
    """∫₀¹ e^{(1−s)x} s^i ds, x = hλ, for i < n, stacked in dimension 1; 1/(i+1) at x = 0.

    The recurrence i ψ_{i−1} = x ψ_i + 1 is stable downwards for small |x|, from a Taylor series for
    the last, and upwards for large.
    """
    if values is None:
        return 1 / torch.arange(1, n + 1, dtype=h.dtype, device=h.device).reshape(1, n, 1)
    x = h * values
    small = torch.where(x.abs() < _SERIES, x, 0.0)
    large = torch.where(x.abs() < _SERIES, 1.0, x)
    tail = torch.zeros_like(x)
    for k in range(n + _TERMS, n, -1):
        tail = (1 + small * tail) / k
    down, up = [(1 + small * tail) / n], [torch.expm1(large) / large]
    for i in range(1, n):
        down.insert(0, (1 + small * down[0]) / (n - i))
        up.append((i * up[-1] - 1) / large)
    near = (x.abs() < _SERIES).unsqueeze(1)
    return torch.where(near, torch.stack(down, dim=1), torch.stack(up, dim=1))


def _average(q: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the estimates ``(m, k)`` and the variance of that mean (0 for a single one)."""
    k = q.shape[1]
    if k == 0:
        return q.new_zeros(len(q)), q.new_zeros(len(q))
    mean = q.mean(1)
    return mean, q.detach().var(1) / k if k > 1 else torch.zeros_like(mean)


def _noise(variance: Tensor, scatter: Tensor, freedom: Tensor) -> Tensor:
    """Return a standard error, two of which cover as much as two of a normal law whose σ is known.

    Few nodes with few probes each tell the variance badly: with ν degrees of freedom, Student's
    law reaches farther. By Satterthwaite, the share s of a node having n, 1/ν = Σ s²/(n + 2) over
    (Σ s)², and the quantile of the normal law at 2 grows by 1 + 5/(4ν) + 49/(32ν²) (Fisher).
    """
    tail = scatter / (freedom + 2) / variance.square().clamp(min=1e-300)
    return variance.sqrt() * (1 + 1.25 * tail + 1.53125 * tail**2)


def _roughness(w: _Walk, tau: Tensor, rate: Tensor) -> Tensor:
    """Variance of a single estimate of q, by its distance from the line through the last two."""
    (t1, t2), (q1, q2) = w.nodes[:, :2].unbind(1), w.rates[:, :2].unbind(1)
    reach = torch.where(w.order > 1, (tau - t1) / (t1 - t2), 0.0)
    miss = rate - q1 - reach * torch.where(w.order > 1, q1 - q2, 0.0)
    return miss**2 / (1 + (1 + reach) ** 2 + reach**2)


def _push(history: Tensor, value: Tensor) -> Tensor:
    return torch.cat([value.unsqueeze(1), history[:, :-1]], dim=1)


def _rms(e: Tensor) -> Tensor:
    return e.square().mean(1).sqrt()


def _take(walk: _Walk, index: Tensor) -> _Walk:
    return walk.map(lambda rows: rows[index])


def _merge(mask: Tensor, new: _Walk, old: _Walk) -> _Walk:
    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return new.map(choose, old)
