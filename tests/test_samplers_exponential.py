"""The exact log-SNR step and Heun: published names as settings, declared orders as observed.

The transcriptions are literal, in the papers' own symbols; the orders are measured in float64
against the flow integrated to 1e-11, or by propagating mean and variance exactly.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from flow_oracle import double, flow_oracle, mixture
from scipy.integrate import quad

from scoresde import DDPM, VESDE, VPSDE, FunctionScore, GaussianMixture, SubVPSDE
from scoresde.samplers import (
    DEIS,
    Ancestral,
    Churn,
    DDIMNoise,
    Exponential,
    Heun,
    UniformLogSNR,
    iterate,
)
from scoresde.samplers.exponential import exponential_moments

SDES = pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=repr)


def draw(*shape, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=source, dtype=torch.float64)


class Recorded:
    """A noise function that returns recorded draws in order."""

    def __init__(self, noises):
        self.noises = iter(noises)

    def __call__(self, x):
        return next(self.noises)


def run(sampler, score, start, times, noises=()):
    *_, (last, _) = iterate(score, start, times, sampler, Recorded(noises))
    return last


# --- identities: samplers of the literature, transcribed


SETUPS = pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=repr)


def setup(sde, steps=7, seed=0):
    times = UniformLogSNR()(sde, steps)
    times = times[1:-1] if isinstance(sde, VPSDE) else times[1:]
    start = draw(5, 2, seed=seed) * float(sde.sigma(times[0]))
    noises = list(draw(len(times) - 1, 5, 2, seed=seed + 1))
    alphas, sigmas = sde.alpha(times).tolist(), sde.sigma(times).tolist()
    return mixture(sde), times, start, noises, alphas, sigmas


def agree(ours, theirs, tolerance=1e-11):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim(eta):
    """Song et al. 2021 (DDIM), eqs. 12 and 16, in ᾱ."""
    score, times, x, noises, alphas, _ = setup(VPSDE())
    ours = run(Exponential(1, eta=DDIMNoise(eta)), score, x, times, noises)
    bars = [a**2 for a in alphas]
    for i, ((now, new), z) in enumerate(zip(pairwise(bars), noises, strict=True)):
        eps = score.noise(x, times[i])
        sigma = eta * math.sqrt((1 - new) / (1 - now)) * math.sqrt(1 - now / new)
        predicted_x0 = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
        x = math.sqrt(new) * predicted_x0 + math.sqrt(1 - new - sigma**2) * eps + sigma * z
    agree(ours, x)


@SETUPS
def test_ancestral_sampling_is_order_one_with_eta_one(sde):
    score, times, x, noises, *_ = setup(sde)
    agree(
        run(Exponential(1, eta=1.0), score, x, times, noises),
        run(Ancestral(), score, x, times, noises),
    )


def test_ddpm_posterior_on_its_table():
    """Ho et al. 2020, eqs. 6 and 7, on the linear table itself."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas, bars = 1 - betas, (1 - betas).cumprod(0)
    sde = DDPM(betas)
    score, x = mixture(sde), draw(4, 2)
    times, noises = sde.times[[400, 399, 398, 397]], list(draw(3, 4, 2, seed=1))
    ours = run(Exponential(1, eta=1.0), score, x, times, noises)
    for i, z in zip((400, 399, 398), noises, strict=True):
        x0 = score.denoised(x, sde.times[i])
        mean = bars[i - 1].sqrt() * betas[i] / (1 - bars[i]) * x0
        mean = mean + alphas[i].sqrt() * (1 - bars[i - 1]) / (1 - bars[i]) * x
        x = mean + ((1 - bars[i - 1]) / (1 - bars[i]) * betas[i]).sqrt() * z
    agree(ours, x, 1e-9)


@SETUPS
def test_k_diffusion_euler(sde):
    """Euler in σ of the denoised: d = (y − D)/σ, y += d Δσ, with y = x/α."""
    score, times, x, _, alphas, sigmas = setup(sde)
    ours = run(Exponential(1), score, x, times)
    rho = [s / a for s, a in zip(sigmas, alphas, strict=True)]
    y = x / alphas[0]
    for i, (now, new) in enumerate(pairwise(rho)):
        y = y + (y - score.denoised(alphas[i] * y, times[i])) / now * (new - now)
    agree(ours, alphas[-1] * y)


