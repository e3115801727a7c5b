r"""What every score owes, and what one known in closed form owes besides.

Any score s(x, t) and its views agree through the hub x̂, row by row. The score of a law that is
known (it tells ``log_prob``, or ``exact=True`` says so) is held to the mathematics of diffusions:
it solves the Fokker–Planck equation, its denoiser is a posterior mean, whose Jacobian
(α/σ²) Cov[x_0|x_t] is symmetric and positive.
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
from scoresde.testing.properties import PropertySuite, close, holds
from scoresde.testing.sde_contract import double
from scoresde.testing.strategies import ascending, dtypes, event_shapes, seeds, times

SCORES = PropertySuite("score")
"""What every score owes."""

LAWS = PropertySuite("score")
"""What the score of a known law owes besides."""


def check_score(
    score: Score | st.SearchStrategy[Score],
    *,
    event_shape: Sequence[int] | None = None,
    exact: bool | None = None,
    seed: int = 0,
    examples: int | None = None,
    only: str | Sequence[str] | None = None,
) -> None:
    """Look for laws that a score breaks.

    Args:
        score: the score, or a strategy that draws some. Symmetries that it promises are told by an
            attribute ``symmetries``, orthogonal maps R of states with s(Rx, t) = R s(x, t).
        event_shape: shape of one sample; None if the score or its network tells it by an attribute
            of this name, or takes any.
        exact: whether it is the score of a law, as no learned one is; None for a score that tells
            ``log_prob``.
        seed: of the search, which is reproducible.
        examples: how many cases of each law are tried.
        only: the name of a law or some names; all if None.

    Raises:
        BrokenPropertyError: an ``AssertionError`` that tells of every broken law.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> check_score(FunctionScore(lambda x, t: -x, VPSDE()), event_shape=(2,), exact=True)

    References:
        Lai et al., *FP-Diffusion: improving score-based diffusion models by enforcing the
        underlying score Fokker–Planck equation*, 2023, arXiv:2210.04296 (the score's own equation).
    """
    family = scores_family(score) if exact is None else _FAMILIES[exact]
    fixed = {} if event_shape is None else {"event_shape": tuple(event_shape)}
    family.check(score, seed=seed, examples=examples, only=only, fixed=fixed)


def scores_family(score: object) -> PropertySuite:
    """Return the laws that a score owes: more if it tells its density."""
    return _FAMILIES[hasattr(score, "log_prob")]


def shape_of(score: Any) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw an event shape that the score takes: its own if it tells one."""
    shape = getattr(score, "event_shape", None)
    if shape is None:
        shape = getattr(getattr(score, "network", None), "event_shape", None)
    return event_shapes() if shape is None else st.just(tuple(shape))


def moment(score: Any) -> st.SearchStrategy[float]:
    """Draw a time of the score's diffusion."""
    return times(score.sde)


def three_moments(score: Any) -> st.SearchStrategy[list[float]]:
    """Draw ascending times of the score's diffusion."""
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
    """Whether the diffusion has a kernel, and so the score its other views."""
    return score.sde.gaussian


def tells_density(score: Any) -> bool:
    """Whether the score is one of a density that it knows, under a diffusion with a kernel."""
    return gaussian(score) and hasattr(score, "log_prob")


def _views(score: Any, x: Tensor, t: Any) -> dict[str, Tensor]:
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
    "x (batch, *event), t a float, () or (batch,); every view in the shape and dtype of x",
    "a label of shape () or (batch, 1); a network's dtype that leaks; [:, None] for one shape only",
    event_shape=shape_of,
    dtype=dtypes,
    t=moment,
    seed=seeds,
)
@torch.no_grad()
def shapes(
    score: Any, event_shape: tuple[int, ...], dtype: torch.dtype, t: float, seed: int
) -> None:
    """One answer for the three kinds of time, shaped like the state."""
    score = copy.deepcopy(score).eval()
    x = states(score, event_shape, t, seed).to(dtype)
    time = double(t)
    first = _views(score, x, t)
    for each in (t, time, time.expand(3)):
        for name, value in _views(score, x, each).items():
            found, wanted = (tuple(value.shape), value.dtype), (tuple(x.shape), x.dtype)
            holds(found == wanted, f"{name} is {found}, expected {wanted} as x is")
            size = float(first[name].abs().max())
            close(f"{name} at a time of another kind", value, first[name], atol=1e-4 * (1 + size))


@SCORES.property(
    "rows",
    "s(x, t)[i] = s(x[i:i+1], t[i]), and score.select(i) has the same: no sample knows its mates",
    "batch norm, or a mean, norm or maximum over the batch; one time for all rows",
    event_shape=shape_of,
    moments=three_moments,
    seed=seeds,
)
@torch.no_grad()
def rows(score: Any, event_shape: tuple[int, ...], moments: list[float], seed: int) -> None:
    """A batch is its rows, each at its own time."""
    score = ready(score)
    x, t = states(score, event_shape, moments[1], seed), double(moments)
    together = _views(score, x, t)
    for i in range(3):
        one = slice(i, i + 1)
        for name, alone in _views(score.select(one), x[one], moments[i]).items():
            size = float(together[name].abs().max()) + 1e-6 * float(x.abs().max())
            close(f"{name} in row {i}", together[name][one], alone, rtol=1e-6, atol=1e-8 * size)


