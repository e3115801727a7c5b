r"""Properties: laws with a formula, and how one is looked for that does not hold.

A property is a function ``test(subject, **case)`` that returns if a law holds for a case and raises
if not. Hypothesis draws the cases, and shrinks one that fails to the simplest that still does.
What comes out is a sentence: which law, where, what was found instead of what, what usually is the
cause, and a line of code that shows it again.

Runs are reproducible: the search depends on ``seed`` alone, cases hold seeds and never generators,
and nothing is written to disk.
"""

from __future__ import annotations

import inspect
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
"""What is drawn for one argument of a property, given the subject."""

Test = TypeVar("Test", bound=Callable[..., None])

_SHRINKING = 10
"""Cases that are tried to make a counterexample simpler, in units of the property's examples."""


def always(subject: Any) -> bool:
    """Every subject owes the property."""
    return True


@dataclass(frozen=True)
class Property:
    """A law that the members of a family owe.

    Attributes:
        name: what it is called, a few words.
        law: the formula or sentence.
        causes: what usually breaks it.
        test: ``test(subject, **case)``, which raises if the law does not hold for the case.
        cases: for each argument of ``test``, the strategy that draws it, given the subject.
        applies: whether a subject owes it.
        examples: how many cases are tried where the user does not say.
    """

    name: str
    law: str
    causes: str
    test: Callable[..., None]
    cases: Mapping[str, Cases] = field(default_factory=dict)
    applies: Callable[[Any], bool] = always
    examples: int = 10

    def search(
        self,
        subjects: st.SearchStrategy[Any],
        *,
        seed: int = 0,
        examples: int | None = None,
        fixed: Case | None = None,
    ) -> Counterexample | None:
        """Return the simplest counterexample that is found, or None.

        Args:
            subjects: strategy of what is tested; ``st.just(object)`` for a single one.
            seed: of the search.
            examples: how many cases are tried; the property's own number if None.
            fixed: arguments of the test that are not drawn.
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
            suppress_health_check=list(HealthCheck),
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
            return attempt.last
        return None


class _BrokenError(Exception):
    """A property does not hold; always raised at the same place, so that all are one to shrink."""


class _Attempt:
    """A test with a memory: after enough cases only what is known to fail fails; shrinking ends.

    Attributes:
        last: the counterexample seen last: the simplest, when the search is over.
    """

    def __init__(self, tried: Property) -> None:
        self.tried = tried
        self.last: Counterexample | None = None
        self._known: dict[str, Counterexample] = {}
        self._left = _SHRINKING * tried.examples

    def __call__(self, subject: Any, case: Case) -> None:
        known = self._known.get(_key(subject, case)) if self._known else None
        found = known if known or self._left <= 0 else self._try(subject, case)
        if found is not None:
            self.last = found
            raise _BrokenError

    def _try(self, subject: Any, case: Case) -> Counterexample | None:
        self._left -= bool(self._known)
        try:
            self.tried.test(subject, **case)
        except HypothesisException:
            raise
        except Exception as error:
            found = Counterexample(self.tried, subject, case, error)
            self._known[_key(subject, case)] = found
            return found
        return None


def _key(subject: Any, case: Case) -> str:
    return f"{code(subject)} {code(case)}"


@dataclass(frozen=True)
class Counterexample:
    """A case for which a law does not hold, and what happened there; prints as a report.

    Attributes:
        broken: the property that does not hold.
        subject: the object that does not have it.
        case: the arguments it was found with.
        error: what the test raised.
    """

    broken: Property
    subject: Any
    case: Case
    error: Exception

    def __str__(self) -> str:
        broken, raised = self.broken, type(self.error).__name__
        found = str(self.error)
        if raised != "AssertionError":
            found = f"{raised}: {found}{_line_of(self.error)}"
        where = ", ".join(f"{name} = {code(value)}" for name, value in self.case.items())
        rows = {
            "law": broken.law,
            "where": where or "anywhere",
            "found": found,
            "often": broken.causes,
            "again": self.line,
        }
        return "\n".join(
            [f"{broken.name}: {title(self.subject)} breaks this law."]
            + [f"    {name:6} {_indented(text)}" for name, text in rows.items()]
        )

    @property
    def line(self) -> str:
        """A line of code that shows it again."""
        test = self.broken.test
        arguments = [code(self.subject), *(f"{k}={code(v)}" for k, v in self.case.items())]
        return f"{test.__module__}.{test.__name__}({', '.join(arguments)})"


class BrokenPropertyError(AssertionError):
    """An object breaks laws of its family; the message tells which, where and how.

    Attributes:
        counterexamples: one for each broken law.
    """

    def __init__(self, counterexamples: Sequence[Counterexample]) -> None:
        self.counterexamples = tuple(counterexamples)
        super().__init__("\n" + "\n\n".join(map(str, self.counterexamples)))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the broken laws."""
        return tuple(each.broken.name for each in self.counterexamples)


