r"""The mathematical properties of solvers: accuracy, order of convergence and error estimates.

The initial-value problems have solutions in closed form, integrals included. Every sample of a
batch is a problem of its own.
"""

# ruff: noqa: ARG001 - tests, fields and strategies take the arguments of their family

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from scoresde._core.counter_rng import CounterRNG
from scoresde.solvers import Solution, Solver, Status
from scoresde.testing.properties import Report, close, documents, holds
from scoresde.testing.solver_contract import SOLVERS, column, rand, solve_within
from scoresde.testing.strategies import seeds

_TOLERANCES = 100.0
"""Allowed error in units of the tolerance: the errors of many steps add up and are amplified."""


@documents(solver="the solver, or a strategy that draws some.")
def check_solver(
    solver: Solver | st.SearchStrategy[Solver],
    *,
    seed: int = 0,
    examples: int | None = None,
    only: str | Sequence[str] | None = None,
) -> Report:
    """Check that a solver has the properties of solvers.

    It must have what it declares: ``convergence_order``, ``fresh``, ``differentiable``,
    ``own_steps`` and ``coupled``, and observe ``max_evaluations`` if it has this field. The report
    contains the observed order.

    Example:
        >>> from scoresde.solvers import Adams
        >>> check_solver(Adams(), only=["closed forms", "failures"])
        <Report: 2 of 2 hold>
    """  # noqa: DOC201 - see the decorator
    return SOLVERS.check(solver, seed=seed, examples=examples, only=only)


# --- problems with solutions in closed form


class Problem(ABC):
    """Initial-value problems of ``n`` samples in ``d`` dimensions, each with an integral."""

    @abstractmethod
    def at(self, tau: float) -> Tensor:
        """Return z(τ) ``(n, d)``."""

    @abstractmethod
    def integral(self, start: float, end: float) -> Tensor:
        """Return ∫ q dτ ``(n,)``."""

    @abstractmethod
    def field(self, tau: Tensor, z: Tensor, rows: Tensor, counter: Tensor) -> Any:
        """Return v ``(m, d)``, q ``(m, 1)`` and no gradient."""


class Logistic(Problem):
    r"""z′ = r cos(ωτ) z (1 − z), and q its divergence, with r and ω for each entry.

    logit z(τ) = logit z(0) + r sin(ωτ)/ω, and ∫ q = Σ Δ log z (1 − z).
    """

    def __init__(self, n: int, d: int, seed: int) -> None:
        low = rand((3, n, d), seed)
        self.rate, self.omega, self.origin = 4 * low[0] - 2, 0.5 + 2 * low[1], 0.1 + 0.8 * low[2]

    def at(self, tau: float) -> Tensor:
        phase = self.rate * torch.sin(self.omega * tau) / self.omega
        return torch.sigmoid(torch.logit(self.origin) + phase)

    def integral(self, start: float, end: float) -> Tensor:
        """Return Σ Δ log z (1 − z)."""
        a, b = self.at(start), self.at(end)
        return (torch.log(b * (1 - b)) - torch.log(a * (1 - a))).sum(1)

    def field(self, tau: Tensor, z: Tensor, rows: Tensor, counter: Tensor) -> Any:
        """Return the velocity and its divergence."""
        speed = self.rate[rows] * torch.cos(self.omega[rows] * column(tau))
        return speed * z * (1 - z), (speed * (1 - 2 * z)).sum(1, keepdim=True), None


class Linear(Problem):
    """z′ = cos τ A z with a matrix A for each sample, and q = z_1 z_1′: ∫ q = Δ z_1²/2."""

    def __init__(self, n: int, d: int, seed: int) -> None:
        self.A = (2 * rand((n, d, d), seed) - 1) * min(1.0, 3 / d)
        self.origin = 2 * rand((n, d), seed + 1) - 1

    def at(self, tau: float) -> Tensor:
        """Return e^{sin τ A} z(0)."""
        return torch.einsum(
            "nij,nj->ni", torch.linalg.matrix_exp(math.sin(tau) * self.A), self.origin
        )

    def integral(self, start: float, end: float) -> Tensor:
        """Return Δ z_1²/2."""
        return (self.at(end)[:, 0] ** 2 - self.at(start)[:, 0] ** 2) / 2

    def field(self, tau: Tensor, z: Tensor, rows: Tensor, counter: Tensor) -> Any:
        """Return the velocity and q."""
        v = torch.cos(column(tau)) * torch.einsum("nij,nj->ni", self.A[rows], z)
        return v, (z * v)[:, :1], None


