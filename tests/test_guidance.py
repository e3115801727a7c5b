"""Guidance, products and mixtures of scores against closed forms, quadrature and plain formulas."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn
from torch.distributions import MultivariateNormal

from scoresde import (
    MLP,
    SDE,
    VESDE,
    VPSDE,
    AnnealedLangevin,
    ExactTrace,
    FunctionScore,
    GaussianMixture,
    Hutchinson,
    Moments,
    PredictorCorrector,
    RectifiedFlow,
    ReverseDiffusion,
    ScoreModel,
    SubVPSDE,
    UNet,
    by_half_logsnr,
    edm,
    log_likelihood,
    sample,
    transport,
)
from scoresde._core.counter_rng import CounterRNG
from scoresde.guidance import (
    ClassifierScore,
    GuidanceInterval,
    Mixture,
    NoisyClassifier,
    Product,
    autoguidance,
    classification_loss,
    classifier_free_guidance,
    classifier_guidance,
    tempered,
)
from scoresde.networks import DiT
from scoresde.samplers import MALA
from scoresde.samplers.base import check_gaussian
from scoresde.testing import check_score

SDES = pytest.mark.parametrize(
    "sde", [VPSDE(), SubVPSDE(), VESDE(), RectifiedFlow()], ids=lambda sde: type(sde).__name__
)
SLOW = pytest.mark.slow
VIEWS = ("denoised", "forward", "noise", "velocity")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def blobs(sde, d=2):
    """Three classes of one Gaussian each, and their mixture."""
    factor = randn(3, d, d, seed=1) / math.sqrt(d)
    covariances = factor @ factor.mT + 0.1 * torch.eye(d, dtype=torch.float64)
    means, weights = 2 * randn(3, d, seed=2), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    parts = [
        GaussianMixture(torch.ones(1), means[k : k + 1], covariances[k : k + 1], sde)
        for k in range(3)
    ]
    return parts, GaussianMixture(weights, means, covariances, sde)


def awake(network):
    """Random weights where the library starts from zeros."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def small(event=(2,), classes=4, sde=None):
    network = awake(MLP(event, width=16, depth=1, classes=classes, label_scale=1.0))
    return ScoreModel(network, sde or VPSDE(), prediction=edm(1.0), label=by_half_logsnr).eval()


def read(score, view, x, t):
    return score(x, t) if view == "forward" else getattr(score, view)(x, t)


def one_gaussian(mean, variance, sde, d=1):
    eye = variance * torch.eye(d, dtype=torch.float64)
    return GaussianMixture(torch.ones(1), torch.full((1, d), mean), eye[None], sde)


# --- classifier-free guidance


