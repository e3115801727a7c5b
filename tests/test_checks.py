"""Every bad argument gets the right exception: its name, what was expected, what came, a hint."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scoresde._core import checks

INTEGERS = torch.zeros(2, 3, dtype=torch.int64)
NOT_FINITE = torch.tensor([[0.0, 1.0], [math.nan, math.inf]])

BAD = [
    # call, exception, fragments the message must hold
    (
        lambda: checks.check_tensor("x", [1.0]),
        TypeError,
        ["x", "torch.Tensor", "[1.0]", "as_tensor"],
    ),
    (
        lambda: checks.check_floating("x", np.ones(3)),
        TypeError,
        ["NumPy array", "(3,)", "as_tensor"],
    ),
    (lambda: checks.check_floating("x", INTEGERS), TypeError, ["int64", "(2, 3)", "x.float()"]),
    (lambda: checks.check_floating("x", INTEGERS.bool()), TypeError, ["bool tensor", "x.float()"]),
    (lambda: checks.check_floating("x", INTEGERS * 1j), TypeError, ["complex", "view_as_real"]),
    (
        lambda: checks.check_finite("x", NOT_FINITE),
        ValueError,
        ["2 NaN or inf", "(1, 0)", "nan_to_num"],
    ),
    (
        lambda: checks.check_state("x0", torch.tensor(1.0)),
        ValueError,
        ["(batch, *event)", "unsqueeze"],
    ),
    (
        lambda: checks.check_state("x0", torch.ones(0, 2)),
        ValueError,
        ["at least one sample", "(0, 2)"],
    ),
    (lambda: checks.check_state("x0", torch.ones(3, 0)), ValueError, ["at least one sample"]),
    (lambda: checks.check_state("x0", INTEGERS), TypeError, ["x0.float()"]),
    (lambda: checks.check_state("x0", NOT_FINITE), ValueError, ["finite", "nan_to_num"]),
    (
        lambda: checks.check_state("x0", torch.ones(5, 2), (3,)),
        ValueError,
        ["(batch, 3)", "reshape"],
    ),
    (lambda: checks.check_state("x0", torch.ones(5, 2), ()), ValueError, ["(batch)", "(5, 2)"]),
    (lambda: checks.check_state("x0", torch.ones(3), (3,)), ValueError, ["x0.unsqueeze(0)"]),
    (lambda: checks.check_number("T", "1"), TypeError, ["T", "finite number", "'1' (str)"]),
    (lambda: checks.check_number("T", True), TypeError, ["True (bool)"]),
    (lambda: checks.check_number("T", np.bool_(True)), TypeError, ["bool"]),
    (lambda: checks.check_number("T", 1j), TypeError, ["complex"]),
    (lambda: checks.check_number("T", torch.tensor(1.0)), TypeError, ["T.item()"]),
    (lambda: checks.check_number("T", np.array([1.0])), TypeError, ["T.item()"]),
    (lambda: checks.check_number("T", torch.ones(2)), TypeError, ["plain number"]),
    (lambda: checks.check_number("T", math.nan), ValueError, ["nan"]),
    (lambda: checks.check_positive("tolerance", 0.0), ValueError, ["tolerance", "positive", "0.0"]),
    (lambda: checks.check_positive("tolerance", -1), ValueError, ["above zero"]),
    (lambda: checks.check_positive("tolerance", math.inf), ValueError, ["inf"]),
    (
        lambda: checks.check_positive("steps", None, hint="pass steps=50"),
        TypeError,
        ["pass steps=50"],
    ),
    (
        lambda: checks.check_positive("steps", 0, hint="pass steps=50"),
        ValueError,
        ["pass steps=50"],
    ),
    (lambda: checks.check_nonnegative("eta", -1e-9), ValueError, ["eta", "nonnegative", "-1e-09"]),
    (lambda: checks.check_between("snr", 1.5, 0, 1), ValueError, ["snr", "[0, 1]", "1.5"]),
    (lambda: checks.check_between("snr", 0, 0, 1, exclusive=True), ValueError, ["(0, 1)"]),
    (lambda: checks.check_between("snr", "half", 0, 1), TypeError, ["[0, 1]"]),
    (lambda: checks.check_ordered("a", 2, "b", 1), ValueError, ["a < b", "a=2", "b=1", "swap"]),
    (lambda: checks.check_ordered("a", 1, "b", 1), ValueError, ["a < b"]),
    (lambda: checks.check_ordered("a", 1, "b", None), TypeError, ["b", "None"]),
    (lambda: checks.check_integer("steps", 3.0), TypeError, ["steps", "integer", "int(steps)"]),
    (lambda: checks.check_integer("steps", True), TypeError, ["bool"]),
    (
        lambda: checks.check_integer("steps", 0, minimum=1),
        ValueError,
        ["at least 1", "0", "1 or more"],
    ),
    (lambda: checks.check_integers("shape", 3), TypeError, ["shape", "sequence", "(3,)"]),
    (lambda: checks.check_integers("shape", (2, 0), 1), ValueError, ["shape[1]", "at least 1"]),
    (lambda: checks.check_integers("shape", "32"), TypeError, ["sequence"]),
    (
        lambda: checks.check_instance("sde", "vp", nn.Linear, "Linear(2, 2)"),
        TypeError,
        ["sde", "a Linear such as Linear(2, 2)", "'vp' (str)", "not a name"],
    ),
    (
        lambda: checks.check_instance("sde", nn.Linear, nn.Module, "Linear(2, 2)"),
        TypeError,
        ["a Module such as", "pass an instance, Linear(…), not the class"],
    ),
    (
        lambda: checks.check_instance("sde", 3, nn.Identity, "Identity()"),
        TypeError,
        ["an Identity such as", "3 (int)", "; pass Identity()"],
    ),
    (
        lambda: checks.check_instance("sde", 3, nn.Identity, "Identity()", "wrap it"),
        TypeError,
        ["an Identity such as", "; wrap it"],
    ),
    (lambda: checks.check_file("path", 3), TypeError, ["path", "string or a Path"]),
    (
        lambda: checks.check_file("path", "/no/such/file.pt"),
        FileNotFoundError,
        ["no folder /no/such"],
    ),
    (lambda: checks.check_file("path", Path(__file__).parent), IsADirectoryError, ["folder"]),
    (
        lambda: checks.check_file("path", Path(__file__).with_name("test_chekcs.py")),
        FileNotFoundError,
        ["test_chekcs.py", "holds", "spelling"],
    ),
]


@pytest.mark.parametrize(("call", "exception", "fragments"), BAD)
def test_bad_argument(call, exception, fragments):
    with pytest.raises(exception) as caught:
        call()
    message = str(caught.value)
    assert ": expected" in message
    assert "got" in message
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("event", [(), (3,), (2, 1, 4)])
def test_states_of_any_event_shape_and_dtype_pass_unchanged(event, dtype, device):
    x = torch.zeros(5, *event, dtype=dtype, device=device)
    assert checks.check_state("x", x, event) is x
    assert checks.check_state("x", x) is x


@given(value=st.floats(min_value=1e-30, max_value=1e30), kind=st.sampled_from([float, np.float64]))
def test_numbers_come_back_as_plain_floats(value, kind):
    for check in (checks.check_number, checks.check_positive, checks.check_nonnegative):
        number = check("value", kind(value))
        assert type(number) is float
        assert number == value


def test_numpy_scalars_are_numbers():
    assert checks.check_positive("value", np.float32(0.5)) == 0.5
    assert checks.check_positive("value", np.int64(3)) == 3.0
    steps = checks.check_integer("steps", np.int32(7), minimum=7)
    assert type(steps) is int
    assert steps == 7


def test_sequences_of_integers_become_tuples():
    assert checks.check_integers("shape", torch.Size([2, 3]), minimum=1) == (2, 3)
    assert checks.check_integers("shape", []) == ()


def test_bounds_belong_to_closed_intervals():
    assert checks.check_between("p", 0, 0, 1) == 0.0
    assert checks.check_between("p", 1, 0, 1) == 1.0
    assert checks.check_nonnegative("eta", 0) == 0.0
    assert checks.check_ordered("low", 0, "high", np.float32(2)) == (0.0, 2.0)


def test_an_instance_comes_back():
    module = nn.Identity()
    assert checks.check_instance("network", module, nn.Module, "Identity()") is module


def test_an_existing_file_comes_back_as_a_path():
    assert checks.check_file("path", __file__) == Path(__file__)


def test_long_values_are_cut_in_messages():
    assert len(checks.summarize("a" * 1000)) < 80
