r"""The properties of networks ``(x, label, **condition) -> x-shaped``.

A network is an ``nn.Module`` that takes states ``x`` ``(batch, *event)`` and one label per sample
``(batch,)``. In evaluation mode it must be a differentiable function of each sample alone, as
likelihoods, guidance and reproducible sampling need it.
"""

# ruff: noqa: ARG001 - tests, fields and strategies take the arguments of their family

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from scoresde._core.modules import dtype_and_device
from scoresde._core.random import normal
from scoresde.testing.properties import (
    PropertySuite,
    Report,
    close,
    documents,
    finite,
    holds,
)
from scoresde.testing.strategies import devices, dtypes, event_shapes, seeds

NETWORKS = PropertySuite("network")
"""The properties of networks."""

_LABELS = (0.0, 1e-5, 0.3, 1.0, 999.0)
"""Labels that parametrizations use: times in [0, 1], indices up to 999."""


@documents(
    network="the network, or a strategy that draws some.",
    event_shape="shape of one sample; None if the network has an attribute of this name, or takes\n"
    "        any shape.",
    condition="further keyword arguments of its ``forward``: tensors with one row per sample of a\n"
    "        batch of four, or other objects, which are passed unchanged.",
)
def check_network(
    network: nn.Module | st.SearchStrategy[nn.Module],
    event_shape: Sequence[int] | None = None,
    *,
    condition: Mapping[str, Any] | None = None,
    seed: int = 0,
    examples: int | None = None,
    only: str | Sequence[str] | None = None,
) -> Report:
    """Check that a network has the properties that scores, samplers and likelihoods need.

    It is tested in evaluation mode, in a copy.

    Example:
        >>> from scoresde.networks import MLP
        >>> check_network(MLP((2,), width=8, depth=1))
        <Report: 10 of 10 hold>
    """  # noqa: DOC201 - see the decorator
    fixed: dict[str, Any] = {} if event_shape is None else {"event_shape": tuple(event_shape)}
    if condition is not None:
        fixed["condition"] = dict(condition)
    return NETWORKS.check(network, seed=seed, examples=examples, only=only, fixed=fixed)


# --- cases


def shape_of(network: Any) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw an event shape that the network takes: its attribute ``event_shape`` if it has one."""
    shape = getattr(network, "event_shape", None)
    return event_shapes() if shape is None else st.just(tuple(shape))


def no_condition(network: object = None) -> st.SearchStrategy[dict[str, Any]]:
    """Draw no condition."""
    return st.just({})


_CASES: dict[str, Any] = {"event_shape": shape_of, "condition": no_condition, "seed": seeds}


def _prepared(network: nn.Module, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Any:
    """Return a copy in evaluation mode whose output depends on all parameters.

    Layers that are initialized with zeros, as the last one of many networks, would hide everything
    that comes before: small numbers are added to parameters that are 0.
    """
    network = copy.deepcopy(network).to(device, dtype).eval().requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if not bool(parameter.any()):
                noise = normal(tuple(parameter.shape), generator=generator, dtype=torch.float64)
                parameter.add_(0.05 * noise.to(parameter))
    return network


def _inputs(
    event_shape: tuple[int, ...], seed: int, n: int = 4, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Return states ``(n, *event)`` and labels ``(n,)``, n at most 4."""
    generator = torch.Generator().manual_seed(seed)
    x = normal((4, *event_shape), generator=generator, dtype=torch.float64)[:n]
    label = torch.rand(4, generator=generator, dtype=torch.float64)[:n]
    return x.to(dtype), label.to(dtype)


def _rows(condition: Mapping[str, Any], rows: Any, dtype: torch.dtype) -> dict[str, Any]:
    """Return those rows of a condition for four samples, floating-point tensors in the dtype."""
    return {
        name: (value.to(dtype) if value.is_floating_point() else value)[rows]
        if isinstance(value, Tensor) and value.ndim > 0 and len(value) == 4
        else value
        for name, value in condition.items()
    }


