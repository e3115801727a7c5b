"""Divergence estimators are unbiased, with the variance of theory, and keep batch and graph intact.

Statistical tests run on fixed seeds and compare z-scores with 5 (false alarm 6e-7 each). The oracle
of a divergence is the trace of the autograd Jacobian, of an estimator a literal transcription.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Independent, Normal
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from scoresde import VESDE, VPSDE, GaussianMixture, Moments, log_likelihood, traces
from scoresde._core.counter_rng import CounterRNG
from scoresde.flow.probability_flow import GeneralProbabilityFlow
from scoresde.likelihood import FlowIntegral, LikelihoodSettings
from scoresde.likelihood.log_likelihood import _default_trace
from scoresde.solvers import TorchDiffEq
from scoresde.traces import (
    MEMBERS,
    ExactTrace,
    Gaussian,
    Hutchinson,
    HutchPlusPlus,
    Orthogonal,
    Rademacher,
    Sphere,
    XTrace,
)
from scoresde.traces.base import Tape

LIMIT = 5.0
EACH_MEMBER = pytest.mark.parametrize("trace", MEMBERS, ids=repr)
LINEAR = [trace for trace in MEMBERS if not isinstance(trace, HutchPlusPlus | XTrace)]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
D = 6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rng(n, seed=0):
    return CounterRNG.draw(n, generator(seed))


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def linear(J):
    """The field x ↦ Jx."""
    return lambda x: x @ J.mT


def curved(seed=0, d=D, dtype=torch.float64):
    """A field whose Jacobian depends on x and is not symmetric."""
    A, B = randn(d, d, seed=seed, dtype=dtype), randn(d, d, seed=seed + 100, dtype=dtype)
    return lambda x: torch.tanh(x @ A) @ B + 0.3 * x.square()


def jacobian(field, x):
    """∂h/∂x by autograd, row by row, ``(m, d, d)``."""
    one = [torch.autograd.functional.jacobian(lambda y: field(y[None])[0], row) for row in x]
    return torch.stack(one)


def divergence(field, x):
    return jacobian(field, x).diagonal(dim1=1, dim2=2).sum(1)


def draws(trace, J, n, seed=0):
    """``n`` independent values of the mean estimate for one matrix."""
    x = J.new_zeros(n, len(J))
    return trace(linear(J), x, rng(n, seed))[1].mean(1)


# --- beside the properties that test_testing_families.py checks


@EACH_MEMBER
def test_repr_reconstructs_the_member(trace):
    assert eval(repr(trace), vars(traces)) == trace


@pytest.mark.parametrize(
    "trace",
    [*MEMBERS[:2], *MEMBERS[5:], Hutchinson(2, Sphere()), Hutchinson(1, Orthogonal())],
    ids=repr,
)
def test_one_dimension_is_exact(trace):
    x = randn(5, 1)
    value, estimates = trace(lambda x: x**3, x, rng(5))
    torch.testing.assert_close(value, x**3)
    torch.testing.assert_close(estimates, 3 * x**2 * torch.ones_like(estimates))


def test_gaussian_probes_in_one_dimension_are_unbiased():
    """v² is random: the only distribution that is noisy even in one dimension."""
    values = draws(Hutchinson(2, Gaussian()), torch.tensor([[2.0]], dtype=torch.float64), 4000)
    assert abs(values.mean() - 2) < LIMIT * values.std() / 4000**0.5
    assert abs(values.var() - 4.0) < 0.5  # 2 J²/k with k = 2


@EACH_MEMBER
@pytest.mark.parametrize("differentiable", [False, True])
def test_fields_that_do_not_depend_on_x_have_no_divergence(trace, differentiable):
    weight = randn(D).requires_grad_()
    x = randn(3, D).requires_grad_(differentiable)
    for field in (
        lambda x: torch.ones_like(x),  # no graph at all
        lambda x: weight.expand(len(x), D),  # a graph, but not to x
        lambda x: 0 * x,
    ):
        value, estimates = trace(field, x, rng(3), differentiable=differentiable)
        assert torch.equal(value, field(x))
        assert not estimates.any()


@EACH_MEMBER
def test_works_under_no_grad(trace):
    field, x, s = curved(), randn(3, D), rng(3)
    expected = trace(field, x, s)[1]
    with torch.no_grad():
        value, estimates = trace(field, x, s)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(estimates, expected)
    assert not value.requires_grad


@EACH_MEMBER
def test_parameters_receive_no_gradient_by_default(trace):
    layer = nn.Linear(D, D).double()
    trace(layer, randn(3, D), rng(3))
    assert all(p.grad is None for p in layer.parameters())


@EACH_MEMBER
@pytest.mark.parametrize("d", [2, 5, 40])
def test_products_are_counted(trace, d, monkeypatch):
    counted = []
    product = Tape.product

    def count(self, v, **options):
        counted.append(v.shape[0])
        return product(self, v, **options)

    monkeypatch.setattr(Tape, "product", count)
    trace(lambda x: x**2, randn(2, d), rng(2))
    assert sum(counted) == trace.products(d)


# --- differentiable mode


def closed_form_gradient(x):
    """∇_x of the divergence of h_i = x_i³ + x_i Σ_j x_j²: 6x + (4 + 2d) x."""
    return (10 + 2 * x.shape[1]) * x


def cubic(x):
    return x**3 + x * x.square().sum(1, keepdim=True)


EXACT_IN_D = [ExactTrace(), ExactTrace(chunk=2), HutchPlusPlus(3 * D), XTrace(2 * D)]


@pytest.mark.parametrize("trace", [*EXACT_IN_D, Hutchinson(D, Orthogonal())], ids=repr)
def test_gradient_of_the_divergence_in_closed_form(trace):
    x = randn(3, D).requires_grad_()
    _, estimates = trace(cubic, x, rng(3), differentiable=True)
    (gradient,) = torch.autograd.grad(estimates.sum(), x)
    torch.testing.assert_close(gradient, closed_form_gradient(x))


@pytest.mark.parametrize("trace", [ExactTrace(), *LINEAR[1:]], ids=repr)
def test_gradcheck(trace):
    field, s = curved(d=3), rng(2)

    def results(x):
        return trace(field, x, s, differentiable=True)

    assert torch.autograd.gradcheck(results, randn(2, 3).requires_grad_())


@pytest.mark.parametrize("trace", [HutchPlusPlus(3), HutchPlusPlus(6), XTrace(4)], ids=repr)
def test_gradients_with_a_constant_basis_are_unbiased(trace):
    n = 4000
    x = randn(1, D).expand(n, D).clone().requires_grad_()
    _, estimates = trace(cubic, x, rng(n), differentiable=True)
    (gradient,) = torch.autograd.grad(estimates.sum(), x)
    error = (gradient.mean(0) - closed_form_gradient(x[:1])[0]).abs()
    assert bool((error <= LIMIT * gradient.std(0) / n**0.5).all())
    assert gradient.std() > 1e-3


@EACH_MEMBER
def test_the_gradient_for_parameters_is_unbiased(trace):
    """d/dW of tr ∂(xWᵀ)/∂x = tr W is the identity, of which the estimate's gradient is unbiased."""
    n, W = 4000, randn(D, D).requires_grad_()
    _, estimates = trace(linear(W), torch.zeros(n, D).double(), rng(n), differentiable=True)
    (gradient,) = torch.autograd.grad(estimates.mean(), W)
    noise = 0.0 if trace.exact else 8.0 / n**0.5  # vvᵀ has entries of variance at most 2
    assert (gradient - torch.eye(D).double()).abs().max() <= noise + 1e-10


