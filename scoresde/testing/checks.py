"""From objects to the laws they owe: one check for each, for pytest and for reports."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, singledispatch
from typing import TYPE_CHECKING, Any

from scoresde.likelihood import Method
from scoresde.samplers import Sampler
from scoresde.scores import Score
from scoresde.sdes import SDE
from scoresde.solvers import Solver
from scoresde.testing.likelihoods import LIKELIHOODS
from scoresde.testing.properties import PropertySuite, code
from scoresde.testing.samplers import SAMPLERS
from scoresde.testing.scores import scores_family
from scoresde.testing.sdes import SDES
from scoresde.testing.solvers import SOLVERS
from scoresde.testing.traces import TRACES
from scoresde.traces import Trace

if TYPE_CHECKING:
    import pytest


@singledispatch
def family_of(subject: object) -> PropertySuite:
    """Return the family whose laws an object owes.

    Raises:
        TypeError: if it belongs to none.
    """
    raise TypeError(
        "subject: expected an SDE, a Score, a Sampler, a Solver, a Trace or a likelihood Method, "
        f"got {type(subject).__name__}; derive from one of them, or wrap it in an adapter"
    )


@family_of.register
def _(subject: SDE) -> PropertySuite:
    return SDES


@family_of.register
def _(subject: Sampler) -> PropertySuite:
    return SAMPLERS


@family_of.register
def _(subject: Solver) -> PropertySuite:
    return SOLVERS


@family_of.register
def _(subject: Trace) -> PropertySuite:
    return TRACES


@family_of.register
def _(subject: Method) -> PropertySuite:
    return LIKELIHOODS


@family_of.register
def _(subject: Score) -> PropertySuite:
    return scores_family(subject)


def checks(
    subject: Any, *, seed: int = 0, examples: int | Mapping[str, int] | None = None
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the name and the check of every law that an object owes.

    Args:
        subject: an SDE, a score, a sampler, …
        seed: of the search.
        examples: how many cases of each law are tried, of all or by law's name; its own number if
            None or not named.

    Yields:
        The law's name, and a function without arguments that raises
        :class:`~scoresde.testing.BrokenPropertyError` if it is broken.

    Example:
        >>> from scoresde import VPSDE
        >>> [name for name, check in checks(VPSDE())][:2]
        ['shapes', 'rows']
    """
    family = family_of(subject)
    for each in family.properties:
        if each.applies(subject):
            number = examples.get(each.name) if isinstance(examples, Mapping) else examples
            run = partial(family.check, subject, only=each.name, seed=seed, examples=number)
            yield each.name, run


def parametrize_with_checks(
    subjects: Sequence[Any],
    *,
    expected_failures: Mapping[str, str] | None = None,
    skip: Mapping[str, str] | None = None,
    seed: int = 0,
    examples: int | Mapping[str, int] | None = None,
) -> pytest.MarkDecorator:
    """Make one pytest test of each law and each object; the test takes ``check`` and calls it.

    Args:
        subjects: SDEs, scores, samplers, …, of all kinds together.
        expected_failures: law's name → reason: these must fail (``xfail(strict=True)``).
        skip: law's name → reason: these are not run.
        seed: of the search.
        examples: how many cases of each law are tried, of all or by law's name; its own number if
            None or not named.

    Raises:
        ValueError: if a name is none of a law that the objects owe.

    Example:
        >>> from scoresde import SubVPSDE, VPSDE
        >>> @parametrize_with_checks([VPSDE(), SubVPSDE()])
        ... def test_my_diffusions(check):
        ...     check()
    """
    import pytest

    marks = {name: pytest.mark.skip(reason=why) for name, why in (skip or {}).items()}
    for name, why in (expected_failures or {}).items():
        marks[name] = pytest.mark.xfail(reason=why, strict=True, raises=AssertionError)
    owed = [
        (f"{_label(subject)}-{name}", name, check)
        for subject in subjects
        for name, check in checks(subject, seed=seed, examples=examples)
    ]
    if unknown := marks.keys() - {name for _, name, _ in owed}:
        raise ValueError(
            f"expected_failures, skip: expected names of laws, got {sorted(unknown)}; there are "
            f"{', '.join(repr(name) for name in dict.fromkeys(name for _, name, _ in owed))}"
        )
    parameters = [
        pytest.param(check, id=label, marks=[marks[name]] if name in marks else [])
        for label, name, check in owed
    ]
    return pytest.mark.parametrize("check", parameters)


def _label(subject: Any) -> str:
    """A short name, the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", code(subject))[:60]