@SETUPS
@pytest.mark.parametrize("published", [True, False])
def test_dpm_solver_2m(sde, published):
    """Lu et al. 2022 (DPM-Solver++), algorithm 2; the exact slope where not ``published``."""
    score, times, x, _, alphas, sigmas = setup(sde)
    ours = run(Exponential(2, published=published), score, x, times)
    lambdas = [math.log(a / s) for a, s in zip(alphas, sigmas, strict=True)]
    previous = None
    for i in range(len(times) - 1):
        h = lambdas[i + 1] - lambdas[i]
        model = score.denoised(x, times[i])
        D, slope = model, 0.0
        if previous is not None:
            r = (lambdas[i] - lambdas[i - 1]) / h
            slope = (model - previous) / r
            D = (1 + 1 / (2 * r)) * model - 1 / (2 * r) * previous
        exact = model * -math.expm1(-h) + slope * (1 + math.expm1(-h) / h)
        body = -math.expm1(-h) * D if published else exact
        x = sigmas[i + 1] / sigmas[i] * x + alphas[i + 1] * body
        previous = model
    agree(ours, x)


@SETUPS
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_dpm_solver_2m_sde(sde, solver_type):
    """k-diffusion's sample_dpmpp_2m_sde with its eta = 1; "heun" is exact, "midpoint" published."""
    score, times, x, noises, alphas, sigmas = setup(sde)
    ours = run(
        Exponential(2, eta=1.0, published=solver_type == "midpoint"), score, x, times, noises
    )
    rho, y, old_denoised, h_last, eta = np.divide(sigmas, alphas), x / alphas[0], None, None, 1.0
    for i, z in enumerate(noises):
        denoised = score.denoised(alphas[i] * y, times[i])
        t, s = -math.log(rho[i]), -math.log(rho[i + 1])
        h = s - t
        eta_h = eta * h
        y = rho[i + 1] / rho[i] * math.exp(-eta_h) * y + -math.expm1(-h - eta_h) * denoised
        if old_denoised is not None:
            r = h_last / h
            if solver_type == "heun":
                y = y + (-math.expm1(-h - eta_h) / (-h - eta_h) + 1) * (1 / r) * (
                    denoised - old_denoised
                )
            else:
                y = y + 0.5 * -math.expm1(-h - eta_h) * (1 / r) * (denoised - old_denoised)
        y = y + z * rho[i + 1] * math.sqrt(-math.expm1(-2 * eta_h))
        old_denoised, h_last = denoised, h
    agree(ours, alphas[-1] * y)


@SETUPS
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("published", [True, False])
def test_dpm_solver_3m_sde(sde, eta, published):
    """k-diffusion's sample_dpmpp_3m_sde (its eta is our η²); the factor 2 restored or not."""
    score, times, x, noises, alphas, sigmas = setup(sde)
    ours = run(Exponential(3, eta=eta, published=published), score, x, times, noises)
    rho, y = np.divide(sigmas, alphas), x / alphas[0]
    denoised_1 = denoised_2 = h_1 = h_2 = None
    for i, z in enumerate(noises):
        denoised = score.denoised(alphas[i] * y, times[i])
        t, s = -math.log(rho[i]), -math.log(rho[i + 1])
        h = s - t
        h_eta = h * (eta + 1)
        y = math.exp(-h_eta) * y + -math.expm1(-h_eta) * denoised
        if h_2 is not None:
            r0, r1 = h_1 / h, h_2 / h
            d1_0 = (denoised - denoised_1) / r0
            d1_1 = (denoised_1 - denoised_2) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            d2 = (d1_0 - d1_1) / (r0 + r1)
            phi_2 = math.expm1(-h_eta) / h_eta + 1
            phi_3 = phi_2 / h_eta - 0.5
            y = y + phi_2 * d1 - phi_3 * d2 * (1 if published else 2)
        elif h_1 is not None:
            r = h_1 / h
            d = (denoised - denoised_1) / r
            y = y + (math.expm1(-h_eta) / h_eta + 1) * d
        y = y + z * rho[i + 1] * math.sqrt(-math.expm1(-2 * h * eta))
        denoised_1, denoised_2 = denoised, denoised_1
        h_1, h_2 = h, h_1
    agree(ours, alphas[-1] * y)