@pytest.mark.parametrize("network", ["MLP", "UNet", "DiT"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_one_and_zero_are_the_two_scores_to_the_last_bit(network, dtype, device):
    made = {
        "MLP": lambda: MLP((1, 4, 4), 16, 1, classes=3),
        "UNet": lambda: UNet(1, 8, (1,), 1, attention=(0,), classes=3),
        "DiT": lambda: DiT(1, width=16, depth=1, heads=2, classes=3),
    }[network]()
    model = ScoreModel(awake(made), VPSDE()).to(device, dtype).eval()
    labels = torch.tensor([0, 2, 1])
    x = randn(3, 1, 4, 4, dtype=dtype).to(device)
    for t in (0.3, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, device=device)):
        for weight, alone in ((1.0, model.given(classes=labels)), (0.0, model.given(classes=3))):
            score = classifier_free_guidance(model.given(classes=labels), weight)
            for view in VIEWS:
                assert torch.equal(read(score, view, x, t), read(alone, view, x, t))


@SDES
@pytest.mark.parametrize("view", VIEWS)
def test_guidance_is_one_formula_in_every_view(sde, view):
    """D_base + w (D − D_base), with numbers, one weight per sample, and a function of σ/α."""
    model, labels = small(sde=sde).double(), torch.tensor([0, 3, 1])
    x, t = randn(3, 2), torch.tensor([0.2, 0.4, 0.8], dtype=torch.float64)
    good, bad = (read(model.given(classes=c), view, x, t) for c in (labels, 4))
    ratio = torch.exp(-sde.half_logsnr(t))
    for weight, column in (
        (2.5, torch.full((3,), 2.5, dtype=torch.float64)),
        (torch.tensor([0.0, 1.0, 7.0]), torch.tensor([0.0, 1.0, 7.0], dtype=torch.float64)),
        (lambda ratio: 1 + ratio, 1 + ratio),
    ):
        found = read(classifier_free_guidance(model.given(classes=labels), weight), view, x, t)
        torch.testing.assert_close(found, bad + column[:, None] * (good - bad))


class Counting(nn.Module):
    """A network that writes down how many rows it saw."""

    def __init__(self):
        super().__init__()
        self.inside, self.seen, self.classes = awake(MLP((2,), 16, 1, classes=4)), [], 4

    def forward(self, x, label, classes=None):
        self.seen.append(len(x))
        return self.inside(x, label, classes)


def test_one_network_is_asked_once():
    model = ScoreModel(Counting(), VPSDE())
    x, labels = randn(3, 2).float(), torch.tensor([0, 3, 1])
    low, high = 0.5, 2.0
    inside, outside = (float(VPSDE().time_at(torch.tensor(-math.log(r)))) for r in (1.0, 5.0))
    interval = GuidanceInterval(3.0, low, high)
    for weight, t, rows in ((3.0, 0.5, [6]), (1.0, 0.5, [3]), (interval, inside, [6])):
        model.network.seen.clear()
        classifier_free_guidance(model.given(classes=labels), weight).denoised(x, t)
        assert model.network.seen == rows
    model.network.seen.clear()
    score = classifier_free_guidance(model.given(classes=labels), interval)
    assert torch.equal(score.denoised(x, outside), model.given(classes=labels).denoised(x, outside))
    assert model.network.seen == [3, 3]
    model.network.seen.clear()  # a composition of conditions too
    parts = [model.given(classes=0), model.given(classes=labels), model.given(classes=4)]
    Product(parts, [1.0, 1.0, None]).denoised(x, 0.5)
    assert model.network.seen == [9]
    other = ScoreModel(copy.deepcopy(model.network), model.sde)
    model.network.seen.clear()
    autoguidance(model.given(classes=0), other.given(classes=0), 2.0).denoised(x, 0.5)
    assert model.network.seen == [3]  # another network has a batch of its own


def test_conditions_that_no_batch_can_hold_are_evaluated_apart():
    class Shifted(nn.Module):
        def forward(self, x, label, shift=None):
            return x if shift is None else x + shift

    model, x = ScoreModel(Shifted(), VPSDE()), randn(3, 2)
    found = autoguidance(model.given(shift=randn(3, 2)), model, 2.0).noise(x, 0.5)
    torch.testing.assert_close(found, x + 2 * randn(3, 2))
    with pytest.raises(ValueError, match="one row per sample, 3, got 2"):
        autoguidance(model.given(shift=randn(2, 2)), model.given(shift=randn(3, 2)), 2.0).noise(
            x, 0.5
        )


def test_only_the_named_condition_is_led_away_from():
    class Two(nn.Module):
        def forward(self, x, label, a, b):
            return x * a[:, None] + b[:, None]

    model, x = ScoreModel(Two(), VPSDE()).given(a=2.0, b=torch.tensor([1.0, 5.0])), randn(2, 2)
    found = classifier_free_guidance(model, 3.0, null={"b": 0.0}).noise(x, 0.5)
    torch.testing.assert_close(found, 2 * x + 3 * torch.tensor([[1.0], [5.0]], dtype=torch.float64))


def test_rows_have_their_own_labels_and_weights():
    """Chunks, other samples and order make no difference, in samples and likelihoods."""
    model, labels = small().double(), torch.tensor([0, 1, 2, 3, 0])
    weights = torch.tensor([0.0, 1.0, 2.0, 4.0, 3.0])
    score = classifier_free_guidance(model.given(classes=labels), weights)
    state = torch.random.get_rng_state()
    exact = sample(score, (5, 2), steps=8, generator=generator())
    parts = sample(score, (5, 2), steps=8, generator=generator(), batch_size=2)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.testing.assert_close(exact, parts)
    x = randn(5, 2)
    together = log_likelihood(score, x, t_min=0.3).log_prob
    for k in (1, 3):
        alone = classifier_free_guidance(model.given(classes=labels[k]), float(weights[k]))
        torch.testing.assert_close(
            log_likelihood(alone, x[k : k + 1], t_min=0.3).log_prob, together[k : k + 1]
        )
    index = torch.tensor([3, 1])
    torch.testing.assert_close(score.select(index)(x[index], 0.3), score(x, 0.3)[index])


@pytest.mark.parametrize(
    ("event", "dtype"),
    [((), torch.float32), ((), torch.float64), ((2, 4, 4), torch.float32), ((3,), torch.float64)],
    ids=str,
)
def test_any_event_shape_and_dtype(event, dtype):
    model = small(event).to(dtype)
    classifier = NoisyClassifier(Reader(math.prod(event)).to(dtype), VPSDE())
    for score in (
        classifier_free_guidance(model.given(classes=2), 2.0),
        classifier_guidance(model, classifier, 1, 2.0),
        autoguidance(model, tempered(model, 2.0), 1.5),
    ):
        x = sample(score, (1, *event), steps=3, generator=generator())
        assert (x.shape, x.dtype) == ((1, *event), dtype)
        result = log_likelihood(
            score, x, trace=Hutchinson(1), tolerance=0.1, t_min=0.3, generator=generator(1)
        )
        assert result.log_prob.dtype == dtype
        assert bool(result.converged.all())


# --- the distribution of guided samples, by quadrature


GOOD, BASE, WEIGHT = (1.0, 0.25), (0.0, 1.5), 2.5


def guided_in_closed_form(y, ratio):
    """D at y = x/α, of Gaussian data: m + c/(c + ρ²) (y − m), extrapolated."""
    good, base = (m + c / (c + ratio**2) * (y - m) for m, c in (GOOD, BASE))
    return base + WEIGHT * (good - base)


@SLOW
def test_guided_density_is_that_of_the_flow():
    """In one dimension the flow is monotone: p(x) = N(z; 0, 1) dz/dx, by another integrator."""
    sde = VPSDE()
    score = autoguidance(one_gaussian(*GOOD, sde), one_gaussian(*BASE, sde), WEIGHT)
    low, high = (math.exp(-float(sde.half_logsnr(t))) for t in (sde.t_min, sde.T))
    x = torch.linspace(0.2, 2.2, 7, dtype=torch.float64)
    step = 1e-4
    grid = torch.cat([x - step, x + step]).numpy() / float(sde.alpha(sde.t_min))

    def slope(log_ratio, y):
        return y - guided_in_closed_form(y, math.exp(log_ratio))

    ends = solve_ivp(slope, (math.log(low), math.log(high)), grid, rtol=1e-10, atol=1e-12).y[:, -1]
    left, right = (torch.tensor(ends) * float(sde.alpha(sde.T))).chunk(2)
    middle = 0.5 * (left + right)
    expected = -0.5 * (middle**2 + math.log(2 * math.pi)) + ((right - left) / (2 * step)).log()
    result = log_likelihood(score, x[:, None], tolerance=1e-5)
    torch.testing.assert_close(result.log_prob, expected, rtol=0, atol=1e-4)
    line = torch.linspace(-4, 6, 401, dtype=torch.float64)[:, None]
    density = log_likelihood(score, line, tolerance=1e-3).log_prob.exp()
    assert float(density.sum() * 10 / 400) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "weights",
    [pytest.param([0.7], marks=SLOW), pytest.param([1.0, 1.0], marks=SLOW), [2.5, None]],
    ids=str,
)
def test_flow_of_powers_of_gaussians_ends_where_the_docstring_says(weights):
    """Distances shrink by Π ((c_i + ρ_0²)/(c_i + ρ_T²))^{w_i/2}: not as the product's do."""
    sde, variances = VPSDE(), (0.4, 1.5)
    parts = [one_gaussian(m, c, sde) for m, c in zip((1.0, -1.0), variances, strict=True)]
    score = Product(parts[: len(weights)], weights)
    x = randn(2, 1)
    ends = transport(score, x, sde.T, sde.t_min, tolerance=1e-6) / sde.alpha(sde.t_min)
    low, high = (torch.exp(-2 * sde.half_logsnr(t)) for t in (sde.t_min, sde.T))
    powers = [1 - sum(v for v in weights if v) if w is None else w for w in weights]
    pairs = zip(variances, powers, strict=False)
    shrinkage = math.prod(((c + low) / (c + high)) ** (w / 2) for c, w in pairs)
    expected = (x[1] - x[0]) / sde.alpha(sde.T) * shrinkage
    torch.testing.assert_close(ends[1] - ends[0], expected, rtol=1e-3, atol=1e-6)


