"""Drawn objects are valid, print as code that constructs them, and shrink to simple ones."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

import scoresde
from scoresde import VPSDE, likelihood, samplers, solvers, traces
from scoresde.testing import checks, strategies
from scoresde.testing.examples import DoubleWell, OrnsteinUhlenbeck
from scoresde.testing.properties import code

NAMES: dict[str, object] = {"torch": torch, "inf": math.inf}
for module in (scoresde, likelihood, samplers, solvers, traces):
    NAMES |= vars(module)
NAMES |= {"DoubleWell": DoubleWell, "OrnsteinUhlenbeck": OrnsteinUhlenbeck}

DRAWN = {
    "sdes": strategies.sdes(),
    "general_sdes": strategies.general_sdes(),
    "samplers": strategies.samplers(),
    "grids": strategies.grids(),
    "coordinates": strategies.coordinates(),
    "solvers": strategies.solvers(),
    "traces": strategies.traces(),
    "probe_distributions": strategies.probe_distributions(),
    "methods": strategies.methods(),
    "dtypes": strategies.dtypes(),
    "event_shapes": strategies.event_shapes(),
    "devices": strategies.devices(),
    "tolerances": strategies.tolerances(),
    "steps": strategies.steps(),
}


@pytest.mark.parametrize("name", DRAWN)
@given(data=st.data())
def test_drawn_objects_print_as_code(name, data):
    value = data.draw(DRAWN[name])
    again = eval(code(value) if not isinstance(value, str) else repr(value), NAMES)
    assert code(again) == code(value)


@given(mixture=strategies.mixtures(dim=3, sdes=strategies.sdes(), narrowest=1e-6))
def test_mixtures_print_as_code(mixture):
    again = eval(code(mixture), NAMES)
    x = mixture.sample(3, mixture.sde.T, torch.Generator().manual_seed(0), torch.float64)
    found, expected = (each.log_prob(x, mixture.sde.T) for each in (again, mixture))
    torch.testing.assert_close(found, expected)


@settings(max_examples=max(5, settings.default.max_examples // 10))
@given(model=strategies.models((2, 3)))
def test_models_are_functions_of_their_seed(model):
    x, t = torch.ones(2, 2, 3), 0.5 * model.sde.T
    assert model(x, t).shape == x.shape
    assert any(bool(parameter.any()) for parameter in model.parameters())


@pytest.mark.parametrize(
    ("strategy", "wanted", "simplest"),
    [
        (strategies.sdes("VPSDE"), lambda sde: sde.beta_max > 10, lambda sde: sde.beta_min == 0),
        (strategies.samplers(), lambda s: s.deterministic, lambda s: s.convergence_order == 1),
        (strategies.traces(), lambda trace: not trace.exact, lambda trace: trace.products(5) <= 3),
        (strategies.solvers(), lambda solver: not solver.own_steps, lambda s: s.method == "dopri5"),
    ],
)
def test_examples_shrink(strategy, wanted, simplest):
    options = settings(database=None, derandomize=True, phases=(Phase.generate, Phase.shrink))
    assert simplest(find(strategy, wanted, settings=options))


def test_numbers_of_examples_by_property():
    found = {
        name: check.keywords["examples"] for name, check in checks(VPSDE(), examples={"rate": 1})
    }
    assert found["rate"] == 1
    assert found["shapes"] is None
