r"""The properties of divergence estimators: the trace of the Jacobian, with the declared variance.

The fields have divergences in closed form: x ↦ Jx with matrices of several kinds, and two nonlinear
ones. The rows of a batch are independent repetitions, so that means and variances are those of
thousands of draws in one call.
"""

# ruff: noqa: ARG001 - tests, fields and strategies take the arguments of their family

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from scoresde._core.counter_rng import CounterRNG
from scoresde._core.random import normal
from scoresde.testing.properties import PropertySuite, Report, close, documents, holds
from scoresde.testing.strategies import devices, dtypes, seeds
from scoresde.traces import Trace

TRACES = PropertySuite("trace")
"""The properties of divergence estimators."""

_FEW, _MANY = 4000, 20_000
"""Draws for a mean, and for a variance."""

_DEVIATIONS = 6.5
"""Tolerance of a mean in standard errors: for 4000 skewed draws one false alarm in 10⁸."""

_SIZES = (1, 2, 3, 5, 8, 13, 40)


@documents(trace="the estimator, or a strategy that draws some.")
def check_trace(
    trace: Trace | st.SearchStrategy[Trace],
    *,
    seed: int = 0,
    examples: int | None = None,
    only: str | Sequence[str] | None = None,
) -> Report:
    """Check that a divergence estimator has the properties of divergence estimators.

    It must have what it declares: ``exact``, ``linear``, ``variance(J)`` and ``exact_rank(d)``.

    Example:
        >>> from scoresde.traces import Hutchinson
        >>> check_trace(Hutchinson(probes=2), only="unbiased")
        <Report: 1 of 1 hold>
    """  # noqa: DOC201 - see the decorator
    return TRACES.check(trace, seed=seed, examples=examples, only=only)


# --- fields


def _numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normal(shape, generator=generator, dtype=torch.float64)


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "any": lambda J: J,
    "symmetric": lambda J: J + J.mT,
    "antisymmetric": lambda J: J - J.mT,
    "nilpotent": lambda J: J.triu(1),
    "rank one": lambda J: torch.outer(J[0], J[-1]),
    "diagonal": lambda J: J.diagonal().diag(),
    "multiple of the identity": lambda J: J[0, 0] * torch.eye(len(J), dtype=J.dtype),
}
"""Kinds of Jacobians, derived from a matrix with independent normal entries."""


def jacobian(kind: str, d: int, seed: int) -> Tensor:
    """Return a matrix ``(d, d)`` of a kind."""
    return KINDS[kind](_numbers((d, d), seed))