def test_langevin_keeps_the_tempered_density():
    """x ← (1 − ε/v) x + √(2ε) z ends in the variance v/(1 − ε/(2v)), v = temperature (α²c + σ²).

    Of 20000 samples, variance within 6 standard errors: false-alarm rate 2e-9.
    """
    sde, t, temperature, n = VPSDE(), 0.3, 0.5, 20_000
    data = one_gaussian(0.0, 0.25, sde)
    score = tempered(data, temperature)
    v = temperature * float(sde.alpha(t) ** 2 * 0.25 + sde.sigma(t) ** 2)
    x = randn(n, 1)
    corrector, time = AnnealedLangevin(0.3), torch.tensor(t, dtype=torch.float64)
    source = generator(1)
    for _ in range(60):
        x, _ = corrector.step(
            score, x, time, time, None, lambda x: torch.randn(x.shape, generator=source).to(x)
        )
    size = 2 * (0.3 * float(check_gaussian(sde).sigma(t))) ** 2
    expected = v / (1 - size / (2 * v))
    assert float(x.var()) == pytest.approx(expected, abs=6 * expected * math.sqrt(2 / n))


# --- products


def test_a_product_of_gaussians_is_one_and_not_the_noised_product():
    """Precisions add at every level; noising the product of clean data gives another density."""
    sde, x = VPSDE(), randn(5, 1)
    parts = one_gaussian(*GOOD, sde), one_gaussian(*BASE, sde)
    score = Product(parts)
    for t in (1e-3, 0.3, 0.9):
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        variances = [alpha**2 * c + sigma**2 for _, c in (GOOD, BASE)]
        expected = sum(
            -(x - alpha * m) / v for (m, _), v in zip((GOOD, BASE), variances, strict=True)
        )
        torch.testing.assert_close(score(x, t), expected)
    precision = 1 / GOOD[1] + 1 / BASE[1]
    mean = (GOOD[0] / GOOD[1] + BASE[0] / BASE[1]) / precision
    exact = one_gaussian(mean, 1 / precision, sde)
    torch.testing.assert_close(score(x, 0.0), exact(x, 0.0))
    assert float((score(x, 0.3) - exact(x, 0.3)).abs().max()) > 0.1


