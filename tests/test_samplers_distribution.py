"""The distribution of the samples, against exact samples of a mixture.

Every cell is seeded, so that a pass stays a pass. The bounds: mean and covariance within 5 standard
errors, mode weights within 4.5, and a sliced W2 within 1.1 times the largest of 40 pairs of exact
samples (false-alarm rates of a new seed: below 1e-5, 1e-4 and 1/40 a cell), plus an allowance of 2
% for the discretization, which is of weak order one.
"""

import pytest
import torch

from scoresde import VESDE, VPSDE, GaussianMixture, SubVPSDE
from scoresde.samplers import (
    MALA,
    AdaptiveSDE,
    Ancestral,
    AnnealedLangevin,
    Churn,
    EulerMaruyama,
    Exponential,
    Heun,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    TorchSDE,
    sample,
)

N = 3000
BIAS = 0.02
WEIGHTS = torch.tensor([0.45, 0.3, 0.15, 0.1])
MEANS = torch.tensor([[-1.0, -1.0], [1.0, 0.8], [-0.8, 1.2], [1.5, -1.2]])
COVARIANCES = torch.stack(
    [
        0.1**2 * torch.eye(2),
        0.3**2 * torch.eye(2),
        torch.tensor([[0.2, 0.05], [0.05, 0.1]]),
        0.2**2 * torch.eye(2),
    ]
)
SDES = [VPSDE(), SubVPSDE(), VESDE()]
SAMPLERS = [
    EulerMaruyama(),
    EulerMaruyama(eta=0.0),
    ReverseDiffusion(),
    Ancestral(),
    Ancestral(variance=1.0),
    PredictorCorrector(ReverseDiffusion(), Langevin()),
    PredictorCorrector(EulerMaruyama(), AnnealedLangevin()),
    PredictorCorrector(Ancestral(), MALA()),
]
FEW = [Exponential(3), Exponential(2, eta=1.0), Heun(), Heun(eta=1.0), Churn(Heun(), gamma=0.1)]
ADAPTIVE = [AdaptiveSDE(0.03), AdaptiveSDE(0.05, eta=0.5, first=3.0), ProbabilityFlow()]


def mixture(sde):
    return GaussianMixture(WEIGHTS, MEANS, COVARIANCES, sde)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def logsnr_grid(sde, steps):
    """Times equidistant in log-SNR: the error of the discretization is not tested here."""
    ends = [float(sde.half_logsnr(t)) for t in (sde.T, max(sde.t_min, 1e-4))]
    return sde.time_at(torch.linspace(*ends, steps + 1, dtype=torch.float64))


def sliced_w2(x, y):
    angles = torch.arange(16) * torch.pi / 16
    directions = torch.stack([angles.cos(), angles.sin()])
    a, b = ((v @ directions).sort(dim=0).values for v in (x, y))
    return (a - b).square().mean().sqrt()


@pytest.fixture(scope="module")
def exact():
    """Exact samples, and the largest sliced W2 between two such sets."""
    data = mixture(VPSDE())
    draws = [data.sample(N, generator=generator(1000 + k)) for k in range(80)]
    null = [sliced_w2(x, y) for x, y in zip(draws[::2], draws[1::2], strict=True)]
    return draws[0], float(torch.stack(null).max())


def check_distribution(x, exact, bias=BIAS):
    data, (reference, largest) = mixture(VPSDE()), exact
    covariance = data.moments.basis @ torch.diag(data.moments.variance) @ data.moments.basis.T
    mean_error = (x.double().mean(0) - data.moments.mean) / (covariance.diag() / len(x)).sqrt()
    assert float(mean_error.abs().max()) < 5

    centered = x.double() - data.moments.mean
    products = torch.einsum("bi,bj->bij", centered, centered)
    error = (products.mean(0) - covariance).abs()
    assert bool((error < 5 * products.std(0) / len(x) ** 0.5 + bias * covariance.abs()).all())

    modes = responsibilities(data, x).mean(0)
    tolerance = 4.5 * (WEIGHTS * (1 - WEIGHTS) / len(x)).sqrt() + bias * WEIGHTS
    assert bool(((modes - WEIGHTS).abs() < tolerance).all())

    # log-densities see a variance inside the modes that W2 does not see
    energies = data.log_prob(reference)
    shift = data.log_prob(x).mean() - energies.mean()
    noise = 5 * energies.std() * (2 / len(x)) ** 0.5
    assert abs(float(shift)) < float(noise) + bias * 2
    assert float(sliced_w2(x, reference)) < 1.1 * largest


