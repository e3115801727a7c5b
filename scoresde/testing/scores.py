r"""The properties of scores, and further ones of exact scores.

Any score s(x, t) and its predictions x̂, ε̂ and v agree, and no sample depends on the others of its
batch. The score of a known distribution (it has a method ``log_prob``, or ``exact=True`` is given)
also solves the Fokker–Planck equation, and its denoiser is a posterior mean, whose Jacobian
(α/σ²) Cov[x_0|x_t] is symmetric and positive semidefinite.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from scoresde._core.random import normal
from scoresde.scores import Score
from scoresde.testing.differences import slope
from scoresde.testing.properties import (
    PropertySuite,
    Report,
    close,
    documents,
    finite,
    holds,
)
from scoresde.testing.sde_contract import double
from scoresde.testing.strategies import ascending, dtypes, event_shapes, seeds, times

SCORES = PropertySuite("score")
"""The properties of every score."""

EXACT_SCORES = PropertySuite("score")
"""The further properties of the score of a known distribution."""


@documents(
    score="the score, or a strategy that draws some. Its symmetries, if it declares any, are an\n"
    "        attribute ``symmetries``: orthogonal maps R of states with s(Rx, t) = R s(x, t).",
    event_shape="shape of one sample; None if the score or its network has an attribute of this\n"
    "        name, or takes any shape.",
    exact="whether it is the score of a distribution, as no learned one is; None for a score that\n"
    "        has a method ``log_prob``.",
)
def check_score(
    score: Score | st.SearchStrategy[Score],
    *,
    event_shape: Sequence[int] | None = None,
    exact: bool | None = None,
    seed: int = 0,
    examples: int | None = None,
    only: str | Sequence[str] | None = None,
) -> Report:
    """Check that a score has the properties of scores.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> score = FunctionScore(lambda x, t: -x, VPSDE())
        >>> check_score(score, event_shape=(2,), exact=True)
        <Report: 8 of 8 hold>

    References:
        Lai et al., *FP-Diffusion: improving score-based diffusion models by enforcing the
        underlying score Fokker–Planck equation*, 2023, arXiv:2210.04296 (the score's own equation).
    """  # noqa: DOC201 - see the decorator
    suite = suite_of_scores(score) if exact is None else _SUITES[exact]
    fixed = {} if event_shape is None else {"event_shape": tuple(event_shape)}
    return suite.check(score, seed=seed, examples=examples, only=only, fixed=fixed)


def suite_of_scores(score: object) -> PropertySuite:
    """Return the suite of a score: the larger one if it has a method ``log_prob``."""
    return _SUITES[hasattr(score, "log_prob")]


def shape_of(score: Any) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw an event shape that the score takes: its attribute ``event_shape`` if it has one."""
    shape = getattr(score, "event_shape", None)
    if shape is None:
        shape = getattr(getattr(score, "network", None), "event_shape", None)
    return event_shapes() if shape is None else st.just(tuple(shape))


def time_of(score: Any) -> st.SearchStrategy[float]:
    """Draw a time of the score's SDE."""
    return times(score.sde)


def three_times_of(score: Any) -> st.SearchStrategy[list[float]]:
    """Draw ascending times of the score's SDE."""
    return ascending(3)(score.sde)


def ready(score: Any) -> Any:
    """Return a copy in float64 and in evaluation mode."""
    return copy.deepcopy(score).double().eval()


def states(score: Any, event_shape: tuple[int, ...], t: float, seed: int, n: int = 3) -> Tensor:
    """Draw states of about the size that they have at t, ``(n, *event)`` in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = 1.5 * normal((n, *event_shape), generator=generator, dtype=torch.float64)
    return score.sde.perturb(x, t, x.flip(0)) if score.sde.gaussian else x


def gaussian(score: Any) -> bool:
    """Whether the SDE has a Gaussian kernel, so that the score has x̂, ε̂ and v."""
    return bool(score.sde.gaussian)


def has_density(score: Any) -> bool:
    """Whether the score has a method ``log_prob``, under an SDE with a Gaussian kernel."""
    return gaussian(score) and hasattr(score, "log_prob")


def _predictions(score: Any, x: Tensor, t: Any) -> dict[str, Tensor]:
    found = {"score": score(x, t)}
    if gaussian(score):
        found |= {
            "denoised": score.denoised(x, t),
            "noise": score.noise(x, t),
            "velocity": score.velocity(x, t),
        }
    return found


# --- any score


@SCORES.property(
    "shapes",
    "x (batch, *event), t a float, () or (batch,); s, x̂, ε̂ and v in the shape and dtype of x",
    "a label of shape () or (batch, 1); the dtype of the network in the result; [:, None] for one "
    "event shape only",
    event_shape=shape_of,
    dtype=dtypes,
    t=time_of,
    seed=seeds,
)
@torch.no_grad()
def shapes(
    score: Any, event_shape: tuple[int, ...], dtype: torch.dtype, t: float, seed: int
) -> None:
    """The three kinds of time give the same values, to 1e-4 and the rounding errors."""
    score = copy.deepcopy(score).eval()
    x = states(score, event_shape, t, seed).to(dtype)
    time = double(t)
    first = _predictions(score, x, t)
    rounding = _rounding(score, x, t, first)
    for each in (t, time, time.expand(3)):
        for name, value in _predictions(score, x, each).items():
            found, wanted = (tuple(value.shape), value.dtype), (tuple(x.shape), x.dtype)
            holds(found == wanted, f"{name} is {found}, expected {wanted} as x is")
            allowed = 1e-4 * (1 + float(first[name].abs().max())) + rounding[name]
            close(f"{name} at a time of another kind", value, first[name], atol=allowed)


def _rounding(score: Any, x: Tensor, t: float, values: dict[str, Tensor]) -> dict[str, float]:
    """Return by how much rounding may change each prediction: 16 ε in x, and in α x̂.

    s = (α x̂ − x)/σ² amplifies a rounding error of x by 1/σ², and ε̂ = −σ s, v = α ε̂ − σ x̂ by 1/σ
    and α/σ; x̂ = (x + σ² s)/α by 1/α.
    """
    if not gaussian(score):
        return dict.fromkeys(values, 0.0)
    alpha, sigma = float(score.sde.alpha(t)), float(score.sde.sigma(t))
    size, clean = float(x.abs().max()), float(values["denoised"].abs().max())
    error = 16 * torch.finfo(x.dtype).eps * (size + alpha * clean)
    return {
        "score": error / sigma**2,
        "noise": error / sigma,
        "velocity": error * (alpha / sigma + sigma / alpha),
        "denoised": error / alpha,
    }


@SCORES.property(
    "batch independence",
    "s(x, t)[i] = s(x[i:i+1], t[i]), also of score.select(i): no sample depends on the others of "
    "its batch",
    "batch norm, or a mean, norm or maximum over the batch; one time for all samples",
    event_shape=shape_of,
    t=three_times_of,
    seed=seeds,
)
@torch.no_grad()
def batch_independence(score: Any, event_shape: tuple[int, ...], t: list[float], seed: int) -> None:
    """Each sample of a batch, at its own time, is compared with a batch of one."""
    score = ready(score)
    x = states(score, event_shape, t[1], seed)
    together = _predictions(score, x, double(t))
    for i in range(3):
        one = slice(i, i + 1)
        for name, alone in _predictions(score.select(one), x[one], t[i]).items():
            size = float(together[name].abs().max()) + 1e-6 * float(x.abs().max())
            close(f"{name} of sample {i}", together[name][one], alone, rtol=1e-6, atol=1e-8 * size)


@SCORES.property(
    "predictions",
    "ε̂ = (x − α x̂)/σ,  s = −ε̂/σ,  v = α ε̂ − σ x̂",
    "the sign of the score; σ² instead of σ; one prediction taken for another; x̂ in scaled units",
    applies=gaussian,
    event_shape=shape_of,
    t=time_of,
    seed=seeds,
)
@torch.no_grad()
def predictions(score: Any, event_shape: tuple[int, ...], t: float, seed: int) -> None:
    """Score, noise and velocity follow from the denoised state."""
    score = ready(score)
    x = states(score, event_shape, t, seed)
    alpha, sigma = float(score.sde.alpha(t)), float(score.sde.sigma(t))
    clean = score.denoised(x, t)
    noise = (x - alpha * clean) / sigma
    rounding = 1e-12 * float(x.abs().max()) / sigma
    close("noise(x, t)", score.noise(x, t), noise, rtol=1e-6, atol=rounding)
    close("σ s(x, t)", sigma * score(x, t), -noise, rtol=1e-6, atol=rounding)
    velocity = alpha * noise - sigma * clean
    rounding += 1e-9 * float(clean.abs().max()) * sigma
    close("velocity(x, t)", score.velocity(x, t), velocity, rtol=1e-6, atol=rounding)


@SCORES.property(
    "purity",
    "equal arguments give equal values; x and the global generator are not modified",
    "dropout that ignores eval(); in-place operations on x; noise drawn inside; a stale cache",
    examples=5,
    event_shape=shape_of,
    t=time_of,
    seed=seeds,
)
@torch.no_grad()
def purity(score: Any, event_shape: tuple[int, ...], t: float, seed: int) -> None:
    """In evaluation mode a score is a function of its arguments."""
    score = ready(score)
    x = states(score, event_shape, t, seed)
    before, state = x.clone(), torch.get_rng_state()
    first = _predictions(score, x, t)
    _predictions(score, 2 * x, 0.5 * (t + score.sde.T))
    for name, value in _predictions(score, x, t).items():
        close(f"{name}, evaluated again,", value, first[name])
    close("x, after the call,", x, before)
    holds(torch.equal(torch.get_rng_state(), state), "the global generator has advanced")


@SCORES.property(
    "endpoints",
    "s, ε̂ and v are finite at t_min and T, x̂ at t = 0 too, in float32 and float64, for t given as "
    "float, () or (batch,)",
    "a division by σ(0) = 0 or α(T) = 0; a label log σ or 1/t",
    examples=4,
    event_shape=shape_of,
    dtype=dtypes,
    seed=seeds,
)
@torch.no_grad()
def endpoints(score: Any, event_shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> None:
    """The ends of the intervals on which samplers and likelihoods evaluate a score."""
    score = copy.deepcopy(score).eval()
    for t in (score.sde.t_min, score.sde.T):
        x = states(score, event_shape, t, seed).to(dtype)
        for time in (t, double(t), double(t).expand(3)):
            for name, value in _predictions(score, x, time).items():
                finite(f"{name} at t = {time!r}", value)
    if gaussian(score):
        x = states(score, event_shape, 0.0, seed).to(dtype)
        for time in (0.0, double(0.0), double(0.0).expand(3)):
            finite(f"denoised at t = {time!r}", score.denoised(x, time))


@SCORES.property(
    "derivative",
    "the derivative of s by autograd is that by finite differences",
    ".detach(), no_grad or numpy in the score; an in-place operation; a cache of values",
    examples=5,
    event_shape=shape_of,
    t=time_of,
    seed=seeds,
)
def derivative(score: Any, event_shape: tuple[int, ...], t: float, seed: int) -> None:
    """The directional derivative, which likelihoods and guidance need."""
    score = ready(score)
    x = states(score, event_shape, t, seed)
    direction, weight = states(score, event_shape, t, seed + 1), torch.ones_like(x)
    leaf = x.clone().requires_grad_()
    value = score(leaf, t)
    gradient = torch.zeros_like(x)
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, leaf, weight)
    along = (gradient * direction).sum()
    with torch.no_grad():
        expected, error = slope(
            lambda u: score(x + (u - 1) * direction, t).sum().double(), 1.0, 2.0
        )
    size = float((gradient * direction).abs().sum()) + float(value.detach().abs().sum())
    close("the derivative of Σ s", along, expected, rtol=1e-4, atol=5 * float(error) + 1e-7 * size)


@SCORES.property(
    "symmetry",
    "s(R x, t) = R s(x, t) for each orthogonal map R that the score declares",
    "a part of the network that singles out an axis, an order or a sign",
    applies=lambda score: bool(getattr(score, "symmetries", ())),
    event_shape=shape_of,
    t=time_of,
    seed=seeds,
    symmetry=lambda score: st.sampled_from(list(score.symmetries)),
)
@torch.no_grad()
def symmetry(
    score: Any,
    event_shape: tuple[int, ...],
    t: float,
    seed: int,
    symmetry: Callable[[Tensor], Tensor],
) -> None:
    """Equivariance under each map of ``score.symmetries``."""
    score = ready(score)
    x = states(score, event_shape, t, seed)
    mapped, size = symmetry(score(x, t)), float(score(x, t).abs().max())
    close("s(R x, t)", score(symmetry(x), t), mapped, rtol=1e-6, atol=1e-6 * size)


# --- the score of a distribution


def _jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ∂f/∂x ``(batch, d, d)``."""
    d = math.prod(x.shape[1:])

    def one(v: Tensor) -> Tensor:
        return function(v.reshape(1, *x.shape[1:])).reshape(d)

    return torch.stack(
        [
            torch.autograd.functional.jacobian(one, row, create_graph=False)
            for row in x.reshape(-1, d)
        ]
    )


@EXACT_SCORES.property(
    "Fokker–Planck",
    "∂s/∂t = ∇[½ g² (∇·s + |s|²) − ∇·f − f·s], the equation of p_t differentiated",
    "the score of another SDE or another time; a schedule off by one; a factor in σ; time running "
    "backward",
    event_shape=shape_of,
    t=time_of,
    seed=seeds,
)
def fokker_planck(score: Any, event_shape: tuple[int, ...], t: float, seed: int) -> None:
    """∂s/∂t by finite differences, the right-hand side by autograd."""
    score, sde = ready(score), score.sde
    x = states(score, event_shape, t, seed, n=2)
    g2 = float(sde.diffusion(t)) ** 2
    rate, error = slope(lambda u: score(x, u).detach(), t, sde.T)
    for row in range(len(x)):
        leaf = x[row : row + 1].clone().requires_grad_()
        s, f = score(leaf, t), sde.drift(leaf, t)
        terms = [0.5 * g2 * (_trace(s, leaf) + s.square().sum()), -_trace(f, leaf) - (f * s).sum()]
        first, second = (torch.autograd.grad(v, leaf, retain_graph=True)[0][0] for v in terms)
        size = float((first.abs() + second.abs()).max())
        bound = 2 * error[row] + 1e-6 * size
        close("∂s/∂t", rate[row], first + second, rtol=1e-6, atol=bound)


def _trace(value: Tensor, leaf: Tensor) -> Tensor:
    """Return ∇·v of one row, differentiable."""
    if not value.requires_grad:
        return value.new_zeros(()) + 0 * leaf.sum()
    flat, d = value.reshape(-1), value.numel()
    rows = [torch.autograd.grad(flat[i], leaf, create_graph=True)[0] for i in range(d)]
    return torch.stack([row.reshape(-1)[i] for i, row in enumerate(rows)]).sum() + 0 * leaf.sum()


@EXACT_SCORES.property(
    "posterior covariance",
    "∂x̂/∂x = (α/σ²) Cov[x_0 | x_t]: symmetric, no eigenvalue below 0",
    "a field that is not a gradient; a wrong sign or weight of components; x̂ of another time",
    applies=gaussian,
    event_shape=shape_of,
    t=time_of,
    seed=seeds,
)
def posterior_covariance(score: Any, event_shape: tuple[int, ...], t: float, seed: int) -> None:
    """The Jacobian of the denoiser is a covariance."""
    score = ready(score)
    x = states(score, event_shape, t, seed)
    jacobian = _jacobian(lambda v: score.denoised(v, t), x)
    size = float(jacobian.abs().max())
    close("∂x̂/∂x, transposed,", jacobian.mT, jacobian, rtol=1e-6, atol=1e-7 * size)
    least = float(torch.linalg.eigvalsh(0.5 * (jacobian + jacobian.mT)).min())
    holds(least >= -1e-6 * size, f"∂x̂/∂x has the eigenvalue {least:.3g}, expected none below 0")


@EXACT_SCORES.property(
    "Tweedie",
    "x_t = a x_0 + b z: b ε̂/σ is the regression of z on x_t, E[(b ε̂/σ − z) φ(x_t)] = 0 for all φ",
    "the score of other data, of another time or diffusion; a sign; a missing factor α or σ",
    applies=lambda score: gaussian(score) and hasattr(score, "sample"),
    t=time_of,
    seed=seeds,
    examples=5,
)
@torch.no_grad()
def tweedie(score: Any, t: float, seed: int) -> None:
    """The predicted noise is the conditional mean of the noise.

    The noise is that added after time 0: where σ(0) > 0 there is noise at 0 already, and b < σ;
    else b = σ. A mean of 20 000 samples within 6.5 standard errors of 0 for each φ: false alarms
    1e-9.
    """
    score, n = ready(score), 20_000
    generator = torch.Generator().manual_seed(seed)
    x0 = score.sample(n, 0.0, generator, torch.float64)
    noise = normal(x0.shape, generator=generator, dtype=torch.float64)
    scale, std = (float(v) for v in score.sde.transition(0.0, t))
    x = scale * x0 + std * noise
    fraction = std / float(score.sde.sigma(t))
    residual = (fraction * score.noise(x, t) - noise).reshape(n, -1)
    centered = x.reshape(n, -1) - x.reshape(n, -1).mean(0)
    scaled = centered / centered.std(0)
    for name, feature in {
        "1": torch.ones_like(scaled),
        "tanh x": torch.tanh(scaled),
        "cos 2x": torch.cos(2 * scaled),
    }.items():
        products = residual * feature
        error = 6.5 * products.std(0) / n**0.5 + 1e-9
        close(f"E[(b ε̂/σ − z) {name}]", products.mean(0), torch.zeros_like(error), atol=error)


@EXACT_SCORES.property(
    "density",
    "∇ log p_t = s, and divergence(x, t) = tr ∂s/∂x if the score has this method",
    "a normalization or weight that depends on x or t; log p of the data instead of log p_t",
    applies=has_density,
    event_shape=shape_of,
    t=time_of,
    seed=seeds,
)
def density(score: Any, event_shape: tuple[int, ...], t: float, seed: int) -> None:
    """The gradient of log_prob is the score."""
    score = ready(score)
    x = states(score, event_shape, t, seed)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score.log_prob(leaf, t).sum(), leaf)
    size = float(gradient.abs().max())
    close("∇ log p", gradient, score(x, t), rtol=1e-6, atol=1e-8 * size)
    if hasattr(score, "divergence"):
        trace = _jacobian(lambda v: score(v, t), x).diagonal(dim1=1, dim2=2)
        found, most = score.divergence(x, t), float(trace.abs().sum()) + size**2
        close("divergence(x, t)", found, trace.sum(1), rtol=1e-6, atol=1e-8 * most)


