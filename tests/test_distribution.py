"""A score as a torch distribution: log_prob and sample of one density."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Distribution,
    Independent,
    Normal,
    TransformedDistribution,
)

from scoresde import (
    VESDE,
    VPSDE,
    Ancestral,
    GaussianMixture,
    GaussianSDE,
    Moments,
    ScoreModel,
    SubVPSDE,
    log_likelihood,
    sample,
)
from scoresde.likelihood import PathIntegral, ScoreDistribution
from scoresde.traces import Hutchinson

MEANS = (-1.0, 0.5)
STDS = (0.1, 0.4)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def line(sde: GaussianSDE) -> GaussianMixture:
    """Two modes of equal weight on the line, for comparison with SciPy."""
    covariances = torch.tensor(STDS, dtype=torch.float64).square().reshape(2, 1, 1)
    means = torch.tensor(MEANS, dtype=torch.float64)[:, None]
    return GaussianMixture(torch.ones(2), means, covariances, sde)


def image(shape: tuple[int, ...] = (1, 2, 2)) -> GaussianMixture:
    d = math.prod(shape)
    means = torch.stack([torch.full(shape, -0.5), torch.full(shape, 0.5)])
    return GaussianMixture(torch.ones(2), means, 0.1 * torch.eye(d).expand(2, d, d), VPSDE())


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=repr)
def test_samples_have_the_distribution(sde: GaussianSDE, known: bool) -> None:
    """Kolmogorov–Smirnov against SciPy's mixture at level 1e-3, with a fixed seed."""
    score = line(sde)
    if not known:
        score.moments = Moments()
    x = ScoreDistribution(score, (1,), generator=seeded(1), dtype=torch.float64).sample((500,))
    alpha, sigma = float(sde.alpha(sde.t_min)), float(sde.sigma(sde.t_min))
    parts = [
        stats.norm(alpha * m, math.hypot(alpha * s, sigma))
        for m, s in zip(MEANS, STDS, strict=True)
    ]
    test = stats.kstest(x[:, 0].numpy(), lambda v: sum(part.cdf(v) for part in parts) / 2)
    assert test.pvalue > 1e-3
    wrong = stats.kstest(x[:, 0].numpy(), stats.norm(*stats.norm.fit(x.numpy())).cdf)
    assert wrong.pvalue < 1e-3  # moments alone don't pass


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("shape", [(), (2,), (1, 2, 2)], ids=str)
def test_shapes(lead: tuple[int, ...], shape: tuple[int, ...]) -> None:
    score = image(shape)
    p = ScoreDistribution(score, shape, generator=seeded(1))
    assert p.batch_shape == ()
    assert p.event_shape == shape
    x = p.sample(lead)
    assert x.shape == (*lead, *shape)
    assert x.dtype == torch.get_default_dtype()
    value = p.log_prob(x)
    assert value.shape == lead
    truth = score.log_prob(x.reshape(-1, *shape), 1e-5).reshape(lead)
    assert torch.allclose(value, truth, rtol=0, atol=1e-3 * math.log(2) * math.prod(shape))


def test_an_empty_sample() -> None:
    assert ScoreDistribution(image((2,)), (2,)).sample((0, 3)).shape == (0, 3, 2)


def test_settings_are_those_of_log_likelihood() -> None:
    score = image()
    x = score.sample(3, 0.0, seeded(1), dtype=torch.float64)
    settings = {"method": PathIntegral(), "trace": Hutchinson(probes=2), "t_min": 1e-3}
    p = ScoreDistribution(score, (1, 2, 2), batch_size=2, tolerance=1e-2, **settings)
    result = log_likelihood(score, x, tolerance=1e-2, generator=seeded(2), **settings)
    assert torch.allclose(p.log_prob(x, seeded(2)), result.log_prob, rtol=0, atol=1e-6)
    budget = p.likelihood(x, seeded(2))
    assert torch.allclose(budget.standard_error, result.standard_error, rtol=0, atol=1e-6)
    assert budget.t_min == 1e-3


