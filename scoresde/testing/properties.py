r"""Properties, each a formula with a test, and the search for a counterexample.

A property has a function ``test(subject, **case)`` that raises unless the property holds for the
case. Hypothesis draws the cases and shrinks a failing one to the simplest case that still fails.
The report gives the property, the case, the value found and the value expected, the usual causes,
and a line of code that reproduces the failure.

Runs are reproducible: the search depends on ``seed`` alone, cases contain seeds and never
generators, and nothing is written to disk.
"""

# ruff: noqa: ARG001 - tests, fields and strategies take the arguments of their family

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException
from torch import Tensor, nn

from scoresde._core.checks import check_integer

Case = Mapping[str, Any]
Cases = Callable[[Any], st.SearchStrategy[Any]]
"""The strategy that draws one argument of a property, given the subject."""

Test = TypeVar("Test", bound=Callable[..., float | None])
Check = TypeVar("Check", bound=Callable[..., Any])

_SHRINKING = 10
"""Cases tried while a counterexample is simplified, in units of the property's examples."""

_NOT_FINITE = (
    "0/0, log 0, the square root of a negative number or an overflow: the value itself is NaN or "
    "infinite, whatever this property compares"
)


def always(subject: Any) -> bool:
    """The property applies to every subject."""
    return True


@dataclass(frozen=True)
class Property:
    """A property that the members of a family must have.

    Attributes:
        name: its name, a few words.
        statement: the formula or sentence.
        causes: usual causes of a failure.
        test: ``test(subject, **case)``, which raises unless the property holds for the case. It may
            return what it measured, such as an observed order of convergence.
        cases: for each argument of ``test``, the strategy that draws it, given the subject.
        applies: whether a subject must have the property.
        examples: default number of cases.
        prerequisite: whether the properties after it are checked only if this one holds.
    """

    name: str
    statement: str
    causes: str
    test: Callable[..., float | None]
    cases: Mapping[str, Cases] = field(default_factory=dict)
    applies: Callable[[Any], bool] = always
    examples: int = 10
    prerequisite: bool = False

    def search(
        self,
        subjects: st.SearchStrategy[Any],
        *,
        seed: int = 0,
        examples: int | None = None,
        fixed: Case | None = None,
    ) -> PropertyResult:
        """Search for a counterexample, and simplify it.

        Args:
            subjects: strategy of what is tested; ``st.just(object)`` for a single object.
            seed: seed of the search.
            examples: number of cases; the property's own number if None.
            fixed: arguments of the test that are not drawn.

        Returns:
            The simplest counterexample, or None in its place, and what the test measured.
        """
        attempt, fixed = _Attempt(self), dict(fixed or {})

        @seeded(seed)
        @settings(
            max_examples=examples or self.examples,
            database=None,
            deadline=None,
            derandomize=False,
            phases=(Phase.generate, Phase.shrink),
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
        )
        @given(st.data())
        def run(data: st.DataObject) -> None:
            subject = data.draw(subjects)
            if not self.applies(subject):
                return
            drawn = {name: cases(subject) for name, cases in self.cases.items()}
            drawn |= {name: st.just(fixed[name]) for name in drawn.keys() & fixed.keys()}
            attempt(subject, {name: data.draw(cases) for name, cases in drawn.items()})

        try:
            run()
        except _BrokenError:
            return PropertyResult(self, attempt.last)
        return PropertyResult(self, measured=min(attempt.measured, default=None))


@dataclass(frozen=True)
class PropertyResult:
    """The result of the search for a counterexample to one property.

    Attributes:
        checked: the property.
        counterexample: the simplest counterexample; None if the property holds in all cases.
        measured: what the test measured where the property holds, such as the observed order of
            convergence: the smallest value over the cases, None if it measures nothing.
    """

    checked: Property
    counterexample: Counterexample | None = None
    measured: float | None = None

    def __str__(self) -> str:
        """Return one line, or the counterexample."""
        if self.counterexample is not None:
            return str(self.counterexample)
        value = "" if self.measured is None else f": measured {self.measured:.3g}"
        return f"{self.checked.name}: holds{value}"


