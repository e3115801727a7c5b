"""The public interface as it was meant: names, arguments, defaults, and the members of families.

A default is part of what a result is. Whoever changes one says so here:

    python tests/test_interface.py    # writes tests/interface.txt anew; read its difference
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("interface.txt")
ROOMS = (
    "scoresde",
    "scoresde.sdes",
    "scoresde.samplers",
    "scoresde.likelihood",
    "scoresde.solvers",
    "scoresde.traces",
    "scoresde.training.losses",
    "scoresde.guidance",
    "scoresde.operators",
    "scoresde.networks",
    "scoresde.training",
    "scoresde.dequantization",
    "scoresde.interop",
    "scoresde.testing",
    "scoresde.testing.adapters",
)


def told(value: Any) -> str:
    """A default as one would write it, without addresses and rounding of the last digits."""
    if inspect.isroutine(value) or inspect.isclass(value):
        return value.__qualname__
    if isinstance(value, float):
        return f"{value:.12g}"
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text


def arguments(value: Any) -> str:
    """The signature without annotations."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    parts = []
    for parameter in signature.parameters.values():
        default = "" if parameter.default is parameter.empty else f"={told(parameter.default)}"
        mark = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        if parameter.kind is parameter.KEYWORD_ONLY:
            mark = "/"
        parts.append(f"{mark}{parameter.name}{default}")
    return f"({', '.join(parts)})"


def is_record(value: type) -> bool:
    """Whether a class is itself made by ``dataclass``, not only one it inherits from."""
    return "__dataclass_params__" in vars(value)


def kind(value: Any) -> str:
    """What a name stands for; of dataclasses also whether they can be changed and compared."""
    if not inspect.isclass(value):
        return "def" if callable(value) else "value"
    if not is_record(value):
        return "class"
    made = value.__dataclass_params__
    return f"{'frozen' if made.frozen else 'open'} class" + ("" if made.eq else " by identity")


def methods(value: type) -> Iterator[str]:
    """Public attributes that are plain values, and the defaults of public methods."""
    own = {field.name for field in dataclasses.fields(value)} if is_record(value) else set()
    for name, member in sorted(vars(value).items()):
        if isinstance(member, bool | int | float) and name not in own and name[0] != "_":
            yield f"    {name} = {told(member)}"
        member = getattr(member, "__func__", member)
        if not inspect.isfunction(member) or (name.startswith("_") and name != "__call__"):
            continue
        given = arguments(member)
        if "=" in given:
            yield f"    {name}{given}"


def lines() -> Iterator[str]:
    """The interface, line by line; each object where it is first met."""
    seen: set[int] = set()
    for room in ROOMS:
        module = importlib.import_module(room)
        yield f"# {room}"
        for name in sorted(module.__all__):
            value = getattr(module, name)
            if inspect.ismodule(value) or id(value) in seen:
                continue
            if inspect.isroutine(value) or inspect.isclass(value):
                seen.add(id(value))
                yield f"{kind(value)} {name}{arguments(value)}"
                yield from methods(value) if inspect.isclass(value) else ()
            else:
                yield f"{name} = {told(value)}"
        for member in getattr(module, "FAMILY", ()):
            yield f"FAMILY: {told(member)}"


def test_the_interface_is_the_one_that_was_meant() -> None:
    assert list(lines()) == RECORD.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    RECORD.write_text("".join(f"{line}\n" for line in lines()), encoding="utf-8")