def responsibilities(data, x):
    return torch.softmax(data._components(x, 0.0).log_weighted, dim=1)


@pytest.mark.slow  # a check of scoresde.testing does this for all members
@pytest.mark.parametrize("sde", SDES, ids=repr)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_samples_have_the_distribution_of_the_data(sampler, sde, exact):
    score = mixture(sde)
    times = logsnr_grid(sde, 400 if sampler == EulerMaruyama(eta=0.0) else 200)
    check_distribution(sample(score, (N, 2), sampler, times=times, generator=generator(0)), exact)


@pytest.mark.parametrize("sde", SDES, ids=repr)
@pytest.mark.parametrize("sampler", FEW, ids=repr)
def test_few_steps_of_higher_order_have_it_too(sampler, sde, exact):
    score = mixture(sde)
    times = logsnr_grid(sde, 50)
    check_distribution(sample(score, (N, 2), sampler, times=times, generator=generator(2)), exact)


@pytest.mark.parametrize("sde", SDES, ids=repr)
@pytest.mark.parametrize("sampler", ADAPTIVE, ids=repr)
def test_samples_of_adaptive_steps_have_the_distribution_of_the_data(sampler, sde, exact):
    check_distribution(sample(mixture(sde), (N, 2), sampler, generator=generator(3)), exact)


@pytest.mark.slow
@pytest.mark.parametrize("sde", SDES, ids=repr)
@pytest.mark.parametrize("method", ["euler", "srk"])
def test_torchsde_samples_have_the_distribution_of_the_data(method, sde, exact):
    times = logsnr_grid(sde, 200)
    x = sample(mixture(sde), (N, 2), TorchSDE(method), times=times, generator=generator(0))
    check_distribution(x, exact)


@pytest.mark.slow
@pytest.mark.parametrize("sde", SDES, ids=repr)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_samples_on_the_default_grid(sampler, sde, exact):
    x = sample(mixture(sde), (N, 2), sampler, steps=1000, generator=generator(1))
    check_distribution(x, exact, bias=0.03)


def test_the_checks_can_fail(exact):
    data = mixture(VPSDE())
    x = data.sample(N, generator=generator(5))
    check_distribution(x, exact)
    shifted, few = x + 0.1, x[responsibilities(data, x).argmax(1) != 3]
    narrow = x + 0.1 * torch.randn(x.shape, generator=generator(6))
    for wrong in (shifted, few.repeat(2, 1)[:N], narrow):
        with pytest.raises(AssertionError):
            check_distribution(wrong, exact)


@pytest.mark.parametrize("sde", SDES, ids=repr)
@pytest.mark.parametrize("corrector", [Langevin(0.1), AnnealedLangevin(0.1), MALA(0.5)], ids=repr)
def test_correctors_leave_p_t_invariant(corrector, sde):
    """Many small corrections of exact samples, several relaxation times long, change nothing."""
    score = mixture(sde)
    t = float(sde.time_at(torch.tensor(1.2, dtype=torch.float64)))
    x = corrected(score, corrector, t)
    assert within_modes(score, x, t) == pytest.approx(1.0, abs=0.05)


def test_without_shrinkage_p_t_is_not_invariant():
    """With ε ∝ 1/‖s‖² the stationary distribution is p/ε, with up to twice the variance."""
    score, t = mixture(VESDE()), 0.2
    x = corrected(score, Langevin(0.1, shrinkage=0.0), t)
    assert within_modes(score, x, t) > 1.25


def corrected(score, corrector, t, steps=300):
    x, source = score.sample(4000, t, generator(0)), generator(1)
    time = torch.tensor(t, dtype=torch.float64)

    def draw(x):
        return torch.randn(x.shape, generator=source)

    for _ in range(steps):
        x, _ = corrector.step(score, x, time, time, None, draw)
    return x


def within_modes(score, x, t):
    """Mean squared Mahalanobis distance per dimension to the mode of a sample; 1 for exact ones."""
    alpha, sigma = score.sde.alpha(t), score.sde.sigma(t)
    weights = torch.softmax(score._components(x, t).log_weighted, dim=1)
    centered = x.double().unsqueeze(1) - alpha * score.means
    total = alpha**2 * score.covariances + sigma**2 * torch.eye(2, dtype=torch.float64)
    squares = torch.einsum("bki,kij,bkj->bk", centered, torch.linalg.inv(total), centered)
    return float((weights * squares).sum(1).mean() / 2)
