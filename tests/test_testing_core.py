"""The search for a counterexample, its report, and the line that reproduces it."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import scoresde
from scoresde import VPSDE
from scoresde._core.shapes import as_time, expand
from scoresde.samplers import HEUN3, KUTTA3, RungeKutta, Tableau
from scoresde.scores import Score
from scoresde.solvers import Adams
from scoresde.testing import (
    BrokenPropertyError,
    PropertySuite,
    check_sampler,
    check_sde,
    check_solver,
    checks,
    close,
    family_of,
    holds,
    parametrize_with_checks,
    strategies,
)
from scoresde.testing.properties import code


class Doubled(VPSDE):
    """g² where g is meant."""

    def diffusion(self, t):
        return super().diffusion(t) ** 2


def message_of(call) -> str:
    with pytest.raises(BrokenPropertyError) as caught:
        call()
    return str(caught.value)


def test_a_report_has_all_parts():
    text = message_of(lambda: check_sde(Doubled(), only=["moment equations", "serialization"]))
    for part in (
        "moment equations: Doubled(",
        "property (log α)′ = f",
        "where    t = ",
        "found    2 f + g²/σ² is ",
        "causes   g instead of g²",
        "rerun    scoresde.testing.sdes.moment_equations(Doubled(",
    ):
        assert part in text


def test_the_last_line_reproduces_the_failure():
    text = message_of(lambda: check_sde(Doubled(), only="moment equations"))
    line = re.search("rerun    (.*)", text)[1]
    with pytest.raises(AssertionError, match="g²/σ²"):
        eval(line, {"scoresde": scoresde, "Doubled": Doubled, "torch": torch})


def test_a_search_depends_on_its_seed_alone():
    texts = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        texts.append(message_of(lambda: check_sde(Doubled(), seed=5, examples=3, only="rate")))
        assert torch.equal(torch.get_rng_state(), before)
    assert texts[0] == texts[1]


def test_a_strategy_of_subjects_is_shrunk_too():
    family = PropertySuite("number")

    @family.property("small", "n + m < 100", "size", m=lambda n: st.integers(0, n), examples=50)
    def small(n, m):
        holds(n + m < 100, f"n + m is {n + m}")

    with pytest.raises(BrokenPropertyError) as caught:
        family.check(st.integers(0, 1000))
    (found,) = caught.value.counterexamples
    assert found.subject + found.case["m"] == 100
    assert caught.value.names == ("small",)
    family.check(st.integers(0, 49))
    family.check(70, fixed={"m": 3})
    with pytest.raises(BrokenPropertyError, match="n \\+ m is 173"):
        family.check(70, fixed={"m": 103})


def test_an_exception_is_a_counterexample():
    class Halting(VPSDE):
        def drift(self, x, t):
            raise RuntimeError("out of order")

    assert "found    RuntimeError: out of order" in message_of(
        lambda: check_sde(Halting(), only="batch independence")
    )


def test_shrinking_ends():
    """After ten times the usual number of cases the simplest so far is reported."""
    family, runs = PropertySuite("number"), []

    @family.property("never", "n < 0", "all", m=lambda n: st.integers(), examples=3)
    def never(n, m):
        runs.append(m)
        raise AssertionError(str(m))

    with pytest.raises(BrokenPropertyError) as caught:
        family.check(1)
    assert len(runs) <= 1 + 10 * 3
    assert caught.value.counterexamples[0].case["m"] in runs


@pytest.mark.parametrize(
    ("found", "expected", "message"),
    [
        ([1.0, 2.0], [1.0, 2.5], r"x is 2 at index \[1\], expected 2.5: off by 0.5, tolerated"),
        (1.0, 1.1, "x is 1, expected 1.1"),
        (float("nan"), 1.0, "x is nan"),
        (float("inf"), float("inf"), "x is inf"),
    ],
)
def test_close_reports_the_worst_number(found, expected, message):
    with pytest.raises(AssertionError, match=message):
        close("x", found, expected, rtol=1e-3, atol=1e-3)
    close("x", [1.0, 2.0], [1.0005, 1.9995], atol=1e-3)


def test_code_constructs_the_object():
    names = vars(scoresde) | {"torch": torch}
    for sde in (VPSDE(0.3, 7.0, T=1.5), scoresde.DDPM(torch.tensor([0.1, 0.2]).double())):
        again = eval(code(sde), names)
        assert code(again) == code(sde)
        assert again.sigma(0.5) == sde.sigma(0.5)
    assert code((1, 2.5, (3,), ["a"])) == "(1, 2.5, (3,), ['a'])"


def test_unknown_properties_and_kinds_are_refused():
    with pytest.raises(ValueError, match=r"only: expected names of .* SDEs, got 'moment'"):
        check_sde(VPSDE(), only="moment")
    with pytest.raises(TypeError, match="subject: expected an SDE, a Score"):
        family_of(3)
    with pytest.raises(ValueError, match="examples: expected an integer, at least 1"):
        check_sde(VPSDE(), examples=0)
    with pytest.raises(ValueError, match=r"expected_failures, skip: .* 'semigroup'"):
        parametrize_with_checks([VPSDE()], skip={"semigroups": "no"})


@dataclass(frozen=True)
class Number:
    """An object of a family of its own."""

    value: int


NUMBERS = PropertySuite("number")


@family_of.register
def _(subject: Number) -> PropertySuite:
    return NUMBERS


@NUMBERS.property("positive", "n > 0", "a sign")
def positive(n):
    holds(n.value > 0, f"n is {n.value}")


@NUMBERS.property("even", "n = 2 k", "an odd number", applies=lambda n: n.value < 100)
def even(n):
    holds(n.value % 2 == 0, f"n is {n.value}")


def test_a_value_that_is_not_finite_is_reported_as_such():
    class NotANumber(VPSDE):
        def log_sigma(self, t):
            return torch.log(torch.sqrt(-torch.expm1(-2 * self.log_alpha(t))))

    text = message_of(lambda: check_sde(NotANumber()))
    assert text.count("does not have this property") == 1  # nothing else can be said of NaN
    assert "finite: NotANumber(" in text
    assert "over the batch" not in text
    text = message_of(lambda: check_sde(NotANumber(), only="batch independence"))
    assert "the value itself is NaN or infinite" in text
    assert "over the batch" not in text


def test_a_report_gives_what_was_measured():
    family = PropertySuite("number")

    @family.property("size", "n > m", "sign", m=lambda n: st.integers(0, 3), examples=20)
    def size(n, m):
        return float(n - m)

    @family.property("parity", "n = 2 k", "an odd number")
    def parity(n):
        holds(n % 2 == 0, "odd")

    report = family.check(10)
    assert report.measured == {"size": 7.0}
    assert str(report) == "size: holds: measured 7\nparity: holds"
    assert repr(report) == "<Report: 2 of 2 hold, size 7>"
    with pytest.raises(BrokenPropertyError):
        family.check(9)


@pytest.mark.parametrize(
    ("check", "subject", "declared"),
    [
        (check_sampler, RungeKutta(HEUN3), 3),
        (check_solver, Adams(order=2), 2),
    ],
)
def test_a_check_reports_the_observed_order(check, subject, declared):
    report = check(subject, only="convergence order", examples=1)
    assert report.measured["convergence order"] > declared - 0.6


def test_a_declared_order_is_checked():
    """The weights of Kutta's third-order method, two of them exchanged."""
    weights, matrix = (2 / 3, 1 / 6, 1 / 6), ((1 / 2,), (-1.0, 2.0))
    with pytest.raises(ValueError, match="order: expected at most 1"):
        Tableau(weights, matrix, order=3)
    assert Tableau((1 / 6, 2 / 3, 1 / 6), matrix, order=3) == KUTTA3
    assert Tableau(weights, matrix).order == 1