@SETUPS
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(sde, order):
    """Zhang & Chen 2023, eqs. 14 and 15 in log ρ: Lagrange polynomials integrated by quadrature."""
    score, times, x, _, alphas, sigmas = setup(sde)
    ours = run(DEIS(order), score, x, times)
    rho, y, history = np.divide(sigmas, alphas), x / alphas[0], []
    for i in range(len(times) - 1):
        history = [(math.log(rho[i]), score.noise(alphas[i] * y, times[i])), *history][:order]
        for j, (node, eps) in enumerate(history):
            others = [other for k, (other, _) in enumerate(history) if k != j]

            def lagrange(r, node=node, others=others):
                return math.prod((math.log(r) - other) / (node - other) for other in others)

            coefficient, _ = quad(lagrange, rho[i], rho[i + 1], epsabs=1e-13, epsrel=1e-13)
            y = y + coefficient * eps
    agree(ours, alphas[-1] * y, 1e-9)


@SETUPS
def test_edm_heun(sde):
    """Karras et al. 2022, algorithm 1 with σ(t) = t, s(t) = 1."""
    score, times, x, _, alphas, sigmas = setup(sde)
    rho, y = np.divide(sigmas, alphas), x / alphas[0]
    ours = run(Heun(), score, x, times)
    for i in range(len(times) - 1):
        d = (y - score.denoised(alphas[i] * y, times[i])) / rho[i]
        trial = y + (rho[i + 1] - rho[i]) * d
        d_new = (trial - score.denoised(alphas[i + 1] * trial, times[i + 1])) / rho[i + 1]
        y = y + (rho[i + 1] - rho[i]) * (0.5 * d + 0.5 * d_new)
    agree(ours, alphas[-1] * y, 1e-9)


@SETUPS
def test_edm_churn(sde):
    """Karras et al. 2022, algorithm 2, with S_tmin, S_tmax and S_noise."""
    score, times, x, noises, alphas, sigmas = setup(sde)
    gamma, low, high, inflation = 0.2, 0.05, 5.0, 1.003
    ours = run(Churn(Heun(), gamma, low, high, inflation), score, x, times, noises)
    rho, y, zs = np.divide(sigmas, alphas), x / alphas[0], iter(noises)
    churned = 0
    for i in range(len(times) - 1):
        hat, time = rho[i], times[i]
        if low <= rho[i] <= high:
            hat = rho[i] * (1 + gamma)
            time = sde.time_at(-math.log(hat))
            y = y + math.sqrt(hat**2 - rho[i] ** 2) * inflation * next(zs)
            churned += 1
        d = (y - score.denoised(float(sde.alpha(time)) * y, time)) / hat
        trial = y + (rho[i + 1] - hat) * d
        d_new = (trial - score.denoised(alphas[i + 1] * trial, times[i + 1])) / rho[i + 1]
        y = y + (rho[i + 1] - hat) * (0.5 * d + 0.5 * d_new)
    assert 0 < churned < len(times) - 1
    agree(ours, alphas[-1] * y, 1e-8)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_sa_solver(eta):
    """Xue et al. 2023, eqs. 13 to 20: Adams predictor and corrector, coefficients by quadrature."""
    score, times, x, noises, alphas, sigmas = setup(VPSDE())
    ours = run(Exponential(2, eta=eta, corrector=3), score, x, times, noises)
    lambdas = [math.log(a / s) for a, s in zip(alphas, sigmas, strict=True)]

    def update(start, i, nodes, z):
        """From t_i to t_{i+1}, with x̂ through ``nodes`` [(λ, x̂)]."""
        end, h = lambdas[i + 1], lambdas[i + 1] - lambdas[i]
        new = sigmas[i + 1] / sigmas[i] * math.exp(-(eta**2) * h) * start
        for j, (node, value) in enumerate(nodes):
            others = [other for k, (other, _) in enumerate(nodes) if k != j]

            def integrand(u, node=node, others=others):
                basis = math.prod((u - other) / (node - other) for other in others)
                return math.exp(-(eta**2) * (end - u)) * (1 + eta**2) * math.exp(u) * basis

            new = new + sigmas[i + 1] * quad(integrand, lambdas[i], end, epsabs=1e-13)[0] * value
        return new + sigmas[i + 1] * math.sqrt(-math.expm1(-2 * eta**2 * h)) * z

    history, corrected = [], x
    for i, z in enumerate(noises):
        history = [(lambdas[i], score.denoised(x, times[i])), *history]
        if i:
            corrected = update(corrected, i - 1, history[:3], noises[i - 1])
        x = update(corrected, i, history[:2], z)
    agree(ours, x, 1e-9)


