"""The properties of solvers as code: batch independence, failures, counts, termination."""

# ruff: noqa: ARG001 - tests, fields and strategies take the arguments of their family

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from scoresde.solvers import Solution, Status
from scoresde.testing.properties import PropertySuite, close, finite, holds
from scoresde.testing.strategies import devices, seeds

SOLVERS = PropertySuite("solver")
"""The properties of solvers; :mod:`scoresde.testing.solvers` adds the mathematical ones."""

_LIMIT = 20_000
"""Evaluations of one sample after which a solver is taken for one that does not terminate."""


class RunawayError(AssertionError):
    """A solver does not terminate."""


def column(tau: Tensor) -> Tensor:
    """Return times ``(m,)`` as a column."""
    return tau.unsqueeze(1)


def rand(shape: tuple[int, ...], seed: int) -> Tensor:
    """Return uniform numbers in [0, 1)."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def limited(solver: Any, evaluations: int) -> Any:
    """Return the solver with another ``max_evaluations``, if it has this field."""
    if hasattr(solver, "max_evaluations"):
        return dataclasses.replace(solver, max_evaluations=evaluations)
    return copy.copy(solver)


def solve_within(
    solver: Any,
    field: Callable[..., Any],
    z: Tensor,
    start: float,
    end: float,
    tolerance: float,
    *,
    noisy: bool = False,
) -> Solution:
    """Solve, and stop a solver that does not terminate.

    Returns:
        The solution.

    Raises:
        RunawayError: once a sample has been evaluated 20 000 times.
    """
    calls = torch.zeros(len(z), dtype=torch.int64, device=z.device)

    def watched(tau: Tensor, z: Tensor, rows: Tensor, counter: Tensor) -> Any:
        calls.index_add_(0, rows, torch.ones_like(rows))
        if len(calls) and int(calls.max()) > _LIMIT:
            raise RunawayError(f"a sample was evaluated {_LIMIT} times without reaching the end")
        return field(tau, z, rows, counter)

    solution: Solution = solver.solve(watched, z, start, end, tolerance=tolerance, noisy=noisy)
    return solution


def _decay(tau: Tensor, z: Tensor, rows: Tensor, counter: Tensor) -> Any:
    """z′ = −(1 + row) z and q = Σ z."""
    return -column(1.0 + rows) * z, z.sum(1, keepdim=True), None


def _oscillating(frequency: Tensor) -> Callable[..., Any]:
    """Return z′ = r cos(r τ) z, with a frequency r for each sample, and q = Σ z."""

    def field(tau: Tensor, z: Tensor, rows: Tensor, counter: Tensor) -> Any:
        r = column(frequency[rows])
        return r * torch.cos(r * column(tau)) * z, z.sum(1, keepdim=True), None

    return field


def uncoupled(solver: Any) -> bool:
    """Whether the samples of a batch share neither errors nor failures."""
    return not solver.coupled


@SOLVERS.property(
    "shapes",
    "z (n, d) for any n and d, n = 0 included; float64 results on the device of z",
    "[:, None] for one shape only; squeeze() of a batch of one; float32 results",
    examples=6,
    n=lambda solver: st.sampled_from([0, 1, 2, 5]),
    d=lambda solver: st.sampled_from([1, 2, 64]),
    device=devices,
    seed=seeds,
)
def shapes(solver: Any, n: int, d: int, device: str, seed: int) -> None:
    """Batches of any size."""
    z = (0.5 + rand((n, d), seed)).to(device)
    solution = solve_within(solver, _decay, z, 0.0, 0.5, 1e-3)
    for f in dataclasses.fields(Solution):
        value = getattr(solution, f.name)
        dtype = torch.int64 if f.name in ("evaluations", "status") else torch.float64
        found = tuple(value.shape), value.dtype, value.device
        wanted = ((n, d) if f.name == "state" else (n,)), dtype, z.device
        holds(found == wanted, f"{f.name} is {found}, expected {wanted}")
    rate = column(1.0 + torch.arange(n, device=z.device))
    close("z(½)", solution.state, z * torch.exp(-0.5 * rate), atol=0.1)


@SOLVERS.property(
    "single precision",
    "a float32 start is solved, to a tolerance of 1e-3, as well as its digits allow",
    "a TypeError for float32; a smallest step of 10⁻¹² that float32 cannot resolve; a tolerance "
    "below its digits",
    examples=2,
    seed=seeds,
)
def single_precision(solver: Any, seed: int) -> None:
    """Every sample reaches the end, within a hundred tolerances."""
    z = (0.5 + rand((2, 2), seed)).float()
    try:
        solution = solve_within(solver, _decay, z, 0.0, 1.0, 1e-3)
    except (TypeError, ValueError) as error:
        raise AssertionError(
            f"a float32 start raises {type(error).__name__}: {error}; expected a solution"
        ) from error
    rate = column(1.0 + torch.arange(2))
    finite("z(1) of a float32 start", solution.state)
    status = [Status(int(code)).name for code in solution.status]
    holds(not solution.status.any(), f"the status is {status}, expected CONVERGED")
    expected = (z * torch.exp(-rate)).double()
    close("z(1) of a float32 start", solution.state, expected, atol=0.1)


@SOLVERS.property(
    "own steps",
    "the solution of a sample, its steps and counts included, does not depend on the others of its "
    "batch",
    "a norm, maximum or step size over the batch",
    applies=lambda solver: solver.own_steps,
    examples=3,
    seed=seeds,
)
def own_steps(solver: Any, seed: int) -> None:
    """Each of four samples alone; one of them oscillates much faster than the others."""
    frequency = torch.tensor([0.5, 1.0, 1.5, 6.0], dtype=torch.float64)
    z = 0.5 + rand((4, 2), seed)
    together = solve_within(solver, _oscillating(frequency), z, 0.0, 1.0, 1e-4)
    for i in range(4):
        own = slice(i, i + 1)
        alone = solve_within(solver, _oscillating(frequency[own]), z[own], 0.0, 1.0, 1e-4)
        for name in ("state", "integral", "evaluations"):
            found, expected = getattr(alone, name), getattr(together, name)[own]
            close(f"{name} of sample {i} alone", found, expected, rtol=1e-9, atol=1e-11)


@SOLVERS.property(
    "batch independence",
    "one fast sample among many constant ones has no larger error than alone",
    "an error norm that averages over the batch, in which the error of one sample is invisible",
    applies=uncoupled,
    examples=2,
    seed=seeds,
)
def batch_independence(solver: Any, seed: int) -> None:
    """One sample of 256, at a tolerance of 1e-4: at most three times the error alone, and 2e-4."""
    frequency = torch.zeros(256, dtype=torch.float64)
    frequency[0] = 8.0
    z = 0.5 + rand((256, 2), seed)
    exact = z[0] * torch.exp(torch.sin(frequency[0]))
    together = solve_within(solver, _oscillating(frequency), z, 0.0, 1.0, 1e-4).state[0]
    alone = solve_within(solver, _oscillating(frequency[:1]), z[:1], 0.0, 1.0, 1e-4).state[0]
    error = float((alone - exact).abs().max())
    close("z(1) of the fast sample", together, exact, atol=3 * error + 2e-4)


_FAILURES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "NaN from τ = ½ on": lambda tau, z: (torch.where(tau > 0.5, math.nan, -z), z),
    "NaN at once": lambda tau, z: (torch.full_like(z, math.nan), z),
    "NaN in q from τ = ½ on": lambda tau, z: (-z, torch.where(tau > 0.5, math.nan, z)),
    "infinite from τ = ½ on": lambda tau, z: (torch.where(tau > 0.5, math.inf, -z), z),
    "blow-up at τ = ½": lambda tau, z: (2 * z**2, z),
}
"""Fields that fail: v and the summands of q, for τ ``(m, 1)`` and z ``(m, d)``."""


def failures_of(solver: object = None) -> st.SearchStrategy[str]:
    """Draw a kind of failure."""
    return st.sampled_from(list(_FAILURES))


@SOLVERS.property(
    "failures",
    "a sample whose field fails has the status of a failure and its last finite state; the others "
    "reach the end",
    "NaN that is taken for a small error; a step that shrinks without bound; one status for the "
    "batch",
    examples=8,
    kind=failures_of,
)
def failures(solver: Any, kind: str) -> None:
    """Sample 1 of three fails; if samples are coupled the others may have a failed status too."""

    def field(tau: Tensor, z: Tensor, rows: Tensor, counter: Tensor) -> Any:
        bad, part = _FAILURES[kind](column(tau), z)
        one = column(rows == 1)
        q = torch.where(one, part, z).sum(1, keepdim=True)
        return torch.where(one, bad, -z), q, None

    z = torch.ones(3, 2, dtype=torch.float64)
    solution = solve_within(solver, field, z, 0.0, 1.0, 1e-4)
    bad = int(solution.status[1])
    holds(bad != Status.CONVERGED, "the sample that failed has the status CONVERGED")
    for name in ("state", "integral", "reached"):
        value = getattr(solution, name)
        finite(name, value)
    reached = float(solution.reached[1])
    holds(
        reached <= 0.51, f"the sample that failed has reached = {reached:.3g}, expected at most 0.5"
    )
    if uncoupled(solver):
        status = [Status(int(code)).name for code in solution.status[[0, 2]]]
        holds(not solution.status[[0, 2]].any(), f"the status of the others is {status}")
        close("z(1) of the others", solution.state[[0, 2]], math.exp(-1), atol=1e-2)
        close("∫ q of the others", solution.integral[[0, 2]], 2 - 2 / math.e, atol=2e-2)


_HARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "NaN everywhere": lambda tau, z: z * math.nan,
    "a switch": lambda tau, z: -torch.sign(z - 0.3),
    "no slope below 0": lambda tau, z: -torch.sqrt(z) - 0.1,
    "a pole at τ = ½": lambda tau, z: z / (tau - 0.5),
    "very stiff": lambda tau, z: -1e6 * z,
    "noise": lambda tau, z: torch.sin(1e9 * (z + tau)),
}
"""Fields without a solution, or with one that is too expensive."""


@SOLVERS.property(
    "termination",
    "solve always returns, for any field, with a status for each sample and a finite state",
    "a loop until the error is small; a step of 0; NaN > tolerance, which is false",
    examples=6,
    kind=lambda solver: st.sampled_from(list(_HARD)),
)
def termination(solver: Any, kind: str) -> None:
    """Discontinuities, poles, noise, NaN: 200 evaluations a sample, of a solver with this limit."""

    def field(tau: Tensor, z: Tensor, rows: Tensor, counter: Tensor) -> Any:
        v = _HARD[kind](column(tau), z)
        return v, v.sum(1, keepdim=True), None

    z = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    solution = solve_within(limited(solver, 200), field, z, 0.0, 1.0, 1e-6)
    finite("z", solution.state)
    finite("∫ q", solution.integral)
    at_end = solution.reached == 1.0
    converged = solution.status == int(Status.CONVERGED)
    reached = solution.reached.tolist()
    holds(bool((converged <= at_end).all()), f"CONVERGED at τ = {reached}, not at 1")


@SOLVERS.property(
    "evaluation limit",
    "no sample is evaluated more than max_evaluations times; its status then is MAX_EVALUATIONS",
    "stages of a step that are counted as one; a limit on steps; a last step beyond the limit",
    applies=lambda solver: hasattr(solver, "max_evaluations"),
    examples=2,
    most=lambda solver: st.sampled_from([12, 30]),
)
def evaluation_limit(solver: Any, most: int) -> None:
    """12 and 30 evaluations are too few: the state so far is returned, with its time."""
    z, counts = torch.ones(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)

    def field(tau: Tensor, z: Tensor, rows: Tensor, counter: Tensor) -> Any:
        counts.index_add_(0, rows, torch.ones_like(rows))
        return -z, z.sum(1, keepdim=True), None

    solution = solve_within(limited(solver, most), field, z, 0.0, 1.0, 1e-12)
    holds(
        int(counts.max()) <= most, f"a sample was evaluated {int(counts.max())} times, not {most}"
    )
    spent = solution.status == int(Status.MAX_EVALUATIONS)
    names = [Status(int(code)).name for code in solution.status]
    holds(spent.all(), f"the status is {names}, expected MAX_EVALUATIONS")
    close("z at the time reached", solution.state, torch.exp(-column(solution.reached)), atol=0.1)


@SOLVERS.property(
    "counts",
    "evaluations is how often each sample was evaluated",
    "rejected steps that are not counted; the first slope; samples that have reached the end",
    examples=2,
    seed=seeds,
)
def counts(solver: Any, seed: int) -> None:
    """Counted by the field itself."""
    made = torch.zeros(3, dtype=torch.int64)

    def field(tau: Tensor, z: Tensor, rows: Tensor, counter: Tensor) -> Any:
        made.index_add_(0, rows, torch.ones_like(rows))
        return _decay(tau, z, rows, counter)

    solution = solve_within(solver, field, 0.5 + rand((3, 2), seed), 0.0, 1.0, 1e-4)
    close("evaluations", solution.evaluations, made)


@SOLVERS.property(
    "interval",
    "the field is evaluated at times in [start, end] only, as float64, for rows of the batch",
    "a last step beyond the end; a trial step beyond the end",
    examples=3,
    backward=lambda solver: st.booleans(),
)
def interval(solver: Any, backward: bool) -> None:
    """The field is so slow that a first step could be long."""
    seen: list[Tensor] = []

    def field(tau: Tensor, z: Tensor, rows: Tensor, counter: Tensor) -> Any:
        seen.append(tau)
        agree = len(tau) == len(z) == len(rows) == len(counter)
        holds(
            agree,
            f"tau, z, rows, counter have {len(tau)}, {len(z)}, {len(rows)}, {len(counter)} rows",
        )
        inside = bool(((rows >= 0) & (rows < 2)).all())
        holds(inside, f"rows are {rows.tolist()}, expected numbers of the batch's two")
        return 0.01 * torch.cos(column(tau)) + 0 * z, 1e-3 * z[:, :1], None

    z = torch.full((2, 1), 5.0, dtype=torch.float64)
    solve_within(solver, field, z, *((1.0, 0.0) if backward else (0.0, 1.0)), 1e-3)
    times = torch.cat(seen)
    holds(times.dtype == torch.float64, f"times are {times.dtype}, expected torch.float64")
    low, high = float(times.min()), float(times.max())
    holds(low >= 0 and high <= 1, f"times run from {low:g} to {high:g}, expected in [0, 1]")


@SOLVERS.property(
    "counter",
    "solvers with fresh=True number the evaluations of each sample 0, 1, 2, …; others pass 0",
    "one number for two stages; numbers that continue from sample to sample",
    examples=1,
)
def counter(solver: Any) -> None:
    """Random probes are drawn from these numbers."""
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}

    def field(tau: Tensor, z: Tensor, rows: Tensor, counter: Tensor) -> Any:
        for row, number in zip(rows.tolist(), counter.tolist(), strict=True):
            seen[row].append(number)
        return _decay(tau, z, rows, counter)

    solve_within(solver, field, torch.ones(3, 1, dtype=torch.float64), 0.0, 1.0, 1e-4)
    for row, found in seen.items():
        wanted = list(range(len(found))) if solver.fresh else [0] * len(found)
        holds(found == wanted, f"the counters of row {row} are {found}, expected {wanted}")


@SOLVERS.property(
    "degenerate problems",
    "start = end returns z; without q the integral is 0; an exact q has the standard error 0",
    "a division by end − start; an integral that is assumed to exist",
    examples=2,
    seed=seeds,
)
def degenerate_problems(solver: Any, seed: int) -> None:
    """No time, no integral, no noise."""
    z = 0.5 + rand((3, 2), seed)
    still = solve_within(solver, _decay, z, 0.7, 0.7, 1e-4)
    close("z where start = end", still.state, z)
    close("∫ q where start = end", still.integral, 0.0)
    close("the status where start = end", still.status, 0)

    def bare(tau: Tensor, z: Tensor, rows: Tensor, counter: Tensor) -> Any:
        return -z, z.new_zeros(len(z), 0), None

    path = solve_within(solver, bare, z, 0.0, 1.0, 1e-4)
    close("z(1) without an integral", path.state, z * math.exp(-1), atol=1e-2)
    close("the integral without q", path.integral, 0.0)
    exact = solve_within(solver, _decay, z, 0.0, 1.0, 1e-4)
    close("the standard error of an exact q", exact.standard_error, 0.0)


class _FieldError(RuntimeError):
    """An exception of the field."""


@SOLVERS.property(
    "exceptions",
    "an exception raised by the field is raised to the caller",
    "except Exception around the step; an exception that is taken for a rejected step",
    examples=4,
    call=lambda solver: st.sampled_from([1, 4, 9]),
    kind=lambda solver: st.sampled_from([_FieldError, ValueError, AssertionError]),
)
def exceptions(solver: Any, call: int, kind: type[Exception]) -> None:
    """In the first, fourth or ninth evaluation."""
    made: list[int] = []

    def field(tau: Tensor, z: Tensor, rows: Tensor, counter: Tensor) -> Any:
        made.append(1)
        if len(made) == call:
            raise kind("an exception of the field")
        return -z, z.sum(1, keepdim=True), None

    try:
        solver.solve(field, torch.ones(1, 1, dtype=torch.float64), 0.0, 1.0, tolerance=1e-8)
    except kind as error:
        holds(
            "an exception of the field" in str(error),
            f"the exception of the field has become {error!r}",
        )
    else:
        raise AssertionError(f"a {kind.__name__} in evaluation {call} is suppressed")
