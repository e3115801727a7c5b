"""The properties of SDEs as code: shapes, precision, batch independence, error messages."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from scoresde._core.random import normal
from scoresde.sdes import SDE
from scoresde.testing.properties import PropertySuite, close, finite, holds
from scoresde.testing.strategies import (
    ascending,
    devices,
    dtypes,
    event_shapes,
    seeds,
    times,
)

SDES = PropertySuite("SDE")
"""The properties of SDEs; :mod:`scoresde.testing.sdes` adds the mathematical ones."""


def gaussian(sde: SDE) -> bool:
    """Whether the SDE has a Gaussian transition kernel in closed form."""
    return sde.gaussian


def double(value: Any) -> Tensor:
    """Return numbers as a float64 tensor."""
    return torch.as_tensor(value, dtype=torch.float64)


def states(seed: int, count: int, shape: tuple[int, ...]) -> Tensor:
    """Return ``count`` standard normal states."""
    generator = torch.Generator().manual_seed(seed)
    return normal((count, *shape), generator=generator, dtype=torch.float64)


def _results(sde: Any, x: Any, t: Any) -> dict[str, Any]:
    """All functions of a state: x-shaped."""
    found = {"drift": sde.drift(x, t)}
    if sde.gaussian:
        found |= {"perturb": sde.perturb(x, t, x), "mean": sde.marginal(x, t)[0]}
    return found


def _coefficients(sde: Any, t: Any) -> dict[str, Any]:
    """All functions of time: t-shaped."""
    found = {"diffusion": sde.diffusion(t)}
    if sde.gaussian:
        found |= {"alpha": sde.alpha(t), "sigma": sde.sigma(t)}
        found |= dict(zip(("a_t0", "b_t0"), sde.transition(0.0, t), strict=True))
    return found


@SDES.property(
    "finite",
    "drift, diffusion and, of a Gaussian SDE, α, σ and its kernel are finite at all t in (0, T]",
    "0/0, log 0 or the square root of a negative number in a coefficient; an overflow of exp",
    examples=12,
    prerequisite=True,
    t=times,
)
def finite_coefficients(sde: Any, t: float) -> None:
    """Looked at first: of NaN nothing else can be said."""
    for name, value in (_coefficients(sde, t) | _results(sde, _X.double(), t)).items():
        finite(f"{name} at t = {t:g}", value)


@SDES.property(
    "shapes",
    "x (batch, *event) of any event shape; t a float, () or (batch,); results in the shape, dtype "
    "and device of x, coefficients in the shape of t",
    "[:, None, None, None]; a float instead of a tensor; float64 results for float32 states",
    event_shape=event_shapes,
    dtype=dtypes,
    device=devices,
    t=times,
    seed=seeds,
)
def shapes(
    sde: Any, event_shape: tuple[int, ...], dtype: torch.dtype, device: str, t: float, seed: int
) -> None:
    """States of any shape and times of three kinds give the same values."""
    sde = copy.deepcopy(sde).to(device)
    x = states(seed, 1, (3, *event_shape))[0].to(device, dtype)
    each = torch.full((3,), t, dtype=torch.float64, device=device)
    for time in (t, each[0], each):
        shape = tuple(getattr(time, "shape", ()))
        for name, value in _coefficients(sde, time).items():
            holds(
                isinstance(value, Tensor),
                f"{name} at a time that is a {type(time).__name__} is a {type(value).__name__}, "
                "expected a tensor; begin with t = torch.as_tensor(t)",
            )
            found = tuple(value.shape)
            holds(found == shape, f"{name} has shape {found}, expected that of t, {shape}")
        for name, value in _results(sde, x, time).items():
            seen = (tuple(value.shape), value.dtype, value.device)
            wanted = (tuple(x.shape), x.dtype, x.device)
            holds(seen == wanted, f"{name} is {seen}, expected {wanted} as x is")
            first = _results(sde, x, t)[name]
            close(f"{name} at a time of shape {shape}", value, first, rtol=1e-5, atol=1e-6)


@SDES.property(
    "batch independence",
    "drift(x, t)[i] = drift(x[i:i+1], t[i]): no sample depends on the others of its batch",
    "a mean or norm over the batch; one time for all; broadcasting (batch,) against the last axis",
    event_shape=event_shapes,
    t=ascending(3),
    seed=seeds,
)
def batch_independence(sde: Any, event_shape: tuple[int, ...], t: list[float], seed: int) -> None:
    """Each sample of a batch, at its own time, is compared with a batch of one."""
    (x,) = states(seed, 1, (3, *event_shape))
    together, coefficients = _results(sde, x, double(t)), _coefficients(sde, double(t))
    for i in range(3):
        for name, alone in _results(sde, x[i : i + 1], t[i]).items():
            close(f"{name} of sample {i}", together[name][i : i + 1], alone, rtol=1e-9, atol=1e-12)
        for name, alone in _coefficients(sde, t[i]).items():
            close(f"{name} at time {i}", coefficients[name][i], alone, rtol=1e-9)


@SDES.property(
    "single precision",
    "coefficients of a float32 time and drifts of float32 states are accurate to seven digits",
    "1 − exp(−B) near t = 0 (write −expm1(−B)); schedules computed in the dtype of t",
    examples=15,
    t=lambda sde: st.one_of(times(sde), st.sampled_from([sde.T, max(sde.t_min, 1e-5 * sde.T)])),
    gap=ascending(1),
)
def single_precision(sde: Any, t: float, gap: list[float]) -> None:
    """The result in float32 is the result in float64, rounded."""
    low = torch.tensor(t, dtype=torch.float32).clamp(max=sde.T)
    for name, value in _coefficients(sde, low).items():
        close(f"{name} in float32", value, _coefficients(sde, low.double())[name], rtol=1e-6)
    x = torch.tensor([[1.0, -2.0]])
    exact = sde.drift(x.double(), low.double())
    close("drift in float32", sde.drift(x, low), exact, rtol=1e-5, atol=1e-6)
    if sde.gaussian:
        s, r = (torch.tensor(sorted([*gap, t]), dtype=torch.float32)).clamp(max=sde.T)
        for name, value, wide in zip(
            ("a_ts", "b_ts"),
            sde.transition(s, r),
            sde.transition(s.double(), r.double()),
            strict=True,
        ):
            close(f"{name} in float32", value, wide, rtol=1e-6)


@SDES.property(
    "purity",
    "equal arguments give equal values; arguments and global generators are not modified",
    "in-place operations on x; noise drawn inside a coefficient; a cache that is not invalidated",
    examples=5,
    t=times,
    seed=seeds,
)
def purity(sde: Any, t: float, seed: int) -> None:
    """Drift and coefficients are functions of their arguments."""
    (x,) = states(seed, 1, (3, 2))
    before, state = x.clone(), torch.get_rng_state()
    first = _results(sde, x, t) | _coefficients(sde, t)
    _results(sde, 2 * x, 0.5 * t)
    for name, value in (_results(sde, x, t) | _coefficients(sde, t)).items():
        close(f"{name}, evaluated again,", value, first[name])
    close("x, after the call,", x, before)
    holds(torch.equal(torch.get_rng_state(), state), "the global generator has advanced")


@SDES.property(
    "transforms",
    "vmap, jvp and autograd differentiate the drift, and agree on its Jacobian",
    "numpy or .item() inside; in-place operations; .detach() or no_grad around the drift",
    examples=5,
    t=times,
    seed=seeds,
)
def transforms(sde: Any, t: float, seed: int) -> None:
    """Likelihoods need these function transforms; the oracle is a finite difference."""
    (x,) = states(seed, 1, (3, 2))
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: sde.drift(v[None], t)[0]))(x)
    with warnings.catch_warnings():  # raised by torch in the first jvp of a process
        warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)
        tangent = torch.func.jvp(lambda v: sde.drift(v, t), (x,), (torch.ones_like(x),))[1]
    close("the sum of the Jacobian's columns", jacobian.sum(2), tangent, rtol=1e-9, atol=1e-12)
    step = 1e-6
    change = (sde.drift(x + step, t) - sde.drift(x - step, t)) / (2 * step)
    size = float(sde.drift(x, t).abs().max())
    close("jvp along (1, …, 1)", tangent, change, rtol=1e-5, atol=1e-8 + 1e-8 * size)


@SDES.property(
    "serialization",
    "each constructor argument is an attribute of the same name; .half() rounds no coefficient",
    "self._beta for an argument beta; a table stored in float32, or as a parameter that is cast",
    examples=1,
)
def serialization(sde: Any) -> None:
    """A model with this SDE can be saved, and cast to half precision."""
    for name in inspect.signature(type(sde)).parameters:
        holds(hasattr(sde, name), f"{type(sde).__name__} has no attribute {name!r}")
    t = 0.37 * sde.T
    for name, value in _coefficients(copy.deepcopy(sde).half(), t).items():
        close(f"{name} after .half()", value, _coefficients(sde, t)[name])


_X = torch.ones(3, 2)
_MISTAKES: dict[str, tuple[Callable[[Any], object], type[Exception]]] = {
    "a time after T": (lambda sde: sde.drift(_X, 1.5 * sde.T), ValueError),
    "a time before 0": (lambda sde: sde.sigma(-0.1 * sde.T), ValueError),
    "a time of NaN": (lambda sde: sde.diffusion(float("nan")), ValueError),
    "two times for three rows": (lambda sde: sde.drift(_X, torch.ones(2) * sde.T), ValueError),
    "a column of times": (lambda sde: sde.drift(_X, torch.ones(3, 1) * sde.T), ValueError),
    "an integer time": (lambda sde: sde.alpha(torch.tensor(0)), TypeError),
    "integer states": (lambda sde: sde.drift(_X.long(), 0.5 * sde.T), TypeError),
    "noise of another shape": (lambda sde: sde.perturb(_X, 0.5 * sde.T, _X[:2]), ValueError),
    "a kernel back in time": (lambda sde: sde.transition(sde.T, 0.5 * sde.T), ValueError),
    "no score to reverse with": (lambda sde: sde.reverse(None), TypeError),
    "a negative η": (lambda sde: sde.reverse(torch.sin, -1.0), ValueError),
}


@SDES.property(
    "bad input",
    "invalid arguments raise a ValueError or TypeError with a message, and never give a number",
    "clamping times silently; broadcasting two times against three rows",
    applies=gaussian,
    examples=1,
)
def bad_input(sde: Any) -> None:
    """Eleven common mistakes."""
    for mistake, (act, error) in _MISTAKES.items():
        try:
            act(sde)
        except error as refusal:
            holds(str(refusal), f"{mistake} raises {error.__name__} without a message")
        else:
            raise AssertionError(f"{mistake} is accepted, expected a {error.__name__}")
