"""What an adapter wraps gives the same numbers as its counterpart in the library."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from scoresde import VESDE, VPSDE, FunctionScore, GaussianMixture, log_likelihood
from scoresde._core.counter_rng import CounterRNG
from scoresde.flow import Rectified
from scoresde.samplers import (
    MIDPOINT,
    Ancestral,
    EulerMaruyama,
    Exponential,
    Heun,
    RungeKutta,
    UniformLogSNR,
    encode,
    iterate,
)
from scoresde.solvers import Status
from scoresde.testing import BrokenPropertyError, check_sampler, check_score, check_sde
from scoresde.testing.adapters import (
    FromTorchSDE,
    FunctionGaussianSDE,
    FunctionMethod,
    FunctionSampler,
    FunctionSDE,
    FunctionSolver,
    FunctionTrace,
    LoopSampler,
    SchedulerSampler,
)
from scoresde.testing.properties import code
from scoresde.traces import ExactTrace

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers', of NumPy

SDES = [VPSDE(), VESDE()]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def data(sde):
    means = torch.tensor([[-1.0, 0.5], [1.0, 1.0]])
    return GaussianMixture(torch.ones(2), means, 0.1 * torch.eye(2).expand(2, 2, 2), sde)


def run(score, sampler, steps=12, seed=0):
    """The end of a run in log-SNR steps from a fixed start, with a fixed noise."""
    source, sde = generator(seed), score.sde
    times = sde.time_at(torch.linspace(-3.0, 2.0, steps + 1, dtype=torch.float64))
    start = score.sample(5, float(times[0]), generator(1), torch.float64)
    *_, (end, _) = iterate(
        score, start, times, sampler, lambda x: torch.randn(x.shape, generator=source).to(x)
    )
    return end


# --- SDEs


def rate(t):
    return 0.1 + 19.9 * t


FUNCTIONS = FunctionSDE(lambda x, t: -0.5 * rate(t) * x, lambda t: rate(t).sqrt())
CURVES = FunctionGaussianSDE(
    lambda t: torch.exp(-0.5 * (0.1 * t + 9.95 * t**2)),
    lambda t: (-torch.expm1(-(0.1 * t + 9.95 * t**2))).sqrt(),
)


class Torch(torch.nn.Module):
    """The VP SDE as an object of torchsde."""

    sde_type = "ito"

    def __init__(self, noise_type="diagonal"):
        super().__init__()
        self.noise_type = noise_type

    def f(self, t, y):
        return -0.5 * rate(t) * y

    def g(self, t, y):
        g = torch.ones_like(y) * rate(t).sqrt()
        return g if self.noise_type == "diagonal" else torch.diag_embed(g)


TORCH = [FromTorchSDE(Torch()), FromTorchSDE(Torch("additive"), dimension=3)]


@pytest.mark.parametrize("sde", [FUNCTIONS, CURVES, *TORCH], ids=lambda sde: type(sde).__name__)
def test_sdes_agree(sde):
    x = torch.randn(3, 2, 4, generator=generator(), dtype=torch.float64)
    for t in (0.3, torch.tensor(0.7), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)):
        torch.testing.assert_close(sde.drift(x, t), VPSDE().drift(x, t), rtol=1e-6, atol=0)
        torch.testing.assert_close(
            torch.as_tensor(sde.diffusion(t)), VPSDE().diffusion(t), rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("sde", [FUNCTIONS, CURVES, *TORCH], ids=lambda sde: type(sde).__name__)
def test_correct_sdes_pass(sde):
    check_sde(sde, examples=3)


def test_a_function_may_have_a_prior():
    def prior(event_shape):
        unit = torch.ones(event_shape)
        return torch.distributions.Independent(
            torch.distributions.Normal(0 * unit, unit, validate_args=False), len(event_shape)
        )

    sde = FunctionSDE(lambda x, t: -x, lambda t: 0 * t + 2**0.5, prior_function=prior)
    assert sde.prior((2, 3)).event_shape == (2, 3)
    with pytest.raises(NotImplementedError, match="has no prior"):
        FUNCTIONS.prior((2,))


# --- scores


def test_a_function_is_checked_as_a_score():
    check_score(FunctionScore(lambda x, t: -x, CURVES), event_shape=(2,), exact=True, examples=2)


# --- samplers


def euler(score, x, t, s, noise):
    sde = score.sde
    return x + (s - t) * (sde.drift(x, t) - 0.5 * sde.diffusion(t) ** 2 * score(x, t))


def ancestral(score, x, times, noise):
    for t, s in pairwise(times):
        scale, std = score.sde.transition(s, t)
        factor = score.sde.sigma(s) / score.sde.sigma(t)
        mean = (x + std**2 * score(x, t)) / scale
        x = mean + std * factor * noise(x)
    return x


def ddim(score, x, times, noise):
    for t, s in pairwise(times):
        x = score.sde.perturb(score.denoised(x, t), s, score.noise(x, t))
    return x


@pytest.mark.parametrize("sde", SDES, ids=repr)
@pytest.mark.parametrize(
    ("adapted", "own"),
    [
        (FunctionSampler(euler, 1, deterministic=True), EulerMaruyama(eta=0.0)),
        (LoopSampler(ddim, 1, deterministic=True), Exponential(order=1)),
        (LoopSampler(ancestral), Ancestral()),
    ],
    ids=str,
)
def test_samplers_agree(adapted, own, sde):
    score = data(sde)
    torch.testing.assert_close(run(score, adapted), run(score, own), rtol=1e-9, atol=1e-9)


def test_a_loop_evaluates_nothing_twice():
    evaluated = []

    def counted(x, t):
        evaluated.append(float(t))
        return -x

    run_of = LoopSampler(ancestral)
    score = FunctionScore(counted, VPSDE())
    times = VPSDE().time_at(torch.linspace(-3.0, 2.0, 13, dtype=torch.float64))
    states = [
        state for state, _ in iterate(score, torch.ones(2, 3), times, run_of, torch.randn_like)
    ]
    assert len(states) == len(evaluated) == 12
    assert evaluated == sorted(evaluated, reverse=True)


def test_a_loop_that_changes_is_evaluated_again():
    def hasty(score, x, times, noise):  # its first step depends on how many there are
        return x + score(x, times[0]) / (len(times) - 1)

    score = FunctionScore(lambda x, t: -x, VPSDE())
    times = torch.linspace(1.0, 0.1, 5)
    *_, (end, _) = iterate(score, torch.ones(1, 1), times, LoopSampler(hasty), torch.zeros_like)
    assert float(end) == 0.75


# --- schedulers


@pytest.fixture(scope="module")
def schedulers():
    return pytest.importorskip("diffusers")


TWINS = [
    ("DDIMScheduler", {}, Exponential(order=1)),
    ("EulerDiscreteScheduler", {}, Exponential(order=1)),
    ("DPMSolverMultistepScheduler", {}, Exponential(order=2, published=True)),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}, Exponential(order=3, published=True)),
    ("EDMDPMSolverMultistepScheduler", {}, Exponential(order=2, published=True)),
    ("HeunDiscreteScheduler", {}, Heun()),
]


@pytest.mark.parametrize("sde", SDES, ids=repr)
@pytest.mark.parametrize(("name", "settings", "own"), TWINS, ids=str)
def test_schedulers_agree(schedulers, name, settings, own, sde):
    """Some round the state to float32."""
    scheduler = getattr(schedulers, name)(**settings)
    adapted, score = SchedulerSampler(scheduler, deterministic=True), data(sde)
    expected = run(score, own)
    # the second step of theirs of order 3 is the published one of order 2, ours the exact one
    tolerance = 0.02 if settings else 1e-6
    torch.testing.assert_close(run(score, adapted), expected, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_noise_is_passed_to_schedulers(schedulers, eta):
    from scoresde.samplers import DDIMNoise

    adapted = SchedulerSampler(
        schedulers.DDIMScheduler(), deterministic=False, options={"eta": eta}
    )
    score = data(VPSDE())
    expected = run(score, Exponential(order=1, eta=DDIMNoise(eta)))
    torch.testing.assert_close(run(score, adapted), expected, rtol=1e-6, atol=1e-6)


def test_a_scheduler_encodes(schedulers):
    score, sampler = data(VPSDE()), SchedulerSampler(schedulers.EulerDiscreteScheduler())
    times = UniformLogSNR()(VPSDE(), 20)
    x = score.sample(4, 0.0, generator(), torch.float64)
    found, expected = (encode(score, x, each, times=times) for each in (sampler, Exponential(1)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_schedulers_print_their_settings(schedulers):
    scheduler = schedulers.DPMSolverMultistepScheduler(solver_order=3)
    text = code(SchedulerSampler(scheduler, convergence_order=3))
    assert text.startswith("SchedulerSampler(DPMSolverMultistepScheduler(solver_order=3), conv")


def test_a_scheduler_is_checked_by_property(schedulers):
    sampler = SchedulerSampler(schedulers.DDIMScheduler(), convergence_order=1)
    check_sampler(sampler, only=["grid", "generator", "Gaussian data"], examples=1)


@pytest.mark.slow
@pytest.mark.parametrize(("order", "holds"), [(2, True), (3, False)])
def test_the_published_third_order_is_found_to_be_second(schedulers, order, holds):
    scheduler = schedulers.DPMSolverMultistepScheduler(solver_order=order)
    sampler = SchedulerSampler(scheduler, convergence_order=order)
    if holds:
        check_sampler(sampler, only="convergence order")
    else:
        with pytest.raises(BrokenPropertyError, match="declared is 3"):
            check_sampler(sampler, only="convergence order")


def test_loops_of_azula_run():
    sampling = pytest.importorskip("azula.sample")
    denoising = pytest.importorskip("azula.denoise")

    class Exact(denoising.Denoiser):
        def __init__(self, score):
            super().__init__()
            self.score = score

        def schedule(self, t):
            return self.score.sde.alpha(t), self.score.sde.sigma(t)

        def forward(self, x_t, t, **kwargs):
            return denoising.DiracPosterior(mean=self.score.denoised(x_t, t))

    def by_azula(score, x, times, noise):
        class Along(sampling.EulerSampler):
            timesteps = times

        return Along(Exact(score), steps=len(times) - 1, silent=True)(x)

    sampler = LoopSampler(by_azula, 1, deterministic=True)
    torch.testing.assert_close(run(data(VPSDE()), sampler), run(data(VPSDE()), Exponential(1)))


def test_loops_of_flow_matching_run():
    solver = pytest.importorskip("flow_matching.solver")

    def by_midpoint(score, x, times, noise):
        sde = score.sde
        clock = 1 / (1 + torch.exp(-sde.half_logsnr(times)))

        def velocity(x, t):
            time = sde.time_at(torch.log(t / (1 - t)))
            return (score.denoised(x / t * sde.alpha(time), time) - x) / (1 - t)

        start = x * (clock[0] / sde.alpha(times[0]))
        end = solver.ODESolver(velocity).sample(
            start, step_size=None, method="midpoint", time_grid=clock
        )
        return end * (sde.alpha(times[-1]) / clock[-1])

    theirs = run(data(VPSDE()), LoopSampler(by_midpoint, 2, deterministic=True), steps=16)
    ours = run(data(VPSDE()), RungeKutta(MIDPOINT, Rectified()), steps=16)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0.05)


# --- solvers, traces, likelihoods


def midpoint(field, z, start, end, tolerance):
    steps = round(tolerance**-0.5)
    h, tau = (end - start) / steps, start
    for _ in range(steps):
        z = z + h * field(tau + h / 2, z + h / 2 * field(tau, z))
        tau += h
    return z


def logistic(tau, z, rows, counter):
    return z * (1 - z), (1 - 2 * z).sum(1, keepdim=True), None


def test_an_integrator_solves():
    z = torch.tensor([[0.2, 0.5], [0.7, 0.9]], dtype=torch.float64)
    solution = FunctionSolver(midpoint).solve(logistic, z, 0.0, 1.5, tolerance=1e-5)
    exact = torch.sigmoid(torch.logit(z) + 1.5)
    integral = (torch.log(exact * (1 - exact)) - torch.log(z * (1 - z))).sum(1)
    torch.testing.assert_close(solution.state, exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(solution.integral, integral, rtol=0, atol=1e-5)
    assert (solution.status == int(Status.CONVERGED)).all()
    assert (solution.reached == 1.5).all()


def test_an_integrator_that_fails_has_its_status():
    z = torch.ones(2, 1, dtype=torch.float64)
    few = FunctionSolver(midpoint, max_evaluations=10)
    solution = few.solve(logistic, 0.5 * z, 0.0, 1.0, tolerance=1e-5)
    assert (solution.status == int(Status.MAX_EVALUATIONS)).all()
    bad = FunctionSolver(lambda field, z, start, end, tolerance: z / torch.tensor([[1.0], [0.0]]))
    solution = bad.solve(logistic, 0.5 * z, 0.0, 1.0, tolerance=1e-5)
    assert solution.status.tolist() == [int(Status.CONVERGED), int(Status.NOT_FINITE)]
    assert solution.state.isfinite().all()


def one_probe(field, x, noise):
    v = noise(x).sign()
    (product,) = torch.autograd.grad(field(x), x, v, create_graph=True)
    return (product * v).sum(1)


def whole(field, x, noise):
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: field(row[None])[0]))(x)
    return jacobian.diagonal(dim1=1, dim2=2).sum(1)


def curved(x):
    return torch.sin(x) + 0.3 * x.flip(1) ** 2


def test_divergences_agree():
    x = torch.randn(6, 3, generator=generator(), dtype=torch.float64)
    rng = CounterRNG.draw(6, generator())
    value, exact = ExactTrace()(curved, x, rng)
    found = FunctionTrace(whole, probes=None, exact=True)(curved, x, rng)
    torch.testing.assert_close(found, (value, exact))
    trace = FunctionTrace(one_probe)
    assert (trace.products(3), FunctionTrace(whole, probes=None).products(3)) == (1, 3)
    rows = torch.zeros(20_000, dtype=torch.int64)
    many = trace(curved, x[rows], CounterRNG.draw(20_000, generator()))[1]
    error = many.std() / len(many) ** 0.5
    assert (many.mean() - exact[0]).abs() < 5 * error  # false alarm 6e-7


def test_a_divergence_draws_for_each_row_and_each_call():
    def two(field, x, noise):
        return (noise(x) - noise(x)).sum(1)

    x, rng = torch.zeros(4, 3, dtype=torch.float64), CounterRNG.draw(4, generator())
    _, found = FunctionTrace(two)(curved, x, rng)
    assert found.abs().min() > 0
    _, alone = FunctionTrace(two)(curved, x[1:2], CounterRNG(rng.seeds[1:2], rng.counter[1:2]))
    assert torch.equal(alone, found[1:2])


def test_a_divergence_is_differentiable():
    x = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    trace = FunctionTrace(one_probe)
    _, value = trace(torch.sin, x, CounterRNG.draw(2, generator()), differentiable=True)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), x)[0], -torch.sin(x).detach())
    assert not trace(torch.sin, x, CounterRNG.draw(2, generator()))[1].requires_grad


def test_a_density_is_a_method():
    score = data(VPSDE())
    x = score.sample(4, 0.0, generator(), torch.float64)
    for function, error in (
        (lambda score, x: score.log_prob(x), 0.0),
        (lambda score, x: (score.log_prob(x), torch.full((4,), 0.1).double()), 0.1),
    ):
        found = log_likelihood(score, x, method=FunctionMethod(function))
        torch.testing.assert_close(found.log_prob, score.log_prob(x))
        torch.testing.assert_close(found.solver_error, torch.full((4,), error).double())
        assert found.converged.all()


# --- what does not fit


class StateDependent(Torch):
    def g(self, t, y):
        return y.abs()


def refused(error, words, call):
    with pytest.raises(error, match=words):
        call()


def test_what_does_not_fit_is_refused(schedulers):
    x, z = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.float64)
    rng = CounterRNG.draw(2, generator())
    refused(TypeError, "drift_function: expected a function", lambda: FunctionSDE(1.0, rate))
    refused(TypeError, "sigma_function: expected", lambda: FunctionGaussianSDE(rate, None))
    wrong = FunctionSDE(lambda x, t: x.sum(1), lambda t: torch.ones(7))
    refused(ValueError, "drift_function: expected a result", lambda: wrong.drift(x, 0.5))
    refused(ValueError, "diffusion_function: expected shape", lambda: wrong.diffusion(0.5))
    refused(TypeError, "object: .* without 'f'", lambda: FromTorchSDE(lambda: None))
    refused(
        ValueError,
        "one number g",
        lambda: FromTorchSDE(StateDependent()).diffusion(0.5),
    )
    refused(TypeError, "function: expected a function", lambda: FunctionSampler(2.0))
    narrow = FunctionSampler(lambda score, x, t, s, noise: x[:1])
    refused(
        ValueError, "function: expected a result of the shape", lambda: run(data(VPSDE()), narrow)
    )
    short = FunctionTrace(lambda field, x, noise: torch.ones(1))
    refused(ValueError, "function: expected estimates", lambda: short(curved, x, rng))
    method = FunctionMethod(lambda score, x: x)
    refused(
        ValueError,
        "one number for each point",
        lambda: log_likelihood(data(VPSDE()), z[:, :2], method=method),
    )
    refused(TypeError, "without 'config'", lambda: SchedulerSampler(object()))
    refused(
        ValueError,
        "variance_noise",
        lambda: SchedulerSampler(schedulers.DDPMScheduler(), deterministic=False),
    )
    sampler = SchedulerSampler(schedulers.DDPMScheduler())
    refused(ValueError, "has advanced", lambda: run(data(VPSDE()), sampler))
    small = SchedulerSampler(schedulers.DDIMScheduler(num_train_timesteps=5))
    refused(ValueError, "num_train_timesteps", lambda: run(data(VPSDE()), small))
