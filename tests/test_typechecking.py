"""The shape checks of the test suite are switched on, can fail, and stay out of the way."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from jaxtyping import TypeCheckError, install_import_hook
from jaxtyping._config import config

import scoresde

SAMPLE = '''
from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn


State = Float[Tensor, "batch *event"]


def shift(x: State, t: Float[Tensor, "batch"]) -> State:
    """Add t to x.

    >>> shift(torch.zeros(1), torch.ones(1))
    tensor([1.])
    """
    if len(t) == 7:
        raise ValueError("t: expected (batch,)")
    return x + t.reshape(-1, *(1,) * (x.ndim - 1))


def careless(x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
    return x[:1]


@dataclass(frozen=True)
class Recipe:
    snr: float = 0.1

    def copy(self) -> Self:
        return self


class Net(nn.Module):
    def forward(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return x.relu()
'''


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """A small module, imported as scoresde is."""
    folder: Path = tmp_path_factory.mktemp("sample")
    (folder / "shape_check_sample.py").write_text(SAMPLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        with install_import_hook("shape_check_sample", "typechecking.check_after_call"):
            return importlib.import_module("shape_check_sample")


pytestmark = pytest.mark.skipif(config.jaxtyping_disable, reason="JAXTYPING_DISABLE is set")


def test_scoresde_is_imported_through_the_hook() -> None:
    assert "jaxtyping" in type(scoresde.__spec__.loader).__module__


def test_a_wrong_result_is_found(sample: ModuleType) -> None:
    with pytest.raises(TypeCheckError, match="return value"):
        sample.careless(torch.zeros(2, 3))


def test_a_wrong_argument_that_was_accepted_is_found(sample: ModuleType) -> None:
    with pytest.raises(TypeCheckError):
        sample.shift(torch.zeros(3, 2), torch.zeros(1))
    with pytest.raises(TypeCheckError):
        sample.Recipe(snr="0.1")


def test_own_errors_come_first(sample: ModuleType) -> None:
    with pytest.raises(ValueError, match="t: expected"):
        sample.shift(torch.zeros(2, 3), torch.zeros(7))


def test_an_int_is_a_float(sample: ModuleType) -> None:
    assert sample.Recipe(snr=1).snr == 1


def test_an_unreadable_hint_is_not_checked(sample: ModuleType) -> None:
    assert sample.Recipe().copy() == sample.Recipe()


def test_doctests_are_found(sample: ModuleType) -> None:
    assert [each.name for each in doctest.DocTestFinder().find(sample) if each.examples]


def test_transforms_and_the_compiler_pass_through(sample: ModuleType) -> None:
    net, x = sample.Net(), torch.ones(2, 3)
    assert torch.func.jvp(net, (x,), (x,))[1].equal(x)
    assert torch.func.vmap(net)(x[None]).equal(x[None])
    assert torch.compile(net, fullgraph=True, backend="eager")(x).equal(x)
