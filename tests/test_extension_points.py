"""A member of each family, written outside the package with public imports alone, and checked."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from scoresde import VPSDE, GaussianMixture, GaussianSDE, ScoreModel, log_likelihood, sample
from scoresde.inverse_problems import LogLikelihood, TweediePosterior
from scoresde.likelihood import Likelihood, Method
from scoresde.samplers import Exponential, Sampler
from scoresde.solvers import Solution, Solver, Status
from scoresde.testing import (
    check_likelihood,
    check_network,
    check_sampler,
    check_score,
    check_sde,
    check_solver,
    check_trace,
)
from scoresde.traces import Trace

# --- an SDE


class QuadraticSDE(GaussianSDE):
    """α = e^{−rate t² − t/20}, σ² = 1 − α²."""

    def __init__(self, rate: float = 4.0, T: float = 1.0, t_min: float = 1e-3) -> None:
        super().__init__(T, t_min)
        self.rate = rate

    def log_alpha(self, t):
        return -self.rate * t**2 - 0.05 * t

    def log_sigma(self, t):
        return 0.5 * torch.log(-torch.expm1(2 * self.log_alpha(t)))


# --- a network


class TwoLayers(nn.Module):
    event_shape = (2,)

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.width = width
        self.first, self.last = nn.Linear(4, width), nn.Linear(width, 2)

    def forward(self, x, label):
        time = torch.stack([torch.sin(label), torch.cos(label)], dim=1)
        return self.last(torch.tanh(self.first(torch.cat([x, time], dim=1))))


# --- a sampler


@dataclass(frozen=True)
class DDIM(Sampler):
    deterministic = True
    convergence_order = 1.0

    def step(self, score, x, t, s, state, noise):
        return score.sde.perturb(score.denoised(x, t), s, score.noise(x, t)), state


# --- a solver


@dataclass(frozen=True)
class RK4(Solver):
    """The classical Runge–Kutta method, with steps chosen by the tolerance alone."""

    convergence_order = 4.0

    def solve(self, field, z, start, end, *, tolerance, noisy=False):
        n = len(z)
        number = 0 if start == end else round(4 * tolerance**-0.25 * max(1.0, abs(end - start)))
        times = torch.linspace(start, end, number + 1, dtype=torch.float64).tolist()
        y, rows = z.double().clone(), torch.arange(n, device=z.device)
        reached, evaluations = torch.full_like(y[:, :1].sum(1), start), torch.zeros_like(rows)
        columns = None

        def slope(tau, state, rows):
            evaluations[rows] += 1
            return field(torch.full_like(state[:, 0], tau), state, rows, torch.zeros_like(rows))[:2]

        for tau, after in pairwise(times):
            h, middle, state = after - tau, 0.5 * (tau + after), y[rows]
            a, p = slope(tau, state, rows)
            b, q = slope(middle, state + h / 2 * a, rows)
            c, r = slope(middle, state + h / 2 * b, rows)
            d, s = slope(after, state + h * c, rows)
            change, gain = (
                h / 6 * (u + 2 * v + 2 * w + x) for u, v, w, x in ((a, b, c, d), (p, q, r, s))
            )
            columns = y.new_zeros(n, gain.shape[1]) if columns is None else columns
            fine = (change.abs() <= 10 * (1 + state.abs())).all(1) & gain.isfinite().all(1)
            rows = rows[fine]
            y[rows], reached[rows] = state[fine] + change[fine], after
            columns[rows] += gain[fine]
        status = torch.full_like(evaluations, int(Status.NOT_FINITE))
        status[rows] = int(Status.CONVERGED)
        k = 0 if columns is None else columns.shape[1]
        integral = columns.mean(1) if k else torch.zeros_like(reached)
        error = torch.zeros_like(reached)
        if noisy:
            error = columns.std(1) / k**0.5 if k > 1 else error + torch.nan
        return Solution(
            y, integral, error, torch.full_like(reached, torch.nan), reached, evaluations, status
        )


# --- a divergence estimator


@dataclass(frozen=True)
class NormalProbe(Trace):
    """vᵀJv with one standard normal v."""

    linear = True

    def __call__(self, field, x, rng, *, differentiable=False):
        v = rng.normals((x.shape[1],)).to(x)
        with torch.enable_grad():
            leaf = x if differentiable and x.requires_grad else x.detach().requires_grad_()
            value = field(leaf)
            product = None
            if value.requires_grad:
                (product,) = torch.autograd.grad(
                    value,
                    leaf,
                    v,
                    create_graph=differentiable,
                    retain_graph=True,
                    allow_unused=True,
                )
            estimate = ((torch.zeros_like(x) if product is None else product) * v).sum(1, True)
        return (value, estimate) if differentiable else (value.detach(), estimate.detach())

    def products(self, d):
        return 1

    def variance(self, jacobian):
        return 0.5 * (jacobian + jacobian.mT).square().sum()


# --- a likelihood method


@dataclass(frozen=True)
class ClosedForm(Method):
    """The density of a score that has one."""

    def __call__(self, settings, x, rows):
        t_min = settings.flow.t_min
        log_prob = settings.flow.score.select(rows).log_prob(x, t_min)
        zero, one = torch.zeros_like(log_prob), torch.ones_like(rows)
        return Likelihood(
            log_prob, zero, zero, zero, x, one, 0 * one, log_prob.isfinite(), t_min, x
        )


# --- a posterior score


class ShrunkDPS(TweediePosterior):
    """DPS with a guidance term that is 1/(1 + σ²/α²) as large."""

    def guidance_gradient(self, denoiser):
        differentiable = denoiser.denoised.requires_grad
        with torch.enable_grad():
            x = denoiser.denoised
            leaf = x if differentiable else x.detach().requires_grad_()
            value = self.measurement.log_prob(leaf)
            (gradient,) = torch.autograd.grad(value.sum(), leaf, create_graph=differentiable)
        weight = (1 / (1 + (denoiser.sigma / denoiser.alpha) ** 2)).to(x)
        if weight.ndim:
            return weight.reshape(-1, *[1] * (x.ndim - 1)) * gradient, weight * value
        return weight * gradient, weight * value

    def with_parts(self, score, measurement):
        return ShrunkDPS(score, measurement)


def prior():
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
    return GaussianMixture(torch.ones(2), means, 0.1 * torch.eye(2).expand(2, 2, 2), VPSDE())


def posterior():
    return ShrunkDPS(prior(), LogLikelihood(lambda x: -((x[:, 0] - 1.0) ** 2)))


def test_an_sde():
    check_sde(QuadraticSDE(), examples=5)


def test_a_network():
    check_network(TwoLayers(), examples=2)


def test_a_sampler():
    report = check_sampler(DDIM(), examples=2)
    assert report.measured["convergence order"] == pytest.approx(1.0, abs=0.2)


def test_a_solver():
    report = check_solver(RK4(), examples=2)
    assert report.measured["convergence order"] == pytest.approx(4.0, abs=0.6)


def test_a_trace():
    check_trace(NormalProbe(), examples=3)


def test_a_likelihood_method():
    names = ["shapes", "closed form", "normalization", "generator", "budget", "off the data"]
    check_likelihood(ClosedForm(), only=names, examples=2)


def test_a_posterior_score():
    check_score(posterior(), event_shape=(2,), exact=False, examples=3)
    generator = torch.Generator().manual_seed(0)
    x = sample(posterior(), (200, 2), Exponential(order=2), steps=20, generator=generator)
    assert x[:, 0].mean() > 0.5  # of the prior: 0


def test_they_work_together():
    """The network in a score under the SDE, sampled and scored by the other members."""
    model = ScoreModel(TwoLayers(), QuadraticSDE()).eval()
    x = sample(model, (3, 2), DDIM(), steps=10, generator=torch.Generator().manual_seed(0))
    result = log_likelihood(
        model, x, trace=NormalProbe(), solver=RK4(), generator=torch.Generator().manual_seed(1)
    )
    assert result.log_prob.isfinite().all()
    assert bool(result.converged.all())


def test_public_imports_suffice():
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    used = [name for name in modules if name.startswith("scoresde")]
    assert used
    assert not [name for name in used if "._" in name or name.count(".") > 1]