@SLOW
@pytest.mark.parametrize("corrector", [AnnealedLangevin(0.3), MALA(0.5)], ids=repr)
def test_correctors_make_samples_of_the_product(corrector):
    """Mean and variance within 6 standard errors (false-alarm rate 2e-9) and the steps' bias."""
    sde, n = VPSDE(), 2000
    parts = one_gaussian(-1.0, 0.3, sde), one_gaussian(1.0, 0.6, sde)
    score = Product(parts)
    precision = 1 / 0.3 + 1 / 0.6
    mean, variance = (-1 / 0.3 + 1 / 0.6) / precision, 1 / precision
    if isinstance(corrector, MALA):
        corrector = MALA(0.5, lambda x, t: sum(p.log_prob(x, t) for p in parts))
    corrected = PredictorCorrector(ReverseDiffusion(), corrector, corrections=8)
    x = sample(score, (n, 1), corrected, steps=30, generator=generator(), denoise=False).double()
    assert float(x.mean()) == pytest.approx(mean, abs=6 * math.sqrt(variance / n) + 0.02)
    assert float(x.var()) == pytest.approx(variance, abs=6 * variance * math.sqrt(2 / n) + 0.02)


def test_a_general_diffusion_has_products_of_plain_weights():
    class Wiener(SDE):
        T, t_min = 1.0, 1e-3

        def drift(self, x, t):
            return torch.zeros_like(x)

        def diffusion(self, t):
            return torch.ones_like(torch.as_tensor(t))

    sde, x = Wiener(), randn(3, 2)
    parts = [FunctionScore(lambda x, t, c=c: -c * x, sde) for c in (2.0, 5.0)]
    torch.testing.assert_close(Product(parts, [3.0, -1.0])(x, 0.5), -x)
    with pytest.raises(TypeError, match="a general SDE has no noise level σ/α, Wiener"):
        Product(parts, [GuidanceInterval(2.0), None])
    with pytest.raises(ValueError, match="the diffusion of the first"):
        Product([parts[0], FunctionScore(lambda x, t: -x, Wiener())])