def _call(
    network: Any, x: Tensor, label: Tensor, condition: Mapping[str, Any], rows: Any = slice(None)
) -> Tensor:
    given = _rows(condition, rows, x.dtype)
    moved = {k: v.to(x.device) if isinstance(v, Tensor) else v for k, v in given.items()}
    out: Tensor = network(x, label, **moved)
    return out


# --- properties


@NETWORKS.property(
    "shapes",
    "network(x, label) with x (batch, *event) and label (batch,) has the shape, dtype and device "
    "of x, for a batch of one too",
    "a label of shape () or (batch, 1); squeeze(); a table or constant in float32 or on the CPU",
    examples=6,
    dtype=dtypes,
    device=devices,
    **_CASES,
)
@torch.no_grad()
def shapes(
    network: Any,
    event_shape: tuple[int, ...],
    condition: Mapping[str, Any],
    seed: int,
    dtype: torch.dtype,
    device: str,
) -> None:
    """Batches of 1, 3 and 4 samples."""
    network = _prepared(network, dtype, device)
    for n in (1, 3, 4):
        x, label = (v.to(device) for v in _inputs(event_shape, seed, n, dtype))
        out = _call(network, x, label, condition, slice(n))
        holds(isinstance(out, Tensor), f"the output is a {type(out).__name__}, expected a tensor")
        found = tuple(out.shape), out.dtype, out.device
        wanted = tuple(x.shape), x.dtype, x.device
        holds(found == wanted, f"the output is {found}, expected {wanted} as x is")
        finite("the output", out)


@NETWORKS.property(
    "batch independence",
    "network(x, label)[i] = network(x[i:i+1], label[i:i+1]) in evaluation mode, also beside a "
    "sample of NaN",
    "batch norm that uses the statistics of the batch, or a mean, norm or maximum over it; one "
    "label for all samples",
    examples=4,
    **_CASES,
)
@torch.no_grad()
def batch_independence(
    network: Any, event_shape: tuple[int, ...], condition: Mapping[str, Any], seed: int
) -> None:
    """Each sample of a batch of four, with its own label, is compared with a batch of one."""
    network = _prepared(network)
    x, label = _inputs(event_shape, seed)
    together = _call(network, x, label, condition)
    size = float(together.abs().max())
    for i in range(4):
        one = slice(i, i + 1)
        alone = _call(network, x[one], label[one], condition, one)
        close(f"sample {i} alone", alone, together[one], rtol=1e-6, atol=1e-8 * size)
    with_nan = x.clone()
    with_nan[1] = torch.nan
    beside = _call(network, with_nan, label, condition)
    others = [0, 2, 3]
    what = "the other samples, beside a sample of NaN,"
    close(what, beside[others], together[others], rtol=1e-6, atol=1e-8 * size)


@NETWORKS.property(
    "purity",
    "equal arguments give equal outputs; x, label, parameters, buffers and global generators are "
    "not modified",
    "dropout that ignores eval(); noise drawn in forward; an in-place operation on x or label; a "
    "running statistic that is updated in evaluation mode",
    examples=4,
    **_CASES,
)
@torch.no_grad()
def purity(
    network: Any, event_shape: tuple[int, ...], condition: Mapping[str, Any], seed: int
) -> None:
    """In evaluation mode a network is a function of its arguments."""
    network = _prepared(network)
    x, label = _inputs(event_shape, seed)
    before = x.clone(), label.clone()
    weights = {k: v.clone() for k, v in network.state_dict().items()}
    state = torch.get_rng_state()
    first = _call(network, x, label, condition).clone()
    _call(network, 2 * x, 0.5 * label, condition)
    close("the output, evaluated again,", _call(network, x, label, condition), first)
    close("x, after the call,", x, before[0])
    close("label, after the call,", label, before[1])
    for name, value in network.state_dict().items():
        holds(torch.equal(value, weights[name]), f"{name} has changed in evaluation mode")
    holds(torch.equal(torch.get_rng_state(), state), "the global generator has advanced")


