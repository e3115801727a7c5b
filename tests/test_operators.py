"""Linear operators: the properties of each of them, against dense matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import scoresde.operators as operators
from scoresde.operators import (
    AveragePool,
    Bicubic,
    Blur,
    DiagonalizedOperator,
    Downsampling,
    FunctionOperator,
    Grayscale,
    LinearOperator,
    Mask,
    Matrix,
)


def randn(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


KERNEL = torch.tensor([[0.0, 0.1, 0.0], [0.2, 0.6, 0.05], [0.0, 0.05, 0.0]])
CASES = [
    (Mask(torch.tensor(True)), ()),
    (Mask(torch.tensor([True, False, True, True])), (4,)),
    (Mask(randn(3, 4, 4) > 0.3), (3, 4, 4)),
    (AveragePool(2), (4, 6)),
    (AveragePool(3, dimensions=1), (2, 9)),
    (Bicubic(2), (3, 8, 6)),
    (Bicubic(4, dimensions=3), (4, 8, 4)),
    (Blur(KERNEL), (2, 5, 6)),
    (Blur(torch.tensor([0.2, 0.7, 0.1])), (4,)),
    (Grayscale(), (3, 4, 2)),
    (Grayscale((0.2, 0.5)), (2,)),
    (Matrix(randn(3, 5)), (5,)),
    (Matrix(randn(2, 3) @ torch.ones(3, 6, dtype=torch.float64), (2, 3)), (2, 3)),  # rank 1
    (FunctionOperator(lambda x: x[:, 1:] - x[:, :-1], (5,)), (5,)),
    (FunctionOperator(nn.Conv2d(1, 2, 3, bias=False).double(), (1, 4, 4)), (1, 4, 4)),
]
MEMBERS = pytest.mark.parametrize(("operator", "event"), CASES, ids=str)


def test_every_member_is_tried():
    abstract = {LinearOperator, DiagonalizedOperator, Downsampling}
    members = {getattr(operators, name) for name in operators.__all__} - abstract
    assert {type(operator) for operator, _ in CASES} == members


@MEMBERS
def test_it_is_the_matrix_it_says_it_is(operator, event):
    """Linear, of the observed shape, with the adjoint and every solution of the dense matrix."""
    dense, x = operator.matrix(event), randn(4, *event)
    observed = operator.observed_shape(event)
    assert observed == tuple(operator(x).shape[1:])
    torch.testing.assert_close(operator(x).reshape(4, -1), x.reshape(4, -1) @ dense.T)
    y = randn(4, *observed, seed=1)
    torch.testing.assert_close(operator.adjoint(y).reshape(4, -1), y.reshape(4, -1) @ dense)
    gram = dense @ dense.T
    for shift in (0.3, torch.tensor([0.01, 0.1, 1.0, 10.0], dtype=torch.float64)):
        shifts = torch.as_tensor(shift, dtype=torch.float64).expand(4).reshape(4, 1, 1)
        system = gram + shifts * torch.eye(len(gram), dtype=torch.float64)
        expected = torch.linalg.solve(system, y.reshape(4, -1))
        torch.testing.assert_close(operator.solve(y, shift).reshape(4, -1), expected)


@MEMBERS
def test_the_pseudo_inverse_is_moore_and_penroses(operator, event):
    dense = operator.matrix(event)
    y = operator(randn(3, *event))  # in the range; members of full rank reach all of R^m
    if torch.linalg.matrix_rank(dense) == len(dense):
        y = randn(*y.shape, seed=2)
        torch.testing.assert_close(operator(operator.pseudo_inverse(y)), y)
    expected = y.reshape(3, -1) @ torch.linalg.pinv(dense).T
    torch.testing.assert_close(operator.pseudo_inverse(y).reshape(3, -1), expected)
    x = randn(3, *event, seed=3)
    torch.testing.assert_close(operator.project(operator.project(x)), operator.project(x))


@MEMBERS
def test_dtype_device_and_rows_follow_the_input(operator, event, device):
    operator, x = operator.to(device), randn(3, *event, dtype=torch.float32).to(device)
    if not list(operator.parameters()):  # a module of the user's has a dtype of its own
        y = operator(x)
        for value in (y, operator.adjoint(y), operator.solve(y, 0.1), operator.pseudo_inverse(y)):
            assert (value.dtype, value.device) == (x.dtype, x.device)
            alone = operator.solve(y[1:2], 0.1)
            torch.testing.assert_close(alone, operator.solve(y, 0.1)[1:2])
    operator.to("cpu")


@MEMBERS
def test_gradients_flow_through_all_of_it(operator, event):
    y = randn(2, *operator.observed_shape(event)).requires_grad_()
    torch.autograd.gradcheck(lambda v: operator.adjoint(operator.solve(v, 0.5)), (y,))


def test_average_pool_and_convolution_against_torch():
    x = randn(2, 3, 8, 12)
    torch.testing.assert_close(AveragePool(4)(x), nn.functional.avg_pool2d(x, 4))
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="circular")
    flipped = KERNEL.double().flip(0, 1).expand(3, 1, 3, 3)
    expected = nn.functional.conv2d(padded, flipped, groups=3)
    torch.testing.assert_close(Blur(KERNEL)(x), expected)


def test_least_squares_by_its_own_solve():
    """x + Aᵀ(AAᵀ + c)⁻¹(y − Ax) minimizes ‖y − Au‖² + c‖u − x‖²: its gradient there is 0."""
    operator = Bicubic(2)
    x, y, c = randn(1, 6, 6), randn(1, 3, 3, seed=1), 0.2
    u = x + operator.adjoint(operator.solve(y - operator(x), c))
    gradient = operator.adjoint(operator(u) - y) + c * (u - x)
    assert float(gradient.abs().max()) < 1e-13


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: Mask(torch.ones(3)), TypeError, "mask: expected booleans"),
        (lambda: Mask(torch.zeros(3, dtype=torch.bool)), ValueError, "mask: expected at least one"),
        (lambda: Mask([True]), TypeError, "mask: expected a torch.Tensor"),
        (lambda: Mask(torch.ones(3).bool())(randn(2, 4)), ValueError, r"samples of shape \(3,\)"),
        (lambda: AveragePool(0), ValueError, "factor"),
        (lambda: AveragePool(2.0), TypeError, "factor"),
        (lambda: AveragePool(3)(randn(1, 8, 9)), ValueError, r"\(…, 3n, 3n\).*got \(8, 9\)"),
        (lambda: Bicubic(2)(randn(1, 8)), ValueError, "got .8,."),
        (lambda: Blur(torch.ones(2)), ValueError, "kernel: expected odd"),
        (lambda: Blur(torch.tensor(1.0)), ValueError, "kernel: expected odd"),
        (lambda: Blur(torch.ones(3))(randn(1, 2)), ValueError, ">= 3"),
        (lambda: Blur.gaussian(-1.0), ValueError, "std"),
        (lambda: Grayscale((0.0, 0.0)), ValueError, "weights"),
        (lambda: Grayscale()(randn(1, 4, 2, 2)), ValueError, "one weight per channel"),
        (lambda: Matrix(torch.ones(3)), ValueError, "values: expected a matrix"),
        (lambda: Matrix(torch.full((1, 1), math.nan)), ValueError, "values: expected finite"),
        (lambda: Matrix(torch.ones(2, 6), (2, 2)), ValueError, "event_shape: expected 6"),
        (lambda: Matrix(torch.ones(2, 6))(randn(1, 2, 3)), ValueError, "pass event_shape"),
        (lambda: FunctionOperator(torch.exp, (2,)), ValueError, "function: expected a linear one"),
        (lambda: FunctionOperator(3, (2,)), TypeError, "function: expected a callable"),
        (lambda: FunctionOperator(torch.neg, (2,))(randn(1, 3)), ValueError, "got .3,."),
    ],
)
def test_bad_input(act, error, message):
    with pytest.raises(error, match=message):
        act()