def test_a_score_in_single_precision_is_not_accused():
    """s = (α x̂ − x)/σ² amplifies the rounding errors of x by 1/σ², 1e5 at t = 3e-4."""

    class Rounded(Score):
        event_shape = (16,)

        def denoised(self, x, t):
            alpha, sigma = (v(as_time(t)).to(x.dtype) for v in (self.sde.alpha, self.sde.sigma))
            alpha, sigma = expand(alpha, x), expand(sigma, x)
            gain = alpha / (alpha * alpha + sigma * sigma)
            return gain * x

    case = {"dtype": torch.float32, "t": 3e-4}
    family_of(Rounded(VPSDE())).check(Rounded(VPSDE()), only="shapes", fixed=case, examples=20)


def test_checks_are_documented_and_have_their_signature():
    for check in (check_sde, check_sampler, check_solver):
        text = inspect.getdoc(check)
        for part in ("Args:\n", "    seed: ", "    only: ", "Returns:\n", "Raises:\n", "Example:"):
            assert text.count(part) == 1
        assert list(inspect.signature(check).parameters)[1:] == ["seed", "examples", "only"]


def test_checks_are_named_functions():
    found = dict(checks(Number(7), examples=3))
    assert list(found) == ["positive", "even"]
    found["positive"]()
    with pytest.raises(BrokenPropertyError, match="even: Number"):
        found["even"]()
    assert [name for name, _ in checks(Number(101))] == ["positive"]
    assert {"moment equations", "batch independence"} <= dict(checks(VPSDE())).keys()


@parametrize_with_checks([Number(2), Number(4), Number(101)], skip={"even": "shown elsewhere"})
def test_properties_become_tests(check, request):
    assert request.node.callspec.id in {f"Number(value={n})-positive" for n in (2, 4, 101)}
    check()


@parametrize_with_checks([Number(3)], expected_failures={"even": "three is not"})
def test_failures_may_be_expected(check):
    check()


def test_without_hypothesis_the_message_says_what_to_install():
    program = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import scoresde\n"
        "try:\n    import scoresde.testing\n"
        "except ImportError as error:\n    print(error)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pip install 'scoresde[testing]'" in result.stdout


@given(data=st.data())
def test_times_lie_inside(data):
    sde = data.draw(strategies.sdes())
    assert 0 <= data.draw(strategies.closed_times(sde)) <= sde.T
    first, *_, last = data.draw(strategies.ascending(4)(sde))
    assert 0 < first < last <= sde.T