@NETWORKS.property(
    "labels",
    "the output depends on the label, and is finite for labels from 0 to 999",
    "log 0 or 1/label; a label that is not used",
    examples=2,
    **_CASES,
)
@torch.no_grad()
def labels(
    network: Any, event_shape: tuple[int, ...], condition: Mapping[str, Any], seed: int
) -> None:
    """Labels 0, 1e-5, 0.3, 1 and 999, which the common parametrizations use."""
    network = _prepared(network)
    x, label = _inputs(event_shape, seed)
    outputs = []
    for value in _LABELS:
        out = _call(network, x, torch.full_like(label, value), condition)
        finite(f"the output for the label {value:g}", out)
        outputs.append(out)
    differs = any(not torch.equal(out, outputs[0]) for out in outputs[1:])
    holds(differs, "the output is the same for all labels")


@NETWORKS.property(
    "single precision",
    "in float32 the output is that in float64 to 1e-2 of its size",
    "an overflow or a cancellation in float32; a label rounded to an integer or to half precision",
    examples=3,
    **_CASES,
)
@torch.no_grad()
def single_precision(
    network: Any, event_shape: tuple[int, ...], condition: Mapping[str, Any], seed: int
) -> None:
    """A copy in float32 is compared with a copy in float64."""
    x, label = _inputs(event_shape, seed, dtype=torch.float32)
    low = _call(_prepared(network, torch.float32), x, label, condition)
    high = _call(_prepared(network), x.double(), label.double(), condition)
    size = float(high.abs().max())
    close("the output in float32", low, high, atol=1e-2 * size)


@NETWORKS.property(
    "gradient",
    "the derivative of the output in x by autograd is that by finite differences",
    ".detach(), no_grad or numpy in forward; an in-place operation",
    examples=4,
    **_CASES,
)
def gradient(
    network: Any, event_shape: tuple[int, ...], condition: Mapping[str, Any], seed: int
) -> None:
    """The directional derivative of a weighted sum of the output."""
    network = _prepared(network)
    x, label = _inputs(event_shape, seed)
    direction, weight = _inputs(event_shape, seed + 1)[0], _inputs(event_shape, seed + 2)[0]
    leaf = x.clone().requires_grad_()
    out = _call(network, leaf, label, condition)
    holds(out.requires_grad, "the output has no gradient graph")
    (found,) = torch.autograd.grad((out * weight).sum(), leaf, allow_unused=True)
    holds(found is not None, "the gradient graph of the output does not contain x")
    assert found is not None
    h = 1e-5
    with torch.no_grad():
        high, low = (_call(network, x + s * direction, label, condition) for s in (h, -h))
    expected = ((high - low) * weight).sum() / (2 * h)
    size = float((found * direction).abs().sum() + (out * weight).abs().sum().detach())
    close("the derivative", (found * direction).sum(), expected, rtol=1e-4, atol=1e-6 * size)


@NETWORKS.property(
    "training",
    "the gradient of a loss reaches every parameter that requires one, in training mode",
    ".detach() or no_grad around a block; a parameter that is not used in forward",
    examples=1,
    **_CASES,
)
def training(
    network: Any, event_shape: tuple[int, ...], condition: Mapping[str, Any], seed: int
) -> None:
    """At least nine tenths of the parameter tensors have a gradient, and all are finite."""
    required = {name for name, each in network.named_parameters() if each.requires_grad}
    network = _prepared(network).train()
    x, label = _inputs(event_shape, seed)
    with torch.random.fork_rng(devices=[]):  # dropout
        torch.manual_seed(seed)
        _call(network, x, label, condition).square().sum().backward()
    missing = []
    for name, parameter in network.named_parameters():
        if name in required and parameter.grad is None:
            missing.append(name)
        elif name in required and parameter.grad is not None:
            finite(f"the gradient of {name}", parameter.grad)
    holds(
        len(missing) <= 0.1 * len(required),
        f"{len(missing)} of {len(required)} parameters have no gradient, such as {missing[:3]}",
    )


