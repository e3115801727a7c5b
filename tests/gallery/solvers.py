"""Integrators with a bug."""

import dataclasses

import torch
from torchdiffeq import odeint

from gallery.bug import breaks
from scoresde.solvers import Adams, TorchDiffEq
from scoresde.testing.adapters import FunctionSolver


def runge_kutta(field, z, start, end, steps, weights=(1, 2, 2, 1), middle=0.5):
    h, tau = (end - start) / steps, start
    for _ in range(steps):
        a = field(tau, z)
        b = field(tau + middle * h, z + h / 2 * a)
        c = field(tau + middle * h, z + h / 2 * b)
        d = field(tau + h, z + h * c)
        total = sum(w * v for w, v in zip(weights, (a, b, c, d), strict=True))
        z, tau = z + h / 6 * total, tau + h
    return z


def enough(tolerance):
    return round(4 * tolerance**-0.25)


def rk4(field, z, start, end, tolerance):
    return runge_kutta(field, z, start, end, enough(tolerance))


def fixed_steps(function, **declared):
    return FunctionSolver(function, own_steps=True, coupled=False, **declared)


def right():
    return fixed_steps(rk4, convergence_order=4)


@breaks("convergence order", "a wrong coefficient", right)
def wrong_weights():
    """The classical Runge–Kutta method with the weights 1, 2, 1, 2."""

    def wrong(field, z, start, end, tolerance):
        return runge_kutta(field, z, start, end, enough(tolerance), weights=(1, 2, 1, 2))

    return fixed_steps(wrong, convergence_order=4)


@breaks("closed forms", "the slope at the wrong time", right)
def late_slopes():
    """All slopes at the beginning of the step."""

    def late(field, z, start, end, tolerance):
        return runge_kutta(field, z, start, end, enough(tolerance), middle=0.0)

    return fixed_steps(late)


@breaks("reversibility", "abs() of a step", right)
def positive_steps():
    def positive(field, z, start, end, tolerance):
        low, high = sorted((start, end))
        return runge_kutta(field, z, low, high, enough(tolerance))

    return fixed_steps(positive)


@breaks("tolerance", "a tolerance that is not passed on", right)
def ignores_the_tolerance():
    def fixed(field, z, start, end, tolerance):
        return runge_kutta(field, z, start, end, 16)

    return fixed_steps(fixed)


@breaks("batch independence", "in which the error of one sample is invisible", TorchDiffEq)
def shared_norm():
    """torchdiffeq with its default norm, the root mean square of the whole batch."""

    def shared(field, z, start, end, tolerance):
        times = torch.tensor([start, end], dtype=torch.float64)
        options = {"step_t": times[-1:]}
        return odeint(field, z, times, rtol=tolerance, atol=tolerance, options=options)[-1]

    return FunctionSolver(shared, coupled=False)


@breaks("own steps", "step size over the batch", Adams)
class Together(TorchDiffEq):
    """Steps chosen by the worst row, but declared as each row's own."""

    own_steps = True


@breaks("failures", "a step that shrinks without bound", Adams, slow=True)
def until_it_is_small():
    """An adaptive method that repeats a step until its error is small, which NaN never is."""

    def adaptive(field, z, start, end, tolerance):
        tau, h = start, (end - start) / 10
        while abs(end - tau) > 1e-12:
            h = min(abs(h), abs(end - tau)) * (1 if end > start else -1)
            a = field(tau, z)
            b = field(tau + h, z + h * a)
            if (h / 2 * (b - a)).abs().max() < tolerance:
                z, tau, h = z + h / 2 * (a + b), tau + h, 2 * h
            else:
                h = h / 2
        return z

    return FunctionSolver(adaptive, coupled=False)


@breaks("interval", "a trial step beyond the end", Adams)
class Probing(Adams):
    """A first slope is taken a little beyond the end."""

    def solve(self, field, z, start, end, *, tolerance, noisy=False):
        tau, rows = torch.full_like(z[:, 0], 1.05 * end - 0.05 * start), torch.arange(len(z))
        field(tau, z, rows, torch.zeros_like(rows))
        return super().solve(field, z, start, end, tolerance=tolerance, noisy=noisy)


class _Changed(Adams):
    """The solution of Adams' method, with one field changed."""

    def changes(self, solution):
        raise NotImplementedError

    def solve(self, field, z, start, end, *, tolerance, noisy=False):
        solution = super().solve(field, z, start, end, tolerance=tolerance, noisy=noisy)
        return dataclasses.replace(solution, **self.changes(solution))


@breaks("evaluation limit", "expected MAX_EVALUATIONS", Adams)
class AlwaysConverged(_Changed):
    def changes(self, solution):
        return {"status": 0 * solution.status}


@breaks("counts", "rejected steps that are not counted", Adams)
class HalfCounted(_Changed):
    def changes(self, solution):
        return {"evaluations": solution.evaluations // 2}


@breaks("error estimate", "the error of a single step", Adams)
class TooSure(_Changed):
    def changes(self, solution):
        return {"error": 1e-3 * solution.error}


@breaks("gradient", "no_grad or .detach() around a step", Adams)
class WithoutGraph(_Changed):
    def changes(self, solution):
        return {"state": solution.state.detach() + 0 * solution.integral[:, None]}


@breaks("fixed noise", "a standard error of 0", TorchDiffEq)
class NoNoise(TorchDiffEq):
    def solve(self, field, z, start, end, *, tolerance, noisy=False):
        solution = super().solve(field, z, start, end, tolerance=tolerance, noisy=noisy)
        return dataclasses.replace(solution, standard_error=0 * solution.standard_error)


@breaks("shapes", "squeeze() of a batch of one", right, n=1)
def squeezing():
    def squeezed(field, z, start, end, tolerance):
        return rk4(field, z, start, end, tolerance).squeeze()

    return fixed_steps(squeezed)


@breaks("exceptions", "except Exception around the step", right)
def swallowing():
    def swallow(field, z, start, end, tolerance):
        try:
            return rk4(field, z, start, end, tolerance)
        except Exception:
            return z

    return fixed_steps(swallow)


@breaks("degenerate problems", "a division by end − start", right)
def steps_from_the_length():
    """The number of steps is the length of the interval over the step."""

    def parts(field, z, start, end, tolerance):
        steps = enough(tolerance)
        h = (end - start) / steps
        return runge_kutta(field, z, start, end, round((end - start) / h))

    return fixed_steps(parts)


@breaks("single precision", "expected a solution", Adams)
class OnlyDouble(Adams):
    """A solver that refuses float32."""

    def solve(self, field, z, start, end, *, tolerance, noisy=False):
        if z.dtype != torch.float64:
            raise TypeError("z: expected float64")
        return super().solve(field, z, start, end, tolerance=tolerance, noisy=noisy)


@breaks("single precision", "expected CONVERGED", Adams)
class NeverInSingle(Adams):
    """A smallest step that float32 does not reach: every sample fails."""

    def solve(self, field, z, start, end, *, tolerance, noisy=False):
        solution = super().solve(field, z, start, end, tolerance=tolerance, noisy=noisy)
        failed = z.dtype == torch.float32
        return dataclasses.replace(solution, status=solution.status + 2 * failed)