def test_the_gradient_is_finite_for_a_jacobian_of_rank_zero():
    for trace in MEMBERS:
        x = torch.zeros(2, D, dtype=torch.float64, requires_grad=True)
        _, estimates = trace(lambda x: x**3, x, rng(2), differentiable=True)
        (gradient,) = torch.autograd.grad(estimates.sum(), x)
        assert torch.equal(gradient, torch.zeros_like(x))


# --- the variance of the noise


def check_variance(values, variance):
    """The sample variance is within 5 of its own standard errors of ``variance``."""
    n = len(values)
    squares = (values - values.mean()).square()
    assert abs(squares.mean() - variance) <= LIMIT * squares.std() / n**0.5


@pytest.mark.parametrize("symmetric", [True, False])
def test_variance_of_each_distribution(symmetric):
    J = randn(D, D, seed=3)
    J = J + J.T if symmetric else J
    S, n = (J + J.T) / 2, 20_000
    off = S - S.diagonal().diag()
    check_variance(draws(Hutchinson(1, Rademacher()), J, n), 2 * off.square().sum())
    check_variance(draws(Hutchinson(1, Gaussian()), J, n), 2 * S.square().sum())
    shear = S - S.trace() / D * torch.eye(D)
    sphere = 2 * D / (D + 2) * shear.square().sum()
    check_variance(draws(Hutchinson(1, Sphere()), J, n), sphere)
    check_variance(draws(Hutchinson(1, Orthogonal()), J, n), sphere)
    # k columns of a Haar matrix: independent ones, with the finite-population correction
    check_variance(draws(Hutchinson(3, Orthogonal()), J, n), sphere / 3 * (D - 3) / (D - 1))


