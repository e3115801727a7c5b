"""Solvers agree with closed-form solutions, in both directions; their status reports failures.

Statistical tests run on fixed seeds and state their false-alarm rate.
"""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.integrate
import torch
from scipy import stats

from scoresde import solvers
from scoresde._core.counter_rng import CounterRNG
from scoresde.solvers import MEMBERS, Adams, SciPy, Solution, Status, TorchDiffEq
from scoresde.solvers.adams import (
    _phi_moments,
    _residual_variance,
    _standard_error,
    _step_factor,
)
from scoresde.solvers.torchdiffeq import _ControlledSystem
from scoresde.testing import check_solver

EACH_MEMBER = pytest.mark.parametrize("solver", MEMBERS, ids=repr)
ADAPTERS = pytest.mark.parametrize("solver", MEMBERS[1:], ids=repr)
METHODS = pytest.mark.parametrize(
    "solver",
    [
        *MEMBERS,
        *(TorchDiffEq(m) for m in ("dopri8", "bosh3", "adaptive_heun")),
        *(SciPy(m) for m in ("RK23", "DOP853", "Radau", "BDF", "LSODA")),
        *(Adams(order=k) for k in (2, 6)),
    ],
    ids=repr,
)
FAILED = {int(Status.STEP_TOO_SMALL), int(Status.NOT_FINITE)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rand(*shape, seed=0):
    return torch.rand(shape, generator=generator(seed), dtype=torch.float64)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def column(tau):
    return tau.unsqueeze(1)


class Logistic:
    """z′ = r cos(ωτ) z(1 − z) and its divergence, with different r and ω in every entry.

    logit z(τ) = logit z(0) + r sin(ωτ)/ω, and ∫ div = Σ Δ log z(1 − z).
    """

    def __init__(self, n, d, seed=0, pace=1.0):
        self.rate = pace * (4 * rand(n, d, seed=seed) - 2)
        self.omega = pace * (0.5 + 2 * rand(n, d, seed=seed + 1))
        self.origin = 0.1 + 0.8 * rand(n, d, seed=seed + 2)

    def phase(self, tau, rows):
        omega = self.omega[rows]
        return self.rate[rows] * torch.sin(omega * tau) / omega

    def at(self, tau):
        rows = slice(None)
        return torch.sigmoid(torch.logit(self.origin) + self.phase(torch.tensor(tau), rows))

    def integral(self, start, end):
        a, b = self.at(start), self.at(end)
        return (torch.log(b * (1 - b)) - torch.log(a * (1 - a))).sum(1)

    def field(self, tau, z, rows, counter):
        speed = self.rate[rows] * torch.cos(self.omega[rows] * column(tau))
        return speed * z * (1 - z), (speed * (1 - 2 * z)).sum(1, keepdim=True), None


def solve(solver, problem, start, end, tolerance, **options):
    z = problem.at(start)
    return solver.solve(problem.field, z, start, end, tolerance=tolerance, **options)


def errors(solution, problem, start, end):
    """Errors of state, relative to 1 + |z|, and of the integral per dimension, ``(n,)`` each."""
    z = problem.at(end)
    state = ((solution.state - z).abs() / (1 + z.abs())).amax(1)
    return state, (solution.integral - problem.integral(start, end)).abs() / z.shape[1]


# --- closed forms


@METHODS
def test_closed_forms_in_both_directions(solver):
    check_solver(solver, only="closed forms")


@pytest.mark.parametrize("method", ["Radau", "BDF", "LSODA"])
def test_implicit_methods_do_not_pay_for_stiffness(method):
    def field(tau, z, rows, counter):
        t = column(tau)
        return -1e6 * (z - torch.cos(t)) - torch.sin(t), z, None

    z = torch.ones(1, 1, dtype=torch.float64)
    solution = SciPy(method).solve(field, z, 0.0, 1.0, tolerance=1e-5)
    assert not solution.status.any()
    assert (solution.state - math.cos(1.0)).abs().max() < 1e-4
    assert solution.evaluations.max() < 300


@METHODS
def test_errors_fall_with_the_tolerance(solver):
    problem = Logistic(6, 2)
    tolerances = [1e-3, 1e-4, 1e-5, 1e-6]
    worst, cost = [], []
    for tolerance in tolerances:
        solution = solve(solver, problem, 0.0, 2.0, tolerance)
        state, integral = errors(solution, problem, 0.0, 2.0)
        worst.append(max(float(state.max()), float(integral.max())) / tolerance)
        cost.append(float(solution.evaluations.double().mean()))
    assert max(worst) < 60
    assert all(a <= b for a, b in pairwise(cost))
    assert worst[-1] < max(10 * worst[0], 0.3)  # in proportion, but for a factor of 10 in 1000


@pytest.mark.parametrize(
    "order", [1, 2, 3, 4, *(pytest.param(k, marks=pytest.mark.slow) for k in (6, 8))]
)
def test_a_declared_order_is_the_observed_order(order):
    """k slopes give order k + 1 in work against precision, for the path and the integral."""
    check_solver(Adams(order=order), only="convergence order")


@METHODS
def test_the_state_alone_is_controlled_too(solver):
    """Without integrals, whose error control would shorten the steps."""
    problem = Logistic(6, 2)

    def field(tau, z, rows, counter):
        velocity, *_ = problem.field(tau, z, rows, counter)
        return velocity, z.new_zeros(len(z), 0), None

    for tolerance in (1e-3, 1e-5):
        solution = solver.solve(field, problem.at(0.0), 0.0, 2.0, tolerance=tolerance)
        missed = (solution.state - problem.at(2.0)).abs().max()
        assert float(missed) < 60 * tolerance


@pytest.mark.parametrize("kind", [TorchDiffEq, SciPy], ids=lambda kind: kind.__name__)
def test_relative_tolerances_are_relative_and_absolute_ones_absolute(kind):
    """For a state of size 1000, a tolerance of 1e-4 is 0.1 or 1e-4, which shows in the cost."""

    def field(tau, z, rows, counter):
        return 1000 * torch.cos(column(tau)), z.new_zeros(len(z), 0), None

    z = double([[1e3]])
    relative, absolute, both = (
        kind(rtol=rtol, atol=atol).solve(field, z, 0.0, 6.0, tolerance=1.0)
        for rtol, atol in ((1e-4, 1e-12), (1e-12, 1e-4), (1e-4, 1e-1))
    )
    exact = 1e3 + 1e3 * math.sin(6.0)
    assert float((absolute.state - exact).abs()) < 60 * 1e-4
    assert float((relative.state - exact).abs()) < 60 * 1e-1
    assert 1.5 * relative.evaluations < absolute.evaluations
    assert both.evaluations <= relative.evaluations


def test_the_declared_order_of_adams():
    assert [Adams(order=k).convergence_order for k in range(1, 9)] == [k + 1 for k in range(1, 9)]


# --- batch independence


def test_adams_does_not_depend_on_the_batch():
    problem = Logistic(6, 3)
    problem.rate[-1] *= 8  # one sample is harder than the others
    together = solve(Adams(), problem, 0.0, 2.0, 1e-5)
    order = torch.tensor([5, 0, 3])
    z = problem.at(0.0)

    for rows in (order, torch.tensor([5]), torch.tensor([2])):

        def field(tau, z, index, counter, rows=rows):
            return problem.field(tau, z, rows[index], counter)

        part = Adams().solve(field, z[rows], 0.0, 2.0, tolerance=1e-5)
        for f in dataclasses.fields(Solution):
            got, expected = getattr(part, f.name), getattr(together, f.name)[rows]
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)
    assert together.evaluations[-1] > 1.3 * together.evaluations[:-1].max()


