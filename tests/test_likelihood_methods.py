"""The density estimators beside the flow, against closed forms: values, budgets, independence."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
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
    SubVPSDE,
    log_likelihood,
)
from scoresde._core.counter_rng import CounterRNG
from scoresde.likelihood import (
    FlowIntegral,
    ItoEstimate,
    Likelihood,
    Method,
    MethodComparison,
    PathIntegral,
    VariationalBound,
)
from scoresde.likelihood import variational_bound as bound
from scoresde.likelihood.path_integral import _discrepancy, _rule
from scoresde.traces import ExactTrace, Hutchinson

SDES = (VPSDE(), SubVPSDE(), VESDE())
METHODS = (PathIntegral(), VariationalBound(samples=16))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covariances(kind: str, count: int, d: int, generator: torch.Generator) -> Tensor:
    """Covariances ``(count, d, d)``: isotropic, thin (std 0.02) or stretched from 0.05 to 0.5."""
    std = {"smooth": 0.5, "thin": 0.02}.get(kind)
    if std is not None:
        return std**2 * torch.eye(d, dtype=torch.float64).expand(count, d, d)
    rotation = torch.linalg.qr(torch.randn(count, d, d, generator=generator, dtype=torch.float64))[
        0
    ]
    stds = torch.logspace(math.log10(0.05), math.log10(0.5), d, dtype=torch.float64)
    return rotation @ torch.diag(stds**2) @ rotation.mT


def mixture(sde: GaussianSDE, d: int, kind: str = "smooth", seed: int = 0) -> GaussianMixture:
    generator = seeded(seed)
    means = 0.5 * torch.randn(4, d, generator=generator, dtype=torch.float64)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    return GaussianMixture(weights, means, covariances(kind, 4, d, generator), sde)


def off(result: Likelihood, score: GaussianMixture) -> Tensor:
    """Error in nats against the closed form, with its sign."""
    return result.log_prob.double() - score.log_prob(result.points.double(), result.t_min)


def bit(d: int) -> float:
    """One bit per dimension in nats."""
    return d * math.log(2)


# --- the path integral


@pytest.mark.parametrize("kind", ["smooth", "thin", "anisotropic"])
@pytest.mark.parametrize("d", [1, 2, 16])
@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_path_closed_form(sde: GaussianSDE, d: int, kind: str) -> None:
    score = mixture(sde, d, kind)
    x = score.sample(16, sde.t_min, seeded(1), dtype=torch.float64)
    result = log_likelihood(score, x, method=PathIntegral())
    assert off(result, score).abs().max() < 1e-3 * bit(d)
    assert result.converged.all()
    assert result.solver_error.max() <= 1e-3 * bit(d)
    assert result.evaluations.max() <= 200
    assert not result.standard_error.any()


def test_path_in_float32() -> None:
    score = mixture(VPSDE(), 16, "anisotropic")
    x = score.sample(16, 1e-5, seeded(1), dtype=torch.float32)
    result = log_likelihood(score, x, method=PathIntegral())
    assert result.log_prob.dtype == result.latent.dtype == torch.float32
    assert off(result, score).abs().max() < 1e-3 * bit(16)


def test_path_budget_covers_the_error() -> None:
    """Apart from the distribution at T, which is not Gaussian, by up to 1e-5 bits/dim."""
    inside, spent = [], []
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4):
        for kind in ("thin", "anisotropic"):
            for sde in SDES:
                score = mixture(sde, 3, kind, seed=1)
                x = score.sample(16, sde.t_min, seeded(2), dtype=torch.float64)
                result = log_likelihood(score, x, tolerance=tolerance, method=PathIntegral())
                inside.append(off(result, score).abs() <= result.solver_error + 1e-5 * bit(3))
                spent.append(float(result.evaluations.double().mean()))
    assert torch.cat(inside).double().mean() >= 0.95
    assert sum(spent[:6]) < sum(spent[-6:])


def test_path_off_the_data() -> None:
    score = mixture(VPSDE(), 2, "thin")
    x = score.sample(32, 0.0, seeded(1), dtype=torch.float64)
    x = x + torch.tensor([0.1, 0.5]).repeat(16)[:, None] * torch.randn(32, 2, generator=seeded(2))
    result = log_likelihood(score, x, method=PathIntegral())
    covered = off(result, score).abs() <= result.solver_error
    assert (covered | ~result.converged).double().mean() >= 0.95
    assert result.converged.double().mean() >= 0.9
    assert result.evaluations.max() <= 2000


def test_kronrod_rule() -> None:
    """Exact to degree 22, and the Gauss rule inside it to degree 13, but no further."""
    kronrod, gauss, nodes = _rule(torch.zeros(1, dtype=torch.float64))
    for degree in range(23):
        integral = 0.0 if degree % 2 else 2 / (degree + 1)
        assert abs(float(kronrod @ nodes**degree) - integral) < 1e-14
        if degree <= 13:
            assert abs(float(gauss @ nodes**degree) - integral) < 1e-14
    assert abs(float(kronrod @ nodes**24) - 2 / 25) > 1e-13
    assert abs(float(gauss @ nodes**14) - 2 / 15) > 1e-6


def test_the_error_of_a_rule_is_in_the_unit_of_the_integrand() -> None:
    kronrod, gauss, nodes = _rule(torch.zeros(1, dtype=torch.float64))
    values = torch.stack([torch.exp(2 * nodes), (nodes - 0.3).abs(), torch.ones_like(nodes)])
    error = _discrepancy(values, kronrod, gauss)
    torch.testing.assert_close(_discrepancy(1e4 * values, kronrod, gauss), 1e4 * error)
    torch.testing.assert_close(_discrepancy(1e-4 * values, kronrod, gauss), 1e-4 * error)
    exact = torch.tensor([math.sinh(2.0), 0.5 * (1.3**2 + 0.7**2), 2.0], dtype=torch.float64)
    assert bool(((kronrod * values).sum(1) - exact <= error + 1e-13).all())
    assert float(error[1]) < 0.1


@pytest.mark.parametrize(("kind", "probes"), [("anisotropic", 1), ("anisotropic", 2), ("thin", 2)])
def test_path_noise(kind: str, probes: int) -> None:
    """300 repeats: no bias (false alarm 6e-5), the standard error right in the mean square."""
    score = mixture(VPSDE(), 16, kind)
    x = score.sample(1, 0.0, seeded(1), dtype=torch.float64).expand(300, 16).contiguous()
    result = log_likelihood(
        score, x, method=PathIntegral(), trace=Hutchinson(probes=probes), generator=seeded(2)
    )
    noise = off(result, score)
    reported = result.standard_error.square().mean().sqrt()
    assert abs(float(noise.mean())) < 4 * float(noise.std()) / math.sqrt(300) + 1e-3 * bit(16)
    assert 0.85 < float(reported / noise.square().mean().sqrt()) < 1.18
    assert (noise.abs() <= 2 * result.error).double().mean() > 0.9


def test_path_probes_are_fresh_at_every_node() -> None:
    drawn: list[tuple[int, int]] = []

    class RecordingHutchinson(Hutchinson):
        def __call__(
            self,
            field: Callable[[Tensor], Tensor],
            x: Tensor,
            rng: CounterRNG,
            *,
            differentiable: bool = False,
        ) -> tuple[Tensor, Tensor]:
            drawn.extend(zip(rng.seeds.tolist(), rng.counter.tolist(), strict=True))
            return super().__call__(field, x, rng, differentiable=differentiable)

    score = mixture(VPSDE(), 2, "thin")
    x = score.sample(4, 0.0, seeded(1), dtype=torch.float64)
    result = log_likelihood(
        score, x, method=PathIntegral(), trace=RecordingHutchinson(), generator=seeded(2)
    )
    assert len(drawn) == len(set(drawn)) == int(result.evaluations.sum()) > 4 * 15


def test_path_for_a_general_sde() -> None:
    """dx = −x dt + √2 dw from N(0, ¼), given by drift and diffusion alone."""

    class Relaxation(SDE):
        def drift(self, x: Tensor, t: float | Tensor) -> Tensor:
            return -x

        def diffusion(self, t: float | Tensor) -> Tensor:
            return torch.full_like(torch.as_tensor(t, dtype=torch.float64), math.sqrt(2.0))

    def variance(t: Tensor) -> Tensor:
        return 1 - 0.75 * torch.exp(-2 * torch.as_tensor(t, dtype=torch.float64))

    score = FunctionScore(lambda x, t: -x / variance(t).reshape(-1, 1), Relaxation())
    x = torch.randn(5, 3, generator=seeded(1), dtype=torch.float64)

    def marginal(t: float) -> Independent:
        std = torch.full((3,), 1.0, dtype=torch.float64) * variance(torch.tensor(t)).sqrt()
        return Independent(Normal(torch.zeros_like(std), std), 1)

    result = log_likelihood(score, x, prior=marginal(1.0), method=PathIntegral())
    assert torch.allclose(result.log_prob, marginal(1e-5).log_prob(x), atol=1e-5)
    with pytest.raises(TypeError, match="method: expected FlowIntegral"):
        log_likelihood(score, x, prior=marginal(1.0), method=VariationalBound())


def test_path_fails_row_by_row() -> None:
    good = mixture(VPSDE(), 2, "thin")

    def broken(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 4.0, torch.nan, good(x, t))

    score = FunctionScore(broken, good.sde, moments=good.moments)
    x = torch.cat([good.sample(3, 0.0, seeded(1)), torch.tensor([[9.0, 0.0]])])
    result = log_likelihood(score, x, method=PathIntegral())
    assert result.converged.tolist() == [True, True, True, False]
    assert result.solver_error[3].isinf()
    short = log_likelihood(score, x[:3], method=PathIntegral(max_evaluations=45))
    assert not short.converged.any()
    assert (short.evaluations <= 45).all()
    assert short.log_prob.isfinite().all()


# --- the bound


@pytest.mark.parametrize("kind", ["smooth", "anisotropic"])
@pytest.mark.parametrize("d", [1, 2, 16])
@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_bound_of_a_true_score(sde: GaussianSDE, d: int, kind: str) -> None:
    """200 repeats at one point: the mean is log p (false alarm 6e-5), the standard error right."""
    score = mixture(sde, d, kind)
    x = score.sample(1, 0.0, seeded(1), dtype=torch.float64).expand(200, d).contiguous()
    result = bound(score, x, samples=64, generator=seeded(2))
    noise = off(result, score)
    reported = result.standard_error.square().mean().sqrt()
    assert abs(float(noise.mean())) < 4 * float(noise.std()) / math.sqrt(200)
    assert 0.75 < float(reported / noise.std()) < 1.33
    assert result.evaluations.eq(64).all()
    assert not result.divergences.any()


@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_bound_of_a_wrong_score(sde: GaussianSDE) -> None:
    """A score off by c/σ lies lower, on average over data, by |c|² per unit of λ, exactly."""
    true, c = mixture(sde, 2), torch.tensor([0.3, -0.2], dtype=torch.float64)
    wrong = FunctionScore(
        lambda x, t: true(x, t) + c / sde.sigma(t).reshape(-1, 1), sde, moments=true.moments
    )
    x = true.sample(300, sde.t_min, seeded(1), dtype=torch.float64)
    loss = -off(bound(wrong, x, samples=64, generator=seeded(2)), true)
    length = float(sde.half_logsnr(sde.t_min) - sde.half_logsnr(sde.T))
    expected = float(c.square().sum()) * length
    noise = float(loss.std()) / math.sqrt(300)
    assert expected > 8 * noise
    assert abs(float(loss.mean()) - expected) < 4 * noise + 1e-3


def test_antithetic_pairs_reduce_the_variance() -> None:
    """As κ → 0 the integrand for a single ε grows as 1/κ; its mean over ±ε does not."""
    score = mixture(VPSDE(), 2)
    x = score.sample(100, 0.0, seeded(1), dtype=torch.float64)
    noise = off(bound(score, x, samples=64, generator=seeded(2)), score)
    assert noise.square().mean().sqrt() < 0.12 * bit(2)


def test_bound_with_another_prior() -> None:
    """A prior twice as wide costs its relative entropy to N(0, 1): d (ln 2 − 3/8)."""
    score = mixture(VPSDE(), 2)
    x = score.sample(1, 0.0, seeded(1), dtype=torch.float64).expand(300, 2).contiguous()
    wide = Independent(Normal(torch.zeros(2), torch.full((2,), 2.0)), 1)
    noise = off(bound(score, x, samples=64, prior=wide, generator=seeded(2)), score)
    noise = noise + 2 * (math.log(2) - 3 / 8)
    assert abs(float(noise.mean())) < 4 * float(noise.std()) / math.sqrt(300) + 1e-3


def test_bound_returns_the_mean_at_the_end() -> None:
    score = mixture(VPSDE(), 2, "smooth")
    x = score.sample(3, 0.0, seeded(1), dtype=torch.float64)
    latent = log_likelihood(score, x, method=VariationalBound(), generator=seeded(2)).latent
    scale = score.sde.alpha(score.sde.T) / score.sde.alpha(score.sde.t_min)
    torch.testing.assert_close(latent, scale * x)


def test_bound_of_a_gaussian_has_no_noise() -> None:
    score = GaussianMixture(
        torch.ones(1), torch.ones(1, 3), torch.diag(torch.tensor([0.1, 1.0, 4.0]))[None], SubVPSDE()
    )
    x = score.sample(8, 0.0, seeded(1), dtype=torch.float64)
    result = bound(score, x, samples=16, generator=seeded(2))
    assert off(result, score).abs().max() < 1e-6
    assert result.standard_error.max() < 1e-6


# --- comparison of methods


def test_comparison_is_each_method_alone() -> None:
    """The same numbers as alone, batch by batch; gaps and budgets by their definition."""
    score = mixture(VPSDE(), 3, "anisotropic")
    x = score.sample(5, 0.0, seeded(1), dtype=torch.float64)
    methods = (FlowIntegral(), PathIntegral(), VariationalBound(samples=8), ItoEstimate(4, 2))
    trace = Hutchinson(probes=2)
    together = log_likelihood(
        score, x, method=MethodComparison(methods), trace=trace, generator=seeded(2), batch_size=2
    )
    alone = [log_likelihood(score, x, method=m, trace=trace, generator=seeded(2)) for m in methods]
    for one, other in zip(together.results, alone, strict=True):
        assert torch.allclose(one.log_prob, other.log_prob, rtol=0, atol=1e-6)
        assert torch.allclose(one.standard_error, other.standard_error, rtol=0, atol=1e-6)
    assert torch.equal(together.log_prob, together.results[0].log_prob)
    assert torch.equal(together.points, x)
    for k in range(4):
        assert torch.equal(together.gaps[k], together.results[k].log_prob - together.log_prob)
        assert torch.equal(together.gap_errors[k], together.results[k].error + together.error)
    lines = repr(together).splitlines()
    assert [line.split()[0] for line in lines[2:]] == [type(m).__name__ for m in methods]
    bits = together.results[1].bits_per_dim().mean()
    assert f"{bits:.4f}" in lines[3]


def test_gaps_distinguish_a_true_score_from_an_inconsistent_one() -> None:
    score = mixture(VPSDE(), 2, "anisotropic")
    skew = torch.tensor([[0.0, 0.5], [-0.5, 0.0]], dtype=torch.float64)
    inconsistent = FunctionScore(
        lambda x, t: score(x, t) + x @ skew, score.sde, moments=score.moments
    )
    x = score.sample(8, 0.0, seeded(1), dtype=torch.float64)

    def unexplained(score: GaussianMixture | FunctionScore) -> Tensor:
        result = log_likelihood(score, x, method=MethodComparison(), generator=seeded(2))
        return (result.gaps.abs() > result.gap_errors).double().mean(1)

    true, wrong = unexplained(score), unexplained(inconsistent)
    assert true[1] == 0
    assert true[2] <= 0.5  # the bound's standard error is that of few strata
    assert wrong[1] > 0.5
    assert wrong[0] == 0


# --- all of them


def test_bits_of_quantized_points_are_refused() -> None:
    """With and without levels; the log-densities themselves, and the repr, are available."""
    score = mixture(VPSDE(), 4)
    x = torch.randint(0, 256, (64, 4), generator=seeded(2)) / 127.5 - 1
    result = log_likelihood(score, x, method=PathIntegral(), tolerance=1.0)
    for levels, scale in ((None, None), (256, 2.0)):
        with pytest.raises(ValueError, match="dequantize"):
            result.bits_per_dim(levels=levels, scale=scale)
    assert "bits/dim" in repr(result)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_batch_independence(method: Method) -> None:
    score = mixture(VPSDE(), 3, "anisotropic")
    x = score.sample(7, 0.0, seeded(1), dtype=torch.float64)
    x[3] += 3.0  # a point that takes many steps
    trace = Hutchinson(probes=2)
    joint = log_likelihood(score, x, method=method, trace=trace, generator=seeded(3))
    chunked = log_likelihood(
        score, x, method=method, trace=trace, generator=seeded(3), batch_size=2
    )
    other = log_likelihood(score, x, method=method, trace=trace, generator=seeded(4))
    assert torch.allclose(joint.log_prob, chunked.log_prob, rtol=0, atol=1e-6)
    assert torch.equal(joint.evaluations, chunked.evaluations)
    assert not torch.allclose(joint.log_prob, other.log_prob, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_the_global_generator_does_not_change(method: Method) -> None:
    score = mixture(VPSDE(), 4)
    x = score.sample(2, 0.0, seeded(1))
    before = torch.get_rng_state()
    log_likelihood(score, x, method=method, trace=Hutchinson(), generator=seeded(2))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_conditions_follow_their_rows(method: Method) -> None:
    torch.manual_seed(0)
    network = MLP((2,), width=16, depth=1, classes=3)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    model = ScoreModel(network, VPSDE())
    x = torch.randn(1, 2, generator=seeded(1), dtype=torch.float64).expand(6, 2).contiguous()
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    # with the streams of the entire batch, so that the random numbers are the same
    together = log_likelihood(
        model.given(classes=labels), x, method=method, batch_size=4, generator=seeded(2)
    )
    for label in range(3):
        alone = log_likelihood(model.given(classes=label), x, method=method, generator=seeded(2))
        same = labels == label
        assert torch.allclose(alone.log_prob[same], together.log_prob[same], atol=1e-5)
        assert not torch.allclose(alone.log_prob[~same], together.log_prob[~same], atol=1e-5)


@pytest.mark.parametrize("method", [PathIntegral(), VariationalBound(samples=256)], ids=repr)
@pytest.mark.parametrize("shape", [(), (5,), (1, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_event_shapes(
    method: Method, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """A Gaussian of any event shape without its moments, so that the integral is not trivial."""
    d = math.prod(shape)
    sde = VPSDE()
    score = GaussianMixture(
        torch.ones(1), torch.full((1, *shape), 0.5), 0.09 * torch.eye(d)[None], sde
    ).to(device)
    score.moments = Moments().to(device)
    x = score.sample(2, 0.0, dtype=dtype, generator=seeded(1))
    result = log_likelihood(score, x, method=method, trace=ExactTrace(), generator=seeded(2))
    assert result.log_prob.shape == (2,)
    assert result.latent.shape == x.shape
    assert result.log_prob.dtype == result.latent.dtype == dtype
    assert result.log_prob.device == x.device
    slack = 6 * result.standard_error + 5e-3 * d
    assert (off(result, score).abs() < slack).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PathIntegral(max_evaluations=3), ValueError, "max_evaluations"),
        (lambda: PathIntegral(max_evaluations=50.0), TypeError, "max_evaluations"),
        (lambda: MethodComparison(()), ValueError, "methods: expected one or more"),
        (
            lambda: MethodComparison((FlowIntegral(), "path")),
            TypeError,
            r"methods\[1\]: expected a Method such as FlowIntegral\(\)",
        ),
        (lambda: VariationalBound(samples=6), ValueError, "samples: expected a multiple of 4"),
        (lambda: VariationalBound(samples=0), ValueError, "samples"),
        (lambda: VariationalBound(samples="many"), TypeError, "samples"),
        (lambda: bound(mixture(VPSDE(), 2), torch.zeros(3, 5)), ValueError, "x: expected shape"),
        (lambda: bound(nn.Linear(2, 2), torch.zeros(3, 2)), TypeError, "score: expected a Score"),
    ],
)
def test_bad_input(make: object, error: type[Exception], message: str) -> None:
    assert callable(make)
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "method",
    [
        FlowIntegral(),
        PathIntegral(),
        VariationalBound(samples=64),
        ItoEstimate(steps=32, samples=4),
    ],
    ids=repr,
)
def test_no_noise_is_drawn_twice(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every evaluation of a row's integrand has its own random numbers."""
    streams: list[tuple[int, int]] = []
    at = CounterRNG.at

    def recorded(self: CounterRNG, rows: Tensor | slice, counter: Tensor) -> CounterRNG:
        rng = at(self, rows, counter)
        streams.extend(zip(rng.seeds.tolist(), rng.counter.tolist(), strict=True))
        return rng

    monkeypatch.setattr(CounterRNG, "at", recorded)
    score = mixture(VPSDE(), 3, "thin")
    x = score.sample(3, 1e-5, seeded(1), dtype=torch.float64) + 1.0  # many bisections
    tolerance = 1e-8 if isinstance(method, PathIntegral) else 1e-4
    log_likelihood(score, x, method=method, trace=Hutchinson(2), tolerance=tolerance)
    assert len(streams) > 60
    assert len(set(streams)) == len(streams)