class GaussianFlowProblem(Problem):
    r"""The probability flow of dx = −½β x dτ + √β dw from N(m, c), and q its divergence.

    x(τ) = m_τ + √(V_τ/V_0) (x(0) − m), m_τ = m e^{−βτ/2}, V_τ = 1 + (c − 1) e^{−βτ}; ∫ q = ½ d Δ
    log V.
    """

    def __init__(self, n: int, d: int, seed: int) -> None:
        low = rand((3, n, 1), seed)
        self.beta, self.mean, self.c = 0.5 + 3 * low[0], 2 * low[1] - 1, 0.02 * 100 ** low[2]
        self.origin = self.mean + self.c.sqrt() * (4 * rand((n, d), seed + 1) - 2)

    def _coefficients(self, tau: Tensor, rows: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        beta = self.beta[rows]
        fade = torch.exp(-0.5 * beta * tau)
        return beta, self.mean[rows] * fade, 1 + (self.c[rows] - 1) * fade**2

    def at(self, tau: float) -> Tensor:
        """Return x(τ)."""
        _, mean, variance = self._coefficients(torch.tensor(tau), slice(None))
        return mean + (variance / self.c).sqrt() * (self.origin - self.mean)

    def integral(self, start: float, end: float) -> Tensor:
        """Return ½ d Δ log V."""
        a, b = (self._coefficients(torch.tensor(tau), slice(None))[2] for tau in (start, end))
        return 0.5 * self.origin.shape[1] * torch.log(b / a)[:, 0]

    def field(self, tau: Tensor, z: Tensor, rows: Tensor, counter: Tensor) -> Any:
        """Return −½β (x + s) and its divergence, with s the score."""
        beta, mean, variance = self._coefficients(column(tau), rows)
        v = 0.5 * beta * ((z - mean) / variance - z)
        return v, 0.5 * z.shape[1] * beta * (1 / variance - 1), None


PROBLEMS: dict[str, Callable[[int, int, int], Problem]] = {
    "logistic": Logistic,
    "linear": Linear,
    "Gaussian flow": GaussianFlowProblem,
}
"""Kinds of problems: of ``n`` samples in ``d`` dimensions, from a seed."""

_INTERVALS = [(0.2, 1.7), (1.7, 0.2), (0.0, 1.0), (1.0, 0.0)]


def kinds(solver: object = None) -> st.SearchStrategy[str]:
    """Draw a kind of problem."""
    return st.sampled_from(list(PROBLEMS))


def intervals(solver: object = None) -> st.SearchStrategy[tuple[float, float]]:
    """Draw start and end, in either direction."""
    return st.sampled_from(_INTERVALS)


def dimensions(solver: object = None) -> st.SearchStrategy[int]:
    """Draw a number of dimensions."""
    return st.sampled_from([1, 2, 3, 7])


def tolerances(solver: object = None) -> st.SearchStrategy[float]:
    """Draw a tolerance."""
    return st.sampled_from([1e-4, 1e-2, 1e-3, 1e-5, 1e-6])


def _check_solution(
    solution: Solution, problem: Problem, start: float, end: float, tolerance: float
) -> None:
    """Compare converged samples; below 1e-4 a low-order method may reach its evaluation limit."""
    status = [Status(int(code)).name for code in solution.status]
    done = solution.status == int(Status.CONVERGED)
    stopped = solution.status == int(Status.MAX_EVALUATIONS)
    expected = bool((done | (stopped & (tolerance < 1e-4))).all())
    holds(expected, f"the status is {status}, expected CONVERGED")
    close("the time reached", solution.reached[done], end)
    exact, allowed = problem.at(end), _TOLERANCES * tolerance
    state = (solution.state - exact) / (1 + exact.abs())
    close("the error of z, relative to 1 + |z|,", state[done], 0.0, atol=allowed)
    integral = (solution.integral - problem.integral(start, end)) / exact.shape[1]
    close("the error of ∫ q, per dimension,", integral[done], 0.0, atol=allowed)


@SOLVERS.property(
    "closed forms",
    "z(end) and ∫ q are those of the closed form, within 100 tolerances, in both directions",
    "a wrong coefficient; the slope at the wrong time; the sign of the step; an integral that is "
    "not controlled",
    examples=12,
    kind=kinds,
    d=dimensions,
    interval=intervals,
    tolerance=tolerances,
    seed=seeds,
)
def closed_forms(
    solver: Any, kind: str, d: int, interval: tuple[float, float], tolerance: float, seed: int
) -> None:
    """Logistic growth, linear systems, the probability flow of Gaussian data: two samples each."""
    problem = PROBLEMS[kind](2, d, seed)
    start = problem.at(interval[0])
    solution = solve_within(solver, problem.field, start, *interval, tolerance)
    _check_solution(solution, problem, *interval, tolerance)


@SOLVERS.property(
    "stiff",
    "z′ = −κ (z − cos τ) − sin τ ends at cos τ + e^{−κτ} (z(0) − 1), or has a failed status",
    "no step control by the error of the state; a step that is never reduced",
    examples=4,
    rate=lambda solver: st.sampled_from([1.0, 10.0, 50.0]),
    seed=seeds,
)
def stiff(solver: Any, rate: float, seed: int) -> None:
    """The problem of Prothero & Robinson; up to κ = 10 every sample converges.

    Converged samples are accurate to 100 tolerances of 1e-4.
    """

    def field(tau: Tensor, z: Tensor, rows: Tensor, counter: Tensor) -> Any:
        t = column(tau)
        return -rate * (z - torch.cos(t)) - torch.sin(t), z.sum(1, keepdim=True), None

    z = 1 + rand((2, 2), seed)
    solution = solve_within(solver, field, z, 0.0, 1.0, 1e-4)
    done = solution.status == int(Status.CONVERGED)
    status = [Status(int(code)).name for code in solution.status]
    holds(done.all() or rate > 10, f"the status is {status}, expected CONVERGED")
    left, decayed = (z - 1) * math.exp(-rate), (z - 1).sum(1) * (1 - math.exp(-rate)) / rate
    close("z(1)", solution.state[done], (math.cos(1.0) + left)[done], atol=1e-2)
    close("∫ q", solution.integral[done], (2 * math.sin(1.0) + decayed)[done], atol=2e-2)


@SOLVERS.property(
    "tolerance",
    "a thousandth of the tolerance gives a thousandth of the error, at no fewer evaluations",
    "a tolerance that is not passed on; a fixed step; relative and absolute tolerance mixed up",
    examples=3,
    kind=kinds,
    seed=seeds,
)
def tolerance(solver: Any, kind: str, seed: int) -> None:
    """Errors stay below 100 tolerances from 1e-3 to 1e-6, where more is evaluated."""
    problem, counts = PROBLEMS[kind](2, 2, seed), []
    for wanted in (1e-3, 1e-6):
        solution = solve_within(solver, problem.field, problem.at(0.0), 0.0, 2.0, wanted)
        _check_solution(solution, problem, 0.0, 2.0, wanted)
        counts.append(int(solution.evaluations.sum()))
    few, many = counts
    holds(many >= few, f"{many} evaluations at a tolerance of 1e-6, {few} at 1e-3")


@SOLVERS.property(
    "convergence order",
    "on a smooth field errors decrease like n⁻ᵖ in n evaluations, p as declared",
    "a wrong coefficient of the highest order; the error estimate of another order, which leads "
    "to steps that are too long",
    applies=lambda solver: solver.convergence_order is not None,
    examples=1,
)
def convergence_order(solver: Any) -> float:
    """z″ = −z with ∫ z_1 |z|² = sin τ, at decreasing tolerances: the last three decades of them.

    The slope of the logarithmic error against evaluations is at least p − 0.6. It may be steeper,
    as a method of variable order has its highest order at small tolerances only.

    Returns:
        The slope.
    """

    def field(tau: Tensor, z: Tensor, rows: Tensor, counter: Tensor) -> Any:
        velocity = torch.stack([z[:, 1], -z[:, 0]], dim=1)
        return velocity, z.square().sum(1, keepdim=True) * z[:, :1], None

    z = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    exact = torch.tensor([[math.cos(10.0), -math.sin(10.0)]], dtype=torch.float64)
    points: list[tuple[int, float]] = []
    for exponent in range(3, 14):
        solution = solve_within(solver, field, z, 0.0, 10.0, 10.0**-exponent)
        if solution.status.any():
            break
        distance = float((solution.state - exact).norm())
        error = max(distance, abs(float(solution.integral) - math.sin(10.0)), 1e-16)
        points.append((int(solution.evaluations), error))
        if error < 1e-9 or points[-1][0] > 1000:
            break
    holds(len(points) > 1, "it does not converge at tolerances of 1e-3 and 1e-4")
    errors = ", ".join(f"{error:.2g} ({n} evaluations)" for n, error in points)
    (few, coarse), (many, fine) = points[-4:][0], points[-1]
    holds(
        many > few, f"the number of evaluations does not depend on the tolerance; errors: {errors}"
    )
    observed = math.log(coarse / fine) / math.log(many / few)
    declared = solver.convergence_order
    holds(
        observed >= declared - 0.6,
        f"the order of convergence is {observed:.2f}, declared is {declared:g}; errors: {errors}",
    )
    return observed


@SOLVERS.property(
    "reversibility",
    "solving from start to end and back returns z, and the integrals cancel",
    "a history that presumes increasing time; abs() of a step; a step beyond the end",
    examples=3,
    kind=kinds,
    seed=seeds,
)
def reversibility(solver: Any, kind: str, seed: int) -> None:
    """At a tolerance of 1e-6, within 1000 tolerances, as the flow amplifies errors."""
    problem = PROBLEMS[kind](2, 2, seed)
    z = problem.at(0.0)
    forward = solve_within(solver, problem.field, z, 0.0, 1.0, 1e-6)
    backward = solve_within(solver, problem.field, forward.state, 1.0, 0.0, 1e-6)
    close("z(0), solved forward and backward,", backward.state, z, rtol=1e-3, atol=1e-3)
    close("∫ q forward and backward", backward.integral + forward.integral, 0.0, atol=2e-3)


@SOLVERS.property(
    "gradient",
    "∂z(end)/∂z(start) of the logistic flow is z(1 − z) at the end over that at the start",
    "no_grad or .detach() around a step; in-place operations",
    applies=lambda solver: solver.differentiable,
    examples=2,
    seed=seeds,
)
def gradient(solver: Any, seed: int) -> None:
    """Through all steps, at a tolerance of 1e-6."""
    problem = Logistic(2, 2, seed)
    leaf = problem.at(0.0).requires_grad_()
    solution = solve_within(solver, problem.field, leaf, 0.0, 1.0, 1e-6)
    holds(solution.state.requires_grad, "the solution has no gradient graph, though differentiable")
    (found,) = torch.autograd.grad(solution.state.sum(), leaf, retain_graph=True)
    start, end = leaf.detach(), problem.at(1.0)
    close("∂z(1)/∂z(0)", found, end * (1 - end) / (start * (1 - start)), rtol=1e-3, atol=1e-3)
    (found,) = torch.autograd.grad(solution.integral.sum(), leaf)
    expected = (1 - 2 * end) / (start * (1 - start)) - (1 - 2 * start) / (start * (1 - start))
    close("∂∫q/∂z(0)", found, expected, rtol=1e-3, atol=1e-3)


# --- the noise of the integrand, and the error estimate


def _noisy(problem: Problem, rng: CounterRNG, k: int, scale: float) -> Any:
    """The field with ``k`` estimates of q, with independent noise at every evaluation."""

    def field(tau: Tensor, z: Tensor, rows: Tensor, counter: Tensor) -> Any:
        v, q, gradient = problem.field(tau, z, rows, counter)
        return v, q + scale * rng.at(rows, counter).normals((k,)), gradient

    return field


class _Copies(Logistic):
    """The same problem for every sample."""

    def __init__(self, n: int, d: int, seed: int) -> None:
        super().__init__(1, d, seed)
        self.rate, self.omega, self.origin = (
            each.expand(n, d) for each in (self.rate, self.omega, self.origin)
        )


@SOLVERS.property(
    "fresh noise",
    "noise of q, fresh at each evaluation, does not change the path, is averaged, and has the "
    "reported standard error",
    "steps that are controlled by a noisy integrand; quadrature weights left out of the variance",
    applies=lambda solver: solver.fresh,
    examples=2,
    k=lambda solver: st.sampled_from([2, 4]),
    seed=seeds,
)
def fresh_noise(solver: Any, k: int, seed: int) -> None:
    """400 equal samples: no bias (6.5 standard errors, 1e-10); ±2 SE cover at least 88 %.

    For a true 94 % fewer are covered with a probability of 1e-6. SE² is 0.6 to 2 times the
    variance, which 400 normal numbers determine to 7 %: it may be larger, as few evaluations
    determine it badly.
    """
    n, problem = 400, _Copies(400, 2, seed)
    rng = CounterRNG.draw(n, torch.Generator().manual_seed(seed))
    field, z = _noisy(problem, rng, k, 3.0), problem.at(0.0)
    quiet = solve_within(solver, problem.field, z, 0.0, 1.0, 1e-4, noisy=True)
    noisy = solve_within(solver, field, z, 0.0, 1.0, 1e-4, noisy=True)
    close("z under noise of q", noisy.state, quiet.state)
    close("evaluations under noise of q", noisy.evaluations, quiet.evaluations)
    noise = noisy.integral - problem.integral(0.0, 1.0)
    std = float(noise.std())
    close("the mean error of ∫ q", noise.mean(), 0.0, atol=6.5 * std / n**0.5 + 2e-2)
    ratio = float(noisy.standard_error.square().mean()) / std**2
    close("the standard error over the standard deviation, squared,", ratio, 1.3, atol=0.7)
    covered = float((noise.abs() <= 2 * noisy.standard_error).double().mean())
    close("the coverage of two standard errors", covered, 0.94, atol=0.06)


@SOLVERS.property(
    "fixed noise",
    "where probes are fixed along a path, k columns give the standard error of their mean",
    "columns that are averaged before they are integrated; a standard error of 0",
    applies=lambda solver: not solver.fresh,
    examples=2,
    seed=seeds,
)
def fixed_noise(solver: Any, seed: int) -> None:
    """60 equal samples of 6 columns: SE² within a factor of 3 of the variance (to 1e-7)."""
    n, problem = 60, _Copies(60, 2, seed)
    rng = CounterRNG.draw(n, torch.Generator().manual_seed(seed))
    field = _noisy(problem, rng, 6, 3.0)
    solution = solve_within(solver, field, problem.at(0.0), 0.0, 1.0, 1e-3, noisy=True)
    noise = solution.integral - problem.integral(0.0, 1.0)
    ratio = solution.standard_error.square().mean() / noise.square().mean()
    close("log (standard error² / variance)", ratio.clamp(min=1e-30).log(), 0.0, atol=math.log(3))


class _Transported(Logistic):
    """The logistic flow of a density that is Gaussian at τ = 1; the field returns ∇ log p too."""

    @staticmethod
    def log_prob(z: Tensor) -> Tensor:
        """Return log p at τ = 1, up to a constant."""
        return -0.5 * ((z - 0.5) / 0.3).square().sum(1)

    def field(self, tau: Tensor, z: Tensor, rows: Tensor, counter: Tensor) -> Any:
        """Return the velocity, its divergence and ∇ log p."""
        v, q, _ = super().field(tau, z, rows, counter)
        omega = self.omega[rows]
        ahead = self.rate[rows] * (torch.sin(omega) - torch.sin(omega * column(tau))) / omega
        with torch.enable_grad():
            y = z.detach().clamp(1e-6, 1 - 1e-6).requires_grad_()
            end = torch.sigmoid(torch.logit(y) + ahead)
            volume = torch.log(end * (1 - end)) - torch.log(y * (1 - y))
            total = self.log_prob(end).sum() + volume.sum()
        return v, q, torch.autograd.grad(total, y)[0]


@SOLVERS.property(
    "error estimate",
    "the reported error is at least that of ∫ q and of log p for nine samples of ten, or NaN",
    "the error of a single step, or of the state alone",
    examples=2,
    tolerance=lambda solver: st.sampled_from([1e-3, 1e-4, 1e-5]),
    seed=seeds,
)
def error_estimate(solver: Any, tolerance: float, seed: int) -> None:
    """Of 100 smooth flows, where the estimate is not NaN. No statistics: 97 % are usual."""
    probe = _Transported(1, 3, seed)
    if solve_within(solver, probe.field, probe.at(0.0), 0.0, 1.0, tolerance).error.isnan().all():
        return
    flow = _Transported(100, 3, seed)
    solution = solve_within(solver, flow.field, flow.at(0.0), 0.0, 1.0, tolerance)
    exact = flow.integral(0.0, 1.0)
    log_prob = exact + flow.log_prob(flow.at(1.0))
    for name, error in (
        ("∫ q", solution.integral - exact),
        ("log p", solution.integral + flow.log_prob(solution.state) - log_prob),
    ):
        covered = float((error.abs() <= solution.error).double().mean())
        holds(covered >= 0.9, f"the error of {name} is covered for {covered:.0%} of the samples")