def test_scipy_solves_each_sample_separately():
    problem = Logistic(3, 2)
    together = solve(SciPy(), problem, 0.0, 2.0, 1e-5)
    for i in range(3):
        row = torch.tensor([i])

        def field(tau, z, rows, counter, row=row):
            return problem.field(tau, z, row[rows], counter)

        alone = SciPy().solve(field, problem.at(0.0)[row], 0.0, 2.0, tolerance=1e-5)
        assert torch.equal(alone.state, together.state[row])
        assert torch.equal(alone.evaluations, together.evaluations[row])


def test_torchdiffeq_controls_the_error_of_each_sample():
    """One sample of 64 is not constant: the library's RMS over the batch hides its error."""
    problem = Logistic(64, 2, pace=3.0)
    problem.rate[1:] = 0
    z, tolerance = problem.at(0.0), 1e-4
    solution = solve(TorchDiffEq(), problem, 0.0, 2.0, tolerance)
    error = errors(solution, problem, 0.0, 2.0)[0][0]

    from torchdiffeq import odeint

    def plain(t, z):
        return problem.field(t.expand(64), z, torch.arange(64), None)[0]

    times = torch.tensor([0.0, 2.0], dtype=torch.float64)
    shared = odeint(plain, z, times, rtol=tolerance, atol=tolerance)[-1]
    shared_error = (shared - problem.at(2.0)).abs().max()
    assert error < 10 * tolerance
    assert shared_error > 4 * error


