"""Dequantization: constants derived independently, bounds against known pmfs, exact round trips."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from scoresde.dequantization import (
    Dequantization,
    DequantizedBound,
    TruncatedNormalDequantization,
    UniformDequantization,
    bits_per_dim,
    check_dequantized,
    dequantization_log_prob,
    dequantize,
    dequantized_bound,
    looks_quantized,
    quantize,
)

LN2 = math.log(2)
EVENTS = [(), (3,), (2, 1, 4)]
NOISES = [
    UniformDequantization(),
    TruncatedNormalDequantization(std=0.002),
    TruncatedNormalDequantization(std=0.5),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def levels_of(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(count, shape, generator=seeded(seed))


# --- bits per dimension


@pytest.mark.parametrize(("lower", "upper", "offset"), [(-1, 1, 7), (0, 1, 8), (-3, 5, 5)])
@pytest.mark.parametrize("event", EVENTS)
def test_uniform_model_of_256_levels_costs_eight_bits(lower, upper, offset, event):
    """A uniform density on the cube gives each of 256 levels probability 1/256, that is 8 bits."""
    d = math.prod(event)
    log_density = torch.full((5,), -d * math.log(upper - lower), dtype=torch.float64)
    bits = bits_per_dim(log_density, event, levels=256, scale=upper - lower)
    torch.testing.assert_close(bits, torch.full_like(bits, 8.0))
    published = -log_density / (d * LN2) + offset
    torch.testing.assert_close(bits, published)


@pytest.mark.parametrize(
    ("inverse_scaler", "scale"), [(lambda x: (x + 1) / 2, 2.0), (lambda x: x, 1.0)]
)
def test_published_offset(inverse_scaler, scale):
    """score_sde adds 7 - inverse_scaler(-1) for its two scalers, [-1, 1] and [0, 1]."""
    bits = bits_per_dim(torch.zeros(1), (3, 32, 32), levels=256, scale=scale)
    assert bits.item() == pytest.approx(7 - inverse_scaler(-1.0), abs=1e-6)


@given(
    levels=st.integers(2, 300),
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-10, 10),
    seed=st.integers(0, 2**31),
)
def test_piecewise_constant_density_has_its_pmf(levels, scale, shift, seed):
    """A density constant on each bin, P(k)/width, needs exactly -log2 P(k) bits."""
    pmf = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(levels)))
    k = levels_of(levels, 7, 2, seed=seed)
    x = dequantize(k, levels, scale=scale, shift=shift, generator=seeded(seed))
    edges = torch.linspace(shift, shift + scale, levels + 1, dtype=torch.float64)
    cell = torch.bucketize(x.double(), edges[1:-1], right=True)
    log_density = (pmf[cell] / (edges[1] - edges[0])).log().sum(1)
    bits = bits_per_dim(log_density, (2,), levels=levels, scale=scale)
    near_edge = ((x.double() - edges[k]).abs() < 1e-6 * (1 + x.abs())).any(1)
    torch.testing.assert_close(bits[~near_edge], -pmf[k].log2().mean(1)[~near_edge])


def test_scale_is_the_jacobian_of_the_affine_map():
    """In raw units, log p_raw = log p_x + log |det dx/draw|, with the Jacobian from autograd."""
    scale = torch.rand(3, 1, 2, generator=seeded(), dtype=torch.float64) + 0.5
    event, levels = (3, 4, 2), 10

    def model_coordinates(raw):  # raw counts levels: bins of width one
        return (scale * raw.reshape(event) / levels - 3.0).flatten()

    jacobian = torch.autograd.functional.jacobian(model_coordinates, torch.zeros(24).double())
    log_prob = torch.randn(6, generator=seeded(), dtype=torch.float64)
    bits = bits_per_dim(log_prob, event, levels=levels, scale=scale)
    torch.testing.assert_close(bits, -(log_prob + jacobian.det().log()) / (24 * LN2))


def test_continuous_data_count_in_raw_units():
    """x = 4 raw: the standard normal density of x is N(0, 1/16) in raw units."""
    x = torch.tensor([0.3, -1.2], dtype=torch.float64)
    log_prob = torch.distributions.Normal(0.0, 1.0).log_prob(x)
    expected = -torch.distributions.Normal(0.0, 0.25).log_prob(x / 4) / LN2
    torch.testing.assert_close(bits_per_dim(log_prob, (), scale=4.0), expected)
    torch.testing.assert_close(bits_per_dim(log_prob, ()), -log_prob / LN2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bits_keep_shape_dtype_and_gradient(dtype, device):
    log_prob = torch.zeros(2, 3, dtype=dtype, device=device, requires_grad=True)
    bits = bits_per_dim(log_prob, (5,), levels=256, scale=2.0)
    assert (bits.shape, bits.dtype, bits.device) == ((2, 3), dtype, log_prob.device)
    (gradient,) = torch.autograd.grad(bits.sum(), log_prob)
    torch.testing.assert_close(gradient, torch.full_like(gradient, -1 / (5 * LN2)))


# --- dequantize and quantize


@given(
    event=st.sampled_from(EVENTS),
    levels=st.integers(2, 1 << 16),
    scale=st.floats(1e-2, 1e2),
    center=st.floats(-1, 1),
    noise=st.sampled_from(NOISES),
    kind=st.sampled_from([torch.int32, torch.int64, torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_quantize_inverts_dequantize(event, levels, scale, center, noise, kind, seed):
    k = levels_of(levels, 20, *event, seed=seed).to(kind)
    bins = {"scale": scale, "shift": scale * (center - 0.5)}
    x = dequantize(k, levels, **bins, noise=noise, generator=seeded(seed))
    assert x.shape == k.shape
    assert x.dtype == (kind if kind.is_floating_point else torch.float32)
    assert torch.equal(quantize(x, levels, **bins), k.long())


@dataclass(frozen=True)
class Edge(Dequantization):
    """Every point on one edge of its bin: the hardest case for rounding."""

    u: float

    def sample(self, center, width, generator=None):
        return torch.full_like(center, self.u)

    def log_prob(self, u, center, width):
        raise NotImplementedError


@pytest.mark.parametrize("u", [-0.5, 0.5])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (2.0, -1.0), (2.0, -1.3), (255.0, 0.1)])
@pytest.mark.parametrize(
    ("dtype", "levels"),
    [
        (torch.float64, 65536),
        (torch.float32, 65536),
        (torch.float32, 256),
        (torch.float16, 256),
        (torch.bfloat16, 32),
    ],
)
def test_rounding_never_leaves_the_bin(u, scale, shift, dtype, levels, device):
    k = torch.arange(levels, device=device)
    x = dequantize(k.to(dtype), levels, scale=scale, shift=shift, noise=Edge(u))
    assert x.dtype == dtype
    assert torch.equal(quantize(x, levels, scale=scale, shift=shift), k.long())


def test_published_preprocessing():
    """(U + k)/256, mapped by 2 · − 1: the bins start at k/256."""
    k = torch.arange(256)
    lower = dequantize(k, 256, scale=2.0, shift=-1.0, noise=Edge(-0.5))
    upper = dequantize(k, 256, scale=2.0, shift=-1.0, noise=Edge(0.5))
    torch.testing.assert_close(lower, 2 * (k / 256) - 1)
    torch.testing.assert_close(upper, 2 * ((k + 1) / 256) - 1)


def test_quantize_assigns_outliers_to_the_nearest_level():
    x = torch.tensor([-7.0, -1.0, 1.0, 7.0])
    assert quantize(x, 16, scale=2.0, shift=-1.0).tolist() == [0, 0, 15, 15]


def test_every_dimension_may_have_its_own_bins():
    scale, shift = torch.tensor([1.0, 30.0]), torch.tensor([0.0, -10.0])
    k = levels_of(12, 500, 2)
    x = dequantize(k, 12, scale=scale, shift=shift, generator=seeded())
    columns = [
        dequantize(k[:, i], 12, scale=scale[i].item(), shift=shift[i].item(), noise=Edge(0.0))
        for i in range(2)
    ]
    assert bool(((x - torch.stack(columns, 1)).abs() <= scale / 24 * 1.00001).all())
    assert torch.equal(quantize(x, 12, scale=scale, shift=shift), k)


@pytest.mark.parametrize("noise", NOISES)
def test_draws_come_from_the_generator_alone(noise, device):
    k = levels_of(256, 4, 3).to(device)
    state = torch.get_rng_state()
    first, again = (dequantize(k, 256, noise=noise, generator=seeded(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.device == k.device
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, dequantize(k, 256, noise=noise, generator=seeded(6)))


# --- distributions of the noise


def truncnorm(std: float, width: float):
    """SciPy's distribution of u: normal of standard deviation std/width on [-1/2, 1/2]."""
    s = std / width
    return stats.truncnorm(-0.5 / s, 0.5 / s, scale=s)


