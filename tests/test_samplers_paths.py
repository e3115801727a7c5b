"""Trajectories, encoding, presets, and adaptive steps."""

import math
import warnings

import pytest
import torch

import scoresde.samplers as samplers
from scoresde import (
    DDPM,
    MLP,
    VESDE,
    VPSDE,
    FunctionScore,
    GaussianMixture,
    ScoreModel,
    SubVPSDE,
)
from scoresde.samplers import (
    MALA,
    RK4,
    AdamsBashforth,
    AdaptiveSDE,
    Ancestral,
    Exponential,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
    RungeKutta,
    SamplingError,
    Timesteps,
    annealed_langevin,
    ddim,
    ddpm,
    deis,
    dpm_solver,
    edm_heun,
    encode,
    interpolate,
    iterate,
    pc,
    sa_solver,
    sample,
    trajectory,
    unipc,
)
from scoresde.scores import ChunkedScore

SDES = pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=repr)
PRESETS = [
    ddpm(),
    ddim(),
    ddim(0.5),
    pc(),
    annealed_langevin(),
    edm_heun(),
    edm_heun(churn=40.0),
    dpm_solver(),
    dpm_solver(3, eta=1.0),
    dpm_solver(published=True),
    unipc(),
    deis(),
    sa_solver(),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture(sde):
    means = torch.tensor([[-1.0, -1.0], [1.0, 0.8]])
    return GaussianMixture(
        torch.tensor([0.7, 0.3]), means, 0.04 * torch.eye(2).expand(2, 2, 2), sde
    )


# --- trajectories, encodings


def test_a_trajectory_is_the_run_of_sample():
    score = mixture(VPSDE())
    times, states = trajectory(score, (3, 2), Ancestral(), steps=5, generator=generator())
    assert torch.equal(times, Ancestral().times(score.sde, 5))
    assert states.shape == (6, 3, 2)
    x = sample(score, (3, 2), Ancestral(), steps=5, denoise=False, generator=generator())
    assert torch.equal(states[-1], x)


def test_a_trajectory_costs_what_its_steps_cost():
    exact, calls = mixture(VPSDE()), []

    def counted(x, t):
        calls.append(t)
        return exact(x, t)

    trajectory(FunctionScore(counted, VPSDE()), (3, 2), Ancestral(), steps=5)
    assert len(calls) == 5


def test_previews_are_denoised_states():
    score = mixture(VPSDE())
    times, states = trajectory(score, (3, 2), Ancestral(), steps=5, generator=generator())
    _, previews = trajectory(
        score, (3, 2), Ancestral(), steps=5, previews=True, generator=generator()
    )
    for t, x, preview in zip(times, states, previews, strict=True):
        assert torch.equal(score.denoised(x, t), preview)


@SDES
@pytest.mark.parametrize(
    ("sampler", "steps", "tolerance"),
    [
        (ProbabilityFlow(tolerance=1e-5), 1, 1e-3),
        (Exponential(3), 300, 1e-3),
        (Heun(), 300, 2e-3),
        (AdamsBashforth(), 60, 1e-3),
        (RungeKutta(RK4), 25, 1e-3),
    ],
    ids=str,
)
def test_decoding_inverts_encoding(sampler, steps, tolerance, sde):
    score = mixture(sde)
    x = score.sample(6, sde.t_min, generator(), torch.float64)
    latent = encode(score, x, sampler, steps=steps)
    scale = float(sde.prior_scale())
    assert float(latent.abs().max()) < 6 * scale
    back = sample(score, None, sampler, start=latent, steps=steps, denoise=False)
    torch.testing.assert_close(back, x, rtol=0, atol=tolerance)


def test_encoding_gaussian_data_is_the_closed_form():
    sde, m, c = VPSDE(), 0.5, 0.3
    score = GaussianMixture(torch.ones(1), torch.tensor([[m]]), torch.tensor([[[c]]]), sde)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).unsqueeze(1)
    (a0, a1), (s0, s1) = (
        [float(curve(t)) for t in (sde.t_min, sde.T)] for curve in (sde.alpha, sde.sigma)
    )
    mean, var = (float(v) for v in (score.moments.mean, score.moments.variance))
    stretch = math.sqrt((a1**2 * var + s1**2) / (a0**2 * var + s0**2))
    want = a1 * mean + stretch * (x - a0 * mean)
    torch.testing.assert_close(encode(score, x), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encode(score, x, Heun(), steps=200), want, rtol=2e-3, atol=2e-3)


