"""Every bug of the gallery is found, by the expected property, with a helpful message."""

from __future__ import annotations

from collections import Counter

import pytest
from gallery import BUGS, Bug

from scoresde.testing import BrokenPropertyError, Report, family_of

PARAMETERS = [
    pytest.param(bug, id=bug.name, marks=[pytest.mark.slow] if bug.slow else []) for bug in BUGS
]

RIGHT = {(bug.right, bug.violates, *bug.fixed): bug for bug in BUGS}
"""One bug for each correct object and each property."""

QUICK = {"networks", "sdes", "traces"}
"""Families whose correct objects are checked in the default profile too."""


def check(bug: Bug, subject: object, examples: int) -> Report:
    family = family_of(subject)
    return family.check(subject, only=bug.violates, examples=examples, fixed=dict(bug.fixed))


@pytest.mark.parametrize("bug", PARAMETERS)
def test_bug_is_found(bug: Bug) -> None:
    with pytest.raises(BrokenPropertyError) as caught:
        check(bug, bug.make(), bug.examples)
    (found,) = caught.value.counterexamples
    assert caught.value.names == (bug.violates,)
    rows = dict(line.strip().split(maxsplit=1) for line in str(found).splitlines()[1:])
    assert list(rows) == ["property", "where", "found", "causes", "rerun"]
    assert rows["property"] == found.broken.statement
    assert bug.hint in str(found)


@pytest.mark.parametrize(
    "bug",
    [
        pytest.param(
            bug,
            id=bug.name,
            marks=[] if bug.name.partition("-")[0] in QUICK else [pytest.mark.slow],
        )
        for bug in RIGHT.values()
    ],
)
def test_correct_object_passes(bug: Bug) -> None:
    assert len(check(bug, bug.right(), 2).results) == 1


def test_gallery_is_large() -> None:
    names = [bug.name for bug in BUGS]
    assert len(set(names)) == len(names) >= 25
    families = Counter(family_of(bug.make()).noun for bug in BUGS)
    assert len(families) == 7, families