@pytest.mark.parametrize("width", [1 / 256, 0.25])
@pytest.mark.parametrize(
    ("noise", "reference"),
    [
        (UniformDequantization(), lambda width: stats.uniform(-0.5, 1)),
        (TruncatedNormalDequantization(0.0013), lambda width: truncnorm(0.0013, width)),
        (TruncatedNormalDequantization(3.0), lambda width: truncnorm(3.0, width)),
    ],
)
def test_noise_has_scipys_distribution(noise, reference, width):
    """Kolmogorov-Smirnov of 20,000 draws, false-alarm rate 1e-6; density to 1e-9."""
    oracle = reference(width)
    center = torch.zeros(20_000, dtype=torch.float64)
    widths = torch.tensor(width, dtype=torch.float64)
    u = noise.sample(center, widths, seeded(1))
    assert stats.kstest(u.numpy(), oracle.cdf).pvalue > 1e-6
    log_prob = noise.log_prob(u, center, widths)
    torch.testing.assert_close(
        log_prob, torch.from_numpy(oracle.logpdf(u.numpy())), rtol=1e-8, atol=1e-8
    )
    outside = torch.tensor([-0.51, 0.7], dtype=torch.float64)
    assert noise.log_prob(outside, outside, widths).tolist() == [-math.inf, -math.inf]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (2.0, -1.0)])
