"""The metadata of the package, which several files repeat, agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import scoresde

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
REQUIREMENTS = {
    *PROJECT["project"]["dependencies"],
    *(requirement for extra in EXTRAS.values() for requirement in extra),
    *(requirement for group in PROJECT["dependency-groups"].values() for requirement in group),
}


def pins() -> dict[str, str]:
    """The version that ``constraints.txt`` pins, for each package."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


@pytest.mark.parametrize(
    "requirement", sorted(each for each in REQUIREMENTS if not each.startswith("scoresde"))
)
def test_every_requirement_is_pinned_within_its_bound(requirement: str) -> None:
    name, bound = requirement.split(">=")
    assert numbers(pins()[name]) >= numbers(bound)


def test_the_citation_names_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert set(re.findall(r"^\s*version: (\S+)$", citation, re.M)) == {scoresde.__version__}