# --- mixtures


@SDES
def test_a_mixture_of_parts_is_exact(sde):
    parts, exact = blobs(sde)
    mixture = Mixture(parts, exact.weights)
    for t in (1e-4, 0.2, 0.7):
        x = exact.sample(6, t, generator(), torch.float64)
        torch.testing.assert_close(mixture(x, t), exact(x, t))
        torch.testing.assert_close(mixture.denoised(x, t), exact.denoised(x, t))
        torch.testing.assert_close(mixture.log_prob(x, t), exact.log_prob(x, t))
    ours, theirs = (
        m.basis @ torch.diag(m.variance) @ m.basis.mT for m in (mixture.moments, exact.moments)
    )
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(mixture.moments.mean, exact.moments.mean)


def test_the_likelihood_of_a_mixture_is_that_of_the_exact_one():
    parts, exact = blobs(VPSDE())
    x = exact.sample(4, 1e-5, generator(3), torch.float64)
    found = log_likelihood(Mixture(parts, exact.weights), x).log_prob
    torch.testing.assert_close(found, exact.log_prob(x, 1e-5), rtol=0, atol=1e-2)


def test_a_mixture_has_the_properties_of_scores():
    """The Fokker–Planck equation and the rest, by search."""
    parts, exact = blobs(VPSDE())
    check_score(Mixture(parts, exact.weights), event_shape=(2,), examples=2)
    check_score(autoguidance(parts[0], exact, 2.0), event_shape=(2,), examples=2)


def test_a_mixture_of_networks_takes_densities_from_outside():
    parts, exact = blobs(VPSDE())
    blind = [FunctionScore(part, part.sde) for part in parts]
    with pytest.raises(TypeError, match=r"log_probs\[0\].*FunctionScore has no log_prob"):
        Mixture(blind)
    mixture = Mixture(blind, exact.weights, [part.log_prob for part in parts])
    x = randn(4, 2)
    torch.testing.assert_close(mixture(x, 0.4), exact(x, 0.4))


# --- classifier guidance


class Reader(nn.Module):
    """A small classifier of noisy points."""

    def __init__(self, d, classes=3):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(d + 1, 8), nn.SiLU(), nn.Linear(8, classes))

    def forward(self, x, label):
        return self.layers(torch.cat([x.reshape(len(x), -1), 0.1 * label[:, None].to(x)], 1))