def test_density_of_dequantized_points_integrates_to_one_over_a_bin(noise, scale, shift):
    levels, k = 16, 5
    width = scale / levels

    def density(x: float) -> float:
        x = torch.tensor([x], dtype=torch.float64)
        return (
            dequantization_log_prob(x, levels, scale=scale, shift=shift, noise=noise).exp().item()
        )

    lower = shift + k * width
    middle = lower + width / 2
    mass = sum(
        integrate.quad(density, *ends, epsabs=1e-10, points=[middle])[0]
        for ends in [(lower, middle), (middle, lower + width * (1 - 1e-12))]
    )
    assert mass == pytest.approx(1, abs=1e-8)
    assert density(shift - 0.01) == 0
    assert density(shift + scale + 0.01) == 0


def test_density_sums_over_the_event():
    x = torch.rand(4, 2, 3, generator=seeded(), dtype=torch.float64)
    noise = TruncatedNormalDequantization(0.01)
    joint = dequantization_log_prob(x, 20, noise=noise)
    single = dequantization_log_prob(x.flatten(), 20, noise=noise)
    torch.testing.assert_close(joint, single.reshape(4, -1).sum(1))


def test_entropy_of_truncated_normal():
    """Mean of -log q(x|k) against the closed form, within 5 standard errors."""
    std, levels, scale = 0.0013, 256, 2.0
    noise = TruncatedNormalDequantization(std)
    k = levels_of(levels, 100_000)
    bins = {"scale": scale, "shift": -1.0}
    x = dequantize(k.double(), levels, **bins, noise=noise, generator=seeded(2))
    values = -dequantization_log_prob(x, levels, **bins, noise=noise)
    tau = scale / levels / 2 / std
    mass = math.erf(tau / math.sqrt(2))
    entropy = 0.5 * (1 + math.log(2 * math.pi * std**2)) + math.log(mass)
    entropy -= tau * math.exp(-(tau**2) / 2) / (math.sqrt(2 * math.pi) * mass)
    assert abs(values.mean() - entropy) < 5 * values.std() / len(values) ** 0.5