def test_no_noise_where_the_distribution_has_none():
    diagonal, identity = randn(D).diag(), 1.7 * torch.eye(D, dtype=torch.float64)
    for trace, J in (
        (Hutchinson(), diagonal),
        (Hutchinson(1, Sphere()), identity),
        (Hutchinson(1, Orthogonal()), identity),
    ):
        torch.testing.assert_close(draws(trace, J, 50), J.trace().expand(50))


DISTRIBUTIONS = {
    "rademacher": Rademacher(),
    "gaussian": Gaussian(),
    "sphere": Sphere(),
    "orthogonal": Orthogonal(),
}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=repr)
def test_probes_have_unit_second_moments(distribution):
    n, k = 4000, 3
    v = distribution.draw(rng(n), k, D)
    assert (v.shape, v.dtype) == ((n, k, D), torch.float64)
    moments = torch.einsum("nki,nkj->nkij", v, v)
    score = (moments.mean(0) - torch.eye(D)) / moments.std(0).clamp(min=1e-12) * n**0.5
    assert score.abs().max() < LIMIT
    assert (v.mean(0) * n**0.5).abs().max() < LIMIT


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_name_is_the_distribution_of_that_name(name):
    trace, expected = Hutchinson(probes=2, law=name), DISTRIBUTIONS[name]
    assert trace == Hutchinson(probes=2, law=expected)
    assert repr(trace) == f"Hutchinson(probes=2, law={expected!r})"
    assert trace.distribution == expected
    field, x = curved(), randn(3, D)
    v = expected.draw(rng(3), 2, D)
    forms = torch.einsum("mki,mij,mkj->mk", v, jacobian(field, x), v)
    if name == "orthogonal":
        forms = forms.mean(1, keepdim=True)
    torch.testing.assert_close(trace(field, x, rng(3))[1], forms)


@pytest.mark.parametrize("k", [1, 2, D])
def test_orthogonal_probes_are_orthogonal(k):
    v = Orthogonal().draw(rng(10), k, D)
    torch.testing.assert_close(v @ v.mT, D * torch.eye(k, dtype=v.dtype).expand(10, k, k))


def test_orthogonal_probes_are_exact_once_they_span():
    J = randn(D, D, seed=3)
    torch.testing.assert_close(draws(Hutchinson(D, Orthogonal()), J, 20), J.trace().expand(20))
    with pytest.raises(ValueError, match=r"at most d = 6 orthogonal .* got 7; use ExactTrace"):
        draws(Hutchinson(D + 1, Orthogonal()), J, 2)


# --- Hutch++ and XTrace