def posterior_logits(exact):
    """log w_k N(x; α m_k, α² C_k + σ²), by torch.distributions."""

    def logits(x, t):
        alpha, sigma = (curve(t).to(x) for curve in (exact.sde.alpha, exact.sde.sigma))
        eye = torch.eye(x.shape[1], dtype=x.dtype)
        columns = []
        for w, m, c in zip(exact.weights, exact.means, exact.covariances, strict=True):
            mean = alpha.reshape(-1, 1) * m
            std = alpha.reshape(-1, 1, 1) ** 2 * c + sigma.reshape(-1, 1, 1) ** 2 * eye
            columns.append(MultivariateNormal(mean, std).log_prob(x) + w.log())
        return torch.stack(columns, dim=1)

    return logits


@SDES
def test_the_exact_classifier_makes_the_conditional_score(sde):
    parts, exact = blobs(sde)
    labels = torch.tensor([2, 0, 1, 1])
    own, mixture = posterior_logits(exact), Mixture(parts, exact.weights)
    for t in (torch.tensor(0.01, dtype=torch.float64), torch.tensor([0.1, 0.3, 0.6, 0.9]).double()):
        x = exact.sample(4, 0.3, generator(), torch.float64)
        expected = torch.cat(
            [
                parts[k](x[i : i + 1], t if t.ndim == 0 else t[i : i + 1])
                for i, k in enumerate(labels.tolist())
            ]
        )
        for classifier in (own, mixture.log_responsibilities):
            found = classifier_guidance(exact, classifier, labels)
            torch.testing.assert_close(found(x, t), expected, rtol=1e-6, atol=1e-8)
            assert not found(x, t).requires_grad
    for classifier in (own, mixture.log_responsibilities):
        x = parts[1].sample(3, sde.t_min, generator(1), torch.float64)
        result = log_likelihood(
            classifier_guidance(exact, classifier, 1), x, prior=end_of(parts[1])
        )
        expected = parts[1].log_prob(x, sde.t_min)
        torch.testing.assert_close(result.log_prob, expected, rtol=0, atol=1e-2)


def end_of(part):
    """The distribution of x_T."""
    alpha, sigma = (float(curve(part.sde.T)) for curve in (part.sde.alpha, part.sde.sigma))
    eye = torch.eye(part.means.shape[1], dtype=torch.float64)
    return MultivariateNormal(
        alpha * part.means[0], alpha**2 * part.covariances[0] + sigma**2 * eye
    )


def test_samples_of_a_guided_mixture_are_the_class():
    """Mean within 6 standard errors: false-alarm rate 2e-9 each."""
    parts, exact = blobs(VPSDE())
    n, labels = 1000, torch.arange(3).repeat_interleave(1000)
    score = classifier_guidance(exact, Mixture(parts, exact.weights).log_responsibilities, labels)
    x = sample(score, (3 * n, 2), steps=25, generator=generator(), batch_size=1700).double()
    for k, part in enumerate(parts):
        error = x[labels == k].mean(0) - part.means[0]
        std = (part.covariances[0].diag() / n).sqrt()
        assert float((error / std).abs().max()) < 6