@NETWORKS.property(
    "second derivatives",
    "autograd differentiates twice in x, as the gradients of exact likelihoods need it",
    "a kernel without second derivative, such as fused attention; create_graph in vain behind a "
    "custom backward",
    examples=2,
    **_CASES,
)
def second_derivatives(
    network: Any, event_shape: tuple[int, ...], condition: Mapping[str, Any], seed: int
) -> None:
    """d/dx (v·∂f/∂x w) by autograd, compared with a finite difference of vᵀ∂f/∂x."""
    network = _prepared(network)
    x, label = _inputs(event_shape, seed)
    direction, weight = _inputs(event_shape, seed + 1)[0], _inputs(event_shape, seed + 2)[0]

    def product(x: Tensor, graph: bool) -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        out = _call(network, leaf, label, condition)
        (found,) = torch.autograd.grad((out * weight).sum(), leaf, create_graph=graph)
        return leaf, found

    leaf, first = product(x, graph=True)
    value = (first * direction).sum()
    second = torch.zeros_like(x)
    if value.requires_grad:
        (found,) = torch.autograd.grad(value, leaf, allow_unused=True)
        second = second if found is None else found
    h = 1e-5
    high, low = (product(x + s * direction, graph=False)[1] for s in (h, -h))
    expected = ((high - low) * direction).sum() / (2 * h)
    size = float((first * direction).abs().sum().detach() + (second * direction).abs().sum())
    close("the second derivative", (second * direction).sum(), expected, rtol=1e-3,
          atol=1e-6 * size)  # fmt: skip


@NETWORKS.property(
    "forward mode",
    "torch.func.jvp and vmap differentiate the network, and jvp agrees with autograd",
    "an operation without forward derivative, such as fused attention; .item() or numpy in forward",
    examples=2,
    **_CASES,
)
def forward_mode(
    network: Any, event_shape: tuple[int, ...], condition: Mapping[str, Any], seed: int
) -> None:
    """Jvp along a direction, compared with the vector-Jacobian product."""
    network = _prepared(network)
    x, label = _inputs(event_shape, seed)
    direction, weight = _inputs(event_shape, seed + 1)[0], _inputs(event_shape, seed + 2)[0]
    with warnings.catch_warnings():  # raised by torch in the first jvp of a process
        warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)
        tangent = torch.func.jvp(lambda v: _call(network, v, label, condition), (x,), (direction,))[
            1
        ]
    leaf = x.clone().requires_grad_()
    out = _call(network, leaf, label, condition)
    (found,) = torch.autograd.grad((out * weight).sum(), leaf)
    size = float((found * direction).abs().sum())
    close("w·jvp", (tangent * weight).sum(), (found * direction).sum(), rtol=1e-6, atol=1e-8 * size)


@NETWORKS.property(
    "serialization",
    "each constructor argument is an attribute of the same name, and a state_dict restores the "
    "network",
    "self._width for an argument width; a table that is no buffer and depends on random numbers",
    examples=1,
    **_CASES,
)
@torch.no_grad()
def serialization(
    network: Any, event_shape: tuple[int, ...], condition: Mapping[str, Any], seed: int
) -> None:
    """A model with this network can be saved and loaded without naming its class."""
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    parameters = inspect.signature(type(network)).parameters.values()
    names = [each.name for each in parameters if each.kind not in kinds]
    for name in names:
        holds(hasattr(network, name), f"{type(network).__name__} has no attribute {name!r}")
    dtype, _ = dtype_and_device(network)
    with torch.random.fork_rng(devices=[]):
        rebuilt = type(network)(**{name: getattr(network, name) for name in names})
    rebuilt.load_state_dict(network.state_dict())
    x, label = _inputs(event_shape, seed, dtype=dtype)
    found, expected = (
        _call(copy.deepcopy(each).to(dtype).cpu().eval(), x, label, condition)
        for each in (rebuilt, network)
    )
    close("the output of the restored network", found, expected, rtol=1e-6, atol=1e-9)