@SCORES.property(
    "views",
    "ε̂ = (x − α x̂)/σ,  s = −ε̂/σ,  v = α ε̂ − σ x̂",
    "the sign of the score; σ² for σ; a prediction read as another one; x̂ left in the scaled units",
    applies=gaussian,
    event_shape=shape_of,
    t=moment,
    seed=seeds,
)
@torch.no_grad()
def views(score: Any, event_shape: tuple[int, ...], t: float, seed: int) -> None:
    """All views follow from the denoised state."""
    score = ready(score)
    x = states(score, event_shape, t, seed)
    alpha, sigma = float(score.sde.alpha(t)), float(score.sde.sigma(t))
    clean = score.denoised(x, t)
    noise = (x - alpha * clean) / sigma
    lost = 1e-12 * float(x.abs().max()) / sigma
    close("noise(x, t)", score.noise(x, t), noise, rtol=1e-6, atol=lost)
    close("σ s(x, t)", sigma * score(x, t), -noise, rtol=1e-6, atol=lost)
    velocity = alpha * noise - sigma * clean
    size = 1e-9 * float(clean.abs().max()) * sigma
    close("velocity(x, t)", score.velocity(x, t), velocity, rtol=1e-6, atol=lost + size)


@SCORES.property(
    "purity",
    "the same arguments give the same numbers; x and the global generator are left alone",
    "dropout that ignores eval(); in-place operations on x; noise drawn inside; a stale cache",
    examples=5,
    event_shape=shape_of,
    t=moment,
    seed=seeds,
)
@torch.no_grad()
def purity(score: Any, event_shape: tuple[int, ...], t: float, seed: int) -> None:
    """A score in evaluation mode is a function."""
    score = ready(score)
    x = states(score, event_shape, t, seed)
    kept, state = x.clone(), torch.get_rng_state()
    first = _views(score, x, t)
    _views(score, 2 * x, 0.5 * (t + score.sde.T))
    for name, value in _views(score, x, t).items():
        close(f"{name}, asked for again,", value, first[name])
    close("x, after the call,", x, kept)
    holds(torch.equal(torch.get_rng_state(), state), "the global generator has moved")