def test_classification_loss_of_the_exact_classifier_is_the_entropy():
    """E[−log p(y|x_t)] by quadrature over x and t; 20000 draws within 6 standard errors."""
    sde = VPSDE()
    parts = [one_gaussian(m, 0.2, sde) for m in (-1.0, 1.0)]
    mixture = Mixture(parts, [0.3, 0.7])

    class Exact(NoisyClassifier):
        def forward(self, x, t):
            return mixture.log_responsibilities(x, t)

    n = 20_000
    labels = (torch.rand(n, generator=generator(1)) < 0.7).long()
    x0 = (2.0 * labels - 1 + math.sqrt(0.2) * randn(n, seed=2))[:, None]
    loss = classification_loss(Exact(nn.Identity(), sde), x0, labels, generator=generator(3))
    line = torch.linspace(-6, 6, 601, dtype=torch.float64)[:, None]
    values, squares = [], []
    for t in torch.linspace(sde.t_min, sde.T, 101, dtype=torch.float64):
        logits = torch.stack([p.log_prob(line, t) for p in parts], 1)
        joint = logits + torch.tensor([0.3, 0.7], dtype=torch.float64).log()
        surprise = torch.logsumexp(joint, 1, keepdim=True) - joint
        values.append(float((joint.exp() * surprise).sum() * 12 / 600))
        squares.append(float((joint.exp() * surprise**2).sum() * 12 / 600))
    expected, second = (float(torch.trapezoid(torch.tensor(v), dx=0.01)) for v in (values, squares))
    error = math.sqrt((second - expected**2) / n)
    assert float(loss) == pytest.approx(expected, abs=6 * error + 1e-4)