def _linear(J: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x @ J.mT


def _nonlinear(d: int, seed: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return x ↦ B tanh(A x) + 0.3 x², whose Jacobian is not symmetric, and its divergence."""
    A, B = _numbers((2, d, d), seed) / d**0.5
    both = torch.einsum("ki,ik->k", A, B)

    def field(x: Tensor) -> Tensor:
        hidden: Tensor = torch.tanh(x @ A.to(x).mT) @ B.to(x).mT
        return hidden + 0.3 * x.square()

    def divergence(x: Tensor) -> Tensor:
        return (1 - torch.tanh(x @ A.mT).square()) @ both + 0.6 * x.sum(1)

    return field, divergence


def _cubic(x: Tensor) -> Tensor:
    """x_i³ + x_i |x|², with the divergence (5 + d) |x|²."""
    return x**3 + x * x.square().sum(1, keepdim=True)


def _draws(trace: Any, J: Tensor, n: int, seed: int) -> Tensor:
    """Return ``n`` independent values of the mean estimate for one matrix."""
    return _estimates(trace, _linear(J), J.new_zeros(n, len(J)), seed)[1].mean(1)


def _estimates(
    trace: Any, field: Callable[[Tensor], Tensor], x: Tensor, seed: int, **options: bool
) -> tuple[Tensor, Tensor]:
    rng = CounterRNG.draw(len(x), torch.Generator().manual_seed(seed), x.device)
    value, estimates = trace(field, x, rng, **options)
    return value, estimates


@lru_cache(maxsize=64)
def _takes(trace: Any, d: int) -> bool:
    """Whether the estimator takes ``d`` dimensions; it may raise a ValueError for some."""
    try:
        _estimates(trace, torch.sin, torch.zeros(1, d, dtype=torch.float64), 0)
    except ValueError:
        return False
    return True


def sizes(trace: Any) -> st.SearchStrategy[int]:
    """Draw a number of dimensions that the estimator takes."""
    taken = [d for d in _SIZES if _takes(trace, d)]
    return st.sampled_from(taken or [_SIZES[-1]])


def kinds(trace: object = None) -> st.SearchStrategy[str]:
    """Draw the kind of a Jacobian."""
    return st.sampled_from(list(KINDS))


def _noisy(trace: Any, d: int) -> bool:
    return bool(trace.exact_rank(d) < d)


def _has_variance(trace: Any) -> bool:
    return trace.variance(torch.eye(2, dtype=torch.float64)) is not None


# --- shapes, randomness, batches


@TRACES.property(
    "shapes",
    "h(x) (m, d) and k estimates (m, k) in the dtype and on the device of x; products(d) >= 0",
    "estimates (m,); float64 results for float32 points; a value that is not h(x); results with a "
    "gradient graph",
    d=sizes,
    dtype=dtypes,
    device=devices,
    seed=seeds,
)
def shapes(trace: Any, d: int, dtype: torch.dtype, device: str, seed: int) -> None:
    """One point or three, in single and double precision."""
    field, _ = _nonlinear(d, seed)
    for m in (1, 3):
        x = _numbers((m, d), seed + 1).to(device, dtype)
        value, estimates = _estimates(trace, field, x, seed)
        holds(estimates.ndim == 2, f"the estimates have shape {tuple(estimates.shape)}, not (m, k)")
        for name, out, shape in (
            ("h(x)", value, (m, d)),
            ("the estimates", estimates, (m, max(estimates.shape[1], 1))),
        ):
            found, wanted = (tuple(out.shape), out.dtype, out.device), (shape, dtype, x.device)
            holds(found == wanted, f"{name}: {found}, expected {wanted}")
            holds(
                not out.requires_grad, f"{name} has a gradient graph although differentiable=False"
            )
        close("h(x)", value, field(x), rtol=1e-5, atol=1e-5)
    holds(trace.products(d) >= 0, f"products({d}) is {trace.products(d)}")


@TRACES.property(
    "random numbers",
    "equal rng gives equal estimates, another counter or seed others; the global generator is not "
    "used",
    "torch.randn instead of rng; a probe that is drawn once and reused; a counter that is left out",
    d=sizes,
    seed=seeds,
)
def random_numbers(trace: Any, d: int, seed: int) -> None:
    """All randomness comes from ``rng``. Sixteen samples, which are never equal by chance."""
    field, _ = _nonlinear(d, seed)
    x = _numbers((16, d), seed + 1)
    source = CounterRNG.draw(16, torch.Generator().manual_seed(seed))
    state = torch.get_rng_state()
    first = trace(field, x, source)[1]
    holds(torch.equal(torch.get_rng_state(), state), "the global generator has advanced")
    close("the estimates of the same rng", trace(field, x, source)[1], first)
    if d > 2 and _noisy(trace, d):
        later = trace(field, x, source.at(slice(None), source.counter + 1))[1]
        others = _estimates(trace, field, x, seed + 1)[1]
        for what, value in (("counter", later), ("seed", others)):
            differs = not torch.equal(value, first)
            holds(differs, f"another {what} gives the same estimates, expected others")


@TRACES.property(
    "batch independence",
    "the value and estimates of a sample are the same alone, in another order, or beside a sample "
    "of NaN",
    "one probe for all samples; a mean over the batch; random numbers of the wrong sample",
    d=sizes,
    seed=seeds,
)
def batch_independence(trace: Any, d: int, seed: int) -> None:
    """Four samples, also in subsets of them."""
    field, _ = _nonlinear(d, seed)
    x = _numbers((4, d), seed + 1)
    source = CounterRNG.draw(4, torch.Generator().manual_seed(seed))
    value, estimates = trace(field, x, source)
    size = 1 + float(estimates.abs().max())
    with_nan = x.clone()
    with_nan[1] = torch.nan
    for name, points, index in (
        ("alone", x, [2]),
        ("in another order", x, [3, 0, 2]),
        ("beside a sample of NaN", with_nan, [0, 1, 2]),
    ):
        order = torch.tensor(index)
        part, found = trace(field, points[order], source.at(order, source.counter[order]))
        for i, row in enumerate(index):
            if not points[row].isnan().any():
                close(f"h(x) of sample {row} {name}", part[i], value[row], rtol=1e-9, atol=1e-9)
                what = f"the estimate of sample {row} {name}"
                close(what, found[i], estimates[row], rtol=1e-7, atol=1e-7 * size)


@TRACES.property(
    "constant fields",
    "a field that does not depend on x has the divergence 0",
    "a gradient graph that is assumed to exist; allow_unused left out",
    examples=4,
    d=sizes,
    seed=seeds,
)
def constant_fields(trace: Any, d: int, seed: int) -> None:
    """Without a gradient graph, with one that does not contain x, and with one of zeros."""
    weight = _numbers((d,), seed).requires_grad_()
    x = _numbers((3, d), seed + 1)
    for field in (torch.ones_like, lambda v: weight.expand(len(v), d), lambda v: 0 * v):
        for enabled in (True, False):
            with torch.set_grad_enabled(enabled):
                value, estimates = _estimates(trace, field, x, seed)
            close("h(x)", value, field(x))
            close("the estimates", estimates, 0.0)


# --- the mathematics


def _check_mean(what: str, values: Tensor, expected: Tensor) -> None:
    """Compare the mean of draws ``(n, …)`` with its expectation, within 6.5 standard errors."""
    error = _DEVIATIONS * values.std(0) / len(values) ** 0.5
    size = 1 + expected.abs() + values.abs().amax(0)
    close(what, values.mean(0), expected, atol=error + 1e-9 * size)


@TRACES.property(
    "unbiased",
    "E[estimate] = tr ∂h/∂x, for Jacobians of every kind",
    "no division by the number of probes; probes with E vvᵀ ≠ I, as uniform ones; a basis that is "
    "not independent of the probes",
    examples=12,
    kind=kinds,
    d=sizes,
    seed=seeds,
)
def unbiased(trace: Any, kind: str, d: int, seed: int) -> None:
    """The mean of 4000 draws within 6.5 standard errors; false alarms: 1e-8."""
    J = jacobian(kind, d, seed)
    _check_mean("the mean estimate", _draws(trace, J, _FEW, seed + 1), J.trace())


@TRACES.property(
    "nonlinear fields",
    "E[estimate] = ∇·h at the given point, if the Jacobian depends on x",
    "the Jacobian of another sample or of x = 0; a finite difference that is too coarse",
    examples=4,
    d=sizes,
    seed=seeds,
)
def nonlinear_fields(trace: Any, d: int, seed: int) -> None:
    """The mean of 4000 draws at one point within 6.5 standard errors; false alarms: 1e-8."""
    field, divergence = _nonlinear(d, seed)
    x = _numbers((1, d), seed + 1)
    _, estimates = _estimates(trace, field, x.expand(_FEW, d).contiguous(), seed + 2)
    _check_mean("the mean estimate", estimates.mean(1), divergence(x)[0])


@TRACES.property(
    "variance",
    "the mean of the k estimates has the variance that variance(J) declares, 0 at full rank",
    "2 ‖J‖² instead of the symmetric part; a diagonal that counts; the factor 1/k left out",
    applies=_has_variance,
    examples=6,
    kind=kinds,
    d=sizes,
    seed=seeds,
)
def variance(trace: Any, kind: str, d: int, seed: int) -> None:
    """20 000 draws, between 0.7 and 1.5 times the declared variance.

    The heaviest tails are those of one normal probe and a Jacobian of rank one. For them Bennett's
    inequality, for values truncated at a level exceeded once in 10⁹ runs, bounds false alarms by
    1e-8.
    """
    J = jacobian(kind, d, seed)
    values, declared = _draws(trace, J, _MANY, seed + 1), float(trace.variance(J))
    rounding = 1e-16 * (1 + float(J.square().sum()))
    found = float((values - J.trace()).square().mean())
    low, high = 0.7 * declared - rounding, 1.5 * declared + rounding
    holds(
        low <= found <= high,
        f"the variance is {found:.4g}, declared is {declared:.4g}, tolerated {low:.4g} to "
        f"{high:.4g}",
    )


@TRACES.property(
    "zero variance",
    "if variance(J) = 0, every single estimate is tr J: random signs and a diagonal J, the sphere "
    "and a multiple of I",
    "probes of the wrong length: normals instead of signs; E vvᵀ = I, but v_i² ≠ 1",
    applies=_has_variance,
    d=sizes,
    kind=lambda trace: st.sampled_from(["diagonal", "multiple of the identity"]),
    seed=seeds,
)
def zero_variance(trace: Any, d: int, kind: str, seed: int) -> None:
    """Fifty draws, each of them exact."""
    J = jacobian(kind, d, seed)
    if float(trace.variance(J)) <= 1e-24 * float(J.square().sum()):
        size = float(J.abs().sum())
        close("a single estimate", _draws(trace, J, 50, seed), J.trace(), atol=1e-8 * size)


@TRACES.property(
    "full rank",
    "every estimate is tr J if the rank of J is at most exact_rank(d)",
    "a basis of the range of J instead of that of Jᵀ; a probe too few; a basis that is not "
    "orthonormal",
    d=sizes,
    rank=lambda trace: st.integers(1, 40),
    seed=seeds,
)
def full_rank(trace: Any, d: int, rank: int, seed: int) -> None:
    """Fifty draws for a matrix of a rank for which the estimate is exact."""
    rank = min(rank, trace.exact_rank(d))
    if rank > 0:
        left, right = _numbers((2, d, rank), seed)
        J = left @ right.mT
        size = float(left.norm() * right.norm())
        close("a single estimate", _draws(trace, J, 50, seed), J.trace(), atol=1e-6 * size)


@TRACES.property(
    "independence",
    "the k estimates of a call are uncorrelated, so that their variance gives the standard error "
    "of their mean",
    "one probe used k times; antithetic or orthogonal probes returned as separate estimates",
    examples=6,
    kind=kinds,
    d=sizes,
    seed=seeds,
)
def independence(trace: Any, kind: str, d: int, seed: int) -> None:
    """The mean product of two columns, in 20 000 draws, is 0 to 6.5 standard errors (1e-7)."""
    J = jacobian(kind, d, seed)
    estimates = _estimates(trace, _linear(J), J.new_zeros(_MANY, d), seed + 1)[1]
    k = estimates.shape[1]
    if k == 1:
        return  # a single estimate has no sample variance
    noise = estimates - estimates.mean(0)
    products = (noise.sum(1).square() - noise.square().sum(1)) / (k * (k - 1))
    error = _DEVIATIONS * float(products.std()) / _MANY**0.5
    apparent, true = float(estimates.var(1).mean() / k), float(estimates.mean(1).var())
    holds(
        abs(float(products.mean())) <= error + 1e-16 * (1 + float(J.square().sum())),
        f"the variance of {k} estimates gives a standard error of {apparent**0.5:.4g}, their mean "
        f"has {true**0.5:.4g}: they are correlated, their mean product is "
        f"{float(products.mean()):.3g}, tolerated is {error:.2g}",
    )


@TRACES.property(
    "homogeneity",
    "c h has c times the estimates of h, with the same random numbers",
    "an absolute value; a constant that is added; a difference quotient with a fixed step",
    examples=6,
    d=sizes,
    seed=seeds,
)
def homogeneity(trace: Any, d: int, seed: int) -> None:
    """Scaled by −2.5."""
    field, _ = _nonlinear(d, seed)
    x = _numbers((4, d), seed + 1)
    once = _estimates(trace, field, x, seed)[1]
    scaled = _estimates(trace, lambda v: -2.5 * field(v), x, seed)[1]
    size = 1 + float(once.abs().max())
    close("the estimate of −2.5 h", scaled, -2.5 * once, rtol=1e-6, atol=1e-6 * size)


@TRACES.property(
    "linearity",
    "a f + b g has a times the estimates of f plus b times those of g, for the same rng",
    "probes that depend on the field although linear=True",
    applies=lambda trace: trace.linear,
    examples=6,
    d=sizes,
    seed=seeds,
)
def linearity(trace: Any, d: int, seed: int) -> None:
    """2 f − 3 g."""
    (f, _), (g, _) = _nonlinear(d, seed), _nonlinear(d, seed + 1)
    x = _numbers((4, d), seed + 2)
    first, second, both = (
        _estimates(trace, field, x, seed)[1] for field in (f, g, lambda v: 2 * f(v) - 3 * g(v))
    )
    size = 1 + float(first.abs().max() + second.abs().max())
    close("the estimate of 2f − 3g", both, 2 * first - 3 * second, rtol=1e-6, atol=1e-6 * size)


@TRACES.property(
    "gradient",
    "with differentiable=True, E[∂ estimate/∂x] = ∂(∇·h)/∂x",
    ".detach() of the products; create_graph left out; a gradient through a basis of the range",
    examples=3,
    d=sizes,
    seed=seeds,
)
def gradient(trace: Any, d: int, seed: int) -> None:
    """For h_i = x_i³ + x_i |x|², ∇·h = (5 + d) |x|²: 4000 draws, 6.5 standard errors (1e-8 d)."""
    x = _numbers((1, d), seed)
    leaf = x.expand(_FEW, d).clone().requires_grad_()
    _, estimates = _estimates(trace, _cubic, leaf, seed + 1, differentiable=True)
    holds(
        estimates.requires_grad, "the estimates have no gradient graph, though differentiable=True"
    )
    (found,) = torch.autograd.grad(estimates.mean(1).sum(), leaf)
    _check_mean("∂ estimate/∂x", found, 2 * (5 + d) * x[0])
