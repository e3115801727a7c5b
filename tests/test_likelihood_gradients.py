"""Gradients of log p: the flow's own score, finite differences, closed forms; and their memory."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributions import Independent, Normal

from scoresde import (
    MLP,
    SDE,
    VESDE,
    VPSDE,
    FunctionScore,
    GaussianMixture,
    GaussianSDE,
    Moments,
    ScoreModel,
    log_likelihood,
)
from scoresde.likelihood import (
    FlowIntegral,
    ItoEstimate,
    Method,
    PathIntegral,
    ScoreDistribution,
    VariationalBound,
)
from scoresde.solvers import Adams, SciPy, Solver, TorchDiffEq
from scoresde.traces import ExactTrace, Hutchinson, Trace

METHODS = (FlowIntegral(), PathIntegral(), VariationalBound(samples=8), ItoEstimate(4, 2))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(sde: GaussianSDE, d: int = 2) -> GaussianMixture:
    """Three modes, stretched from 0.05 to 0.5."""
    generator = seeded(d)
    means = 0.5 * torch.randn(3, d, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(3, d, d, generator=generator, dtype=torch.float64))[0]
    stds = torch.logspace(math.log10(0.05), math.log10(0.5), d, dtype=torch.float64)
    covariances = rotation @ torch.diag(stds**2) @ rotation.mT
    return GaussianMixture(torch.tensor([0.2, 0.3, 0.5]), means, covariances, sde)


def network(classes: int | None = None) -> ScoreModel:
    torch.manual_seed(0)
    body = MLP((2,), width=8, depth=1, classes=classes)
    for parameter in body.parameters():
        nn.init.normal_(parameter, std=0.1)
    return ScoreModel(
        body.double(), VPSDE(t_min=0.05)
    )  # at smaller times ε̂ is inaccurate and takes many steps


def gradient(value: Tensor, *sources: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value.sum(), sources)


# --- with respect to the point


@pytest.mark.parametrize("method", METHODS[:2], ids=repr)
@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=repr)
def test_the_gradient_is_the_score(sde: GaussianSDE, method: Method) -> None:
    """Of the mixture at t_min, in closed form; on the data and half a unit off them."""
    score = mixture(sde)
    x = score.sample(4, sde.t_min, seeded(1), dtype=torch.float64)
    x[3] += 0.5
    truth = score(x, sde.t_min)
    x.requires_grad_()
    for tolerance, allowed in ((1e-3, 5e-2), (1e-5, 1e-3)):
        result = log_likelihood(score, x, tolerance=tolerance, method=method)
        (found,) = gradient(result.log_prob, x)
        assert ((found - truth).norm(dim=1) <= allowed * truth.norm(dim=1)).all()


def test_gradcheck() -> None:
    score = mixture(VPSDE(), 1)
    x = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)

    def log_prob_and_latent(x: Tensor) -> Tensor:
        result = log_likelihood(score, x, tolerance=1e-4)
        return torch.cat([result.log_prob, result.latent[:, 0]])

    close = {"eps": 1e-3, "atol": 1e-2, "rtol": 1e-2, "fast_mode": True}
    assert torch.autograd.gradcheck(log_prob_and_latent, x, **close)


@pytest.mark.parametrize("solver", [TorchDiffEq(), Adams(order=3)], ids=repr)
def test_other_solvers(solver: Solver) -> None:
    score = mixture(VPSDE())
    x = score.sample(2, 0.0, seeded(1), dtype=torch.float64).requires_grad_()
    result = log_likelihood(score, x, solver=solver, tolerance=1e-4)
    (found,) = gradient(result.log_prob, x)
    assert torch.allclose(found, score(x, VPSDE().t_min), rtol=1e-2, atol=0.05)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_rows_and_batches(method: Method) -> None:
    """Each row has its own gradient, that of its own class, in any batch."""
    model = network(classes=3)
    labels = torch.tensor([0, 1, 2])
    x = torch.randn(3, 2, generator=seeded(1), dtype=torch.float64, requires_grad=True)

    def of(log_prob: Callable[[Tensor], Tensor], batch_size: int) -> Tensor:
        result = log_likelihood(
            model.given(classes=labels),
            x,
            method=method,
            trace=Hutchinson(probes=2),
            tolerance=0.1,
            generator=seeded(2),
            batch_size=batch_size,
        )
        return gradient(log_prob(result.log_prob), x)[0]

    joint, chunked = (of(torch.sum, size) for size in (3, 2))
    assert torch.allclose(joint, chunked, rtol=0, atol=1e-6)
    middle = of(lambda log_prob: log_prob[1], 3)
    assert torch.allclose(middle[1], joint[1], rtol=0, atol=1e-9)
    assert not middle[[0, 2]].any()
    assert joint.abs().min() > 0


@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 2)], ids=str)
@pytest.mark.parametrize("method", [FlowIntegral(), PathIntegral()], ids=repr)
def test_event_shapes_in_float32(
    method: Method, shape: tuple[int, ...], device: torch.device
) -> None:
    """A Gaussian whose moments are not known, so that the integral is not trivial."""
    d = math.prod(shape)
    sde = VPSDE()
    score = GaussianMixture(
        torch.ones(1), torch.full((1, *shape), 0.5), 0.09 * torch.eye(d)[None], sde
    ).to(device)
    score.moments = Moments().to(device)
    x = score.sample(2, 0.0, generator=seeded(1)).requires_grad_()
    result = log_likelihood(score, x, method=method)
    (found,) = gradient(result.log_prob, x)
    assert (found.shape, found.dtype, found.device) == (x.shape, x.dtype, x.device)
    assert torch.allclose(found, score(x, sde.t_min), rtol=1e-2, atol=0.05)


def test_a_row_that_is_not_finite_changes_no_gradient() -> None:
    good = mixture(VPSDE())

    def broken(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 4.0, torch.nan, good(x, t))

    score = FunctionScore(broken, good.sde, moments=good.moments)
    x = torch.cat([good.sample(2, 0.0, seeded(1)), torch.tensor([[9.0, 0.0]])]).requires_grad_()
    for method in METHODS[:2]:
        result = log_likelihood(score, x, method=method)
        (found,) = gradient(result.log_prob[:2], x)
        assert torch.allclose(found[:2], good(x[:2], VPSDE().t_min), rtol=0.02, atol=0.02)


# --- with respect to parameters


class Bell(nn.Module):
    """The score of N(m, s²) under a diffusion; its parameters are m and log s."""

    def __init__(self, sde: GaussianSDE, d: int) -> None:
        super().__init__()
        self.alpha, self.sigma = sde.alpha, sde.sigma
        self.mean = nn.Parameter(torch.linspace(-0.5, 0.5, d, dtype=torch.float64))
        self.log_std = nn.Parameter(torch.full((), math.log(0.4), dtype=torch.float64))

    def marginal(self, t: float) -> Independent:
        alpha, sigma = float(self.alpha(t)), float(self.sigma(t))
        std = torch.sqrt((alpha * self.log_std.exp()) ** 2 + sigma**2)
        return Independent(Normal(alpha * self.mean, std.expand_as(self.mean)), 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.alpha(t).reshape(-1, 1), self.sigma(t).reshape(-1, 1)
        variance = (alpha * self.log_std.exp()) ** 2 + sigma**2
        return -(x - alpha * self.mean) / variance


@pytest.mark.parametrize("method", METHODS[:2], ids=repr)
@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=repr)
def test_parameters_of_a_gaussian(sde: GaussianSDE, method: Method) -> None:
    """∂ log N(x; m, s²)/∂(m, log s), in closed form; the prior depends on them too."""
    bell = Bell(sde, 3)
    x = torch.randn(4, 3, generator=seeded(1), dtype=torch.float64)
    parameters = [bell.mean, bell.log_std]
    truth = gradient(bell.marginal(sde.t_min).log_prob(x), *parameters)
    result = log_likelihood(
        FunctionScore(bell, sde),
        x,
        prior=bell.marginal(sde.T),
        method=method,
        tolerance=1e-5,
        differentiable=True,
    )
    found = gradient(result.log_prob, *parameters)
    for a, b in zip(found, truth, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_weights_of_a_network(method: Method) -> None:
    """Against differences of log p along a random direction of all weights and the point."""
    model = network()
    x = torch.randn(1, 2, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    sources = [x, *model.parameters()]

    def value() -> Tensor:
        result = log_likelihood(model, x, method=method, tolerance=1e-3, generator=seeded(2))
        return result.log_prob.sum()

    found = torch.autograd.grad(value(), sources, allow_unused=True)
    generator, step, ends = seeded(3), 5e-3, []
    moves = [torch.randn(s.shape, generator=generator, dtype=torch.float64) for s in sources]
    slope = sum(float((g * v).sum()) for g, v in zip(found, moves, strict=True) if g is not None)
    with torch.no_grad():
        for sign in (1, -2):
            for source, move in zip(sources, moves, strict=True):
                source += sign * step * move
            ends.append(float(value()))
    assert abs(slope) > 0.03
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=2e-2)


def test_the_gradient_of_an_estimate_is_unbiased() -> None:
    """100 samples of the probes at one point; the mean within 5 standard errors (alarm 1e-6)."""
    score = mixture(VPSDE())
    x = torch.tensor([[0.5, -0.3]], dtype=torch.float64)

    def of(x: Tensor, trace: Trace) -> Tensor:
        x = x.requires_grad_()
        result = log_likelihood(score, x, trace=trace, tolerance=0.01, generator=seeded(1))
        return gradient(result.log_prob, x)[0]

    exact, noisy = of(x, ExactTrace()), of(x.detach().repeat(100, 1), Hutchinson())
    error = noisy.std(0) / 10
    assert (error > 1e-5).all()
    assert ((noisy.mean(0) - exact).abs() < 5 * error + 0.02 * exact.abs()).all()


def test_a_general_sde() -> None:
    """dx = −x dt + √2 dw from N(m, ¼): the gradient with respect to x and to m."""

    class Relaxation(SDE):
        def drift(self, x: Tensor, t: float | Tensor) -> Tensor:
            return -x

        def diffusion(self, t: float | Tensor) -> Tensor:
            return torch.full_like(torch.as_tensor(t, dtype=torch.float64), math.sqrt(2.0))

    mean = nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))

    def marginal(t: float | Tensor) -> Normal:
        t = torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1)
        variance = 1 - 0.75 * torch.exp(-2 * t)
        return Normal(torch.exp(-t) * mean, variance.sqrt())

    class LinearScore(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean = mean

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return -(x - marginal(t).mean) / marginal(t).variance

    score = FunctionScore(LinearScore(), Relaxation())
    x = torch.randn(3, 2, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    truth = gradient(marginal(1e-5).log_prob(x), x, mean)
    for method in METHODS[:2]:
        prior = Independent(Normal(marginal(1.0).mean[0], marginal(1.0).stddev[0].expand(2)), 1)
        result = log_likelihood(score, x, prior=prior, method=method, tolerance=1e-4)
        for a, b in zip(gradient(result.log_prob, x, mean), truth, strict=True):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-3)


# --- samples


def test_samples_are_functions_of_the_parameters() -> None:
    """x = m + s ε at t_min, so that ∂x/∂m = α and ∂x/∂ log s follows from ε: closed forms."""
    sde = VPSDE()
    bell = Bell(sde, 2)
    p = ScoreDistribution(
        FunctionScore(bell, sde), (2,), prior=bell.marginal(sde.T), dtype=torch.float64
    )
    x = p.rsample((5,), generator=seeded(1))
    assert torch.equal(x, p.sample((5,), generator=seeded(1)))
    alpha, sigma = float(sde.alpha(sde.t_min)), float(sde.sigma(sde.t_min))
    of_mean, of_log_std = gradient(x, bell.mean, bell.log_std)
    assert torch.allclose(of_mean, torch.full_like(of_mean, 5 * alpha), rtol=1e-3)
    variance = (alpha * bell.log_std.exp()) ** 2 + sigma**2
    expected = ((x - alpha * bell.mean) * (alpha * bell.log_std.exp()) ** 2 / variance).sum()
    assert torch.allclose(of_log_std, expected, rtol=1e-3)
    assert not p.sample((2,)).requires_grad
    with torch.no_grad():
        assert not p.rsample((2,)).requires_grad


def test_a_distribution_learns() -> None:
    """Maximum likelihood through log_prob finds the mean of the data."""
    sde = VPSDE()
    bell = Bell(sde, 1)
    p = ScoreDistribution(FunctionScore(bell, sde), (1,), tolerance=1e-2, differentiable=True)
    data = 0.3 + 0.4 * torch.randn(16, 1, generator=seeded(1), dtype=torch.float64)
    optimizer = torch.optim.LBFGS([bell.mean], max_iter=3)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -p.log_prob(data).mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert abs(float(bell.mean.detach()) - float(data.mean())) < 0.02


# --- when there is a graph, and its memory


def test_a_graph_exists_where_required() -> None:
    model = network()
    x = torch.zeros(1, 2, dtype=torch.float64)

    def has(differentiable: bool | None, x: Tensor) -> bool:
        result = log_likelihood(model, x, tolerance=0.1, differentiable=differentiable)
        assert result.latent.requires_grad == result.log_prob.requires_grad
        assert not result.solver_error.requires_grad
        assert not result.standard_error.requires_grad
        return result.log_prob.requires_grad

    assert not has(None, x)
    assert has(True, x)
    x.requires_grad_()
    assert has(None, x)
    assert not has(False, x)
    with torch.no_grad():
        assert not has(True, x)
    with pytest.raises(ValueError, match=r"solver: expected one with gradients.* SciPy"):
        log_likelihood(model, x, solver=SciPy())
    p = ScoreDistribution(model, (2,), solver=SciPy())
    with pytest.raises(NotImplementedError, match="rsample"):
        p.rsample()


def test_a_changed_parameter_is_detected() -> None:
    model = network()
    x = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    value = log_likelihood(model, x, tolerance=0.1).log_prob.sum()
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_dropout_is_inactive() -> None:
    """The gradient in training mode is that of evaluation mode, and the mode does not change."""
    model = network()
    noisy = ScoreModel(WithDropout(model.network), model.sde)
    x = torch.randn(2, 2, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    for method in METHODS:
        a, b = (
            gradient(
                log_likelihood(m, x, method=method, tolerance=0.1, generator=seeded(2)).log_prob,
                x,
            )[0]
            for m in (model, noisy)
        )
        assert torch.equal(a, b)
    assert noisy.network.dropout.training


class WithDropout(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.dropout = network, nn.Dropout()

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.dropout(self.network(x, label))


class Box:
    """An object with the lifetime of the graph that refers to it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_by(call: Callable[[], Tensor]) -> int:
    """Bytes saved for a backward pass through the result of ``call``."""
    boxes: list[weakref.ref[Box]] = []

    def pack(tensor: Tensor) -> Box:
        box = Box(tensor)
        boxes.append(weakref.ref(box))
        return box

    with saved_tensors_hooks(pack, lambda box: box.tensor):
        result = call()
    alive = [box.tensor for reference in boxes if (box := reference()) is not None]
    assert result.requires_grad
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}.values()
    )


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_memory_does_not_grow_with_the_network(method: Method) -> None:
    """States and parameters are saved, not the activations of the network."""

    def saved(depth: int) -> float:
        torch.manual_seed(0)
        model = ScoreModel(MLP((2,), width=64, depth=depth), VPSDE())
        x = torch.zeros(64, 2, requires_grad=True)
        weights = sum(4 * parameter.numel() for parameter in model.parameters())
        evaluations = []

        def run() -> Tensor:
            result = log_likelihood(model, x, method=method, tolerance=0.1, generator=seeded(1))
            evaluations.append(int(result.evaluations.max()))
            return result.log_prob

        return (saved_by(run) - weights) / evaluations[0]

    assert abs(saved(6) - saved(1)) < 64 * 64  # one evaluation of 5 more layers saves 4·64·64·5
