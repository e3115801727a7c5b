"""Integrators of the flow in coordinates: orders, identities, the end of the flow, units.

Orders are measured in float64 against DOP853 at 1e-11; identities against literal transcriptions.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from flow_oracle import double, flow_oracle, mixture
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from scoresde import EDMSDE, VESDE, VPSDE, FunctionScore, GaussianMixture, Moments, SubVPSDE
from scoresde.flow import LogSNR, Rectified, Standardized, VarianceExploding, Windowed, fixed_grid
from scoresde.samplers import (
    HEUN,
    HEUN3,
    KUTTA3,
    MIDPOINT,
    RALSTON,
    RK4,
    AdamsBashforth,
    Ancestral,
    Exponential,
    Heun,
    LogMobius,
    ProbabilityFlow,
    RungeKutta,
    Scheduled,
    Tableau,
    UniformLogSNR,
    edm_heun,
    half_step,
    iterate,
    sample,
)

EULER = Tableau((1.0,), ())
COORDINATES = [Windowed(), Standardized(0.7), VarianceExploding(), LogSNR(), Rectified(2.0)]
SDES = pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=repr)


def draw(*shape, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=source, dtype=torch.float64)


def run(sampler, score, start, times):
    *_, (last, _) = iterate(score, start, times, sampler, torch.zeros_like)
    return last


def agree(ours, theirs, tolerance=1e-10):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


# --- coordinates


@pytest.mark.parametrize("coordinates", COORDINATES, ids=repr)
@given(log_ratio=st.floats(-7.0, 6.0), variance=st.floats(0.0, 5.0))
def test_rate_and_drift_are_the_derivatives(coordinates, log_ratio, variance):
    v, c = double(log_ratio), double(variance)
    time, growth = torch.func.jvp(lambda u: coordinates.time(u.exp()), (v,), (v**0,))
    agree(coordinates.rate(v.exp()) * growth, double(1.0), 1e-9)
    agree(coordinates.ratio(time), v.exp(), 1e-8)
    _, slope = torch.func.jvp(lambda u: torch.log(coordinates.scale(u.exp(), c)), (v,), (v**0,))
    agree(coordinates.drift(v.exp(), c), 1 - slope, 1e-9)


@pytest.mark.parametrize("coordinates", COORDINATES, ids=repr)
def test_all_coordinates_give_the_same_flow(coordinates):
    """With many steps all coordinates reach the exact end; the data are not standardized."""
    sde = VPSDE()
    score = mixture(sde)
    times = LogMobius()(sde, 40)
    start = draw(8, 2)
    exact = flow_oracle(score, start, times)
    error = (run(RungeKutta(RK4, coordinates), score, start, times) - exact).abs().max()
    assert float(error) < 3e-3


# --- orders

ENDS = (-3.9, 2.5)


@pytest.fixture(scope="module")
def problem():
    """A score, a start in p_T and where its flow ends; all diffusions have one flow."""
    score = mixture(SubVPSDE())
    times = score.sde.time_at(double(*ENDS))
    start = score.sample(16, float(times[0]), torch.Generator().manual_seed(0), torch.float64)
    return score, start, flow_oracle(score, start, times)


def strong_error(sampler, problem, steps):
    score, start, exact = problem
    lambdas = torch.linspace(*ENDS, steps + 1, dtype=torch.float64)
    last = run(sampler, score, start, score.sde.time_at(lambdas))
    return (last - exact).square().mean().sqrt()


ORDERS = [
    (AdamsBashforth(1, corrector=0), 1, 80),
    (AdamsBashforth(2, corrector=0), 2, 160),
    (AdamsBashforth(3, corrector=0), 3, 160),
    (AdamsBashforth(4, corrector=0), 4, 160),
    (AdamsBashforth(1, corrector=1), 1, 80),
    (AdamsBashforth(1, corrector=2), 2, 160),
    (AdamsBashforth(2, corrector=3), 3, 160),
    (AdamsBashforth(3, corrector=4), 4, 160),
    (AdamsBashforth(coordinates=LogSNR()), 4, 160),
    (AdamsBashforth(coordinates=Windowed(0.08, 4.0)), 4, 160),
    (AdamsBashforth(2, corrector=3, coordinates=Rectified()), 3, 160),
    (AdamsBashforth(2, corrector=0, coordinates=LogSNR()), 2, 160),
    (AdamsBashforth(3, corrector=0, coordinates=VarianceExploding()), 3, 160),
    (RungeKutta(HEUN), 2, 40),
    (RungeKutta(MIDPOINT), 2, 40),
    (RungeKutta(RALSTON), 2, 40),
    (RungeKutta(HEUN3), 3, 40),
    (RungeKutta(RK4), 4, 40),
    (RungeKutta(RK4, LogSNR()), 4, 40),
    (RungeKutta(HEUN, VarianceExploding()), 2, 40),
    (RungeKutta(KUTTA3, Rectified()), 3, 80),
]


@pytest.mark.parametrize(("sampler", "order", "steps"), ORDERS, ids=str)
def test_declared_orders_are_observed(sampler, order, steps, problem):
    assert sampler.convergence_order == order
    coarse, fine = (strong_error(sampler, problem, n) for n in (steps, 2 * steps))
    assert abs(float(torch.log2(coarse / fine)) - order) <= 0.25


@pytest.mark.parametrize(("long", "order"), [(2.9, 2), (3.1, 1)])
def test_a_step_much_longer_than_the_previous_one_does_not_extrapolate(long, order):
    """Beyond three times its length the step is of order one."""
    score, coordinates = mixture(VPSDE()), LogSNR()  # no first slope at the midpoint here
    lambdas = double(0.0, 0.1, 0.2, 0.2 + 0.1 * long)
    times, start = score.sde.time_at(lambdas), draw(4, 2)
    second, first = (AdamsBashforth(k, 0, coordinates, max_lookback=9.0) for k in (2, 1))
    *_, (before, _), (last, _) = iterate(score, start, times, second, torch.zeros_like)
    plain = run(first, score, before, times[-2:])
    assert torch.equal(last, plain) is (order == 1)
    torch.testing.assert_close(last, plain, rtol=0, atol=0.05 if order == 2 else 1e-12)


# --- identities


def setup(sde, steps=7):
    times = UniformLogSNR()(sde, steps)[1:]
    alphas, sigmas = sde.alpha(times).tolist(), sde.sigma(times).tolist()
    return mixture(sde), times, draw(5, 2) * sigmas[0], alphas, np.divide(sigmas, alphas)


def plain(sde):
    """The same score without the moments of the data."""
    exact = mixture(sde)
    return FunctionScore(lambda x, t: exact(x, t), sde)


@SDES
def test_heun_and_euler_in_sigma(sde):
    score, times, x, *_ = setup(sde)
    agree(run(RungeKutta(HEUN, VarianceExploding()), score, x, times), run(Heun(), score, x, times))
    agree(
        run(AdamsBashforth(1, 0, VarianceExploding()), score, x, times),
        run(Exponential(1), score, x, times),
    )


@SDES
def test_linear_multistep_of_k_diffusion(sde):
    """sample_lms: Adams–Bashforth in σ, the polynomials integrated by quadrature."""
    score, times, x, alphas, rho = setup(sde)
    ours = run(AdamsBashforth(3, 0, VarianceExploding(), max_lookback=100.0), score, x, times)
    y, ds = x / alphas[0], []
    for i in range(len(rho) - 1):
        d = (y - score.denoised(alphas[i] * y, times[i])) / rho[i]
        ds = [d, *ds][:3] if i == 0 or _even(rho, i) else [d]

        def basis(tau, j, i=i, known=len(ds)):
            others = [k for k in range(known) if k != j]
            return math.prod((tau - rho[i - k]) / (rho[i - j] - rho[i - k]) for k in others)

        for j, slope in enumerate(ds):
            y = y + quad(basis, rho[i], rho[i + 1], args=(j,), epsrel=1e-12)[0] * slope
    agree(ours, alphas[-1] * y, 1e-8)


def _even(rho, i):
    """Whether this step is no more than three times as long as the previous one."""
    return rho[i] - rho[i + 1] <= 3 * (rho[i - 1] - rho[i])


@pytest.mark.parametrize("tableau", [HEUN, MIDPOINT], ids=["heun", "midpoint"])
def test_flow_matching_solvers(tableau):
    """Heun and midpoint on the velocity of x_t = (1 − t) x_0 + t ε, as in flow matching."""
    sde = VPSDE()
    score, times, x, alphas, rho = plain(sde), *setup(sde)[1:]
    data = mixture(EDMSDE(1e-6, 1e6))
    t = rho / (1 + rho)

    def velocity(x, t):
        ratio = t / (1 - t)
        return (x - data.denoised(x / (1 - t), float(ratio))) / t

    z = x / alphas[0] / (1 + rho[0])
    for now, new in pairwise(t):
        h, first = new - now, velocity(z, now)
        if tableau == HEUN:
            z = z + h / 2 * (first + velocity(z + h * first, new))
        else:
            z = z + h * velocity(z + h / 2 * first, now + h / 2)
    ours = run(RungeKutta(tableau, Rectified()), score, x, times)
    agree(ours, alphas[-1] * (1 + rho[-1]) * z, 1e-9)


def test_velocity_prediction_is_the_slope_in_the_angle():
    """For c = 1 and m = 0 an Euler step is x + (change of the angle) · v, as in DDIM."""
    sde = VPSDE()
    score, x = plain(sde), draw(6, 2)
    t, s = double(0.6, 0.55)
    angles = [math.atan2(float(sde.sigma(v)), float(sde.alpha(v))) for v in (t, s)]
    want = x + (angles[1] - angles[0]) * score.velocity(x, t)
    agree(run(RungeKutta(EULER, Standardized()), score, x, torch.stack([t, s])), want)


@SDES
def test_the_first_slope_is_evaluated_at_the_midpoint(sde):
    """At high noise, where z is constant: the first slope is that of z_t at the midpoint in τ."""
    score = plain(sde)
    times = sde.time_at(double(-2.0, -0.5, 0.0))
    x, coordinates = draw(4, 2) * sde.sigma(times[0]), Standardized(0.7)
    rho, alpha = torch.exp(-sde.half_logsnr(times)), sde.alpha(times)
    z = x / alpha[0] / torch.sqrt(1 + rho[0] ** 2)
    tau = torch.atan(rho / 0.7)
    middle = 0.7 * torch.tan(tau[:2].mean())

    def slope(z, rho):
        size, t = torch.sqrt(1 + rho**2), sde.time_at(-torch.log(rho))
        y = size * z
        drift = y / size**2 - score.denoised(sde.alpha(t) * y, t)
        return drift / size * (rho**2 + 0.7**2) / (0.7 * rho)

    first = slope(z, middle)
    z = z + (tau[1] - tau[0]) * first
    got = run(AdamsBashforth(1, 0, coordinates), score, x, times[:2])
    agree(got, alpha[1] * torch.sqrt(1 + rho[1] ** 2) * z)
    second = slope(z, rho[1])
    z = z + (tau[1] - tau[0]) / 4 * (
        second - first
    )  # the half step after the midpoint is corrected
    weights = quadrature(((tau[:2].sum() / 2).item(), tau[1].item()), tau[1].item(), tau[2].item())
    z = z + weights[0] * first + weights[1] * second
    got = run(AdamsBashforth(2, 2, coordinates, max_lookback=9.0), score, x, times)
    agree(got, alpha[2] * torch.sqrt(1 + rho[2] ** 2) * z)


def test_at_low_noise_the_first_slope_is_evaluated_at_the_start():
    """When encoding data, and when starting from partly noised data, z is not constant."""
    score = plain(VESDE())
    for lambdas in ((3.0, 2.5), (-1.0, -0.5)):
        times = VESDE().time_at(double(*lambdas))
        x = draw(4, 2) + draw(4, 2, seed=1) * VESDE().sigma(times[0])
        ours = run(AdamsBashforth(1, 0, Standardized()), score, x, times)
        agree(ours, run(RungeKutta(EULER, Standardized()), score, x, times))


def quadrature(nodes, start, end):
    """Weights of the integral of the line through the values at two nodes, by quadrature."""
    first, second = nodes
    return tuple(
        quad(lambda tau, a=a, b=b: (tau - b) / (a - b), start, end)[0]
        for a, b in ((first, second), (second, first))
    )


# --- properties of standardized coordinates


@SDES
@pytest.mark.parametrize("sampler", [AdamsBashforth(), RungeKutta(MIDPOINT)], ids=repr)
def test_one_step_is_exact_for_gaussian_data(sampler, sde):
    """For any mean and covariance, x_s = αm + C_s^{1/2} C_t^{−1/2} (x_t − αm)."""
    root = draw(3, 3, seed=2)
    mean, covariance = draw(3, seed=1), root @ root.T + 0.01 * torch.eye(3, dtype=torch.float64)
    score = GaussianMixture(torch.ones(1), mean[None], covariance[None], sde)
    x = draw(5, 3) * sde.sigma(sde.T)
    values, vectors = torch.linalg.eigh(covariance)
    alpha, sigma = (curve(double(sde.T, sde.t_min)) for curve in (sde.alpha, sde.sigma))
    scales = torch.sqrt(alpha[:, None] ** 2 * values + sigma[:, None] ** 2)
    rotated = (x - alpha[0] * mean) @ vectors
    want = alpha[1] * mean + (rotated / scales[0] * scales[1]) @ vectors.T
    got = sample(score, None, sampler, steps=1, start=x, denoise=False)
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("sampler", [AdamsBashforth(), RungeKutta()], ids=repr)
def test_results_do_not_depend_on_the_units_of_the_data(sampler):
    """Data and noise 100 times as large: the same steps."""
    small = mixture(EDMSDE(0.01, 100.0))
    large = GaussianMixture(
        small.weights, 100 * small.means, 1e4 * small.covariances, EDMSDE(1.0, 1e4)
    )
    start = 100 * draw(6, 2)
    x = sample(small, None, sampler, steps=8, start=start)
    y = sample(large, None, sampler, steps=8, start=100 * start)
    agree(100 * x, y, 1e-6)


MOMENTS = {
    "one number": Moments(0.0, 2.0, known=True),
    "shifted": Moments(0.3, 2.0, known=True),
    "diagonal": Moments(double(0.3, -1.0, 0.0), double(0.5, 0.1, 2.0), known=True),
    "full covariance": Moments.from_covariance(
        double(0.0, 1.0, 0.5), double([2.0, 0.3, 0.1], [0.3, 1.0, 0.2], [0.1, 0.2, 0.4])
    ),
}


@pytest.mark.parametrize("sampler", [AdamsBashforth(), RungeKutta(RK4)], ids=repr)
@pytest.mark.parametrize("moments", MOMENTS.values(), ids=MOMENTS)
def test_coefficients_do_not_depend_on_how_they_are_tabulated(moments, sampler, monkeypatch):
    """One time after the other, in blocks, or all times at once; also in the reverse direction."""
    means, covariances = draw(3, 3), torch.eye(3, dtype=torch.float64).expand(3, 3, 3)
    exact = GaussianMixture(torch.ones(3), means, 0.1 * covariances, VPSDE())
    score = FunctionScore(exact, exact.sde, moments=moments)
    start, times = draw(4, 3), LogMobius()(exact.sde, 9)
    for grid in (times, times.flip(0)):
        together = run(sampler, score, start, grid)
        x, state = start, sampler.init(score, start, grid[:1])
        for t, s in pairwise(grid.unbind()):
            x, state = sampler.step(score, x, t, s, state, torch.zeros_like)
        agree(x, together, 1e-12)
        for block in (1, 7):
            monkeypatch.setattr(fixed_grid, "_BLOCK", block)
            agree(run(sampler, score, start, grid), together, 1e-12)
            monkeypatch.undo()
    fine = LogMobius()(exact.sde, 160)
    agree(run(sampler, score, start, fine), flow_oracle(exact, start, times), 1e-3)


@SDES
def test_few_steps_are_accurate(sde):
    """20 evaluations with moments: at most 1/30 of the error of DPM-Solver++(2M)."""
    score = mixture(sde)
    start = draw(64, 2) * sde.sigma(sde.T)
    exact = flow_oracle(score, start, double(sde.T, sde.t_min))
    ours, theirs = (
        float((run(s, score, start, grid) - exact).square().mean(1).sqrt().median())
        for s, grid in (
            (AdamsBashforth(), AdamsBashforth().times(sde, 20, score.moments.std)),
            (Exponential(2), UniformLogSNR()(sde, 20)),
        )
    )
    assert ours < theirs / 30


def test_evaluations_per_step():
    exact, calls = mixture(VPSDE()), []
    counted = FunctionScore(lambda x, t: (calls.append(1), exact(x, t))[1], VPSDE())
    for sampler, each in ((AdamsBashforth(), 1), (RungeKutta(), 2), (RungeKutta(RK4), 4)):
        calls.clear()
        sample(counted, None, sampler, start=draw(2, 2), steps=9, denoise=False)
        assert len(calls) == 9 * each


def test_the_edm_preset_makes_35_evaluations_as_in_the_paper():
    exact, calls = mixture(EDMSDE()), []
    counted = FunctionScore(lambda x, t: (calls.append(1), exact(x, t))[1], exact.sde)
    sample(counted, None, edm_heun(), start=80 * draw(2, 2))
    assert len(calls) == 35


# --- the end of the flow


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), EDMSDE(1e-6, 80.0)], ids=repr)
def test_half_step_is_of_fourth_order(sde):
    """Its error is O(ρ⁴), 1/16 for half the noise; the error of x̂ is O(ρ²)."""
    score = mixture(sde)
    errors, means = [], []
    for log_ratio in (-3.0, -3.0 - math.log(2)):
        t, end = sde.time_at(double(-log_ratio, 12.0))
        x = score.sample(64, float(t), torch.Generator().manual_seed(0), torch.float64)
        exact = flow_oracle(score, x, torch.stack([t, end])) / sde.alpha(end)
        for found, y in ((errors, half_step(score, x, t)), (means, score.denoised(x, t))):
            found.append(float((y - exact).square().mean().sqrt()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.3)
    assert math.log2(means[0] / means[1]) == pytest.approx(2, abs=0.3)
    assert errors[0] < 0.1 * means[0]


def by_the_last_polynomial(score, x, t):
    """The end of :func:`test_denoising_is_optional`, as a step of a run to almost no noise."""
    extended = VESDE(1e-9, score.sde.sigma_max)
    low = float(extended.time_at(double(18.0)))
    grid = AdamsBashforth().times(score.sde, 5, score.moments.std)
    times = extended.time_at(score.sde.half_logsnr(grid))
    times[-1] = low
    return run(AdamsBashforth(), mixture(extended), 50 * draw(4, 2), times)


@pytest.mark.parametrize(
    ("sampler", "ends"),
    [
        (AdamsBashforth(), by_the_last_polynomial),
        (AdamsBashforth(coordinates=LogSNR()), half_step),
        (Scheduled(RungeKutta(), LogMobius()), half_step),
        (ProbabilityFlow(), half_step),
        (Ancestral(), lambda score, x, t: score.denoised(x, t)),
        (Exponential(), lambda score, x, t: score.denoised(x, t)),
    ],
    ids=["adams", "adams in log-SNR", "scheduled", "flow", "ancestral", "exponential"],
)
def test_denoising_is_optional(sampler, ends):
    score, start = mixture(VESDE()), 50 * draw(4, 2)
    own, mean, state = (
        sample(
            score, None, sampler, start=start, steps=min(5, sampler.default_steps),
            denoise=choice, generator=torch.Generator().manual_seed(0),
        )
        for choice in (None, True, False)
    )  # fmt: skip
    t = torch.tensor(score.sde.t_min, dtype=torch.float64)
    agree(own, ends(score, state, t), 1e-7 if ends is by_the_last_polynomial else 1e-10)
    agree(mean, score.denoised(state, t))


@SDES
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 100])
@pytest.mark.parametrize("sampler", [AdamsBashforth(), AdamsBashforth(3, 0, Rectified())], ids=repr)
def test_the_end_needs_an_evaluation_only_after_short_steps(sampler, steps, sde):
    """With 100 steps the distance from t_min to ρ = 0 exceeds half of the last step."""
    exact, calls = mixture(sde), []
    counted = FunctionScore(lambda x, t: (calls.append(1), exact(x, t))[1], sde)
    sample(counted, None, sampler, start=sde.sigma(sde.T) * draw(2, 2), steps=steps)
    rho = torch.exp(-sde.half_logsnr(sampler.times(sde, steps)[-3:]))
    assert len(calls) in (steps, steps + 1)
    if steps < 20:
        assert len(calls) == steps
    elif rho[-1] > 2 * (rho[-2] - rho[-1]):
        assert len(calls) == steps + 1


@SDES
def test_the_end_is_of_order_four_too(sde):
    """From t_min to ρ = 0 by the last polynomial, the error decreases with order four."""
    score = mixture(sde)
    start = draw(64, 2) * sde.sigma(sde.T)
    few, more, many, exact = (
        sample(score, None, start=start, steps=steps) for steps in (10, 20, 40, 640)
    )
    errors = [float((x - exact).square().mean(1).sqrt().median()) for x in (few, more, many)]
    assert errors[0] > 8 * errors[1] > 64 * errors[2]


def test_adams_bashforth_is_the_default_sampler():
    score = mixture(VPSDE())
    with_default, by_name = (
        sample(score, (4, 2), *sampler, steps=5, generator=torch.Generator().manual_seed(0))
        for sampler in ((), (AdamsBashforth(),))
    )
    assert torch.equal(with_default, by_name)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AdamsBashforth(order=0), ValueError, "order: expected an integer, at least 1"),
        (lambda: AdamsBashforth(corrector=-1), ValueError, "corrector: expected an integer"),
        (lambda: AdamsBashforth(max_lookback=0.0), ValueError, "max_lookback: expected a positive"),
        (lambda: Windowed(2.0, 1.0), ValueError, "lower < upper"),
        (
            lambda: AdamsBashforth(coordinates="angle"),
            TypeError,
            "coordinates: expected a Coordinates such",
        ),
        (lambda: RungeKutta("heun"), TypeError, "tableau: expected a Tableau such as HEUN"),
        (
            lambda: RungeKutta(coordinates=None),
            TypeError,
            "coordinates: expected a Coordinates such",
        ),
        (lambda: Tableau((0.5, 0.4), ((1.0,),)), ValueError, "weights, matrix: expected weights"),
        (lambda: Tableau((0.5, 0.5)), ValueError, "weights, matrix: expected weights"),
        (lambda: Standardized(0.0), ValueError, "pivot: expected a positive"),
        (lambda: Rectified(-1.0), ValueError, "pivot: expected a positive"),
        (
            lambda: sample(
                FunctionScore(lambda x, t: -x, VPSDE(), moments=Moments(torch.zeros(3))), (2, 2)
            ),
            ValueError,
            r"x: expected shape \(batch, 3\)",
        ),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