@dataclass(frozen=True, repr=False)
class Report:
    """What a check found; ``print(report)`` shows one line for each property.

    Attributes:
        results: one :class:`PropertyResult` for each property that was checked.

    Example:
        >>> from scoresde.samplers import Exponential
        >>> from scoresde.testing import check_sampler
        >>> report = check_sampler(Exponential(order=1), only="convergence order", examples=1)
        >>> round(report.measured["convergence order"])
        1
    """

    results: tuple[PropertyResult, ...]

    @property
    def measured(self) -> dict[str, float]:
        """What was measured, by the name of the property, such as orders of convergence."""
        return {
            each.checked.name: each.measured for each in self.results if each.measured is not None
        }

    @property
    def counterexamples(self) -> tuple[Counterexample, ...]:
        """The counterexamples, of the properties that do not hold."""
        return tuple(each.counterexample for each in self.results if each.counterexample)

    def __repr__(self) -> str:
        """Return the number of properties, and what was measured."""
        values = "".join(f", {name} {value:.3g}" for name, value in self.measured.items())
        broken = len(self.counterexamples)
        return f"<Report: {len(self.results) - broken} of {len(self.results)} hold{values}>"

    def __str__(self) -> str:
        """Return one line for each property, and the counterexamples."""
        return "\n".join(map(str, self.results))


class _BrokenError(Exception):
    """A property does not hold; always raised at the same line, so that all shrink as one."""


class _Attempt:
    """A test whose shrinking ends: after enough cases only known failures are reported.

    Attributes:
        last: the last counterexample; the simplest when the search is over.
        measured: what the test returned, case by case.
    """

    def __init__(self, tried: Property) -> None:
        self.tried = tried
        self.last: Counterexample | None = None
        self.measured: list[float] = []
        self._failures: dict[str, Counterexample] = {}
        self._remaining = _SHRINKING * tried.examples

    def __call__(self, subject: Any, case: Case) -> None:
        known = self._failures.get(_key(subject, case)) if self._failures else None
        found = known if known or self._remaining <= 0 else self._try(subject, case)
        if found is not None:
            self.last = found
            raise _BrokenError

    def _try(self, subject: Any, case: Case) -> Counterexample | None:
        self._remaining -= bool(self._failures)
        try:
            measured = self.tried.test(subject, **case)
        except HypothesisException:
            raise
        except Exception as error:
            found = Counterexample(self.tried, subject, case, error)
            self._failures[_key(subject, case)] = found
            return found
        if measured is not None and math.isfinite(measured):
            self.measured.append(measured)
        return None


def _key(subject: Any, case: Case) -> str:
    return f"{code(subject)} {code(case)}"


@dataclass(frozen=True)
class Counterexample:
    """A case in which a property does not hold; prints as a report.

    Attributes:
        broken: the property.
        subject: the object that does not have it.
        case: the arguments of the test.
        error: what the test raised.
    """

    broken: Property
    subject: Any
    case: Case
    error: Exception

    def __str__(self) -> str:
        """Return property, case, values, usual causes and a line that reproduces the failure."""
        found = str(self.error)
        if not isinstance(self.error, AssertionError):
            found = f"{type(self.error).__name__}: {found}{_line_of(self.error)}"
        not_finite = isinstance(self.error, NotFiniteError)
        where = ", ".join(f"{name} = {code(value)}" for name, value in self.case.items())
        rows = {
            "property": self.broken.statement,
            "where": where or "no arguments",
            "found": found,
            "causes": _NOT_FINITE if not_finite else self.broken.causes,
            "rerun": self.line,
        }
        return "\n".join(
            [f"{self.broken.name}: {title(self.subject)} does not have this property."]
            + [f"    {name:8} {_indented(text)}" for name, text in rows.items()]
        )

    @property
    def line(self) -> str:
        """A line of code that reproduces the failure."""
        test = self.broken.test
        arguments = [code(self.subject), *(f"{k}={code(v)}" for k, v in self.case.items())]
        return f"{test.__module__}.{test.__name__}({', '.join(arguments)})"