class PropertySuite:
    """What the members of one family owe: properties, in the order in which they are looked at.

    Args:
        noun: what a member is called.
    """

    def __init__(self, noun: str, properties: Sequence[Property] = ()) -> None:
        self.noun = noun
        self.properties = list(properties)

    def property(
        self,
        name: str,
        law: str,
        causes: str,
        *,
        applies: Callable[[Any], bool] = always,
        examples: int = 10,
        **cases: Cases,
    ) -> Callable[[Test], Test]:
        """Enrol the decorated function ``test(subject, **case)`` as a property.

        Args:
            name: what it is called.
            law: the formula or sentence.
            causes: what usually breaks it.
            applies: whether a subject owes it.
            examples: how many cases are tried by default.
            **cases: for each argument, a function from the subject to the strategy that draws it.
        """

        def enrol(test: Test) -> Test:
            self.properties.append(Property(name, law, causes, test, cases, applies, examples))
            return test

        return enrol

    def chosen(self, only: str | Sequence[str] | None = None) -> list[Property]:
        """Return the properties of the given names, all if None.

        Raises:
            ValueError: if there is none of a name.
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

    def broken(
        self,
        subject: Any,
        *,
        seed: int = 0,
        examples: int | None = None,
        only: str | Sequence[str] | None = None,
        fixed: Case | None = None,
    ) -> Iterator[tuple[Property, Counterexample | None]]:
        """Yield each property that applies, with a counterexample or None (see :meth:`check`)."""
        subjects = subject if isinstance(subject, st.SearchStrategy) else st.just(subject)
        single = not isinstance(subject, st.SearchStrategy)
        for each in self.chosen(only):
            if not single or each.applies(subject):
                found = each.search(subjects, seed=seed, examples=examples, fixed=fixed)
                yield each, found

    def check(
        self,
        subject: Any,
        *,
        seed: int = 0,
        examples: int | None = None,
        only: str | Sequence[str] | None = None,
        fixed: Case | None = None,
    ) -> None:
        """Look for counterexamples to every property.

        Args:
            subject: a member, or a strategy of members.
            seed: of the search.
            examples: how many cases of each property are tried; its own number if None.
            only: the name of a property or some names; all if None.
            fixed: arguments of the tests that are not drawn.

        Raises:
            BrokenPropertyError: an ``AssertionError`` that tells of every broken law.
        """
        check_integer("seed", seed, minimum=0)
        if examples is not None:
            check_integer("examples", examples, minimum=1)
        results = self.broken(subject, seed=seed, examples=examples, only=only, fixed=fixed)
        found = [counterexample for _, counterexample in results if counterexample is not None]
        if found:
            raise BrokenPropertyError(found) from found[0].error


# --- what a test says


def holds(condition: Any, otherwise: str) -> None:
    """Raise an ``AssertionError`` that says ``otherwise``, unless the condition is true."""
    if not bool(condition):
        raise AssertionError(otherwise)


def close(what: str, found: Any, expected: Any, *, rtol: float = 0.0, atol: Any = 0.0) -> None:
    """Compare numbers: |found − expected| <= rtol |expected| + atol, all finite.

    Args:
        what: the quantity, as the message calls it.
        found: what there is, a tensor or a number.
        expected: what there should be, broadcast against it.
        rtol: relative tolerance.
        atol: absolute tolerance, a number or a tensor.

    Raises:
        AssertionError: with the worst of the numbers, where it stands, and the tolerance.
    """
    found, expected = torch.broadcast_tensors(
        *(torch.as_tensor(v, dtype=torch.float64, device="cpu").detach() for v in (found, expected))
    )
    tolerance = rtol * expected.abs() + torch.as_tensor(atol, dtype=torch.float64)
    error = (found - expected).abs()
    excess = torch.where(error.isfinite(), error - tolerance, torch.inf).reshape(-1)
    if len(excess) == 0 or excess.max() <= 0:
        return
    worst = int(excess.argmax())
    a, b, off, most = (
        float(v.expand_as(found).reshape(-1)[worst]) for v in (found, expected, error, tolerance)
    )
    index = [int(i) for i in torch.unravel_index(torch.tensor(worst), found.shape)]
    noise_level_at = f" at index {index}" if found.ndim else ""
    raise AssertionError(
        f"{what} is {a:.6g}{noise_level_at}, expected {b:.6g}: off by {off:.3g}, tolerated is {most:.3g}"
    )


# --- objects as code


def code(value: Any) -> str:
    """Return code that makes ``value`` again, where its constructor's arguments can be read off.

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
    """The last line of the user's own that was run before an exception, if there is one."""
    ours = Path(__file__).parents[1]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if not path.is_relative_to(ours) and "site-packages" not in path.parts:
            return f" ({path.name}:{frame.lineno}, {frame.line})" if frame.line else ""
    return ""


def title(subject: Any) -> str:
    """Return an object as code, in one line of at most 80 characters."""
    text = code(subject)
    return text if len(text) <= 80 else f"{type(subject).__name__}(…)"


def _indented(text: str) -> str:
    return text.replace("\n", "\n" + " " * 11)
