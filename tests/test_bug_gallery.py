"""Every bug of the gallery is caught, by the law that one would expect, with words that help."""

from __future__ import annotations

from collections import Counter

import pytest
from gallery import BUGS, Bug

from scoresde.testing import BrokenPropertyError, family_of

HUNG = [
    pytest.param(bug, id=bug.name, marks=[pytest.mark.slow] if bug.slow else []) for bug in BUGS
]


RIGHT = {(bug.right, bug.law, *bug.fixed): bug for bug in BUGS}
"""One bug for each thing that is right, and each law."""


def look_at(bug: Bug, subject: object, examples: int) -> None:
    family = family_of(subject)
    family.check(subject, only=bug.law, examples=examples, fixed=dict(bug.fixed))


@pytest.mark.parametrize("bug", HUNG)
def test_it_is_caught(bug: Bug) -> None:
    with pytest.raises(BrokenPropertyError) as caught:
        look_at(bug, bug.make(), bug.examples)
    (found,) = caught.value.counterexamples
    assert caught.value.names == (bug.law,)
    rows = dict(line.strip().split(maxsplit=1) for line in str(found).splitlines()[1:])
    assert list(rows) == ["law", "where", "found", "often", "again"]
    assert rows["law"] == found.broken.law
    assert bug.hint in str(found)


@pytest.mark.slow
@pytest.mark.parametrize("bug", RIGHT.values(), ids=lambda bug: bug.name)
def test_what_is_right_passes(bug: Bug) -> None:
    look_at(bug, bug.right(), 2)


def test_the_gallery_is_large() -> None:
    names = [bug.name for bug in BUGS]
    assert len(set(names)) == len(names) >= 25
    families = Counter(family_of(bug.make()).noun for bug in BUGS)
    assert len(families) == 6, families