class BrokenPropertyError(AssertionError):
    """An object lacks properties of its family; the message gives a counterexample to each.

    Attributes:
        counterexamples: one for each property that does not hold.
    """

    def __init__(self, counterexamples: Sequence[Counterexample]) -> None:
        self.counterexamples = tuple(counterexamples)
        super().__init__("\n" + "\n\n".join(map(str, self.counterexamples)))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the properties that do not hold."""
        return tuple(each.broken.name for each in self.counterexamples)


class NotFiniteError(AssertionError):
    """A value that is compared with another one is NaN or infinite (see :func:`close`)."""


class PropertySuite:
    """The properties that the members of a family must have, in the order of their checks.

    Args:
        noun: what a member is called.
        properties: the properties so far.
    """

    def __init__(self, noun: str, properties: Sequence[Property] = ()) -> None:
        self.noun = noun
        self.properties = list(properties)

    def property(
        self,
        name: str,
        statement: str,
        causes: str,
        *,
        applies: Callable[[Any], bool] = always,
        examples: int = 10,
        prerequisite: bool = False,
        **cases: Cases,
    ) -> Callable[[Test], Test]:
        """Decorate a function ``test(subject, **case)``, which becomes a property of the suite.

        Args:
            name: name of the property.
            statement: the formula or sentence.
            causes: usual causes of a failure.
            applies: whether a subject must have the property.
            examples: default number of cases.
            prerequisite: whether the properties after it are checked only if this one holds.
            **cases: for each argument, a function from the subject to the strategy that draws it.

        Returns:
            The decorator, which returns the function unchanged.
        """

        def enroll(test: Test) -> Test:
            self.properties.append(
                Property(name, statement, causes, test, cases, applies, examples, prerequisite)
            )
            return test

        return enroll

    def chosen(self, only: str | Sequence[str] | None = None) -> list[Property]:
        """Return the properties of the given names, all if None.

        Raises:
            ValueError: if a name is unknown.
        """
        if only is None:
            return list(self.properties)
        names = [only] if isinstance(only, str) else list(only)
        known = {each.name: each for each in self.properties}
        for name in names:
            if name not in known:
                raise ValueError(
                    f"only: expected names of properties of {self.noun}s, got {name!r}; there are "
                    f"{', '.join(map(repr, known))}"
                )
        return [known[name] for name in names]

    def results(
        self,
        subject: Any,
        *,
        seed: int = 0,
        examples: int | None = None,
        only: str | Sequence[str] | None = None,
        fixed: Case | None = None,
    ) -> Iterator[PropertyResult]:
        """Yield the result for each property that applies (arguments as in :meth:`check`)."""
        single = not isinstance(subject, st.SearchStrategy)
        subjects = st.just(subject) if single else subject
        for each in self.chosen(only):
            if not single or each.applies(subject):
                result = each.search(subjects, seed=seed, examples=examples, fixed=fixed)
                yield result
                if each.prerequisite and result.counterexample is not None:
                    return

    def check(
        self,
        subject: Any,
        *,
        seed: int = 0,
        examples: int | None = None,
        only: str | Sequence[str] | None = None,
        fixed: Case | None = None,
    ) -> Report:
        """Search for a counterexample to every property.

        Args:
            subject: a member, or a strategy of members.
            seed: seed of the search.
            examples: number of cases of each property; its own number if None.
            only: name or names of the properties to check; all if None.
            fixed: arguments of the tests that are not drawn.

        Returns:
            The results, with what was measured.

        Raises:
            BrokenPropertyError: an ``AssertionError`` with a counterexample to each property that
                does not hold.
        """
        check_integer("seed", seed, minimum=0)
        if examples is not None:
            check_integer("examples", examples, minimum=1)
        results = self.results(subject, seed=seed, examples=examples, only=only, fixed=fixed)
        report = Report(tuple(results))
        if found := report.counterexamples:
            raise BrokenPropertyError(found) from found[0].error
        return report


# --- the public checks


_SHARED = """\
    seed: seed of the search, which is reproducible.
    examples: number of cases of each property; its own number if None, for seconds in all.
    only: name or names of the properties to check; all if None.

Returns:
    A :class:`~scoresde.testing.Report` with one result for each property, and what was
    measured. As an assertion the call needs no more: it raises if a property does not hold.

Raises:
    BrokenPropertyError: an ``AssertionError`` with, for each property that does not hold, the
        formula, the simplest counterexample, the values there and the usual causes.
