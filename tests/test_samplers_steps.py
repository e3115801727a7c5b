"""Single steps against the papers' formulas, and weak orders without sampling.

On Gaussian data a step is x ↦ A x + b + Σ c_k z_k. A, b and c are measured on the step itself, and
mean and variance are propagated exactly, without sampling.
"""

from itertools import pairwise

import pytest
import torch
from naming import named

from scoresde import VESDE, VPSDE, GaussianMixture, SubVPSDE
from scoresde.samplers import (
    Ancestral,
    AnnealedLangevin,
    EulerMaruyama,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    TorchSDE,
    iterate,
)

SDES = pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=repr)
MEAN, VARIANCE = 0.7, 0.09


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def gaussian(sde):
    return GaussianMixture(double(1.0), double([MEAN]), double([[VARIANCE]]), sde)


def affine(sampler, score, t, s):
    """Return A, b and the c_k of one step."""
    x = double([0.0], [1.0])
    state = sampler.init(score, x, t)

    def run(unit_draw):
        calls = iter(range(1000))
        result, _ = sampler.step(
            score, x, t, s, state, lambda x: torch.full_like(x, float(next(calls) == unit_draw))
        )
        return result.squeeze(1), next(calls)

    (base, unit), count = run(None)
    return unit - base, base, double(*(run(k)[0][0] - base for k in range(count)))


def mean_and_variance(sampler, sde, times):
    """Mean and variance at ``times[-1]`` from the exact ones at ``times[0]``."""
    score, (alpha, sigma) = gaussian(sde), (sde.alpha(times[0]), sde.sigma(times[0]))
    mean, variance = alpha * MEAN, alpha**2 * VARIANCE + sigma**2
    for t, s in pairwise(times.unbind()):
        slope, shift, stds = affine(sampler, score, t, s)
        mean, variance = slope * mean + shift, slope**2 * variance + stds.square().sum()
    return mean, variance


def weak_errors(sampler, sde, steps, ends=(0.8, 0.35)):
    times = torch.linspace(*ends, steps + 1, dtype=torch.float64)
    mean, variance = mean_and_variance(sampler, sde, times)
    alpha, sigma = sde.alpha(times[-1]), sde.sigma(times[-1])
    exact = alpha**2 * VARIANCE + sigma**2
    return double(abs(mean - alpha * MEAN) / exact.sqrt(), abs(variance / exact - 1))


@SDES
@pytest.mark.parametrize(
    ("sampler", "order", "steps"),
    [
        (EulerMaruyama(), 1, 40),
        (EulerMaruyama(eta=0.0), 1, 40),
        (EulerMaruyama(eta=lambda t: 0.5 + t), 1, 40),
        (ReverseDiffusion(), 1, 40),
        (Ancestral(), 1, 40),
        (Ancestral(variance=0.5), 1, 40),
        (Ancestral(variance=1.0), 1, 40),
        (TorchSDE("euler"), 1, 20),
        (TorchSDE("milstein"), 1, 20),
        (TorchSDE("srk"), 2, 10),
    ],
    ids=named,
)
def test_weak_order_on_gaussian_data(sampler, order, steps, sde):
    coarse, fine = (weak_errors(sampler, sde, n) for n in (steps, 2 * steps))
    observed = torch.log2(coarse.max() / fine.max())
    assert abs(float(observed) - order) <= 0.25
    assert float(fine.max()) < 0.4


@SDES
def test_torchsde_euler_is_our_euler_step(sde):
    score, x = gaussian(sde), torch.randn(4, 1, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(sde.T, 0.3, 5, dtype=torch.float64)
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = (
        list(iterate(score, x, times, sampler, lambda x: z))
        for sampler in (EulerMaruyama(), TorchSDE("euler"))
    )
    for (a, _), (b, _) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("method", "evaluations"), [("euler", 1), ("milstein", 1), ("srk", 4)])
def test_torchsde_does_not_repeat_evaluations(method, evaluations):
    score, x = gaussian(VPSDE()), torch.ones(2, 1)
    calls = []
    score.register_forward_hook(lambda *_: calls.append(1))
    times = double(1.0, 0.5)
    list(iterate(score, x, times, TorchSDE(method), torch.randn_like))
    assert len(calls) == evaluations


# --- literal transcriptions, on discretized diffusions