def test_hutchpp_is_the_published_estimator():
    """Meyer et al. 2021, algorithm 1, for Jᵀ, written out for one row."""
    J, n, budget = randn(9, 9, seed=5), 4, 8
    s = rng(n)
    estimates = HutchPlusPlus(budget)(linear(J), J.new_zeros(n, 9), s)[1][:, 0]
    A, k = J.T, budget // 3
    for sketch, probes, estimate in zip(
        s.normals((k, 9)), s.signs((budget - 2 * k, 9)), estimates, strict=True
    ):
        S, G = sketch.T, probes.T
        Q = torch.linalg.qr(A @ S).Q
        P = torch.eye(9) - Q @ Q.T
        expected = (Q.T @ A @ Q).trace() + (G.T @ P @ A @ P @ G).trace() / G.shape[1]
        torch.testing.assert_close(estimate, expected)


def test_xtrace_is_the_published_estimator():
    """Epperly et al. 2024, eq. 2.4 and section 2.3, for Jᵀ: one QR for each probe left out."""
    J, n, budget = randn(9, 9, seed=5), 4, 8
    s = rng(n)
    estimates = XTrace(budget)(linear(J), J.new_zeros(n, 9), s)[1][:, 0]
    A, k = J.T, budget // 2
    for row, probes in enumerate(s.normals((k, 9))):
        terms = []
        for i in range(k):
            others = probes[[j for j in range(k) if j != i]].T
            Q = torch.linalg.qr(A @ others).Q
            nu = probes[i] - Q @ (Q.T @ probes[i])
            nu = nu * (9 - k + 1) ** 0.5 / nu.norm()
            terms.append((Q.T @ A @ Q).trace() + nu @ A @ nu)
        torch.testing.assert_close(estimates[row], torch.stack(terms).mean())