def test_an_integral_is_controlled_like_the_state():
    """A constant path with a varying integrand, in many dimensions."""
    z = torch.zeros(1, 100, dtype=torch.float64)

    def field(tau, z, rows, counter):
        return torch.zeros_like(z), 100 * torch.exp(-200 * (column(tau) - 0.5) ** 2), None

    exact = 100 * math.sqrt(math.pi / 200) * math.erf(math.sqrt(50))
    for solver in (Adams(), TorchDiffEq(), SciPy(), SciPy("DOP853")):
        solution = solver.solve(field, z, 0.0, 1.0, tolerance=1e-5)
        assert abs(float(solution.integral) - exact) < 30 * 100 * 1e-5


# --- failures, per sample


def failing(kind):
    """A field of which only row 1 fails, at τ = 1/2 or at the start."""

    def field(tau, z, rows, counter):
        v = -z
        one = column(rows == 1)
        bad = {
            "nan": torch.where(column(tau) > 0.5, math.nan, -z),
            "nan at once": torch.full_like(z, math.nan),
            "nan integrand": v,
            "infinite": torch.where(column(tau) > 0.5, math.inf, -z),
            "blow-up": 2 * z**2,
        }[kind]
        q = z.sum(1, keepdim=True)
        bad_q = torch.where(column(tau) > 0.5, math.nan, q) if kind == "nan integrand" else q
        return torch.where(one, bad, v), torch.where(one, bad_q, q), None

    return field


SEPARATE = [Adams(), TorchDiffEq(), TorchDiffEq("bosh3"), SciPy(), SciPy("BDF"), SciPy("Radau")]


@pytest.mark.parametrize("solver", SEPARATE, ids=repr)
@pytest.mark.parametrize("kind", ["nan", "nan at once", "nan integrand", "infinite", "blow-up"])
def test_only_the_failing_sample_fails(solver, kind):
    z = torch.ones(3, 2, dtype=torch.float64)
    solution = solver.solve(failing(kind), z, 0.0, 1.0, tolerance=1e-4)
    good = torch.tensor([0, 2])
    assert not solution.status[good].any()
    torch.testing.assert_close(
        solution.state[good], torch.full((2, 2), math.exp(-1)).double(), rtol=0, atol=2e-3
    )
    torch.testing.assert_close(
        solution.integral[good], torch.full((2,), 2 - 2 / math.e).double(), rtol=0, atol=4e-3
    )
    assert int(solution.status[1]) in FAILED
    assert bool(solution.state[1].isfinite().all())
    assert bool(solution.integral[1].isfinite())
    if kind == "nan at once":
        assert float(solution.reached[1]) == 0
        assert torch.equal(solution.state[1], z[1])
    else:
        assert 0.35 < float(solution.reached[1]) < 0.51
    if kind in ("nan", "nan integrand", "infinite"):  # the exact value at the reported τ
        tau = float(solution.reached[1])
        assert (solution.state[1] - math.exp(-tau)).abs().max() < 2e-3


@pytest.mark.parametrize("solver", [*MEMBERS[1:], SciPy("BDF"), SciPy("LSODA")], ids=repr)
@pytest.mark.parametrize("kind", ["nan", "nan at once", "nan integrand"])
def test_a_slope_that_is_not_finite_is_reported(solver, kind):
    z = torch.ones(3, 2, dtype=torch.float64)
    solution = solver.solve(failing(kind), z, 0.0, 1.0, tolerance=1e-4)
    assert int(solution.status[1]) == Status.NOT_FINITE
    assert bool(solution.state.isfinite().all())
    assert bool(solution.integral.isfinite().all())