@SCORES.property(
    "closed ends",
    "s, ε̂ and v are finite at t_min and T, x̂ at 0 too, in float32 and float64",
    "a division by σ(0) = 0 or α(T) = 0; a label log σ or 1/t",
    examples=4,
    event_shape=shape_of,
    dtype=dtypes,
    seed=seeds,
)
@torch.no_grad()
def closed_ends(score: Any, event_shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> None:
    """Nothing is infinite where samplers and likelihoods go."""
    score = copy.deepcopy(score).eval()
    for t in (score.sde.t_min, score.sde.T):
        x = states(score, event_shape, t, seed).to(dtype)
        for name, value in _views(score, x, t).items():
            holds(torch.isfinite(value).all(), f"{name} is not finite at t = {t:g}")
    if gaussian(score):
        clean = score.denoised(states(score, event_shape, 0.0, seed).to(dtype), 0.0)
        holds(torch.isfinite(clean).all(), "denoised is not finite at t = 0")


@SCORES.property(
    "derivative",
    "the derivative of s by autograd is that by differences",
    ".detach(), no_grad or numpy in the score; an in-place operation; a cache of values",
    examples=5,
    event_shape=shape_of,
    t=moment,
    seed=seeds,
)
def derivative(score: Any, event_shape: tuple[int, ...], t: float, seed: int) -> None:
    """Likelihoods and guidance differentiate scores: along a direction, both ways agree."""
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
    "s(R x, t) = R s(x, t) for each orthogonal map R that the score promises",
    "a part of the network that singles out an axis, an order or a sign",
    applies=lambda score: bool(getattr(score, "symmetries", ())),
    event_shape=shape_of,
    t=moment,
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
    """A promised symmetry is kept."""
    score = ready(score)
    x = states(score, event_shape, t, seed)
    turned, size = symmetry(score(x, t)), float(score(x, t).abs().max())
    close("s(R x, t)", score(symmetry(x), t), turned, rtol=1e-6, atol=1e-6 * size)


# --- the score of a law


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


@LAWS.property(
    "Fokker–Planck",
    "∂s/∂t = ∇[½ g² (∇·s + |s|²) − ∇·f − f·s], the equation of p_t differentiated",
    "the score of another diffusion or another time; a schedule off by one; a factor in σ; time "
    "running backward",
    event_shape=shape_of,
    t=moment,
    seed=seeds,
)
def fokker_planck(score: Any, event_shape: tuple[int, ...], t: float, seed: int) -> None:
    """The score moves as the diffusion says."""
    score, sde = ready(score), score.sde
    x = states(score, event_shape, t, seed, n=2)
    g2 = float(sde.diffusion(t)) ** 2
    moving, error = slope(lambda u: score(x, u).detach(), t, sde.T)
    for row in range(len(x)):
        leaf = x[row : row + 1].clone().requires_grad_()
        s, f = score(leaf, t), sde.drift(leaf, t)
        terms = [0.5 * g2 * (_trace(s, leaf) + s.square().sum()), -_trace(f, leaf) - (f * s).sum()]
        first, second = (torch.autograd.grad(v, leaf, retain_graph=True)[0][0] for v in terms)
        size = float((first.abs() + second.abs()).max())
        bound = 2 * error[row] + 1e-6 * size
        close("∂s/∂t", moving[row], first + second, rtol=1e-6, atol=bound)


def _trace(value: Tensor, leaf: Tensor) -> Tensor:
    """Return ∇·v of one row, differentiable."""
    if not value.requires_grad:
        return value.new_zeros(()) + 0 * leaf.sum()
    flat, d = value.reshape(-1), value.numel()
    rows = [torch.autograd.grad(flat[i], leaf, create_graph=True)[0] for i in range(d)]
    return torch.stack([row.reshape(-1)[i] for i, row in enumerate(rows)]).sum() + 0 * leaf.sum()


@LAWS.property(
    "posterior covariance",
    "∂x̂/∂x = (α/σ²) Cov[x_0 | x_t]: symmetric, no eigenvalue below 0",
    "a field that is no gradient; a wrong sign or weight of components; x̂ of another time",
    applies=gaussian,
    event_shape=shape_of,
    t=moment,
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


@LAWS.property(
    "Tweedie",
    "x_t = a x_0 + b z: b ε̂/σ is the regression of z on x_t, E[(b ε̂/σ − z) φ(x_t)] = 0 for all φ",
    "the score of other data, of another time or diffusion; a sign; a missing factor α or σ",
    applies=lambda score: gaussian(score) and hasattr(score, "sample"),
    t=moment,
    seed=seeds,
    examples=5,
)
@torch.no_grad()
def tweedie(score: Any, t: float, seed: int) -> None:
    """The noise that is told is the mean of the noise there was.

    From time 0 on, for there is noise at 0 where σ(0) > 0 (then b < σ; else b = σ). A mean of
    20 000 samples within 6.5 standard errors of 0 for each φ: false alarms 1e-9.
    """
    score, n = ready(score), 20_000
    generator = torch.Generator().manual_seed(seed)
    x0 = score.sample(n, 0.0, generator, torch.float64)
    noise = normal(x0.shape, generator=generator, dtype=torch.float64)
    scale, std = (float(v) for v in score.sde.transition(0.0, t))
    x = scale * x0 + std * noise
    share = std / float(score.sde.sigma(t))
    residual = (share * score.noise(x, t) - noise).reshape(n, -1)
    centred = x.reshape(n, -1) - x.reshape(n, -1).mean(0)
    scaled = centred / centred.std(0)
    for name, feature in {
        "1": torch.ones_like(scaled),
        "tanh x": torch.tanh(scaled),
        "cos 2x": torch.cos(2 * scaled),
    }.items():
        products = residual * feature
        error = 6.5 * products.std(0) / n**0.5 + 1e-9
        close(f"E[(b ε̂/σ − z) {name}]", products.mean(0), torch.zeros_like(error), atol=error)


@LAWS.property(
    "density",
    "∇ log p_t = s, and ∇·s = tr ∂s/∂x where it is told",
    "a normaliser or weight that depends on x or t; log p of the data for log p_t",
    applies=tells_density,
    event_shape=shape_of,
    t=moment,
    seed=seeds,
)
def density(score: Any, event_shape: tuple[int, ...], t: float, seed: int) -> None:
    """The density has this score."""
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


@LAWS.property(
    "convolution",
    "p_t(x) = E[N(x; a x_0, b² I)]: the density is normalised, and that of the noised data",
    "a missing factor 2π, determinant or weight; a density in other units than x_t",
    applies=lambda score: tells_density(score) and hasattr(score, "sample"),
    t=moment,
    seed=seeds,
    examples=5,
)
@torch.no_grad()
def convolution(score: Any, t: float, seed: int) -> None:
    """The density at five points is the mean of 50 000 kernels.

    With x_t = a x_0 + b z from time 0 on, r = N(x; a x_0, b² I)/p_t(x) has mean 1 and 0 <= r <= B,
    so that by Bernstein's inequality its mean is off by more than √(2BL/n) + 2BL/(3n),
    L = ln(2/10⁻⁹), once in 10⁹ times. Where that is above one half, at little noise, nothing is
    claimed.
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
        share = math.exp(min(highest - float(log_prob), 50.0)) * math.log(2e9) / n
        error = math.sqrt(2 * share) + 2 * share / 3
        if error < 0.5:
            close("E[N(x; a x_0, b² I)]/p_t(x)", ratio.mean(), 1.0, atol=error)


_FAMILIES = {False: SCORES, True: PropertySuite("score", [*SCORES.properties, *LAWS.properties])}