"""


def documents(**arguments: str) -> Callable[[Check], Check]:
    """Complete the docstring of a check: what its arguments, its result and its errors are.

    Args:
        **arguments: description of each argument of its own; ``seed``, ``examples`` and ``only``
            are described here.

    Returns:
        The decorator; the new sections come before ``Example:``.
    """
    own = "".join(f"    {name}: {text}\n" for name, text in arguments.items())

    def complete(check: Check) -> Check:
        first, example, rest = inspect.cleandoc(check.__doc__ or "").partition("\n\nExample:")
        check.__doc__ = f"{first}\n\nArgs:\n{own}{_SHARED}{example[1:]}{rest}\n"
        return check

    return complete


# --- comparisons


def holds(condition: Any, otherwise: str) -> None:
    """Raise an ``AssertionError`` with the message ``otherwise`` unless the condition is true."""
    if not bool(condition):
        raise AssertionError(otherwise)


def finite(what: str, value: Any) -> None:
    """Raise an ``AssertionError`` unless all numbers of a tensor are finite."""
    value = torch.as_tensor(value)
    bad = ~value.isfinite()
    if bool(bad.any()):
        first = float(value[bad].reshape(-1)[0])
        raise AssertionError(
            f"{what} is {first} in {int(bad.sum())} of {value.numel()} entries, expected finite "
            "numbers"
        )


def close(what: str, found: Any, expected: Any, *, rtol: float = 0.0, atol: Any = 0.0) -> None:
    """Compare numbers: |found − expected| <= rtol |expected| + atol, all finite.

    Args:
        what: the quantity, for the message.
        found: the value found, a tensor or a number.
        expected: the value expected, broadcast against it.
        rtol: relative tolerance.
        atol: absolute tolerance, a number or a tensor.

    Raises:
        AssertionError: with the worst of the numbers, its index and the tolerance; a
            :class:`NotFiniteError` if it is NaN or infinite.
    """
    found, expected = torch.broadcast_tensors(
        *(torch.as_tensor(v, dtype=torch.float64, device="cpu").detach() for v in (found, expected))
    )
    tolerance = rtol * expected.abs() + torch.as_tensor(atol, dtype=torch.float64, device="cpu")
    error = (found - expected).abs()
    excess = torch.where(error.isfinite(), error - tolerance, torch.inf).reshape(-1)
    if len(excess) == 0 or excess.max() <= 0:
        return
    worst = int(excess.argmax())
    a, b, off, most = (
        float(v.expand_as(found).reshape(-1)[worst]) for v in (found, expected, error, tolerance)
    )
    index = [int(i) for i in torch.unravel_index(torch.tensor(worst), found.shape)]
    where = f" at index {index}" if found.ndim else ""
    if not math.isfinite(a):
        raise NotFiniteError(f"{what} is {a}{where}, expected a finite number such as {b:.6g}")
    raise AssertionError(
        f"{what} is {a:.6g}{where}, expected {b:.6g}: off by {off:.3g}, tolerated is {most:.3g}"
    )


# --- objects as code


def code(value: Any) -> str:
    """Return code that constructs ``value``, where its arguments are attributes.

    Example:
        >>> from scoresde import VPSDE
        >>> code(VPSDE(0.2, 10.0))
        'VPSDE(beta_min=0.2, beta_max=10.0, T=1.0, t_min=1e-05)'
        >>> code({"t": torch.tensor([0.5]), "dtype": torch.float32})
        "{'t': torch.tensor([0.5]), 'dtype': torch.float32}"
    """
    if isinstance(value, Tensor):
        dtype = "" if value.dtype == torch.get_default_dtype() else f", dtype={value.dtype}"
        return f"torch.tensor({value.tolist()}{dtype})"
    if isinstance(value, tuple | list):
        parts = ", ".join(map(code, value))
        return f"[{parts}]" if isinstance(value, list) else f"({parts}{',' * (len(value) == 1)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {code(item)}" for key, item in value.items()) + "}"
    if isinstance(value, nn.Module):
        return _constructor(value)
    if repr(value) == object.__repr__(value):
        return f"{type(value).__name__}(…)"
    return getattr(value, "__qualname__", None) or repr(value)


def _constructor(value: nn.Module) -> str:
    """Return the call of a constructor whose arguments are attributes of the same names."""
    parameters = inspect.signature(type(value)).parameters
    if not all(hasattr(value, name) for name in parameters):
        return f"{type(value).__name__}(…)"
    arguments = ", ".join(f"{name}={code(getattr(value, name))}" for name in parameters)
    return f"{type(value).__name__}({arguments})"


def _line_of(error: BaseException) -> str:
    """The last line of the user's code that ran before an exception, if there is one."""
    ours = Path(__file__).parents[1]
    for entry in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(entry.filename)
        if not path.is_relative_to(ours) and "site-packages" not in path.parts:
            return f" ({path.name}:{entry.lineno}, {entry.line})" if entry.line else ""
    return ""


def title(subject: Any) -> str:
    """Return an object as code, in one line of at most 80 characters."""
    text = code(subject)
    return text if len(text) <= 80 else f"{type(subject).__name__}(…)"


def _indented(text: str) -> str:
    return text.replace("\n", "\n" + " " * 13)