def test_interpolation_ends_at_the_given_data():
    score = mixture(VPSDE())
    ends = score.sample(4, score.sde.t_min, generator(), torch.float64)
    between = interpolate(score, ends[:2], ends[2:], [0.0, 0.5, 1.0], Exponential(3), steps=200)
    assert between.shape == (3, 2, 2)
    torch.testing.assert_close(between[0], ends[:2], rtol=0, atol=3e-3)
    torch.testing.assert_close(between[2], ends[2:], rtol=0, atol=3e-3)
    assert bool((score.log_prob(between[1], score.sde.t_min) > -20).all())


def test_interpolating_keeps_the_rows_of_a_condition():
    torch.manual_seed(0)
    model = ScoreModel(MLP((2,), width=16, depth=1, classes=5), VPSDE())
    model = model.given(classes=torch.arange(4))
    x0, x1 = torch.randn(2, 4, 2)
    together = interpolate(model, x0, x1, [0.3], Exponential(2), steps=5)
    alone = interpolate(model.select(slice(2, 3)), x0[2:3], x1[2:3], [0.3], Exponential(2), steps=5)
    torch.testing.assert_close(together[:, 2:3], alone, rtol=1e-4, atol=1e-4)


def test_encoding_needs_a_deterministic_sampler():
    score = mixture(VPSDE())
    for sampler in (Ancestral(), Exponential(2, eta=1.0), Heun(eta=0.5), edm_heun(churn=10.0)):
        with pytest.raises(ValueError, match="sampler: expected a deterministic one"):
            encode(score, torch.randn(2, 2), sampler, steps=4)