# --- bounds


@dataclass(frozen=True)
class NormalModel:
    """Independent normals: density, probability of levels, distribution within a bin, all exact."""

    std: float
    levels: int = 8
    scale: float = 4.0
    shift: float = -2.0

    @property
    def bins(self):
        return {"levels": self.levels, "scale": self.scale, "shift": self.shift}

    def log_density(self, x):
        return torch.distributions.Normal(0.0, self.std).log_prob(x).flatten(1).sum(1)

    def edges(self, k):
        width = self.scale / self.levels
        return self.shift + k * width, self.shift + (k + 1) * width

    def log_pmf(self, k):
        normal = stats.norm(scale=self.std)
        lower, upper = self.edges(k.double().numpy())
        return torch.from_numpy(np.log(normal.cdf(upper) - normal.cdf(lower))).flatten(1).sum(1)


@dataclass(frozen=True)
class ExactNoise(Dequantization):
    """A standard normal restricted to the bin: depends on the data through the center."""

    def sample(self, center, width, generator=None):
        normal = torch.distributions.Normal(0.0, 1.0)
        lower, upper = normal.cdf(center - width / 2), normal.cdf(center + width / 2)
        uniform = torch.rand(center.shape, generator=generator, dtype=center.dtype)
        x = normal.icdf(lower + (upper - lower) * uniform)
        return ((x - center) / width).clamp(-0.5, 0.5)

    def log_prob(self, u, center, width):
        normal = torch.distributions.Normal(0.0, 1.0)
        mass = normal.cdf(center + width / 2) - normal.cdf(center - width / 2)
        return (normal.log_prob(center + width * u) + width.log() - mass.log()).flatten(1).sum(1)


def test_posterior_noise_gives_the_probability_itself():
    """With q exact within the bin every weight is P(k): no gap, no error, for any K."""
    model = NormalModel(std=1.0)
    k = levels_of(8, 6, 2, 3).double()
    for samples in (1, 5):
        bound = dequantized_bound(
            model.log_density,
            k,
            **model.bins,
            noise=ExactNoise(),
            samples=samples,
            generator=seeded(),
        )
        torch.testing.assert_close(bound.log_prob, model.log_pmf(k), rtol=1e-7, atol=1e-7)
    assert bound.standard_error.max() < 1e-7


@pytest.mark.parametrize("noise", [UniformDequantization(), TruncatedNormalDequantization(0.3)])
@pytest.mark.parametrize("level", [0, 2, 3])
def test_variational_bound_is_its_integral(noise, level):
    """The mean at K = 1 is ∫ q log(p width/q) du, by quadrature; within 5 standard errors."""
    model = NormalModel(std=0.5)
    width = model.scale / model.levels
    oracle = stats.uniform(-0.5, 1) if noise == UniformDequantization() else truncnorm(0.3, width)
    density = stats.norm(scale=0.5)
    center = model.shift + width * (level + 0.5)

    def integrand(u):
        ratio = density.logpdf(center + width * u) + math.log(width) - oracle.logpdf(u)
        return oracle.pdf(u) * ratio

    expected = integrate.quad(integrand, -0.5, 0.5)[0]
    k = torch.full((20_000, 1), level)
    bound = dequantized_bound(model.log_density, k, **model.bins, noise=noise, generator=seeded(3))
    error = bound.log_prob.std() / len(k) ** 0.5
    assert abs(bound.log_prob.mean() - expected) < 5 * error + 1e-6
    assert bound.log_prob.mean() < model.log_pmf(k)[0] + 5 * error