def test_a_coupled_batch_stops_together():
    z = torch.ones(3, 2, dtype=torch.float64)
    solution = SciPy(coupled=True).solve(failing("nan"), z, 0.0, 1.0, tolerance=1e-4)
    codes = [Status.STEP_TOO_SMALL, Status.NOT_FINITE, Status.STEP_TOO_SMALL]
    assert solution.status.tolist() == codes
    assert (solution.reached == solution.reached[0]).all()


def test_a_noisy_integrand_that_is_not_finite_is_a_failure_for_adams():
    z = torch.ones(3, 2, dtype=torch.float64)
    field = failing("nan integrand")
    solution = Adams().solve(field, z, 0.0, 1.0, tolerance=1e-4, noisy=True)
    assert int(solution.status[1]) in FAILED
    assert bool(solution.integral.isfinite().all())


@pytest.mark.parametrize(
    "solver",
    [Adams(), TorchDiffEq(), SciPy()],
    ids=repr,
)
def test_only_the_failing_sample_fails_far_from_the_origin(solver):
    """The smallest step is then the spacing of the floating-point numbers around τ."""
    z = torch.ones(3, 2, dtype=torch.float64)

    def field(tau, z, rows, counter):
        late = column((rows == 1) & (tau > 1000.0005))
        return torch.where(late, math.nan, -z), z, None

    solution = solver.solve(field, z, 1000.0, 1000.001, tolerance=1e-4)
    assert not solution.status[[0, 2]].any()
    assert int(solution.status[1]) in FAILED


@EACH_MEMBER
def test_no_exception_if_every_sample_fails(solver):
    def field(tau, z, rows, counter):
        return z * math.nan, z, None

    z = torch.ones(4, 1, dtype=torch.float64)
    solution = solver.solve(field, z, 0.0, 1.0, tolerance=1e-3)
    assert set(solution.status.tolist()) <= FAILED
    assert torch.equal(solution.state, z)


@METHODS
def test_a_trial_step_out_of_the_domain_is_repeated_with_a_smaller_one(solver):
    """z′ = −√z has no real slope below 0, which too long a step reaches."""

    def field(tau, z, rows, counter):
        return -torch.sqrt(z), z, None

    z = torch.tensor([[1.0], [4.0]], dtype=torch.float64)
    solution = solver.solve(field, z, 0.0, 1.9, tolerance=1e-4)
    assert not solution.status.any()
    assert (solution.state - (z.sqrt() - 0.95) ** 2).abs().max() < 2e-3


@METHODS
def test_the_limit_on_evaluations_holds(solver):
    z = torch.ones(3, 2, dtype=torch.float64)
    counted = torch.zeros(3, dtype=torch.int64)

    def field(tau, z, rows, counter):
        counted.index_add_(0, rows, torch.ones_like(rows))
        return -z, z.sum(1, keepdim=True), None

    limited = dataclasses.replace(solver, max_evaluations=12)
    solution = limited.solve(field, z, 0.0, 1.0, tolerance=1e-10)
    assert (solution.status == Status.MAX_EVALUATIONS).all()
    assert torch.equal(solution.evaluations, counted)
    assert counted.max() <= 12
    tau = column(solution.reached)
    assert ((tau >= 0) & (tau < 1)).all()
    assert (solution.state - torch.exp(-tau)).abs().max() < 1e-2
    assert (solution.integral - 2 * (1 - torch.exp(-tau[:, 0]))).abs().max() < 1e-2


@EACH_MEMBER
@pytest.mark.parametrize("error", [RuntimeError, ValueError, AssertionError, ZeroDivisionError])
@pytest.mark.parametrize("call", [1, 4, 9])
def test_exceptions_of_the_field_are_raised(solver, error, call):
    calls = []

    def field(tau, z, rows, counter):
        calls.append(1)
        if len(calls) == call:
            raise error("error of the field")
        return -z, z, None

    with pytest.raises(error, match="error of the field"):
        solver.solve(field, torch.ones(1, 1).double(), 0.0, 1.0, tolerance=1e-8)


# --- arguments of the field