# --- coefficients


@pytest.mark.parametrize("c", [-12.0, -4.1, -1.0, -1e-6, 1e-9, 1e-3, 0.5, 3.9, 4.1, 30.0, 400.0])
def test_exponential_moments_are_accurate_to_rounding(c):
    from mpmath import exp, mp, mpf
    from mpmath import quad as integral

    with mp.workdps(40):
        kernel = mpf(c)
        exact = [
            integral(lambda u, k=k: kernel * exp(-kernel * (1 - u)) * u**k, [0, 0.5, 0.9, 0.99, 1])
            for k in range(5)
        ]
    np.testing.assert_allclose(exponential_moments(c, 5), [float(e) for e in exact], rtol=1e-11)


# --- orders


def strong_error(sampler, score, start, exact, ends, steps):
    lambdas = torch.linspace(*ends, steps + 1, dtype=torch.float64)
    last = run(sampler, score, start, score.sde.time_at(lambdas))
    return (last - exact).square().mean().sqrt()


@pytest.fixture(scope="module")
def problems():
    """A start in p_T and where its flow ends, per diffusion."""
    found = {}
    for sde in (VPSDE(), SubVPSDE(), VESDE()):
        score = mixture(sde)
        ends = (-3.9, 2.5)
        times = sde.time_at(double(*ends))
        start = score.sample(16, float(times[0]), torch.Generator().manual_seed(0), torch.float64)
        found[repr(sde)] = score, start, flow_oracle(score, start, times), ends
    return found


@pytest.mark.parametrize("sde", [SubVPSDE(), VESDE()], ids=repr)
@pytest.mark.parametrize(
    ("sampler", "order", "steps"),
    [
        (Exponential(1), 1, 40),
        (Exponential(2), 2, 40),
        (Exponential(3), 3, 160),
        (Exponential(2, published=True), 2, 40),
        (Exponential(3, published=True), 2, 160),
        (Exponential(1, corrector=2), 2, 40),
        (Exponential(2, corrector=3), 3, 40),
        (DEIS(1), 1, 40),
        (DEIS(2), 2, 40),
        (DEIS(3), 3, 80),
        (Heun(), 2, 40),
    ],
    ids=str,
)
def test_declared_orders_are_observed(sampler, order, steps, sde, problems):
    score, start, exact, ends = problems[repr(sde)]
    coarse, fine = (strong_error(sampler, score, start, exact, ends, n) for n in (steps, 2 * steps))
    assert abs(float(torch.log2(coarse / fine)) - order) <= 0.25


MEAN, VARIANCE = 0.7, 0.09


def gaussian(sde):
    return GaussianMixture(double(1.0), double([MEAN]), double([[VARIANCE]]), sde)


