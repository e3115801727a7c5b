"""The public interface: arguments and defaults of the names in the contract and at the root.

A default is part of a result, so that a changed one is a decision. The file interface.txt records
them for the names that users import from ``scoresde`` and for the contract's names elsewhere; a new
member of a family is not recorded unless it is exported at the root. If a change is intended, run

    python tests/test_interface.py

which writes the file again, and review its difference.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import scoresde

RECORD = Path(__file__).with_name("interface.txt")
UPDATE = "python tests/test_interface.py"

CONTRACT = {  # package -> names of the contract that the root does not export
    "testing": [
        "check_likelihood",
        "check_sampler",
        "check_score",
        "check_sde",
        "check_solver",
        "check_trace",
        "parametrize_with_checks",
    ],
}


def shown(value: Any) -> str:
    """A default as one would write it, without addresses and without rounding errors."""
    if inspect.isroutine(value) or inspect.isclass(value):
        return value.__qualname__
    if isinstance(value, float):
        return f"{value:.12g}"
    text = re.sub(r"<class '[\w.]*?(\w+)'>", r"\1", repr(value))  # wherever it is defined
    return type(value).__name__ if " at 0x" in text else text


def arguments(value: Any) -> str:
    """The signature without annotations."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    parts = []
    for parameter in signature.parameters.values():
        default = "" if parameter.default is parameter.empty else f"={shown(parameter.default)}"
        mark = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        if parameter.kind is parameter.KEYWORD_ONLY:
            mark = "/"
        parts.append(f"{mark}{parameter.name}{default}")
    return f"({', '.join(parts)})"


def entries(name: str, value: Any) -> Iterator[str]:
    """One line for a function or class, one for each public method that has a default."""
    if not callable(value):
        yield f"{name} = {shown(value)}"
        return
    yield f"{name}{arguments(value)}"
    for attribute, member in sorted(vars(value).items()) if inspect.isclass(value) else ():
        function = getattr(member, "__func__", member)
        if attribute.startswith("_") or not inspect.isfunction(function):
            continue
        if "=" in (given := arguments(function)):
            yield f"    {attribute}{given}"


def interface() -> Iterator[str]:
    """The recorded interface, line by line."""
    named = {name: getattr(scoresde, name) for name in scoresde.__all__}
    for name in sorted(named):
        if not inspect.ismodule(named[name]):
            yield from entries(name, named[name])
    for package, names in CONTRACT.items():
        module = importlib.import_module(f"scoresde.{package}")
        for name in names:
            yield from entries(f"{package}.{name}", getattr(module, name))


def difference(recorded: list[str], found: list[str]) -> str:
    """The unified diff of two interfaces and what to do about it; empty if they are equal."""
    lines = list(difflib.unified_diff(recorded, found, RECORD.name, "scoresde", n=0, lineterm=""))
    if not lines:
        return ""
    advice = f"If these changes are intended, run `{UPDATE}` and commit {RECORD.name}."
    return "\n".join(["the public interface has changed", *lines, "", advice])


def test_the_interface_is_the_recorded_one() -> None:
    message = difference(RECORD.read_text(encoding="utf-8").splitlines(), list(interface()))
    if message:
        pytest.fail(message, pytrace=False)


def test_a_changed_default_is_reported_with_the_command() -> None:
    def before(x, *, steps=10): ...

    def after(x, *, steps=20): ...

    message = difference([*entries("sample", before)], [*entries("sample", after)])
    assert "-sample(x, /steps=10)\n+sample(x, /steps=20)" in message
    assert UPDATE in message
    assert difference([*entries("sample", after)], [*entries("sample", after)]) == ""


def test_defaults_of_public_methods_are_part_of_it() -> None:
    class Recipe:
        def __init__(self, order=2) -> None: ...

        def step(self, x, eta=0.0): ...

        def plain(self, x): ...

        def _hidden(self, x=1): ...

        @classmethod
        def made(cls, N=3): ...

    assert list(entries("Recipe", Recipe)) == [
        "Recipe(order=2)",
        "    made(cls, N=3)",
        "    step(self, x, eta=0)",
    ]


if __name__ == "__main__":
    RECORD.write_text("".join(f"{line}\n" for line in interface()), encoding="utf-8")