def test_a_latent_that_is_not_finite_raises():
    def broken(x, t):
        return torch.where((t > 0.5) & (x[:, :1] > 0), torch.nan, -x)

    with pytest.raises(SamplingError, match="1 of 2 are not finite"):
        encode(
            FunctionScore(broken, VPSDE()), torch.tensor([[1.0], [-1.0]]), Exponential(1), steps=9
        )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: encode(s, torch.ones(2, 2).long()), TypeError, "x: expected a floating-point"),
        (lambda s: encode(None, torch.ones(2, 2)), TypeError, "score: expected a Score"),
        (
            lambda s: interpolate(s, torch.ones(2, 2), torch.ones(3, 2), [0.5]),
            ValueError,
            "x0, x1: expected the same shape",
        ),
        (
            lambda s: interpolate(s, torch.ones(2, 2), torch.ones(2, 2), 0.5),
            ValueError,
            r"weights: expected shape \(m,\)",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(mixture(VPSDE()))


# --- presets


def test_ddim_without_noise_can_encode():
    assert ddim().deterministic
    assert not ddim(0.5).deterministic
    x = torch.ones(2, 2)
    assert encode(mixture(VPSDE()), x, ddim(), steps=3).shape == x.shape


@pytest.mark.parametrize("preset", PRESETS, ids=repr)
def test_presets_print_themselves_and_run(preset):
    assert eval(repr(preset), vars(samplers) | {"inf": math.inf}) == preset
    for sde in (VPSDE(), SubVPSDE(), VESDE()):
        x = sample(mixture(sde), (4, 2), preset, steps=6, generator=generator())
        assert x.shape == (4, 2)


@pytest.mark.parametrize(
    "preset",
    [ddpm(), edm_heun(), edm_heun(churn=10.0, steps=40), dpm_solver(), dpm_solver(3, eta=1.0),
     unipc(), deis(), sa_solver()],
    ids=repr,
)  # fmt: skip
def test_presets_sample_the_data(preset):
    """With their own grid and steps: mode weights, means and widths, to ten percent."""
    score = mixture(VESDE())
    x = sample(score, (2000, 2), preset, generator=generator())
    upper = x[:, 0] > 0
    assert float(upper.float().mean()) == pytest.approx(0.3, abs=0.045)
    for mode, mean in ((x[upper], (1.0, 0.8)), (x[~upper], (-1.0, -1.0))):
        torch.testing.assert_close(mode.mean(0), torch.tensor(mean), rtol=0, atol=0.05)
        torch.testing.assert_close(mode.std(0), torch.tensor([0.2, 0.2]), rtol=0.1, atol=0)


@pytest.mark.parametrize("preset", PRESETS, ids=repr)
@pytest.mark.parametrize(
    "steps",
    [1, 2, 3, 29, pytest.param(1000, marks=pytest.mark.slow),
     pytest.param(2000, marks=pytest.mark.slow)],
)  # fmt: skip
def test_presets_are_finite_in_any_number_of_steps(preset, steps):
    for sde in (VPSDE(), SubVPSDE(), VESDE()):
        x = sample(mixture(sde), (2, 2), preset, steps=steps, generator=generator())
        assert bool(x.isfinite().all())


def corrections_per_level(preset, steps):
    """Sample, and count the evaluations of the score at each time of the grid."""
    exact, calls = mixture(VESDE()), []
    counted = FunctionScore(lambda x, t: (calls.append(float(t)), exact(x, t))[1], exact.sde)
    sample(counted, (2, 2), preset, steps=steps, denoise=False, generator=generator())
    times = preset.times(exact.sde, preset.default_steps if steps is None else steps).tolist()
    assert set(calls) <= set(times)
    return [calls.count(t) for t in times]


def test_annealed_langevin_corrects_at_every_level():
    """The lowest included: 231 steps are the 232 levels of NCSNv2, with 5 corrections each."""
    assert corrections_per_level(annealed_langevin(corrections=3), 6) == [3] * 7
    assert corrections_per_level(annealed_langevin(), None) == [5] * 232


def test_predictor_corrector_ends_with_a_prediction():
    """At the last time there is no correction; each other time has one and a prediction."""
    assert corrections_per_level(pc(corrections=2), 6) == [3] * 6 + [0]


def test_ddpm_on_its_own_table():
    sde = DDPM.linear(N=20)
    score = mixture(sde)
    preset = ddpm(grid=Timesteps(), steps=19)
    times, _ = trajectory(score, (2, 2), preset, generator=generator())
    assert torch.equal(times, sde.times.flip(0))


# --- adaptive steps


def evaluations(sampler, score, start, seed=1):
    """Run a sampler, and count the evaluations of each sample."""
    counts = torch.zeros(len(start))

    class Counting(ChunkedScore):
        def __init__(self, inner, rows):
            super().__init__(inner, 10**6)
            self.index = rows

        def select(self, index):
            return Counting(self.score, self.index[index])

        def denoised(self, x, t):
            counts[self.index] += 1
            return super().denoised(x, t)

    source = generator(seed)
    counting = Counting(score, torch.arange(len(start)))
    times = sampler.times(score.sde, 1)
    *_, (x, _) = iterate(counting, start, times, sampler,
                 lambda x: torch.randn(x.shape, generator=source, dtype=x.dtype))  # fmt: skip
    return x, counts


@SDES
def test_tighter_tolerances_cost_more_and_step_sizes_differ_per_sample(sde):
    score = mixture(sde)
    start = score.sample(64, sde.T, generator(), torch.float64)
    _, loose = evaluations(AdaptiveSDE(0.5), score, start)
    _, tight = evaluations(AdaptiveSDE(0.05), score, start)
    assert float(tight.mean()) > 2 * float(loose.mean())
    assert len(tight.unique()) > 3


def test_rejected_steps_do_not_bias_the_samples():
    """The first trial step is far too long, so that several are rejected.

    The mean square of Gaussian data is known exactly; new noise after a rejection would bias it.
    """
    sde, variance = VPSDE(), 0.01
    score = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.tensor([[[variance]]]), sde)
    t, s = (float(sde.time_at(torch.tensor(v, dtype=torch.float64))) for v in (0.5, 3.0))
    start = score.sample(20000, t, generator(), torch.float64)
    rejections = []
    original = samplers.adaptive._BridgedPaths.accept

    def count(self, accepted, *arguments):
        rejections.append(float((~accepted).double().mean()))
        return original(self, accepted, *arguments)

    samplers.adaptive._BridgedPaths.accept = count
    times = torch.tensor([t, s], dtype=torch.float64)
    source = generator(1)

    def noise(x):
        return torch.randn(x.shape, generator=source, dtype=x.dtype)

    try:
        ((x, _),) = iterate(score, start, times, AdaptiveSDE(0.03, first=2.5, longest=2.5), noise)
    finally:
        samplers.adaptive._BridgedPaths.accept = original
    assert rejections[0] > 0.5
    exact = float(sde.alpha(s) ** 2 * variance + sde.sigma(s) ** 2)
    std = 4 * math.sqrt(2 / 20000)
    assert float(x.square().mean()) / exact == pytest.approx(1.0, abs=std + 0.02)