@pytest.mark.parametrize("noise", [UniformDequantization(), TruncatedNormalDequantization(0.3)])
def test_gap_to_a_known_pmf_is_positive_and_falls_like_one_over_k(noise):
    """Bound ≤ truth and gap ≈ Var(p/q)/(2 K P²), each within 5 standard errors (8,000 rows)."""
    model = NormalModel(std=0.5)
    k = torch.tensor([[1, 5, 6]]).expand(8_000, 3)
    truth = model.log_pmf(k[:1])
    gaps, errors = [], []
    for samples in (1, 4, 16, 64):
        bound = dequantized_bound(
            model.log_density,
            k,
            **model.bins,
            noise=noise,
            samples=samples,
            generator=seeded(samples),
        )
        assert bound.samples == samples
        gaps.append((truth - bound.log_prob.mean()).item())
        errors.append((bound.log_prob.std() / len(k) ** 0.5).item())
    assert all(gap > -5 * error for gap, error in zip(gaps, errors, strict=True))
    assert gaps[0] > 2 * gaps[1] > 0
    assert gaps[1] > 2 * gaps[2] > 0
    assert gaps[3] < gaps[0] / 20 + 5 * errors[3]
    ratio = gaps[2] / gaps[3]
    std = ratio * math.hypot(errors[2] / gaps[2], errors[3] / gaps[3])
    assert abs(ratio - 4) < 0.4 + 5 * std


def test_truncated_normal_fits_a_diffusion_stopped_early():
    """Data with normal noise of width/6, so 3 standard deviations to the edge: density known.

    Noise matched to it has the distribution of the model within the bin, up to the tails of the
    adjacent bins: its bound is almost tight. Uniform noise loses 36/24 + log(√(2π)/6) = 0.63 nats a
    dimension, slightly less with those tails.
    """
    levels, scale = 4, 2.0
    s = scale / levels / 6
    pmf = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64)
    centers = -1 + scale / levels * (torch.arange(levels).double() + 0.5)

    def log_density(x):
        components = torch.distributions.Normal(centers, s).log_prob(x.unsqueeze(-1))
        return torch.logsumexp(components + pmf.log(), -1).sum(1)

    edges = torch.linspace(-1, 1, levels + 1, dtype=torch.float64).numpy()
    mass = np.diff(stats.norm(centers.numpy()[:, None], s).cdf(edges), axis=1)
    k = levels_of(levels, 4_000, 3).double()
    truth = torch.from_numpy(np.log(pmf.numpy() @ mass))[k.long()].sum(1)
    bins = {"scale": scale, "shift": -1.0, "generator": seeded(4)}
    matched = TruncatedNormalDequantization(s)
    tight = (truth - dequantized_bound(log_density, k, levels, **bins, noise=matched).log_prob) / 3
    loose = (truth - dequantized_bound(log_density, k, levels, **bins).log_prob) / 3
    assert -5 * tight.std() / len(k) ** 0.5 < tight.mean() < 1e-3
    assert 0.5 < loose.mean() < 0.63


def test_standard_error_is_the_standard_deviation_of_repeats():
    """Reported against the standard deviation over 2,000 repeats at K = 32: within 10 %."""
    model = NormalModel(std=0.5)
    k = torch.tensor([[3, 6]]).expand(2_000, 2)
    bound = dequantized_bound(model.log_density, k, **model.bins, samples=32, generator=seeded(8))
    reported = bound.standard_error.square().mean().sqrt()
    assert reported.item() == pytest.approx(bound.log_prob.std().item(), rel=0.1)


