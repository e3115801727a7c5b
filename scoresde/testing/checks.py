"""The properties that an object must have, one check for each: for pytest and for reports."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, singledispatch
from typing import TYPE_CHECKING, Any

from torch import nn

from scoresde.likelihood import Method
from scoresde.samplers import Sampler
from scoresde.scores import Score
from scoresde.sdes import SDE
from scoresde.solvers import Solver
from scoresde.testing.likelihoods import LIKELIHOODS
from scoresde.testing.networks import NETWORKS
from scoresde.testing.properties import PropertySuite, Report, code
from scoresde.testing.sampler_contract import SAMPLERS
from scoresde.testing.scores import suite_of_scores
from scoresde.testing.sde_contract import SDES
from scoresde.testing.solver_contract import SOLVERS
from scoresde.testing.traces import TRACES
from scoresde.traces import Trace

if TYPE_CHECKING:
    import pytest


@singledispatch
def family_of(subject: object) -> PropertySuite:
    """Return the suite of properties that an object must have.

    Other families are added by ``@family_of.register``.

    Args:
        subject: an SDE, a score, a sampler, a solver, a trace, a likelihood method or a network.

    Raises:
        TypeError: if the object belongs to no family.
    """
    raise TypeError(
        "subject: expected an SDE, a Score, a Sampler, a Solver, a Trace, a likelihood Method or a "
        f"network (nn.Module), got {type(subject).__name__}; derive from one of them, or wrap it "
        "in an adapter"
    )


for _kind, _suite in {
    nn.Module: NETWORKS,  # singledispatch prefers the subclasses SDE and Score
    SDE: SDES,
    Sampler: SAMPLERS,
    Solver: SOLVERS,
    Trace: TRACES,
    Method: LIKELIHOODS,
}.items():
    family_of.register(_kind, lambda subject, suite=_suite: suite)
family_of.register(Score, suite_of_scores)


def checks(
    subject: Any, *, seed: int = 0, examples: int | Mapping[str, int] | None = None
) -> Iterator[tuple[str, Callable[[], Report]]]:
    """Yield the name and the check of every property that an object must have.

    Args:
        subject: an SDE, a score, a sampler, …
        seed: seed of the search.
        examples: number of cases, of all properties or by name; the property's own number if None
            or not named.

    Yields:
        The name of the property, and a function without arguments that raises
        :class:`~scoresde.testing.BrokenPropertyError` if it does not hold, and returns a
        :class:`~scoresde.testing.Report` otherwise.

    Example:
        >>> from scoresde import VPSDE
        >>> [name for name, check in checks(VPSDE())][:3]
        ['finite', 'shapes', 'batch independence']
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
    """Make one pytest test of each property and each object; the test takes ``check`` and calls it.

    Args:
        subjects: SDEs, scores, samplers, …; objects of several families may be mixed.
        expected_failures: name of the property → reason: these must fail (``xfail(strict=True)``).
        skip: name of the property → reason: these are not run.
        seed: seed of the search.
        examples: number of cases, of all properties or by name; the property's own number if None
            or not named.

    Returns:
        A ``pytest.mark.parametrize``.

    Raises:
        ValueError: if a name is that of no property of the objects.

    Example:
        >>> from scoresde import SubVPSDE, VPSDE
        >>> @parametrize_with_checks([VPSDE(), SubVPSDE()])
        ... def test_my_sdes(check):
        ...     check()
    """
    import pytest

    marks = {name: pytest.mark.skip(reason=why) for name, why in (skip or {}).items()}
    for name, why in (expected_failures or {}).items():
        marks[name] = pytest.mark.xfail(reason=why, strict=True, raises=AssertionError)
    found = [
        (f"{_label(subject)}-{name}", name, check)
        for subject in subjects
        for name, check in checks(subject, seed=seed, examples=examples)
    ]
    if unknown := marks.keys() - {name for _, name, _ in found}:
        raise ValueError(
            f"expected_failures, skip: expected names of properties, got {sorted(unknown)}; there "
            f"are {', '.join(repr(name) for name in dict.fromkeys(name for _, name, _ in found))}"
        )
    parameters = [
        pytest.param(check, id=label, marks=[marks[name]] if name in marks else [])
        for label, name, check in found
    ]
    return pytest.mark.parametrize("check", parameters)


def _label(subject: Any) -> str:
    """A short name, the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", code(subject))[:60]