def weak_error(sampler, sde, steps):
    """Error of mean and variance on Gaussian data: x_N = A x_0 + b + Σ c_k z_k by superposition."""
    score = gaussian(sde)
    times = sde.time_at(torch.linspace(-2.0, 1.5, steps + 1, dtype=torch.float64))
    basis = torch.eye(steps + 2, dtype=torch.float64)[:, :, None]
    # row 0: base; row 1: x_0 = 1; row 2 + k: the k-th noise is 1
    start, draws = basis[:, 1], iter(basis[:, k] for k in range(2, steps + 2))
    *_, (last, _) = iterate(score, start, times, sampler, lambda x: next(draws))
    base, (slope, *stds) = last[0, 0], (last[1:, 0] - last[0, 0]).tolist()
    (alpha, end), (sigma, end_sigma) = sde.alpha(times[[0, -1]]), sde.sigma(times[[0, -1]])
    mean = slope * alpha * MEAN + base
    variance = slope**2 * (alpha**2 * VARIANCE + sigma**2) + sum(c**2 for c in stds)
    exact = end**2 * VARIANCE + end_sigma**2
    return float(max(abs(mean - end * MEAN) / exact.sqrt(), abs(variance / exact - 1)))


@SDES
@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (Exponential(1, eta=1.0), 1),
        (Exponential(1, eta=0.5), 1),
        (Exponential(1, eta=DDIMNoise(0.7)), 1),
        (Exponential(2, eta=1.0), 2),
        (Exponential(2, eta=1.0, corrector=2), 2),
        (DEIS(1, eta=1.0), 1),
        (DEIS(2, eta=1.0), 2),
        (Heun(eta=1.0), 2),
        (Heun(eta=0.5), 2),
        (Churn(Heun(), gamma=0.0), 2),
    ],
    ids=str,
)
def test_weak_orders_on_gaussian_data(sampler, order, sde):
    coarse, fine = (weak_error(sampler, sde, n) for n in (80, 160))
    assert abs(math.log2(coarse / fine) - order) <= 0.25


@SDES
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_one_step_is_exact_if_the_data_are_one_point(sde, eta):
    """Then x̂ is constant, and a step of any length is exact."""
    point = double([0.3, -1.0])
    score = FunctionScore(lambda x, t: (sde.alpha(t) * point - x) / sde.sigma(t) ** 2, sde)
    t, s = sde.time_at(double(-2.0, 3.0))
    x, z = draw(6, 2), draw(6, 2, seed=1)
    ((got, _),) = iterate(score, x, torch.stack([t, s]), Exponential(1, eta=eta), lambda x: z)
    h = 5.0
    mean = sde.alpha(s) * point
    factor = sde.sigma(s) / sde.sigma(t) * math.exp(-(eta**2) * h)
    want = mean + factor * (x - sde.alpha(t) * point)
    agree(got, want + sde.sigma(s) * math.sqrt(-math.expm1(-2 * eta**2 * h)) * z, 1e-9)


def test_very_long_steps_do_not_extrapolate():
    """The last step of VP on a uniform grid is many times as long as the previous one."""
    sde = VPSDE()
    score = mixture(sde)
    times = torch.linspace(1.0, sde.t_min, 41, dtype=torch.float64)
    start = draw(64, 2)
    exact = flow_oracle(score, start, times)
    error = (run(Exponential(3), score, start, times) - exact).square().mean().sqrt()
    first = (run(Exponential(1), score, start, times) - exact).square().mean().sqrt()
    assert float(error) < 0.3 * float(first)


def test_corrections_cost_no_evaluation():
    exact, calls = mixture(VPSDE()), []
    counted = FunctionScore(lambda x, t: (calls.append(1), exact(x, t))[1], VPSDE())
    run(Exponential(3, corrector=4), counted, draw(2, 2), UniformLogSNR()(VPSDE(), 9))
    assert len(calls) == 9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Exponential(order=0), "order: expected an integer, at least 1"),
        (lambda: Exponential(eta=-1.0), "eta: expected a nonnegative"),
        (lambda: Exponential(order=4, published=True), "published: expected order 1, 2 or 3"),
        (lambda: Exponential(corrector=2, published=True), "published: expected order 1, 2 or 3"),
        (lambda: DEIS(corrector=-1), "corrector: expected an integer, at least 0"),
        (lambda: DDIMNoise(1.5), r"eta: expected a number in \[0, 1\]"),
        (lambda: Heun(eta=-0.1), "eta: expected a nonnegative"),
        (lambda: Churn(Heun(), gamma=-1.0), "gamma: expected a nonnegative"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