@pytest.mark.parametrize("event", EVENTS)
def test_bound_names_its_kind_and_counts_in_bits(event):
    log_weights = torch.randn(3, 5, generator=seeded(), dtype=torch.float64)
    many = DequantizedBound.from_log_weights(log_weights, event)
    one = DequantizedBound.from_log_weights(log_weights[:1], event)
    assert (one.kind, many.kind) == ("variational (K=1)", "importance-weighted (K=3)")
    assert bool(one.standard_error.isnan().all())
    assert torch.equal(one.log_prob, log_weights[0])
    torch.testing.assert_close(many.log_prob, log_weights.exp().mean(0).log())
    expected = -many.log_prob / (math.prod(event) * LN2)
    torch.testing.assert_close(many.bits_per_dim(), expected)
    assert f"{expected.mean():.4f} ± {expected.std() / 5**0.5:.4f}" in str(many)
    assert "importance-weighted (K=3)" in str(many)
    assert "±" not in str(DequantizedBound.from_log_weights(log_weights[:, :1], event))


@pytest.mark.parametrize("samples", [1, 4])
def test_zero_density_has_infinite_cost_of_unknown_error(samples):
    def log_density(x):
        return torch.where(x.flatten(1).amax(1) > 0.5, -math.inf, 0.0)

    k = torch.tensor([[0, 1], [3, 3]])
    bound = dequantized_bound(log_density, k, 4, samples=samples, generator=seeded())
    assert bound.log_prob[1] == -math.inf
    assert bound.bits_per_dim()[1] == math.inf
    assert bound.standard_error[1].isnan()
    assert bound.log_prob[0].item() == pytest.approx(-2 * math.log(4))


def test_bound_from_tensors_equals_the_one_from_a_callable():
    model = NormalModel(std=0.7)
    k = levels_of(8, 5, 2).double()
    noise = TruncatedNormalDequantization(0.2)
    generator = seeded(1)
    rows = []
    for _ in range(3):
        x = dequantize(k, **model.bins, noise=noise, generator=generator)
        rows.append(model.log_density(x) - dequantization_log_prob(x, **model.bins, noise=noise))
    stacked = DequantizedBound.from_log_weights(torch.stack(rows), (2,))
    called = dequantized_bound(
        model.log_density, k, **model.bins, noise=noise, samples=3, generator=seeded(1)
    )
    torch.testing.assert_close(stacked.log_prob, called.log_prob)
    torch.testing.assert_close(stacked.standard_error, called.standard_error)


def test_uniform_bound_is_bits_per_dim_of_the_dequantized_point():
    model = NormalModel(std=0.7, levels=256, scale=2.0, shift=-1.0)
    k = levels_of(256, 9, 3, 2)
    x = dequantize(k, **model.bins, generator=seeded(2))
    direct = bits_per_dim(model.log_density(x), (3, 2), levels=256, scale=2.0)
    bound = dequantized_bound(model.log_density, k, **model.bins, generator=seeded(2))
    torch.testing.assert_close(bound.bits_per_dim().float(), direct)
    assert torch.equal(bound.bits_per_dim(levels=256, scale=2.0), bound.bits_per_dim())
    with pytest.raises(ValueError, match=r"levels: expected 256, .* got 17"):
        bound.bits_per_dim(levels=17)


# --- detection


IMAGES = levels_of(256, 16, 3, 8, 8)
STANDARDIZED = (IMAGES / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
    [0.229, 0.224, 0.225]
).view(3, 1, 1)
MIXED = torch.cat([torch.randn(64, 2, generator=seeded()), levels_of(5, 64, 1)], 1)