def vp_table(n=50):
    """times t_1 < … < t_n, betas and alphas_bar of the chain that VP makes on them."""
    sde = VPSDE()
    times = torch.linspace(0.02, 1.0, n, dtype=torch.float64)
    bars = torch.exp(-(0.1 * times + 0.5 * 19.9 * times**2))
    betas = 1 - bars / torch.cat([double(1.0), bars[:-1]])
    return sde, times, betas, bars


def some(sde):
    means = double([-1.0, 0.3], [0.5, 1.0])
    score = GaussianMixture(double(0.6, 0.4), means, 0.05 * torch.eye(2).expand(2, 2, 2), sde)
    source = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 6, 2, generator=source, dtype=torch.float64)
    return score, x, z


@pytest.mark.parametrize("i", [1, 7, 48])
def test_ancestral_is_ddpm(i):
    sde, times, betas, bars = vp_table()
    score, x, z = some(sde)
    t, s, beta, bar, bar_before = times[i], times[i - 1], betas[i], bars[i], bars[i - 1]
    x0 = score.denoised(x, t)
    # Ho et al. 2020, eq. 7
    mean = bar_before.sqrt() * beta / (1 - bar) * x0
    mean = mean + (1 - beta).sqrt() * (1 - bar_before) / (1 - bar) * x
    small, large = (1 - bar_before) / (1 - bar) * beta, beta
    # eq. 11: the same in terms of the noise
    noise = score.noise(x, t)
    torch.testing.assert_close(mean, (x - beta / (1 - bar).sqrt() * noise) / (1 - beta).sqrt())
    for variance, v in ((small, 0.0), (large, 1.0), ((small * large).sqrt(), 0.5)):
        got, _ = Ancestral(variance=v).step(score, x, t, s, None, lambda x: z)
        torch.testing.assert_close(got, mean + variance.sqrt() * z, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("i", [1, 7, 48])
def test_ancestral_is_song_vp(i):
    """Appendix F, eq. 4 for DDPM in score form: noise of the forward kernel."""
    sde, times, betas, _ = vp_table()
    score, x, z = some(sde)
    got, _ = Ancestral(variance=1.0).step(score, x, times[i], times[i - 1], None, lambda x: z)
    beta = betas[i]
    want = (x + beta * score(x, times[i])) / (1 - beta).sqrt() + beta.sqrt() * z
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("i", [1, 7, 48])
def test_ancestral_is_smld(i):
    """Song et al. 2021, appendix F, eq. 47."""
    sde = VESDE()
    sigmas = torch.logspace(-2, torch.log10(double(50.0)).item(), 50, dtype=torch.float64)
    times = torch.linspace(0, 1, 50, dtype=torch.float64)
    score, x, z = some(sde)
    new, old = sigmas[i] ** 2, sigmas[i - 1] ** 2
    want = x + (new - old) * score(x, times[i]) + (old * (new - old) / new).sqrt() * z
    got, _ = Ancestral().step(score, x, times[i], times[i - 1], None, lambda x: z)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("i", [1, 7, 48])
def test_reverse_diffusion_is_the_published_predictor(i):
    """x_mean = x − f + G² s, x = x_mean + G z with the discretized f and G of Song et al."""
    sde, times, betas, _ = vp_table()
    score, x, z = some(sde)
    f, g = (1 - betas[i]).sqrt() * x - x, betas[i].sqrt()
    got, _ = ReverseDiffusion().step(score, x, times[i], times[i - 1], None, lambda x: z)
    torch.testing.assert_close(got, x - f + g**2 * score(x, times[i]) + g * z)

    sigmas = torch.logspace(-2, torch.log10(double(50.0)).item(), 50, dtype=torch.float64)
    times = torch.linspace(0, 1, 50, dtype=torch.float64)
    score, x, z = some(VESDE())
    g = (sigmas[i] ** 2 - sigmas[i - 1] ** 2).sqrt()
    got, _ = ReverseDiffusion().step(score, x, times[i], times[i - 1], None, lambda x: z)
    torch.testing.assert_close(got, x + g**2 * score(x, times[i]) + g * z)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_published_correctors(name):
    """Langevin and annealed Langevin of the official code: batch means, alpha = 1 − β."""
    vp, times, betas, bars = vp_table()
    sde, alpha, std = {
        "vp": (vp, 1 - betas[20], (1 - bars[20]).sqrt()),
        "ve": (VESDE(), double(1.0)[0], VESDE().sigma(times[20])),
    }[name]
    score, x, z = some(sde)
    t, s = times[20], times[19]
    grad = score(x, t)
    grad_norm, noise_norm = grad.norm(dim=-1).mean(), z.norm(dim=-1).mean()
    step = (0.16 * noise_norm / grad_norm) ** 2 * 2 * alpha
    got, _ = Langevin(0.16, published=True).step(score, x, t, s, None, lambda x: z)
    torch.testing.assert_close(got, x + step * grad + (step * 2).sqrt() * z)
    step = (0.176 * std) ** 2 * 2 * alpha
    got, _ = AnnealedLangevin(0.176, published=True).step(score, x, t, s, None, lambda x: z)
    torch.testing.assert_close(got, x + step * grad + (step * 2).sqrt() * z)


# --- correctors


@SDES
def test_annealed_langevin_leaves_p_t_invariant_for_small_steps(sde):
    """The stationary variance of the step on Gaussian data is exact up to O(r²)."""
    t, score = double(0.3)[0], gaussian(sde)
    exact = sde.alpha(t) ** 2 * VARIANCE + sde.sigma(t) ** 2
    errors = []
    for snr in (0.16, 0.08, 0.04):
        slope, shift, std = affine(AnnealedLangevin(snr), score, t, t)
        assert abs(shift / (1 - slope) - sde.alpha(t) * MEAN) < 1e-9
        errors.append(float(std.square().sum() / (1 - slope**2) / exact - 1))
    assert 0 < errors[0] < 0.03
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


@SDES
@pytest.mark.parametrize("d", [1, 2, 3072])
def test_langevin_steps_are_bounded_everywhere(sde, d):
    """Also at the center of a mode, where the score is zero, and far away, where it is huge."""
    t = double(0.3)[0]
    variance = float(sde.sigma(t)) ** 2
    for value in (0.0, 1e-20, 1.0, 1e20):
        size = Langevin()._size(gaussian(sde), torch.full((3, d), value, dtype=torch.float64), t)
        assert bool((size >= 0).all())
        assert bool((size <= variance / 2 * (1 + 1e-12)).all())
        assert bool((size <= 2 * 0.16**2 * variance * (1 + d / 100) * (1 + 1e-12)).all())


def test_langevin_is_the_published_rule_in_high_dimension():
    sde, t = VESDE(), double(0.5)[0]
    z = torch.randn(4, 3072, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value = z / sde.sigma(t)
    size = Langevin()._size(gaussian(sde), value, t)
    published = 2 * 0.16**2 * 3072 / value.square().sum(1)
    torch.testing.assert_close(size, published, rtol=5e-3, atol=0)


@pytest.mark.parametrize(("sde", "snr"), [(VESDE(), 0.16), (VPSDE(), 0.01), (SubVPSDE(), 0.01)])
def test_langevin_uses_the_published_ratio_of_its_diffusion(sde, snr):
    score, x, z = some(sde)
    t, s = double(0.5, 0.4)
    for published in (False, True):
        own, given = (
            Langevin(r, published=published).step(score, x, t, s, None, lambda x: z)[0]
            for r in (None, snr)
        )
        assert torch.equal(own, given)


def test_predictor_corrector_corrects_first():
    sde = VPSDE()
    score, x, _ = some(sde)
    t, s = double(0.5, 0.4)
    z = iter(torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    zs = list(z)
    by_hand = x
    for k in (0, 1):
        by_hand, _ = AnnealedLangevin().step(score, by_hand, t, s, None, lambda x, k=k: zs[k])
    by_hand, _ = ReverseDiffusion().step(score, by_hand, t, s, None, lambda x: zs[2])
    sampler = PredictorCorrector(ReverseDiffusion(), AnnealedLangevin(), corrections=2)
    noise = iter(zs)
    got, _ = sampler.step(score, x, t, s, sampler.init(score, x, t), lambda x: next(noise))
    assert torch.equal(got, by_hand)


def test_orders_of_torchsde_are_the_weak_ones_it_documents():
    orders = {"euler": 1, "milstein": 1, "srk": 2}
    assert {method: TorchSDE(method).convergence_order for method in orders} == orders
