r"""The properties of likelihood methods: densities of known distributions, error budgets.

Scores of mixtures are exact, so that every method, whichever density it estimates, has the same
correct value in closed form. Stochastic methods are compared in the mean of many repetitions.
"""

# ruff: noqa: ARG001 - tests, fields and strategies take the arguments of their family

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from scoresde._core.random import normal
from scoresde.likelihood import Likelihood, Method, log_likelihood
from scoresde.scores import FunctionScore
from scoresde.scores.gaussian_mixture import GaussianMixture
from scoresde.sdes import VESDE, GaussianSDE
from scoresde.testing.properties import PropertySuite, Report, close, documents, holds
from scoresde.testing.sampler_contract import diffusions, one_gaussian, source
from scoresde.testing.strategies import dtypes, event_shapes, seeds
from scoresde.traces import Hutchinson

LIKELIHOODS = PropertySuite("likelihood method")
"""The properties of likelihood methods."""

_REPEATS = 200
"""Repetitions of a point, for stochastic methods."""

_DEVIATIONS = 8.0
"""Tolerance of their mean in standard errors: false alarms 1e-7, for skewed noise too."""

_TOLERANCE, _FACTOR = 1e-3, 10.0
"""The tolerance passed to a method, in bits per dimension, and the allowed error in units of it."""


@documents(method="the method, or a strategy that draws some.")
def check_likelihood(
    method: Method | st.SearchStrategy[Method],
    *,
    seed: int = 0,
    examples: int | None = None,
    only: str | Sequence[str] | None = None,
) -> Report:
    """Check that a likelihood method has the properties of likelihood methods.

    Example:
        >>> from scoresde.likelihood import PathIntegral
        >>> check_likelihood(PathIntegral(), only="closed form")
        <Report: 1 of 1 hold>
    """  # noqa: DOC201 - see the decorator
    return LIKELIHOODS.check(method, seed=seed, examples=examples, only=only)


# --- densities in closed form


def mixture(sde: GaussianSDE, d: int, seed: int, narrowest: float = 0.1) -> GaussianMixture:
    """Return three Gaussians with means within 1.5 and widths from ``narrowest`` to 0.8."""
    means = 3 * torch.rand((3, d), generator=source(seed), dtype=torch.float64) - 1.5
    rotations = torch.linalg.qr(
        normal((3, d, d), generator=source(seed + 1), dtype=torch.float64)
    ).Q
    parts = torch.rand((3, 1, d), generator=source(seed + 2), dtype=torch.float64)
    covariances = (rotations * (narrowest * (0.8 / narrowest) ** parts) ** 2) @ rotations.mT
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return GaussianMixture(weights, means, 0.5 * (covariances + covariances.mT), sde)


def _allowed(d: int) -> float:
    """The allowed error of log p, in nats."""
    return _FACTOR * _TOLERANCE * d * math.log(2)


def _log_likelihood(method: Any, score: Any, x: Tensor, seed: int, **options: Any) -> Likelihood:
    return log_likelihood(
        score, x, method=method, tolerance=_TOLERANCE, generator=source(seed), **options
    )


def _repeated(method: Any, score: Any, x: Tensor, seed: int, **options: Any) -> Any:
    """Return log p of every point, its tolerance for noise, bias and error budget, and the result.

    A stochastic method is repeated 200 times for each point. The tolerance includes half the
    variance, the bias of the logarithm of an unbiased estimate.
    """
    first = _log_likelihood(method, score, x, seed, **options)
    if not bool((first.standard_error > 0).any()):
        return first.log_prob, first.solver_error, first
    result = _log_likelihood(method, score, x.repeat_interleave(_REPEATS, 0), seed, **options)
    values, errors = (
        v.unflatten(0, (len(x), _REPEATS)) for v in (result.log_prob, result.standard_error)
    )
    noise = _DEVIATIONS * values.std(1) / _REPEATS**0.5 + errors.square().mean(1)
    error = noise + result.solver_error.unflatten(0, (len(x), _REPEATS)).mean(1)
    return values.mean(1), error, result


def dimensions(method: object = None) -> st.SearchStrategy[int]:
    """Draw a number of dimensions."""
    return st.sampled_from([2, 1, 5])