QUANTIZED = {
    "bytes": IMAGES.to(torch.uint8),
    "byte values": IMAGES.float(),
    "to [0, 1]": IMAGES / 255,
    "to [0, 1), one image": (IMAGES / 256)[:1],
    "to [-1, 1]": IMAGES / 127.5 - 1,
    "float64": IMAGES.double() / 255,
    "per-channel standardized": STANDARDIZED,
    "centers of bins": 2 * (IMAGES + 0.5) / 256 - 1,
    "17-level digits": levels_of(17, 10, 64) / 16,
    "17-level digits in half": (levels_of(17, 10, 64) / 16).half(),
    "binary, one image": levels_of(2, 1, 784).float(),
    "scalar counts": levels_of(30, 200).float(),
    "16-bit sound": levels_of(65536, 4, 5000) / 32768 - 1,
    "10 bits": levels_of(1024, 4, 3000) / 1023,
    "few of 256 levels": IMAGES[:5, 0, 0, :4] / 255,
    "gaps of two and three levels": (torch.arange(40) * 2.5).ceil() / 255,
    "one column of three": MIXED,
    "a large offset": 50 + IMAGES / 255,
}
CONTINUOUS = {
    "normal": torch.randn(500, 2, generator=seeded()),
    "uniform": torch.rand(64, 3, 16, 16, generator=seeded()),
    "uniform float64": torch.rand(64, 100, generator=seeded(), dtype=torch.float64),
    "half": torch.randn(64, 100, generator=seeded()).half(),
    "bfloat16": torch.rand(64, 100, generator=seeded()).bfloat16(),
    "dequantized": dequantize(IMAGES, 256, generator=seeded()),
    "dequantized truncated normal": dequantize(
        IMAGES, 256, noise=TruncatedNormalDequantization(5e-4), generator=seeded()
    ),
    "zeros": torch.zeros(5, 784),
    "one point many times": torch.tensor([[0.3, -1.7]]).repeat(100, 1),
    "a handful of points on a grid": torch.tensor([[0.0, 1.0], [2.0, 3.0], [1.0, 1.0]]),
    "one value": torch.tensor([0.5]),
    "scalars": torch.randn(1000, generator=seeded()),
    "many atoms at zero": torch.randn(64, 50, generator=seeded()).relu(),
}


@pytest.mark.parametrize("case", QUANTIZED)
def test_quantized_data_are_recognized(case, device):
    x = QUANTIZED[case].to(device)
    assert looks_quantized(x)
    with pytest.raises(ValueError, match="dequantize") as caught:
        check_dequantized("data", x)
    assert str(caught.value).startswith("data: expected continuous data, got a ")


@pytest.mark.parametrize("case", CONTINUOUS)
def test_continuous_data_pass(case, device):
    x = CONTINUOUS[case].to(device)
    assert not looks_quantized(x)
    assert check_dequantized("data", x) is x


@given(
    levels=st.integers(2, 256),
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-1, 1),
    seed=st.integers(0, 2**31),
)
def test_detection_ignores_the_affine_map(levels, scale, shift, seed):
    k = levels_of(levels, 8, 40, seed=seed)
    assert looks_quantized(scale * (k / (levels - 1) + shift))
    x = dequantize(k, levels, scale=scale, shift=scale * shift, generator=seeded(seed))
    assert not looks_quantized(x)


# --- bad input


K = levels_of(4, 3, 2)
X = torch.rand(3, 2)


def flat(x):
    return torch.zeros(len(x))