@METHODS
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0)])
def test_times_stay_within_the_interval(solver, start, end):
    """The field may be undefined beyond: the angle atan(ρ/b) ends at π/2."""
    seen = []

    def field(tau, z, rows, counter):
        seen.append(tau)
        return 0.01 * torch.cos(column(tau)) + 0 * z, 1e-3 * z, None

    z = torch.full((2, 1), 5.0, dtype=torch.float64)  # so slow that a first step could be long
    solver.solve(field, z, start, end, tolerance=1e-3)
    times = torch.cat(seen)
    assert times.dtype == torch.float64
    assert float(times.min()) >= 0.0
    assert float(times.max()) <= 1.0


@EACH_MEMBER
def test_an_interval_of_length_zero(solver):
    problem = Logistic(3, 2)
    solution = solve(solver, problem, 0.7, 0.7, 1e-5)
    assert torch.equal(solution.state, problem.at(0.7))
    assert not solution.integral.any()
    assert not solution.status.any()
    assert (solution.reached == 0.7).all()
    assert solution.evaluations.max() <= 4


@EACH_MEMBER
def test_devices_and_dtypes(solver, device):
    z = torch.ones(2, 2, dtype=torch.float64, device=device)

    def field(tau, z, rows, counter):
        assert tau.device == z.device == rows.device == counter.device
        return -z, z.sum(1, keepdim=True), None

    solution = solver.solve(field, z, 0.0, 1.0, tolerance=1e-4)
    for f in dataclasses.fields(solution):
        assert getattr(solution, f.name).device == z.device
    assert solution.state.dtype == solution.integral.dtype == torch.float64


# --- the noise of the integrand


def noisy(problem, rng, k, scale):
    """The field with ``k`` estimates of q, each with independent noise at every evaluation."""

    def field(tau, z, rows, counter):
        v, q, a = problem.field(tau, z, rows, counter)
        return v, q + scale * rng.at(rows, counter).normals((k,)), a

    return field


def test_standard_errors_under_fresh_noise():
    """400 samples: SE²/variance within 5 standard errors, ±2 SE covers 90–99 % (alarm < 1e-3)."""
    n = 400
    problem = Logistic(1, 2)
    for name in ("rate", "omega", "origin"):
        setattr(problem, name, getattr(problem, name).expand(n, 2))
    for k in (1, 2, 4):
        field = noisy(problem, CounterRNG.draw(n, generator(k)), k, 3.0)
        z = problem.at(0.0)
        solution = Adams().solve(field, z, 0.0, 2.0, tolerance=1e-5, noisy=True)
        assert not solution.status.any()
        score = (solution.integral - problem.integral(0.0, 2.0)) / solution.standard_error
        assert abs(float(score.mean())) < 5 / n**0.5
        ratio = solution.standard_error.square().mean() / solution.integral.var()
        assert abs(float(ratio) - 1) < 5 * (2 / n) ** 0.5
        assert 0.90 <= float((score.abs() <= 2).double().mean()) <= 0.99


@pytest.mark.parametrize("solver", [TorchDiffEq(), SciPy(coupled=True)], ids=repr)
def test_standard_errors_under_fixed_noise(solver):
    """With k columns the score is Student's with k − 1 degrees of freedom (KS p > 1e-4)."""
    n, k = 200, 5
    problem = Logistic(1, 2)
    for name in ("rate", "omega", "origin"):
        setattr(problem, name, getattr(problem, name).expand(n, 2))
    field = noisy(problem, CounterRNG.draw(n, generator(1)), k, 3.0)
    solution = solver.solve(field, problem.at(0.0), 0.0, 1.0, tolerance=1e-4, noisy=True)
    score = (solution.integral - problem.integral(0.0, 1.0)) / solution.standard_error
    assert stats.kstest(score, stats.t(k - 1).cdf).pvalue > 1e-4
    assert solution.evaluations.max() < 100


@ADAPTERS
def test_the_standard_error_of_one_fixed_estimate_is_unknown(solver):
    solution = solve(solver, Logistic(3, 2), 0.0, 1.0, 1e-4, noisy=True)
    assert solution.standard_error.isnan().all()
    assert solution.integral.isfinite().all()


# --- the error estimate