def test_generators_and_the_global_state() -> None:
    """That of the call, of the distribution, or the global one, in this order."""
    score = image((2,))
    score.moments = Moments()  # so that the prior, of torch, draws globally
    p = ScoreDistribution(score, (2,), trace=Hutchinson(), generator=seeded(1))
    before = torch.get_rng_state()
    first, second = p.sample((2,)), p.sample((2,))
    again = p.sample((2,), generator=seeded(1))
    p.log_prob(first)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    free = ScoreDistribution(score, (2,))
    torch.manual_seed(3)
    one = free.sample((2,))
    torch.manual_seed(3)
    assert torch.equal(one, free.sample((2,)))


def test_a_custom_sampler() -> None:
    score = line(VPSDE())
    p = ScoreDistribution(
        score, (1,), partial(sample, sampler=Ancestral(), steps=20), generator=seeded(1)
    )
    x = p.sample((4, 5))
    direct = sample(score, (20, 1), Ancestral(), steps=20, generator=seeded(1))
    assert torch.equal(x, direct.reshape(4, 5, 1))


def test_prior_of_sample_and_log_prob() -> None:
    """With a network that returns zero, y = x/α is constant: the density is the prior's image."""

    class Zero(nn.Module):
        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            return torch.zeros_like(x)

    sde = VESDE()
    prior = Independent(Normal(torch.full((2,), 3.0), torch.full((2,), 0.5)), 1)
    p = ScoreDistribution(
        ScoreModel(Zero(), sde), (2,), prior=prior, tolerance=1e-4, generator=seeded(1)
    )
    x = p.sample((400,))
    assert torch.allclose(x.mean(0), torch.full((2,), 3.0), atol=0.1)
    assert torch.allclose(x.std(0), torch.full((2,), 0.5), atol=0.07)
    assert torch.allclose(p.log_prob(x[:8]), prior.log_prob(x[:8]), atol=1e-3)


def test_it_works_as_a_torch_distribution() -> None:
    score = line(VPSDE())
    p = ScoreDistribution(score, (1,), tolerance=1e-2, generator=seeded(1))
    assert isinstance(p, Distribution)
    assert p.support.check(torch.zeros(3, 1)).all()
    moved = TransformedDistribution(p, [AffineTransform(5.0, 2.0, event_dim=1)])
    y = moved.sample((6,))
    truth = score.log_prob((y - 5) / 2, 1e-5) - math.log(2)
    assert torch.allclose(moved.log_prob(y), truth, atol=1e-2)
    three = p.expand((3,))
    assert three.batch_shape == (3,)
    assert three.sample((2,)).shape == (2, 3, 1)
    x = torch.tensor([[-1.0], [0.0], [0.5]])
    assert torch.allclose(three.log_prob(x), p.log_prob(x), atol=1e-6)
    assert three.log_prob(x[0]).shape == (3,)
    joint = Independent(three, 1)
    assert joint.event_shape == (3, 1)
    assert torch.allclose(joint.log_prob(x), p.log_prob(x).sum(), atol=1e-5)


def test_repr() -> None:
    text = repr(ScoreDistribution(image(), (1, 2, 2)))
    assert "event_shape=(1, 2, 2)" in text
    assert "VPSDE" in text


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"score": nn.Linear(2, 2)}, TypeError, "score: expected a Score"),
        ({"event_shape": (2, 0)}, ValueError, r"event_shape\[1\]"),
        ({"event_shape": 2}, TypeError, "event_shape"),
        ({"sampler": Ancestral()}, TypeError, "partial"),
        ({"tolerance": -1.0}, ValueError, "tolerance"),
    ],
)
def test_bad_settings(settings: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"score": image((2,)), "event_shape": (2,)} | settings
    with pytest.raises(error, match=message):
        ScoreDistribution(**arguments)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.zeros(3), ValueError, "must match"),
        (torch.zeros(4, 3), ValueError, "must match"),
        (torch.full((1, 2), math.nan), ValueError, "support"),
        (torch.zeros(2, dtype=torch.int64), TypeError, "value: expected a floating"),
        ([0.0, 0.0], TypeError, "value"),
    ],
)
def test_bad_values(value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ScoreDistribution(image((2,)), (2,)).log_prob(value)