BAD = [
    (lambda: bits_per_dim([1.0], (2,)), TypeError, ["log_prob", "torch.Tensor"]),
    (lambda: bits_per_dim(K, (2,)), TypeError, ["log_prob", "log_prob.float()"]),
    (lambda: bits_per_dim(X, 2), TypeError, ["event_shape", "sequence"]),
    (lambda: bits_per_dim(X, (2, 0)), ValueError, ["event_shape[1]", "at least 1"]),
    (lambda: bits_per_dim(X, (2,), levels=256), ValueError, ["scale", "2.0", "1.0", "levels=256"]),
    (lambda: bits_per_dim(X, (2,), levels=1, scale=1.0), ValueError, ["levels", "at least 2"]),
    (lambda: bits_per_dim(X, (2,), levels=2.5, scale=1.0), TypeError, ["levels", "integer"]),
    (lambda: bits_per_dim(X, (2,), scale=-1.0), ValueError, ["scale", "positive"]),
    (lambda: bits_per_dim(X, (2,), scale=torch.zeros(2)), ValueError, ["scale", "positive"]),
    (
        lambda: bits_per_dim(X, (2,), scale=torch.ones(3)),
        ValueError,
        ["scale", "broadcasts", "(2,)"],
    ),
    (lambda: dequantize([1, 2], 4), TypeError, ["x", "torch.Tensor"]),
    (lambda: dequantize(X, 4), ValueError, ["x", "integers from 0 to 3", "round()"]),
    (lambda: dequantize(K * 2, 4), ValueError, ["x", "from 0 to 6", "levels=4"]),
    (lambda: dequantize(K - 1, 4), ValueError, ["from -1 to 2"]),
    (lambda: dequantize(K * 1j, 4), TypeError, ["x", "complex"]),
    (lambda: dequantize(K[:0], 4), ValueError, ["x", "at least one sample"]),
    (lambda: dequantize(torch.tensor(1), 4), ValueError, ["x", "batch"]),
    (lambda: dequantize(K + torch.nan, 4), ValueError, ["x", "finite"]),
    (lambda: dequantize(K, 0), ValueError, ["levels", "at least 2"]),
    (lambda: dequantize(K, 4, scale=0.0), ValueError, ["scale", "positive"]),
    (lambda: dequantize(K, 4, shift=math.nan), ValueError, ["shift", "finite"]),
    (lambda: dequantize(K, 4, shift="0"), TypeError, ["shift", "number"]),
    (lambda: dequantize(K, 4, noise=UniformDequantization), TypeError, ["noise", "instance"]),
    (lambda: dequantize(K, 4, noise="uniform"), TypeError, ["noise", "UniformDequantization()"]),
    (lambda: dequantize(K, 4, noise=Edge(0.6)), ValueError, ["noise", "[-1/2, 1/2]", "0.6"]),
    (
        lambda: dequantize(K.bfloat16(), 4, shift=1000.0),
        ValueError,
        ["resolves", "bfloat16", "x.float()"],
    ),
    (lambda: quantize(K, 4), TypeError, ["x", "x.float()"]),
    (lambda: quantize(X * torch.nan, 4), ValueError, ["x", "finite"]),
    (lambda: dequantization_log_prob(K, 4), TypeError, ["x", "x.float()"]),
    (lambda: dequantized_bound(flat, K, 4, samples=0), ValueError, ["samples", "at least 1"]),
    (lambda: dequantized_bound(flat, X, 4), ValueError, ["x", "integers"]),
    (lambda: dequantized_bound(lambda x: x, K, 4), ValueError, ["log_density", "(3,)", "sum over"]),
    (lambda: dequantized_bound(lambda x: 0.0, K, 4), TypeError, ["log_density(x)", "torch.Tensor"]),
    (
        lambda: DequantizedBound.from_log_weights(X[0], (2,)),
        ValueError,
        ["log_weights", "(K, batch)"],
    ),
    (lambda: DequantizedBound.from_log_weights(K, (2,)), TypeError, ["log_weights", "float"]),
    (lambda: TruncatedNormalDequantization(0.0), ValueError, ["std", "positive", "half_logsnr"]),
    (lambda: TruncatedNormalDequantization("small"), TypeError, ["std", "number"]),
    (lambda: looks_quantized([1.0]), TypeError, ["x", "torch.Tensor"]),
    (
        lambda: check_dequantized("data", IMAGES / 255),
        ValueError,
        ["data", "lattice", "dequantize"],
    ),
]


@pytest.mark.parametrize(("call", "exception", "fragments"), BAD)
def test_bad_argument(call, exception, fragments):
    with pytest.raises(exception) as caught:
        call()
    for fragment in ["expected", "got", *fragments]:
        assert fragment in str(caught.value)