class Density(Logistic):
    """The same flow with a density: log p at the end is Gaussian, ∇ log p is given."""

    end = 2.0

    @staticmethod
    def log_prob(z):
        return -0.5 * ((z - 0.5) / 0.3).square().sum(1)

    def field(self, tau, z, rows, counter):
        v, q, _ = super().field(tau, z, rows, counter)
        ahead = self.phase(torch.full_like(column(tau), self.end), rows)
        ahead = ahead - self.phase(column(tau), rows)
        with torch.enable_grad():
            y = z.detach().clamp(1e-6, 1 - 1e-6).requires_grad_()
            end = torch.sigmoid(torch.logit(y) + ahead)
            gained = torch.log(end * (1 - end)) - torch.log(y * (1 - y))
            total = self.log_prob(end).sum() + gained.sum()
        return v, q, torch.autograd.grad(total, y)[0]


@pytest.mark.parametrize("tolerance", [1e-3, 1e-4, 1e-6])
def test_the_error_estimate_covers_the_error(tolerance):
    """For 95 % of 300 random smooth flows: the integral's error, and that of log p."""
    flow = Density(300, 3)
    solution = solve(Adams(), flow, 0.0, flow.end, tolerance)
    integral = flow.integral(0.0, flow.end)
    log_prob = integral + flow.log_prob(flow.at(flow.end))
    got = solution.integral + flow.log_prob(solution.state)
    for error in ((solution.integral - integral).abs(), (got - log_prob).abs()):
        assert float((error <= solution.error).double().mean()) >= 0.95
    # and is not much larger than needed: 11 to 13 tolerances when this was written
    assert float(solution.error.median()) < 30 * tolerance


@ADAPTERS
def test_libraries_without_an_error_estimate_return_nan(solver):
    assert solve(solver, Logistic(3, 2), 0.0, 1.0, 1e-4).error.isnan().all()


# --- the libraries themselves


def test_coupled_scipy_is_the_published_method():
    """One call of solve_ivp on the images with the log-dets appended, with one tolerance."""
    problem, n, d = Logistic(4, 3), 4, 3
    z, rows = problem.at(0.0), torch.arange(4)

    def plain(t, y):
        state = torch.tensor(y[: n * d]).reshape(n, d)
        v, q, _ = problem.field(torch.full((n,), t, dtype=torch.float64), state, rows, None)
        return np.concatenate([v.reshape(-1), q.reshape(-1)])

    y = np.concatenate([z.reshape(-1), np.zeros(n)])
    expected = scipy.integrate.solve_ivp(plain, (0.0, 2.0), y, method="RK45", rtol=1e-5, atol=1e-5)
    solver = SciPy(rtol=1e-5, atol=1e-5, coupled=True)
    solution = solve(solver, problem, 0.0, 2.0, 1e-1)
    end = torch.tensor(expected.y[:, -1])
    torch.testing.assert_close(solution.state.reshape(-1), end[: n * d], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(solution.integral, end[n * d :], rtol=1e-12, atol=1e-12)
    assert solution.evaluations.tolist() == [expected.nfev] * n


@pytest.mark.parametrize("solver", [TorchDiffEq(), SciPy()], ids=repr)
def test_tolerances_default_to_that_of_solve(solver):
    problem = Logistic(3, 2)
    given = dataclasses.replace(solver, rtol=1e-7, atol=1e-7)
    explicit, derived = (solve(s, problem, 0.0, 1.0, 1e-7) for s in (given, solver))
    assert torch.equal(explicit.state, derived.state)
    assert torch.equal(solve(given, problem, 0.0, 1.0, 1e-2).state, derived.state)
    assert not torch.equal(solve(solver, problem, 0.0, 1.0, 1e-2).state, derived.state)


def test_torchdiffeq_remains_differentiable():
    """∂z(τ)/∂z(0) of the logistic flow, through the library's own graph."""
    problem = Logistic(3, 2)
    z = problem.at(0.0).requires_grad_()
    solution = TorchDiffEq().solve(problem.field, z, 0.0, 2.0, tolerance=1e-8)
    (gradient,) = torch.autograd.grad(solution.state.sum(), z)
    y, end = z.detach(), problem.at(2.0)
    torch.testing.assert_close(gradient, end * (1 - end) / (y * (1 - y)), rtol=1e-6, atol=1e-6)


@EACH_MEMBER
def test_repr_reconstructs_the_member(solver):
    assert eval(repr(solver), vars(solvers)) == solver
    with pytest.raises(dataclasses.FrozenInstanceError):
        solver.max_evaluations = 3


@EACH_MEMBER
def test_without_integrals_there_is_no_noise(solver):
    def decay(tau, z, rows, counter):
        return -z, z.new_zeros(len(z), 0), None

    solution = solver.solve(decay, rand(3, 2), 0.0, 1.0, tolerance=1e-4, noisy=True)
    assert torch.equal(solution.integral, torch.zeros(3, dtype=torch.float64))
    assert torch.equal(solution.standard_error, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("error", "rejecting"),
    [
        ([0.5, 1.5, 3.0], [False, True, True]),  # every error above 1 rejects a step
        ([0.2, 0.5, 0.9], [False, False, True]),
        ([0.5, math.nan, 1.0], [False, True, True]),
        ([math.inf, 2.0, 0.1], [True, True, False]),
    ],
)
def test_torchdiffeq_removes_the_samples_that_reject_the_smallest_step(error, rejecting):
    problem = Logistic(3, 2)
    system = _ControlledSystem(problem.field, problem.at(0.0), torch.arange(3), 0.0, 1.0, 10)
    ratio = torch.cat([double(error).unsqueeze(1).expand(3, 2), torch.zeros(3, 1)], dim=1)
    system.norm(ratio)
    assert system.rejecting.tolist() == rejecting


@pytest.mark.parametrize(
    "solver",
    [Adams(max_evaluations=3), TorchDiffEq(max_evaluations=2), SciPy(max_evaluations=2)],
    ids=repr,
)
def test_the_smallest_limit_on_evaluations_holds(solver):
    solution = solve(solver, Logistic(2, 2), 0.0, 1.0, 1e-6)
    assert (solution.evaluations <= solver.max_evaluations).all()
    assert (solution.status == int(Status.MAX_EVALUATIONS)).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: TorchDiffEq("rk4"),
            ValueError,
            "expected an adaptive .* got 'rk4'; .* fixed",
        ),
        (lambda: TorchDiffEq(None), ValueError, "method: expected an adaptive method"),
        (lambda: TorchDiffEq(rtol=0.0), ValueError, "rtol: expected a positive"),
        (lambda: TorchDiffEq(atol=-1.0), ValueError, "atol: expected a positive"),
        (lambda: TorchDiffEq(max_evaluations=1), ValueError, "max_evaluations: .* at least 2"),
        (lambda: SciPy("rk45"), ValueError, "method: expected one of RK23, RK45"),
        (lambda: SciPy(rtol="tight"), TypeError, "rtol: expected a positive"),
        (lambda: SciPy(max_evaluations=2.5), TypeError, "max_evaluations: expected an integer"),
        (lambda: Adams(order=0), ValueError, "order: "),
        (lambda: Adams(order=99), ValueError, "order: expected at most"),
        (lambda: Adams(max_evaluations=2), ValueError, "max_evaluations: "),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