@pytest.mark.parametrize("trace", [HutchPlusPlus(12), XTrace(12)], ids=repr)
def test_low_rank_is_exact(trace):
    U, V = randn(20, 4, seed=1), randn(4, 20, seed=2)
    J = U @ V
    torch.testing.assert_close(draws(trace, J, 20), J.trace().expand(20), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_small_dimensions_are_exact(d):
    J = randn(d, d, seed=4)
    for trace in (HutchPlusPlus(3 * d), HutchPlusPlus(3 * d + 2), XTrace(2 * d), XTrace(12)):
        torch.testing.assert_close(draws(trace, J, 50), J.trace().expand(50), rtol=1e-7, atol=1e-7)


RANKS = [
    (ExactTrace(), 9, 9),
    (Hutchinson(probes=3), 9, 0),
    (Hutchinson(probes=9), 9, 0),
    (Hutchinson(probes=5, law=Orthogonal()), 9, 0),
    (Hutchinson(probes=9, law=Orthogonal()), 9, 9),
    (HutchPlusPlus(budget=12), 9, 4),
    (HutchPlusPlus(budget=12), 3, 3),
    (XTrace(budget=12), 9, 5),
    (XTrace(budget=12), 6, 6),
    (XTrace(budget=12), 4, 4),
]


@pytest.mark.parametrize(("trace", "d", "rank"), RANKS, ids=str)
def test_the_exact_rank_is_the_largest_without_noise(trace, d, rank):
    assert trace.exact_rank(d) == rank

    def scatter(r):
        left, right = (
            torch.randn(d, r, generator=generator(s), dtype=torch.float64) for s in (1, 2)
        )
        jacobian = left @ right.T
        x = torch.zeros(20, d, dtype=torch.float64)
        _, estimates = trace(lambda v: v @ jacobian.T, x, rng(20))
        return float((estimates.mean(1) - jacobian.trace()).abs().max())

    if rank:
        assert scatter(rank) < 1e-9
    if rank < d:
        assert scatter(rank + 1) > 1e-3


@pytest.mark.parametrize("trace", [HutchPlusPlus(12), XTrace(12)], ids=repr)
def test_a_fast_decay_of_singular_values_reduces_the_noise(trace):
    q = torch.linalg.qr(randn(30, 30)).Q
    J = q @ (0.5 ** torch.arange(30.0, dtype=torch.float64)).diag() @ q.T
    assert draws(trace, J, 500).std() < 0.3 * draws(Hutchinson(12), J, 500).std()


# --- exact traces: chunks and memory


@DTYPES
@pytest.mark.parametrize("chunk", [1, 2, 4, 7, 100])
def test_the_result_does_not_depend_on_the_chunk(chunk, dtype):
    d, field = 7, curved(d=7, dtype=dtype)
    x = randn(3, d, dtype=dtype)
    value, estimates = ExactTrace(chunk)(field, x, rng(3))
    torch.testing.assert_close(value, field(x))
    torch.testing.assert_close(estimates[:, 0], divergence(field, x))


@pytest.mark.parametrize(
    "trace", [*MEMBERS, ExactTrace(chunk=D), ExactTrace(chunk=D - 1)], ids=repr
)
def test_linearize_returns_the_jacobian(trace):
    field, x, s = curved(), randn(3, D), rng(3)
    value, estimates, matrix = trace.linearize(field, x, s)
    torch.testing.assert_close((value, estimates), trace(field, x, s))
    assert (matrix is not None) == trace.exact
    if matrix is not None:
        torch.testing.assert_close(matrix, jacobian(field, x))


class Sizes(TorchDispatchMode):
    """Records the size of the largest tensor of any operation."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("chunk", [4, 64])
def test_memory_of_the_exact_trace_grows_only_with_the_chunk(chunk):
    """At d = 3072 no tensor is larger than chunk × batch × d, far below the d × d of a Jacobian."""
    m, d, width = 2, 3072, 8
    A, B = randn(d, width, dtype=torch.float32) / d**0.5, randn(width, d, dtype=torch.float32)

    def field(x):
        return torch.tanh(x @ A) @ B

    with Sizes() as sizes:
        _, estimates = ExactTrace(chunk)(field, torch.zeros(m, d), rng(m))
    torch.testing.assert_close(estimates[:, 0], (A @ B).trace().expand(m), rtol=1e-4, atol=1e-4)
    assert sizes.largest <= 4 * max(chunk, width) * m * d


# --- attention


class Attention(nn.Module):
    """A residual layer of two heads around PyTorch's fused attention."""

    def __init__(self, tokens=4, width=8):
        super().__init__()
        self.tokens = tokens
        self.inward, self.outward = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        h = x.reshape(len(x), self.tokens, -1)
        q, k, v = self.inward(h).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return (h + self.outward(out.transpose(1, 2).flatten(2))).reshape(x.shape)


def backends():
    cuda = torch.backends.cuda
    return (
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    )


@DTYPES
@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize(
    "trace", [ExactTrace(), ExactTrace(chunk=1), ExactTrace(chunk=5)], ids=repr
)
def test_divergence_through_attention(trace, differentiable, dtype, device):
    torch.manual_seed(0)
    layer = Attention().to(device, dtype)
    x = randn(2, 32, dtype=dtype).to(device)
    with sdpa_kernel(SDPBackend.MATH):
        expected_value, expected = layer(x), divergence(layer, x)
    before = backends()
    draw = CounterRNG.draw(2, generator(), device)
    value, estimates = trace(layer, x, draw, differentiable=differentiable)
    assert backends() == before
    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(estimates[:, 0], expected)


@EACH_MEMBER
def test_second_derivatives_through_attention(trace):
    torch.manual_seed(0)
    layer, s = Attention().double(), rng(2)
    x = randn(2, 32).requires_grad_()

    def estimate(x):
        return trace(layer, x, s, differentiable=True)[1].sum()

    (gradient,) = torch.autograd.grad(estimate(x), x)
    parameters = torch.autograd.grad(estimate(x), list(layer.parameters()), allow_unused=True)
    assert all(p is None or bool(p.isfinite().all()) for p in parameters)
    if trace in LINEAR:
        direction, step = randn(2, 32, seed=9), 1e-5
        up, down = (estimate(x.detach() + sign * step * direction) for sign in (1, -1))
        slope = (up - down) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-6)


