"""The likelihood against closed forms: value, error budget, and independence of the batch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from scoresde import (
    EDMSDE,
    MLP,
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    FunctionScore,
    GaussianMixture,
    GaussianSDE,
    Moments,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    log_likelihood,
)
from scoresde.flow.probability_flow import probability_flow
from scoresde.likelihood import Likelihood, PathIntegral
from scoresde.likelihood.flow import _typical
from scoresde.likelihood.log_likelihood import _batch_size, _default_trace
from scoresde.solvers import Adams, SciPy, Solution, TorchDiffEq
from scoresde.traces import ExactTrace, Hutchinson

SDES = (VPSDE(), SubVPSDE(), VESDE(), CosineSDE(), EDMSDE(), RectifiedFlow())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covariances(kind: str, count: int, d: int, generator: torch.Generator) -> Tensor:
    """Covariances ``(count, d, d)``: round, thin (std 0.02) or stretched from 0.05 to 0.5."""
    if kind == "smooth":
        return 0.25 * torch.eye(d, dtype=torch.float64).expand(count, d, d)
    if kind == "thin":
        return 0.02**2 * torch.eye(d, dtype=torch.float64).expand(count, d, d)
    turned = torch.linalg.qr(torch.randn(count, d, d, generator=generator, dtype=torch.float64))[0]
    stds = torch.logspace(math.log10(0.05), math.log10(0.5), d, dtype=torch.float64)
    return turned @ torch.diag(stds**2) @ turned.mT


def mixture(sde: GaussianSDE, d: int, kind: str = "smooth", seed: int = 0) -> GaussianMixture:
    generator = seeded(seed)
    means = 0.5 * torch.randn(4, d, generator=generator, dtype=torch.float64)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    return GaussianMixture(weights, means, covariances(kind, 4, d, generator), sde)


def bits_off(result: Likelihood, score: GaussianMixture, x: Tensor) -> Tensor:
    """Error in bits per dimension against the closed form."""
    truth = score.log_prob(x.double(), result.t_min)
    return (result.log_prob.double() - truth).abs() / (x[0].numel() * math.log(2))


CASES = [
    (sde, d, kind)
    for sde in SDES
    for d in (1, 2, 16)
    for kind in ("smooth", "thin", "anisotropic")
    if sde in SDES[:3] or (d, kind) == (2, "anisotropic")
]


@pytest.mark.parametrize(("sde", "d", "kind"), CASES, ids=str)
def test_closed_form(sde: GaussianSDE, d: int, kind: str) -> None:
    score = mixture(sde, d, kind)
    x = score.sample(8, sde.t_min, seeded(1), dtype=torch.float64)
    default = log_likelihood(score, x)
    assert bits_off(default, score, x).max() < 1e-3
    assert default.converged.all()
    tight = log_likelihood(score, x, tolerance=1e-5)
    assert bits_off(tight, score, x).max() < 1e-5
    assert (tight.evaluations > default.evaluations).all()
    assert not tight.standard_error.any()


@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_float32_costs_no_digit_of_the_default(sde: GaussianSDE) -> None:
    score = mixture(sde, 16, "anisotropic")
    x = score.sample(16, sde.t_min, seeded(1), dtype=torch.float32)
    result = log_likelihood(score, x)
    assert result.log_prob.dtype == result.latent.dtype == torch.float32
    assert bits_off(result, score, x).max() < 1e-3


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=repr)
@pytest.mark.parametrize("kind", ["smooth", "thin"])
def test_points_off_the_data(sde: GaussianSDE, kind: str) -> None:
    """Stiff flows: within the reported budget, in a few hundred evaluations."""
    score = mixture(sde, 2, kind)
    on = score.sample(24, 0.0, seeded(1), dtype=torch.float64)
    noise = torch.randn(24, 2, generator=seeded(2), dtype=torch.float64)
    x = torch.cat([on[:8] + 0.1 * noise[:8], on[8:16] + 0.5 * noise[8:16], 2 * noise[16:]])
    result = log_likelihood(score, x)
    error = (result.log_prob - score.log_prob(x, sde.t_min)).abs()
    assert (error <= result.solver_error).double().mean() >= 0.95
    assert result.converged.double().mean() >= 0.9
    assert result.evaluations.max() < 1000


def test_the_budget_covers_the_error() -> None:
    inside = []
    for seed in range(4):
        for tolerance in (1e-2, 1e-3, 1e-4):
            score = mixture(VPSDE(), 3, "anisotropic", seed)
            x = score.sample(16, 1e-5, seeded(seed), dtype=torch.float64)
            result = log_likelihood(score, x, tolerance=tolerance)
            error = (result.log_prob - score.log_prob(x, result.t_min)).abs()
            inside.append(error <= result.solver_error)
    assert torch.cat(inside).double().mean() >= 0.95


@pytest.mark.parametrize("d", [1, 2])
def test_density_integrates_to_one(d: int) -> None:
    score = mixture(VPSDE(), d)
    n = 61 if d == 1 else 31
    axis = torch.linspace(-5, 5, n, dtype=torch.float64)
    x = torch.cartesian_prod(*[axis] * d).reshape(-1, d)
    total = log_likelihood(score, x, tolerance=1e-2).log_prob.exp().sum() * (10 / (n - 1)) ** d
    assert abs(float(total) - 1) < 2e-3


def test_batch_independence() -> None:
    """To 1e-6; a stiff row, whose steps follow rounding errors, to as many digits of its −406."""
    score = mixture(VPSDE(), 3, "anisotropic")
    x = score.sample(12, 0.0, seeded(1), dtype=torch.float64)
    x[3] += 3.0  # a difficult point
    together = log_likelihood(score, x)
    alone = torch.cat([log_likelihood(score, row[None]).log_prob for row in x])
    turned = log_likelihood(score, x.flip(0)).log_prob.flip(0)
    chunked = log_likelihood(score, x, batch_size=5)
    assert torch.allclose(together.log_prob, alone, rtol=3e-8, atol=1e-6)
    assert torch.allclose(together.log_prob, turned, rtol=3e-8, atol=1e-6)
    assert torch.allclose(together.log_prob, chunked.log_prob, rtol=3e-8, atol=1e-6)
    assert torch.equal(together.evaluations, chunked.evaluations)


def test_probes_belong_to_samples_not_to_batches() -> None:
    score = mixture(VPSDE(), 8, "anisotropic")
    x = score.sample(7, 0.0, seeded(1), dtype=torch.float64)
    trace = Hutchinson(probes=2)
    whole = log_likelihood(score, x, trace=trace, generator=seeded(3))
    chunked = log_likelihood(score, x, trace=trace, generator=seeded(3), batch_size=2)
    other = log_likelihood(score, x, trace=trace, generator=seeded(4))
    assert torch.allclose(whole.log_prob, chunked.log_prob, rtol=0, atol=1e-6)
    assert not torch.allclose(whole.log_prob, other.log_prob, rtol=0, atol=1e-6)


def test_the_global_generator_is_left_alone() -> None:
    score = mixture(VPSDE(), 4)
    x = score.sample(2, 0.0, seeded(1))
    before = torch.get_rng_state()
    log_likelihood(score, x, trace=Hutchinson(), generator=seeded(2))
    assert torch.equal(before, torch.get_rng_state())


def test_standard_error_is_calibrated() -> None:
    """Over 300 repeats, ±2 standard errors cover 90 to 99 % (for a true 95 %: false alarm <
    1e-4)."""
    score = mixture(VPSDE(), 16, "anisotropic")
    point = score.sample(1, 0.0, seeded(1), dtype=torch.float64)
    exact = log_likelihood(score, point).log_prob
    x = point.expand(300, 16).contiguous()
    result = log_likelihood(score, x, trace=Hutchinson(probes=2), generator=seeded(2))
    noise = result.log_prob - exact
    claimed = result.standard_error.square().mean().sqrt()
    assert 0.85 < float(claimed / noise.square().mean().sqrt()) < 1.18
    assert 0.90 <= float((noise.abs() <= 2 * result.standard_error).double().mean()) <= 0.99
    assert abs(float(noise.mean())) < 4 * float(claimed) / math.sqrt(300) + 1e-3 * 16


def test_fresh_probes_beat_one_fixed_probe() -> None:
    """At equal products the deviation is at most a half of that of the usual fixed probe."""
    score = mixture(VPSDE(), 16, "anisotropic")
    x = score.sample(1, 0.0, seeded(1), dtype=torch.float64).expand(200, 16).contiguous()
    fresh = log_likelihood(score, x, trace=Hutchinson(), generator=seeded(2))
    fixed = log_likelihood(
        score, x, trace=Hutchinson(), generator=seeded(2), solver=TorchDiffEq(), tolerance=1e-2
    )
    assert fresh.log_prob.std() < 0.5 * fixed.log_prob.std()


def test_terminal_distribution() -> None:
    sde = VPSDE()
    means = torch.tensor([[-3.0, 0.0], [3.0, 1.0]])
    score = GaussianMixture(torch.ones(2), means, 0.1 * torch.eye(2).expand(2, 2, 2), sde)
    x = score.sample(8, 0.0, seeded(1), dtype=torch.float64)
    matched = log_likelihood(score, x, tolerance=1e-5)
    prior = sde.prior((2,), dtype=torch.float64)
    standard = log_likelihood(score, x, tolerance=1e-5, prior=prior)
    truth = score.log_prob(x, sde.t_min)
    assert torch.allclose(matched.log_prob, truth, atol=3e-5, rtol=0)
    assert (standard.log_prob - truth).abs().max() > 1e-3
    gap = matched.log_prob - standard.log_prob
    assert torch.allclose(gap, standard.prior_mismatch, atol=1e-9, rtol=0)
    score.moments = Moments()
    unknown = log_likelihood(score, x, tolerance=1e-5)
    assert unknown.prior_mismatch.isnan().all()
    assert torch.allclose(unknown.log_prob, standard.log_prob, atol=5e-5, rtol=0)


@pytest.mark.parametrize("solver", [TorchDiffEq(), SciPy()], ids=repr)
def test_backends(solver: TorchDiffEq | SciPy) -> None:
    score = mixture(VPSDE(), 2)
    x = score.sample(4, 0.0, seeded(1), dtype=torch.float64)
    result = log_likelihood(score, x, solver=solver, tolerance=1e-4)
    assert bits_off(result, score, x).max() < 1e-3
    assert result.converged.all()


@pytest.mark.parametrize("shape", [(), (5,), (1, 8, 8), (3, 4, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_event_shapes(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    """A Gaussian of any event shape, whose density SciPy knows."""
    d = math.prod(shape)
    sde = SubVPSDE()
    means = torch.full((1, *shape), 0.5)
    score = GaussianMixture(torch.ones(1), means, 0.09 * torch.eye(d)[None], sde).to(device)
    score.moments = Moments().to(device)  # nothing known: the flow has work to do

    def marginal(t: float) -> tuple[float, float]:
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        return 0.5 * alpha, math.sqrt(0.09 * alpha**2 + sigma**2)

    mean, std = marginal(sde.T)
    terminal = Normal(torch.full(shape, mean, device=device), torch.full(shape, std, device=device))
    x = score.sample(2, 0.0, dtype=dtype, generator=seeded(1))
    result = log_likelihood(score, x, trace=ExactTrace(), prior=Independent(terminal, len(shape)))
    exact = stats.norm(*marginal(sde.t_min))
    truth = exact.logpdf(x.cpu().double().reshape(2, d).numpy()).sum(1)
    error = (result.log_prob.cpu().double() - torch.from_numpy(truth)).abs() / d
    assert result.log_prob.shape == (2,)
    assert result.latent.shape == x.shape
    assert result.log_prob.dtype == dtype
    assert float(error.max()) < 1e-3 * math.log(2)


def test_a_model_is_as_good_as_its_score() -> None:
    """A network of any parametrization that outputs what the mixture would."""
    score = mixture(VPSDE(), 2)

    class Oracle(nn.Module):
        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            return score.noise(x, label)

    model = ScoreModel(Oracle(), score.sde, moments=score.moments)
    x = score.sample(4, 0.0, seeded(1), dtype=torch.float64)
    assert bits_off(log_likelihood(model, x), score, x).max() < 1e-3


def test_conditions_follow_their_rows() -> None:
    """Samples that finish at different times keep their own class."""
    torch.manual_seed(0)
    network = MLP((2,), width=16, depth=1, classes=3)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    model = ScoreModel(network, VPSDE())
    x = torch.randn(6, 2, generator=seeded(1), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    together = log_likelihood(model.given(classes=labels), x, batch_size=4)
    for i, label in enumerate(labels.tolist()):
        alone = log_likelihood(model.given(classes=label), x[i : i + 1])
        assert torch.allclose(alone.log_prob, together.log_prob[i : i + 1], atol=1e-5)


def test_general_sde() -> None:
    """dx = −x dt + √2 dw has N(0, 1) as its stationary distribution; α and σ are not given."""

    class Relaxation(SDE):
        def drift(self, x: Tensor, t: float | Tensor) -> Tensor:
            return -x

        def diffusion(self, t: float | Tensor) -> Tensor:
            return torch.full_like(torch.as_tensor(t, dtype=torch.float64), math.sqrt(2.0))

    score = FunctionScore(lambda x, t: -x, Relaxation())
    x = torch.randn(5, 3, generator=seeded(1), dtype=torch.float64)
    prior = VPSDE().prior((3,), dtype=torch.float64)
    result = log_likelihood(score, x, prior=prior)
    assert torch.allclose(result.log_prob, prior.log_prob(x), atol=1e-6)
    with pytest.raises(NotImplementedError, match="prior"):
        log_likelihood(score, x)


def test_one_bad_row_does_not_spoil_the_others() -> None:
    good = mixture(VPSDE(), 2)

    def broken(x: Tensor, t: Tensor) -> Tensor:
        score = good(x, t)
        return torch.where(x[:, :1] > 4.0, torch.nan, score)

    score = FunctionScore(broken, good.sde, moments=good.moments)
    x = torch.cat([good.sample(3, 0.0, seeded(1)), torch.tensor([[9.0, 0.0]])])
    result = log_likelihood(score, x)
    assert result.converged.tolist() == [True, True, True, False]
    assert result.solver_error[3].isinf()
    assert bits_off(result, good, x)[:3].max() < 1e-3


def test_a_spent_sample_says_so() -> None:
    score = mixture(VPSDE(), 2, "thin")
    x = score.sample(3, 0.0, seeded(1))
    result = log_likelihood(score, x, solver=Adams(max_evaluations=10))
    assert not result.converged.any()
    assert (result.evaluations <= 10).all()
    assert result.log_prob.isfinite().all()


def test_time_parametrization_does_not_matter() -> None:
    """VP under another rate is the same diffusion on another clock: the same density."""
    slow, fast = VPSDE(), VPSDE(1.0, 19.1)
    t_min = float(fast.time_at(slow.half_logsnr(slow.t_min)))
    a, b = mixture(slow, 3, "anisotropic"), mixture(fast, 3, "anisotropic")
    x = a.sample(8, 0.0, seeded(1), dtype=torch.float64)
    first = log_likelihood(a, x, tolerance=1e-6).log_prob
    second = log_likelihood(b, x, tolerance=1e-6, t_min=t_min).log_prob
    assert torch.allclose(first, second, atol=1e-5, rtol=0)


def test_bits_per_dim() -> None:
    score = mixture(VPSDE(), 4)
    x = score.sample(64, 0.0, seeded(1))
    result = log_likelihood(score, x, tolerance=1e-1)
    nats = -result.log_prob / (4 * math.log(2))
    assert torch.allclose(result.bits_per_dim(), nats, atol=1e-6)
    assert torch.allclose(result.bits_per_dim(levels=256, scale=2.0), nats + 7, atol=1e-5)
    assert torch.allclose(result.bits_per_dim(levels=256, scale=1.0), nats + 8, atol=1e-5)
    quantized = torch.randint(0, 256, (64, 4), generator=seeded(2)) / 127.5 - 1
    with pytest.raises(ValueError, match="dequantize"):
        log_likelihood(score, quantized, tolerance=1.0).bits_per_dim(levels=256, scale=2.0)


def test_inference_mode_does_not_matter() -> None:
    score = mixture(VPSDE(), 2)
    x = score.sample(2, 0.0, seeded(1))
    with torch.inference_mode():
        inside = log_likelihood(score, x.clone(), tolerance=1e-2)
    assert torch.equal(inside.log_prob, log_likelihood(score, x, tolerance=1e-2).log_prob)


def test_it_prints_its_budget() -> None:
    score = mixture(VPSDE(), 2)
    text = repr(log_likelihood(score, score.sample(3, 0.0, seeded(1))))
    assert "3 samples" in text
    assert "bits/dim" in text
    assert "3 converged" in text


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 2, dtype=torch.int64)}, TypeError, "x: expected a floating"),
        ({"x": torch.full((2, 2), math.nan)}, ValueError, "x: expected finite"),
        ({"x": torch.zeros(0, 2)}, ValueError, "x: expected at least one"),
        ({"x": torch.zeros(3, 5)}, ValueError, "x: expected shape"),
        ({"score": nn.Linear(2, 2)}, TypeError, "score: expected a Score"),
        ({"tolerance": 0.0}, ValueError, "tolerance"),
        ({"tolerance": "tight"}, TypeError, "tolerance"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"trace": "exact"}, TypeError, "trace"),
        ({"solver": "rk45"}, TypeError, "solver"),
        ({"t_min": 2.0}, ValueError, "t_min"),
    ],
)
def test_bad_input(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"score": mixture(VPSDE(), 2), "x": torch.zeros(2, 2)} | change
    score, x = arguments.pop("score"), arguments.pop("x")
    with pytest.raises(error, match=message):
        log_likelihood(score, x, **arguments)


def test_a_single_fresh_probe_has_an_error_bar_too() -> None:
    score = mixture(VPSDE(), 16, "anisotropic")
    point = score.sample(1, 0.0, seeded(1), dtype=torch.float64)
    x = point.expand(200, 16).contiguous()
    result = log_likelihood(score, x, trace=Hutchinson(), generator=seeded(2))
    claimed = float(result.standard_error.square().mean().sqrt())
    assert 0.8 < claimed / float(result.log_prob.std()) < 1.6


class LargeErrors(Adams):
    """Adams with a given error estimate in nats."""

    estimate = 0.0

    def solve(self, *arguments: Any, **options: Any) -> Solution:
        solution = super().solve(*arguments, **options)
        return replace(solution, error=torch.full_like(solution.error, self.estimate))


@pytest.mark.parametrize(("part", "converged"), [(0.8, True), (1.2, False)])
def test_errors_above_ten_tolerances_have_not_converged(part: float, converged: bool) -> None:
    score = mixture(VPSDE(), 2, "smooth")
    x = torch.tensor([[0.3, -0.2], [4.0, 4.0]], dtype=torch.float64)
    log_prob = score.log_prob(x, score.sde.t_min)
    for row, size in zip(x.split(1), log_prob.abs().clamp(min=2 * math.log(2)), strict=True):
        solver = LargeErrors()
        object.__setattr__(solver, "estimate", part * 10 * 1e-3 * float(size))
        result = log_likelihood(score, row, solver=solver, tolerance=1e-3)
        assert bool(result.converged) is converged
        assert solver.estimate <= float(result.solver_error) < 1.01 * solver.estimate


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["VP", "VE"])
def test_the_typical_density_is_that_of_a_gaussian(sde: GaussianSDE) -> None:
    covariance = torch.diag(torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64))
    data = GaussianMixture(torch.ones(1), torch.zeros(1, 3), covariance[None], sde)
    at = sde.alpha(sde.t_min) ** 2 * covariance + sde.sigma(sde.t_min) ** 2 * torch.eye(3)
    gaussian = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), at)
    expected = -float(gaussian.entropy())
    assert _typical(probability_flow(data, (3,))) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("d", "tolerance", "trace"),
    [
        (1, 1e-3, ExactTrace()),
        (64, 1.0, ExactTrace()),  # however coarse
        (65, 1.0, Hutchinson(probes=2)),
        (418, 1e-3, ExactTrace()),  # (0.35/tolerance)²/d probes would cost more: d <= 0.7 of them
        (419, 1e-3, Hutchinson(probes=2)),
        (4183, 1e-4, ExactTrace()),
        (4184, 1e-4, Hutchinson(probes=2)),
    ],
)
def test_the_cheaper_trace_is_chosen(d, tolerance, trace):
    assert _default_trace(d, tolerance) == trace


def test_the_budget_far_off_gaussian_data_is_the_resolution_of_the_depth():
    """The flow is constant: the error is ⅔ of the tolerance per bit below typical log p."""
    score = GaussianMixture(torch.ones(1), torch.zeros(1, 3), torch.eye(3)[None], VPSDE())
    x = torch.tensor([[0.5, 0.0, 0.0], [30.0, 0.0, 0.0]], dtype=torch.float64)
    near, far = log_likelihood(score, x, tolerance=1e-3).solver_error.tolist()
    depth = -1.5 * math.log(2 * math.pi * math.e) - float(score.log_prob(x)[1])
    assert near == pytest.approx(0.25 * 1e-3 * 3 * math.log(2), rel=0.02)
    assert far == pytest.approx(2 / 3 * 1e-3 * depth, rel=0.02)


def test_the_stiffness_is_taken_out_beyond_one_chunk_of_products():
    """A thin sheet in 70 dimensions, seen from beside it: a hundred evaluations, not thousands."""
    d, generator = 70, seeded(0)
    turned = torch.linalg.qr(torch.randn(2, d, d, generator=generator, dtype=torch.float64))[0]
    stds = torch.full((d,), 0.03, dtype=torch.float64)
    stds[:5] = 0.5
    covariances = turned @ torch.diag(stds**2) @ turned.mT
    means = torch.randn(2, d, generator=generator, dtype=torch.float64) / d**0.5
    score = GaussianMixture(torch.ones(2), means, 0.5 * (covariances + covariances.mT), VPSDE())
    x = means[:1] + 0.5 * torch.randn(1, d, generator=generator, dtype=torch.float64)
    result = log_likelihood(score, x, trace=ExactTrace(chunk=32))
    assert bool(result.converged)
    assert int(result.evaluations) < 200
    truth = score.log_prob(x, result.t_min)
    assert float((result.log_prob - truth).abs()) < float(result.error)


@pytest.mark.parametrize(
    ("d", "trace", "solver", "size"),
    [
        (400, ExactTrace(), Adams(), 2**26 // 400**2),
        (1024, ExactTrace(), Adams(), 64),
        (1025, ExactTrace(), Adams(), 100_000),  # no Jacobian is kept
        (400, Hutchinson(), Adams(), 100_000),
        (400, ExactTrace(), TorchDiffEq(), 100_000),
        (2, ExactTrace(), Adams(), 100_000),
    ],
    ids=str,
)
def test_jacobians_bound_the_batch_size(d, trace, solver, size):
    assert _batch_size(d, trace, solver, 100_000) == size


def test_local_coordinates_only_where_the_solver_uses_them():
    """The Jacobian is computed for solvers that step in local coordinates, and for no other."""
    asked = []

    class Noted(ExactTrace):
        def linearize(self, *arguments, **options):
            asked.append(True)
            return super().linearize(*arguments, **options)

    score = GaussianMixture(torch.ones(1), torch.ones(1, 3), torch.eye(3)[None], VPSDE())
    for options in ({"solver": TorchDiffEq()}, {"method": PathIntegral()}):
        log_likelihood(score, torch.zeros(2, 3), trace=Noted(), **options)
        assert not asked
    log_likelihood(score, torch.zeros(2, 3), trace=Noted())
    assert asked