# --- the parts of Adams


@pytest.mark.parametrize("x", [-40.0, -3.0, -2.01, -1.99, -0.7, 0.0, 1e-3, 0.4, 1.9, 2.1, 9.0])
def test_phi_moments_are_the_integrals(x):
    h, values = double([0.5]), double([2 * x])
    moments = _phi_moments(h.unsqueeze(1), values.unsqueeze(1), 6)
    for i, moment in enumerate(moments.flatten()):
        exact, _ = scipy.integrate.quad(
            lambda s, i=i: math.exp((1 - s) * x) * s**i, 0, 1, epsabs=0, epsrel=1e-12
        )
        assert float(moment) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize(("nodes", "freedom"), [(1, 12), (1, 30), (4, 5), (50, 1)])
def test_two_standard_errors_are_the_quantile_of_student_s_t(nodes, freedom):
    variance = double([3.0])
    error = float(_standard_error(variance, variance**2 / nodes, double([float(freedom)])))
    student = stats.t(nodes * (freedom + 2))  # Satterthwaite, for contributions of equal size
    assert 2 * error / math.sqrt(3) == pytest.approx(student.ppf(stats.norm.cdf(2.0)), rel=3e-3)


def next_step(order, rejected_step, rejected_error, step, error):
    """The length of the next step after one with this error."""
    state = dataclasses.replace(
        Adams()._initial_state(lambda tau, z, *_: (z, z, None), double([[1.0]]), 0.0),
        order=torch.tensor([order]),
        rejected_step=double([rejected_step]),
        rejected_error=double([rejected_error]),
    )
    return step * float(_step_factor(state, double([step]), double([error])))