def test_the_increments_of_a_bridge_add_up():
    """The G of two subintervals give the G of the interval, and they are independent."""
    n, eta = 40000, 0.8
    source = generator()
    paths = samplers.adaptive._BridgedPaths.begin(
        torch.zeros(n, 1, dtype=torch.float64), torch.zeros((), dtype=torch.float64), 0.0,
        torch.ones(n, dtype=torch.float64),
    )  # fmt: skip

    def draw(paths, target):
        z = torch.randn(n, 1, generator=source, dtype=torch.float64)
        return paths.draw(torch.full((n,), target, dtype=torch.float64), z, eta)

    def accept(paths, target):
        accepted = torch.ones(n, dtype=torch.bool)
        half_logsnr = torch.full((n,), target, dtype=torch.float64)
        return paths.accept(accepted, paths.x, half_logsnr, paths.time, paths.length)

    def variance(length):
        return -math.expm1(-2 * eta**2 * length)

    paths, total = draw(paths, 2.0)
    paths, first = draw(paths, 0.7)
    paths = accept(paths, 0.7)
    assert torch.equal(paths.next_node(), torch.full((n,), 2.0, dtype=torch.float64))
    paths, second = draw(paths, 2.0)
    paths = accept(paths, 2.0)
    assert bool(paths.next_node().isinf().all())
    torch.testing.assert_close(math.exp(-(eta**2) * 1.3) * first + second, total)
    tolerance = 5 * math.sqrt(2 / n)
    for increment, length in ((total, 2.0), (first, 0.7), (second, 1.3)):
        assert float(increment.var()) / variance(length) == pytest.approx(1.0, abs=tolerance)
    assert abs(float((first * second).mean())) < 5 / math.sqrt(n)


# --- corrections with a density


def test_metropolis_needs_a_density_and_takes_a_given_one():
    score = mixture(VPSDE())
    plain = FunctionScore(lambda x, t: score(x, t), VPSDE())
    with pytest.raises(TypeError, match="log_prob: expected a function"):
        sample(plain, (2, 2), PredictorCorrector(Ancestral(), MALA()), steps=2)
    own, given = (
        sample(
            s, (5, 2), PredictorCorrector(Ancestral(), corrector), steps=5, generator=generator()
        )
        for s, corrector in (
            (score, MALA()),
            (plain, MALA(log_prob=score.log_prob)),
        )
    )
    torch.testing.assert_close(own, given)


def test_metropolis_proposes_a_langevin_step():
    """x + 2 (r σ)² s + 2 r σ z; a density makes some rows accept and others reject."""
    score, t = mixture(VPSDE()), torch.tensor(0.4, dtype=torch.float64)
    x, z = (torch.randn(4, 2, generator=generator(k), dtype=torch.float64) for k in (1, 2))
    size = 0.3 * float(score.sde.sigma(t))
    proposal = x + 2 * size**2 * score(x, t) + 2 * size * z
    rejected = torch.tensor([False, True, False, True])

    def density(y, t):
        return torch.where(rejected & (y != x).any(1), -1e6, 0.0).double()

    def noise(like):  # z, then numbers so low that every proposal of finite density is accepted
        return z if like.shape == z.shape else torch.full_like(like, -30.0)

    got, _ = MALA(0.3, density).step(score, x, t, t, None, noise)
    torch.testing.assert_close(got, torch.where(rejected.unsqueeze(1), x, proposal))


@pytest.mark.parametrize("tolerance", [0.1, 0.03, 0.003])
def test_loose_tolerances_converge_too(tolerance):
    """On narrow modes, where steps that are nearly rejected leave inaccurate slopes."""
    line = torch.arange(-2.0, 3.0, dtype=torch.float64)
    covariances = 0.05**2 * torch.eye(2, dtype=torch.float64).expand(25, 2, 2)
    score = GaussianMixture(torch.ones(25), torch.cartesian_prod(line, line), covariances, VPSDE())
    source = torch.Generator().manual_seed(0)
    start = torch.randn(200, 2, generator=source, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = sample(score, None, ProbabilityFlow(tolerance=tolerance), start=start)
    assert float((x - x.round()).abs().median()) < 0.15  # three times the width of a mode
