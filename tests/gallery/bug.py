"""A bug of the gallery."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

BUGS: list[Bug] = []


@dataclass(frozen=True)
class Bug:
    """An object that lacks a property.

    Attributes:
        make: makes the object.
        violates: the name of the property that must fail.
        hint: words of the message that point to the mistake.
        right: makes an object without the mistake, which must pass.
        examples: number of cases.
        slow: whether it takes more than a few seconds.
        fixed: arguments of the test that are not drawn.
    """

    make: Callable[[], Any]
    violates: str
    hint: str
    right: Callable[[], Any]
    examples: int = 4
    slow: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The family and the name of the class or function."""
        return f"{self.make.__module__.rpartition('.')[2]}-{self.make.__name__}"


def breaks(
    violates: str,
    hint: str,
    right: Callable[[], Any],
    *,
    examples: int = 4,
    slow: bool = False,
    **fixed: Any,
) -> Callable[[Any], Any]:
    """Add the decorated class, or function without arguments, to the gallery."""

    def add(make: Callable[[], Any]) -> Callable[[], Any]:
        BUGS.append(Bug(make, violates, hint, right, examples, slow, fixed))
        return make

    return add