@pytest.mark.parametrize("order", [1, 3, 5])
def test_steps_are_chosen_by_the_order_of_the_error(order):
    expected = 1.3  # a step of which the error e·h^(order + 1) is 0.8^(order + 1)
    error = (1.0 / (expected / 0.8)) ** (order + 1)
    assert next_step(order, 0.0, 0.0, 1.0, error) == pytest.approx(expected)


def test_the_order_is_estimated_after_two_rejections_at_one_time():
    # errors 1000 and 10 at steps of 1 and 0.1: the observed order 2 replaces the nominal one
    assert next_step(5, 1.0, 1000.0, 0.1, 10.0) == pytest.approx(0.1 * 0.8 * 10 ** (-1 / 2))
    assert next_step(5, 1.0, 20.0, 0.1, 10.0) == pytest.approx(0.1 * 0.1)  # order 1 at least
    # a step that is accepted after a rejection does not make the next one longer
    assert next_step(5, 1.0, 1000.0, 0.1, 1e-6) == pytest.approx(0.1)


def test_a_small_reduction_of_the_error_counts_as_order_one():
    assert next_step(5, 1.0, 1.3, 0.5, 1.2) == pytest.approx(0.5 * 0.8 / 1.2)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_the_variance_of_single_estimates_is_that_of_the_residuals(order):
    """In the mean over 40 000 rows: within 5 %, 5 standard errors; a linear trend adds nothing."""
    n = 40_000
    noise, tau = torch.randn(3, n, generator=generator(), dtype=torch.float64), [1.15, 1.0, 0.7]
    line = 4.0 if order > 1 else 0.0  # one estimate has no trend
    now, last, before = (0.3 * e + line * t for e, t in zip(noise, tau, strict=True))
    start = Adams()._initial_state(lambda tau, z, *_: (z, z, None), torch.zeros(n, 1).double(), 0.0)
    state = dataclasses.replace(
        start,
        order=torch.full((n,), order),
        nodes=double([tau[1:]]).expand(n, 2),
        rates=torch.stack([last, before], dim=1),
    )
    variance = _residual_variance(state, torch.full((n,), tau[0], dtype=torch.float64), now)
    assert float(variance.mean()) == pytest.approx(0.09, rel=0.05)


def test_nodes_out_of_the_history_count_in_the_degrees_of_freedom():
    """The same variance of the mean, estimated at each node from two estimates or a thousand."""

    def field(k):
        noise = torch.ones(k, dtype=torch.float64)
        noise[: k // 2] = -1.0
        noise = noise * math.sqrt(1.0 if k == 2 else k * (k - 1) / k)

        def of(tau, z, rows, counter):
            wave = torch.cos(9 * column(tau))
            return wave * z, wave + noise.expand(len(z), k), None

        return of

    z = torch.ones(1, 1, dtype=torch.float64)
    few, many = (
        Adams().solve(field(k), z, 0.0, 3.0, tolerance=1e-6, noisy=True) for k in (2, 1000)
    )
    assert int(few.evaluations) == int(many.evaluations) > 40
    assert 1.002 < float(few.standard_error / many.standard_error) < 1.03


def test_orders_of_torchdiffeq_are_the_published_ones():
    orders = {"dopri5": 5, "dopri8": 8, "bosh3": 3, "adaptive_heun": 2}
    assert {method: TorchDiffEq(method).convergence_order for method in orders} == orders


def test_the_path_error_of_steep_densities_is_controlled():
    """A gradient of log p of 2000 at the start costs a few evaluations, not accuracy."""

    class Steep(Density):
        @staticmethod
        def log_prob(z):
            return -0.5 * ((z - 0.5) / 0.02).square().sum(1)

    flow = Steep(50, 2)
    solution = solve(Adams(), flow, 0.0, flow.end, 1e-4)
    without = solve(Adams(), Logistic(50, 2), 0.0, flow.end, 1e-4)  # without ∇ log p
    truth = flow.integral(0.0, flow.end) + flow.log_prob(flow.at(flow.end))
    missed = (solution.integral + flow.log_prob(solution.state) - truth).abs()
    assert bool((missed <= solution.error).all())
    assert float(solution.error.median()) < 0.025  # 0.034 without control of the path error
    assert (solution.evaluations <= without.evaluations + 8).all()