@LIKELIHOODS.property(
    "shapes",
    "x (n, *event) of any event shape gives one log p for each sample, in its dtype; x is not "
    "modified",
    "a sum over the wrong axes; a mean instead of a sum; a Jacobian that includes the batch",
    examples=6,
    sde=diffusions,
    event_shape=event_shapes,
    dtype=dtypes,
    seed=seeds,
)
def shapes(
    method: Any, sde: GaussianSDE, event_shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    """On N(½, 0.3² I) every method is exact up to the tolerance, stochastic or not."""
    score = one_gaussian(sde, event_shape)
    x = score.sample(2, sde.t_min, source(seed), dtype)
    before, d = x.clone(), math.prod(event_shape)
    result = _log_likelihood(method, score, x, seed)
    for name in ("log_prob", "standard_error", "solver_error"):
        value = getattr(result, name)
        found, wanted = (tuple(value.shape), value.dtype), ((2,), dtype)
        holds(found == wanted, f"{name} is {found}, expected {wanted}")
    found, wanted = (tuple(result.latent.shape), result.latent.dtype), (tuple(x.shape), dtype)
    holds(found == wanted, f"latent is {found}, expected {wanted}")
    for name, kind in (("converged", torch.bool), ("evaluations", torch.int64)):
        value = getattr(result, name)
        holds(value.dtype == kind, f"{name} is {value.dtype}, expected {kind}")
    holds(result.converged.all(), "not converged on a single Gaussian")
    close("x, after the call,", x, before)
    exact = score.log_prob(x.double(), result.t_min)
    # single precision: x, and so its distance to the center, has seven digits
    allowed = _allowed(d) + 2 * result.error.double() + (dtype == torch.float32) * 1e-4 * d
    close("log p", result.log_prob, exact, atol=allowed)


@LIKELIHOODS.property(
    "closed form",
    "log p of a mixture is that of its closed form, for a stochastic method in the mean",
    "the sign of the divergence; ½ g² instead of g² or the reverse; the prior at another time; "
    "log|det| left out",
    examples=4,
    sde=diffusions,
    d=dimensions,
    seed=seeds,
)
def closed_form(method: Any, sde: GaussianSDE, d: int, seed: int) -> None:
    """Two points, within ten times the tolerance plus the reported error.

    For a stochastic method the mean of 200 repetitions is allowed 8 standard errors more, and the
    bias of a logarithm.
    """
    score = mixture(sde, d, seed)
    x = score.sample(2, sde.t_min, source(seed + 3), torch.float64)
    value, error, result = _repeated(method, score, x, seed)
    holds(result.converged.all(), "not converged on points of the data")
    close("log p", value, score.log_prob(x, result.t_min), atol=_allowed(d) + error)


@LIKELIHOODS.property(
    "normalization",
    "∫ p dx = 1, in one dimension and in two",
    "a missing factor 2π or T; bits instead of nats; a divergence that is counted twice",
    examples=2,
    d=lambda method: st.sampled_from([1, 2]),
    sde=diffusions,
    seed=seeds,
)
def normalization(method: Any, d: int, sde: GaussianSDE, seed: int) -> None:
    """The trapezoidal rule over [−6, 6]ᵈ, whose error is below 1e-3.

    Allowed are the tolerance, 8 standard errors of the sum, and the bias of e^noise.
    """
    score = mixture(sde, d, seed, narrowest=0.4)
    axis = torch.linspace(-6, 6, 61 if d == 1 else 31, dtype=torch.float64)
    x = torch.cartesian_prod(*[axis] * d).reshape(-1, d)
    dense = x[score.log_prob(x, sde.t_min) > -20]  # the others have a mass of less than 1e-6
    result = log_likelihood(score, dense, method=method, tolerance=1e-2, generator=source(seed))
    cell = float(axis[1] - axis[0]) ** d
    p, noise = cell * result.log_prob.exp(), result.standard_error
    error = (p * (noise.square() + result.solver_error.clamp(max=1))).sum()
    error = error + _DEVIATIONS * (p * noise).square().sum().sqrt()
    close("∫ p dx", p.sum(), 1.0, atol=1e-3 + 0.01 * d + float(error))


@LIKELIHOODS.property(
    "change of variables",
    "data y = a R x + b, under the diffusion in the same units, have log p(y) = log p(x) − d log a",
    "an absolute tolerance that presumes data of size 1; a clamp; a log σ without its unit",
    examples=3,
    scale=lambda method: st.sampled_from([0.01, 0.1, 10.0, 100.0]),
    shift=lambda method: st.sampled_from([-2.0, 0.0, 5.0]),
    seed=seeds,
)
def change_of_variables(method: Any, scale: float, shift: float, seed: int) -> None:
    """Two points of a mixture and of its image."""
    low, high = 0.01, 50.0
    original = mixture(VESDE(low, high), 2, seed)
    rotation = torch.linalg.qr(normal((2, 2), generator=source(seed), dtype=torch.float64)).Q
    covariances = scale**2 * rotation @ original.covariances.double() @ rotation.mT
    image = GaussianMixture(
        original.weights.double(),
        scale * (original.means.double() @ rotation.mT + shift),
        0.5 * (covariances + covariances.mT),
        VESDE(scale * low, scale * high),
    )
    x = original.sample(2, 0.0, source(seed + 3), torch.float64)
    y = scale * (x @ rotation.mT + shift)
    (of_x, error_x, _), (of_y, error_y, _) = (
        _repeated(method, score, points, seed) for score, points in ((original, x), (image, y))
    )
    expected = of_x - 2 * math.log(scale)
    close("log p(y)", of_y, expected, atol=2 * _allowed(2) + error_x + error_y)


@LIKELIHOODS.property(
    "batch independence",
    "batch_size=k gives the result of one batch; of a deterministic method, a sample alone too",
    "steps, norms or probes that are shared by a batch; random numbers by position in the chunk",
    examples=2,
    sde=diffusions,
    seed=seeds,
)
def batch_independence(method: Any, sde: GaussianSDE, seed: int) -> None:
    """Four samples, one of them an outlier, in chunks of 3, and two of them alone."""
    score = mixture(sde, 2, seed)
    x = score.sample(4, sde.t_min, source(seed + 3), torch.float64)
    x[3] += 3.0  # needs more steps
    together, parts = (
        _log_likelihood(method, score, x, seed, batch_size=size) for size in (None, 3)
    )
    close("log p in chunks of 3", parts.log_prob, together.log_prob, rtol=1e-6, atol=1e-6)
    close("evaluations in chunks of 3", parts.evaluations, together.evaluations)
    if not bool((together.standard_error > 0).any()):
        for i in (0, 3):
            own = slice(i, i + 1)
            alone = _log_likelihood(method, score, x[own], seed + 1).log_prob
            close(f"log p of sample {i} alone", alone, together.log_prob[own], rtol=1e-6, atol=1e-6)


@LIKELIHOODS.property(
    "generator",
    "equal seeds give equal results; noise shows in the standard error; the global generator is "
    "not used",
    "torch.randn without generator=; a seed set inside; a standard error of 0 despite noise",
    examples=2,
    sde=diffusions,
    seed=seeds,
)
def generator(method: Any, sde: GaussianSDE, seed: int) -> None:
    """All randomness comes from the generator."""
    score = mixture(sde, 2, seed)
    x = score.sample(3, sde.t_min, source(seed + 3), torch.float64)
    state = torch.get_rng_state()
    first, again, other = (_log_likelihood(method, score, x, s) for s in (seed, seed, seed + 1))
    holds(torch.equal(torch.get_rng_state(), state), "the global generator has advanced")
    close("log p of the same seed", again.log_prob, first.log_prob)
    if torch.equal(other.log_prob, first.log_prob):
        close(
            "the standard error of a result that does not depend on the seed",
            first.standard_error,
            0.0,
        )
    else:
        holds(
            (first.standard_error > 0).all(),
            "log p depends on the seed, but the standard error is 0",
        )


@LIKELIHOODS.property(
    "budget",
    "|log p − exact| <= 2 standard_error + solver_error, at any tolerance, for nine samples of ten",
    "an error of a single step; the terminal distribution left out; a variance instead of its root",
    examples=3,
    sde=diffusions,
    tolerance=lambda method: st.sampled_from([1e-1, 1e-2, 1e-3, 1e-4]),
    seed=seeds,
)
def budget(method: Any, sde: GaussianSDE, tolerance: float, seed: int) -> None:
    """100 points; the error of the Gaussian approximation at T, 1e-4 a dimension, is allowed.

    Of a stochastic method, ±2 standard errors should cover 95 %: fewer than 75 of 100 are covered
    with a probability of 1e-11. As the standard error is noisy too, 75 are required instead of 90.
    """
    score = mixture(sde, 3, seed)
    x = score.sample(100, sde.t_min, source(seed + 3), torch.float64)
    result = log_likelihood(score, x, method=method, tolerance=tolerance, generator=source(seed))
    off = (result.log_prob - score.log_prob(x, result.t_min)).abs()
    covered = float((off <= result.error + 3e-4).double().mean())
    least = 0.75 if bool((result.standard_error > 0).any()) else 0.9
    worst = int((off - result.error).argmax())
    holds(
        covered >= least,
        f"the budget covers the error of {covered:.0%} of the samples, expected {least:.0%}; the "
        f"worst is off by {float(off[worst]):.3g} nats, its budget "
        f"{float(result.error[worst]):.3g}",
    )


@LIKELIHOODS.property(
    "off the data",
    "points off the data are correct, or have converged=False",
    "a solver that stops early without a status; log p that is clamped",
    examples=3,
    sde=diffusions,
    distance=lambda method: st.sampled_from([0.1, 1.0, 5.0]),
    seed=seeds,
)
def off_the_data(method: Any, sde: GaussianSDE, distance: float, seed: int) -> None:
    """Of 20 points 80 % are within their budget or ten tolerances of |log p|, or not converged."""
    score = mixture(sde, 2, seed)
    x = score.sample(20, sde.t_min, source(seed + 3), torch.float64)
    x = x + distance * normal(x.shape, generator=source(seed + 4), dtype=torch.float64)
    result = _log_likelihood(method, score, x, seed)
    truth = score.log_prob(x, result.t_min)
    allowed = _FACTOR * _TOLERANCE * torch.maximum(truth.abs(), torch.tensor(2 * math.log(2)))
    error = (result.log_prob - truth).abs()
    right = error <= 4 * result.standard_error + result.solver_error + allowed
    valid = right | ~result.converged
    bad = int(torch.where(valid, 0.0, error).argmax())
    holds(
        float(valid.double().mean()) >= 0.8,
        f"{int((~valid).sum())} of 20 points are wrong with converged=True: log p is "
        f"{float(result.log_prob[bad]):.6g} at {x[bad].tolist()}, expected {float(truth[bad]):.6g}",
    )


@LIKELIHOODS.property(
    "failures",
    "a sample whose score is not finite is not converged, and the others are not affected",
    "a sum over the batch; an exception; NaN with converged=True; a solver that does not terminate",
    examples=2,
    sde=diffusions,
    seed=seeds,
)
def failures(method: Any, sde: GaussianSDE, seed: int) -> None:
    """The score is NaN for x_1 > 10⁴, where sample 2 of four starts."""
    exact = one_gaussian(sde, (2,))

    def broken(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 1e4, torch.nan, exact(x, t))

    score = FunctionScore(broken, sde, moments=exact.moments)
    x = exact.sample(4, sde.t_min, source(seed), torch.float64)
    x[2] = torch.tensor([1e6, 0.0])
    result = _log_likelihood(method, score, x, seed)
    holds(not bool(result.converged[2]), "the sample whose score is NaN has converged=True")
    others = torch.tensor([0, 1, 3])
    holds(result.converged[others].all(), "the other samples are not converged")
    truth = exact.log_prob(x, result.t_min)[others]
    error = 2 * result.error[others]
    close("log p of the others", result.log_prob[others], truth, atol=_allowed(2) + error)


@LIKELIHOODS.property(
    "standard error",
    "with random probes the standard error is the standard deviation of repetitions",
    "a variance that is not divided by the number of probes; probes that are taken as independent",
    examples=2,
    sde=diffusions,
    seed=seeds,
)
def standard_error(method: Any, sde: GaussianSDE, seed: int) -> None:
    """400 repetitions of a point, two Rademacher probes: within a factor of 2 in the mean square.

    The mean is unbiased, within 8 standard errors. A variance is too small by a factor of 4 with a
    probability of exp(−400 · 0.75²/2κ) at most, 1e-7 for noise with a kurtosis κ up to 7; too large
    more rarely.
    """
    n, score = 400, mixture(sde, 5, seed)
    x = score.sample(1, sde.t_min, source(seed + 3), torch.float64).expand(n, 5).contiguous()
    result = _log_likelihood(method, score, x, seed, trace=Hutchinson(probes=2))
    noise = result.log_prob - score.log_prob(x, result.t_min)
    std = float(noise.std())
    reported = float(result.standard_error.square().mean()) ** 0.5
    if max(std, reported) > 1e-3:
        ratio = math.log(max(reported, 1e-12) / max(std, 1e-12))
        close("log (standard error / standard deviation)", ratio, 0.0, atol=math.log(2))
    error = _DEVIATIONS * std / n**0.5 + reported**2 + float(result.solver_error.mean())
    close("the mean error of log p", noise.mean(), 0.0, atol=error + _allowed(5))