def test_kernels_are_restored_after_an_exception_of_the_field():
    def field(x):
        raise RuntimeError("error of the field")

    before = backends()
    with pytest.raises(RuntimeError, match="error of the field"):
        ExactTrace()(field, randn(2, 3), rng(2))
    assert backends() == before


@pytest.mark.parametrize("probes", [1, 2])
def test_only_a_single_product_goes_through_the_fused_kernel(probes, device):
    """It has a first derivative, but no batched one."""
    if device.type != "cpu":
        pytest.skip("the fused kernel depends on the device")
    names = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    layer = Attention()
    with Names():
        Hutchinson(probes)(layer, randn(2, 32, dtype=torch.float32), rng(2))
    assert any("flash_attention" in name for name in names) == (probes == 1)


# --- bad arguments


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ExactTrace(chunk=0), ValueError, "chunk: expected an integer, at least 1"),
        (lambda: ExactTrace(chunk=1.5), TypeError, "chunk: expected an integer"),
        (lambda: Hutchinson(probes=0), ValueError, "probes: expected an integer, at least 1"),
        (
            lambda: Hutchinson(law="uniform"),
            ValueError,
            'law: .* "rademacher", "gaussian", "sphere", "orthogonal", got \'uniform\'',
        ),
        (lambda: Hutchinson(law=2), TypeError, "law: expected a ProbeDistribution"),
        (lambda: Hutchinson(law=Gaussian), TypeError, r"law: .* pass an instance, Gaussian\("),
        (lambda: HutchPlusPlus(budget=2), ValueError, "budget: expected an integer, at least 3"),
        (lambda: XTrace(budget=1), ValueError, "budget: expected an integer, at least 2"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


class Unbatched(torch.autograd.Function):
    """An operation without a batching rule for gradients, as in compiled extensions."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(context, gradient):
        (x,) = context.saved_tensors
        return torch.from_numpy(gradient.numpy()) * 3 * x**2


@pytest.mark.parametrize("trace", [ExactTrace(), Hutchinson(probes=3)], ids=str)
def test_operations_without_a_batching_rule(trace):
    x = randn(4, D)
    found = trace(Unbatched.apply, x, rng(4))[1]
    torch.testing.assert_close(found, (3 * x**2).sum(1, keepdim=True).expand_as(found))


# --- in a likelihood


@pytest.mark.slow
@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=repr)
@pytest.mark.parametrize("d", [16, 64, 196])
def test_fresh_probes_have_a_third_of_the_noise_at_equal_cost(d, sde):
    """Against one fixed probe along dopri5's steps in t, as is common; 300 repeats each.

    A ratio of standard deviations is known to 6 %: with a true ratio up to 0.28, a false alarm has
    a chance of 1e-3.
    """
    score = stretched(d, sde)
    x = score.sample(1, sde.t_min, generator(1), dtype=torch.float64).expand(300, d).contiguous()
    prior = Independent(
        Normal(torch.zeros(d).double(), torch.tensor(sde.prior_scale()).double()), 1
    )
    flow, solver = GeneralProbabilityFlow(score, (d,)), TorchDiffEq(rtol=1e-5, atol=1e-5)
    settings = LikelihoodSettings(flow, Hutchinson(), solver, 1e-3, prior, rng(300, 2))
    with torch.no_grad():
        usual = FlowIntegral()(settings, x, torch.arange(300))
    cost = int(usual.evaluations.max())
    ours = log_likelihood(score, x[:1], trace=Hutchinson(), generator=generator(3))
    probes = max(1, cost // int(ours.evaluations.max()))
    ours = log_likelihood(score, x, trace=Hutchinson(probes), generator=generator(3))
    assert int(ours.evaluations.max()) * probes <= 1.1 * cost
    assert ours.log_prob.std() <= usual.log_prob.std() / 3


@pytest.mark.slow
@pytest.mark.parametrize("trace", [Hutchinson(2), Hutchinson(4), Hutchinson(2, Sphere())], ids=repr)
@pytest.mark.parametrize("d", [16, 64])
def test_two_standard_errors_cover(d, trace):
    """90 to 99 % of 300 repeats; of a true 95 % that fails with a chance of 2e-4."""
    score = stretched(d, VPSDE())
    point = score.sample(1, 1e-5, generator(1), dtype=torch.float64)
    exact = log_likelihood(score, point).log_prob
    x = point.expand(300, d).contiguous()
    result = log_likelihood(score, x, trace=trace, generator=generator(2))
    covered = (result.log_prob - exact).abs() <= 2 * result.standard_error
    assert 0.90 <= covered.double().mean() <= 0.99


def test_known_moments_are_a_control_variate():
    """For Gaussian data with a Jacobian that is not a multiple of I, there is no noise at all."""
    axes = torch.linalg.qr(randn(8, 8))[0]
    covariance = axes @ torch.logspace(-2, 1, 8).double().diag() @ axes.mT
    score = GaussianMixture(torch.ones(1), torch.ones(1, 8), covariance[None], VPSDE())
    x = score.sample(1, 1e-5, generator(1), dtype=torch.float64).expand(50, 8).contiguous()
    with_moments = log_likelihood(score, x, trace=Hutchinson(), generator=generator(2))
    score.moments = Moments()
    without = log_likelihood(score, x, trace=Hutchinson(), generator=generator(2))
    assert with_moments.log_prob.std() < 1e-9
    assert without.log_prob.std() > 0.1


@pytest.mark.parametrize(
    ("d", "tolerance", "exact"),
    [(64, 1.0, True), (65, 1e-2, False), (400, 1e-3, True), (450, 1e-3, False), (784, 4e-4, True)],
)
def test_the_default_trace(d, tolerance, exact):
    """Exact where √0.7 d is below 0.35/tolerance: fewer products than the noise would take."""
    assert _default_trace(d, tolerance).exact == exact


def stretched(d, sde):
    """Four modes with standard deviations from 0.05 to 0.5 in directions of their own."""
    g = generator(d)
    means = 0.5 * torch.randn(4, d, generator=g, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(4, d, d, generator=g, dtype=torch.float64))[0]
    stds = torch.logspace(math.log10(0.05), math.log10(0.5), d, dtype=torch.float64)
    return GaussianMixture(torch.ones(4), means, axes @ torch.diag(stds**2) @ axes.mT, sde)


def fourth_moments(distribution, d):
    """E v_i v_j v_k v_l of an isotropic distribution, by pairing (Isserlis)."""
    one = torch.eye(d, dtype=torch.float64)
    pairs = sum(
        torch.einsum(f"{a},{b}->ijkl", one, one)
        for a, b in (("ij", "kl"), ("ik", "jl"), ("il", "jk"))
    )
    return pairs if isinstance(distribution, Gaussian) else pairs * d / (d + 2)


@pytest.mark.parametrize("d", [1, 2, 3, 5])
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("distribution", [Gaussian(), Sphere(), Orthogonal()], ids=repr)
def test_variances_are_those_of_the_fourth_moments(distribution, k, d):
    """Two orthogonal directions have covariance −V/(d − 1), because all d give the trace."""
    A = torch.randn((d, d), dtype=torch.float64)
    V = torch.einsum("ij,kl,ijkl->", A, A, fourth_moments(distribution, d)) - A.trace() ** 2
    covariance = -V / (d - 1) if isinstance(distribution, Orthogonal) and d > 1 else 0.0 * V
    k = min(k, d)
    expected = V / k + (k - 1) / k * covariance
    torch.testing.assert_close(distribution.variance(A, k), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("d", [1, 2, 3, 5])
@pytest.mark.parametrize("k", [1, 3])
def test_the_variance_of_signs_is_that_over_all_of_them(k, d):
    A = torch.randn((d, d), dtype=torch.float64)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * d)
    forms = torch.einsum("ni,ij,nj->n", *[signs.reshape(-1, d), A, signs.reshape(-1, d)])
    expected = forms.var(correction=0) / k
    torch.testing.assert_close(Rademacher().variance(A, k), expected, rtol=1e-9, atol=1e-12)