@EXACT_SCORES.property(
    "convolution",
    "p_t(x) = E[N(x; a x_0, b² I)]: the density is normalized, and that of the noised data",
    "a missing factor 2π, determinant or weight; a density in other units than x_t",
    applies=lambda score: has_density(score) and hasattr(score, "sample"),
    t=time_of,
    seed=seeds,
    examples=5,
)
@torch.no_grad()
def convolution(score: Any, t: float, seed: int) -> None:
    """The density at five points is the mean of 50 000 kernels.

    With x_t = a x_0 + b z from time 0 on, r = N(x; a x_0, b² I)/p_t(x) has mean 1 and 0 <= r <= B,
    so that by Bernstein's inequality its mean is off by more than √(2BL/n) + 2BL/(3n),
    L = ln(2/10⁻⁹), once in 10⁹ times. Where that is above one half, at little noise, nothing is
    tested.
    """
    score, n = ready(score), 50_000
    generator = torch.Generator().manual_seed(seed)
    draws = score.sample(n + 5, 0.0, generator, torch.float64)
    points, x0 = score.sample(5, t, generator, torch.float64), draws[5:].reshape(n, -1)
    scale, std = (float(v) for v in score.sde.transition(0.0, t))
    if std == 0:
        return
    highest = -x0.shape[1] * math.log(std * math.sqrt(2 * math.pi))
    for x, log_prob in zip(points.reshape(5, -1), score.log_prob(points, t), strict=True):
        squares = ((x - scale * x0) / std).square().sum(1)
        ratio = torch.exp(highest - log_prob - 0.5 * squares)
        bound = math.exp(min(highest - float(log_prob), 50.0)) * math.log(2e9) / n
        error = math.sqrt(2 * bound) + 2 * bound / 3
        if error < 0.5:
            close("E[N(x; a x_0, b² I)]/p_t(x)", ratio.mean(), 1.0, atol=error)


_SUITES = {
    False: SCORES,
    True: PropertySuite("score", [*SCORES.properties, *EXACT_SCORES.properties]),
}
"""By whether the score is exact."""