def test_attention_can_be_differentiated_twice():
    """The Jacobian of a guided score with attention on both sides is the autograd one."""

    class Attentive(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = awake(DiT(1, width=8, depth=1, heads=2))

        def forward(self, x, label):
            return self.body(x, label).reshape(len(x), -1)[:, :3]

    model = ScoreModel(awake(DiT(1, width=8, depth=1, heads=2, classes=3)), VPSDE()).double()
    classifier = NoisyClassifier(Attentive().double(), VPSDE(), label=by_half_logsnr)
    x = randn(2, 1, 2, 2)
    for score in (
        classifier_free_guidance(model.given(classes=torch.tensor([0, 2])), 2.0),
        classifier_guidance(model, classifier, torch.tensor([0, 2]), 2.0),
    ):
        score.eval()
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            exact = torch.autograd.functional.jacobian(lambda v, s=score: s(v, 0.4), x)
        expected = torch.stack(
            [exact[i, :, :, :, i].reshape(4, 4).diagonal().sum() for i in range(2)]
        )

        def field(flat, score=score):
            return score(flat.reshape(x.shape), 0.4).flatten(1)

        _, found = ExactTrace()(field, x.flatten(1), CounterRNG.draw(2, generator(), x.device))
        torch.testing.assert_close(found.sum(1), expected)
        rng = CounterRNG.draw(2, generator(), x.device)
        _, plain = Hutchinson(1)(field, x.flatten(1), rng)
        point = x.clone().requires_grad_()
        rng = CounterRNG.draw(2, generator(), x.device)
        _, again = Hutchinson(1)(field, point.flatten(1), rng, differentiable=True)
        torch.testing.assert_close(plain, again)
        (gradient,) = torch.autograd.grad(again.sum(), point)
        assert bool(gradient.isfinite().all())


def test_moments_of_a_combination_are_a_guess():
    parts, exact = blobs(VPSDE())
    score = Product([parts[0], exact])
    assert not score.moments.known
    torch.testing.assert_close(score.moments.mean, parts[0].moments.mean)
    given = Moments(torch.ones(2), torch.ones(2), known=True)
    assert Product([parts[0]], moments=given).select(slice(0, 1)).moments is given


# --- bad input


def sde_pair():
    return [FunctionScore(lambda x, t: -x, sde) for sde in (VPSDE(), VPSDE(beta_max=10.0))]


def one():
    return FunctionScore(lambda x, t: -x, VPSDE())


X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: Product([]), ValueError, "scores: expected a sequence of at least one"),
        (lambda: Product([one(), 3]), TypeError, r"scores\[1\]: expected a Score"),
        (lambda: Product(sde_pair()), ValueError, r"scores\[1\]: expected a score over the diff"),
        (lambda: Product([one()], [1.0, 2.0]), ValueError, "one weight for each of 1 scores"),
        (lambda: Product([one()], [math.nan]), ValueError, r"weights\[0\]: expected a finite"),
        (lambda: Product([one()], [torch.tensor([math.inf])]), ValueError, "finite"),
        (lambda: Product([one()], ["2"]), TypeError, r"weights\[0\]"),
        (lambda: Product([one()] * 2, [None, None]), ValueError, "at most one None"),
        (lambda: Product([one()], [torch.ones(2)])(X, 0.5), ValueError, r"one per sample, \(3,\)"),
        (lambda: Product([one()], [lambda r: math.inf])(X, 0.5), ValueError, "weights"),
        (lambda: tempered(one(), 0.0), ValueError, "temperature"),
        (lambda: GuidanceInterval(2.0, 3.0, 1.0), ValueError, "low, high: expected low < high"),
        (lambda: GuidanceInterval(math.nan), ValueError, "weight"),
        (lambda: classifier_free_guidance(one(), 2.0), TypeError, "model: expected a ScoreModel"),
        (lambda: classifier_free_guidance(small(), 2.0), ValueError, "expected a condition bound"),
        (
            lambda: classifier_free_guidance(small().given(classes=1), 2.0, null={"label": 3}),
            ValueError,
            "null: expected some of the bound conditions",
        ),
        (
            lambda: classifier_free_guidance(small(classes=None).given(classes=1), 2.0),
            ValueError,
            "null: expected the null value of classes",
        ),
        (
            lambda: classifier_free_guidance(small().given(classes=5), 2.0)(X, 0.5),
            ValueError,
            r"classes: expected integers in 0 … 3 \(4 means no class\), got",
        ),
        (
            lambda: classifier_free_guidance(small().given(classes=-1), 2.0)(X, 0.5),
            ValueError,
            r"classes: expected integers in 0 … 3",
        ),
        (
            lambda: small().given(color=1),
            TypeError,
            "MLP takes no argument 'color'; it takes classes",
        ),
        (
            lambda: classifier_free_guidance(small().given(classes=torch.tensor([0, 1])), 2.0)(
                X, 0.5
            ),
            ValueError,
            "one row per sample, 3, got 2",
        ),
        (lambda: Mixture([one()], [-1.0]), ValueError, "weights: expected 1 positive"),
        (lambda: Mixture([one()], log_probs=[3]), TypeError, r"log_probs\[0\]"),
        (
            lambda: Mixture([one()], log_probs=[lambda x, t: x])(X, 0.5),
            ValueError,
            "one log-density per sample",
        ),
        (lambda: ClassifierScore(3, VPSDE(), 0), TypeError, "classifier: expected a function"),
        (lambda: ClassifierScore(lambda x, t: x, VPSDE(), 0.5), TypeError, "labels: expected int"),
        (
            lambda: ClassifierScore(lambda x, t: x, VPSDE(), 2)(X, 0.5),
            ValueError,
            "labels: expected integers in 0 … 1, the classifier's classes, got 2",
        ),
        (
            lambda: ClassifierScore(lambda x, t: x, VPSDE(), torch.tensor([0, 1]))(X, 0.5),
            ValueError,
            "labels: expected one per sample, 3, got 2",
        ),
        (
            lambda: ClassifierScore(lambda x, t: x[:, 0], VPSDE(), 0)(X, 0.5),
            ValueError,
            r"classifier: expected logits of shape \(3, classes\)",
        ),
        (lambda: classifier_guidance(3, lambda x, t: x, 0), TypeError, "score: expected a Score"),
        (
            lambda: classifier_guidance(one(), lambda x, t: x, 0, math.nan),
            ValueError,
            r"weights\[1\]: expected a finite",
        ),
        (lambda: NoisyClassifier(3, VPSDE()), TypeError, "network: expected a module"),
        (lambda: NoisyClassifier(Reader(2), VPSDE(), std=0.0), ValueError, "std: "),
        (
            lambda: classification_loss(
                NoisyClassifier(Reader(2), VPSDE()), X, torch.tensor([0, 1, 3])
            ),
            ValueError,
            "labels: expected integers in 0 … 2",
        ),
    ],
)
def test_bad_input(act, error, message):
    with pytest.raises(error, match=message):
        act()
